"""How fast a recorder reads a source that says more than anybody can take."""

from __future__ import annotations

import threading
import time


class ReadPace:
    """Holds up a source that says more than the lab can take.

    It is ten times what a serial line of 4 Mbaud says. So a recorder takes an eighth of a processor at most, and who
    follows it keeps up. A source behind a socket waits meanwhile, as one behind a slow line does.
    """

    def __init__(self, stop: threading.Event, rate: float = 4 << 20, burst: float = 1 << 20) -> None:
        self._stop, self._rate, self._burst = stop, rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self, data: bytes) -> None:
        """Wait until ``data`` is within the rate, in bytes a second. A line's end counts as 40 bytes more."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - len(data) - 40 * data.count(b"\n")
        self._at = now
        if self._left < 0:
            self._stop.wait(-self._left / self._rate)
