"""What other users of this machine can read of running commands, for tests of secrets."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BETWEEN = 0.004  # seconds between two looks: most of a processor is left to the programs that are watched
# A process is looked at this often at first, as it may still become another program; then once in so many looks.
YOUNG, SELDOM = 50, 50


@contextmanager
def watching(look: Callable[[str], None]) -> Iterator[None]:
    """During the body, call ``look`` for each process again and again, with its folder in ``/proc``; more often if new.

    One that ends meanwhile may raise OSError.
    """
    over = threading.Event()

    def watch() -> None:
        looks: dict[str, int] = {}
        while not over.is_set():
            looks = {name: looks.get(name, 0) + 1 for name in os.listdir("/proc") if name.isdecimal()}
            for name, number in looks.items():
                if number <= YOUNG or number % SELDOM == 0:
                    with contextlib.suppress(OSError):
                        look(f"/proc/{name}")
            time.sleep(BETWEEN)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def content(path: str) -> bytes:
    """Of a file in ``/proc``; what opens files in general takes three times as long."""
    file = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(file, 1 << 17), b""))
    finally:
        os.close(file)


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Those of all processes that were seen during the body; any user of the machine can read them."""
    seen = set[bytes]()
    with watching(lambda process: seen.add(content(f"{process}/cmdline"))):
        yield seen
