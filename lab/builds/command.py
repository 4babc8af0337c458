"""External commands: bounded in time, logged, ended as a group, their output in the error."""

from __future__ import annotations

import collections
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.base import processes
from lab.base.errors import BenchError

_TELLING = re.compile(r"\berror\b|\*\*\*|^E: |^fatal: |undefined reference", re.IGNORECASE)


class CommandError(BenchError):
    """A command on this machine failed; ``ended`` is False when it was cut off, and may have left a mess."""

    def __init__(self, message: str, *, ended: bool) -> None:
        super().__init__(message)
        self.ended = ended


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
        raise CommandError(f"{what}: not done after {timeout:.0f} s{_ending(output, log)}", ended=False)
    if status:
        raise CommandError(f"{what}: {command[0]} ended with status {status}{_ending(output, log)}", ended=status > 0)
    return "".join(output)


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


def _ending(output: Sequence[str], log: Path | None, count: int = 12) -> str:
    """The lines that name the error (with -j they need not be the last), the last lines, the log's path."""
    last = [line.rstrip() for line in output[-count:]]
    telling = collections.OrderedDict.fromkeys(
        line.rstrip() for line in output[:-count] if _TELLING.search(line)
    )  # ordered, each once
    lines = [*list(telling)[:4], *last]
    return "".join(f"\n  {line}" for line in lines) + (f"\nlog: {log}" if log else "")
