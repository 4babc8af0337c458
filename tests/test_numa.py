"""NUMA nodes as Xen's tools tell them and as the firmware's tables have them."""

from __future__ import annotations

import struct

import pytest

from lab.base.errors import BenchError, MissingCapability
from lab.grid.ssh import CommandResult
from lab.xen.dom0 import Toolstack
from lab.xen.numa import Affinity, assert_of, firmware, pnodes, read_affinities, read_firmware, read_topology

INFO = """\
nr_nodes               : 2
cpu_topology           :
cpu:    core    socket     node
  0:       0        0        0
  1:       0        1        1
device topology        :
device           node
No device topology data available
numa_info              :
node:    memsize    memfree    distances
   0:      6144       3331      10,20
   1:      4096       3937      21,10
"""
GIB = 1 << 30


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, b"", b"", 0, b"", 0)
    return head + body


def cpu(apic: int, domain: int, *, enabled: bool = True) -> bytes:
    return struct.pack("<BBBBIB3sI", 0, 16, domain & 0xFF, apic, enabled, 0, (domain >> 8).to_bytes(3, "little"), 0)


def x2apic(apic: int, domain: int) -> bytes:
    return struct.pack("<BBHIIIII", 2, 24, 0, domain, apic, 1, 0, 0)


def memory(domain: int, start: int, size: int, flags: int = 1) -> bytes:
    return struct.pack("<BBIHQQIIQ", 1, 40, domain, 0, start, size, 0, flags, 0)


def srat(*entries: bytes, revision: int = 3) -> bytes:
    return table(b"SRAT", revision, bytes(12) + b"".join(entries))


def slit(*rows: tuple[int, ...]) -> bytes:
    return table(b"SLIT", 1, struct.pack("<Q", len(rows)) + b"".join(map(bytes, rows)))


def madt(*apics: int) -> bytes:
    local = b"".join(struct.pack("<BBBBI", 0, 8, 0, apic, 1) for apic in apics)
    return table(
        b"APIC", 3, bytes(8) + local + struct.pack("<BBHIII", 9, 16, 0, 300, 1, 0) + bytes([1, 12]) + bytes(10)
    )


def test_what_xl_says_of_nodes_is_read() -> None:
    told = read_topology(INFO)
    assert told.node_of_cpu == {0: 0, 1: 1} and told.nodes == [0, 1]
    assert told.size_mib == {0: 6144, 1: 4096} and told.free_mib == {0: 3331, 1: 3937}
    assert told.distances == ((10, 20), (21, 10)) and told.cpus(1) == {1}
    with pytest.raises(BenchError, match="names no node or no CPU"):
        read_topology(INFO.partition("numa_info")[0])


def test_memory_and_processors_of_a_node_are_those_of_srat() -> None:
    parts = (cpu(0, 7), cpu(2, 260), cpu(9, 5, enabled=False), x2apic(300, 7))
    parts += (memory(7, 0, 0xA0000), memory(7, 1 << 20, 2 * GIB), memory(260, 4 * GIB, 2 * GIB))
    parts += (memory(260, 64 * GIB, GIB, flags=3), memory(7, 128 * GIB, GIB, flags=0))
    found = read_firmware(srat(*parts), b"", madt(0, 2))
    assert found.node_of_cpu == {0: 0, 1: 1, 2: 0}, "nodes are numbered as Xen meets them: x2APIC entries come first"
    assert found.span == {0: (0, 2 * GIB + (1 << 20)), 1: (4 * GIB, 6 * GIB)}, "without what is for hot plug or off"
    assert (found.distances, found.has_slit) == (((10, 20), (20, 10)), False)
    of_8_bits = read_firmware(srat(cpu(0, 7), cpu(2, 260), revision=1), b"", madt(0, 2))
    assert of_8_bits.node_of_cpu == {0: 0, 1: 1}, "260 is 4 in a table of revision 1"


def test_distances_are_those_of_slit_by_proximity_domain() -> None:
    rows = ((10, 14, 22), (15, 10, 33), (23, 34, 10))
    found = read_firmware(srat(cpu(0, 2), cpu(1, 0), memory(1, 0, GIB)), slit(*rows), madt(0, 1))
    assert found.distances == ((10, 23, 34), (22, 10, 14), (33, 15, 10)), "the nodes are domains 2, 0 and 1"
    assert found.has_slit


def test_a_dom0_that_sees_no_srat_is_told() -> None:
    def run(command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult:
        return CommandResult(command, 0, "SRAT \nSLIT \nAPIC QUJD\n", "", 0.1)

    with pytest.raises(MissingCapability, match="SRAT: dom0 does not see the table"):
        firmware(Toolstack("desk1", run))


LISTED = """\
Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)
pvh64-1                              1     0    1   -b-       0.3  1 / all
pvh64-1                              1     1    0   r--       0.1  0-1,3 / none
"""


def test_affinities_are_read() -> None:
    cpus = frozenset(range(4))
    assert read_affinities(LISTED, cpus) == [
        Affinity(frozenset({1}), cpus),
        Affinity(frozenset({0, 1, 3}), frozenset()),
    ]


DUMP = """\
(XEN) Domain 0 (total: 196608):
(XEN)     Node 0: 174281
(XEN)     Node 1: 22327
(XEN) Domain 3 (total: 16401):
(XEN)     Node 0: 10240
(XEN)     Node 1: 6161
(XEN)      2 vnodes, 2 vcpus, guest physical layout:
(XEN)         0: pnode   1, vcpus 0
(XEN)            0000000000000000 - 0000000001800000
(XEN)         1: pnode   0, vcpus 1
(XEN)            0000000001800000 - 0000000004000000
(XEN) Domain 4 (total: 16401):
(XEN)     Node 0: 0
(XEN)     Node 1: 16401
"""


def test_virtual_nodes_are_read() -> None:
    assert pnodes(DUMP, 3) == {0: 1, 1: 0}
    assert pnodes(DUMP, 4) == {} and pnodes(DUMP, 0) == {}


@pytest.mark.parametrize(
    ("nodes", "pages", "said"),
    [
        ([1], {0: 0, 1: 90}, "of 100 pages of the guest 90 are on node 1"),
        ([1], {0: 129, 1: 100}, "129 pages of the guest are on other nodes than node 1"),
        ([1, 3], {0: 0, 1: 100, 2: 0, 3: 0}, "not each of nodes 1, 3 has pages"),
    ],
)
def test_memory_of_other_nodes_is_told(nodes: list[int], pages: dict[int, int], said: str) -> None:
    assert_of([0, 1], {0: 40, 1: 60, 2: 20}, 100)
    with pytest.raises(AssertionError, match=said):
        assert_of(nodes, pages, 100)
