"""External commands: bounded in time, logged, ended as a group, their output in the error."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.base import paths, processes
from lab.base.errors import BenchError

_TELLING = re.compile(r"\berror\b|\*\*\*|^E: |^fatal: |undefined reference|^\d+ out of \d+ hunks? ", re.IGNORECASE)
_ROOM = 1 << 20  # bytes; with less, whatever fails may have failed for that
_TELLING_LINES, _LAST_LINES = 4, 12  # of a command's output, in an error


class CommandError(BenchError):
    """A command on this machine failed.

    ``what`` is the first line of the message. ``ended`` is False when the command was cut off, and may have left a
    mess. ``status`` is its exit status, None when it was not run or cut off. ``output`` is all that it printed, ``log``
    the file that has it too.
    """

    def __init__(
        self,
        what: str,
        *,
        ended: bool,
        status: int | None = None,
        output: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.what, self.ended, self.status, self.output, self.log = what, ended, status, tuple(output), log
        more = "".join(f"\n  {line}" for line in self.lines) + (f"\nlog: {log}" if log else "")
        super().__init__(f"{what}{more}")

    @property
    def cause(self) -> str | None:
        """The first line that names an error."""
        return next((line.strip() for line in self.output if _TELLING.search(line)), None)

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that name the error (with -j they need not be the last), and the last lines."""
        last = [line.rstrip() for line in self.output[-_LAST_LINES:]]
        earlier = (line.rstrip() for line in self.output[:-_LAST_LINES] if _TELLING.search(line))
        return (*list(dict.fromkeys(earlier))[:_TELLING_LINES], *last)


def run(
    command: Sequence[str],
    *,
    timeout: float,
    log: Path | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    needs: Sequence[str] = (),
    keep: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
    what: str = "",
) -> str:
    """Run ``command`` and give its output (stdout and stderr as they came).

    It gets a process group of its own, which is ended when the caller is interrupted or ``timeout`` seconds
    are over. Of this process's environment it gets what :func:`lab.base.processes.environment` gives for ``needs``;
    ``environment`` is added to that. ``log`` is appended to. ``keep`` are file descriptors the children inherit
    (locks). ``what`` begins the error message.

    :raises CommandError: a status other than 0, or too late; carries the telling lines and the log path.
    """
    text = shlex.join(command)
    what = what or text
    output: list[str] = []
    late = threading.Event()
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=processes.environment(needs) | {"LC_ALL": "C.UTF-8"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(keep),
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CommandError(f"{what}: cannot run {command[0]}: {error.strerror}", ended=True) from None

    def cut() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(timeout, cut)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        with open(log or os.devnull, "a", encoding="utf-8") as file:
            file.write(f"$ {text}\n")
            for line in process.stdout:
                file.write(line)
                output.append(line)
                if on_line:
                    on_line(line)
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            _end(process)
        process.stdout.close()
    if late.is_set():
        raise CommandError(f"{what}: not done after {timeout:.0f} s", ended=False, output=output, log=log)
    if status:
        what = f"{what}: {command[0]} ended with status {status}{_no_room()}"
        raise CommandError(what, ended=status > 0, status=status, output=output, log=log)
    return "".join(output)


def _no_room() -> str:
    """Whether the disk of the caches is full, for an error: not every program says why it could not write."""
    free = shutil.disk_usage(paths.cache()).free
    return f"; no space left: {free >> 10} KiB are free in {paths.cache()}" if free < _ROOM else ""


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the whole group, SIGKILL 5 s later: make deletes a half-made target on the former."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return
