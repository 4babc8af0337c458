"""The lines of a console slice that a page shows: all, or the most telling ones of a long slice.

A slice may be of any size. It is read once, line by line, and no more is held of it than the page may show.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, TextIO

from lab.console.patterns import classify, may_say
from lab.console.recalled import REACH, is_recalled
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
    blocks = _blocks(slice_path, kinds_path)
    first: list[Line] = []
    left = limit
    for block in blocks:  # most slices are short
        first += block
        left -= sum(len(line.text) for line in block) + _TIME_WIDTH * len(block)
        if left < 0:
            return _told_of_long(chain(first, chain.from_iterable(blocks)), limit)
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


def _blocks(slice_path: Path, kinds_path: Path | None) -> Iterator[list[Line]]:
    """The lines of a slice, many at a time: what is asked of each costs less if it is asked of all at once."""
    kinds = _kinds(kinds_path)
    number, kind = next(kinds, _NO_MORE)
    count = 0
    with open(slice_path, encoding="utf-8", errors="replace", newline="\n") as text:
        while raw := _read_lines(text):
            block = _told_lines(raw, count + 1)
            done, count = count, count + len(block)
            while number <= count:
                if number > done and kind in _GAPS:
                    block[number - done - 1] = block[number - done - 1]._replace(mark="gap")
                last = max(number, done)
                while number <= last:
                    number, kind = next(kinds, _NO_MORE)
            yield block


def _told_lines(raw: Sequence[str], first: int) -> list[Line]:
    """Lines of a file from the number ``first`` on."""
    parts = [line.partition(" ") for line in raw]
    told = [part[2] for part in parts]
    times = [part[0][11:23] for part in parts]
    signatures = [classify(said) for said in told] if may_say("\n".join(told)) else [None] * len(told)
    for at, signature in enumerate(signatures):
        if signature and signature.recalled_by and is_recalled(signature, told[at + 1 : at + 1 + REACH]):
            signatures[at] = None
    if max(map(len, told)) > LINE_LIMIT:
        told = [shortened(said, LINE_LIMIT) for said in told]
    if not ("".join(told).isprintable() and "".join(times).isprintable()):
        told, times = [visible_line(said) for said in told], [visible_line(time) for time in times]
    marks = [signature.kind if signature else "" for signature in signatures]
    stamps = [part[0][:30] for part in parts]
    return [*map(Line._make, zip(times, told, marks, stamps, range(first, first + len(raw)), repeat(False)))]


def _read_lines(text: TextIO) -> list[str]:
    """Some more lines, each without the middle of one that is far too long; none at the end."""
    block = text.read(_READ_LIMIT)
    lines = block.split("\n")
    if lines[-1] == "":
        return lines[:-1]
    rest = lines[-1] + text.readline(_READ_LIMIT - len(lines[-1])) if len(lines[-1]) < _READ_LIMIT else lines[-1]
    left_out, more = 0, rest
    while more and not more.endswith("\n"):
        more = text.readline(_READ_LIMIT)
        left_out += len(more)
    lines[-1] = f"{rest}... {left_out} characters left out ..." if left_out else rest.removesuffix("\n")
    return lines


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
