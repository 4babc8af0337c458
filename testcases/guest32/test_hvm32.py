"""32-bit HVM guests: their device model in dom0, and their hypercalls through the compat layer."""

import pytest

from lab.xen.domain import numbers
from lab.xen.guests import payload

pytestmark = [pytest.mark.full, pytest.mark.needs("hvm32", "hap", "qemu")]


def test_hvm32_runs_and_says_what_it_is(host, evidence):
    """A 32-bit HVM guest runs in protected mode without PAE, and its device model runs in dom0."""
    with host.domain(payload(host, "hvm32", "mode")) as guest:
        results = guest.results(60.0)
        evidence.console("guest console", guest)
        store = f"/local/domain/0/device-model/{guest.domid()}/state"
        state = host.run(f"xenstore-read {store}").stdout.strip()
        evidence.add(store, state, board=host.name)
        assert results["mode"].outcome == "PASS", results["mode"].detail
        seen = numbers(results["mode"].detail)
        assert (seen["bits"], seen["pae"], seen["efer"]) == (32, 0, 0), results["mode"].detail
        assert state == "running"


def test_hvm32_answers_as_hvm64(host, evidence):
    """Each group of hypercalls gives a 32-bit HVM guest what the ABI promises, and the same as its 64-bit twin."""
    with (
        host.domain(payload(host, "hvm32", "hypercalls")) as narrow,
        host.domain(payload(host, "hvm64", "hypercalls")) as wide,
    ):
        answers = []
        for guest in (narrow, wide):
            results = guest.results(60.0)
            evidence.console(guest.name, guest)
            answers.append({name: line for name, line in results.items() if name not in ("mode", "done")})
    narrow_said, wide_said = answers
    failed = [f"{name}: {line.detail}" for name, line in narrow_said.items() if line.outcome == "FAIL"]
    different = [name for name, line in narrow_said.items() if line.outcome != wide_said[name].outcome]
    assert len(narrow_said) >= 10, f"only {len(narrow_said)} checks ran"
    assert not failed, "; ".join(failed)
    assert narrow_said.keys() == wide_said.keys()
    assert not different, f"32 and 64 bit differ in: {', '.join(different)}"
