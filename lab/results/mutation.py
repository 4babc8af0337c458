"""What came of mutation points: a folder for each build, with a file for each point that was tried.

::

    KEY/score.json              the build's name and version
    KEY/points.json             a copy of the build's list of points
    KEY/plan.json               what the running command tries: points and their cases, in order
    KEY/lock                    held by the command that tries points of this build
    KEY/points/ID/              a run folder: what the cases left while the point was on
    KEY/points/ID/outcome.json  what came of it; not there while it is tried
    KEY/controls/N/             run folders of cases that ran without a mutant
"""

from __future__ import annotations

import dataclasses
import enum
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths, shape
from lab.base.errors import BenchError
from lab.mutation.listing import Listing
from lab.results.record import Verdict

_OUTCOME, _PLAN, _ABOUT = "outcome.json", "plan.json", "score.json"


class Fate(enum.StrEnum):
    """What became of a mutant."""

    KILLED = "killed"  # a case FAILs with it, and passes without it
    SURVIVED = "survived"  # its code was executed, and all cases passed
    NOT_COVERED = "not covered"  # no case executes its code
    NOT_JUDGED = "not judged"  # no case FAILed, and one was a MISS or an ERROR


@dataclass(frozen=True, slots=True)
class Ran:
    """A case that ran while a point was on. ``reached``: how often the point was executed; None: not known."""

    case: str
    verdict: Verdict
    reason: str
    seconds: float
    reached: int | None

    def line(self) -> str:
        """For a reader."""
        times = "board lost" if self.reached is None else f"executed {self.reached} times"
        return (
            f"{self.verdict:5} {self.case.rpartition('::')[2]}  {self.seconds:.0f} s, {times}  {self.reason}".rstrip()
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one point. ``board`` is empty where nothing had to run."""

    id: str
    number: int
    fate: Fate
    ran: tuple[Ran, ...] = ()
    board: str = ""
    finished: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # with all reboots and runs without the mutant


@dataclass(frozen=True, slots=True)
class Trial:
    """A point to be tried, and the cases to try it with, in this order."""

    id: str
    number: int
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class _About:
    build: str
    version: str


class ScoreFolder:
    """All that came of the points of one build; several processes write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_build(cls, key: str) -> ScoreFolder:
        folder = cls(paths.state() / "mutation" / key)
        (folder.path / "points").mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def every(cls) -> list[ScoreFolder]:
        """Those of all builds, the one that was tried last first."""
        found = [one for one in (paths.state() / "mutation").glob("*") if (one / "points").is_dir()]
        return [cls(one) for one in sorted(found, key=lambda one: -(one / "points").stat().st_mtime)]

    # -- the build and its points ---------------------------------------------------------------------------------

    def note(self, build: str, version: str, points: Listing) -> None:
        """Keep what is said of the build, so that its score outlives it."""
        points.save(self.path)
        _write(self.path / _ABOUT, _About(build, version))

    def about(self) -> tuple[str, str, Listing]:
        """The build's name and version, and its points. :raises BenchError: they were not noted, or are damaged."""
        try:
            about = shape.read(_About, paths.read_regular(self.path / _ABOUT))
        except (OSError, ValueError) as error:
            raise BenchError(f"{self.path / _ABOUT}: {error}") from None
        return about.build, about.version, Listing.load(self.path)

    # -- the plan ------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Path:
        return self.path / _PLAN

    def write_plan(self, trials: Sequence[Trial]) -> None:
        _write(self.plan, _Plan(tuple(trials)))

    @staticmethod
    def read_plan(file: Path) -> list[Trial]:
        """:raises BenchError: it cannot be read."""
        try:
            return list(shape.read(_Plan, paths.read_regular(file)).trials)
        except (OSError, ValueError) as error:
            raise BenchError(f"{file}: {error}") from None

    # -- points --------------------------------------------------------------------------------------------------

    def of_point(self, point: str) -> Path:
        return self.path / "points" / point

    def claim(self, point: str) -> bool:
        """Take a point for this process; False: another one has it, or it is done."""
        try:
            self.of_point(point).mkdir()
        except FileExistsError:
            return False
        return True

    def forget(self, point: str) -> None:
        """Have a point tried again."""
        shutil.rmtree(self.of_point(point), ignore_errors=True)

    def forget_unfinished(self) -> None:
        """Have what a process that died had in hand tried again."""
        for one in (self.path / "points").iterdir():
            if not (one / _OUTCOME).exists():
                shutil.rmtree(one, ignore_errors=True)

    def write(self, outcome: Outcome) -> None:
        folder = self.of_point(outcome.id)
        folder.mkdir(exist_ok=True)
        _write(folder / f".{_OUTCOME}", outcome)
        (folder / f".{_OUTCOME}").rename(folder / _OUTCOME)

    def outcomes(self) -> Iterator[Outcome]:
        """Those that are finished, in no order. A damaged one counts as not tried."""
        for file in (self.path / "points").glob(f"*/{_OUTCOME}"):
            try:
                yield shape.read(Outcome, paths.read_regular(file))
            except (OSError, ValueError):
                continue


def _write(file: Path, record: _About | _Plan | Outcome) -> None:
    file.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
