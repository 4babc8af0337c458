"""The services of a lab, generated from its inventory: labgrid's coordinator and exporter, and the console recorders.

They run under one supervisor (:mod:`lab.grid.supervisor`), all on loopback. Nothing here is a board's own.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from lab import inventory, netboot
from lab.base import paths, processes, shape
from lab.base.errors import BenchError, UsageError
from lab.base.loopback import check_group
from lab.base.wait import wait_until
from lab.console import HOST
from lab.console.config import RecorderConfig
from lab.grid import host_lines, host_state, hosts, wire
from lab.grid.host_lines import NETBOOT, Netboot, Orders
from lab.grid.host_state import HostState, Link
from lab.grid.service import GRACE, SIGNS
from lab.grid.supervisor import LOCK, SPEAKS_TO_BMCS, WAIT
from lab.inventory import BMC_KEYS, BoardSpec, Lab
from lab.leases import away

BMC_RESOURCES = {"ipmi": "IPMIPort", "redfish": "RedfishPort"}  # resources of a place (lab.grid.resources)
START_TIMEOUT = 40.0  # seconds; 4 s on an idle machine
HOST_TIMEOUT = 160.0  # seconds more, for hosts: a link says within them how its host is (lab.grid.host_link)
# A tag of every place. A reservation that asks for it is the reaper's; people's own do not.
MADE_BY, XENLAB = "managed-by", "xenlab"
SILENCE_SHOWN = 15.0  # seconds without a sign of life that `xenlab lab status` says
_COPY, _COPIED_FROM = "inventory.yaml", "inventory-folder.yaml"
STARTING = "starting.lock"  # held while services are brought up


@dataclass(frozen=True, slots=True)
class LabStatus:
    """What runs of a lab's services."""

    is_up: bool
    coordinator: str
    processes: dict[str, int]  # name -> pid, of those alive
    wanted: tuple[str, ...]
    silent: Mapping[str, float] = field(default_factory=dict)  # seconds without a sign of life, of those that should
    hosts: tuple[HostState, ...] = ()

    def __str__(self) -> str:
        if not self.wanted:
            return "not up"
        rows = [f"{name:<24} {self._of(name)}" for name in self.wanted]
        for host in self.hosts:
            rows.append(f"{f'host {host.name}':<24} {host}")
            rows += [f"{f'{name} at {host.name}':<24} {pid}" for name, pid in host.processes.items()]
            rows += [f"{f'{name} at {host.name}':<24} GONE" for name in host.gone]
        return "\n".join([f"{'up' if self.is_up else 'NOT WHOLE'}, coordinator {self.coordinator}", *rows])

    def _of(self, name: str) -> str:
        pid, silent = self.processes.get(name), self.silent.get(name)
        if pid is None:
            return "GONE"
        return str(pid) if silent is None else f"{pid}, no sign of life for {silent:.0f} s"


def directory(lab: Lab) -> Path:
    """Where a lab that is up keeps its configuration, pids and logs."""
    return paths.state() / "lab" / lab.name


def start(lab: Lab, folder: Path, *, detach: bool) -> None:
    """Write what the services are configured by, and start them; they end with this process unless ``detach``.

    :raises UsageError: they are up already, another process starts them just now, a port is taken, or this machine
        does not have the lab's Unix group.
    :raises BenchError: a service did not come up; carries what it said.
    """
    if lab.group is not None:
        check_group(lab.group)
    with alone(folder, STARTING, f"lab {lab.name}"):
        if holder(folder) is not None:
            raise UsageError(f"lab {lab.name} is up already; `xenlab lab status` shows it, `xenlab lab down` ends it")
        if taken := ports_in_use(lab):
            raise UsageError(f"port in use: {', '.join(taken)}; is another lab up? (`--ports free` finds other ports")
        try:
            write_files(lab, folder)
            bring_up(folder, f"lab {lab.name}", None if detach else processes.mark(os.getpid()), _start_timeout(lab))
        except OSError as error:
            raise BenchError(f"{folder}: the services cannot be started: {error.strerror or error}") from None


@contextmanager
def alone(folder: Path, name: str, what: str) -> Iterator[None]:
    """Be the only one who brings this up, by a lock on the file ``name`` in the lab's folder.

    :raises UsageError: another process does just now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{what} is being brought up by another process just now") from None
        yield


def _start_timeout(lab: Lab) -> float:
    return START_TIMEOUT + (HOST_TIMEOUT if lab.hosts else 0.0)


def bring_up(
    folder: Path,
    what: str,
    owner: str | None,
    timeout: float = START_TIMEOUT,
    first: Callable[[int], None] = lambda pid: None,
) -> None:
    """Start a supervisor of what the folder's files say, and wait for its services.

    ``owner`` is the process, by its mark, whose end it ends with; None: it stays. ``first`` is called with the
    supervisor's process id before there is any service: with what must be there before, and end with the supervisor.

    :raises BenchError: a service did not come up; carries what it said.
    """
    ready, wait = folder / "ready", folder / WAIT
    ready.unlink(missing_ok=True)
    wait.touch()
    with open(folder / "supervisor.log", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lab.grid.supervisor", str(folder), *([owner] if owner else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=folder,
            env=processes.environment(*SPEAKS_TO_BMCS),
        )
    try:
        wait_until(lambda: holder(folder) or process.poll() is not None, timeout, f"supervisor of {what}")
        first(process.pid)
        wait.unlink()
        wait_until(lambda: ready.exists() or process.poll() is not None, timeout, f"services of {what}")
    finally:
        if not ready.exists() and holder(folder) == process.pid:
            stop(folder)
    if process.poll() is not None:
        said = (folder / "supervisor.log").read_text(errors="replace").strip()[-800:]
        raise BenchError(f"the services of {what} did not come up: {said}")


def stop(folder: Path, *, timeout: float = 20.0) -> None:
    """End the services; no error when they are not up.

    The supervisor ends them. One that does not end in ``timeout`` seconds is killed, and the services with it.
    """
    pid = holder(folder)
    if pid is None:
        return
    _send(folder, pid, signal.SIGTERM)
    if processes.has_ended(pid, timeout):
        return
    left = _noted(folder).marks.values()
    _send(folder, pid, signal.SIGKILL)
    processes.has_ended(pid, timeout)
    for mark in filter(None, left):
        one = int(mark.split(":")[1])
        if processes.is_alive(mark) and not processes.has_ended(one, GRACE) and processes.is_alive(mark):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    for name in ("ready", "services.json"):
        (folder / name).unlink(missing_ok=True)


def _send(folder: Path, pid: int, number: signal.Signals) -> None:
    """Signal the supervisor, if it is still this process: its number cannot become another's meanwhile."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if holder(folder) == pid:
            signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def status(folder: Path) -> LabStatus:
    """What runs of the services that were started in this folder."""
    said = _noted(folder)
    supervisor = holder(folder)
    if supervisor is None and not said.processes:
        return LabStatus(False, "", {}, ())
    living = {name for name, mark in said.marks.items() if mark and processes.is_alive(mark)}
    alive = {name: pid for name, pid in said.processes.items() if name in living}
    if supervisor is None:
        return LabStatus(False, said.coordinator, alive, tuple(said.processes) if alive else ())
    alive["supervisor"] = supervisor
    wanted = ("supervisor", *said.processes)
    silent = {name: age for name in alive if (age := _silence(folder, name)) > SILENCE_SHOWN}
    hosts = [host_state.read(folder, name) or HostState(name, "") for name in host_state.names(folder)]
    return LabStatus(set(wanted) <= set(alive), said.coordinator, alive, wanted, silent, tuple(hosts))


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the supervisor wrote of its services; see :mod:`lab.grid.supervisor`."""

    coordinator: str
    processes: Mapping[str, int]
    marks: Mapping[str, str | None]


def _noted(folder: Path) -> _Noted:
    try:
        return shape.read(_Noted, (folder / "services.json").read_bytes())
    except (OSError, ValueError):
        return _Noted("", {}, {})


def _silence(folder: Path, name: str) -> float:
    """Seconds since a service's last sign of life; 0 for one that gives none."""
    try:
        return max(0.0, time.time() - (folder / SIGNS / name).stat().st_mtime)
    except OSError:
        return 0.0


def ports_in_use(lab: Lab) -> list[str]:
    """Which of the ports that the services need are taken, with what each is for."""
    wanted = [(int(lab.coordinator.rsplit(":", 1)[1]), "labgrid coordinator")]
    for board in lab.boards.values():
        wanted += [
            (board.console.serve_port, f"{board.name} console"),
            (board.console.lines_port, f"{board.name} lines"),
        ]
    return [f"{port} ({what})" for port, what in wanted if processes.port_is_taken(port)]


def copied_inventory(folder: Path) -> Lab:
    """The inventory as it was when the lab was brought up. The files that it names are where they were.

    :raises UsageError: it is not there, or wrong.
    """
    lab, here = inventory.load(folder / _COPY), f"{folder.resolve()}/"
    there = f"{yaml.safe_load((folder / _COPIED_FROM).read_text(encoding='utf-8'))}/"
    boards = {
        name: replace(board, bmc=replace(board.bmc, ca_file=board.bmc.ca_file.replace(here, there, 1)))
        for name, board in lab.boards.items()
    }
    return replace(lab, boards=boards)


# -- what labgrid and the recorders read ---------------------------------------------------------------------


def write_files(lab: Lab, folder: Path) -> None:
    """Write what labgrid, the recorders and people's shells read; a file a board where each has its own.

    ``env.yaml`` has all boards and is for :mod:`lab.grid.session`. labgrid's own client would acquire all of them: it
    gets a file a board (:mod:`lab.grid.labgrid_client`).
    """
    boards = list(lab.boards.values())
    _dump(
        folder / "exporter.yaml", {board.name: exported(board) | _socket(board, folder) for board in lab.boards_at("")}
    )
    _dump(folder / "places.yaml", {board.name: _place(lab, board) for board in boards})
    (folder / "xenlab_drivers.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(paths.PYTHON)!r})\nfrom lab.grid import drivers  # noqa\n",
        encoding="utf-8",
    )
    _dump(folder / "env.yaml", _environment(lab, folder, boards))
    own = folder / "env"
    own.mkdir(exist_ok=True)
    for board in boards:
        _dump(own / f"{board.name}.yaml", _environment(lab, folder, [board]))
    _write_shell_files(lab, folder)
    _write_netboot(lab, folder)
    shutil.copyfile(lab.path, folder / _COPY)  # as it is now: what it becomes is for the next start
    _dump(folder / _COPIED_FROM, str(lab.path.resolve().parent))
    consoles = folder / "console"
    consoles.mkdir(exist_ok=True)
    for file in consoles.glob("*.recorder.json"):  # of boards that are no more
        file.unlink()
    for board in boards:
        config = RecorderConfig(board.name, board.console, board.console_bmc, consoles, group=lab.group)
        if board.at:
            config = replace(config, host=board.at.name, reached_in=hosts.folder(board.at))
        config.write(recorder_config(folder, board.name))
    _write_links(lab, folder)


def _write_netboot(lab: Lab, folder: Path) -> None:
    """What answers machines that boot by network: here, and those of each host, whose requests come through SSH."""
    for file in folder.glob(f"{NETBOOT}*.yaml"):
        file.unlink()
    machines = [board for board in lab.network_booted() if not board.virtual]  # a virtual one has a network of its own
    program, served = [sys.executable, "-P", "-m"], str(netboot.folder(lab))
    if lab.netboot and any(not board.at for board in machines):
        words = ["lab.netboot.server", served, lab.netboot.server, str(netboot.PORT)]
        _dump(folder / f"{NETBOOT}.yaml", [*program, *words])
    for host in {board.at.name: board.at for board in machines if board.at}.values():
        words = ["lab.netboot.relay", str(hosts.folder(host) / NETBOOT), served, host.name]
        _dump(folder / f"{NETBOOT}-{host.name}.yaml", [*program, *words])


def _write_links(lab: Lab, folder: Path) -> None:
    """What the connection to each host is told, and what the host is told, which no other user may read."""
    shutil.rmtree(folder / away.FOLDER, ignore_errors=True)  # of a lab that was cut off
    place = folder / host_state.FOLDER
    place.mkdir(mode=0o700, exist_ok=True)
    for file in place.iterdir():
        file.unlink()
    for host in lab.hosts.values():
        boards = lab.boards_at(host.name)
        if not boards:
            continue
        path = place / f"{host.name}.orders.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as output:
            output.write(host_lines.encoded(_orders(lab, host.name, boards, folder)))
        has_netboot = any(board.boot == "network" for board in boards)
        Link(host, tuple(board.name for board in boards), lab.coordinator, path, has_netboot).write(folder)
    for file in folder.glob("*.wire.json"):
        file.unlink()
    for one in wire.wires(lab):
        one.write(folder)


def _orders(lab: Lab, host: str, boards: Sequence[BoardSpec], folder: Path) -> Orders:
    seeds = {board.name: folder / "boards" / board.name / "seed.tar" for board in boards if board.virtual}
    ends = {board.name: pair[pair[0] is board] for pair in lab.pairs() for board in pair}
    peers = {board.name: ends[board.name].virtual for board in boards if board.name in ends}
    return Orders(
        lab=lab.name,
        host=host,
        boards=tuple(replace(board, at=None) for board in boards),
        exported=yaml.safe_dump({board.name: exported(board) for board in boards}, sort_keys=False),
        certificates={one.name: Path(one.bmc.ca_file).read_text() for one in boards if one.bmc.ca_file},
        seeds={name: base64.b64encode(file.read_bytes()).decode() for name, file in seeds.items()},
        peers={name: peer.link_port for name, peer in peers.items() if peer},
        netboot=_netboot(lab, boards),
    )


def _netboot(lab: Lab, boards: Sequence[BoardSpec]) -> Netboot | None:
    """What a host with these boards needs to have them boot by network."""
    network = next((lab.netboot_of(board) for board in boards if board.boot == "network"), None)
    if network is None:
        return None
    files = {name: netboot.folder(lab) / "tftp" / name for name in netboot.GRUBS}
    return Netboot(network, {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()})


def recorder_config(folder: Path, board: str) -> Path:
    return folder / "console" / f"{board}.recorder.json"


def exported(board: BoardSpec) -> dict[str, dict[str, object]]:
    """A board's resources as labgrid's exporter takes them. No secret: everything here is shown to every client."""
    spec, power = asdict(board.bmc), dict[str, dict[str, object]]()
    if board.bmc.protocol in BMC_RESOURCES:
        keys = ["host", "port", "credential", *BMC_KEYS[board.bmc.protocol]]
        keys += ["firmware"] if board.bmc.protocol == "ipmi" else []
        power[BMC_RESOURCES[board.bmc.protocol]] = {name: spec[name] for name in keys if spec[name] is not None}
    if pdu := board.pdu:
        power["NetworkPowerPort"] = {"model": pdu.model, "host": pdu.host, "index": str(pdu.outlet)}
    return {
        **power,
        "NetworkSerialPort": {
            "host": HOST,
            "port": board.console.serve_port,
            "speed": board.console.speed,
            "protocol": "raw",
        },
        "ConsoleRecorder": {
            "host": HOST,
            "owner": os.geteuid(),
            "serve_port": board.console.serve_port,
            "lines_port": board.console.lines_port,
        },
        "NetworkService": {"address": board.ssh_host, "username": board.ssh_user, "port": board.ssh_port},
        "SleepState": {"via": "bmc"},
    }


def _socket(board: BoardSpec, folder: Path) -> dict[str, dict[str, object]]:
    """What a board offers beside, if it has a socket of its own."""
    return {"BoardSocket": {"path": str(folder / "boards" / board.name / "control.sock")}} if board.has_socket else {}


def _place(lab: Lab, board: BoardSpec) -> dict[str, object]:
    # The shape of labgrid.remote.common.Place.asdict(), which the coordinator reads at its start.
    tags = {**board.tags, "lab": lab.name, MADE_BY: XENLAB, **dict.fromkeys(board.capabilities, "yes")}
    if board.link:
        tags["link"] = board.link
    match = {"exporter": "*", "group": board.name, "cls": "*", "name": None, "rename": None}
    now = time.time()
    return {
        "aliases": [],
        "comment": f"{board.tags.get('class', 'board')} of {lab.path.name}",
        "tags": tags,
        "matches": [match],
        "created": now,
        "changed": now,
    }


def _environment(lab: Lab, folder: Path, boards: Sequence[BoardSpec]) -> dict[str, object]:
    """labgrid's environment file of these boards."""
    return {
        "targets": {board.name: _target(lab, board) for board in boards},
        "options": {"coordinator_address": lab.coordinator},
        "imports": [str(folder / "xenlab_drivers.py")],
    }


def _write_shell_files(lab: Lab, folder: Path) -> None:
    """``env.sh``, for a shell to read, and the ``labgrid-client`` that is then first on its path."""
    python, programs = Path(sys.executable), folder / "bin"
    programs.mkdir(exist_ok=True)
    command = [str(python), "-P", "-m", "lab.grid.labgrid_client", str(folder / "env")]
    client = programs / "labgrid-client"
    client.write_text(
        "#!/bin/sh\n"
        f'PYTHONPATH={shlex.quote(str(paths.CHECKOUT))}${{PYTHONPATH:+:$PYTHONPATH}} exec {shlex.join(command)} "$@"\n',
        encoding="utf-8",
    )
    client.chmod(0o755)
    path = ":".join(shlex.quote(str(one)) for one in (programs, python.parent))
    lines = [
        f"export LG_COORDINATOR={shlex.quote(lab.coordinator)}",
        "unset LG_ENV  # of another lab, or of all boards: labgrid-client would acquire each board in it",
        f"export PATH={path}:$PATH",
    ]
    (folder / "env.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _target(lab: Lab, board: BoardSpec) -> dict[str, object]:
    at = {"at": asdict(replace(board.at, netboot=None))} if board.at else {}
    return {
        "resources": {"RemotePlace": {"name": board.name}},
        "drivers": {
            **({"OutletDriver": {}} if board.pdu else {}),
            "BmcDriver": at,
            "RecordedConsoleDriver": {},
            "SerialDriver": {},
            "Dom0Driver": at,
            **({"SavedStatesDriver": {}} if board.has_states else {}),
            **({"StealTimeDriver": {}} if board.has_socket else {}),
            **({"ProfileDriver": {}} if board.has_socket and board.is_counted else {}),
            "XenStrategy": {
                "served": str(netboot.home(lab, board)) if board.boot == "network" else "",
                "baseline": str(directory(lab) / "iommu-faults" / f"{board.name}.json"),
            },
        },
    }


def _dump(path: Path, content: object) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def holder(folder: Path) -> int | None:
    """The lab's supervisor, as the kernel knows it."""
    return processes.holder_of(folder / LOCK)
