"""Guests of all kinds on the same CPUs: what one guest leaves in a processor must not reach the next."""

import contextlib

import pytest

from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload

KINDS = ("pv32", "pv64", "pvh32", "pvh64", "hvm32", "hvm64")
BEATS = 30  # heartbeats of half a second


@pytest.mark.needs("pv32", "hvm32", "hap", "qemu")
def test_all_kinds_side_by_side(host, evidence):
    """PV, PVH and HVM guests of 32 and 64 bit share one CPU: no heartbeat or memory is lost, Xen reports no bug."""
    before = host.free_memory_mib()
    host.xl("dmesg", "-c")
    with contextlib.ExitStack() as stack:
        guests = []
        for seed, kind in enumerate(KINDS, 1):
            config = payload(host, kind, "memory,heartbeat", seed=seed, hb_ms=500, dirty_kib=64)
            guests.append(stack.enter_context(host.domain(config)))
            host.xl("vcpu-pin", guests[-1].name, "all", "0")
        for guest in guests:
            assert guest.results(90.0)["memory"].outcome == "PASS"
        for guest in guests:
            guest.beats(BEATS, timeout=90.0)
            evidence.console(guest.name, guest)
        evidence.add("xl vcpu-list", host.xl("vcpu-list").stdout, board=host.name)
        for guest in guests:
            assert_unbroken(guest.heartbeats())
        assert_unhurt(*guests)
    evidence.add("xl dmesg", host.xl("dmesg").stdout, board=host.name)
    assert not host.grave(), host.grave()[0]
    host.expect(lambda: host.free_memory_mib() >= before - 1, 30.0, "Xen has the guests' memory back")
