"""The nodes of a host: Xen reads them from the firmware's tables SRAT, SLIT and MADT, and its tools tell them."""

import re

import pytest

from lab.xen.numa import firmware, topology

PAGE = 4096
MIB_PAGES = 256

HOSTS = [
    pytest.param(2, marks=pytest.mark.needs("numa"), id="2"),
    pytest.param(4, marks=pytest.mark.needs("numa-4"), id="4"),
]
pytestmark = pytest.mark.weekly


def said(host, evidence, nodes):
    """What Xen's tools say, and what the tables say; the host has at least so many nodes."""
    evidence.add("xl info -n", host.xl("info", "-n").stdout, board=host.name)
    told, tables = topology(host), firmware(host)
    evidence.add("SRAT, SLIT and MADT, as dom0 sees them", str(tables), kind="note", board=host.name)
    assert len(tables.span) >= nodes, f"the firmware's SRAT has memory of {len(tables.span)} nodes"
    return told, tables


@pytest.mark.parametrize("nodes", HOSTS)
def test_nodes_are_those_of_the_firmware(host, evidence, nodes):
    """Xen's tools and its debug key u tell each node's memory, and each CPU's node, as SRAT has them."""
    told, tables = said(host, evidence, nodes)
    dump = host.debug_keys("u")
    evidence.add("debug key u", dump, kind="console", board=host.name)
    spans = {node: (first // PAGE, (end - first) // PAGE) for node, (first, end) in tables.span.items()}
    seen = {
        int(node): (int(first), int(pages))
        for node, first, pages in re.findall(r"\bNODE(\d+) start->(\d+) size->(\d+)", dump)
    }
    assert seen == spans, f"debug key u: first page and pages of each node are {seen}, and by SRAT {spans}"
    sizes = {node: pages // MIB_PAGES for node, (_, pages) in spans.items()}
    assert told.size_mib == sizes, f"xl info -n: MiB of each node are {told.size_mib}, and by SRAT {sizes}"
    of_cpus = {cpu: tables.node_of_cpu[cpu] for cpu in told.node_of_cpu}
    assert told.node_of_cpu == of_cpus, (
        f"xl info -n: the node of each CPU is {dict(told.node_of_cpu)}, and by SRAT {of_cpus}"
    )
    by_key = {
        cpu: int(node)
        for first, last, node in re.findall(r"\bCPU(\d+)(?:\.\.\.(\d+))? -> NODE(\d+)", dump)
        for cpu in range(int(first), int(last or first) + 1)
    }
    assert by_key == of_cpus, f"debug key u: the node of each CPU is {by_key}, and by SRAT {of_cpus}"


@pytest.mark.parametrize("nodes", HOSTS)
def test_distances_are_those_of_the_firmware(host, evidence, nodes):
    """`xl info -n` tells the distances of SLIT; where the firmware has none, 10 within a node and 20 between two.

    Source: xen/arch/x86/srat.c, __node_distance.
    """
    told, tables = said(host, evidence, nodes)
    evidence.figure("has_slit", tables.has_slit)
    source = "SLIT" if tables.has_slit else "ACPI, without a SLIT,"
    assert told.distances == tables.distances, (
        f"xl info -n: the distances are {told.distances}, and by {source} {tables.distances}"
    )
