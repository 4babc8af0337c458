"""Compiles a hypervisor with mutation points in it, and drops the points that do not compile.

The points stand in the files of a source tree while it is compiled (:mod:`lab.mutation`). What the compiler says of a
place drops the point there; what is left says it again or compiles. Then the tree is put back.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lab.base.errors import BuildFailed, UsageError
from lab.builds.command import run
from lab.mutation import listing, points, writing
from lab.mutation.points import Kind, Site

FORMAT = 2  # raise this when the same source gives other points, or the same points other code
ROUNDS = 40  # of compiling; a few are needed
_MAKEFILE = "xen/common/Makefile"
_MARK = re.compile(rb"mutant_is\((\d+)\)")
_ERROR = re.compile(r"(?:^|: )(?:fatal )?error: |undefined reference to|: multiple definition of")
_PLACE = re.compile(r"(?:^|[\s(])(?:\./)?([\w./+-]+\.[ch]):(\d+)(?::(\d+))?[:),]")
_FUNCTION = re.compile(r"[Ii]n function [‘'`](\w+)")
_VARIABLE = re.compile(r"error: [‘'](\w+)(?:\.[\w.]+)?[’'] (?:may be|is) used uninitialized")

Make = Callable[[Callable[[str], None]], None]  # compiles, and tells each line; raises BuildFailed


@dataclass
class _File:
    text: bytes  # without points
    numbers: dict[Site, int]
    written: list[bytes] = field(default_factory=list)  # its lines with points, without the two before them


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error of the compiler or linker: places in the order in which they were named, innermost first."""

    places: tuple[tuple[str, int, int], ...]  # file in the tree, line, column or 0
    function: str = ""
    variable: str = ""


class Mutating:
    """The points in a tree that is being compiled."""

    def __init__(self, tree: Path, patterns: Sequence[str]) -> None:
        """:raises UsageError: a pattern matches no file."""
        self._tree, self._files = tree, dict[str, _File]()
        self._before: dict[str, bytes | None] = {}
        self._asked: Counter[tuple[str, str, str]] = Counter()
        self._dropped = 0
        number = 0
        for name in _matching(tree, patterns):
            text = (tree / name).read_bytes()
            numbers = {}
            for site in points.find(text):
                number += 1
                numbers[site] = number
            self._files[name] = _File(text, numbers)

    def put(self) -> None:
        """Write the points into the tree."""
        makefile = (self._tree / _MAKEFILE).read_bytes()
        self._replace(_MAKEFILE, makefile + b"\nobj-y += mutant.o\n")
        self._replace(writing.HEADER, writing.HEADER_TEXT.encode())
        self._replace(writing.SOURCE, writing.SOURCE_TEXT.encode())
        for name in self._files:
            self._write(name)

    def _replace(self, name: str, text: bytes) -> None:
        path = self._tree / name
        self._before.setdefault(name, path.read_bytes() if path.exists() else None)
        path.write_bytes(text)

    def _write(self, name: str) -> None:
        file = self._files[name]
        text = writing.write(file.text, file.numbers)
        file.written = text.split(b"\n")[2 if file.numbers else 0 :]
        self._replace(name, text)

    def take_off(self) -> None:
        """Put the tree back."""
        for name, text in self._before.items():
            if text is None:
                (self._tree / name).unlink(missing_ok=True)
            else:
                (self._tree / name).write_bytes(text)
        self._before.clear()

    def compile(self, make: Make, say: Callable[[str], None]) -> None:
        """Compile again and again, and drop what does not compile.

        :raises BuildFailed: the source does not compile, whatever is dropped.
        """
        for _ in range(ROUNDS):
            lines: list[str] = []
            try:
                make(lines.append)
                return
            except BuildFailed:
                gone = self.drop(complaints(lines))
                if not gone:
                    raise
            self._dropped += gone
            say(f"{self._dropped} mutation points do not compile and are dropped")
        raise BuildFailed(f"mutation points: some still did not compile after {ROUNDS} rounds")

    def drop(self, said: Sequence[Complaint]) -> int:
        """Drop a point for each complaint, or more where one alone is not named. Returns how many went.

        A complaint that names no point often goes with those that do, so it waits for the next round.
        """
        gone: dict[str, set[Site]] = {}
        for guilty in (self._at, self._of_function):  # the second one where nothing better is known of the file
            exact = set(gone)
            for complaint in said:
                places = [place for place in complaint.places if place[0] in self._files and place[0] not in exact]
                if found := next(((place[0], sites) for place in places if (sites := guilty(*place, complaint))), None):
                    gone.setdefault(found[0], set()).update(found[1])
        for name, guilty_ones in gone.items():
            numbers = self._files[name].numbers
            self._files[name].numbers = {site: number for site, number in numbers.items() if site not in guilty_ones}
            self._write(name)
        return sum(map(len, gone.values()))

    def _at(self, name: str, line: int, column: int, complaint: Complaint) -> list[Site]:
        """The point whose number stands before the column, or the innermost one of the line; without a column, all."""
        if complaint.variable:
            return []
        file = self._files[name]
        sites = {number: site for site, number in file.numbers.items()}
        written = file.written[line - 1] if 0 < line <= len(file.written) else b""
        before = [int(match[1]) for match in _MARK.finditer(written) if match.start() < column]
        if before and before[-1] in sites:
            return [sites[before[-1]]]
        found = [site for site in sites.values() if site.line <= line <= site.last_line]
        return [max(found, key=lambda site: site.start)] if found and column else found

    def _of_function(self, name: str, line: int, column: int, complaint: Complaint) -> list[Site]:
        """Points of the function: those about the variable, then what jumps, then all; one more group at each call."""
        if not (sites := list(self._files[name].numbers)):
            return []
        after = [site for site in sites if site.line >= line] or sites[-1:]  # a variable is used below its declaration
        named = [site for site in sites if site.function == complaint.function]
        function = after[0].function if complaint.variable or not named else complaint.function
        own = [site for site in sites if site.function == function]
        text = self._files[name].text
        word = re.compile(rb"\b%s\b" % re.escape(complaint.variable.encode() or b"\0"))
        left_out = [site for site in own if site.kind is Kind.LEFT_OUT]
        groups = (
            [site for site in left_out if word.search(text, site.start, site.end)],
            [site for site in left_out if text[site.start : site.end].startswith((b"break", b"goto", b"continue"))],
            own,
        )
        key = (name, function, complaint.variable)
        asked = self._asked[key]
        self._asked[key] += 1
        return next((group for group in groups[min(asked, 2) :] if group), [])

    def keep(self, symbols: Path, target: Path) -> listing.Listing:
        """Keep the list of the points that are in the hypervisor's code.

        :raises BuildFailed: there is none.
        """
        there = numbers_in(symbols)
        kept = [
            point
            for name, file in self._files.items()
            for point in listing.points(name, file.text, file.numbers)
            if point.number in there
        ]
        if not kept:
            raise BuildFailed(f"{symbols}: no mutation point is in it")
        found = listing.Listing(
            tuple(kept), self._dropped, sum(len(file.numbers) for file in self._files.values()) - len(kept)
        )
        found.save(target)
        return found


def _matching(tree: Path, patterns: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for pattern in patterns:
        names = {str(path.relative_to(tree)) for path in tree.glob(pattern) if path.suffix == ".c"}
        if not names:
            raise UsageError(f"mutation: {pattern} matches no C file of the source")
        found |= names
    return sorted(found)


def complaints(lines: Sequence[str]) -> list[Complaint]:
    """The errors in a compiler's output."""
    found: list[Complaint] = []
    function, lead = "", list[tuple[str, int, int]]()
    places: list[tuple[str, int, int]] | None = None
    variable = ""

    def close() -> None:
        nonlocal places, variable
        if places is not None:
            found.append(Complaint(tuple(places), function, variable))
        places, variable = None, ""

    for line in lines:
        here = [_place(match) for match in _PLACE.finditer(line)]
        if match := _FUNCTION.search(line):
            close()
            function, lead = match[1], []
        if _ERROR.search(line):
            close()
            places = [*here, *lead]
            lead = []
            variable = match[1] if (match := _VARIABLE.search(line)) else ""
        elif "inlined from" in line:
            lead += here
        elif places is not None and ": note: " in line:
            places += here
    close()
    return found


def _place(match: re.Match[str]) -> tuple[str, int, int]:
    return str(PurePosixPath("xen") / match[1]), int(match[2]), int(match[3] or 0)


def numbers_in(elf: Path) -> set[int]:
    """The numbers of the points that are in the code of an ELF file."""
    name = writing.SECTION
    dumped = elf.with_name(f"{elf.name}{name}")
    try:
        run(["objcopy", "--dump-section", f"{name}={dumped}", str(elf), "/dev/null"], timeout=60)
        data = dumped.read_bytes()
    finally:
        dumped.unlink(missing_ok=True)
    return set(struct.unpack(f"<{len(data) // 4}I", data))
