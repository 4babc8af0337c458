"""The mutation score of a build: how many mutants were killed, by area and file, and which survived."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths
from lab.base.errors import BenchError
from lab.coverage import areas
from lab.coverage.areas import files_of
from lab.mutation import equivalents
from lab.mutation.listing import Listing, Point
from lab.results.mutation import Fate, Outcome, ScoreFolder

log = logging.getLogger(__name__)

Areas = Mapping[str, tuple[str, ...]]  # patterns of files
EQUIVALENT, NOT_TRIED = "equivalent", "not tried"
PARTS = (Fate.KILLED, Fate.SURVIVED, Fate.NOT_COVERED, Fate.NOT_JUDGED, EQUIVALENT, NOT_TRIED)
HEAD = f"{'score':>7}" + "".join(f"{part:>13}" for part in PARTS)


@dataclass(frozen=True, slots=True)
class Tally:
    """Mutants by what became of them."""

    parts: Counter[str]

    @property
    def percent(self) -> float | None:
        """Of the mutants whose code some case executed, how many were killed. None: nothing is known of any."""
        judged = self.parts[Fate.KILLED] + self.parts[Fate.SURVIVED]
        return 100 * self.parts[Fate.KILLED] / judged if judged else None

    def __str__(self) -> str:
        score = "-" if self.percent is None else f"{self.percent:.0f} %"
        return f"{score:>7}" + "".join(f"{self.parts[part]:13}" for part in PARTS)

    def as_data(self) -> dict[str, object]:
        percent: dict[str, object] = {"percent": self.percent}
        return percent | {part.replace(" ", "_"): self.parts[part] for part in PARTS}


@dataclass(frozen=True)
class Score:
    """What is known of the points of one build. ``equivalents``: reasons by the points' ids."""

    build: str
    version: str
    key: str
    listing: Listing
    outcomes: Mapping[str, Outcome]
    equivalents: Mapping[str, str]
    areas: Areas

    @property
    def finished(self) -> float:
        """When a mutant was last tried, seconds since the epoch; 0: never."""
        return max((one.finished for one in self.outcomes.values()), default=0.0)

    def part(self, point: Point) -> str:
        if point.id in self.equivalents:
            return EQUIVALENT
        outcome = self.outcomes.get(point.id)
        return outcome.fate if outcome else NOT_TRIED

    def tally(self, files: Iterable[str]) -> Tally:
        wanted = set(files)
        return Tally(Counter(self.part(point) for point in self.listing.points if point.file in wanted))

    @property
    def files(self) -> list[str]:
        return sorted({point.file for point in self.listing.points})

    def by_area(self) -> Iterator[tuple[str, Tally]]:
        """Only areas with points."""
        for area, patterns in self.areas.items():
            if files := files_of(patterns, self.files):
                yield area, self.tally(files)

    def by_file(self) -> Iterator[tuple[str, Tally]]:
        for file in self.files:
            yield file, self.tally([file])

    def by_tried_file(self) -> Iterator[tuple[str, Tally]]:
        """Only files of which something was tried."""
        return (row for row in self.by_file() if row[1].parts.total() > row[1].parts[NOT_TRIED])

    def survivors(self, files: Iterable[str] | None = None) -> list[Point]:
        wanted = set(self.files if files is None else files)
        return [point for point in self.listing.points if point.file in wanted and self.part(point) == Fate.SURVIVED]

    # -- text ----------------------------------------------------------------------------------------------------

    def lines(self, files: Iterable[str] | None = None, *, survivors: bool = True) -> Iterator[str]:
        """The numbers of these files, default all, and the survivors with what ran."""
        wanted = [file for file in self.files if files is None or file in set(files)]
        yield f"build {self.build}  Xen {self.version}  key {self.key}  mutants {len(self.listing.points)}"
        yield (
            f"beside them {self.listing.does_not_compile} that do not compile, "
            f"and {self.listing.no_code} of no code in this configuration"
        )
        yield ""
        yield f"{'':40}{HEAD}"
        yield f"{'all of these':40}{self.tally(wanted)}"
        for area, patterns in self.areas.items():
            if here := files_of(patterns, wanted):
                yield f"{area:40}{self.tally(here)}"
        for file, tally in self.by_tried_file():
            if file in wanted:
                yield f"  {file:38}{tally}"
        if survivors and (found := self.survivors(wanted)):
            yield ""
            yield "survived: each is a case to be written, or an equivalent with a reason"
            for point in found:
                yield ""
                yield from self.of_point(point)

    def of_point(self, point: Point) -> Iterator[str]:
        """One mutant, its diff, and what ran."""
        where = f"{point.place} in {point.function}"
        yield f"point {point.number} (id {point.id}): {point.kind}, {where}: {self.part(point)}"
        if reason := self.equivalents.get(point.id):
            yield f"  {reason}"
        yield from (f"    {line}" for line in point.diff.rstrip().splitlines()[2:])
        if outcome := self.outcomes.get(point.id):
            if outcome.board:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(outcome.finished))
                yield f"  tried on {outcome.board} at {when} for {outcome.seconds:.0f} s"
            yield from (f"  {one.line()}" for one in outcome.ran)
            if not outcome.ran:
                yield "  no case executes this line"

    def as_data(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "build": self.build,
            "version": self.version,
            "key": self.key,
            "all": self.tally(self.files).as_data(),
            "areas": {area: tally.as_data() for area, tally in self.by_area()},
            "files": {file: tally.as_data() for file, tally in self.by_file()},
            "points": [
                {"number": point.number, "id": point.id, "kind": point.kind, "place": point.place, "diff": point.diff}
                | {"fate": self.part(point), "ran": self.outcomes[point.id].ran if point.id in self.outcomes else ()}
                for point in self.listing.points
            ],
        }


def of_folder(folder: ScoreFolder, root: Path = paths.SHIPPED) -> Score:
    """The score of one build, with the areas of the cases below ``root``.

    :raises BenchError: what is kept of the build is damaged.
    """
    build, version, points = folder.about()
    outcomes = {one.id: one for one in folder.outcomes()}
    return Score(build, version, folder.path.name, points, outcomes, equivalents.load(), areas.load(root))


def every() -> list[Score]:
    """The scores of all builds of which something was tried, the newest first."""
    found = []
    for folder in ScoreFolder.every():
        try:
            found.append(of_folder(folder))
        except BenchError as error:
            log.warning("not shown: %s", error)
    return sorted((one for one in found if one.outcomes), key=lambda one: -one.finished)
