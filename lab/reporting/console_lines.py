"""The lines of a console slice that a page shows: all, or the most telling ones of a long slice.

A slice may be of any size. It is read once, line by line, and no more is held of it than the page may show.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

from lab.console.patterns import classify
from lab.reporting.words import shortened
from lab.results.run_folder import visible_line

LINE_LIMIT = 2000  # characters shown of a line
AROUND = 15  # lines shown before and after one that tells of a crash
_READ_LIMIT = 1 << 16  # characters of a line that are looked at; what the recorder wrote is shorter
_TIME_WIDTH = 14  # characters that a line's time takes on the page
_GAPS = ("gap", "open")  # kinds of record that tell of the recorder's source


class Line(NamedTuple):  # there are very many, and a dataclass takes longer to make
    """A line as it is shown; ``mark`` is crash, warning, milestone, gap, note, or empty for a plain line."""

    time: str
    text: str
    mark: str = ""
    stamp: str = ""  # with the day; empty where a line has no time
    number: int = 0  # in the slice's file, from 1; 0: it is not in the file
    is_other: bool = False  # the console that stands beside it has no such line

    @property
    def size(self) -> int:
        """How much of a page it takes, in characters."""
        return len(self.text) + _TIME_WIDTH


@dataclass(frozen=True, slots=True)
class Told:
    """What is shown of a slice, and how much of each grave kind the whole slice has."""

    lines: tuple[Line, ...]
    crashes: int
    warnings: int


def told(slice_path: Path, kinds_path: Path | None, limit: int) -> Told:
    """The lines of a slice, or as many as fit into ``limit`` characters; what is left out is said.

    Lines around crashes come first, then warnings and gaps, then the end and the beginning. ``kinds_path`` has the
    kinds of the records that are no plain line (:func:`lab.results.run_folder.write_lines`).
    """
    lines = _lines(slice_path, kinds_path)
    first: list[Line] = []
    left = limit
    for line in lines:  # most slices are short
        first.append(line)
        left -= line.size
        if left < 0:
            return _told_of_long(chain(first, lines), limit)
    marks = Counter(line.mark for line in first)
    return Told(tuple(first), marks["crash"], marks["warning"])


def _told_of_long(lines: Iterable[Line], limit: int) -> Told:
    """Of lines that do not all fit, which are read only once."""
    crashes = warnings = count = after = 0
    head, tail, before = _Few(limit), _Last(limit), deque[tuple[int, Line]](maxlen=AROUND)
    around, marked = _Few(limit), _Few(limit)
    for index, line in enumerate(lines):
        count = index + 1
        crashes, warnings = crashes + (line.mark == "crash"), warnings + (line.mark == "warning")
        if line.mark == "crash":
            for earlier in before:
                around.add(*earlier)
            after = AROUND + 1
        if after:
            around.add(index, line)
            after -= 1
        elif line.mark in ("warning", "gap"):
            marked.add(index, line)
        before.append((index, line))
        head.add(index, line)
        tail.add(index, line)
    return Told(tuple(_chosen(around, marked, head, tail, count, limit)), crashes, warnings)


class _Few:
    """The first lines that were added, and one more than fits."""

    def __init__(self, limit: int) -> None:
        self.lines: dict[int, Line] = {}
        self._left = limit

    def add(self, index: int, line: Line) -> None:
        if self._left >= 0 and index not in self.lines:
            self.lines[index] = line
            self._left -= line.size


class _Last:
    """The last lines that were added, and one more than fits."""

    def __init__(self, limit: int) -> None:
        self.lines: deque[tuple[int, Line]] = deque()
        self._limit, self._size = limit, 0

    def add(self, index: int, line: Line) -> None:
        self.lines.append((index, line))
        self._size += line.size
        while self._size - self.lines[0][1].size > self._limit:
            self._size -= self.lines.popleft()[1].size


def _chosen(around: _Few, marked: _Few, head: _Few, tail: _Last, count: int, limit: int) -> Iterator[Line]:
    kept: dict[int, Line] = {}
    for index, line in [*around.lines.items(), *marked.lines.items(), *_outside_in(head, tail)]:
        if index not in kept:
            limit -= line.size
            if limit < 0:
                break
            kept[index] = line
    before = -1
    for index in [*sorted(kept), count]:
        if index - before > 1:
            yield Line("", f"… {index - before - 1} lines left out; the file has them …", "note")
        if index < count:
            yield kept[index]
        before = index


def _outside_in(head: _Few, tail: _Last) -> Iterable[tuple[int, Line]]:
    """The last line, the first, the last but one, and so on."""
    first, last = iter(head.lines.items()), reversed(tail.lines)
    for one in last:
        yield one
        yield from (other for other in [next(first, None)] if other)
    yield from first


def _lines(slice_path: Path, kinds_path: Path | None) -> Iterator[Line]:
    kinds = _kinds(kinds_path)
    number, kind = next(kinds, _NO_MORE)
    with open(slice_path, encoding="utf-8", errors="replace", newline="\n") as text:
        count = 0
        while raw := _read_line(text):
            count += 1
            when, _, said = raw.rstrip("\n").partition(" ")
            while number < count:
                number, kind = next(kinds, _NO_MORE)
            if number == count and kind in _GAPS:
                mark = "gap"
            else:
                signature = classify(said)
                mark = signature.kind if signature else ""
            yield Line(visible_line(when[11:23]), visible_line(shortened(said, LINE_LIMIT)), mark, when[:30], count)


def _read_line(text: TextIO) -> str:
    """The next line, without the middle of one that is far too long; empty at the end."""
    line = text.readline(_READ_LIMIT)
    if line.endswith("\n"):
        return line
    left_out, rest = 0, line
    while rest and not rest.endswith("\n"):
        rest = text.readline(_READ_LIMIT)
        left_out += len(rest)
    return f"{line}... {left_out} characters left out ...\n" if left_out else line


_NO_MORE = (1 << 62, "")


def _kinds(path: Path | None) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1 on, and the kinds of their records; it ends at the first row that makes no sense."""
    if path is None:
        return
    with open(path, encoding="utf-8", errors="replace") as rows:
        while row := rows.readline(_READ_LIMIT):
            try:
                said = json.loads(row)
                yield int(said["line"]), str(said["kind"])
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                return
