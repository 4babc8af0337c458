"""Whether a host is dead, or only its console is. The host is asked in four ways.

A silent console proves nothing: the recorder may have lost its source, a cable may be loose, dom0 may have no network,
or the machine may be dead. Each has a remedy of its own.
"""

from __future__ import annotations

import enum
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.base.errors import BenchError, LabError, WaitTimeout
from lab.console.client import Console
from lab.results.record import Evidence

if TYPE_CHECKING:
    from lab.grid.board import Board

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 5.0  # seconds; a login prompt takes one under emulation
# Ctrl-A three times gives the input to Xen, or back to dom0, and Xen says so: drivers/char/console.c, opt_conswitch.
SWITCH = b"\x01\x01\x01"


class Voice(enum.Enum):
    """What answered on the console."""

    DOM0 = "answers"
    XEN = "only the hypervisor answers"
    SILENT = "is silent"
    LOST = "is not there: the recorder has lost it"


HEARD = (Voice.DOM0, Voice.XEN)  # somebody answers

_LOSSES = {
    Voice.SILENT: "fell silent: no answer on console and network",
    Voice.XEN: "lost its dom0: only the hypervisor answers",
    Voice.DOM0: "lost its network: dom0 answers on the console, and not over SSH",
}


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a host was at one moment."""

    board: str
    is_powered: bool | None  # None: the BMC does not say
    is_reachable: bool  # dom0 ran a command over SSH
    voice: Voice
    time: float  # seconds since the epoch
    has_timers: bool = True  # if dom0 ran a command: a short sleep there came to its end

    @property
    def is_alive(self) -> bool:
        """Whether anything of the host answered, dom0 or hypervisor."""
        return self.is_reachable or self.voice in HEARD

    @property
    def loss(self) -> str | None:
        """What is dead of a host whose console is heard, after "the host"; None: nothing, or it is not heard."""
        if self.is_reachable:
            return None if self.has_timers else "lost its timers: dom0 runs commands, and a short sleep does not end"
        return _LOSSES.get(self.voice)

    @property
    def summary(self) -> str:
        """One line: what is dead."""
        if self.is_reachable and not self.has_timers:
            return f"{self.board}: dom0 runs commands, and a short sleep does not end: timers are dead"
        if self.is_reachable:
            console = "" if self.voice is Voice.DOM0 else f", but its console {self.voice.value}"
            return f"{self.board}: the host is alive{console}"
        if self.voice is Voice.DOM0:
            return f"{self.board}: dom0 answers on its console and not over SSH: its network is dead"
        if self.voice is Voice.XEN:
            return f"{self.board}: dom0 is dead, the hypervisor is alive"
        if self.is_powered is False:
            return f"{self.board}: the power is off"
        power = "the power is on" if self.is_powered else "the BMC does not answer either"
        if self.voice is Voice.LOST:
            return f"{self.board}: the host does not answer over SSH, and its console {self.voice.value}; {power}"
        return f"{self.board}: the host is dead: silent on console and network; {power}"

    def as_evidence(self) -> Evidence:
        """For a verdict or a quarantine."""
        power = {True: "on", False: "off", None: "unknown"}[self.is_powered]
        ssh = "answers" if self.is_reachable else "no answer"
        ssh += "" if self.has_timers else ", and its sleeps do not end"
        body = f"{self.summary}\npower (BMC): {power}\ndom0 over SSH: {ssh}\nconsole: {self.voice.value}"
        return Evidence("note", "pulse", body, self.time, self.board)


def take(board: Board) -> Pulse:
    """Take the pulse of a board; nothing is raised.

    It takes up to 20 s for a dead board, and up to 50 s for one whose timers are dead. A newline
    is typed on the board's console. If nothing comes, the switch of Xen's console is pressed, twice.
    """
    powered: bool | None = None
    try:
        powered = bool(board.power.is_powered())
    except LabError as error:
        log.info("%s: power: %s", board.name, error)
    slept = board.sleeps()
    if slept is False:  # its timers, or its network meanwhile: asked again
        slept = board.sleeps()
    is_reachable, has_timers = slept is not None, slept is not False
    return Pulse(board.name, powered, is_reachable, listen(board.console), time.time(), has_timers)


def listen(console: Console) -> Voice:
    """Who answers on the console."""
    try:
        if not console.is_connected():
            return Voice.LOST
        if _answers(console, b"\r", r"\S"):
            return Voice.DOM0
        if _answers(console, SWITCH, "Serial input to"):
            _answers(console, SWITCH, "Serial input to")  # back to where it was
            return Voice.XEN
    except BenchError as error:
        log.info("console: %s", error)
        return Voice.LOST
    return Voice.SILENT


def _answers(console: Console, typed: bytes, pattern: str) -> bool:
    mark = console.mark()
    console.send(typed)
    try:
        console.wait_for(pattern, ANSWER_TIMEOUT, since=mark)
    except WaitTimeout:
        return False
    return True
