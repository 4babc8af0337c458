"""A host with several NUMA nodes: superpages come from the node of the guest's processors."""

from dataclasses import replace
from pathlib import Path

import pytest

from lab.xen.domain import node_pages, nodes_free, page_orders
from lab.xen.guests import payload
from lab.xen.migration_matrix import known_findings

KNOWN = known_findings.read(Path(__file__).with_name("known.yaml"), ["placement-within-cpus"], ["node"])

pytestmark = [pytest.mark.full, pytest.mark.needs("hap", "sp2m", "numa"), pytest.mark.usefixtures("scrubbed")]

MIB = 64
PAGES = MIB * 256
BESIDE = 128  # most pages that a guest has besides its memory: for console, xenstore and the builder's special pages


@pytest.fixture
def scrubbed(host):
    """A host whose free memory is clean: Xen prefers clean memory of another node to dirty memory of the right one."""
    host.wait_scrubbed()


def guest_of(host, cpus, memory_mib=MIB):
    """A guest whose virtual processors run on these CPUs: a list with one for each, or a string for all."""
    config = payload(host, "pvh64", "memory", memory_mib=memory_mib)
    return replace(config, more={**config.more, "cpus": cpus})


def where(host, evidence, guest):
    """How many of the guest's pages are on which node, by debug key u."""
    dump = host.debug_keys("u")
    evidence.add(f"memory of {guest.name} by node (debug key u)", dump, kind="console", board=host.name)
    return node_pages(dump, guest.domid())


def assert_of(node, pages):
    """All of a guest's memory is on this node."""
    assert pages[node] >= PAGES, f"node {node} has not all {PAGES} pages of the guest; pages by node: {pages}"
    assert sum(pages.values()) - pages[node] <= BESIDE, (
        f"other nodes than {node} have memory of the guest; pages by node: {pages}"
    )


@pytest.mark.parametrize("node", [0, 1])
def test_superpages_are_of_the_node_of_the_processors(host, evidence, node):
    """A guest whose processor is on one NUMA node is built of superpages from that node's memory alone."""
    with host.domain(guest_of(host, f'[ "node:{node}" ]')) as guest:
        orders, pages = page_orders(guest.builder_output), where(host, evidence, guest)
        results = guest.results(60.0)
        evidence.console("guest console", guest)
        assert orders["2MB"] == MIB // 2, f"the guest was built as {orders}"
        assert_of(node, pages)
        assert results["memory"].outcome == "PASS", results["memory"].detail


def test_placement_is_within_the_processors_asked_for(host, evidence):
    """xl places a guest on a node of the processors that it may use, even if another node has more free memory.

    Source: tools/libs/light/libxl_dom.c, numa_place_domain. A known failure is excused by name (known.yaml).
    """
    free = nodes_free(host.debug_keys("u"))
    poorest = min(free, key=lambda node: free[node])
    with host.domain(guest_of(host, f'"node:{poorest}"')) as guest:
        evidence.add("xl create", guest.builder_output, board=host.name)
        evidence.add("xl vcpu-list", host.xl("vcpu-list", guest.name).stdout, board=host.name)
        pages = where(host, evidence, guest)
        assert "New best NUMA placement candidate found" in guest.builder_output, "xl did not look for a place"
        with known_findings.excusing(KNOWN, evidence, host.info()["xen_version"], "placement-within-cpus", "node"):
            assert_of(poorest, pages)
        assert guest.results(60.0)["memory"].outcome == "PASS"


def test_a_guest_that_asks_for_nothing_is_of_one_node(host, evidence):
    """xl places a guest that asks for no node on one NUMA node, and all its memory is there.

    Source: libxl_numa.c.
    """
    with host.domain(payload(host, "pvh64", "memory", memory_mib=MIB)) as guest:
        pages = where(host, evidence, guest)
        evidence.add("xl create", guest.builder_output, board=host.name)
        assert "New best NUMA placement candidate found" in guest.builder_output, "xl did not look for a place"
        assert_of(max(pages, key=lambda node: pages[node]), pages)
        assert guest.results(60.0)["memory"].outcome == "PASS"


def test_a_full_node_takes_superpages_of_another(host, evidence):
    """When a guest's NUMA node is full, the rest of the guest comes from another node, in superpages too."""
    mine = '[ "node:1" ]'
    free = nodes_free(host.debug_keys("u"))[1] // 256
    with host.domain(guest_of(host, mine, (free - free // 50 - MIB) // 2 * 2), paused=True):
        left = nodes_free(host.debug_keys("u"))[1]
        size = left // 512 * 2 + MIB  # MiB, even
        with host.domain(guest_of(host, mine, size)) as guest:
            orders, pages = page_orders(guest.builder_output), where(host, evidence, guest)
            results = guest.results(120.0)
            evidence.console("guest console", guest)
            evidence.figure("of_the_full_node_pages", pages[1])
            assert pages[0] > 0, f"the guest was to be too large for node 1 with its {left} free pages: {pages}"
            assert pages[1] > 0.9 * left, f"the guest took {pages[1]} of the {left} free pages of node 1"
            assert orders["2MB"] == size // 2, f"{size} MiB were built as {orders}"
            assert results["memory"].outcome == "PASS", results["memory"].detail
