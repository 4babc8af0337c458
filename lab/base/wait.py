"""The one way to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.base.errors import WaitTimeout

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout: float, what: str, *, interval: float = 0.2, board: str | None = None
) -> T:
    """Poll ``predicate`` until it returns something true, and return that.

    ``timeout`` and ``interval`` are seconds. The predicate is asked once more at the deadline. ``board``: the one
    that is waited for, if it is one.

    :raises WaitTimeout: never true in time; carries what was seen last.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(what, timeout, value, board=board)
        time.sleep(min(interval, left))
