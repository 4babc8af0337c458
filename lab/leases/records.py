"""What the ledger holds: requests, leases, how boards are, what happened. Times are seconds since the epoch."""

from __future__ import annotations

import getpass
import os
import re
import socket
from dataclasses import dataclass
from typing import Literal

from lab.base import processes
from lab.base.errors import UsageError

Kind = Literal["person", "run", "check", "nightly"]  # for a while; for one process, or its health check; for a night
State = Literal["waiting", "held", "ending", "ended"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: these boards, or ``count`` that can do all of ``needs``; joined ones, if it needs a pair."""

    kind: Kind
    holder: str
    seconds: float
    names: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    count: int = 1
    job: str = ""  # machine.mark() of the process the lease ends with

    def __str__(self) -> str:
        wanted = (
            " ".join(sorted(self.names)) or f"{self.count} with {','.join(sorted(self.needs)) or 'nothing special'}"
        )
        return f"{wanted} for {self.seconds / 60:.0f} min"

    @property
    def wants_pair(self) -> bool:
        """Whether the two must be joined by a link."""
        return self.count == 2 and "migration-pair" in self.needs


@dataclass(frozen=True, slots=True)
class Lease:
    """A request and what became of it."""

    id: int
    request: Request
    state: State
    asked: float
    waiter: str
    since: float | None
    until: float | None
    wanted_back: str  # why the holder shall give it back at the next case's end; empty: may keep it
    why_ended: str
    boards: tuple[str, ...]  # held; empty while it waits and when it ended

    @property
    def holder(self) -> str:
        return self.request.holder

    def why_over(self, now: float) -> str:
        """Why it must end, or nothing."""
        if self.state == "waiting" and not processes.is_alive(self.waiter):
            return "who waited is gone"
        if self.state == "held" and self.until is not None and now >= self.until:
            return "its time is over"
        if self.request.job and not processes.is_alive(self.request.job):
            return "its process is gone"
        return ""


@dataclass(frozen=True, slots=True)
class BoardState:
    """How a board is, as far as it was noted."""

    board: str
    last_holder: str = ""
    quarantine: str = ""
    evidence: str = ""
    changed: float | None = None
    checked: float | None = None
    misses: tuple[str, ...] = ()
    verdict: str = ""
    writer: str = ""
    is_away: bool = False  # what it is cabled to is; ``quarantine`` says why, and is over by itself

    @property
    def health(self) -> str:
        """``quarantined: CAUSE``, ``away: CAUSE``, ``checked`` or ``not checked``."""
        if self.quarantine:
            return f"{'away' if self.is_away else 'quarantined'}: {self.quarantine}"
        return "checked" if self.checked else "not checked"


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the audit."""

    time: float
    lease: int | None
    board: str
    what: str
    detail: str


def caller() -> str:
    """Who calls, as labgrid's client names itself: ``HOST/USER``. It is what they say: nothing proves it."""
    host = os.environ.get("LG_HOSTNAME") or socket.gethostname()
    return f"{host}/{os.environ.get('LG_USERNAME') or getpass.getuser()}"


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """``90m``, ``2h``, ``1d``, ``2h30m`` in seconds.

    :raises UsageError: none of these.
    """
    parts = re.findall(r"(\d+)([smhd])", text)
    seconds: float = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"invalid duration {text!r}; use 90m, 2h, 1d or 2h30m")
    return seconds
