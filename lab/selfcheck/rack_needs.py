"""What an inventory of machines still needs on this machine: ``xenlab doctor --inventory FILE``.

Nothing is changed here, and no board, BMC or PDU is spoken to: `xenlab board check` does that.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab import bmc
from lab.base import credentials, paths, processes
from lab.base.errors import UsageError
from lab.grid import services
from lab.inventory import BmcSpec, BoardSpec, HostSpec, Lab
from lab.selfcheck.doctor import Requirement

_PROGRAMS = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # dnsmasq is a system program


def examine(lab: Lab) -> list[Requirement]:
    """Look at everything that the inventory names and this machine must have, board by board."""
    findings = [*_lab(lab)]
    for host in lab.hosts.values():
        findings += _host(host)
    for board in lab.boards.values():
        if not board.virtual:  # the virtual lab makes what it needs
            findings += _board(board)
    return findings


def _host(host: HostSpec) -> Iterator[Requirement]:
    """What the lab machine must have to reach a host. What the host must have is seen when it is reached."""
    subject = f"host {host.name}"
    identity = Path(host.identity).expanduser() if host.identity else paths.ssh_key()
    yield Requirement(
        f"{subject} key",
        identity.exists(),
        str(identity),
        "make it with ssh-keygen, its public half for the host's user",
    )
    yield _host_key(subject, host.address, host.port)
    yield from _name(subject, host.address)


def _lab(lab: Lab) -> Iterator[Requirement]:
    folder = services.directory(lab)
    if services.status(folder).is_up:
        yield Requirement("ports", True, f"lab {lab.name} is up and has them")
    else:
        taken = services.ports_in_use(lab)
        detail = f"in use: {', '.join(taken)}" if taken else "all free"
        yield Requirement(
            "ports", not taken, detail, "end what uses them, or move the lab: `xenlab lab up --ports free`"
        )
    steel = [board for board in lab.boards.values() if not board.virtual]
    if steel:
        remedy = f"ssh-keygen -t ed25519 -N '' -C xenlab -f {paths.ssh_key()}, and its public half onto the boards"
        yield Requirement("key of the lab for SSH", paths.ssh_key().exists(), str(paths.ssh_key()), remedy)
    here = [board for board in steel if not board.at]
    if any(spec.protocol == "ipmi" for board in here for spec in (board.bmc, board.console_bmc)):
        yield _program("ipmitool", "ipmitool")
    if lab.netboot and any(board.boot == "network" for board in here):
        yield _program("dnsmasq", "dnsmasq-base")
        names = [name for _, name in socket.if_nameindex()]
        there = lab.netboot.interface in names
        detail = lab.netboot.interface if there else f"no {lab.netboot.interface} here; there are: {', '.join(names)}"
        yield Requirement("port that boards boot from", there, detail, "name it in netboot.interface of the inventory")


def _board(board: BoardSpec) -> Iterator[Requirement]:
    if board.bmc.protocol != "none":
        yield _login(f"{board.name} BMC", board.bmc)
    if board.sol:
        yield _login(f"{board.name} SOL", board.sol)
    console = board.console
    if console.credential:
        yield _credential(f"{board.name} console", console.credential)
    if not board.at:  # else its host must have these
        yield from _reached_from_here(board)
    if board.switch:
        yield _credential(f"{board.name} switch", board.switch.credential)
        yield from _name(f"{board.name} switch", board.switch.host)
    if board.boot == "disk":
        yield _host_key(f"{board.name} dom0", board.ssh_host, board.ssh_port)


def _reached_from_here(board: BoardSpec) -> Iterator[Requirement]:
    console = board.console
    if board.bmc.protocol != "none":
        yield from _name(f"{board.name} BMC", board.bmc.host)
    if console.host:
        yield from _name(f"{board.name} console", console.host)
    if console.via == "ssh":
        yield _host_key(f"{board.name} console", console.host, console.port)
    if console.via == "device":
        yield _device(board.name, Path(console.device))
    yield from _name(f"{board.name} dom0", board.ssh_host)


def _program(name: str, package: str) -> Requirement:
    where = shutil.which(name, path=_PROGRAMS)
    return Requirement(name, where is not None, where or "not installed", f"as root: apt-get install {package}")


def _login(subject: str, spec: BmcSpec) -> Requirement:
    """A BMC's credential, its certificate: what is looked at before it is spoken to."""
    try:
        bmc.connect(subject, spec)
    except UsageError as error:
        return Requirement(f"{subject} login", False, str(error), _where(spec.credential))
    return Requirement(f"{subject} login", True, f"credential {spec.credential}")


def _credential(subject: str, name: str) -> Requirement:
    try:
        credentials.lookup(name)
    except UsageError as error:
        return Requirement(f"{subject} login", False, str(error), _where(name))
    return Requirement(f"{subject} login", True, f"credential {name}")


def _where(name: str) -> str:
    return f'give {paths.config() / "credentials.yaml"} (mode 0600) the line {name}: {{user: ..., password: "..."}}'


def _host_key(subject: str, host: str, port: int) -> Requirement:
    """A host's SSH key must be known before it is spoken to."""
    place = host if port == 22 else f"[{host}]:{port}"
    for file in paths.known_hosts():
        command = ["ssh-keygen", "-F", place, "-f", str(file)]
        done = subprocess.run(
            command, capture_output=True, timeout=20, check=False, env=processes.environment(), stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            return Requirement(f"{subject} host key", True, f"{place} in {file}")
    remedy = f"ssh-keyscan -p {port} {host} >> {paths.known_hosts()[0]}, and compare it with what the host shows"
    return Requirement(f"{subject} host key", False, f"none is known for {place}", remedy)


def _device(board: str, device: Path) -> Requirement:
    subject = f"{board} console"
    if not device.exists():
        there = sorted(str(file) for file in Path("/dev/serial/by-id").glob("*"))
        known = f"; there are: {', '.join(there)}" if there else "; no serial adapter is plugged in"
        return Requirement(
            subject, False, f"{device} is not there{known}", "plug it in, or name another in console.device"
        )
    if not stat.S_ISCHR(device.stat().st_mode):
        return Requirement(subject, False, f"{device} is not a serial device", "name one of /dev/serial/by-id")
    usable = os.access(device, os.R_OK | os.W_OK)
    detail = f"{device}{'' if usable else ': this user may not open it'}"
    return Requirement(subject, usable, detail, "as root: adduser USER dialout, and log in again")


def _name(subject: str, host: str) -> Iterator[Requirement]:
    """A host's name, if it is none of an address, must be known. Says nothing of one that is."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Requirement(
            f"{subject} address", False, f"{host}: {reason}", "write its address, or give it a name in DNS"
        )
