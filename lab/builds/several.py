"""Makes several builds, two at a time, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from lab.base import processes
from lab.base.wait import wait_until
from lab.builds.recipes import recipe

AT_ONCE = 2  # one build uses all processors; a second one uses them while the first links or configures
LIMIT = 4 * 3600.0  # seconds for all
GRACE = 15.0  # seconds for one that is ended to end its compiler


def make_all(names: Sequence[str]) -> int:
    """Make each by ``xenlab build NAME``, whose output is passed through. Returns the gravest exit status.

    A build that fails does not stop the others. Recipes with the same source tree wait for each other.

    :raises UsageError: one of the recipes is wrong; nothing is made then.
    :raises WaitTimeout: not done after ``LIMIT`` seconds.
    """
    for name in names:
        recipe(name)
    todo, running, statuses = list(dict.fromkeys(names)), list[subprocess.Popen[bytes]](), [0]

    def is_done() -> bool:
        for process in [one for one in running if one.poll() is not None]:
            running.remove(process)
            statuses.append(process.returncode)
        while todo and len(running) < AT_ONCE:
            command = [sys.executable, "-P", "-m", "lab.cli", "build", todo.pop(0)]
            environment = processes.environment(processes.PYTHON, processes.NETWORK)
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment))
        return not running

    try:
        wait_until(is_done, LIMIT, "builds")
    finally:
        _end(running)
    return max(status if status >= 0 else 128 - status for status in statuses)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
