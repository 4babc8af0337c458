"""Since when a case fails: the first build of its failing stretch, and the last good build before it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import sqlalchemy as sa

from lab.history.records import COUNTED, Place, RecordedBuild, place_of
from lab.history.schema import builds, cases, results, runs, series
from lab.history.store import History, named
from lab.results.record import BUILD_CASE, Verdict

_AT_ONCE = 200  # series in one statement


@dataclass(frozen=True, slots=True)
class Onset:
    """When a series began to fail. Builds are in the order of their first runs."""

    series_id: int
    since: RecordedBuild  # the first build of the stretch of builds with a FAIL
    since_at: Place
    good: RecordedBuild | None  # the newest build before it that only passed
    good_at: Place | None
    tested: int = 1  # builds of the stretch
    is_oldest: bool = True  # its line has no build before ``since``

    @property
    def never(self) -> str:
        """Why no build is known with which the case passed; empty where one is."""
        if self.good:
            return ""
        if self.is_oldest:
            return "only one build was tested" if self.tested == 1 else "failed with every build tested"
        return "skipped or not run until now" if self.tested == 1 else "failed with every build that ran it"

    @property
    def oldest(self) -> str:
        """Where no build was good, the words before the title of ``since``: the oldest one tested is no culprit."""
        if self.tested == 1:
            return (
                "has failed with the only build tested,"
                if self.is_oldest
                else "fails with the first build that ran it,"
            )
        return f"has {self.never}; the oldest is"

    def is_after(self, first: RecordedBuild) -> bool:
        """Whether a fault that shows first with ``first`` is older than the failing stretch."""
        return first.first_seen < self.since.first_seen


def onsets(history: History, series_ids: Sequence[int], until: RecordedBuild) -> dict[int, Onset]:
    """For each series that fails with ``until``, or with the newest build before it that has attempts."""
    found: dict[int, Onset] = {}
    unique = sorted(set(series_ids))
    for start in range(0, len(unique), _AT_ONCE):
        found |= _onsets(history, unique[start : start + _AT_ONCE], until)
    return found


@dataclass(frozen=True, slots=True)
class _OfBuild:
    build_id: int
    first_fail: int | None
    last_pass: int | None


def _onsets(history: History, series_ids: Sequence[int], until: RecordedBuild) -> dict[int, Onset]:
    first, last = sa.func.min(results.c.id).label("first"), sa.func.max(results.c.id).label("last")
    own = (
        sa.select(results.c.series_id, results.c.build_id, results.c.verdict, first, last, builds.c.first_seen)
        .join_from(results, builds)
        .where(results.c.series_id.in_(series_ids), results.c.verdict.in_(COUNTED))
        .where(builds.c.first_seen <= until.first_seen)
        .group_by(results.c.series_id, results.c.build_id, results.c.verdict, builds.c.first_seen)
    )
    made = (  # a build with which any case passed could be made, though only a failure to make one is a result
        sa.select(
            series.c.id.label("series_id"), results.c.build_id, results.c.verdict, first, last, builds.c.first_seen
        )
        .select_from(series)
        .join(cases, cases.c.id == series.c.case_id)
        .join(builds, builds.c.line == series.c.line)
        .join(results, results.c.build_id == builds.c.id)
        .where(series.c.id.in_(series_ids), cases.c.name == BUILD_CASE, results.c.verdict == Verdict.PASS.value)
        .where(builds.c.first_seen <= until.first_seen)
        .group_by(series.c.id, results.c.build_id, results.c.verdict, builds.c.first_seen)
    )
    both = sa.union_all(own, made).subquery()
    wanted = sa.select(both).order_by(both.c.series_id, both.c.first_seen.desc(), both.c.build_id.desc())
    chosen: dict[int, tuple[_OfBuild, _OfBuild | None]] = {}
    tested: Counter[int] = Counter()
    with history.transaction(writes=False) as connection:
        rows = connection.execute(wanted).mappings().all()
        for series_id, of_series in groupby(rows, key=lambda row: int(row["series_id"])):
            stretch, good = None, None
            for build_id, of_build in groupby(of_series, key=lambda row: int(row["build_id"])):
                ends = {row["verdict"]: row for row in of_build}
                if "FAIL" in ends:
                    stretch = _OfBuild(build_id, int(ends["FAIL"]["first"]), None)
                    tested[series_id] += 1
                else:
                    good = _OfBuild(build_id, None, int(ends["PASS"]["last"]))
                    break
            if stretch:
                chosen[series_id] = stretch, good
        needed = [one for pair in chosen.values() for one in pair if one]
        places: dict[int, Place] = {}
        for number in [one.first_fail or one.last_pass for one in needed]:
            where = sa.select(*named(runs.c.name, results.c.rule, results.c.ordinal)).join_from(results, runs)
            row = connection.execute(where.where(results.c.id == number)).mappings().one()
            places[number or 0] = place_of(row)
    known = {build.id: build for build in history.builds()}
    oldest: dict[str, RecordedBuild] = {}
    for build in known.values():
        oldest.setdefault(build.line, build)
    return {
        series_id: Onset(
            series_id,
            since=known[since.build_id],
            since_at=places[since.first_fail or 0],
            good=known[good.build_id] if good else None,
            good_at=places[good.last_pass or 0] if good else None,
            tested=tested[series_id],
            is_oldest=oldest[known[since.build_id].line].id == since.build_id,
        )
        for series_id, (since, good) in chosen.items()
    }


def bisect_command(case: str, onset: Onset) -> str | None:
    """The command that finds the commit; None where builds do not know their commits, or none was good."""
    good, bad = onset.good, onset.since
    if (
        case == BUILD_CASE
        or good is None
        or not good.source.commit
        or not bad.source.commit
        or good.source.commit == bad.source.commit
    ):
        return None
    words = ["./xenlab", "bisect", "--case", case, "--good", good.source.commit, "--bad", bad.source.commit]
    return shlex.join([*words, "--build", bad.line])


@dataclass(frozen=True, slots=True)
class Failed:
    """A result of a run that neither passed nor was skipped, with what was good before it."""

    place: Place
    series_id: int
    case: str
    build: RecordedBuild
    is_failure: bool  # FAIL; else MISS or ERROR
    failure: str  # its name
    good: RecordedBuild | None
    good_at: Place | None
    good_folder: str | None


def failed_in(history: History, run_id: int) -> list[Failed]:
    """What went wrong in a run; to each the last PASS of its series before it."""
    wanted = (
        sa.select(*named(runs.c.name, *results.c, *builds.c, cases.c.name))
        .join_from(results, builds)
        .join(runs, runs.c.id == results.c.run_id)
        .join(series, series.c.id == results.c.series_id)
        .join(cases, cases.c.id == series.c.case_id)
        .where(results.c.run_id == run_id, results.c.verdict.not_in(("PASS", "SKIP")))
    )
    before = (
        sa.select(*named(runs.c.name, runs.c.folder, results.c.ordinal, results.c.rule, *builds.c))
        .join_from(results, builds)
        .join(runs, runs.c.id == results.c.run_id)
        .where(results.c.series_id == sa.bindparam("series"), results.c.verdict == sa.literal("PASS"))
        .where(results.c.started < sa.bindparam("until"))
        .order_by(results.c.started.desc())
        .limit(1)
    )
    found = []
    with history.transaction(writes=False) as connection:
        for row in connection.execute(wanted).mappings().all():
            values = {"series": row["results_series_id"], "until": row["results_started"]}
            good = connection.execute(before, values).mappings().first()
            found.append(
                Failed(
                    place=place_of(row),
                    series_id=row["results_series_id"],
                    case=row["cases_name"],
                    build=RecordedBuild.of(row),
                    is_failure=row["results_verdict"] == "FAIL",
                    failure=row["results_failure"],
                    good=RecordedBuild.of(good) if good else None,
                    good_at=place_of(good) if good else None,
                    good_folder=good["runs_folder"] if good else None,
                )
            )
    return found
