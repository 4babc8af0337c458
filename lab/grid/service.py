"""One service of a lab: a process that is started again when it ends, and when it gives no sign of life."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.base import processes

log = logging.getLogger("supervisor")

BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a start is tried again
STEADY = 30.0  # a service that lived so long starts anew at the short end
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
SILENCE = 60.0  # seconds without a sign of life after which a service is taken for hung; calls in it may take 15
STARTING = 300.0  # the same for a service that has given none yet, and has much to load on a busy machine
SIGNS = "alive"  # folder of the files whose times are the signs of life (lab.base.processes.give_sign_of_life)


class Service:
    """A process of the lab: ``needs`` is what it needs of the environment (:func:`lab.base.processes.environment`)."""

    def __init__(self, name: str, command: list[str], directory: Path, needs: Sequence[Sequence[str]] = ()) -> None:
        self.name, self.command, self._directory, self._needs = name, command, directory, needs
        self.process: subprocess.Popen[bytes] | None = None
        self.mark: str | None = None  # processes.mark of the process
        self._sign = directory / SIGNS / name
        self._started, self._failures, self._not_before = 0.0, 0, 0.0
        self._last_sign, self._sign_seen, self._is_watched = 0, 0.0, False
        self._told: str | None = None

    def keep(self) -> bool:
        """Start it if it is not running; True when that changed anything. Nothing is raised."""
        if self.process and self.process.poll() is None:
            self._watch()
            return False
        now = time.monotonic()
        if self.process:
            self._has_failed(now, f"ended with status {self.process.returncode}")
        if now < self._not_before:
            return False
        try:
            self.process = self._start()
            self.mark = processes.mark(self.process.pid)
        except OSError as error:
            self._has_failed(now, f"cannot be started: {error.strerror or error}")
            return False
        self._started = now
        return True

    @property
    def is_failing(self) -> bool:
        return self._failures >= 2 and self.process is None

    def end(self) -> None:
        """Wait for a process that was told to end, and kill it when it does not."""
        if self.process and self.process.poll() is None:
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def forgive(self) -> None:
        """Begin to wait for a sign of life anew: the supervisor itself did not run for a while."""
        self._sign_seen = time.monotonic()

    def _has_failed(self, now: float, what: str) -> None:
        lived = now - self._started
        self._failures = 0 if lived > STEADY and self.process else self._failures + 1
        wait = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        log.warning("%s %s; again in %.1f s", self.name, what, wait)
        self.process, self.mark, self._not_before = None, None, now + wait

    def _start(self) -> subprocess.Popen[bytes]:
        environment = processes.environment(*self._needs) | {processes.ALIVE: str(self._sign)}
        self._is_watched, self._sign_seen = False, time.monotonic()
        try:
            self._sign.touch()
            self._last_sign = self._sign.stat().st_mtime_ns
        except OSError as error:
            self._tell(f"{self._sign}: {error.strerror}: it is not seen whether {self.name} hangs")
        with open(self._log(), "ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env=environment,
            )

    def _log(self) -> Path:
        """The service's log; where it cannot be written, as on a full disk, what the service says is lost."""
        path = self._directory / f"{self.name}.log"
        try:
            with open(path, "ab"):
                return path
        except OSError as error:
            self._tell(f"{path}: {error.strerror}: what {self.name} says is lost")
            return Path(os.devnull)

    def _watch(self) -> None:
        """Kill a service that gives no sign of life any more, or has hung before its first one."""
        assert self.process
        now = time.monotonic()
        try:
            sign = self._sign.stat().st_mtime_ns
        except OSError:
            return
        if sign != self._last_sign:
            self._last_sign, self._sign_seen, self._is_watched = sign, now, True
        elif now - self._sign_seen > (SILENCE if self._is_watched else STARTING) and self._can_sign():
            log.warning("%s hangs: no sign of life for %.0f s; it is killed", self.name, now - self._sign_seen)
            self.process.kill()

    def _can_sign(self) -> bool:
        """Whether the file takes a sign: on a broken disk the silence says nothing about the service."""
        try:
            os.utime(self._sign, ns=(self._last_sign, self._last_sign))
        except OSError:
            return False
        return True

    def _tell(self, what: str) -> None:
        """Log what stays the same once."""
        if what != self._told:
            self._told = what
            log.warning("%s", what)
