"""dom0 over SSH: OpenSSH with one multiplexed connection a board, since under emulation each handshake is dear."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths, processes
from lab.base.errors import BoardUnreachable, CommandFailed, CommandOverdue, WaitTimeout
from lab.base.wait import wait_until
from lab.grid import hosts
from lab.grid.host_lines import await_link
from lab.inventory import HostSpec

log = logging.getLogger(__name__)

ALIVE = ("ServerAliveInterval=5", "ServerAliveCountMax=4")  # a lost board is noticed after 20 s
LOST = 255  # ssh's own exit status for a connection that failed
LATE = 9  # exit status of a script that waits by `until` in vain


def options(at: HostSpec | None = None) -> list[str]:
    """Options for every ssh to a board: our key and pinned host keys only, never a question.

    ``at`` is the host that the board is at, whose ssh leads there; None: the board is reached from here.
    """
    words = [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        f"IdentityFile={paths.ssh_key()}",
        "UserKnownHostsFile=" + " ".join(f'"{path}"' for path in paths.known_hosts()),
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "PreferredAuthentications=publickey",
        "LogLevel=ERROR",
        "KexAlgorithms=^curve25519-sha256",  # the default post-quantum exchange takes 0.3 s longer under emulation
        *ALIVE,
        *([f"ProxyCommand={hosts.way(at)}"] if at else []),
    ]
    return ["-F", "none", *(part for word in words for part in ("-o", word))]


def until(condition: str, timeout: float, *, interval: float = 0.2) -> str:
    """Shell commands that wait until ``condition`` (a command) has status 0; the shell exits with :data:`LATE` if not.

    The board itself does the waiting, so that a slow one is not asked over and over. The limit is counted by the
    board's uptime, in whole seconds and rounded up. Nothing but ``sleep`` is started for it.
    """
    now = "read -r now _ < /proc/uptime"
    return (
        f"{now}; end=$(( ${{now%.*}} + {int(timeout) + 1} )); until {condition}; do "
        f"{now}; [ ${{now%.*}} -lt $end ] || exit {LATE}; sleep {interval}; done"
    )


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command on a board ended."""

    command: str
    status: int
    stdout: str
    stderr: str
    seconds: float


class Ssh:
    """The connection to one dom0."""

    _generations = itertools.count()

    def __init__(self, board: str, host: str, port: int, user: str, at: HostSpec | None = None) -> None:
        self.board, self._host, self._port, self._user, self._at = board, host, port, user, at
        self._control: Path | None = None

    def run(
        self,
        command: str,
        *,
        timeout: float = 60.0,
        check: bool = True,
        input: bytes | None = None,
        connect_timeout: float = 15.0,
        keep: bool = False,
    ) -> CommandResult:
        """Run one command line in dom0's shell; ended there too after ``timeout`` seconds.

        ``keep``: use the connection again even if the command is not done in time, unless it printed nothing.

        :raises CommandFailed: its status is not 0, and ``check``.
        :raises BoardUnreachable: no connection, or it was lost.
        :raises WaitTimeout: not done in time; :class:`CommandOverdue` if dom0 says so.
        """
        started = time.monotonic()
        remote = f"timeout -k 3 {timeout + 1:.0f} sh -c {shlex.quote(command)}"
        argv = [
            "ssh",
            *self._words(connect_timeout),
            "-p",
            str(self._port),
            f"{self._user}@{self._host}",
            "--",
            remote,
        ]
        try:
            done = subprocess.run(
                argv,
                input=input,
                stdin=None if input is not None else subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout + connect_timeout,
                env=processes.environment(processes.NETWORK),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"")[-300:].decode(errors="replace")
            if not (keep and said):
                self.close()
            raise WaitTimeout(f"{self.board}: `{_short(command)}`", timeout, said or None, board=self.board) from None
        result = CommandResult(
            command,
            done.returncode,
            done.stdout.decode(errors="backslashreplace"),
            done.stderr.decode(errors="backslashreplace"),
            time.monotonic() - started,
        )
        log.debug("%s: %s -> %d in %.2f s", self.board, _short(command), result.status, result.seconds)
        if result.status == LOST:
            self.close()
            reasons = result.stderr.strip().splitlines()  # the last line has the reason, if there is one
            why = f": {reasons[-1].strip()}" if reasons else ""
            raise self._unreachable(f"dom0 does not answer over SSH at {self._host}:{self._port}{why}")
        if result.status in (124, 137) and result.seconds > timeout:
            said = (result.stdout + result.stderr)[-300:]
            raise CommandOverdue(f"{self.board}: `{_short(command)}`", timeout, said or None, board=self.board)
        if check and result.status:
            raise CommandFailed(self.board, _short(command), result.status, result.stderr or result.stdout)
        return result

    def put(self, local: Path, remote: str, *, timeout: float = 300.0) -> None:
        """Copy a file onto the board. :raises CommandFailed: / :raises BoardUnreachable:"""
        self._copy([str(local), f"{self._user}@{self._host}:{remote}"], timeout)

    def get(self, remote: str, local: Path, *, timeout: float = 300.0) -> None:
        """Copy a file from the board. :raises CommandFailed: / :raises BoardUnreachable:"""
        self._copy([f"{self._user}@{self._host}:{remote}", str(local)], timeout)

    def _copy(self, ends: list[str], timeout: float) -> None:
        words = shlex.join(["ssh", *self._words(15.0), "-p", str(self._port)])
        argv = ["rsync", "-s", "--inplace", "-e", words, *ends]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=processes.environment(processes.NETWORK),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WaitTimeout(f"{self.board}: copy {' to '.join(ends)}", timeout, board=self.board) from None
        if done.returncode in (LOST, 12, 30):
            raise self._unreachable(f"connection lost while copying: {done.stderr.strip()[-200:]}")
        if done.returncode:
            raise CommandFailed(self.board, f"rsync {' '.join(ends)}", done.returncode, done.stderr)

    def _unreachable(self, what: str) -> BoardUnreachable:
        """What is said of a lost connection: if the board's host is away, the board has nothing to do with it."""
        if self._at:
            await_link(self._at)
            if not hosts.control(self._at).exists():
                what += f" (its host {self._at.name} is away)"
        return BoardUnreachable(self.board, what)

    def is_reachable(self, timeout: float = 5.0) -> bool:
        """Whether dom0 runs a command within about ``timeout`` seconds."""
        try:
            return self.run("true", timeout=timeout, connect_timeout=timeout, check=False).status == 0
        except (BoardUnreachable, WaitTimeout):
            return False

    def sleeps(self, timeout: float = 15.0) -> bool | None:
        """Whether a short sleep in dom0 ends within ``timeout`` seconds; None: dom0 does not answer.

        With dead timers it never ends. Such a dom0 lets nobody log in any more, so the connection is kept.
        """
        try:
            command = "echo answers; sleep 0.2"
            return self.run(command, timeout=timeout, connect_timeout=5.0, check=False, keep=True).status == 0
        except WaitTimeout as error:
            return False if error.last else None
        except BoardUnreachable:
            return None

    def close(self) -> None:
        """End the shared connection; the next command makes a new one."""
        control, self._control = self._control, None
        if control is not None and control.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["ssh", "-F", "none", "-q", "-o", f"ControlPath={control}", "-O", "exit", "board"],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=5,
                    env=processes.environment(),
                    check=False,
                )
            control.unlink(missing_ok=True)  # one that hangs is left to its own keepalive

    def _words(self, connect_timeout: float) -> list[str]:
        if self._control is None:
            folder = paths.runtime()  # not in the state folder: a Unix socket's path has room for 107 characters
            self._control = folder / f"{os.getpid()}-{next(self._generations)}"
        multiplex = (f"ControlPath={self._control}", "ControlMaster=auto", "ControlPersist=120")
        words = (*multiplex, f"ConnectTimeout={max(1, round(connect_timeout))}")
        return [*options(self._at), *(part for word in words for part in ("-o", word))]


class Job:
    """A command that runs on in dom0 without a connection."""

    def __init__(self, ssh: Ssh, folder: str) -> None:
        self._ssh, self._folder = ssh, folder

    @classmethod
    def start(cls, ssh: Ssh, command: str) -> Job:
        """Start it; its output, pid and exit status are kept in a folder of its own on the board."""
        script = (
            "d=$(mktemp -d /run/xenlab/job-XXXXXX) && cd $d && "
            f"printf %s {shlex.quote(command)} > command && "
            "{ setsid sh -c 'echo $$ > pid; sh ./command > output 2>&1 < /dev/null; echo $? > status' "
            "> /dev/null 2>&1 < /dev/null & } && echo $d"
        )
        return cls(ssh, ssh.run(f"mkdir -p /run/xenlab && {script}").stdout.strip())

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        text = self._ssh.run(f"cat {self._folder}/status 2>/dev/null || true").stdout.strip()
        return int(text) if text else None

    def wait(self, timeout: float) -> int:
        """Its exit status.

        :raises WaitTimeout: still running after ``timeout`` seconds; carries the end of its output.
        """
        status = f"{self._folder}/status"
        script = f"{until(f'[ -s {status} ]', timeout)}; cat {status}"
        done = self._ssh.run(script, timeout=timeout + 30, check=False)
        if done.status == LATE:
            raise WaitTimeout(f"{self._ssh.board}: job", timeout, self.output()[-400:], board=self._ssh.board)
        return int(done.stdout)

    def output(self) -> str:
        """What it has printed so far, both streams."""
        return self._ssh.run(f"cat {self._folder}/output 2>/dev/null || true").stdout

    def kill(self, signal: str = "KILL") -> None:
        """Signal the whole session of it."""
        self._ssh.run(f"pkill -{signal} -s $(cat {self._folder}/pid) || true")

    def clean(self) -> None:
        """Remove what it left on the board."""
        self._ssh.run(f"rm -rf {self._folder}", check=False)


def wait_reachable(ssh: Ssh, timeout: float) -> None:
    """:raises WaitTimeout: dom0 did not answer in time."""
    wait_until(
        lambda: ssh.is_reachable(3.0), timeout, f"{ssh.board}: dom0 answers over SSH", interval=1.0, board=ssh.board
    )


def _short(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 120 else line[:117] + "..."
