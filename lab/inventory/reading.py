"""An inventory file read and checked: what is wrong is said by file, line and key."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from lab.base.daytime import Daytime
from lab.base.errors import UsageError
from lab.base.files import Key, Strict, at, did_you_mean, read_yaml, validate
from lab.inventory import capabilities
from lab.inventory.ports import applied
from lab.inventory.specs import (
    BMC_KEYS,
    BMC_PORTS,
    BmcSpec,
    BoardSpec,
    ConsoleSpec,
    Lab,
    NetbootSpec,
    NicSpec,
    PduSpec,
    ShapeSpec,
    SwitchSpec,
    VirtualSpec,
)

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


# What old BMCs need of an ssh that has given it up; nothing that runs a command or trusts a host.
_SshOption = Literal["KexAlgorithms", "HostKeyAlgorithms", "Ciphers", "MACs", "RequiredRSASize"]
_SshAlgorithms = Annotated[
    str, pydantic.BeforeValidator(str), pydantic.StringConstraints(pattern=r"^[+^-]?[\w@.,*-]+$")
]


class _ConsoleFile(Strict):
    via: Literal["sol", "ssh", "tcp", "telnet", "rfc2217", "device"]
    serve_port: _Port
    lines_port: _Port
    host: _Line = ""
    port: int = pydantic.Field(default=0, ge=0, lt=65536)
    credential: _Name | None = None
    entry: _Line = ""
    ssh_options: dict[_SshOption, _SshAlgorithms] = {}
    ssh_config: Annotated[str, pydantic.StringConstraints(pattern=r"^(/|~/)[^\x00-\x1f]*$")] | None = None
    device: _Line = ""
    speed: int = 115200

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> _ConsoleFile:
        if self.via in ("ssh", "tcp", "telnet", "rfc2217") and not (self.host and self.port):
            raise ValueError(f"via {self.via} needs host and port")
        if self.via == "ssh" and not self.credential:
            raise ValueError("via ssh needs credential: whose password the host asks for")
        own = ("credential", "entry", "ssh_options", "ssh_config")
        if self.via != "ssh" and (strange := [key for key in own if key in self.model_fields_set]):
            raise ValueError(f"{', '.join(strange)} is for via ssh, and this is {self.via}")
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
    group: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")] | None = None

    @pydantic.field_validator("nightly_yields")
    @classmethod
    def _readable(cls, text: str) -> str:
        return Daytime.read(text).text


def load(path: Path) -> Lab:
    """Read an inventory file; the lab's ports are where its state folder has moved them (:mod:`lab.inventory.ports`).

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
    return applied(Lab(head.lab, path.resolve(), boards, head.coordinator, yields, netboot, head.group))


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
        capabilities.check(word, at(path, tree, (*key, "capabilities", index)))


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
