"""What a source of a console's bytes is, and what all of them share."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod

from lab.base.errors import BenchError

POLL = 0.2  # seconds that read() may block when nothing comes; how soon a stop is noticed
CHUNK = 16384  # bytes of one read
CONNECT_TIMEOUT = 5.0  # seconds
WRITE_TIMEOUT = 10.0  # seconds; over a few retransmissions of a SOL packet


class SourceLost(BenchError):
    """The source gives no bytes any more, or never did. The message says why."""


class Source(ABC):
    """A console's bytes. One thread opens, reads and closes; another may write."""

    @abstractmethod
    def open(self) -> None:
        """Begin. A source that was lost may be opened again after ``close``.

        :raises SourceLost: not to be had now.
        """

    @abstractmethod
    def read(self) -> bytes:
        """What came, at once; empty if nothing came for ``POLL`` seconds.

        :raises SourceLost: it ended.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises SourceLost: it ended, or takes nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Harmless twice."""


def is_readable(handle: int) -> bool:
    return bool(select.select([handle], [], [], POLL)[0])


def reason(error: BaseException) -> str:
    said = str(getattr(error, "strerror", None) or error)
    return said.splitlines()[0] if said else type(error).__name__
