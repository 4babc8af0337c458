"""What a machine is, asked of its running system over SSH and of its BMC: the beginnings of its inventory entry.

It is read only: nothing is installed or changed, and no power is switched. What cannot be seen from there (the serial
port's number, which port goes to the peer, whether a diagnostic interrupt resets it) is left to people, as a remark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import yaml

from lab import bmc
from lab.base import credentials
from lab.base.errors import BenchError, LabError, MissingCapability, UsageError
from lab.bmc.redfish import SshConsole
from lab.inventory import BMC_KEYS, BMC_PORTS, BmcSpec
from lab.inventory.capabilities import TABLE, conditions
from lab.xen import capabilities
from lab.xen.dom0 import Runner, Toolstack

# One round trip; a section a line that begins with @. Standard tools only: it may be any Linux.
SCRIPT = r"""
echo "@name $(hostname -s)"
echo "@cpu $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "@flags $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "@cpus $(grep -c ^processor /proc/cpuinfo)"
echo "@nodes $(ls -d /sys/devices/system/node/node* 2>/dev/null | wc -l)"
echo "@iommu $(ls /sys/class/iommu /sys/firmware/acpi/tables 2>/dev/null | grep -cE '^(dmar|ivhd|DMAR$|IVRS$)')"
test -e /dev/ipmi0 && echo "@ipmi yes"
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
class Machine:
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
    bmc: BmcSpec | None = None
    has_sol: bool = False
    ssh_console: SshConsole | None = None  # of a BMC that speaks Redfish
    serial: tuple[str, ...] = ()  # numbers of the ports there are
    remarks: list[str] = field(default_factory=list)


def look(name: str, host: str, port: int, run: Runner) -> Machine:
    """Ask a machine over SSH; ``run`` is :meth:`lab.grid.ssh.Ssh.run`.

    :raises BenchError: it does not answer, or is no Linux.
    """
    said: dict[str, list[str]] = {}
    for line in str(run(SCRIPT).stdout).splitlines():
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            said.setdefault(key, []).append(value.strip())
    if "cpu" not in said:
        raise BenchError(f"{host}: is that a Linux? It does not know its processor")
    first = {key: values[0] for key, values in said.items()}
    found = Machine(name or first["name"], host, port, first["cpu"], int(first["cpus"]), max(1, int(first["nodes"])))
    found.serial = tuple(first["serial"].split())
    reached = first["reached"].split()[2:3]
    _sort_nics(found, [_nic(line) for line in said.get("nic", [])], reached[0] if reached else "")
    if "xen" in first:
        dom0 = Toolstack(found.name, run)
        found.capabilities = set(capabilities.of_toolstack(dom0, found.nics))
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


def find_bmc(board: str, address: str, credential: str) -> tuple[BmcSpec, list[str]]:
    """How the BMC at this address is spoken to, and what it is; IPMI before Redfish, which has no SOL of its own.

    :raises UsageError: no such credential.
    :raises BenchError: nothing that is known answers there; says what each way came to.
    """
    credentials.lookup(credential)
    name, _, port = address.partition(":")
    if port and not port.isdigit():
        raise UsageError(f"{address}: must be HOST or HOST:PORT")
    ipmi = BmcSpec(name, credential, port=int(port or 623))
    redfish = BmcSpec(name, credential, "redfish", port=int(port or 443))
    ways = [ipmi, replace(ipmi, cipher=3), redfish, replace(redfish, tls="unverified")]
    failed, remarks = list[str](), list[str]()
    found: BmcSpec | None = None
    for spec in ways:
        if found and found.protocol == spec.protocol:
            continue
        try:
            info = bmc.connect(board, spec).info()
        except LabError as error:
            failed.append(f"{spec.protocol}: {' '.join(str(error).split())}")
            continue
        remarks.append(f"{spec.protocol}: " + ", ".join(f"{key} {value}" for key, value in info.items())[:200])
        found = found or spec
    if found is None:
        raise BenchError(f"{address}: no BMC that answers: {'; '.join(failed)}")
    return found, remarks


def add_bmc(machine: Machine, address: str, credential: str) -> None:
    """Find the BMC, and what it can do. :raises UsageError, BenchError: as :func:`find_bmc`."""
    machine.bmc, remarks = find_bmc(machine.name, address, credential)
    machine.remarks += remarks
    control = bmc.connect(machine.name, machine.bmc)
    try:
        control.sleep_state()
        machine.capabilities.add("bmc-sleep-state")
    except MissingCapability:
        machine.remarks.append("the BMC does not tell S0 from S3")
    if machine.bmc.protocol == "ipmi":
        machine.has_sol = control.has_sol()  # type: ignore[attr-defined]
        if not machine.has_sol:
            machine.remarks.append("SOL is not enabled in the BMC")
    else:
        machine.ssh_console = control.ssh_console()  # type: ignore[attr-defined]


def entry(machine: Machine, *, serve_port: int) -> str:
    """The machine as a host of an inventory, with remarks; ``serve_port`` and the next are its console's."""
    keys: dict[str, object] = {}
    if spec := machine.bmc:
        default = BmcSpec(spec.host, spec.credential, spec.protocol, port=BMC_PORTS[spec.protocol])
        names = ("port", *BMC_KEYS[spec.protocol])
        own = {name: getattr(spec, name) for name in names if getattr(spec, name) != getattr(default, name)}
        keys["bmc"] = {"protocol": spec.protocol, "host": spec.host, "credential": spec.credential, **own}
    else:
        keys["bmc"] = {"protocol": "none"}
        keys["pdu"] = {"model": "rest", "host": "PDU", "outlet": 0}
    ports = {"serve_port": serve_port, "lines_port": serve_port + 1}
    keys["console"] = {**_console(machine), **ports}
    keys["nics"] = {
        role: {"mac": nic.mac, **({"address": nic.address} if nic.address else {})}
        for role, nic in machine.nics.items()
    }
    keys["capabilities"] = [word for word in TABLE if word in machine.capabilities]
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


def _console(machine: Machine) -> dict[str, object]:
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


def _sort_nics(machine: Machine, nics: list[Nic], reached: str) -> None:
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
        "cpu-offline": int(said["cpus"]) > 1,
    }
    return {word for word, is_so in found.items() if is_so} | set(said.get("can", "").split())
