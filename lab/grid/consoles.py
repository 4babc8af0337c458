"""Whether the consoles of a lab's boards are read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lab.base.errors import BoardError, LabError
from lab.console.client import SourceState, source_state
from lab.inventory import BoardSpec, Lab

_AT_ONCE = 16  # recorders that are asked at the same time


@dataclass(frozen=True, slots=True)
class ConsoleStatus:
    """One board's console, as `xenlab lab status` shows it."""

    is_read: bool
    detail: str

    def __str__(self) -> str:
        return self.detail if self.is_read else f"GONE: {self.detail}"


def status(lab: Lab) -> Mapping[str, ConsoleStatus]:
    """The console of each board, by its name; recorders that do not answer within 2 s are said to be gone."""
    boards = list(lab.boards.values())
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return {board.name: found for board, found in zip(boards, threads.map(_of, boards), strict=True)}


def look(board: BoardSpec, *, must_have_spoken: bool) -> str:
    """How a board's console is read, in words.

    ``must_have_spoken``: a console whose source is there and that never gave a byte is no good, since its source may
    lead nowhere.

    :raises BoardError: it is not read, with the reason that the recorder has for its last gap.
    """
    state = source_state(board)
    if not state.is_open:
        raise BoardError(board.name, f"console: not read: {state.why}")
    if state.heard is None and must_have_spoken:
        raise BoardError(
            board.name,
            "console: the source is there, and nothing was ever read from it: see that the board's firmware and "
            "hypervisor use this serial port, and type Enter in `xenlab console` or power the board off and on",
        )
    return _words(state)


def _of(board: BoardSpec) -> ConsoleStatus:
    try:
        state = source_state(board)
    except LabError as error:
        return ConsoleStatus(False, str(error))
    return ConsoleStatus(True, _words(state)) if state.is_open else ConsoleStatus(False, str(state.why))


def _words(state: SourceState) -> str:
    if state.heard is None:
        return "read; the board has said nothing yet"
    return f"read; the board's last word came {_span(time.time() - state.heard)} ago"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
