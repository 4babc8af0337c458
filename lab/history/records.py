"""What the history gives: builds, series, runs and results, read from named columns."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.engine import RowMapping

from lab.results.build_source import Source
from lab.results.failures import KnownFinding
from lab.results.record import Verdict
from lab.results.summary import DID_NOT_RUN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")

COUNTED = ("PASS", "FAIL")
VERDICTS = {one.value: one for one in Verdict}
ENTRY_COLUMNS = (
    *("verdict", "rule", "reason", "boards", "started", "seconds"),
    *("fingerprint", "failure", "known", "figures", "ordinal"),
)
RUN_KEY = "run:"  # how the key of a build begins that its run did not identify


def day(when: float) -> str:
    """``2026-11-23 08:33``, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


def read(kind: type[R], row: RowMapping, prefix: str = "", **given: object) -> R:
    """A record: what is given, and all other fields from the columns that have their names behind ``prefix``."""
    make: Callable[..., R] = kind
    return make(**given, **{name: row[prefix + name] for name in _fields(kind) if name not in given})


@cache
def _fields(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(kind))


@dataclass(frozen=True, slots=True)
class RecordedBuild:
    """A hypervisor build: what a recipe (its line) made at a time. Times are seconds since the epoch."""

    id: int
    line: str
    key: str
    build_id: str
    version: str
    first_seen: float
    last_seen: float
    accepted: float | None
    source: Source = Source()

    @classmethod
    def of(cls, row: RowMapping) -> RecordedBuild:
        """From the columns of the table ``builds``."""
        source = Source.read({name: row[f"builds_source_{name}"] for name in Source.__slots__})
        return read(cls, row, "builds_", source=source)

    @property
    def label(self) -> str:
        """``pv32-debug@34c8e9c8``: the name that commands take."""
        return label(self.line, self.key)

    @property
    def title(self) -> str:
        """``pv32-debug 4.20 abc1234 (24 Nov)``: the name that people read."""
        return _title(self)

    @property
    def date(self) -> str:
        """``24 Nov``: of the commit, else of the first run. With the year where that is another than the run's."""
        seen = time.gmtime(self.first_seen)
        text = (self.source.date or "")[:10]
        try:
            when = time.strptime(text, "%Y-%m-%d")
        except ValueError:
            when = seen
        year = f" {when.tm_year}" if when.tm_year != seen.tm_year else ""
        return f"{when.tm_mday} {time.strftime('%b', when)}{year}"

    @property
    def dated_title(self) -> str:
        """``pv32-debug 4.20 abc1234 (commit of 24 Nov)``: the title where its date may be taken for the night's."""
        of = "commit of" if self.source.date else "first run"
        return f"{self.title.removesuffix(f'({self.date})')}({of} {self.date})"

    @property
    def is_known(self) -> bool:
        """Whether its run noted what it was."""
        return not self.key.startswith(RUN_KEY)


@lru_cache(maxsize=4096)  # a page names the same few builds many times, and a date takes long to read
def _title(build: RecordedBuild) -> str:
    name = build.source.name or build.key.removeprefix(RUN_KEY)[:8]
    name = "" if build.source.package and build.source.version == build.version else name  # said once
    return " ".join(filter(None, (build.line, build.version, name, f"({build.date})")))


def label(line: str, key: str) -> str:
    """A build's name, short enough to be read."""
    return f"{line}@{key if key.startswith(RUN_KEY) else key[:8]}"


@dataclass(frozen=True, slots=True)
class Selected:
    """All results of a build, or those of one run with it."""

    build: RecordedBuild
    run: str = ""
    run_id: int | None = None

    @property
    def label(self) -> str:
        return f"run {self.run} ({self.build.label})" if self.run else self.build.label


@dataclass(frozen=True, slots=True)
class Series:
    """A case on a class of boards with a line of builds."""

    id: int
    case: str
    line: str
    board_class: str

    @classmethod
    def of(cls, row: RowMapping) -> Series:
        """From the columns of the tables ``series`` and ``cases``."""
        return cls(row["series_id"], row["cases_name"], row["series_line"], row["series_board_class"])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result is: its run, and its place there. -1: it was planned, and did not run."""

    run: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a series ended with a verdict on the same boards; the rest is of the last of these attempts."""

    series: Series
    boards: str
    verdict: Verdict
    number: int
    rule: str
    reason: str
    failure: str
    known: tuple[KnownFinding, ...]  # excused by these
    bad: tuple[str, ...]  # checks that failed
    place: Place

    @classmethod
    def of(cls, row: RowMapping) -> Tally:
        return read(
            cls,
            row,
            "results_",
            series=Series.of(row),
            boards=row["boards"],
            verdict=VERDICTS[row["verdict"]],
            number=row["number"],
            known=known_of(row["results_known"]),
            bad=tuple(row["results_bad"].split()),
            place=place_of(row),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt, for the page of a case. ``started`` in seconds since the epoch."""

    series: Series
    build: RecordedBuild
    verdict: Verdict
    rule: str
    reason: str
    boards: str
    started: float
    seconds: float  # without bringing boards to the build
    fingerprint: str
    failure: str
    known: tuple[KnownFinding, ...]
    figures: Mapping[str, float]
    place: Place

    @property
    def run(self) -> str:
        return self.place.run

    @property
    def ordinal(self) -> int:
        return self.place.ordinal

    @classmethod
    def of(cls, series: Series, build: RecordedBuild, run: str, row: Sequence[Any]) -> Entry:
        """From the ``ENTRY_COLUMNS`` of a row of the table ``results``; what many rows share is given."""
        verdict, rule, reason, boards, started, seconds, fingerprint, failure, known, figures, ordinal = row
        return cls(
            *(series, build, VERDICTS[verdict], rule, reason, boards, started, seconds, fingerprint, failure),
            known=known_of(known) if known else (),
            figures=figures_of(figures),
            place=Place(run, -1 if rule == DID_NOT_RUN else ordinal),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was taken over, and from which folder. Times are seconds since the epoch."""

    id: int
    name: str
    started: float
    finished: float | None
    exit_status: int | None
    selection: str
    folder: Path

    @classmethod
    def of(cls, row: RowMapping) -> Run:
        return read(cls, row, folder=Path(row["folder"]))


@dataclass(frozen=True, slots=True)
class Seen:
    """A crash or another failure over the builds; ``cases`` by name, ``boards`` as results name them."""

    name: str
    first: RecordedBuild
    first_case: str  # one that showed it with that build
    last: RecordedBuild
    number: int
    builds: int
    cases: tuple[str, ...]
    first_started: float


def figures_of(text: str) -> Mapping[str, float]:
    """Figures by name, as the table ``results`` has them."""
    return json.loads(text) if text else {}


def known_of(text: str) -> tuple[KnownFinding, ...]:
    """``finding:check,check finding`` as the table ``results`` has it."""
    parts = [word.partition(":") for word in text.split()]
    return tuple(KnownFinding(name, tuple(filter(None, checks.split(",")))) for name, _, checks in parts)


def known_text(known: tuple[KnownFinding, ...]) -> str:
    """What :func:`known_of` reads back."""
    return " ".join(f"{one.name}:{','.join(one.checks)}".rstrip(":") for one in known)


def place_of(row: RowMapping) -> Place:
    """From the columns of ``runs`` and ``results``."""
    return Place(row["runs_name"], -1 if row["results_rule"] == DID_NOT_RUN else row["results_ordinal"])
