"""Tries mutants on a running board: a number is switched on in Xen, a case runs, the number is switched off.

The number is on only while a case has the board (:mod:`lab.case.switch`): the bench's own work before and after it
meets the hypervisor as it should be. A FAIL counts when the case passes without the mutant, on the same board,
afterwards or since the last FAIL that left the board running. A board that crashed, or that fails without a mutant, is
booted anew, or goes on from a saved state.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lab.base.errors import BenchError
from lab.case.bench import Bench
from lab.results import run_folder, verdicts
from lab.results.mutation import Fate, Outcome, Ran, ScoreFolder, Trial
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder

_TRIES = 2  # at a point whose case fails without it, too: the second time on a board that was booted anew


class Loop:
    """Tries the points of a plan, in a pytest session that has all their cases."""

    def __init__(self, session: pytest.Session, bench: Bench, plan: Path) -> None:
        self._session, self._bench = session, bench
        self._folder = ScoreFolder(plan.parent)
        self._trials = ScoreFolder.read_plan(plan)
        self._items = {item.nodeid: item for item in session.items}
        self._count = itertools.count()
        self._begun: set[str] = set()
        self._well: set[str] = set()  # cases that passed on these boards as they are, or will be again
        self._broken: set[str] = set()  # cases that fail without any mutant, on a board that was booted for it

    def run(self) -> None:
        """Try all that nobody else has taken, until the bench must stop."""
        for trial in self._trials:
            if self._session.shouldstop or self._bench.why_stop():
                return
            if self._folder.claim(trial.id):
                try:
                    self._folder.write(self._tried(trial))
                except BaseException:
                    self._folder.forget(trial.id)
                    raise

    def _tried(self, trial: Trial) -> Outcome:
        started, clock = time.time(), time.monotonic()
        ran: list[Ran] = []
        with self._into(self._folder.of_point(trial.id), trial.cases):
            for case in trial.cases:
                if case in self._items and case not in self._broken:
                    ran.append(self._judged(case, trial.number))
                    if ran[-1].verdict is Verdict.FAIL:
                        break
        seconds = round(time.monotonic() - clock, 1)
        board = ",".join(self._bench.names)
        return Outcome(trial.id, trial.number, fate(ran), tuple(ran), board, started + seconds, seconds)

    def _judged(self, case: str, number: int) -> Ran:
        """What a case says of a mutant. A FAIL is only given if the case passes without it."""
        for _ in range(_TRIES):
            result, reached = self._run(case, number)
            if result.verdict is Verdict.PASS:
                self._well.add(case)
            if result.verdict is not Verdict.FAIL:
                break
            was_well = case in self._well
            if not self._are_renewed():
                self._well.clear()
            if was_well or self._passes_alone(case):
                break
            self._suspect("a case fails without the mutant, too")
            if not self._passes_alone(case):
                self._broken.add(case)
                result = replace(
                    result, verdict=Verdict.MISS, reason=f"it fails without the mutant, too: {result.reason}"
                )
                break
        return Ran(case, result.verdict, result.reason, round(result.seconds, 1), reached)

    def _passes_alone(self, case: str) -> bool:
        with self._into(self._folder.path / "controls" / f"{run_folder.new_id()}-{next(self._count)}", (case,)):
            result, _ = self._run(case, 0)
        if result.verdict is Verdict.PASS:
            self._well.add(case)
        return result.verdict is Verdict.PASS

    def _run(self, case: str, number: int) -> tuple[TestResult, int | None]:
        """Run a case, again where its rule asks for it; its last result, and how often the point was executed."""
        tried: list[TestResult] = []
        reached: int | None = 0
        while not tried or verdicts.is_tried_again(tried):
            tried.append(self._once(self._items[case], number, len(tried) + 1))
            again = self._bench.switch.reached
            reached = None if again is None or reached is None else reached + again
        return tried[-1], reached if number else 0

    def _once(self, item: pytest.Item, number: int, attempt: int) -> TestResult:
        self._bench.switch.number = number
        self._bench.switch.reached = 0
        self._bench.config.option.attempt = attempt
        if item.nodeid in self._begun and isinstance(item, pytest.Function):
            item._initrequest()  # pytest runs an item once; its fixtures begin anew
        self._begun.add(item.nodeid)
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        finally:
            self._bench.switch.number = 0
        results = [one for one in self._bench.folder.results() if one.case == item.nodeid]
        if not results:
            raise BenchError(f"{item.nodeid}: it ended without a result")
        return results[-1]

    def _are_renewed(self) -> bool:
        """Whether no mutant has been in the boards as the next case gets them: they are booted anew, or restored."""
        rig = self._bench.acquired_rig
        return rig is not None and all(seat.suspect or seat.is_renewed for seat in rig.seats.values())

    def _suspect(self, why: str) -> None:
        """Have the boards booted anew before the next case."""
        if rig := self._bench.acquired_rig:
            for seat in rig.seats.values():
                seat.suspect = seat.suspect or why

    @contextmanager
    def _into(self, path: Path, cases: tuple[str, ...]) -> Iterator[None]:
        """Results within the block go to a run folder of their own."""
        before = self._bench.folder
        header = replace(before.header(), run_id=run_folder.new_id(), started=time.time(), planned=cases)
        self._bench.folder = RunFolder.create(path, header)
        try:
            self._bench.folder.write_builds(before.builds())
            yield
        finally:
            self._bench.folder = before


def fate(ran: list[Ran]) -> Fate:
    """What the cases say of a mutant."""
    found = {one.verdict for one in ran}
    if Verdict.FAIL in found:
        return Fate.KILLED
    if found & {Verdict.MISS, Verdict.ERROR}:
        return Fate.NOT_JUDGED
    if not any(one.reached is None or one.reached for one in ran):
        return Fate.NOT_COVERED
    return Fate.SURVIVED
