"""Takes back a crash if the lines after it show that there is none.

Linux first says that RCU stalls, and then looks for the processor that stalls. If none does any more, Linux says so one
or two lines below: the stall is over, and its cause is lost. A program in Go says "panic: " as FreeBSD does, and below
it which goroutine it was: that is a program's end and not dom0's. A processor that was stuck for 20 s and a task that
was blocked for 120 s stay crashes though they may go on, since a dom0 in good health has neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from lab.console.formats import Signature
from lab.console.patterns import HasText, classify

T = TypeVar("T", bound=HasText)
REACH = 6  # lines; others may talk in between


def crashes(lines: Sequence[HasText]) -> Iterator[tuple[int, Signature]]:
    """The crashes that these lines tell, and where; without those that are taken back."""
    for index, line in enumerate(lines):
        found = classify(line.text)
        if found and found.kind == "crash" and not is_recalled(found, _behind(lines, index)):
            yield index, found


def is_recalled(found: Signature, following: Iterable[str]) -> bool:
    """Whether the lines behind one that tells a crash take it back."""
    return bool(found.recalled_by) and any(found.recalled_by in text for text in following)


def _behind(lines: Sequence[HasText], index: int) -> Iterator[str]:
    return (line.text for line in lines[index + 1 : index + 1 + REACH])


class Live(Generic[T]):
    """The same, of lines that come one by one. A crash that may be taken back is told :data:`REACH` lines later."""

    def __init__(self) -> None:
        self._held: tuple[T, Signature] | None = None
        self._left = 0

    def take(self, line: T) -> tuple[T, Signature] | None:
        """The next line; a crash that is certain by now, and the line that tells it."""
        found = classify(line.text)
        crash = (line, found) if found and found.kind == "crash" else None
        if self._held is None:
            if crash and crash[1].recalled_by:
                self._held, self._left = crash, REACH
                return None
            return crash
        held = self._held
        if held[1].recalled_by in line.text:
            self._held = None
            return None
        self._left -= 1
        if self._left and (crash is None or crash[1] is held[1]):
            return None
        self._held = None
        return held
