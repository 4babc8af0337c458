"""The costs that runs measured, figure by figure over the builds of a line, as the history has them.

A track has one board: values of two boards are never mixed. A result that failed has no figures that count.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import sqlalchemy as sa

from lab.base.errors import UsageError, did_you_mean
from lab.history import levels
from lab.history.figures import COUNT, UNITS, is_cost, stem
from lab.history.levels import Level
from lab.history.records import Place, RecordedBuild, Series, figures_of, place_of
from lab.history.schema import builds, results
from lab.history.store import RECORDED, History

SHOWN = 60  # builds of a track
FRESH = 10  # builds for which a step is news, as many as the gate looks back

_MEASURED = sa.or_(*(results.c.figures.contains(f'{unit}"', autoescape=True) for unit in UNITS))
_COUNTED = results.c.verdict.in_(("PASS", "MISS"))


@dataclass(frozen=True, slots=True)
class Value:
    """One measurement; ``place``: the result that has it."""

    number: float
    place: Place


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured with one build, in the order of time."""

    build: RecordedBuild
    values: tuple[Value, ...]

    @property
    def numbers(self) -> list[float]:
        return [value.number for value in self.values]


@dataclass(frozen=True, slots=True)
class Step:
    """Where a figure moved and stayed. ``change`` is a share of the old level: 0.01 is 1 %."""

    good: Point  # the last build with the old level
    since: Point  # the first with the new one
    old: Level
    new: Level

    @property
    def change(self) -> float:
        return self.new.median / self.old.median - 1

    @property
    def title(self) -> str:
        """``+2.03 % since release 4.20 abc1234 (24 Nov)``"""
        return f"{self.change:+.2%} since {self.since.build.title}"


@dataclass(frozen=True)
class Track:
    """A figure of a case on one board (or boards that belong together) over the builds of a line, the oldest first."""

    figure: str
    series: Series
    boards: str
    points: tuple[Point, ...]

    @property
    def is_count(self) -> bool:
        return self.figure.endswith(COUNT)

    @property
    def where(self) -> str:
        """``release on small (counted-small)``"""
        return f"{self.series.line} on {self.boards} ({self.series.board_class})"

    @cached_property
    def levels(self) -> list[Level]:
        """The levels, the oldest first."""
        return levels.levels([point.numbers for point in self.points], is_count=self.is_count)

    @property
    def steps(self) -> list[Step]:
        """Where one level follows another, the oldest first."""
        pairs = zip(self.levels, self.levels[1:], strict=False)
        return [Step(self.points[new.first - 1], self.points[new.first], old, new) for old, new in pairs]

    @property
    def fresh(self) -> Step | None:
        """The newest step, while it is news."""
        steps = self.steps
        return steps[-1] if steps and len(self.points) - steps[-1].new.first <= FRESH else None


def bisect_command(track: Track, step: Step) -> str:
    """The command that finds the commit of a step; empty where builds do not know their commits, or have the same."""
    good, bad = step.good.build.source.commit, step.since.build.source.commit
    if not good or not bad or good == bad:
        return ""
    words = ["./xenlab", "bisect", "--figure", track.figure, "--case", track.series.case, "--good", good, "--bad", bad]
    return shlex.join([*words, "--build", track.series.line, "--board", track.boards])


def of_runs(history: History, run_ids: Sequence[int]) -> list[Track]:
    """All tracks that have values in these runs, each with its last :data:`SHOWN` builds."""
    return [_last(track) for track in read(history, measured(history, results.c.run_id.in_(run_ids)))]


def of_figure(history: History, text: str) -> list[Track]:
    """The tracks of a figure by its name, with or without its unit.

    :raises UsageError: no such figure.
    """
    found = read(history, measured(history, results.c.figures.contains(f'"{text}', autoescape=True)))
    mine = [_last(track) for track in found if text in (track.figure, stem(track.figure))]
    if not mine:
        names = sorted({track.figure for track in read(history, measured(history, sa.true()))})
        some = f"; there are: {', '.join(names)}" if names else ": no run measured a cost"
        raise UsageError(f"history has no figure {text!r}{did_you_mean(text, names) or some}")
    return mine


def _last(track: Track) -> Track:
    return replace(track, points=track.points[-SHOWN:])


def measured(history: History, which: sa.ColumnElement[bool]) -> list[int]:
    """The series whose results that are chosen measured costs."""
    wanted = sa.select(results.c.series_id).where(which, _COUNTED, _MEASURED).distinct()
    with history.transaction(writes=False) as connection:
        return list(connection.scalars(wanted))


def read(history: History, series_ids: Sequence[int]) -> list[Track]:
    """The tracks of these series, by figure, line and board."""
    if not series_ids:
        return []
    wanted = RECORDED.where(results.c.series_id.in_(series_ids), _COUNTED, _MEASURED).order_by(
        builds.c.first_seen, builds.c.id, results.c.started, results.c.id
    )
    of: dict[int, RecordedBuild] = {}
    found: dict[tuple[str, Series, str], dict[int, list[Value]]] = {}
    with history.transaction(writes=False) as connection:
        for row in connection.execute(wanted).mappings():
            build_id, place, mine = row["results_build_id"], place_of(row), Series.of(row)
            of[build_id] = of.get(build_id) or RecordedBuild.of(row)
            for name, number in figures_of(row["results_figures"]).items():
                if name.endswith(UNITS) and is_cost(number):
                    track = found.setdefault((name, mine, row["results_boards"]), {})
                    track.setdefault(build_id, []).append(Value(number, place))
    tracks = [
        Track(name, mine, boards, tuple(Point(of[id], tuple(values)) for id, values in points.items()))
        for (name, mine, boards), points in found.items()
    ]
    return sorted(tracks, key=lambda one: (one.figure, one.series.line, one.series.board_class, one.boards))
