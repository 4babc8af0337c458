"""A lock file that says who holds it."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.base.errors import BenchError, WaitTimeout
from lab.base.wait import wait_until


class LockHeld(BenchError):
    """Somebody else holds the lock and did not let go in time; ``holder`` is "pid N (command)"."""

    def __init__(self, what: str, timeout: float, holder: str) -> None:
        super().__init__(f"{what} is in use by {holder}; waited {timeout:.0f} s")
        self.what, self.timeout, self.holder = what, timeout, holder


@contextmanager
def held(path: Path, timeout: float, what: str, *, has_to_go: Callable[[], bool] = bool) -> Iterator[int]:
    """Hold ``path`` (flock, exclusive) for the block; gives its file descriptor.

    The kernel drops the lock with its last descriptor, so a dead holder blocks nobody; a child that is given
    the descriptor keeps the lock as long as it lives. ``what`` names the locked thing in the error.
    ``has_to_go``: asked when the block ends, whether the file is removed; not while a child may keep the lock. A lock
    counts only on the file that ``path`` names: who waited for one that was removed meanwhile opens it anew.

    :raises LockHeld: not free within ``timeout`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path)

    def taken() -> bool:
        nonlocal descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_at(descriptor, path):
            return True
        os.close(descriptor)
        descriptor = _open(path)
        return False

    try:
        try:
            wait_until(taken, timeout, what)
        except WaitTimeout:
            holder = os.pread(descriptor, 400, 0).decode(errors="replace").strip() or "an unknown process"
            raise LockHeld(what, timeout, holder) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} ({shlex.join(sys.argv)[:300]})\n".encode(), 0)
        try:
            yield descriptor
            os.ftruncate(descriptor, 0)
        finally:
            if has_to_go():
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the opened file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
