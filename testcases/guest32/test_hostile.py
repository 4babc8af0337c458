"""Hypercalls with arguments that no honest guest passes. Xen translates those of a 32-bit guest on the way."""

import pytest

from lab.xen.guests import payload

KINDS = [
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh32", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("hvm32", marks=[pytest.mark.full, pytest.mark.needs("hap", "hvm32", "qemu")]),
]


def answers(host, evidence, kind):
    """The hostile checks of one guest, by name."""
    with host.domain(payload(host, kind, "hostile", memory_mib=32)) as guest:
        results = guest.results(60.0)
        evidence.console(f"{kind} console", guest)
        return {name: line for name, line in results.items() if name.startswith("hostile-")}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_arguments(host, evidence, kind):
    """Out-of-range, foreign and duplicate hypercall arguments return the documented errors; ownership is unchanged."""
    found = answers(host, evidence, kind)
    failed = [f"{name}: {line.detail}" for name, line in found.items() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)
    assert len(found) >= 45, f"only {len(found)} checks ran"
    assert "hostile-alive" in found


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_answers_are_those_of_64_bit(host, evidence, kind):
    """A 32-bit guest gets the same answers to hostile hypercalls as its 64-bit twin."""
    narrow, wide = (answers(host, evidence, one) for one in (kind, kind.replace("32", "64")))
    common = narrow.keys() & wide.keys()
    different = [
        f"{name}: {narrow[name].outcome} {narrow[name].detail} / {wide[name].outcome} {wide[name].detail}"
        for name in sorted(common)
        if narrow[name].outcome != wide[name].outcome
    ]
    assert len(common) >= 45, f"only {len(common)} checks in common"
    assert not different, f"32 and 64 bit differ: {'; '.join(different)}"


@pytest.mark.needs("pv32")
def test_host_is_unharmed(host, evidence):
    """After guests that made hostile hypercalls, the next guest boots, no memory is lost and Xen reports no bug."""
    before = host.free_memory_mib()
    host.xl("dmesg", "-c")
    for _ in range(3):
        answers(host, evidence, "pv32")
    with host.domain(payload(host, "pv32", "hypercalls,memory")) as guest:
        done = guest.results(60.0)["done"]
        evidence.console("the guest after them", guest)
        assert done.outcome == "PASS", done.detail
    evidence.add("xl dmesg", host.xl("dmesg").stdout, board=host.name)
    assert not host.grave(), host.grave()[0]
    after = host.free_memory_mib()
    assert after >= before - 1, f"free memory: {before} MiB before, {after} MiB after"
