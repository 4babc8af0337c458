"""Huge pages inside a guest."""

import pytest

from lab.xen.guests import linux

pytestmark = pytest.mark.needs("hap", "sp2m", "guest-cr2")


@pytest.mark.quick
def test_hugetlbfs_mapping_is_really_huge(host, evidence):
    """A hugetlbfs mapping in a PVH guest keeps its data, and the kernel reports 2 MiB pages for that mapping."""
    with host.domain(linux(host, "pvh", "hugetlb", cmdline="hugepages=8")) as guest:
        results = guest.results(90.0)
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
        line = results.get("hugetlb-2048") or results["hugetlb"]
        assert line.case == "hugetlb-2048", f"the guest has no page of 2 MiB: {line.detail}"
        assert line.outcome == "PASS", line.detail
        assert "KernelPageSize=2048" in line.detail


MEMORY_MIB_1G = 2112  # the second GiB is one huge page; the kernel and its initramfs are in the first GiB


@pytest.mark.needs("sp1g")
def test_hugetlbfs_mapping_of_1_gib(host, evidence):
    """A hugetlbfs mapping of 1 GiB in a PVH guest keeps its data, and the kernel reports a 1 GiB page for it."""
    words = "default_hugepagesz=1G hugepagesz=1G hugepages=1"
    wanted_mib = MEMORY_MIB_1G + 64
    if (free := host.free_memory_mib()) < wanted_mib:
        evidence.unproved(f"{free} MiB are free on {host.name}, and the guest needs {wanted_mib}")
    with host.domain(linux(host, "pvh", "hugetlb", memory_mib=MEMORY_MIB_1G, cmdline=words)) as guest:
        results = guest.results(240.0)
        evidence.console("guest console", guest)
        line = results.get("hugetlb-1048576") or results["hugetlb"]
        assert line.case == "hugetlb-1048576", f"the guest has no page of 1 GiB: {line.detail}"
        assert line.outcome == "PASS", line.detail
        assert "KernelPageSize=1048576" in line.detail
