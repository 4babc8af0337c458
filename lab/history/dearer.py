"""What became of each cost with a build, against a baseline: the gate's rule for figures. docs/history.md states it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lab.history import levels, tracks
from lab.history.figures import LEAST_COUNT, LEAST_TIME, Change, Compared, compare
from lab.history.records import RecordedBuild, Selected
from lab.history.schema import results
from lab.history.store import History
from lab.history.tracks import Point, Track, Value

REFERENCE = 20  # values, the newest ones at the baseline's level, that a build is compared with

Key = tuple[str, str, str, str]  # figure, case, board class, boards


@dataclass(frozen=True, slots=True)
class FigureChange:
    """What became of a figure. ``found.verdict`` is MISSING with ``has_baseline`` False where nothing is before it."""

    track: Track
    found: Compared
    why: str
    value: Value | None = None  # the newest with the build
    has_baseline: bool = True

    @property
    def change(self) -> Change:
        """What became of it."""
        return self.found.verdict

    def line(self, word: str = "") -> str:
        """One line, that begins with ``word`` (default: the change)."""
        where = f"{self.track.figure} on {self.track.boards} [{self.track.series.board_class}]"
        return f"{word or self.change:<19}  {where}: {self.why}"


class Costs:
    """What builds cost against each other; what was read once is kept."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._measured: dict[int, set[int]] = {}
        self._tracks: dict[int, list[Track]] = {}

    def has(self, build: RecordedBuild) -> bool:
        """Whether any cost was measured with a build."""
        return bool(self._series(build))

    def judged(self, new: Selected, base: Selected) -> list[FigureChange]:
        """Every figure that either has."""
        wanted = self._series(new.build) | self._series(base.build)
        if missing := wanted - self._tracks.keys():
            for track in tracks.read(self._history, sorted(missing)):
                self._tracks.setdefault(track.series.id, []).append(track)
        mine = [track for id in sorted(wanted) for track in self._tracks.get(id, ())]
        here = {_key(track): track for track in mine if track.series.line == new.build.line}
        there = {_key(track): track for track in mine if track.series.line == base.build.line}
        both = {**there, **here}
        found = [_judged(here.get(key), there.get(key), new, base) for key in sorted(both)]
        return [one for one in found if one]

    def _series(self, build: RecordedBuild) -> set[int]:
        if build.id not in self._measured:
            self._measured[build.id] = {*tracks.measured(self._history, results.c.build_id == build.id)}
        return self._measured[build.id]


def _key(track: Track) -> Key:
    return track.figure, track.series.case, track.series.board_class, track.boards


def _judged(here: Track | None, there: Track | None, new: Selected, base: Selected) -> FigureChange | None:
    """None where neither the build nor the baseline has the figure."""
    now = [value for point in _points(here) if point.build.id == new.build.id for value in point.values]
    now = [value for value in now if new.run in ("", value.place.run)]
    earlier = [*_without(_points(there), new)]
    before = [point for point in earlier if _order(point.build) <= _order(base.build)][-tracks.SHOWN :]
    between = [point for point in earlier if _order(base.build) < _order(point.build) < _order(new.build)]
    track = here or there
    own = before[-1].numbers if before and before[-1].build.id == base.build.id else []
    if track is None or not (now or own):
        return None
    nothing = Compared(track.figure, track.boards, (), (), Change.MISSING)
    if not now:
        return FigureChange(track, nothing, f"not measured with this build; {_middle(own)} with the baseline")
    if not before:
        return FigureChange(track, nothing, "nothing before it to compare with", now[-1], has_baseline=False)
    return _compared(track, now, own, before, between[-tracks.SHOWN :])


def _compared(
    track: Track, now: Sequence[Value], own: Sequence[float], before: Sequence[Point], between: Sequence[Point]
) -> FigureChange:
    found = levels.levels([point.numbers for point in (*before, *between)], is_count=track.is_count)
    at = next(at for at, level in enumerate(found) if level.end >= len(before))
    reference = [number for point in before[found[at].first :] for number in point.numbers][-REFERENCE:]
    least = LEAST_COUNT if track.is_count else LEAST_TIME
    if own and abs(statistics.median(own) / statistics.median(reference) - 1) >= least:
        reference = [*own]  # it was accepted so, and no build has shown yet that it stays
    noises = [level.noise for level in found[at:] if level.noise is not None]
    values = [value.number for value in now]
    known = max(noises, default=0.0)
    one = compare(track.figure, track.boards, reference, values, is_count=track.is_count, known=known)
    why = [
        f"{_middle(reference)} -> {_middle(values)}, {one.change:+.2%}",
        f"noise {one.noise:.2%}" if noises else "no noise known: there is one value before",
        f"{len(values)} value{'s' * (len(values) > 1)} against {len(reference)} at the baseline's level",
    ]
    if not noises and one.verdict in (Change.MORE, Change.LESS):
        one = replace(one, verdict=Change.UNDECIDED)
    if one.p is not None:
        why.append(f"p={one.p:.3f}")
    elif one.verdict is Change.UNDECIDED and not track.is_count:
        why.append("one value of a time does not decide")
    return FigureChange(track, one, "; ".join(why), now[-1])


def _points(track: Track | None) -> Sequence[Point]:
    return track.points if track else ()


def _without(points: Sequence[Point], new: Selected) -> Iterator[Point]:
    """All but what was measured with what is judged."""
    for point in points:
        if point.build.id != new.build.id:
            yield point
        elif new.run and (values := tuple(value for value in point.values if value.place.run != new.run)):
            yield replace(point, values=values)


def _order(build: RecordedBuild) -> tuple[float, int]:
    return build.first_seen, build.id


def _middle(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.6g}"


# -- words -------------------------------------------------------------------------------------------------------


def lines(found: Sequence[FigureChange], word: str = "") -> list[str]:
    """What is not just as it was: what costs more first, behind ``word``; what was not measured in a line a board."""
    told = [one.line(f"{word}{one.change}") for one in found if one.change is Change.MORE]
    told += [one.line() for change in (Change.UNDECIDED, Change.LESS) for one in found if one.change is change]
    lost: dict[str, list[FigureChange]] = {}
    for one in found:
        if one.change is Change.MISSING and one.has_baseline:
            lost.setdefault(f"{one.track.boards} [{one.track.series.board_class}]", []).append(one)
    for where, ones in lost.items():
        more = f" and {len(ones) - 1} more of the baseline's figures" if len(ones) > 1 else ""
        told.append(f"{Change.MISSING:<19}  on {where}: {ones[0].track.figure}{more}")
    return told


def counted(number: int) -> str:
    """``1 figure costs more``, ``2 figures cost more``"""
    return f"{number} figure{' costs' if number == 1 else 's cost'} more"


def summed(found: Sequence[FigureChange]) -> str:
    """``figures: 1 costs more, 52 no change``; empty where there are none."""
    numbers: Mapping[str, int] = {
        change.value: sum(one.change is change and one.has_baseline for one in found) for change in Change
    } | {"new": sum(not one.has_baseline for one in found)}
    words = [f"{number} {word}" for word, number in numbers.items() if number]
    return f"figures: {', '.join(words)}" if words else ""
