"""Memory of 32-bit guests: where it lies, that it keeps its contents, and that it can be given back and taken."""

import contextlib

import pytest

from lab.xen.domain import assert_unbroken, assert_unhurt, numbers
from lab.xen.guests import payload

KINDS = [
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh32", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("hvm32", marks=[pytest.mark.full, pytest.mark.needs("hap", "hvm32", "qemu")]),
]


@pytest.mark.needs("pv32", "high-memory")
def test_memory_above_4_gib(host, evidence):
    """A 32-bit PV guest owns machine frames above 4 GiB, maps them, and they keep what is written."""
    host.wait_scrubbed()  # otherwise Xen first hands out clean frames at lower addresses
    with host.domain(payload(host, "pv32", "frames,memory", memory_mib=128)) as guest:
        results = guest.results(90.0)
        evidence.console("guest console", guest)
        above = numbers(results["frames"].detail)["above_4g"]
        if not above:
            evidence.unproved(f"Xen gave the guest no frame above 4 GiB: {results['frames'].detail}")
        evidence.figure("above_4g_pages", above)
        assert results["memory"].outcome == "PASS", results["memory"].detail
        assert numbers(results["memory"].detail)["pages"] > 24000


@pytest.mark.parametrize("kind", KINDS)
def test_balloon_down_and_up(host, evidence, kind):
    """`xl mem-set` takes half of a 32-bit guest's memory and gives it back; both count the same, the rest is intact."""
    with host.domain(payload(host, kind, "memory,balloon,heartbeat", memory_mib=64)) as guest:
        guest.results(60.0)
        full, free = host.domains()[guest.name].memory_mib, host.free_memory_mib()
        guest.host.xl("mem-set", guest.name, "32")
        guest.wait_for(r"^XL balloon INFO pages=[1-9][0-9]+ error=0", 60.0)
        host.expect(lambda: host.free_memory_mib() >= free + 30, 20.0, f"32 MiB back from {guest.name}")
        small = host.domains()[guest.name].memory_mib
        guest.host.xl("mem-set", guest.name, "64")
        guest.wait_for(r"^XL balloon INFO pages=0 error=0", 60.0)
        guest.beats(5)
        evidence.console("guest console", guest)
        back = host.domains()[guest.name].memory_mib
        evidence.add("memory by `xl list`", f"{full} MiB, {small} MiB at 32, {back} MiB at 64", board=host.name)
        assert full - small >= 31, f"the guest still owns {small} of {full} MiB"
        assert back == full, f"the guest had {full} MiB before, and has {back} MiB after"
        assert abs(host.free_memory_mib() - free) <= 1
        assert_unhurt(guest)
        assert_unbroken(guest.heartbeats())


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_range_goes_and_comes_back(host, evidence, kind):
    """A 32-bit guest gives 4 MiB of its memory back and takes them again; all other memory keeps its pattern."""
    work = "memory,give,take"
    with host.domain(payload(host, kind, work, memory_mib=32, first_kib=8192, kib=4096)) as guest:
        results = guest.results(60.0)
        evidence.console("guest console", guest)
        for name in ("memory", "give", "take"):
            assert results[name].outcome == "PASS", f"{name}: {results[name].detail}"
        assert numbers(results["give"].detail)["pages"] == 1024
        assert numbers(results["take"].detail)["verified"] == numbers(results["memory"].detail)["pages"]


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_restore(host, evidence, kind):
    """After `xl save` and `xl restore` a 32-bit guest has lost no heartbeat, and its memory is intact."""
    with host.domain(payload(host, kind, "memory,heartbeat", memory_mib=32, seed=7)) as guest:
        written = numbers(guest.results(60.0)["memory"].detail)["pages"]
        guest.beats(5)
        with guest.saved() as path:
            assert not guest.is_there
            before = guest.heartbeats()[-1].n
            guest.restore(path)
        guest.beats(10, timeout=60.0)
        evidence.console("guest console", guest)
        assert_unhurt(guest)
        lines = {line.case: line for line in guest.payload_lines() if hasattr(line, "case")}
        assert "cancelled=0" in lines["resume"].detail
        assert numbers(lines["verified"].detail)["pages"] == written, lines["verified"].detail
        beats = guest.heartbeats()
        assert beats[-1].n > before
        assert_unbroken(beats)


@pytest.mark.needs("pv32")
def test_twenty_small_guests_at_once(host, evidence):
    """Twenty 32-bit guests run side by side, each keeps its own memory pattern, and Xen gets all memory back."""
    before = host.free_memory_mib()
    with contextlib.ExitStack() as stack:
        guests = [
            stack.enter_context(host.domain(payload(host, "pv32", "memory,heartbeat", seed=n, hb_ms=1000)))
            for n in range(1, 21)
        ]
        for guest in guests:
            assert guest.results(90.0)["memory"].outcome == "PASS"
        assert len(host.domains()) == 20
        for guest in guests:
            guest.beats(2, timeout=60.0)
            assert_unbroken(guest.heartbeats())
        bad = [f"{guest.name}: {line}" for guest in guests for line in guest.console() if " FAIL " in line]
        evidence.add("free memory with twenty guests", f"{host.free_memory_mib()} of {before} MiB", board=host.name)
        assert not bad, bad[0]
    host.expect(lambda: host.free_memory_mib() >= before - 1, 30.0, "Xen has the memory of twenty guests back")
