"""``python -m lab.grid.supervisor DIRECTORY [OWNER]``: keeps the services of a lab running.

A service that ends is started again (labgrid's exporter ends with status 100 when it loses its coordinator), and so is
one that hangs (:mod:`lab.grid.service`). The supervisor ends itself, and all services, on SIGTERM or when its owner is
gone; ``OWNER`` is that process's :func:`lab.base.processes.mark`.

There is one supervisor a lab: it holds the lock on ``supervisor.lock`` for its whole life, and the kernel says who that
is. A disk that is full ends neither it nor a service: what cannot be written is said once and tried again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import yaml

from lab.base import processes
from lab.grid import host_files, host_state, wire
from lab.grid.host_lines import NETBOOT
from lab.grid.service import SIGNS, Service

log = logging.getLogger("supervisor")

LOCK = "supervisor.lock"
WAIT = "wait"  # while it is there, no service is started yet
INTERVAL = 0.5  # seconds between two looks at the services; a fifth of it until all are up
PAUSE = 5.0  # seconds between two looks after which it was the supervisor that did not run
OURS = (processes.PYTHON,)
SPEAKS_TO_BMCS = (processes.PYTHON, processes.NETWORK, processes.CREDENTIALS)


def services(directory: Path) -> list[Service]:
    """What there is to run, from the files in ``directory``. A host has recorders, an exporter and a relay at most."""
    address, at_host = _coordinator(directory), host_files.read(directory)
    labgrid = [sys.executable, "-P", "-m", "lab.grid.labgrid_service"]
    found = [] if at_host else [Service("coordinator", [*labgrid, "coordinator", "-l", address], directory, OURS)]
    for config in sorted((directory / "console").glob("*.recorder.json")):
        board = config.name.removesuffix(".recorder.json")
        kind = "mirror" if json.loads(config.read_bytes())["host"] else "recorder"
        command = [sys.executable, "-P", "-m", f"lab.console.{kind}", "--config", str(config)]
        found.append(Service(f"recorder-{board}", command, directory, SPEAKS_TO_BMCS))
    for file in sorted(directory.glob(f"{NETBOOT}*.yaml")):
        found.append(Service(file.stem, yaml.safe_load(file.read_text(encoding="utf-8")), directory, OURS))
    name = f"xenlab-{at_host.host}" if at_host else "xenlab"
    words = ["-c", address, "--name", name, "--hostname", "127.0.0.1", "exporter.yaml"]
    found.append(Service("exporter", [*labgrid, "exporter", *words], directory, OURS))
    if at_host:
        return found
    for host in host_state.names(directory):
        link = [sys.executable, "-P", "-m", "lab.grid.host_link", str(directory), host]
        found.append(Service(f"host-{host}", link, directory, SPEAKS_TO_BMCS))
    for cable in wire.names(directory):
        words = [sys.executable, "-P", "-m", "lab.grid.wire", str(directory), cable]
        found.append(Service(f"wire-{cable}", words, directory, SPEAKS_TO_BMCS))
    reaper = [sys.executable, "-P", "-m", "lab.grid.reaper", str(directory)]
    found.append(Service("reaper", reaper, directory, SPEAKS_TO_BMCS))
    return found


def main() -> int:
    directory = Path(sys.argv[1])
    owner = sys.argv[2] if len(sys.argv) > 2 else None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.raiseExceptions = False  # a log that cannot be written to is no reason to say more
    if not processes.hold_for_life(directory / LOCK):
        sys.stdout.write(f"the lab in {directory} is up already\n")
        return 2
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    for file in (directory / "console").glob("*.ready"):
        file.unlink()
    host_state.forget(directory)
    (directory / SIGNS).mkdir(exist_ok=True)
    kept = services(directory)
    try:
        return _supervise(directory, kept, owner, ending)
    finally:
        for service in reversed(kept):
            if service.process and service.process.poll() is None:
                service.process.terminate()
        for service in reversed(kept):
            service.end()
        for name in ("ready", "services.json"):
            (directory / name).unlink(missing_ok=True)


def _supervise(directory: Path, kept: list[Service], owner: str | None, ending: threading.Event) -> int:
    """Until it is told to end: the exit status."""
    while (directory / WAIT).exists() and not ending.wait(INTERVAL / 10):
        if (owner is not None and not processes.is_alive(owner)) or host_files.is_forgotten(directory):
            return 0
    notes, ready, looked = Notes(directory, kept), False, time.monotonic()
    while not ending.is_set():
        now = time.monotonic()
        if now - looked > PAUSE:
            for service in kept:
                service.forgive()
        looked = now
        for service in kept:
            notes.are_due |= service.keep()
        notes.write()
        if not ready and _is_ready(directory, kept):
            ready = notes.is_written(directory / "ready")
        if not ready and (failing := [service for service in kept if service.is_failing]):
            sys.stdout.write(f"{failing[0].name} does not start: {_last_words(directory, failing[0])}\n")
            return 1
        if owner is not None and not processes.is_alive(owner):
            log.info("the owner (%s) is gone", owner)
            return 0
        if host_files.is_forgotten(directory):
            log.info("no lab has asked for this for %.0f h", host_files.LINGER / 3600)
            return 0
        ending.wait(INTERVAL if ready else INTERVAL / 5)
    return 0


class Notes:
    """What the supervisor writes for others: which processes there are. Tried again until there is room for it."""

    def __init__(self, directory: Path, kept: list[Service]) -> None:
        self._directory, self._kept = directory, kept
        self._told: str | None = None
        self.are_due = False

    def write(self) -> None:
        if self.are_due and not (trouble := self._try()):
            self.are_due, self._told = False, None
        elif self.are_due and trouble != self._told:
            self._told = trouble
            log.warning("%s: %s; tried again until it can be written", self._directory, trouble)

    def is_written(self, path: Path) -> bool:
        """Make an empty file; whether it could be."""
        try:
            path.touch()
        except OSError:
            return False
        return True

    def _try(self) -> str | None:
        try:
            _write_state(self._directory, self._kept)
        except OSError as error:
            return error.strerror or str(error)
        return None


def _last_words(directory: Path, service: Service) -> str:
    try:
        return (directory / f"{service.name}.log").read_text(errors="replace").strip()[-600:]
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"


def _is_ready(directory: Path, kept: list[Service]) -> bool:
    boards = [service.name.removeprefix("recorder-") for service in kept if service.name.startswith("recorder-")]
    if not all((directory / "console" / f"{board}.ready").exists() for board in boards):
        return False
    served = [Path(service.command[-3]) for service in kept if service.name == NETBOOT]
    if served:
        from lab.netboot import SERVING  # with all that reads an inventory, which a supervisor does without

        if not all((folder / SERVING).exists() for folder in served):
            return False
    if not all(host_state.read(directory, host) for host in host_state.names(directory)):
        return False
    if not all(service.process for service in kept):
        return False
    return host_files.read(directory) is not None or processes.is_listening(_coordinator(directory))


def _coordinator(directory: Path) -> str:
    if at_host := host_files.read(directory):
        return at_host.coordinator
    environment = yaml.safe_load((directory / "env.yaml").read_text(encoding="utf-8"))
    return str(environment["options"]["coordinator_address"])


def _write_state(directory: Path, kept: list[Service]) -> None:
    state = {
        "coordinator": _coordinator(directory),
        "processes": {service.name: service.process.pid if service.process else 0 for service in kept},
        "marks": {service.name: service.mark for service in kept},
    }
    temporary = directory / "services.json.new"
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, directory / "services.json")


if __name__ == "__main__":
    sys.exit(main())
