"""NUMA nodes: what Xen's tools say of them, what the firmware's tables say, and on which nodes a guest's memory is."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lab.base.errors import BenchError, MissingCapability
from lab.xen.dom0 import Toolstack
from lab.xen.domain import Domain, node_pages

TABLES = "/sys/firmware/acpi/tables"
LOCAL, REMOTE = 10, 20  # distances where the firmware has no SLIT: xen/arch/x86/srat.c, __node_distance
BESIDE = 128  # most pages that a guest has besides its memory: for console, xenstore and the builder's special pages
ENABLED, HOT_PLUGGABLE = 1, 2  # flags in SRAT and MADT
_HEADER = 36  # bytes of an ACPI table's header; ACPI 6.4, 5.2.6

_CPU = re.compile(r"(?m)^[ \t]*(\d+):[ \t]+\d+[ \t]+\d+[ \t]+(\d+)[ \t]*$")
_NODE = re.compile(r"(?m)^[ \t]*(\d+):[ \t]+(\d+)[ \t]+(\d+)[ \t]+([\d,]+)[ \t]*$")
_AFFINITY = re.compile(r"(?m)[ \t](all|none|[\d,-]+) / (all|none|[\d,-]+)[ \t]*$")
_VNODE = re.compile(r"\b(\d+): pnode +(\d+),")


@dataclass(frozen=True, slots=True)
class Topology:
    """What ``xl info -n`` says. A node's size is that of the addresses that it spans, holes included."""

    node_of_cpu: Mapping[int, int]
    size_mib: Mapping[int, int]
    free_mib: Mapping[int, int]
    distances: tuple[tuple[int, ...], ...]  # a row for each node

    @property
    def nodes(self) -> list[int]:
        return sorted(self.size_mib)

    def cpus(self, node: int) -> frozenset[int]:
        """The CPUs of a node that are online."""
        return frozenset(cpu for cpu, its_node in self.node_of_cpu.items() if its_node == node)


def topology(toolstack: Toolstack) -> Topology:
    """Ask ``xl info -n``.

    :raises ToolstackFailed: xl failed.
    :raises BenchError: its answer has no CPU or no node.
    """
    return read_topology(toolstack.xl("info", "-n").stdout)


def read_topology(text: str) -> Topology:
    """Read the output of ``xl info -n``. Source: tools/xl/xl_info.c, output_topologyinfo and output_numainfo.

    :raises BenchError: it has no CPU or no node.
    """
    head, _, nodes = text.partition("numa_info")
    cpus = head.partition("cpu_topology")[2]
    rows = _NODE.findall(nodes)
    node_of_cpu = {int(cpu): int(node) for cpu, node in _CPU.findall(cpus)}
    if not rows or not node_of_cpu:
        raise BenchError(f"xl info -n names no node or no CPU: {text[-300:]}")
    return Topology(
        node_of_cpu,
        {int(node): int(size) for node, size, _, _ in rows},
        {int(node): int(free) for node, _, free, _ in rows},
        tuple(tuple(map(int, distances.split(","))) for _, _, _, distances in rows),
    )


@dataclass(frozen=True, slots=True)
class Firmware:
    """What the firmware's tables say. Nodes have the numbers that Xen gives them: in the order of SRAT.

    Source: ACPI 6.4, 5.2.12 (MADT), 5.2.16 (SRAT), 5.2.17 (SLIT); xen/arch/x86/srat.c, setup_node.
    """

    node_of_cpu: Mapping[int, int]  # CPUs have the numbers that Xen gives them: in the order of MADT
    span: Mapping[int, tuple[int, int]]  # first byte of a node's memory, and the end of its memory
    distances: tuple[tuple[int, ...], ...]  # a row for each node
    has_slit: bool


def firmware(toolstack: Toolstack) -> Firmware:
    """Read the tables as dom0 sees them, which Xen hands on as they are.

    :raises MissingCapability: dom0 sees no SRAT or no MADT.
    """
    files = {name: f"{TABLES}/{name}" for name in ("SRAT", "SLIT", "APIC")}
    script = "; ".join(f"echo {name} $(base64 -w 0 {file} 2>/dev/null)" for name, file in files.items())
    said = dict(line.partition(" ")[::2] for line in toolstack.run(script).stdout.splitlines())
    tables = {name: base64.b64decode(said.get(name, "")) for name in files}
    for name in ("SRAT", "APIC"):
        if not tables[name]:
            raise MissingCapability(toolstack.name, f"{files[name]}: dom0 does not see the table")
    return read_firmware(tables["SRAT"], tables["SLIT"], tables["APIC"])


def _number(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size], "little")


def _entries(table: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each entry of a table from ``start`` on."""
    while start + 2 <= len(table):
        size = max(table[start + 1], 2)
        yield table[start], table[start : start + size]
        start += size


def _processors(srat: bytes) -> Iterator[tuple[int, int]]:
    """APIC id and proximity domain of each processor; those of x2APIC entries first, as Xen reads them."""
    has_high = srat[8] >= 2  # the table's revision: proximity domains have 32 bits
    for kind, entry in _entries(srat, _HEADER + 12):
        if kind == 2 and _number(entry, 12, 4) & ENABLED:
            yield _number(entry, 8, 4), _number(entry, 4, 4)
    for kind, entry in _entries(srat, _HEADER + 12):
        if kind == 0 and _number(entry, 4, 4) & ENABLED:
            yield entry[3], entry[2] | (_number(entry, 9, 3) << 8 if has_high else 0)


def _memory(srat: bytes) -> Iterator[tuple[int, int, int]]:
    """First byte, end and proximity domain of each range of memory that is there from the beginning."""
    for kind, entry in _entries(srat, _HEADER + 12):
        start, size, flags = _number(entry, 8, 8), _number(entry, 16, 8), _number(entry, 28, 4)
        if kind == 1 and flags & ENABLED and not flags & HOT_PLUGGABLE and size:
            yield start, start + size, _number(entry, 2, 4)


def _apic_ids(madt: bytes) -> Iterator[int]:
    for kind, entry in _entries(madt, _HEADER + 8):
        if kind == 0 and _number(entry, 4, 4) & ENABLED:
            yield entry[3]
        if kind == 9 and _number(entry, 8, 4) & ENABLED:
            yield _number(entry, 4, 4)


def read_firmware(srat: bytes, slit: bytes, madt: bytes) -> Firmware:
    """Read the tables. An empty ``slit``: the firmware has none, and distances are those that Xen assumes then."""
    domains = dict.fromkeys(domain for _, domain in _processors(srat))
    domains |= dict.fromkeys(domain for _, _, domain in _memory(srat))
    node = {domain: number for number, domain in enumerate(domains)}
    of_apic = {apic: node[domain] for apic, domain in _processors(srat)}
    span: dict[int, tuple[int, int]] = {}
    for start, end, domain in _memory(srat):
        first, last = span.get(node[domain], (start, end))
        span[node[domain]] = (min(first, start), max(last, end))
    width = _number(slit, _HEADER, 8) if slit else 0

    def distance(one: int, other: int) -> int:
        if not slit:
            return LOCAL if one == other else REMOTE
        return slit[_HEADER + 8 + one * width + other]

    return Firmware(
        {cpu: of_apic[apic] for cpu, apic in enumerate(_apic_ids(madt)) if apic in of_apic},
        span,
        tuple(tuple(distance(one, other) for other in domains) for one in domains),
        bool(slit),
    )


# -- guests --------------------------------------------------------------------------------------------------


class Evidence(Protocol):
    """Where a case keeps what was seen."""

    def add(self, title: str, body: str, *, kind: str = "command", board: str | None = None) -> None: ...


def memory_of(guest: Domain, evidence: Evidence) -> dict[int, int]:
    """How many of a guest's pages are on which node, by debug key ``u``, which becomes evidence.

    :raises BenchError: the key's output does not have the guest.
    """
    dump = guest.host.debug_keys("u")
    title = f"memory of {guest.config.kind} guest by node (debug key u)"
    evidence.add(title, dump, kind="console", board=guest.host.name)
    return node_pages(dump, guest.domid())


def assert_of(nodes: Sequence[int], pages: Mapping[int, int], memory: int) -> None:
    """All of a guest's ``memory`` pages are on these nodes, each of them has some, and no other node has any.

    :raises AssertionError: it is not so; names the pages by node.
    """
    there = sum(pages[node] for node in nodes)
    assert there >= memory, f"of {memory} pages of the guest {there} are on {_of(nodes)}; pages by node: {pages}"
    beside = sum(pages.values()) - there
    assert beside <= BESIDE, f"{beside} pages of the guest are on other nodes than {_of(nodes)}; pages by node: {pages}"
    assert all(pages[node] for node in nodes), (
        f"not each of {_of(nodes)} has pages of the guest; pages by node: {pages}"
    )


def _of(nodes: Sequence[int]) -> str:
    return f"node {nodes[0]}" if len(nodes) == 1 else f"nodes {', '.join(map(str, nodes))}"


@dataclass(frozen=True, slots=True)
class Affinity:
    """The CPUs on which a vCPU may run, and those on which it should."""

    hard: frozenset[int]
    soft: frozenset[int]


def affinities(guest: Domain, topology: Topology) -> list[Affinity]:
    """The affinity of each vCPU, by ``xl vcpu-list``.

    :raises ToolstackFailed: xl failed.
    """
    return read_affinities(guest.host.xl("vcpu-list", guest.name).stdout, frozenset(topology.node_of_cpu))


def read_affinities(text: str, cpus: frozenset[int]) -> list[Affinity]:
    """Read the output of ``xl vcpu-list``; ``cpus`` is what its word "all" stands for."""
    return [Affinity(read_cpus(hard, cpus), read_cpus(soft, cpus)) for hard, soft in _AFFINITY.findall(text)]


def read_cpus(text: str, cpus: frozenset[int]) -> frozenset[int]:
    """The CPUs of ``0-2,5``, ``none`` or ``all``."""
    if text == "all":
        return cpus
    ranges = [part.partition("-") for part in text.split(",") if part != "none"]
    return frozenset(cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1))


def pnodes(dump: str, domid: int) -> dict[int, int]:
    """The node of each virtual node of a guest, read from the output of debug key ``u``.

    Source: xen/arch/x86/numa.c, dump_numa.
    """
    rest = re.split(rf"(?:Domain |\bd){domid} \(total: \d+\):", dump)[-1]
    return {int(vnode): int(pnode) for vnode, pnode in _VNODE.findall(re.split(r"\(total: \d+\):", rest)[0])}
