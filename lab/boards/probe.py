"""What a machine is, asked of its running system over SSH and of its BMC: the beginnings of its inventory entry.

It is read only: nothing is installed or changed, and no power is switched. What cannot be seen from there (the serial
port's number, which port goes to the peer, whether a diagnostic interrupt resets it) is left to people, as a remark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import UUID

import yaml

from lab import bmc
from lab.base import credentials
from lab.base.errors import (
    BenchError,
    CommandFailed,
    LabError,
    LoginRefused,
    MissingCapability,
    PasswordExpired,
    PrivilegeRefused,
    UsageError,
)
from lab.bmc import ipmitool
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.redfish import RedfishBmc, SshConsole
from lab.inventory import BMC_KEYS, BMC_PORTS, BmcSpec
from lab.inventory.capabilities import TABLE, conditions
from lab.xen import probing
from lab.xen.dom0 import Runner, Toolstack

T = TypeVar("T")

# One round trip; a section a line that begins with @. Standard tools only: it may be any Linux.
SCRIPT = r"""
echo "@name $(hostname -s)"
echo "@cpu $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "@flags $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "@cpus $(grep -c ^processor /proc/cpuinfo)"
echo "@nodes $(ls -d /sys/devices/system/node/node* 2>/dev/null | wc -l)"
echo "@iommu $(ls /sys/class/iommu /sys/firmware/acpi/tables 2>/dev/null | grep -cE '^(dmar|ivhd|DMAR$|IVRS$)')"
test -e /dev/ipmi0 && echo "@ipmi yes"
test -d /sys/firmware/efi && echo "@uefi yes"
echo "@uuid $(cat /sys/class/dmi/id/product_uuid 2>/dev/null)"
echo "@reached ${SSH_CONNECTION:-}"
echo "@serial $(grep -E 'uart:1' /proc/tty/driver/serial 2>/dev/null | cut -d: -f1 | tr '\n' ' ')"
for d in /sys/class/net/*; do
    test -e $d/device || continue
    n=${d##*/}
    echo "@nic $n $(cat $d/address) $(basename $(readlink -f $d/device))" \
        "$(cat $d/carrier 2>/dev/null || echo 0) $(cat $d/device/sriov_totalvfs 2>/dev/null || echo 0)" \
        "$(ip -4 -o addr show dev $n 2>/dev/null | sed -n 's/.*inet \([0-9.]*\/[0-9]*\).*/\1/p' | head -n 1)"
done
command -v xl >/dev/null && xl info >/dev/null 2>&1 && echo "@xen yes"
echo "@can $({ CONDITIONS } | tr '\n' ' ')"
""".replace("CONDITIONS", conditions(without_xen=True))


_BY_BMC = {"s5"}  # what a board with an outlet alone has not
_OF_ANOTHER_BUILD = {"no-pv32"}  # what the build lacks that runs while the machine is probed, and others may have


@dataclass(frozen=True, slots=True)
class Nic:
    """A network port of the machine."""

    name: str
    mac: str
    pci: str
    has_carrier: bool
    functions: int  # virtual ones it can have
    address: str  # CIDR; empty: none


@dataclass
class ProbedMachine:
    """What was found."""

    name: str
    host: str
    port: int
    cpu: str = ""
    cpus: int = 1
    nodes: int = 1
    capabilities: set[str] = field(default_factory=set)
    nics: Mapping[str, Nic] = field(default_factory=dict)  # by role
    others: tuple[Nic, ...] = ()
    is_uefi: bool = False
    uuid: str = ""  # SMBIOS; empty: it does not tell, or not this user
    bmc: BmcSpec | None = None
    has_sol: bool = False
    ssh_console: SshConsole | None = None  # of a BMC that speaks Redfish
    serial: tuple[str, ...] = ()  # numbers of the ports there are
    remarks: list[str] = field(default_factory=list)


def look(name: str, host: str, port: int, run: Runner) -> ProbedMachine:
    """Ask a machine over SSH; ``run`` is :meth:`lab.grid.ssh.Ssh.run`.

    :raises BenchError: it does not answer, or is no Linux.
    """
    said: dict[str, list[str]] = {}
    for line in str(run(SCRIPT).stdout).splitlines():
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            said.setdefault(key, []).append(value.strip())
    if "cpu" not in said:
        raise BenchError(f"{host}: not a Linux system? /proc/cpuinfo names no processor")
    first = {key: values[0] for key, values in said.items()}
    found = ProbedMachine(
        name or first["name"], host, port, first["cpu"], int(first["cpus"]), max(1, int(first["nodes"]))
    )
    found.serial = tuple(first["serial"].split())
    found.is_uefi, found.uuid = "uefi" in first, first.get("uuid", "")
    reached = first["reached"].split()[2:3]
    _sort_nics(found, [_nic(line) for line in said.get("nic", [])], reached[0] if reached else "")
    if "xen" in first:
        dom0 = Toolstack(found.name, run)
        found.capabilities = set(probing.of_toolstack(dom0, found.nics))
        found.nodes = int(dom0.info().get("nr_nodes", found.nodes))
    else:
        found.capabilities = _of_linux(first)
        found.remarks.append(
            "no Xen runs there: probe it again under Xen for what needs one (pv, pv32, shadow, qemu, ...)"
        )
    if "hap" in found.capabilities:
        found.capabilities.add("pae-guests")  # no machine is known that lacks it
    if "spare" in found.nics:
        found.capabilities.add("spare-nic")
    if any(nic.functions for nic in (*found.nics.values(), *found.others)):
        found.capabilities.add("sriov")
    if "ipmi" not in first:
        found.remarks.append("no /dev/ipmi0: it may have no BMC, or its driver is not loaded")
    return found


@dataclass
class FoundBmc:
    """A BMC that answers: how it is spoken to by each protocol, and what it says of itself."""

    ways: dict[str, BmcSpec] = field(default_factory=dict)  # by protocol, the better first
    remarks: list[str] = field(default_factory=list)

    @property
    def best(self) -> BmcSpec:
        return next(iter(self.ways.values()))


def find_bmc(board: str, address: str, credential: str, uuid: str = "") -> FoundBmc:
    """How the BMC at this address is spoken to, and what it is; IPMI before Redfish, which has no SOL of its own.

    ``uuid`` is the machine's, by which one of several systems behind a Redfish service is chosen.

    :raises UsageError: no such credential.
    :raises BenchError: nothing that is known answers there; says what each way came to.
    """
    credentials.lookup(credential)
    name, _, port = address.partition(":")
    if port and not port.isdigit():
        raise UsageError(f"{address}: must be HOST or HOST:PORT")
    ipmi = BmcSpec(name, credential, port=int(port or 623))
    redfish = BmcSpec(name, credential, "redfish", port=int(port or 443))
    ways = [ipmi, replace(ipmi, privilege="operator"), redfish, replace(redfish, tls="unverified")]
    found, failed = FoundBmc(), list[tuple[str, str]]()  # protocol, and what it came to
    refused: set[str] = set()  # protocols whose login was refused: not again, for that locks users out
    for spec in ways:
        is_again = spec.privilege != "administrator"
        if spec.protocol in found.ways or (is_again and "privilege" not in refused) or spec.protocol in refused:
            continue
        try:
            found.ways[spec.protocol] = _look_at_bmc(board, spec, uuid, found.remarks)
        except PrivilegeRefused as error:
            refused.add("privilege")
            failed.append((spec.protocol, _line(f"{spec.protocol}: {error}")))
        except LabError as error:
            if isinstance(error, LoginRefused | PasswordExpired):
                refused.add(spec.protocol)
            failed.append((spec.protocol, _line(f"{spec.protocol}: {error}")))
    if not found.ways:
        raise BenchError(f"{address}: no BMC that answers: {'; '.join(line for _, line in failed)}")
    if "ipmi" not in found.ways:
        found.remarks += [line for protocol, line in failed if protocol == "ipmi"]
    return found


def _look_at_bmc(board: str, spec: BmcSpec, uuid: str, remarks: list[str]) -> BmcSpec:
    """How this BMC wants to be spoken to. :raises LabError: not this way."""
    control = bmc.connect(board, spec)
    if isinstance(control, RedfishBmc):
        systems = control.systems()
        mine = [name for name, own in systems.items() if own and _is_same(own, uuid)]
        if len(systems) > 1 and not spec.system:
            spec = replace(spec, system=mine[0] if len(mine) == 1 else "")
            if not spec.system:
                remarks.append(f"redfish: say in bmc.system which one it is: {', '.join(systems)}")
                return spec
            control = bmc.connect(board, spec)
    try:
        info = ", ".join(f"{key} {value}" for key, value in control.info().items())
    except CommandFailed as error:
        if isinstance(control, RedfishBmc):  # perhaps a web server that is no Redfish service
            raise
        info = f"it does not say what it is: {error}"
    remarks.append(_line(f"{spec.protocol}: {info}")[:200])
    if isinstance(control, IpmiBmc) and control.cipher != ipmitool.CIPHERS[0]:
        spec = replace(spec, cipher=control.cipher)
    remarks += [_line(remark) for remark in control.remarks]
    return spec


def _is_same(one: str, other: str) -> bool:
    """Whether two UUIDs are of one machine: SMBIOS 2.6 turned the first three fields around, and not everybody did."""
    try:
        first, second = UUID(one), UUID(other)
    except ValueError:
        return False
    return second in (first, UUID(bytes_le=first.bytes))


def add_bmc(machine: ProbedMachine, address: str, credential: str) -> None:
    """Find the BMC, and what it can do; what cannot be found out becomes a remark.

    :raises UsageError, BenchError: as :func:`find_bmc`.
    """
    found = find_bmc(machine.name, address, credential, machine.uuid)
    machine.bmc, machine.remarks = found.best, machine.remarks + found.remarks

    def learn(what: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except MissingCapability:
            return None
        except LabError as error:
            machine.remarks.append(_line(f"could not find out {what}: {error}"))
            return None

    control = bmc.connect(machine.name, machine.bmc)
    if learn("whether the BMC tells S0 from S3", control.sleep_state):
        machine.capabilities.add("bmc-sleep-state")
    else:
        machine.remarks.append("the BMC does not tell S0 from S3")
    if isinstance(control, IpmiBmc):
        has_sol = learn("whether SOL is enabled in the BMC", control.has_sol)
        machine.has_sol = bool(has_sol)
        if has_sol is False:
            machine.remarks.append("SOL is not enabled in the BMC")
    if not machine.has_sol and (spec := found.ways.get("redfish")):
        redfish = bmc.connect(machine.name, spec)
        assert isinstance(redfish, RedfishBmc)
        machine.ssh_console = learn("whether the console is behind SSH", redfish.ssh_console)


def _line(text: str) -> str:
    return " ".join(text.split())


def entry(machine: ProbedMachine, *, serve_port: int) -> str:
    """The machine as a host of an inventory, with remarks; ``serve_port`` and the next are its console's."""
    keys: dict[str, object] = {}
    if spec := machine.bmc:
        default = BmcSpec(spec.host, spec.credential, spec.protocol, port=BMC_PORTS[spec.protocol])
        names = ("port", *BMC_KEYS[spec.protocol])
        own = {name: getattr(spec, name) for name in names if getattr(spec, name) != getattr(default, name)}
        keys["bmc"] = {"protocol": spec.protocol, "host": spec.host, "credential": spec.credential, **own}
    else:
        keys["bmc"] = {"protocol": "none"}
        keys["pdu"] = {"model": "rest", "host": "http://PDU/relay/{index}/value", "outlet": 0}
    ports = {"serve_port": serve_port, "lines_port": serve_port + 1}
    keys["console"] = {**_console(machine), **ports}
    keys["nics"] = {
        role: {"mac": nic.mac, **({"address": nic.address} if nic.address else {})}
        for role, nic in machine.nics.items()
    }
    keys["firmware"] = "uefi" if machine.is_uefi else "bios"
    unseen = _OF_ANOTHER_BUILD | (_BY_BMC if machine.bmc is None else set())
    keys["capabilities"] = [word for word in TABLE if word in machine.capabilities - unseen]
    keys["tags"] = {"class": re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-")[:40] or "server"}
    is_by_bmc = machine.has_sol or machine.ssh_console
    if is_by_bmc:
        keys["xen_options"] = "com2=115200,8n1 console=com2 dom0_mem=4096M,max:4096M"
    host: dict[str, object] = {"ansible_host": machine.host}
    if machine.port != 22:
        host["ansible_port"] = machine.port
    host["xenlab"] = keys
    text = yaml.safe_dump({machine.name: host}, sort_keys=False, default_flow_style=None, width=110)
    about = [
        f"{machine.cpu}: {machine.cpus} processors, {machine.nodes} NUMA node{'s'[: machine.nodes != 1]}",
        *machine.remarks,
        *(f"port {nic.name} {nic.mac} at {nic.pci}{'' if nic.has_carrier else ', no cable'}" for nic in machine.others),
        f"serial ports: {', '.join(f'com{int(number) + 1}' for number in machine.serial) or 'none that Linux sees'}",
    ]
    if machine.bmc is None:
        about.append("pdu: model, host and outlet are to be filled in, or bmc, if it has one")
    if not is_by_bmc:
        about.append("console: where its serial port goes is to be filled in; docs/rack.md, step 2")
    return "".join(f"# {' '.join(line.split())}\n" for line in about) + text


def _console(machine: ProbedMachine) -> dict[str, object]:
    if machine.has_sol:
        return {"via": "sol"}
    if (ssh := machine.ssh_console) and machine.bmc:
        entry = {"entry": ssh.entry} if ssh.entry else {}
        host = {"host": machine.bmc.host, "port": ssh.port, "credential": machine.bmc.credential}
        return {"via": "ssh", **host, **entry}
    return {"via": "device", "device": "/dev/serial/by-id/ADAPTER"}


def _nic(line: str) -> Nic:
    name, mac, pci, carrier, functions, *address = line.split()
    return Nic(name, mac, pci, carrier == "1", int(functions), address[0] if address else "")


def _sort_nics(machine: ProbedMachine, nics: list[Nic], reached: str) -> None:
    """The one we came in by manages; the first without an address is spare; where the cable goes is not to be seen."""
    roles: dict[str, Nic] = {}
    for nic in nics:
        if nic.address.partition("/")[0] == reached and reached:
            roles["management"] = nic
        elif not nic.address and "spare" not in roles and re.fullmatch(r"[0-9a-f]{4}:[0-9a-f:.]+", nic.pci):
            roles["spare"] = nic
    machine.nics = roles
    machine.others = tuple(nic for nic in nics if nic not in roles.values())
    if "management" not in roles:
        machine.remarks.append(
            "the port it was reached by is behind a bridge or a router: management is to be filled in"
        )


def _of_linux(said: Mapping[str, str]) -> set[str]:
    """What a processor and a firmware promise, without a hypervisor to confirm it."""
    flags = set(said["flags"].split())
    found = {
        "hvm": bool(flags & {"svm", "vmx"}),
        "hap": bool(flags & {"npt", "ept"}),
        "sp2m": bool(flags & {"npt", "ept"}),
        "sp1g": bool(flags & {"npt", "ept"}) and "pdpe1gb" in flags,
        "iommu": int(said["iommu"]) > 0,
        "numa": int(said["nodes"]) > 1,
        "numa-4": int(said["nodes"]) > 3,
        "cpu-offline": int(said["cpus"]) > 1,
    }
    return {word for word, is_so in found.items() if is_so} | set(said.get("can", "").split())
