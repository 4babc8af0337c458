"""What an inventory file may hold, key by key."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import pydantic

from lab.base.daytime import Daytime
from lab.base.errors import did_you_mean
from lab.base.files import Strict, like
from lab.inventory import pdus
from lab.inventory.specs import BMC_KEYS, BMC_PORTS

Port = Annotated[int, pydantic.Field(gt=0, lt=65536)]
Line = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f]*$")]
Name = Annotated[str, like(r"^[A-Za-z0-9][A-Za-z0-9_-]*$", "a name of letters, digits, - and _")]
_Pci = Annotated[str, like(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$", "a PCI address, such as 0000:41:00.1")]
_Privilege = Literal["administrator", "operator", "user"]
_Cipher = Annotated[int, pydantic.Field(ge=0, le=17)]


def mac(value: object) -> str:
    """A MAC address in any common form, as the lab writes it: ``02:00:00:00:01:0a``.

    :raises ValueError: it is none; says what would be right.
    """
    if isinstance(value, int):  # YAML reads 020000000101 and 02:00:00:00:01:01 of old as numbers
        raise ValueError('must be in quotes: "02:00:00:00:01:0a"')
    text = value.strip().lower() if isinstance(value, str) else ""
    digits = re.sub(r"[:.-]", "", text)
    forms = r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}|[0-9a-f]{4}([.:-][0-9a-f]{4}){2}|[0-9a-f]{6}[:-][0-9a-f]{6}|[0-9a-f]{12}"
    if not re.fullmatch(forms, text):
        raise ValueError(
            "must be a MAC address of six bytes, such as 02:00:00:00:01:0a, 02-00-00-00-01-0A, 0200.0000.010a"
        )
    if int(digits[:2], 16) & 1:
        raise ValueError("is a multicast address, and no port has one")
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def _is_interface(value: str) -> str:
    ipaddress.IPv4Interface(value)  # its ValueError says what is wrong
    return value


_Mac = Annotated[str, pydantic.BeforeValidator(mac)]
_Address = Annotated[
    str,
    like(r"^[0-9]+(\.[0-9]+){3}/[0-9]+$", "an IPv4 address and its prefix, such as 192.0.2.11/24"),
    pydantic.AfterValidator(_is_interface),
]


_Host = Annotated[
    Line, pydantic.AfterValidator(lambda text: re.sub(r"^\[(.*)\]$", r"\1", text))
]  # of IPv6: as in a URL


class BmcFile(Strict):
    protocol: Literal["ipmi", "redfish", "none"] = "ipmi"
    host: _Host = ""
    port: Port | None = None
    interface: Literal["lanplus", "lan"] = "lanplus"
    cipher: _Cipher | None = None
    privilege: _Privilege = "administrator"
    tls: Literal["verified", "pinned", "unverified", "off"] = "verified"
    ca_file: Line = ""
    system: Line = ""
    credential: Name | None = None

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        own = raw.get("protocol", "ipmi")
        if not isinstance(own, str):
            return
        for protocol, keys in BMC_KEYS.items():
            if protocol != own and own in BMC_KEYS and (strange := [key for key in keys if key in raw]):
                yield f"{', '.join(strange)} is for protocol {protocol}, and this is {own}"
        if own == "none":
            known = set(cls.model_fields) - {key for keys in BMC_KEYS.values() for key in keys}
            if strange := sorted((known & set(raw)) - {"protocol"}):
                yield f"{', '.join(strange)} is for a BMC, and with protocol none there is none"
        elif own in BMC_PORTS and (lacking := [key for key in ("host", "credential") if not raw.get(key)]):
            yield f"protocol {own} needs {' and '.join(lacking)}"
        if raw.get("interface") == "lan" and "cipher" in raw:
            yield "cipher is for interface lanplus, and this is lan"
        if raw.get("tls") == "pinned" and not raw.get("ca_file"):
            yield "tls: pinned needs ca_file: the certificate that the BMC must have"
        if raw.get("ca_file") and raw.get("tls", "verified") not in ("verified", "pinned"):
            yield f"ca_file says what to verify by, and tls: {raw['tls']} says not to"


class PduFile(Strict):
    model: Line
    host: Line
    outlet: int = pydantic.Field(ge=0)

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        name, host, outlet = raw.get("model"), raw.get("host"), raw.get("outlet")
        if isinstance(host, str) and "@" in host:
            yield "host must not hold a login: every client of labgrid is shown it"
        if not isinstance(name, str):
            return
        if name in pdus.UNSUPPORTED:
            yield f"model {name} is not supported: {pdus.UNSUPPORTED[name]}"
            return
        model, known = pdus.MODELS.get(name), pdus.working()
        if model is None:
            yield f"labgrid has no model {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
            return
        if package := model.lacks:
            yield f"model {name} needs a package that is not installed: {sys.executable} -m pip install {package}"
        if isinstance(host, str) and (wrong := model.lacks_in(host)):
            yield f"model {name} {wrong}, such as {model.example}"
        if isinstance(outlet, int) and not (model.first <= outlet <= (model.last or outlet)):
            until = f" to {model.last}" if model.last else ""
            yield f"outlet {outlet}: model {name} counts its outlets from {model.first}{until}"


class SwitchFile(Strict):
    host: Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x20]+$")]
    port: Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f]+$")]
    credential: Name
    udp_port: Port = 161
    snmp: Literal["3", "2c"] = "3"
    auth: Literal["sha", "sha256"] = "sha"

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        if raw.get("snmp") == "2c" and "auth" in raw:
            yield "auth is for SNMPv3, and this is 2c: its community passes in the clear"


class SolFile(Strict):
    """How the BMC is asked for serial over LAN where its power goes by another protocol."""

    host: _Host = ""
    port: Port = BMC_PORTS["ipmi"]
    cipher: _Cipher | None = None
    privilege: _Privilege = "administrator"
    credential: Name | None = None


# What old BMCs need of an ssh that has given it up; nothing that runs a command or trusts a host.
_SshOption = Literal["KexAlgorithms", "HostKeyAlgorithms", "Ciphers", "MACs", "RequiredRSASize"]
_SshAlgorithms = Annotated[
    str, pydantic.BeforeValidator(str), pydantic.StringConstraints(pattern=r"^[+^-]?[\w@.,*-]+$")
]
_SshConfig = Annotated[str, like(r"^(/|~/)[^\x00-\x1f]*$", "a path that begins with / or ~/")]
_Device = Annotated[str, like(r"^(/[^\x00-\x1f]+)?$", "a path, such as /dev/serial/by-id/...")]
_OF_SSH = ("credential", "entry", "ssh_options", "ssh_config")  # keys of a console behind SSH


class ConsoleFile(Strict):
    via: Literal["sol", "ssh", "tcp", "telnet", "rfc2217", "device"]
    serve_port: Port
    lines_port: Port
    ipmi: SolFile | None = None
    host: _Host = ""
    port: int = pydantic.Field(default=0, ge=0, lt=65536)
    credential: Name | None = None
    entry: Line = ""
    ssh_options: dict[_SshOption, _SshAlgorithms] = {}
    ssh_config: _SshConfig | None = None
    device: _Device = ""
    speed: int = 115200

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        via = raw.get("via")
        if via in ("ssh", "tcp", "telnet", "rfc2217") and not (raw.get("host") and raw.get("port")):
            yield f"via {via} needs host and port"
        if via == "ssh" and not raw.get("credential"):
            yield "via ssh needs credential: whose password the host asks for"
        others = ("sol", "tcp", "telnet", "rfc2217", "device")
        if via in others and (strange := [key for key in _OF_SSH if raw.get(key)]):
            yield f"{', '.join(strange)} is for via ssh, and this is {via}"
        if via == "device" and not raw.get("device"):
            yield "via device needs device, e.g. /dev/serial/by-id/..."
        if "ipmi" in raw and via in ("ssh", *others[1:]):
            yield f"ipmi is for via sol, and this is {via}"


class NicFile(Strict):
    mac: _Mac
    address: _Address | None = None
    pci: _Pci | None = None


class NicsFile(Strict):
    management: NicFile | None = None
    lab: NicFile | None = None
    spare: NicFile | None = None


LOCAL_DISTANCE = 10  # ACPI 6.4, 5.2.17: from a node to itself; 255 is a node that cannot be reached
_Distance = Annotated[int, pydantic.Field(ge=LOCAL_DISTANCE, le=254)]
_Distances = Annotated[tuple[_Distance, ...], pydantic.Field(strict=False)]  # YAML has lists, and no tuples


POWER_REGISTERS = 3  # processors of which firmware/acpi says something


class _FormFile(Strict):
    vcpus: int = pydantic.Field(default=1, ge=1, le=16)
    memory_mib: int = pydantic.Field(default=3072, ge=1536, le=65536)
    numa_nodes: int = pydantic.Field(default=1, ge=1, le=8)
    numa_distances: Annotated[tuple[_Distances, ...], pydantic.Field(strict=False)] = ()
    s3: bool = True
    clock: Literal["machine", "instructions"] = "machine"
    power_states: bool = False
    invariant_tsc: bool = False

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        vcpus = raw.get("vcpus", 1)
        if raw.get("power_states") and isinstance(vcpus, int) and vcpus > POWER_REGISTERS:
            yield f"power_states has registers for {POWER_REGISTERS} processors (vcpus)"
        rows, nodes = raw.get("numa_distances"), raw.get("numa_nodes", 1)
        if not isinstance(rows, list):
            return
        if [len(row) if isinstance(row, list) else 0 for row in rows] != [nodes] * len(rows) or len(rows) != nodes:
            yield f"numa_distances needs a row for each of the {nodes} nodes (numa_nodes), and in it a number for each"
        elif any(
            (number == LOCAL_DISTANCE) != (at == to) for at, row in enumerate(rows) for to, number in enumerate(row)
        ):
            yield f"numa_distances has {LOCAL_DISTANCE} for a node to itself, and more for each other node"


class ShapeFile(_FormFile):
    capabilities: list[str]


class VirtualFile(_FormFile):
    serial_port: Port
    link_port: Port
    accelerator: Literal["tcg", "kvm", "proved"] = "proved"
    firmware: Literal["bios", "uefi"] = "bios"
    saved_states: bool = False

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        yield from super().contradictions(raw)
        if raw.get("saved_states") and (raw.get("clock") == "instructions" or raw.get("accelerator") == "kvm"):
            yield "saved_states needs clock: machine and an emulated processor: no other state is known to be sound"
        if raw.get("clock") == "instructions" and raw.get("accelerator") == "kvm":
            yield "clock: instructions needs accelerator tcg: a real processor's clock does not count instructions"


_SSH = re.compile(
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<address>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(:(?P<port>[0-9]{1,5}))?"
)


class _NetbootFile(Strict):
    address: _Address
    interface: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,15}$")]


class HostFile(Strict):
    """A machine beside the lab machine: how it is reached, and xenlab there."""

    ssh: str
    identity: Annotated[str, pydantic.StringConstraints(pattern=r"^(/|~/)[^\x00-\x1f\"]*$")] | None = None
    xenlab: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9/~_][A-Za-z0-9/._-]*$")] = "xenlab"
    netboot: _NetbootFile | None = None

    @pydantic.field_validator("ssh")
    @classmethod
    def _readable(cls, text: str) -> str:
        cls.login(text)
        return text

    @staticmethod
    def login(text: str) -> tuple[str, str, int]:
        """User, address and port. :raises ValueError: not ``USER@HOST`` or ``USER@HOST:PORT``."""
        match = _SSH.fullmatch(text)
        port = int(match["port"] or 22) if match else 0
        if not match or not 0 < port < 65536:
            raise ValueError("must be USER@HOST or USER@HOST:PORT")
        return match["user"], match["address"].strip("[]"), port


class BoardFile(Strict):
    bmc: BmcFile
    console: ConsoleFile
    nics: NicsFile = NicsFile()
    capabilities: list[str] = []
    tags: dict[str, str] = {}
    link: Name | None = None
    firmware: Literal["bios", "uefi"] | None = None
    xen_options: Line = ""
    dom0_options: Line = ""
    boot: Literal["disk", "network"] = "disk"
    jobs: Annotated[str, pydantic.StringConstraints(pattern=r"^/[^\x00-\x1f]+$")] | None = None
    virtual: VirtualFile | None = None
    pdu: PduFile | None = None
    accepted_faults: dict[Line, Line] = {}
    switch: SwitchFile | None = None
    kdump: float = pydantic.Field(default=0.0, ge=0, le=3600)
    at: Name | None = None

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        bmc, console = raw.get("bmc"), raw.get("console")
        protocol = bmc.get("protocol", "ipmi") if isinstance(bmc, Mapping) else None
        if protocol == "none" and raw.get("pdu") is None:
            yield "bmc.protocol none needs pdu: there must be some way to its power"
        if isinstance(console, Mapping) and console.get("via") == "sol":
            sol = console.get("ipmi")
            if protocol == "ipmi" and sol is not None:
                yield "console.ipmi is for a BMC whose power goes by another protocol; this one's keys stand in bmc"
            if protocol == "none" and not (isinstance(sol, Mapping) and sol.get("host") and sol.get("credential")):
                yield "console.via sol needs a BMC: bmc.protocol is none, so console.ipmi needs host and credential"
        if raw.get("switch") and not raw.get("link"):
            yield "switch is where the lab link is cut, and this board has none: it needs link"
        if raw.get("switch") and raw.get("virtual"):
            yield "switch is for machines: the link of virtual boards goes through none"
        if raw.get("firmware") and raw.get("virtual"):
            yield "firmware is for machines: that of a virtual board stands in virtual.firmware"
        if raw.get("boot") == "network" and protocol == "ipmi" and not (raw.get("firmware") or raw.get("virtual")):
            yield "boot: network needs firmware: bios or uefi: the BMC is told which kind of boot is meant"
        if raw.get("jobs") and raw.get("boot") != "network":
            yield "jobs needs boot: network: the folder is served by what serves boards without a disk"
        yield from _not_at_a_host(raw, bmc)


def _not_at_a_host(raw: Mapping[str, object], bmc: object) -> Iterator[str]:
    """What a board that is not at the lab machine cannot have."""
    if not raw.get("at"):
        return
    if raw.get("boot") == "network" and raw.get("virtual"):
        yield "a virtual board that boots by network must be at the lab machine: its network is made there"
    if not (raw.get("virtual") and isinstance(bmc, Mapping) and bmc.get("protocol") == "redfish"):
        return
    if bmc.get("tls", "verified") in ("verified", "pinned"):
        yield "a virtual board at a host makes its BMC's certificate there: say bmc.tls: unverified"


class LabFile(Strict):
    lab: Name
    coordinator: Annotated[str, like(r"^[^\s:]+:[0-9]+$", "HOST:PORT, such as 127.0.0.1:20408")] = "127.0.0.1:20408"
    shapes: dict[Name, ShapeFile] = {}
    netboot: _NetbootFile | None = None
    hosts: dict[Name, HostFile] = {}
    nightly_yields: str = "Mon-Fri 07:00-20:00"
    group: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")] | None = None

    @pydantic.field_validator("nightly_yields")
    @classmethod
    def _readable(cls, text: str) -> str:
        return Daytime.read(text).text
