"""Joins lines that a terminal or a mail broke in two."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lab.console.lines import after_xen

_NARROWEST = 60  # columns; what is broken at less is not a terminal's
# What Xen, the kernel or a program begins a line with. Who has a place to write goes on without.
_BEGINS = re.compile(
    r"\s*(?:\(d0|<\d{1,3}>|\[ *\d[\d.:, -]{3,30}\]|[A-Z][a-z]{2} [ \d]\d [\d:]{8}"
    r"|[\w.@/+()-]{1,64}\[\d{1,8}\]: )"
)
# A mail breaks at blanks: an address that waits for its function, which is all that follows.
_WAITS = re.compile(
    r"(?:RIP:\s+[0-9a-f]{4}:\s*|^|\s)\[<[0-9a-f]{6,16}>\](?:\s+[RFSCE])?\s*$|page fault at [0-9a-f]{4}:\w+\s*$"
)
_FOLLOWS = re.compile(r"\s*(?:[\w./-]{1,200}#)?[A-Za-z_][\w.]{0,200}\+(?:0x[0-9a-f]+|0)/|\s*\(cr2=")


def unwrapped(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """The lines, the broken ones made whole; and where among them the line ``lines[at]`` is now."""
    width = _width(lines)
    whole = list[str]()
    last = 0  # length of the last line as it came
    place = 0
    for index, line in enumerate(lines):
        is_rest = bool(whole and line and not _begins(line))
        if is_rest and last == width and _begins(whole[-1]):
            whole[-1] += line
        elif is_rest and _WAITS.search(whole[-1]) and _FOLLOWS.match(line):
            whole[-1] = f"{whole[-1].rstrip()} {line.lstrip()}"
        else:
            whole.append(line)
        last = len(line)
        if index == at:
            place = len(whole) - 1
    return whole, place


def _begins(line: str) -> bool:
    return bool(_BEGINS.match(line)) or after_xen(line) >= 0


def _width(lines: Sequence[str]) -> int:
    """How many columns the terminal had: no line is longer, and several go on in the next. 0: there was none."""
    width = max(map(len, lines), default=0)
    if width < _NARROWEST:
        return 0
    full = [at for at, line in enumerate(lines[:-1]) if len(line) == width and _begins(line)]
    return width if len({lines[at] for at in full if lines[at + 1] and not _begins(lines[at + 1])}) > 1 else 0
