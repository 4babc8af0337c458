"""The superpages that a guest is built with, and what becomes of them."""

import pytest

from lab.xen.domain import numbers, page_orders
from lab.xen.guests import linux, payload

pytestmark = pytest.mark.needs("hap", "sp2m")

WARM_UP = 3  # guests


@pytest.mark.quick
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


@pytest.mark.parametrize(
    ("kind", "memory_mib"),
    [
        *[("pvh64", size) for size in (16, 33, 130, 258)],
        *[pytest.param("pvh32", size, marks=pytest.mark.needs("hvm32")) for size in (33, 96)],
    ],
)
def test_orders_fit_the_size(host, evidence, kind, memory_mib):
    """Every aligned 2 MiB of a guest is one extent, an odd MiB is 4 KiB pages, and all memory keeps a pattern."""
    with host.domain(payload(host, kind, "memory", memory_mib=memory_mib)) as guest:
        orders = page_orders(guest.builder_output)
        evidence.add("domain builder", guest.builder_output, board=host.name)
        results = guest.results(120.0)
        evidence.console("guest console", guest)
        wanted = {"4KB": memory_mib % 2 * 256, "2MB": memory_mib // 2, "1GB": 0}
        assert orders == wanted, f"{memory_mib} MiB were built as {orders}"
        assert results["memory"].outcome == "PASS", results["memory"].detail


@pytest.mark.weekly
@pytest.mark.needs("sp1g", "memory-8g")
def test_builder_allocates_a_1g_page(host, evidence):
    """A guest of 1026 MiB is built with an extent of 1 GiB if the host has one, and runs on it."""
    with host.domain(payload(host, "pvh64", "memory", memory_mib=1026)) as guest:
        orders = page_orders(guest.builder_output)
        evidence.add("domain builder", guest.builder_output, board=host.name)
        assert guest.results(300.0)["memory"].outcome == "PASS"
        assert orders == {"4KB": 0, "2MB": 1, "1GB": 1}, f"the guest was built as {orders}"


@pytest.mark.quick
def test_memory_comes_back(host, evidence):
    """After ten guests with superpages were created and destroyed, as much memory is free as before."""
    comes_back(host, evidence, 10)


@pytest.mark.weekly
@pytest.mark.timeout(3600, func_only=True)
def test_memory_comes_back_a_hundred_times(host, evidence):
    """After a hundred guests with superpages were created and destroyed, as much memory is free as before."""
    comes_back(host, evidence, 100)


def comes_back(host, evidence, times):
    for at_first in (True, False):  # what Xen and dom0 keep for later, they keep from the first guests on
        before = host.free_pages()
        for _ in range(WARM_UP if at_first else times):
            with host.domain(payload(host, "pvh64", "idle", memory_mib=64), paused=True):
                pass
        after = host.free_pages()
    lost = before - after
    evidence.add("free memory", f"{before} pages before, {after} after {times} guests of 64 MiB", board=host.name)
    evidence.figure("lost_pages", lost)
    assert lost <= times // 4, f"{lost} pages are lost after {times} guests: {before} were free before, {after} after"


def test_fragmented_host_falls_back_to_small_pages(host, evidence):
    """A host whose free memory is scattered in 4 KiB pages builds a guest of these, and its memory is intact."""
    with host.domain(payload(host, "pvh64", "memory", memory_mib=64)) as guest:
        whole = page_orders(guest.builder_output)
        guest.results(60.0)
    # One guest takes nearly all memory that is free in one piece, another one gives back every second page of its own.
    comb = payload(host, "pvh64", "give", memory_mib=256, step_kib=8)
    with host.domain(comb) as scattered:
        assert scattered.results(120.0)["give"].outcome == "PASS"
        rest = host.free_memory_mib() - 128
        with host.domain(payload(host, "pvh64", "idle", memory_mib=rest - rest // 50 - 16), paused=True):
            left = host.free_memory_mib()
            with host.domain(payload(host, "pvh64", "memory", memory_mib=64)) as guest:
                orders = page_orders(guest.builder_output)
                evidence.add("domain builder", guest.builder_output, board=host.name)
                evidence.add("orders", f"whole host {whole}; scattered, {left} MiB free: {orders}", board=host.name)
                evidence.figure("small_pages", orders["4KB"])
                results = guest.results(60.0)
                evidence.console("guest console", guest)
    assert orders["4KB"] > whole["4KB"], f"the host was not fragmented: {orders}"
    assert orders["4KB"] * 4 + orders["2MB"] * 2048 == 64 * 1024, f"not all memory is accounted for: {orders}"
    assert results["memory"].outcome == "PASS", results["memory"].detail


@pytest.mark.parametrize("kind", ["pvh64", pytest.param("pvh32", marks=pytest.mark.needs("hvm32"))])
def test_holes_shatter_nothing_but_the_mapping(host, evidence, kind):
    """One page of each 2 MiB is given back and taken again: all others keep their contents, and Xen's count is right.

    Whether the 2 MiB mappings are split shows from outside only where Xen dumps them (debug key D, EPT). The evidence
    here is the builder's count before, and the guest's own check after. The times are figures, and are not judged.
    """
    work = "memory,tlb,give,tlb,take,tlb"
    with host.domain(payload(host, kind, work, memory_mib=96, step_kib=2048)) as guest:
        orders = page_orders(guest.builder_output)
        results = guest.results(120.0)
        evidence.console("guest console", guest)
        assert orders["2MB"] == 48, f"the guest was not built of superpages: {orders}"
        for name in ("memory", "give", "take", "tlb", "tlb-given"):
            assert results[name].outcome == "PASS", f"{name}: {results[name].detail}"
        assert numbers(results["give"].detail)["pages"] >= 40
        assert numbers(results["take"].detail)["verified"] == numbers(results["memory"].detail)["pages"]
        lines = [line for line in guest.payload_lines() if getattr(line, "case", "").startswith("tlb")]
        for name, line in zip(("whole", "holes", "refilled"), lines, strict=True):
            seen = numbers(line.detail)
            evidence.figure(f"tlb_{name}_ratio", seen["sparse_ps"] / seen["dense_ps"])


@pytest.mark.quick
@pytest.mark.needs("pv")
def test_pv_guests_get_none_and_are_shown_none(host, evidence):
    """A PV guest is built without superpages, and CPUID shows it neither 2 MiB nor 1 GiB pages."""
    with host.domain(payload(host, "pv64", "features")) as guest:
        results = guest.results()
        evidence.console("guest console", guest)
        evidence.add("domain builder", guest.builder_output, board=host.name)
        assert "PHYSICAL MEMORY ALLOCATION" not in guest.builder_output
        seen = numbers(results["features"].detail)
        assert (seen["pse"], seen["gib"]) == (0, 0), f"CPUID shows superpages: {results['features'].detail}"
        assert seen["lm"] == 1


@pytest.mark.needs("pv")
def test_pv_linux_has_no_hugetlbfs(host, evidence):
    """Debian's kernel as a PV guest finds no page size for hugetlbfs, says so, and runs."""
    with host.domain(linux(host, "pv", "mode,hugetlb", cmdline="hugepages=8")) as guest:
        results = guest.results(120.0)
        evidence.console("guest console", guest)
        assert results["mode"].outcome == "PASS", results["mode"].detail
        assert not [name for name in results if name.startswith("hugetlb-")], "a PV guest maps huge pages"
        assert "no huge page" in results["hugetlb"].detail
