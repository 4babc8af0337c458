"""What a source of a console's bytes is, and what all of them share."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod

from lab.base.errors import BenchError
from lab.base.loopback import listener_uid, user

POLL = 0.2  # seconds that read() may block when nothing comes; how soon a stop is noticed
CHUNK = 16384  # bytes of one read
_FIRST_PERSON = 1000  # users below are the system's own (login.defs(5), UID_MIN)
CONNECT_TIMEOUT = 5.0  # seconds
WRITE_TIMEOUT = 10.0  # seconds; over a few retransmissions of a SOL packet


class SourceLost(BenchError):
    """The source gives no bytes any more, or never did. The message says why."""


class SourceRefused(SourceLost):
    """The source does not take the login. Trying again soon may lock the account."""


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

    def is_worth_a_try(self) -> bool:
        """Whether something has changed since the login was refused, so that it may be taken now."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Harmless twice."""


def check_server(name: str, host: str, port: int) -> None:
    """See that a console server on this machine is not what some account has put in the place of a dead one.

    :raises SourceLost: it runs neither as root, nor as a system account, nor as the lab's own user.
    """
    uid = listener_uid(host, port)
    if uid is not None and uid >= _FIRST_PERSON and uid != os.geteuid():
        raise SourceLost(
            f"{name}: the port is held by {user(uid)}: a console server on this machine must run as root, "
            "as a system account, or as the lab's own user"
        )


def is_readable(handle: int) -> bool:
    return bool(select.select([handle], [], [], POLL)[0])


def reason(error: BaseException) -> str:
    said = str(getattr(error, "strerror", None) or error)
    return said.splitlines()[0] if said else type(error).__name__
