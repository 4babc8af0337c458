"""What other users of this machine can read of running commands, for tests of secrets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Those of all processes that were seen during the body; any user of the machine can read them."""
    seen, over = set[bytes](), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for process in Path("/proc").glob("[0-9]*"):  # with "/cmdline" it fails for one that ends just then
                try:
                    seen.add((process / "cmdline").read_bytes())
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
