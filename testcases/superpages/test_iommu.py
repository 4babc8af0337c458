"""Superpages in the IOMMU's tables."""

import re

import pytest

from lab.xen.guests import payload
from lab.xen.pci import assignable, iommu_orders

MEMORY_MIB = 64

pytestmark = [pytest.mark.full, pytest.mark.needs("iommu", "spare-nic")]


def test_guest_memory_is_mapped_by_2m_entries(host, evidence):
    """At least half of a guest's memory is mapped for its device by IOMMU entries of 2 MiB.

    Source: xen/drivers/passthrough/vtd/iommu.c, intel_iommu_map_page: full tables of small entries become one entry.
    """
    sizes = re.findall(r"VT-d iommu .* supported page sizes.*", host.boot_log())
    if sizes and "2MB" not in sizes[0]:
        pytest.skip(f"the IOMMU has no superpages: {sizes[0]}")
    with (
        assignable(host, "spare") as device,
        host.domain(payload(host, "pv64", "memory", memory_mib=MEMORY_MIB, pci=(device.address,))) as guest,
    ):
        results = guest.results(60.0)
        mark = host.board.console.mark()
        host.xl("debug-keys", "oQ")  # the ring is too small for the output of o; that of Q comes after all of it
        host.expect_console("==== PCI devices ====", 60.0, since=mark)
        dump = "\n".join(line.text for line in host.board.console.lines(mark))
        evidence.add("IOMMU tables (debug key o)", dump, board=host.name)
        orders = iommu_orders(dump, guest.domid())
        assert results["memory"].outcome == "PASS", results["memory"].detail
        covered = orders["2MB"] * 2
        evidence.figure("covered_by_2m_mib", covered)
        assert covered >= MEMORY_MIB // 2, f"2 MiB entries cover {covered} of {MEMORY_MIB} MiB: {orders}"
