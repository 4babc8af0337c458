"""Tries the mutants of a build on all boards, each with the cases that execute its line, and gives the score.

A board tries one mutant after the other in one pytest session (:mod:`lab.case.mutating`). The boards share one plan:
each takes the next point that no other has taken. What was tried before is not tried again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import builds, inventory
from lab.base import paths, processes
from lab.base.daytime import Deadline
from lab.base.errors import BenchError, UsageError, did_you_mean
from lab.base.files import read_yaml
from lab.builds import Build
from lab.builds.matrix import Variant
from lab.coverage import areas, measured
from lab.coverage.areas import files_of
from lab.coverage.measured import Measured
from lab.grid import services
from lab.history.store import History
from lab.leases.ledger import Ledger
from lab.mutation import equivalents, listing
from lab.mutation.listing import Listing, Point
from lab.night import planning
from lab.night.crew import Crew
from lab.night.lab_services import in_use, prepare
from lab.night.options import VIRTUAL_LAB, NightlyOptions, Selection
from lab.night.planning import Share
from lab.night.workers import pytest_command, spawn
from lab.reporting.mutation import Score, of_folder
from lab.results import run_folder
from lab.results.mutation import Fate, Outcome, ScoreFolder, Trial
from lab.results.record import RunHeader, Verdict
from lab.results.run_folder import RunFolder

BUILD = "mutation"
LONGEST = 24 * 3600.0  # seconds of a command without --for

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to try; no area, file or point: all that the build has."""

    area: str = ""
    file: str = ""
    point: int = 0
    most: int = 0  # points to try at most; 0: all
    seconds: float = LONGEST
    build: str = BUILD
    coverage: str = ""  # a run of nightly --coverage; empty: the newest
    select: Selection = "quick"
    inventory: Path = VIRTUAL_LAB


@dataclass(frozen=True, slots=True)
class Found:
    """The score, the files it was asked for, how many points this command tried, and whether the bench failed."""

    score: Score
    files: tuple[str, ...]
    tried: int
    board_hours: float
    has_failed: bool

    @property
    def rate(self) -> float:
        """Mutants that one board tries in an hour."""
        return self.tried / self.board_hours if self.board_hours else 0.0


def score(build: Build, root: Path = paths.SHIPPED) -> Score:
    """What is known of a build so far. :raises UsageError: it has no mutation points."""
    folder = ScoreFolder.of_build(build.key)
    folder.note(build.name, build.version, build.demand_points())
    return of_folder(folder, root)


def chosen(asked: Asked, listing: Listing) -> list[Point]:
    """The points that are asked for.

    :raises UsageError: no such area, file or point, or none in it.
    """
    if asked.point:
        if asked.point not in listing.by_number():
            raise UsageError(f"--point {asked.point}: the build has no such point; `xenlab mutation --list` shows them")
        return [listing.by_number()[asked.point]]
    files = {point.file for point in listing.points}
    if asked.area:
        known = areas.load(paths.SHIPPED)
        if asked.area not in known:
            there = f"there are: {', '.join(known)}"
            raise UsageError(f"no area {asked.area!r}{did_you_mean(asked.area, list(known))}; {there}")
        files = set(files_of(known[asked.area], files))
    if asked.file:
        files = {one for one in files if one == asked.file or one.endswith(f"/{asked.file}")}
    if not files:
        where = " ".join(f"--{word} {value}" for word, value in (("area", asked.area), ("file", asked.file)) if value)
        why = "its recipe says which files have some, under `mutation`"
        raise UsageError(f"{where or 'the whole build'}: the build has no point in there: {why}")
    return [point for point in listing.points if point.file in files]


def run(asked: Asked, say: Say) -> Found:
    """Try what is asked and was not tried before.

    :raises UsageError: no such build, area, file, point, run or board.
    :raises BenchError: no board, or the lab does not come up.
    """
    lab = inventory.load(asked.inventory)
    build = builds.make(asked.build, progress=say)
    points = chosen(asked, build.demand_points())
    folder = ScoreFolder.of_build(build.key)
    if not processes.hold_for_life(folder.path / "lock"):
        raise UsageError(f"{folder.path}: another `xenlab mutation` tries this build")
    folder.forget_unfinished()
    if asked.point:
        folder.forget(points[0].id)
    trials = _planned(asked, points, folder, say)
    folder.write_plan(trials)
    before = {one.id for one in folder.outcomes()}
    left = [trial for trial in trials if trial.id not in before]
    say(f"{len(points)} mutants: {len(points) - len(left)} need no trial or were tried before, {len(left)} to try")
    hours, has_failed = 0.0, False
    if left:
        deadline = Deadline.at(time.time() + asked.seconds)
        lab = with_states(lab, folder)
        with in_use(lab, progress=say):
            prepare(lab, say)
            hours, has_failed = _Night(asked, lab, folder, left, deadline, say).work()
    done = {one.id for one in folder.outcomes()} - before
    files = tuple(sorted({point.file for point in points}))
    return Found(score(build), files, len(done), hours, has_failed)


def with_states(lab: inventory.Lab, folder: ScoreFolder) -> inventory.Lab:
    """The same lab, whose virtual boards go on from a saved state where a mutant has spoilt them: no boot for each.

    A lab that is up stays as it is, and so does one with machines in it.
    """
    able = {one.name for one in lab.boards.values() if one.can_have_states}
    is_all_virtual = all(one.virtual for one in lab.boards.values())
    if not (able and is_all_virtual) or services.status(services.directory(lab)).processes:
        return lab
    tree = read_yaml(lab.path)
    for entry in _entries(tree, able):
        entry["xenlab"]["virtual"]["saved_states"] = True
    file = folder.path / "lab.yaml"
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")  # which is YAML, too
    return inventory.load(file)


def _entries(tree: Any, names: set[str]) -> Iterator[dict[str, Any]]:
    """The entries of these boards, in whatever group of an inventory they stand."""
    for word, below in tree.items() if isinstance(tree, dict) else ():
        if word == "hosts":
            yield from (entry for name, entry in below.items() if name in names and isinstance(entry, dict))
        elif word != "vars":
            yield from _entries(below, names)


# -- which cases -------------------------------------------------------------------------------------------------------


def _planned(asked: Asked, points: Sequence[Point], folder: ScoreFolder, say: Say) -> list[Trial]:
    """The points with their cases, in the order of the trials. What no case executes gets its outcome at once."""
    cases = {one.nodeid: one for one in planning.collect(NightlyOptions(), asked.select) if one.boards == 1}
    known, took = _coverage(asked.coverage, say)
    durations = {**took, **planning.durations()}
    by_file = {
        area: set(files_of(patterns, {point.file for point in points}))
        for area, patterns in areas.load(paths.SHIPPED).items()
    }
    skipped = equivalents.load()
    found: list[Trial] = []
    unknown: set[str] = set()

    def seconds(case: str) -> float:
        return durations.get(case, planning.GUESSED_SECONDS)

    for point in listing.in_trial_order(points):
        if point.id in skipped:
            continue
        own = {case.nodeid for case in cases.values() if point.file in by_file.get(case.area, ())}
        ordered = tuple(sorted(own, key=lambda name: (seconds(name), name)))
        if known:
            executing, counted = executed_by(known, point)
            unknown |= own - counted
            tried = order(lines_by(known, point, executing & cases.keys()), own, seconds, every=bool(asked.point))
            ordered = (*tried, *(name for name in ordered if name not in counted))
        if not ordered:
            folder.write(Outcome(point.id, point.number, Fate.NOT_COVERED, finished=time.time()))
        found.append(Trial(point.id, point.number, ordered))
    if unknown:
        say(f"no coverage of {len(unknown)} cases: they run for each point of their area: {_short(unknown)}")
    return found[: asked.most or None]


def _short(cases: set[str]) -> str:
    names = sorted(one.rpartition("::")[2] for one in cases)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def executed_by(known: Measured, point: Point) -> tuple[set[str], set[str]]:
    """The cases that passed and execute one of the point's lines; and all cases of which that is known."""
    lines = range(point.line, point.last_line + 1)
    passed = [one for one in known.cases if one.verdict is Verdict.PASS]
    executing = {one.case for one in passed if any(one.executes(point.file, line) for line in lines)}
    return executing, {one.case for one in known.cases}


def lines_by(known: Measured, point: Point, cases: Set[str]) -> dict[str, frozenset[int]]:
    """What each of the cases executes of the point's function."""
    starts = sorted(known.everything[point.file].functions.values())
    first = max((one for one in starts if one <= point.line), default=0)
    end = min((one for one in starts if one > point.line), default=sys.maxsize)
    return {
        one.case: frozenset(line for line in one.sources[point.file].executed if first <= line < end)
        for one in known.cases
        if one.case in cases
    }


def order(
    lines: Mapping[str, frozenset[int]], own: Set[str], seconds: Callable[[str], float], *, every: bool
) -> list[str]:
    """The cases to try a point with, of those that execute it, given what they execute of its function.

    First those of the file's own areas, then the others, unless they execute nothing of the function beyond the cases
    before them: dom0 and any guest do as much. ``every``: these, too. What executes most in a second comes first.
    """
    found: list[str] = []
    seen: set[int] = set()
    for name in sorted(lines, key=lambda one: (one not in own, -len(lines[one]) / max(seconds(one), 1.0), one)):
        if every or name in own or not lines[name] <= seen:
            found.append(name)
            seen |= lines[name]
    return found


def newest_counted() -> str:
    """The folder of the newest run of nightly --coverage; empty: none is known."""
    for one in History().runs(200):
        with suppress(UsageError, BenchError):
            if RunFolder.open(one.folder).header().counts:
                return str(one.folder)
    return ""


def _coverage(run: str, say: Say) -> tuple[Measured | None, Mapping[str, float]]:
    """What the cases of a run execute, and their seconds; None, and said so, where there is no such run."""
    history = History()
    folders = [history.folder_of(run)] if run else [one.folder for one in history.runs(200)]
    for folder in folders:
        try:
            opened = RunFolder.open(folder)
            if opened.header().counts:
                summary = opened.summary()
                found = measured.of_run(summary)
                say(f"the cases of a point come from run {found.run} with build {found.build}")
                return found, planning.took(summary.everything)
        except (UsageError, BenchError) as error:
            if run:
                raise
            say(f"not used for coverage: {error}")
    if run:
        raise UsageError(f"--coverage {run}: this run did not count; xenlab nightly --coverage does")
    say("no run of nightly --coverage is known: each point is tried with all cases of its area in the selection")
    return None, {}


# -- on the boards -----------------------------------------------------------------------------------------------------


class _Night:
    """Trials on all boards at once."""

    def __init__(
        self,
        asked: Asked,
        lab: inventory.Lab,
        folder: ScoreFolder,
        trials: Sequence[Trial],
        deadline: Deadline,
        say: Say,
    ) -> None:
        self._asked, self._lab, self._folder, self._deadline, self._say = asked, lab, folder, deadline, say
        self._cases = sorted({case for trial in trials for case in trial.cases})
        self._wanted = {trial.id: trial for trial in trials}
        self._seen = {one.id for one in folder.outcomes()}
        variant = Variant.plain(asked.build)
        header = RunHeader(
            run_id=run_folder.new_id(),
            started=time.time(),
            selection=f"mutation {asked.area or asked.file or asked.point or ''}".strip(),
            builds=(variant.name,),
            boards={name: {"class": board.board_class} for name, board in lab.boards.items()},
            planned=(),
            required_areas=(),
        )
        self._run = RunFolder.create(folder.path / "runs" / header.run_id, header)
        self._run.write_builds({variant.name: variant.facts()})
        self._build = variant.name

    def work(self) -> tuple[float, bool]:
        """Returns the hours of boards that it took, and whether a worker failed."""
        ledger = Ledger(services.directory(self._lab))
        crew = Crew(self._lab, ledger, self._start, self._say, deadline=self._deadline)
        try:
            units = crew.muster()
            if not units:
                raise BenchError("no board could be acquired")
            stages = {
                unit: [[Share((board.name,), self._build, tuple(self._cases)) for board in unit]] for unit in units
            }
            boards = sum(map(len, units))
            started = time.monotonic()
            ended = crew.work(stages, self._show_new)
            hours = (time.monotonic() - started) / 3600 * boards
        finally:
            crew.dismiss()
        self._show_new()
        bad = [one for one in ended if one.status not in (0, 1, 2, 5) and not one.why_stopped]
        for one in bad:
            log = self._log(one.share).read_text(encoding="utf-8", errors="replace")
            self._say(f"worker on {one.share.boards[0]} ended with status {one.status}: {log[-1500:].strip()}")
        return hours, bool(bad)

    def _log(self, share: Share) -> Path:
        return self._run.path / f"worker-{share.boards[0]}.log"

    def _start(self, share: Share, lease: int) -> subprocess.Popen[bytes]:
        arguments = self._log(share).with_suffix(".args")
        arguments.write_text("\n".join(share.cases) + "\n", encoding="utf-8")
        words = ["-q", f"--run-folder={self._run.path}", f"--build={share.build}", f"--mutation={self._folder.plan}"]
        words += [f"--stop-at={self._deadline.boottime}", f"@{arguments}"]
        command = pytest_command(paths.SHIPPED, self._lab.path, share.boards, words)
        return spawn(command, self._log(share), lease)

    def _show_new(self) -> None:
        for outcome in self._folder.outcomes():
            if outcome.id not in self._seen:
                self._seen.add(outcome.id)
                number, whole = len(self._seen & self._wanted.keys()), len(self._wanted)
                by = outcome.ran[-1].line() if outcome.ran else ""
                self._say(
                    f"{number} of {whole}  {outcome.fate:11}  point {outcome.number}  {outcome.seconds:.0f} s  {by}"
                )
