"""The boards of a lab, as read from ``inventory/``: the one source of truth.

The file is an Ansible inventory; what is ours stands under the key ``xenlab`` of a host or of
``all.vars``. Secrets are never in it: a BMC names a credential (:mod:`lab.credentials`).
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from lab.daytime import Daytime
from lab.errors import UsageError
from lab.files import Key, Strict, at, did_you_mean, read_yaml, validate


@dataclass(frozen=True, slots=True)
class BmcSpec:
    """How the board's BMC is reached."""

    host: str
    credential: str
    protocol: Literal["ipmi", "redfish", "none"] = "ipmi"
    port: int = 623
    interface: str = "lanplus"  # ipmi
    cipher: int = 17  # ipmi; ipmi_sim 2.0.33 only knows 3
    tls: Literal["verified", "pinned", "unverified", "off"] = "verified"  # redfish; off: plain HTTP
    ca_file: str = ""  # redfish: PEM that the BMC's certificate is signed by, or is if pinned; empty: the system's
    system: str = ""  # redfish: which of the systems behind this BMC; empty: there is one


# Keys of a BMC that only one protocol has.
BMC_KEYS: Mapping[str, tuple[str, ...]] = {
    "ipmi": ("interface", "cipher"),
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

    via: Literal["sol", "ssh", "tcp", "rfc2217", "device"]
    serve_port: int  # TCP port of the recorded console (labgrid's NetworkSerialPort, protocol raw)
    lines_port: int  # TCP port of the recorded lines (JSON lines)
    host: str = ""  # ssh, tcp, rfc2217
    port: int = 0
    credential: str = ""  # ssh
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
    s3: bool = True  # whether its firmware knows suspend to RAM
    capabilities: frozenset[str] = frozenset()  # what the board can do in this form beside what it can anyway


@dataclass(frozen=True, slots=True)
class VirtualSpec:
    """The shape of a board made of QEMU; absent on steel."""

    vcpus: int = 1
    memory_mib: int = 3072
    numa_nodes: int = 1
    s3: bool = True
    serial_port: int = 0  # TCP port of the UART's far end, what ``console`` or the BMC's SOL connects to
    link_port: int = 0  # UDP port of this end of the lab link; the peer's is found by ``link``
    accelerator: Literal["tcg", "kvm", "proved"] = "proved"
    firmware: Literal["bios", "uefi"] = "bios"
    shapes: Mapping[str, ShapeSpec] = field(default_factory=dict)  # by name

    def shaped(self, name: str) -> VirtualSpec:
        """The board in this shape; in its own for no name. :raises KeyError: there is no such shape."""
        if not name:
            return self
        shape = self.shapes[name]
        form = {name: getattr(shape, name) for name in ("vcpus", "memory_mib", "numa_nodes", "s3")}
        return replace(self, **form)


# Serial console on the first port, everything logged; a board whose console is elsewhere says so in its xen_options,
# which come later and win.
XEN_OPTIONS = "com1=115200,8n1 console=com1 loglvl=all guest_loglvl=all dom0_mem=768M,max:768M"


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
    virtual: VirtualSpec | None = None
    pdu: PduSpec | None = None
    switch: SwitchSpec | None = None  # where the link is cut; none: at the board's own port
    kdump: float = 0.0  # seconds after a crash in which it writes a dump and reboots by itself; 0: it has no kdump

    def __hash__(self) -> int:  # some of what it is equal by cannot be hashed
        return hash(self.name)

    def xen_command_line(self, *later: str) -> str:
        """Xen's options on this board, in the order in which later ones win."""
        return " ".join(part for part in (XEN_OPTIONS, self.xen_options, *later) if part)

    @property
    def board_class(self) -> str:
        """What a result is said of: boards of one class are taken for equal. The tag ``class``, else the kind."""
        return self.tags.get("class") or ("virtual" if self.virtual else "steel")

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

    @property
    def is_virtual(self) -> bool:
        """Whether any board is made of QEMU, so that the lab must be brought up first."""
        return any(board.virtual for board in self.boards.values())

    def network_booted(self) -> tuple[BoardSpec, ...]:
        """Boards without a disk, in name order."""
        return tuple(board for _, board in sorted(self.boards.items()) if board.boot == "network")

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


# What a board can be said to be able to do. Those that the lab probes itself are marked: a board that lacks one it
# declares is reported; the others are taken from the inventory as they are.
CAPABILITIES: Mapping[str, str] = {
    "pv32": "probed: 32-bit PV guests (xen_caps has xen-3.0-x86_32p); a matter of the build",
    "no-pv32": "probed: no 32-bit PV guests",
    "hvm": "probed: hardware virtualisation",
    "hvm32": "probed: 32-bit HVM and PVH guests (xen_caps has hvm-3.0-x86_32)",
    "high-memory": "probed: memory at machine addresses above 4 GiB",
    "shim": "probed: Xen's PV shim is installed in dom0 (xen-shim)",
    "hap": "probed: nested paging",
    "shadow": "probed: shadow paging; a matter of the build",
    "sp2m": "probed: 2 MiB pages in nested paging",
    "sp1g": "probed: 1 GiB pages in nested paging",
    "iommu": "probed: DMA remapping in use",
    "numa": "probed: more than one NUMA node",
    "cpu-offline": "probed: more than one CPU",
    "memory-8g": "probed: 8 GiB of memory",
    "s3": "probed: suspend to RAM",
    "no-s3": "probed: no suspend to RAM",
    "s5": "probed: soft off",
    "rtcwake": "probed: the RTC can wake it",
    "qemu": "probed: a device model for HVM guests in dom0",
    "spare-nic": "probed: a network port to pass through (nics.spare)",
    "self-ssh": "probed: root gets into localhost by SSH, for relocations from a board to itself",
    "migration-pair": "probed: joined to another board by a lab link",
    "bmc-sleep-state": "probed: the BMC tells the ACPI power state",
    "bmc-nmi": "the BMC can send a diagnostic interrupt (it may reset a board that has no handler)",
    "pvh-dom0": "Xen boots with dom0=pvh on it",
    "pstate": "probed: CPU frequency control by Xen",
    "cstate": "probed: idle states deeper than C1",
    "sriov": "a network port with virtual functions",
    "dma-device": "probed: a PCI device that does DMA where it is told to (1234:11e8: QEMU's edu, or an FPGA like it)",
}

_HOST_KEYS = ("ansible_host", "ansible_port", "ansible_user", "ansible_python_interpreter", "xenlab")
_Port = Annotated[int, pydantic.Field(gt=0, lt=65536)]
_Line = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f]*$")]
_Mac = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
_Pci = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")]
_Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _is_interface(value: str) -> str:
    ipaddress.IPv4Interface(value)  # its ValueError says what is wrong
    return value


_Address = Annotated[
    str,
    pydantic.StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){3}/[0-9]+$"),
    pydantic.AfterValidator(_is_interface),
]


BMC_PORTS = {"ipmi": 623, "redfish": 443, "none": 0}


class _BmcFile(Strict):
    protocol: Literal["ipmi", "redfish", "none"] = "ipmi"
    host: _Line = ""
    port: _Port | None = None
    interface: Literal["lanplus", "lan"] = "lanplus"
    cipher: int = pydantic.Field(default=17, ge=0, le=17)
    tls: Literal["verified", "pinned", "unverified", "off"] = "verified"
    ca_file: _Line = ""
    system: _Line = ""
    credential: _Name | None = None

    @pydantic.model_validator(mode="after")
    def _of_one_protocol(self) -> _BmcFile:
        for protocol, keys in BMC_KEYS.items():
            if protocol != self.protocol and (strange := [key for key in keys if key in self.model_fields_set]):
                raise ValueError(f"{', '.join(strange)} is for protocol {protocol}, and this is {self.protocol}")
        if self.protocol == "none":
            if strange := sorted(self.model_fields_set - {"protocol"}):
                raise ValueError(f"{', '.join(strange)} is for a BMC, and with protocol none there is none")
        elif lacking := [key for key in ("host", "credential") if not getattr(self, key)]:
            raise ValueError(f"protocol {self.protocol} needs {' and '.join(lacking)}")
        if self.tls == "pinned" and not self.ca_file:
            raise ValueError("tls: pinned needs ca_file: the certificate that the BMC must have")
        if self.ca_file and self.tls not in ("verified", "pinned"):
            raise ValueError(f"ca_file says what to verify by, and tls: {self.tls} says not to")
        return self


class _PduFile(Strict):
    model: _Line
    host: _Line
    outlet: int = pydantic.Field(ge=0)

    @pydantic.model_validator(mode="after")
    def _known(self) -> _PduFile:
        if self.model not in (known := _pdu_models()):
            hint = did_you_mean(self.model, known)
            raise ValueError(f"labgrid has no model {self.model!r}{hint}; there are: {', '.join(known)}")
        if "@" in self.host:
            raise ValueError("host must not hold a login: every client of labgrid is shown it")
        return self


class _SwitchFile(Strict):
    host: Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x20]+$")]
    port: Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f]+$")]
    credential: _Name
    udp_port: _Port = 161
    snmp: Literal["3", "2c"] = "3"
    auth: Literal["sha", "sha256"] = "sha"

    @pydantic.model_validator(mode="after")
    def _of_one_version(self) -> _SwitchFile:
        if self.snmp == "2c" and "auth" in self.model_fields_set:
            raise ValueError("auth is for SNMPv3, and this is 2c: its community passes in the clear")
        return self


def _pdu_models() -> list[str]:
    """Those labgrid can drive; found without importing it, which takes a second."""
    spec = importlib.util.find_spec("labgrid")
    folders = [Path(place) / "driver" / "power" for place in (spec.submodule_search_locations if spec else None) or ()]
    return sorted(file.stem for folder in folders for file in folder.glob("[!_]*.py"))


class _ConsoleFile(Strict):
    via: Literal["sol", "ssh", "tcp", "rfc2217", "device"]
    serve_port: _Port
    lines_port: _Port
    host: _Line = ""
    port: int = pydantic.Field(default=0, ge=0, lt=65536)
    credential: _Name | None = None
    entry: _Line = ""
    device: _Line = ""
    speed: int = 115200

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> _ConsoleFile:
        if self.via in ("ssh", "tcp", "rfc2217") and not (self.host and self.port):
            raise ValueError(f"via {self.via} needs host and port")
        if self.via == "ssh" and not self.credential:
            raise ValueError("via ssh needs credential: whose password the host asks for")
        if self.via != "ssh" and (self.credential or self.entry):
            raise ValueError(f"credential and entry are for via ssh, and this is {self.via}")
        if self.via == "device" and not self.device:
            raise ValueError("via device needs device, e.g. /dev/serial/by-id/...")
        return self


class _NicFile(Strict):
    mac: _Mac
    address: _Address | None = None
    pci: _Pci | None = None


class _NicsFile(Strict):
    management: _NicFile | None = None
    lab: _NicFile | None = None
    spare: _NicFile | None = None


class _FormFile(Strict):
    vcpus: int = pydantic.Field(default=1, ge=1, le=16)
    memory_mib: int = pydantic.Field(default=3072, ge=1536, le=65536)
    numa_nodes: int = pydantic.Field(default=1, ge=1, le=8)
    s3: bool = True


class _ShapeFile(_FormFile):
    capabilities: list[str]


class _VirtualFile(_FormFile):
    serial_port: _Port
    link_port: _Port
    accelerator: Literal["tcg", "kvm", "proved"] = "proved"
    firmware: Literal["bios", "uefi"] = "bios"


class _BoardFile(Strict):
    bmc: _BmcFile
    console: _ConsoleFile
    nics: _NicsFile = _NicsFile()
    capabilities: list[str] = []
    tags: dict[str, str] = {}
    link: _Name | None = None
    xen_options: _Line = ""
    dom0_options: _Line = ""
    boot: Literal["disk", "network"] = "disk"
    virtual: _VirtualFile | None = None
    pdu: _PduFile | None = None
    switch: _SwitchFile | None = None
    kdump: float = pydantic.Field(default=0.0, ge=0, le=3600)

    @pydantic.model_validator(mode="after")
    def _together(self) -> _BoardFile:
        if self.bmc.protocol == "none" and self.pdu is None:
            raise ValueError("bmc.protocol none needs pdu: there must be some way to its power")
        if self.bmc.protocol != "ipmi" and self.console.via == "sol":
            raise ValueError(f"console.via sol needs a BMC that speaks ipmi, not {self.bmc.protocol}")
        if self.switch and not self.link:
            raise ValueError("switch is where the lab link is cut, and this board has none: it needs link")
        if self.switch and self.virtual:
            raise ValueError("switch is for machines: the link of virtual boards goes through none")
        return self


class _NetbootFile(Strict):
    address: _Address
    interface: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,15}$")]


class _LabFile(Strict):
    lab: _Name
    coordinator: Annotated[str, pydantic.StringConstraints(pattern=r"^[^\s:]+:[0-9]+$")] = "127.0.0.1:20408"
    shapes: dict[_Name, _ShapeFile] = {}
    netboot: _NetbootFile | None = None
    nightly_yields: str = "Mon-Fri 07:00-20:00"

    @pydantic.field_validator("nightly_yields")
    @classmethod
    def _readable(cls, text: str) -> str:
        return Daytime.read(text).text


def load(path: Path) -> Lab:
    """Read an inventory file.

    Boards are the hosts that have the key ``xenlab``, in whatever group they stand; other hosts are Ansible's alone.

    :raises UsageError: file, line and key of each thing that is wrong, and what would be right.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("all"), dict):
        raise UsageError(f"{path}:1: must be an Ansible inventory: a mapping with the key all")
    if unknown := [key for key in tree["all"] if key not in ("vars", "hosts", "children")]:
        known = "vars, hosts, children"
        raise UsageError(f"{at(path, tree, ('all', unknown[0]))}: unknown key; known here: {known}")
    variables = tree["all"].get("vars") or {}
    if "xenlab" not in variables:
        raise UsageError(f"{at(path, tree, ('all', 'vars'))}: lacks xenlab: {{lab: NAME}}")
    head = validate(_LabFile, path, tree, ("all", "vars", "xenlab"))
    shapes: dict[str, ShapeSpec] = {}
    for name, shape in head.shapes.items():
        _check_capabilities(path, tree, ("all", "vars", "xenlab", "shapes", name), shape.capabilities)
        shapes[name] = ShapeSpec(**shape.model_dump() | {"capabilities": frozenset(shape.capabilities)})
    found: dict[str, tuple[Key, BoardSpec]] = {}
    for key in _hosts(path, tree, ("all",)):
        host = _node(tree, key) or {}
        if "xenlab" not in host:
            continue
        name = str(key[-1])
        if name in found:
            first = at(path, tree, found[name][0]).rsplit(": ", 1)[0]
            raise UsageError(f"{at(path, tree, key)}: this board is described twice, first at {first}")
        found[name] = (key, _board(path, tree, key, host, variables, shapes))
    if not found:
        raise UsageError(f"{path}: no host has the key xenlab: there is no board in it")
    _check_together(path, tree, found)
    netboot = NetbootSpec(**head.netboot.model_dump()) if head.netboot else None
    for key, board in found.values():
        if board.boot == "network":
            _check_network_boot(path, tree, key, board, netboot)
    boards = {name: board for name, (_, board) in sorted(found.items())}
    yields = Daytime.read(head.nightly_yields)
    return Lab(head.lab, path.resolve(), boards, head.coordinator, yields, netboot)


def _hosts(path: Path, tree: Any, key: Key) -> Iterator[Key]:
    group = _node(tree, key) or {}
    if not isinstance(group, dict):
        raise UsageError(f"{at(path, tree, key)}: must be a mapping with hosts, vars or children")
    for name in group.get("hosts") or {}:
        yield (*key, "hosts", name)
    for name in group.get("children") or {}:
        yield from _hosts(path, tree, (*key, "children", name))


def _node(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree[part]
    return tree


def _board(path: Path, tree: Any, key: Key, host: Any, variables: Any, shapes: Mapping[str, ShapeSpec]) -> BoardSpec:
    name = str(key[-1])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise UsageError(f"{at(path, tree, key)}: a board's name is letters, digits and - only")
    for word in host:
        if word not in _HOST_KEYS:
            hint = did_you_mean(word, _HOST_KEYS)
            raise UsageError(
                f"{at(path, tree, (*key, word))}: unknown key{hint}; known here: {', '.join(_HOST_KEYS)} "
                "(variables of your own playbooks go into host_vars/)"
            )
    data = validate(_BoardFile, path, tree, (*key, "xenlab"))
    _check_capabilities(path, tree, (*key, "xenlab"), data.capabilities)
    ssh_host = host.get("ansible_host", name)
    ssh_port = host.get("ansible_port", 22)
    if not isinstance(ssh_host, str):
        raise UsageError(f"{at(path, tree, (*key, 'ansible_host'))}: must be a host name or address")
    if not isinstance(ssh_port, int) or isinstance(ssh_port, bool) or not 0 < ssh_port < 65536:
        raise UsageError(f"{at(path, tree, (*key, 'ansible_port'))}: must be a port number")
    nics: dict[str, NicSpec] = {}
    for role in ("management", "lab", "spare"):
        if nic := getattr(data.nics, role):
            nics[role] = NicSpec(role, nic.mac, nic.address or "", nic.pci or "")
    return BoardSpec(
        name=name,
        ssh_host=ssh_host,
        ssh_port=ssh_port,
        ssh_user=str(host.get("ansible_user", variables.get("ansible_user", "root"))),
        bmc=_bmc(path, data.bmc),
        console=ConsoleSpec(**data.console.model_dump() | {"credential": data.console.credential or ""}),
        nics=nics,
        capabilities=frozenset(data.capabilities),
        tags=dict(data.tags),
        link=data.link or "",
        xen_options=data.xen_options,
        dom0_options=data.dom0_options,
        boot=data.boot,
        virtual=VirtualSpec(**data.virtual.model_dump() | {"shapes": shapes}) if data.virtual else None,
        pdu=PduSpec(**data.pdu.model_dump()) if data.pdu else None,
        switch=SwitchSpec(**data.switch.model_dump()) if data.switch else None,
        kdump=data.kdump,
    )


def _check_capabilities(path: Path, tree: Any, key: Key, words: Sequence[str]) -> None:
    for index, word in enumerate(words):
        if word not in CAPABILITIES:
            hint = did_you_mean(word, list(CAPABILITIES))
            where = at(path, tree, (*key, "capabilities", index))
            raise UsageError(f"{where}: unknown capability {word!r}{hint}; there are: {', '.join(CAPABILITIES)}")


def _bmc(path: Path, data: _BmcFile) -> BmcSpec:
    values = data.model_dump()
    values["port"] = data.port or BMC_PORTS[data.protocol]
    values["credential"] = data.credential or ""
    values["ca_file"] = str(path.resolve().parent / data.ca_file) if data.ca_file else ""
    return BmcSpec(**values)


def _check_together(path: Path, tree: Any, found: Mapping[str, tuple[Key, BoardSpec]]) -> None:
    """Ports that boards share, links that do not join two."""
    taken: dict[tuple[str, int], str] = {}
    links: dict[str, list[str]] = {}
    for name, (key, board) in found.items():
        ports = [
            ("console.serve_port", board.console.serve_port),
            ("console.lines_port", board.console.lines_port),
        ]
        if board.virtual:
            ports += [("virtual.serial_port", board.virtual.serial_port)]
        for what, port in ports:
            user = f"{name}'s {what}"
            if (other := taken.setdefault(("tcp", port), user)) != user:
                raise UsageError(
                    f"{at(path, tree, (*key, 'xenlab', *what.split('.')))}: port {port} is {other} already"
                )
        bmc = (board.bmc.host, board.bmc.port)
        if board.bmc.protocol != "none" and (other := taken.setdefault(bmc, f"{name}'s bmc")) != f"{name}'s bmc":
            raise UsageError(f"{at(path, tree, (*key, 'xenlab', 'bmc'))}: {bmc[0]}:{bmc[1]} is {other} already")
        if board.link:
            links.setdefault(board.link, []).append(name)
    for link, ends in links.items():
        if len(ends) != 2:
            where = at(path, tree, (*found[ends[-1]][0], "xenlab", "link"))
            raise UsageError(f"{where}: link {link!r} joins {', '.join(ends)}: it must join exactly two boards")


def _check_network_boot(path: Path, tree: Any, key: Key, board: BoardSpec, netboot: NetbootSpec | None) -> None:
    """A board that boots by network needs somebody who answers it, and an address that it is given."""
    if netboot is None:
        where = at(path, tree, ("all", "vars", "xenlab"))
        raise UsageError(
            f"{where}: {board.name} boots by network: lacks netboot: {{address: A.B.C.D/N, interface: PORT}}"
        )
    nic = board.nics.get("management")
    if nic is None or not nic.address:
        where = at(path, tree, (*key, "xenlab", "boot"))
        raise UsageError(f"{where}: a board that boots by network needs nics.management with mac and address")
    if ipaddress.ip_interface(nic.address).network != ipaddress.ip_interface(netboot.address).network:
        where = at(path, tree, (*key, "xenlab", "nics", "management", "address"))
        raise UsageError(f"{where}: must be in the network that it boots from, that of {netboot.address}")
