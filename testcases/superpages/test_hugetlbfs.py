"""Huge pages inside a guest."""

import pytest

from lab.xen.guests import linux

pytestmark = [pytest.mark.quick, pytest.mark.needs("hap", "sp2m")]


def test_hugetlbfs_mapping_is_really_huge(host, evidence):
    """A hugetlbfs mapping in a PVH guest holds its data, and the kernel reports 2 MiB pages under that very mapping."""
    with host.domain(linux(host, "pvh", "hugetlb", cmdline="hugepages=8")) as guest:
        results = guest.results(90.0)
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
        line = results["hugetlb-2048"]
        assert line.outcome == "PASS", line.detail
        assert "KernelPageSize=2048" in line.detail
