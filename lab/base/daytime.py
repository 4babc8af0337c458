"""When it is day: a rule that can be read in one line, ``Mon-Fri 07:00-20:00``."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from lab.base.errors import UsageError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_RULE = re.compile(r"(?:(\w{3})(?:-(\w{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")
WANTED = "want `Mon-Fri 07:00-20:00`, `07:00-20:00`, `always` or `never`, in the lab machine's own time"


@dataclass(frozen=True, slots=True)
class Daytime:
    """Days of the week (0 is Monday), and minutes of the day, from and before; over midnight if they are reversed."""

    text: str
    days: frozenset[int]
    first: int
    last: int

    @classmethod
    def read(cls, text: str) -> Daytime:
        """:raises ValueError: not such a rule; says what would be."""
        if text in ("always", "never"):
            return cls(text, frozenset(range(7) if text == "always" else ()), 0, 24 * 60)
        match = _RULE.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r}: {WANTED}")
        start, end = match[1] or "Mon", match[2] or match[1] or "Sun"
        if start not in DAYS or end not in DAYS:
            raise ValueError(f"{text!r}: days are {', '.join(DAYS)}; {WANTED}")
        hour, minute, hour_end, minute_end = (int(number) for number in match.groups()[2:])
        if max(minute, minute_end) > 59 or max(hour * 60 + minute, hour_end * 60 + minute_end) > 24 * 60:
            raise ValueError(f"{text!r}: no such time of day; {WANTED}")
        begin, length = DAYS.index(start), (DAYS.index(end) - DAYS.index(start)) % 7
        days = frozenset((begin + step) % 7 for step in range(length + 1))
        return cls(text, days, hour * 60 + minute, hour_end * 60 + minute_end)

    def holds(self, when: float) -> bool:
        """Whether it is day at ``when`` (seconds since the epoch), in this machine's time."""
        now = time.localtime(when)
        minute, day = now.tm_hour * 60 + now.tm_min, now.tm_wday
        if self.first < self.last:
            return day in self.days and self.first <= minute < self.last
        return minute >= self.first and day in self.days or minute < self.last and (day - 1) % 7 in self.days


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment that does not move when the machine's clock is set: seconds of CLOCK_BOOTTIME (clock_gettime(2))."""

    boottime: float

    @classmethod
    def at(cls, when: float) -> Deadline:
        """The moment that is called ``when`` now, in seconds since the epoch."""
        return cls(time.clock_gettime(time.CLOCK_BOOTTIME) + when - time.time())

    @property
    def left(self) -> float:
        """Seconds until then; negative when it has passed."""
        return self.boottime - time.clock_gettime(time.CLOCK_BOOTTIME)

    @property
    def clock(self) -> str:
        """What this machine's clock will show then, if nobody sets it: ``HH:MM``."""
        return time.strftime("%H:%M", time.localtime(time.time() + self.left))


def next_time(text: str, now: float) -> float:
    """When the clock of this machine shows ``HH:MM`` next, after ``now``.

    :raises UsageError: not a time of day.
    """
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not match:
        raise UsageError(f"invalid time of day {text!r}; use HH:MM")
    today = time.localtime(now)
    parts = (int(match[1]), int(match[2]), 0, 0, 0, -1)
    then = time.mktime((today.tm_year, today.tm_mon, today.tm_mday, *parts))
    return then if then > now else time.mktime((today.tm_year, today.tm_mon, today.tm_mday + 1, *parts))
