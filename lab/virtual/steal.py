"""Steal time of an emulated board: its processors were ready to run, and the machine did other work.

Linux counts for each thread how long it ran and how long it waited for a processor (``/proc/PID/task/TID/schedstat``,
nanoseconds; Documentation/scheduler/sched-stats.rst). A board's threads wait for each other, too, where it has more
processors than the machine. That is no theft: at most what the board left of the machine was stolen from it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL = 2.0  # seconds between two looks
SHORTEST = 0.5  # a wait is counted when it is over, so a shorter time may have more of it than it is long


class StealClock:
    """Adds up what the threads of one process after another got, and what others took from them.

    ``process``: the number of the process that runs now; None: none does.
    """

    def __init__(self, process: Callable[[], int | None]) -> None:
        self._process = process
        self._seen: dict[str, tuple[int, int]] = {}
        self._looked = time.monotonic() - SHORTEST
        self.ran = self.stolen = 0.0  # seconds

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(INTERVAL)

    def look(self) -> tuple[float, float]:
        """Seconds of processor time that the board had, and that were stolen from it, until about now."""
        now = time.monotonic()
        if now - self._looked < SHORTEST:
            return self.ran, self.stolen
        threads = _threads(self._process())
        started = {thread: self._seen.get(thread, (0, 0)) for thread in threads}
        ran = sum(threads[one][0] - started[one][0] for one in threads) / 1e9
        waited = sum(threads[one][1] - started[one][1] for one in threads) / 1e9
        left = (now - self._looked) * len(os.sched_getaffinity(0)) - ran
        self._seen, self._looked = threads, now
        self.ran += ran
        self.stolen += max(0.0, min(waited, left))
        return self.ran, self.stolen


def _threads(process: int | None) -> dict[str, tuple[int, int]]:
    """Nanoseconds that each thread ran and waited; a thread that ends meanwhile is left out."""
    found = {}
    for task in Path(f"/proc/{process}/task").glob("*") if process else ():
        try:
            ran, waited, _ = (task / "schedstat").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        found[f"{process}/{task.name}"] = (int(ran), int(waited))
    return found
