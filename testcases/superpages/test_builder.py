"""Superpages a guest is built with, and what becomes of them."""

import pytest

from lab.xen.domain import page_orders
from lab.xen.guests import payload

pytestmark = [pytest.mark.quick, pytest.mark.needs("hap", "sp2m")]


def test_builder_allocates_2m_pages(host, evidence):
    """The domain builder gives a PVH guest 2 MiB extents for nearly all of its memory, and the guest runs on them."""
    with host.domain(payload(host, "pvh64", "memory", memory_mib=64)) as guest:
        orders = page_orders(guest.builder_output)
        evidence.add("domain builder", guest.builder_output, board=host.name)
        results = guest.results(60.0)
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
        covered = orders["2MB"] * 2 + orders.get("1GB", 0) * 1024
        assert covered >= 60, f"2 MiB extents cover {covered} of 64 MiB"
        assert results["memory"].outcome == "PASS", results["memory"].detail


def test_memory_comes_back(host, evidence):
    """Ten guests built on superpages and destroyed leave free memory where it was."""
    before = host.free_memory_mib()
    for _ in range(10):
        with host.domain(payload(host, "pvh64", "idle", memory_mib=64), paused=True):
            pass
    after = host.free_memory_mib()
    evidence.add("free memory", f"{before} MiB before, {after} MiB after ten guests of 64 MiB", board=host.name)
    assert abs(after - before) <= 1, f"{before} MiB before, {after} MiB after"
