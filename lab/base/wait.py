"""The one way to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.base.errors import WaitTimeout

T = TypeVar("T")

SOON, SELDOM = 0.01, 0.2  # seconds between two questions where no interval is given: at first, and in the end


def wait_until(
    predicate: Callable[[], T], timeout: float, what: str, *, interval: float | None = None, board: str | None = None
) -> T:
    """Poll ``predicate`` until it returns something true, and return that.

    ``timeout`` and ``interval`` are seconds. Without an interval it is asked soon again at first, and each time after
    twice as long a pause, up to :data:`SELDOM`: most of what is waited for comes at once, or takes its time. The
    predicate is asked once more at the deadline. ``board``: the one that is waited for, if it is one.

    :raises WaitTimeout: never true in time; carries what was seen last.
    """
    deadline, pause = time.monotonic() + timeout, SOON if interval is None else interval
    while True:
        value = predicate()
        if value:
            return value
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(what, timeout, value, board=board)
        time.sleep(min(pause, left))
        if interval is None:
            pause = min(2 * pause, SELDOM)
