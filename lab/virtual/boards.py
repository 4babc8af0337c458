"""The virtual boards of a lab, up and down: a disk, an identity and a daemon each."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lab import netboot
from lab.base import credentials, paths, processes
from lab.base.errors import BenchError, UsageError, did_you_mean
from lab.base.wait import wait_until
from lab.grid.host_lines import HELLO, HostAway, Remote, await_link
from lab.inventory import BoardSpec, HostSpec, Lab, emulated
from lab.virtual import bmc, chassis, emulator, identity, image, profile, qemu, segment
from lab.virtual.accelerator import cpu, proved
from lab.virtual.compiled import compiled
from lab.virtual.spec import OWN_SHAPE, DaemonConfig, write_config

log = logging.getLogger(__name__)

KCS_OFFSET = 6  # from the board's serial port base: see the port plan in docs/virtual-lab.md
IASL = "acpica-tools"  # Debian's package of the compiler of ACPI tables
HOST_ANSWERS = 40.0  # seconds; a daemon has 20


def prepare(
    lab: Lab,
    directory: Path,
    keys: Path,
    *,
    seeds: Mapping[str, bytes] | None = None,
    peers: Mapping[str, int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Fresh disks, identities, BMC password and daemon configurations of all virtual boards of ``lab`` here.

    ``directory`` gets a folder a board; ``keys`` keeps SSH keys over time. A board at a host gets its identity alone,
    which is sent there: at a host ``seeds`` are these identities, and ``peers`` the UDP ports of the lab links' other
    ends.

    :raises UsageError: QEMU or another tool is missing, or a port is taken.
    :raises BenchError: the image could not be made.
    """
    _check_tools(lab)
    _check_ports(lab)  # before the disks of boards that run are touched
    boards, elsewhere = _here(lab), [board for board in lab.boards.values() if board.virtual and board.at]
    _ensure_password(lab)
    for board in [*boards, *elsewhere]:
        home = directory / board.name
        home.mkdir(parents=True, exist_ok=True)
        if seeds is None:
            identity.write_seed(home / "seed.tar", lab, board, keys)
        else:
            (home / "seed.tar").touch(mode=0o600)
            (home / "seed.tar").write_bytes(seeds[board.name])
    if seeds is None:
        (keys / "known_hosts").write_text(identity.known_hosts(lab, keys), encoding="ascii")
    if not boards:
        if seeds is None:
            emulated.keep(lab, ())
        return
    machine = emulator.choose(progress)
    if any(board.is_counted for board in boards):
        machine = replace(machine, profiler=profile.plugin(machine.binary))
    if any(board.virtual and board.virtual.may_have_power_states for board in boards):
        machine = replace(machine, tables=str(compiled(paths.FIRMWARE / "acpi", "power.aml", IASL).parent))
    base = image.make(progress=progress)
    bmc.extension()  # now, not by two daemons at once
    for board in boards:
        home = directory / board.name
        if board.boot == "disk":
            _fresh_disk(home, base)
        _fresh_variables(home, board, machine)
        if board.bmc.protocol == "redfish":
            _certify(home, board)
    accelerator = _proved(lab, boards, directory, base, machine, progress)
    made = base.disk.stat().st_mtime_ns  # an image of the same description, made again, has its files elsewhere
    stands_on = f"image {base.disk.parent.name} of {made}, {emulator.version(machine.binary)}, {cpu()}"
    for board in boards:
        config = replace(_config(lab, board, accelerator, machine), stands_on=stands_on)
        if peers is not None:
            config = replace(config, link_peer_port=peers.get(board.name, 0))
        write_config(directory / board.name / "daemon.json", config)
    lacks = machine.lacks if accelerator == "tcg" else ()
    if seeds is None:
        emulated.keep(lab, lacks)
    elif lacks:  # the lab counts on what its inventory says of boards at a host
        raise UsageError(f"{machine.binary} cannot do what boards need ({', '.join(lacks)}): unset XENLAB_QEMU")


def _here(lab: Lab) -> list[BoardSpec]:
    """The virtual boards of this machine."""
    return [board for board in lab.boards.values() if board.virtual and not board.at]


def _check_tools(lab: Lab) -> None:
    boards = _here(lab)
    if not boards:
        return
    tools = {"qemu-img": "qemu-utils", "ipmi_sim": "openipmi"}
    if any(board.virtual and board.virtual.firmware == "uefi" for board in boards):
        tools[str(qemu.OF_THE_MACHINE.variables)] = "ovmf"
    if any(board.virtual and board.virtual.may_have_power_states for board in boards):
        tools["iasl"] = IASL
    if any(board.boot == "network" for board in boards):
        tools |= {"dnsmasq": "dnsmasq-base", "ip": "iproute2"}
        if not os.access(segment.TUN, os.R_OK | os.W_OK):
            remedy = f"as root: chmod 0666 {segment.TUN}; for a container: --device {segment.TUN}"
            raise UsageError(f"{segment.TUN} may not be opened, and boards without a disk need it ({remedy})")
    for tool, package in tools.items():
        if shutil.which(tool, os.F_OK) is None:
            raise UsageError(f"{tool} is not installed (Debian package {package}); `xenlab doctor` lists all")


def _fresh_disk(home: Path, base: image.DiskImage) -> None:
    disk = home / "disk.qcow2"
    disk.unlink(missing_ok=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base.disk), str(disk)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=processes.environment())


def _fresh_variables(home: Path, board: BoardSpec, machine: qemu.Emulator) -> None:
    if board.virtual and board.virtual.firmware == "uefi":
        shutil.copyfile(machine.variables, home / "uefi-variables.fd")


def _proved(
    lab: Lab,
    boards: list[BoardSpec],
    directory: Path,
    base: image.DiskImage,
    machine: qemu.Emulator,
    progress: Callable[[str], None] | None,
) -> Literal["tcg", "kvm"]:
    """What ``accelerator: proved`` means on this machine."""
    asking = [board for board in boards if board.virtual and board.virtual.accelerator == "proved"]
    if not asking:
        return "tcg"
    first = replace(asking[0], boot="disk")
    home = directory / first.name
    _fresh_disk(home, base)
    found = proved(first, home, _kcs_port(first), base.disk.parent.name, machine, progress)
    _fresh_disk(home, base)
    return found


def _config(lab: Lab, board: BoardSpec, accelerator: Literal["tcg", "kvm"], machine: qemu.Emulator) -> DaemonConfig:
    assert board.virtual is not None
    peer_port = 0
    for pair in lab.pairs():
        if board in pair:
            peer = pair[1] if pair[0] == board else pair[0]
            peer_port = peer.virtual.link_port if peer.virtual else 0
    if board.virtual.accelerator == "proved":
        board = replace(board, virtual=replace(board.virtual, accelerator=accelerator))
    config = DaemonConfig(board, kcs_port=_kcs_port(board), link_peer_port=peer_port, emulator=machine)
    if board.boot == "network":
        config = replace(config, netboot=lab.netboot, served=str(netboot.folder(lab)))
    return config


def _kcs_port(board: BoardSpec) -> int:
    return board.bmc.port + KCS_OFFSET if board.bmc.protocol == "ipmi" else 0


def _certify(home: Path, board: BoardSpec) -> None:
    """Give a BMC that speaks Redfish its certificate, and put it where the inventory says that it is trusted."""
    from lab.virtual import tls

    if board.bmc.tls == "off":
        return
    certificate = tls.make(home, board.name)
    if board.bmc.tls in ("verified", "pinned"):
        if not board.bmc.ca_file:
            raise UsageError(f"{board.name}: a virtual board's bmc.tls verified needs bmc.ca_file: where to put it")
        shutil.copyfile(certificate, board.bmc.ca_file)


def _ensure_password(lab: Lab) -> None:
    """Invent a BMC password for each credential of a virtual board that nobody has set."""
    path = paths.state() / "lab" / "credentials.yaml"
    missing = {}
    for board in lab.boards.values():
        if board.virtual:
            try:
                credentials.lookup(board.bmc.credential)
            except UsageError:
                missing[board.bmc.credential] = credentials.Credential("admin", secrets.token_hex(8))
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        credentials.store(path, missing)


def ports_in_use(lab: Lab) -> list[str]:
    """Which of the loopback ports that the boards need are taken, with what each is for."""
    taken = []
    for board in _here(lab):
        assert board.virtual
        wanted = [
            (socket.SOCK_STREAM, board.ssh_port, "ssh"),
            (socket.SOCK_DGRAM if board.bmc.protocol == "ipmi" else socket.SOCK_STREAM, board.bmc.port, "bmc"),
            (socket.SOCK_STREAM, board.virtual.serial_port, "serial"),
            (socket.SOCK_DGRAM, board.virtual.link_port, "lab link"),
        ]
        if kcs := _kcs_port(board):
            wanted.append((socket.SOCK_STREAM, kcs, "bmc system interface"))
        taken += [f"{port} ({board.name} {what})" for kind, port, what in wanted if processes.port_is_taken(port, kind)]
    return taken


def _check_ports(lab: Lab) -> None:
    if taken := ports_in_use(lab):
        raise UsageError(f"port in use: {', '.join(taken)}; is another lab up? `--ports free` finds other ports")


def start(lab: Lab, directory: Path, *, owner: int | None = None) -> dict[str, int]:
    """Start the daemons of prepared boards (power stays off); name -> pid. They end when process ``owner`` does.

    :raises UsageError: a port is taken.
    :raises BenchError: a daemon did not come up; carries the end of its log.
    """
    _check_ports(lab)
    pids: dict[str, int] = {}
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    for board in _here(lab):
        home = directory / board.name
        (home / "ready").unlink(missing_ok=True)
        with open(home / "daemon.log", "ab") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "lab.virtual.daemon",
                    str(home / "daemon.json"),
                    *([processes.mark(owner)] if owner else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=home,
                env=processes.environment(processes.PYTHON, processes.CREDENTIALS),
            )
        daemons[board.name], pids[board.name] = process, process.pid
        (home / "pid").write_text(processes.mark(process.pid), encoding="ascii")
    for name, process in daemons.items():
        ready = directory / name / "ready"

        def up(ready: Path = ready, process: subprocess.Popen[bytes] = process) -> bool:
            return ready.exists() or process.poll() is not None

        wait_until(up, 20, f"{name}: the board daemon is ready")
        if process.poll() is not None:
            tail = (directory / name / "daemon.log").read_text(errors="replace")[-800:]
            stop(directory)
            raise BenchError(f"{name}: the board daemon ended with status {process.returncode}: {tail}")
    return pids


def beside(lab: Lab, name: str) -> list[BoardSpec]:
    """The virtual boards of this board's machine, itself among them: they share its processors and memory."""
    return [board for board in lab.boards.values() if board.virtual and board.at == lab.boards[name].at]


def reshape(lab: Lab, directory: Path, name: str, shape: str) -> None:
    """Give the board ``name`` a shape of its inventory entry (no shape: its own), and power off all :func:`beside` it.

    It has it from its next power on until it is given another. Nobody must be using the boards.

    :raises UsageError: no such board or shape.
    :raises BenchError: a board's daemon is not there, or refuses.
    """
    board = lab.boards.get(name)
    if board is None or board.virtual is None:
        known = ", ".join(other.name for other in lab.boards.values() if other.virtual)
        raise UsageError(f"{name} is not a virtual board of {lab.path}; there are: {known or 'none'}")
    if shape and shape not in board.virtual.shapes:
        known = ", ".join(board.virtual.shapes) or "none"
        raise UsageError(f"{name} has no shape {shape} in {lab.path}; there are: {known}")
    for other in beside(lab, name):
        _tell(lab, directory, other.name, "power", "0")
        _tell(lab, directory, other.name, "shape", shape if other.name == name and shape else OWN_SHAPE)


def _tell(lab: Lab, directory: Path, name: str, what: str, value: str) -> None:
    """Set something at a board's daemon. :raises BenchError: it is not there, or refuses."""
    try:
        ask(lab, directory, name, f"set {what} {value}")
    except UsageError as error:
        raise BenchError(str(error)) from None


def running(directory: Path) -> dict[str, int]:
    """Boards whose daemon lives: name -> pid. A pid that is somebody else's by now does not count."""
    found = {}
    for file in sorted(directory.glob("*/pid")):
        mark = file.read_text(encoding="ascii", errors="replace")
        if processes.is_alive(mark):
            found[file.parent.name] = int(mark.split(":")[1])
    return found


def ask(lab: Lab, directory: Path, name: str, request: str) -> str:
    """Ask a board's daemon something (:mod:`lab.virtual.daemon`).

    :raises UsageError: no such board, one of steel, or a request the daemon does not know.
    :raises BenchError: it does not run, or its host is away.
    """
    if name not in lab.boards:
        raise UsageError(f"no board {name}{did_you_mean(name, list(lab.boards))}; there are: {', '.join(lab.boards)}")
    if lab.boards[name].virtual is None:
        raise UsageError(f"{name} is not a virtual board")
    host = lab.boards[name].at
    answer = _asked_there(host, name, request) if host else asked_here(directory, name, request)
    if answer.startswith("error"):
        raise UsageError(f"{name}: {answer.removeprefix('error: ')}")
    return answer


def asked_here(directory: Path, name: str, request: str) -> str:
    """The answer of a board's daemon at this machine, as it gives it. :raises BenchError: it does not run."""
    try:
        return chassis.ask(directory / name / "control.sock", request)
    except OSError as error:
        raise BenchError(f"{name}: the board daemon does not answer ({error.strerror}): `xenlab lab up`?") from None


def _asked_there(host: HostSpec, name: str, request: str) -> str:
    """The same of a board at a host. :raises HostAway: the host is not reached, or no daemon answers there."""
    with tempfile.TemporaryFile() as errors:
        remote = Remote(host, errors, "board", host.lab, host.name, name)
        try:
            remote.greet(HELLO)
            remote.send(request.encode() + b"\n")
            answer = remote.next(HOST_ANSWERS)
        except HostAway:
            await_link(host)
            raise
        finally:
            remote.close()
    if answer is None:
        raise HostAway(f"host {host.name}: no answer for {HOST_ANSWERS:.0f} s")
    return answer.decode(errors="replace").strip()


def stop(directory: Path, *, timeout: float = 20.0) -> None:
    """End all daemons below ``directory``; each cuts its board's power first."""
    pids = running(directory)
    for pid in pids.values():
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    for name, pid in pids.items():
        if not processes.has_ended(pid, max(0.0, deadline - time.monotonic())):
            log.warning("%s: board daemon %d did not end in %.0f s: killed", name, pid, timeout)
            _signal(pid, signal.SIGKILL)
        (directory / name / "pid").unlink(missing_ok=True)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
