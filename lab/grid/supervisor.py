"""``python -m lab.grid.supervisor DIRECTORY [OWNER-PID]``: keeps the services of a lab running.

What ends is started again (labgrid's exporter ends with status 100 when it loses its coordinator). Ends itself, and
all of them, on SIGTERM or when its owner is gone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from lab.netboot import SERVING

log = logging.getLogger("supervisor")

BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a start is tried again
STEADY = 30.0  # who lived so long starts anew at the short end
NETBOOT_COMMAND = "netboot.yaml"  # there if machines boot by network: the argv of what serves them by HTTP
GRACE = 5.0  # seconds from SIGTERM to SIGKILL


class Service:
    """One process."""

    def __init__(self, name: str, command: list[str], mark: str, directory: Path) -> None:
        self.name, self.command, self.mark, self._directory = name, command, mark, directory
        self.process: subprocess.Popen[bytes] | None = None
        self._started, self._failures, self._not_before = 0.0, 0, 0.0

    def keep(self) -> bool:
        """Start it if it is not running; True when that changed anything."""
        if self.process and self.process.poll() is None:
            return False
        now = time.monotonic()
        if self.process:
            lived = now - self._started
            self._failures = 0 if lived > STEADY else self._failures + 1
            wait = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
            log.warning("%s ended with status %s; again in %.1f s", self.name, self.process.returncode, wait)
            self.process, self._not_before = None, now + wait
        if now < self._not_before:
            return False
        with open(self._directory / f"{self.name}.log", "ab") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
            )
        self._started = now
        return True

    @property
    def is_failing(self) -> bool:
        return self._failures >= 2 and self.process is None

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def services(directory: Path) -> list[Service]:
    """What there is to run, from the files in ``directory``."""
    binaries = Path(sys.executable).parent
    environment = yaml.safe_load((directory / "env.yaml").read_text(encoding="utf-8"))
    address = environment["options"]["coordinator_address"]
    coordinator = str(binaries / "labgrid-coordinator")
    exporter = str(binaries / "labgrid-exporter")
    found = [Service("coordinator", [coordinator, "-l", address], coordinator, directory)]
    for board in environment["targets"]:
        config = directory / "console" / f"{board}.recorder.json"
        command = [sys.executable, "-P", "-m", "lab.console.recorder", "--config", str(config)]
        found.append(Service(f"recorder-{board}", command, str(config), directory))
    if (directory / NETBOOT_COMMAND).exists():
        words = yaml.safe_load((directory / NETBOOT_COMMAND).read_text(encoding="utf-8"))
        found.append(Service("netboot", words, words[-3], directory))
    words = [exporter, "-c", address, "--name", "xenlab", "--hostname", "127.0.0.1", "exporter.yaml"]
    found.append(Service("exporter", words, exporter, directory))
    reaper = [sys.executable, "-P", "-m", "lab.grid.reaper", str(directory)]
    found.append(Service("reaper", reaper, f"lab.grid.reaper\0{directory}", directory))
    return found


def main() -> int:
    directory = Path(sys.argv[1])
    owner = int(sys.argv[2]) if len(sys.argv) > 2 else None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    (directory / "supervisor.pid").write_text(str(os.getpid()), encoding="ascii")
    for file in (directory / "console").glob("*.ready"):
        file.unlink()
    kept = services(directory)
    ending: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: ending.append(caught))
    ready = False
    status = 0
    try:
        while not ending:
            changed = [service.keep() for service in kept]
            if any(changed):
                _write_state(directory, kept)
            if not ready and _is_ready(directory, kept):
                (directory / "ready").touch()
                ready = True
            if not ready and (failing := [service for service in kept if service.is_failing]):
                tail = (directory / f"{failing[0].name}.log").read_text(errors="replace").strip()[-600:]
                sys.stdout.write(f"{failing[0].name} does not start: {tail}\n")
                status = 1
                break
            if owner is not None and not Path(f"/proc/{owner}").exists():
                log.info("the owner (pid %d) is gone", owner)
                break
            time.sleep(0.1 if not ready else 0.5)
    finally:
        for service in reversed(kept):
            if service.process and service.process.poll() is None:
                service.process.terminate()
        for service in reversed(kept):
            service.end()
        for name in ("ready", "services.json", "supervisor.pid"):
            (directory / name).unlink(missing_ok=True)
    return status


def _is_ready(directory: Path, kept: list[Service]) -> bool:
    boards = [service.name.removeprefix("recorder-") for service in kept if service.name.startswith("recorder-")]
    if not all((directory / "console" / f"{board}.ready").exists() for board in boards):
        return False
    served = [Path(service.mark) for service in kept if service.name == "netboot"]
    if not all((folder / SERVING).exists() for folder in served):
        return False
    environment = yaml.safe_load((directory / "env.yaml").read_text(encoding="utf-8"))
    host, _, port = environment["options"]["coordinator_address"].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def _write_state(directory: Path, kept: list[Service]) -> None:
    environment = yaml.safe_load((directory / "env.yaml").read_text(encoding="utf-8"))
    state = {
        "coordinator": environment["options"]["coordinator_address"],
        "processes": {service.name: service.process.pid if service.process else 0 for service in kept},
        "marks": {service.name: service.mark for service in kept},
    }
    temporary = directory / "services.json.new"
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, directory / "services.json")


if __name__ == "__main__":
    sys.exit(main())
