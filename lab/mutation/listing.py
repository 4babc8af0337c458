"""The list of mutation points that a build has: a file beside the hypervisor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.base import shape
from lab.base.errors import BenchError
from lab.mutation import writing
from lab.mutation.points import Site

FOLDER = "mutation"  # of a build
_FILE = "points.json"


@dataclass(frozen=True, slots=True)
class Point:
    """One mutant of a build. ``number`` holds in this build alone; ``id`` stays while the code around it does."""

    number: int
    id: str
    kind: str
    file: str  # xen/common/domain.c
    function: str
    line: int
    last_line: int
    diff: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Listing:
    """All points of a build. ``no_code``: found, but of no code in this configuration, or alike with and without."""

    points: tuple[Point, ...]
    does_not_compile: int
    no_code: int

    def by_number(self) -> Mapping[int, Point]:
        return {point.number: point for point in self.points}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(json.dumps(dataclasses.asdict(self), indent=0), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Listing:
        """:raises BenchError: the file is not there, or damaged."""
        try:
            return shape.read(cls, (folder / _FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise BenchError(f"{folder / _FILE}: {error}; make the build again: xenlab build") from None


def points(file: str, text: bytes, numbers: Mapping[Site, int]) -> Iterator[Point]:
    """The points of a file, as a list has them."""
    seen: Counter[tuple[object, ...]] = Counter()
    for site, number in numbers.items():
        name = (file, site.function, site.kind, text[site.start : site.end], site.mutant, site.cut_from - site.start)
        seen[name] += 1
        digest = hashlib.sha256(repr((*name, seen[name])).encode()).hexdigest()[:12]
        diff = writing.diff(text, site, file)
        yield Point(number, digest, str(site.kind), file, site.function, site.line, site.last_line, diff)


def in_trial_order(found: Iterable[Point]) -> list[Point]:
    """As if shuffled, and the same each time: whatever is tried first is a fair sample of all."""
    return sorted(found, key=lambda point: hashlib.sha256(point.id.encode()).digest())
