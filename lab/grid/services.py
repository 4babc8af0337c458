"""The services of a lab, generated from its inventory: labgrid's coordinator and exporter, and the console recorders.

They run under one supervisor (:mod:`lab.grid.supervisor`), all on loopback. Nothing here is a board's own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import netboot
from lab.base import paths
from lab.base import processes as machine
from lab.base.errors import BenchError, UsageError
from lab.base.loopback import check_group
from lab.base.wait import wait_until
from lab.console import HOST
from lab.console.config import RecorderConfig
from lab.grid.supervisor import NETBOOT_COMMAND
from lab.inventory import BMC_KEYS, BoardSpec, Lab

BMC_RESOURCES = {"ipmi": "IPMIPort", "redfish": "RedfishPort"}  # resources of a place (lab.grid.resources)
START_TIMEOUT = 40.0  # seconds; 4 s on an idle machine


@dataclass(frozen=True, slots=True)
class Status:
    """What runs of a lab's services."""

    is_up: bool
    coordinator: str
    processes: dict[str, int]  # name -> pid, of those alive
    wanted: tuple[str, ...]

    def __str__(self) -> str:
        if not self.wanted:
            return "not up"
        rows = [f"{name:<24} {self.processes.get(name, 'GONE')}" for name in self.wanted]
        return "\n".join([f"{'up' if self.is_up else 'NOT WHOLE'}, coordinator {self.coordinator}", *rows])


def directory(lab: Lab) -> Path:
    """Where a lab that is up keeps its configuration, pids and logs."""
    return paths.state() / "lab" / lab.name


def start(lab: Lab, folder: Path, *, detach: bool) -> None:
    """Write what the services are configured by, and start them; they end with this process unless ``detach``.

    :raises UsageError: a port is taken, or the lab's group does not exist here.
    :raises BenchError: a service did not come up; carries what it said.
    """
    if lab.group is not None:
        check_group(lab.group)
    folder.mkdir(parents=True, exist_ok=True)
    if taken := ports_in_use(lab):
        raise UsageError(f"port in use: {', '.join(taken)}; is another lab up? (`xenlab lab status`)")
    write_files(lab, folder)
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    with open(folder / "supervisor.log", "wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "lab.grid.supervisor",
                str(folder),
                *([] if detach else [str(os.getpid())]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=folder,
            env=paths.environment(),
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, START_TIMEOUT, f"services of lab {lab.name}")
    finally:
        if not ready.exists():
            stop(folder)
    if process.poll() is not None:
        said = (folder / "supervisor.log").read_text(errors="replace").strip()[-800:]
        raise BenchError(f"the services of lab {lab.name} did not come up: {said}")


def stop(folder: Path, *, timeout: float = 20.0) -> None:
    """End the services; no error when they are not up."""
    pid = _supervisor(folder)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    if not machine.has_ended(pid, timeout) and _supervisor(folder) == pid:
        os.kill(pid, signal.SIGKILL)
    (folder / "ready").unlink(missing_ok=True)


def status(folder: Path) -> Status:
    """What runs of the services that were started in this folder."""
    try:
        said = json.loads((folder / "services.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Status(False, "", {}, ())
    alive = {name: pid for name, pid in said["processes"].items() if _is(pid, said["marks"][name])}
    supervisor = _supervisor(folder)
    if supervisor is None:
        return Status(False, said["coordinator"], alive, tuple(said["processes"]) if alive else ())
    alive["supervisor"] = supervisor
    wanted = ("supervisor", *said["processes"])
    return Status(set(wanted) <= set(alive), said["coordinator"], alive, wanted)


def ports_in_use(lab: Lab) -> list[str]:
    """Which of the ports that the services need are taken, with what each is for."""
    wanted = [(int(lab.coordinator.rsplit(":", 1)[1]), "labgrid coordinator")]
    for board in lab.boards.values():
        wanted += [
            (board.console.serve_port, f"{board.name} console"),
            (board.console.lines_port, f"{board.name} lines"),
        ]
    return [f"{port} ({what})" for port, what in wanted if machine.port_is_taken(port)]


# -- what labgrid and the recorders read ---------------------------------------------------------------------


def write_files(lab: Lab, folder: Path) -> None:
    """exporter.yaml, places.yaml, env.yaml, env.sh, inventory.yaml, and a recorder configuration a board."""
    boards = list(lab.boards.values())
    _dump(folder / "exporter.yaml", {board.name: exported(board) for board in boards})
    _dump(folder / "places.yaml", {board.name: _place(lab, board) for board in boards})
    (folder / "xenlab_drivers.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(paths.CHECKOUT)!r})\nfrom lab.grid import drivers  # noqa\n",
        encoding="utf-8",
    )
    _dump(
        folder / "env.yaml",
        {
            "targets": {board.name: _target(lab, board) for board in boards},
            "options": {"coordinator_address": lab.coordinator},
            "imports": [str(folder / "xenlab_drivers.py")],
        },
    )
    words = {"LG_COORDINATOR": lab.coordinator, "LG_ENV": str(folder / "env.yaml")}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in words.items()]
    lines.append(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    (folder / "env.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    served = [board for board in lab.network_booted() if not board.virtual]  # a virtual one has a network of its own
    if lab.netboot and served:
        command = [sys.executable, "-P", "-m", "lab.netboot.server", str(netboot.folder(lab))]
        _dump(folder / NETBOOT_COMMAND, [*command, lab.netboot.server, str(netboot.PORT)])
    else:
        (folder / NETBOOT_COMMAND).unlink(missing_ok=True)
    shutil.copyfile(lab.path, folder / "inventory.yaml")  # as it is now: what it becomes is for the next start
    consoles = folder / "console"
    consoles.mkdir(exist_ok=True)
    for board in boards:
        config = RecorderConfig(
            board=board.name, console=board.console, bmc=board.bmc, directory=consoles, group=lab.group
        )
        config.write(recorder_config(folder, board.name))


def recorder_config(folder: Path, board: str) -> Path:
    return folder / "console" / f"{board}.recorder.json"


def exported(board: BoardSpec) -> dict[str, dict[str, Any]]:
    """A board's resources as labgrid's exporter takes them. No secret: everything here is shown to every client."""
    spec, power = asdict(board.bmc), dict[str, dict[str, Any]]()
    if board.bmc.protocol in BMC_RESOURCES:
        keys = ("host", "port", "credential", *BMC_KEYS[board.bmc.protocol])
        power[BMC_RESOURCES[board.bmc.protocol]] = {name: spec[name] for name in keys}
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


def _place(lab: Lab, board: BoardSpec) -> dict[str, Any]:
    # The shape of labgrid.remote.common.Place.asdict(), which the coordinator reads at its start.
    tags = {**board.tags, "lab": lab.name, **dict.fromkeys(board.capabilities, "yes")}
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


def _target(lab: Lab, board: BoardSpec) -> dict[str, Any]:
    return {
        "resources": {"RemotePlace": {"name": board.name}},
        "drivers": {
            **({"NetworkPowerDriver": {}} if board.pdu else {}),
            "BmcDriver": {},
            "RecordedConsoleDriver": {},
            "SerialDriver": {},
            "Dom0Driver": {},
            "XenStrategy": {"served": str(netboot.home(lab, board)) if board.boot == "network" else ""},
        },
    }


def _dump(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _supervisor(folder: Path) -> int | None:
    try:
        pid = int((folder / "supervisor.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if _is(pid, f"lab.grid.supervisor\0{folder}") else None


def _is(pid: int, mark: str) -> bool:
    """Whether the process is still the one that was started, by its command line."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
