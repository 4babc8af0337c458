"""What an inventory says, as frozen data: the lab, its boards, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lab.base.daytime import Daytime
from lab.base.errors import UsageError, did_you_mean
from lab.inventory.xen_command_line import command_line


@dataclass(frozen=True, slots=True)
class BmcSpec:
    """How the board's BMC is reached."""

    host: str
    credential: str
    protocol: Literal["ipmi", "redfish", "none"] = "ipmi"
    port: int = 623
    interface: str = "lanplus"  # ipmi
    cipher: int | None = None  # ipmi; None: 17, and 3 where the BMC refuses that. ipmi_sim 2.0.33 only knows 3
    privilege: Literal["administrator", "operator", "user"] = "administrator"  # ipmi: the level of a session
    firmware: Literal["bios", "uefi"] = "bios"  # ipmi: the board's own, which the BMC tells what to boot
    tls: Literal["verified", "pinned", "unverified", "off"] = "verified"  # redfish; off: plain HTTP
    ca_file: str = ""  # redfish: PEM that the BMC's certificate is signed by, or is if pinned; empty: the system's
    system: str = ""  # redfish: which of the systems behind this BMC; empty: there is one


BMC_PORTS = {"ipmi": 623, "redfish": 443, "none": 0}
# Keys of a BMC that only one protocol has.
BMC_KEYS: Mapping[str, tuple[str, ...]] = {
    "ipmi": ("interface", "cipher", "privilege"),
    "redfish": ("tls", "ca_file", "system"),
    "none": (),
}


@dataclass(frozen=True, slots=True)
class PduSpec:
    """The switched outlet a board's mains come from, by one of labgrid's drivers for power switches."""

    model: str  # a module of labgrid.driver.power
    host: str  # address, or URL where the model wants one
    outlet: int


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    """The port of a managed switch that the board's end of the lab link is plugged into, by SNMP."""

    host: str
    port: str  # ifName, or ifDescr: "Gi1/0/3"
    credential: str  # user and password of SNMPv3; of 2c the password is the community
    udp_port: int = 161
    snmp: Literal["3", "2c"] = "3"
    auth: Literal["sha", "sha256"] = "sha"  # of SNMPv3; encrypted by AES with the same password


@dataclass(frozen=True, slots=True)
class ConsoleSpec:
    """Where the recorder reads the serial console, and where it serves it to others."""

    via: Literal["sol", "ssh", "tcp", "telnet", "rfc2217", "device"]
    serve_port: int  # TCP port of the recorded console (labgrid's NetworkSerialPort, protocol raw)
    lines_port: int  # TCP port of the recorded lines (JSON lines)
    host: str = ""  # ssh, tcp, telnet, rfc2217
    port: int = 0
    credential: str = ""  # ssh
    ssh_options: Mapping[str, str] = field(default_factory=dict)  # ssh: algorithms that it would not use by itself
    ssh_config: str | None = None  # ssh: its configuration file; None: it reads none
    entry: str = ""  # ssh: what is typed behind the login to get at the console; empty: nothing
    device: str = ""  # device: /dev/serial/by-id/...
    speed: int = 115200


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network port of the board. Roles: management, lab (link to the peer), spare (to pass through)."""

    role: Literal["management", "lab", "spare"]
    mac: str
    address: str = ""  # CIDR in dom0
    pci: str = ""  # "0000:00:05.0"; empty: found by MAC


@dataclass(frozen=True, slots=True)
class ShapeSpec:
    """Another form of a board made of QEMU, for what its own does not fit; the other boards are off meanwhile."""

    vcpus: int = 1
    memory_mib: int = 3072
    numa_nodes: int = 1
    numa_distances: tuple[tuple[int, ...], ...] = ()  # from each node to each, as in ACPI's SLIT; empty: it has no SLIT
    s3: bool = True  # whether its firmware knows suspend to RAM
    clock: Literal["machine", "instructions"] = "machine"  # instructions: all its clocks follow what it has executed
    power_states: bool = False  # whether its firmware tells of frequencies and idle states
    invariant_tsc: bool = False  # whether its processors say that their TSC never stops
    capabilities: frozenset[str] = frozenset()  # what the board can do in this form beside what it can anyway


# What a shape replaces.
_FORM = ("vcpus", "memory_mib", "numa_nodes", "numa_distances", "s3", "clock", "power_states", "invariant_tsc")


@dataclass(frozen=True, slots=True)
class VirtualSpec:
    """The shape of a board made of QEMU; absent on steel."""

    vcpus: int = 1
    memory_mib: int = 3072
    numa_nodes: int = 1
    numa_distances: tuple[tuple[int, ...], ...] = ()
    s3: bool = True
    clock: Literal["machine", "instructions"] = "machine"
    power_states: bool = False
    invariant_tsc: bool = False
    serial_port: int = 0  # TCP port of the UART's far end, what ``console`` or the BMC's SOL connects to
    link_port: int = 0  # UDP port of this end of the lab link; the peer's is found by ``link``
    accelerator: Literal["tcg", "kvm", "proved"] = "proved"
    firmware: Literal["bios", "uefi"] = "bios"
    saved_states: bool = False  # whether it goes on from a saved state where a case needs no boot
    shapes: Mapping[str, ShapeSpec] = field(default_factory=dict)  # by name

    @property
    def may_have_power_states(self) -> bool:
        """In some form of its."""
        return self.power_states or any(shape.power_states for shape in self.shapes.values())

    def shaped(self, name: str) -> VirtualSpec:
        """The board in this shape; in its own for no name. :raises KeyError: there is no such shape."""
        if not name:
            return self
        shape = self.shapes[name]
        return replace(self, **{name: getattr(shape, name) for name in _FORM})


@dataclass(frozen=True, slots=True)
class NetbootSpec:
    """The lab machine's port on the network that boards boot from: there it serves DHCP, TFTP and HTTP."""

    address: str  # CIDR
    interface: str

    @property
    def server(self) -> str:
        """The address alone."""
        return self.address.split("/")[0]


@dataclass(frozen=True, slots=True)
class HostSpec:
    """Another machine that boards are cabled to: what reads and switches them runs there. The lab reaches it by SSH."""

    name: str
    lab: str  # the lab whose host it is
    user: str
    address: str
    port: int = 22
    identity: str = ""  # file of the private key for it; empty: the lab's own key
    program: str = "xenlab"  # there: a path, or a name that its PATH has
    netboot: NetbootSpec | None = None  # where its boards without a disk boot from


@dataclass(frozen=True, slots=True)
class BoardSpec:
    """One board."""

    name: str
    ssh_host: str
    bmc: BmcSpec
    console: ConsoleSpec
    ssh_port: int = 22
    ssh_user: str = "root"
    nics: Mapping[str, NicSpec] = field(default_factory=dict)  # by role
    capabilities: frozenset[str] = frozenset()  # declared; probed before use
    tags: Mapping[str, str] = field(default_factory=dict)
    link: str = ""  # boards with the same link are a migration pair
    xen_options: str = ""  # what this board needs on Xen's command line, e.g. "spec-ctrl=no"
    dom0_options: str = ""
    boot: Literal["disk", "network"] = "disk"
    jobs: str = ""  # folder that another CI writes, and the board boots from when a job of that CI powers it on
    virtual: VirtualSpec | None = None
    pdu: PduSpec | None = None
    sol: BmcSpec | None = None  # the BMC that the console comes from, where power goes by another protocol
    accepted_faults: Mapping[str, str] = field(default_factory=dict)  # sensor that is known to be bad -> why
    switch: SwitchSpec | None = None  # where the link is cut; none: at the board's own port
    kdump: float = 0.0  # seconds after a crash in which it writes a dump and reboots by itself; 0: it has no kdump
    at: HostSpec | None = None  # the machine that it is cabled to; None: the lab machine

    def __hash__(self) -> int:  # some of what it is equal by cannot be hashed
        return hash(self.name)

    def xen_command_line(self, *later: str) -> str:
        """Xen's options on this board, in the order in which later ones win."""
        return command_line(self.xen_options, *later)

    @property
    def console_bmc(self) -> BmcSpec:
        """The BMC that serial over LAN is asked of."""
        return self.sol or self.bmc

    @property
    def board_class(self) -> str:
        """What a result is said of: boards of one class are taken for equal. The tag ``class``, else the kind."""
        return self.tags.get("class") or ("virtual" if self.virtual else "steel")

    @property
    def has_states(self) -> bool:
        """Whether it can go on from a saved state, in place of a boot."""
        return bool(self.virtual and self.virtual.saved_states and self.can_have_states)

    @property
    def can_have_states(self) -> bool:
        """Whether the key ``saved_states`` of the inventory gives it that ability."""
        virtual = self.virtual
        is_able = virtual and virtual.clock == "machine" and virtual.accelerator != "kvm"
        return bool(is_able and self.boot == "disk" and self.has_socket)

    @property
    def has_socket(self) -> bool:
        """Whether it answers on a socket at the lab machine (:mod:`lab.grid.board_socket`)."""
        return bool(self.virtual and self.at is None)

    @property
    def is_counted(self) -> bool:
        """Whether figures of this board are counts of instructions, and not times."""
        return "counted-clock" in self.capabilities

    @property
    def link_name(self) -> str:
        """What the peer calls this board: the name that the lab link's address has in its /etc/hosts."""
        return self.name


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab: its boards and where its labgrid coordinator listens."""

    name: str
    path: Path
    boards: Mapping[str, BoardSpec]
    coordinator: str = "127.0.0.1:20408"
    nightly_yields: Daytime = Daytime.read("Mon-Fri 07:00-20:00")  # when it gives boards to people who wait
    netboot: NetbootSpec | None = None
    group: str | None = None  # Unix group of the lab machine whose members may use the consoles; None: nobody else
    hosts: Mapping[str, HostSpec] = field(default_factory=dict)  # the machines beside the lab machine, by name

    @property
    def is_virtual(self) -> bool:
        """Whether any board is made of QEMU, so that the lab must be brought up first."""
        return any(board.virtual for board in self.boards.values())

    def boards_at(self, host: str) -> tuple[BoardSpec, ...]:
        """The boards at a host, in name order; at the lab machine for an empty name."""
        found = (board for _, board in sorted(self.boards.items()))
        return tuple(board for board in found if (board.at.name if board.at else "") == host)

    def network_booted(self) -> tuple[BoardSpec, ...]:
        """Boards without a disk, in name order."""
        return tuple(board for _, board in sorted(self.boards.items()) if board.boot == "network")

    def netboot_of(self, board: BoardSpec) -> NetbootSpec | None:
        """The network that this board boots from."""
        return board.at.netboot if board.at else self.netboot

    @property
    def is_private(self) -> bool:
        """Whether nobody but users of this machine can reach the coordinator, which asks for no password."""
        host = self.coordinator.rpartition(":")[0]
        return host == "localhost" or host.startswith("127.")

    def restricted(self, names: Sequence[str]) -> Lab:
        """The lab with these boards alone; none named: with all. :raises UsageError: it has no such board."""
        for name in names:
            if name not in self.boards:
                hint = did_you_mean(name, list(self.boards))
                raise UsageError(f"no board {name}{hint}; there are: {', '.join(self.boards)}")
        return replace(self, boards={name: self.boards[name] for name in sorted(names)}) if names else self

    def pairs(self) -> tuple[tuple[BoardSpec, BoardSpec], ...]:
        """Boards joined by a link, two and two, in name order."""
        links: dict[str, list[BoardSpec]] = {}
        for name in sorted(self.boards):
            if self.boards[name].link:
                links.setdefault(self.boards[name].link, []).append(self.boards[name])
        return tuple((ends[0], ends[1]) for ends in links.values() if len(ends) == 2)
