"""What goes wrong with a bench, done by a virtual board when it is told to: ``xenlab lab fault BOARD KIND``.

Its BMC misbehaves as BMCs of machines do, or a cable is out. The daemon asks here before it asks its machine. Every
fault ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lab.base.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault: what it does, and what its value is when none is said."""

    text: str
    value: float
    limit: float


# ipmi_sim's chassis program is given 2.5 s (lab.virtual.bmc), so an answer that is later than that is none.
KINDS: Mapping[str, Kind] = {
    "ignore-power-on": Kind("acknowledge the next VALUE power-ons, and do nothing", 1, 100),
    "late": Kind("let each answer of the chassis take VALUE seconds, for a minute", 1.5, 10),
    "wrong-status": Kind("report the power as what it is not, for VALUE seconds", 5, 600),
    "lie": Kind("do nothing when told to switch, and report the power as told, for VALUE seconds", 5, 600),
    "drop-sessions": Kind("restart VALUE seconds from now: all sessions are gone", 0, 600),
    "silent": Kind("answer nothing at all for VALUE seconds", 10, 600),
    "serial-off": Kind("let nothing through on the serial cable, for VALUE seconds", 60, 3600),
    "network-off": Kind("let nothing through on the management network, for VALUE seconds", 60, 3600),
    "refuse-sol": Kind("say that SOL is active on another session, for VALUE seconds", 20, 600),
}
LATE_FOR = 60.0  # seconds


class Faults:
    """Those of one board that are in force."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._ignores = 0
        self._late = 0.0
        self._told = ""  # the last power command during a lie

    def order(self, kind: str, value: float) -> None:
        """Begin. What the BMC's own process does wrong (drop-sessions, silent) is the daemon's to do."""
        ends = time.monotonic() + (LATE_FOR if kind == "late" else value)
        if kind == "ignore-power-on":
            self._ignores = int(value)
        elif kind == "late":
            self._late = value
        elif kind == "lie":
            self._told = ""
        self._until[kind] = ends

    def clear(self) -> None:
        """The BMC is a good one again."""
        self._until.clear()
        self._ignores = 0

    @property
    def delay(self) -> float:
        """Seconds to wait before anything is answered."""
        return self._late if self.is_on("late") else 0.0

    def instead(self, words: list[str], is_powered: bool) -> str | None:
        """The answer to a request that is not passed on; None: pass it on."""
        match words:
            case ["set", "power", told] if self.is_on("lie"):
                self._told = told
                return "ok"
            case ["get", "power"] if self.is_on("lie") and self._told:
                return self._told
            case ["set", "power", "1"] if self._ignores:
                self._ignores -= 1
                return "ok"
            case ["get", "power"] if self.is_on("wrong-status"):
                return str(int(not is_powered))
            case ["get", "sol"]:
                return str(int(not self.is_on("refuse-sol")))
        return None

    def is_on(self, kind: str) -> bool:
        """Whether a fault of this kind is in force."""
        return time.monotonic() < self._until.get(kind, 0.0)


def parse(kind: str, value: str | None) -> tuple[str, float]:
    """A kind and its value, as a person has said them.

    :raises UsageError: no such kind, or no such value.
    """
    if kind not in KINDS:
        raise UsageError(f"no fault {kind!r}{did_you_mean(kind, list(KINDS))}; there are: {', '.join(KINDS)}, none")
    limit = KINDS[kind].limit
    try:
        number = KINDS[kind].value if value is None else float(value)
        if not 0 <= number <= limit:
            raise ValueError
    except ValueError:
        raise UsageError(f"{kind} {value}: must be a number from 0 to {limit:g}") from None
    return kind, number
