"""Compares what two builds cost: their figures, measured in turn on the same boards.

Each board measures A, B, B, A and so on, each in a run of its own. So both builds have early and late runs, and two
runs of one build show what differs without any change. The boards work side by side; one comparison has one board.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import BenchError, BuildFailed, LabError, UsageError
from lab.history import figures
from lab.history.figures import Change, Compared
from lab.inventory import BoardSpec, Lab
from lab.night import nightly, planning
from lab.night.lab_services import in_use
from lab.night.options import COUNTED_LAB, NightlyOptions
from lab.results import run_folder
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder, visible_line
from lab.results.summary import INTERRUPTED

CASES = ("testcases/performance",)
PAIRS = {True: 2, False: 5}  # times that each build is measured, by whether figures are counts: fewer decide nothing
MOST_PAIRS = {True: 3, False: 8}  # the same at most, where a figure stays undecided


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to compare: two builds by name or recipe file, on boards of an inventory."""

    old: str
    new: str
    inventory: Path = COUNTED_LAB
    boards: tuple[str, ...] = ()  # none: all that measure
    cases: tuple[str, ...] = CASES
    keyword: str = ""  # pytest's -k


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one build on one board. ``lost``: what was not measured, and why; ``key``: of the build, if known."""

    side: str  # A or B
    figures: Mapping[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it, on all boards."""

    names: tuple[str, str]  # A and B, with version and build id
    compared: tuple[Compared, ...]
    lost: tuple[str, ...]
    folder: Path

    @property
    def exit_status(self) -> int:
        """1: B costs more somewhere; 3: something was not measured, or is undecided; else 0."""
        verdicts = {one.verdict for one in self.compared}
        if Change.MORE in verdicts:
            return 1
        return 3 if self.lost or not self.compared or verdicts & {Change.MISSING, Change.UNDECIDED} else 0

    @property
    def is_same_build(self) -> bool:
        """Whether A and B are one hypervisor, perhaps under two names."""
        old, new = (name.partition(": ")[2] for name in self.names)
        return bool(old) and old == new

    def lines(self) -> list[str]:
        """Text to be pasted into a mail."""
        told = [f"{side}: {name}" for side, name in zip("AB", self.names, strict=True)]
        told += ["A and B are the same hypervisor: the figures show noise alone"] if self.is_same_build else []
        told += ["", *figures.table(self.compared), "", *figures.summary(self.compared)]
        return [*told, *(f"not measured: {one}" for one in self.lost)]

    def as_data(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "same_build": self.is_same_build,
            "figures": self.compared,
            "not_measured": self.lost,
            "folder": self.folder,
            "exit_status": self.exit_status,
        }


def run(asked: Asked, say: Callable[[str], None]) -> Report:
    """Make both builds, bring the lab up, measure in turn on each board, and judge.

    :raises UsageError: no such build, inventory, board or case, or no board that measures.
    :raises BuildFailed: B cannot be made.
    :raises BenchError: A cannot be made, the lab does not come up, or a run says nothing of any figure.
    """
    lab = _lab(asked)  # what is wrong with it, the cases or the builds is said before anything is made
    for name in (asked.old, asked.new):
        builds.recipe(name)
    options = NightlyOptions(paths=asked.cases, keyword=asked.keyword, inventory=asked.inventory)
    if not planning.collect(options, "weekly"):
        raise UsageError(planning.none_found(options, "weekly"))
    try:
        made = [builds.make(asked.old, progress=say)]
    except BuildFailed as error:
        raise BenchError(f"A cannot be built, so nothing can be said of B: {error}") from None
    made.append(builds.make(asked.new, progress=say))
    folder = paths.state() / "perf" / run_folder.new_id()
    compared: list[Compared] = []
    lost: list[str] = []
    keys = {side: one.key for side, one in zip("AB", made, strict=True)}
    for name, measured in measure(asked, "", folder, say).items():
        runs = [_of_build(run, keys[run.side]) for run in measured]
        compared += judged(lab.boards[name], runs)
        lost += dict.fromkeys(f"{name}: {one}" for run in runs for one in run.lost)
    if not compared:
        raise BenchError(f"nothing was measured: {'; '.join(lost)}")
    names = [f"{one.name}: Xen {one.version}, build id {one.identity}" for one in made]
    return Report((names[0], names[1]), tuple(compared), tuple(lost), folder)


def _lab(asked: Asked) -> Lab:
    """The lab with the boards that measure. :raises UsageError: there is none."""
    lab = inventory.load(asked.inventory).restricted(asked.boards)
    boards = [name for name, board in lab.boards.items() if "perf" in board.capabilities]
    if not boards:
        raise UsageError(f"{lab.path}: none of {', '.join(lab.boards)} has the capability perf: figures are not taken")
    return lab.restricted(boards)


def measure(asked: Asked, sides: str, folder: Path, say: Callable[[str], None]) -> dict[str, list[Run]]:
    """The runs of each board by its name. ``sides``, as ``ABBA``, is their order; empty: as many as are needed.

    :raises UsageError, BenchError: as :func:`run`.
    """
    lab = _lab(asked)
    folder.mkdir(parents=True)
    say(f"the runs are kept in {folder}")
    context = multiprocessing.get_context("spawn")
    with in_use(lab, progress=say), ProcessPoolExecutor(len(lab.boards), context, _ignore_interrupts) as pool:
        try:
            work = partial(_measured, asked=asked, folder=folder, sides=sides)
            return dict(zip(lab.boards, pool.map(work, lab.boards.values()), strict=True))
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGINT)
            raise


def _ignore_interrupts() -> None:
    """Of the terminal, too: the parent passes an interrupt on, and a second one would break the end of a run."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measured(board: BoardSpec, *, asked: Asked, folder: Path, sides: str) -> list[Run]:
    """:func:`_runs`, which an interrupt ends; none ends a process whose board is done."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _runs(board, asked, folder, sides)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _runs(board: BoardSpec, asked: Asked, folder: Path, sides: str) -> list[Run]:
    """All runs on one board; without ``sides`` further pairs while some figure is undecided."""
    counted = board.is_counted
    runs: list[Run] = []
    for pair in (sides,) if sides else ("AB", "BA") * (MOST_PAIRS[counted] // 2 + 1):
        is_enough = len(runs) >= 2 * PAIRS[counted] and not figures.needs_more(judged(board, runs))
        if not sides and (is_enough or len(runs) >= 2 * MOST_PAIRS[counted]):
            break
        for side in pair:
            recipe = asked.old if side == "A" else asked.new
            runs.append(_one(side, recipe, board, asked, folder / f"{board.name}-{len(runs) + 1}-{side}"))
    return runs


def _one(side: str, recipe: str, board: BoardSpec, asked: Asked, folder: Path) -> Run:
    options = NightlyOptions(
        paths=asked.cases,
        keyword=asked.keyword,
        inventory=asked.inventory,
        boards=(board.name,),
        output=folder,
        builds=(recipe,),
        select="weekly",
        is_remembered=False,
    )
    log = folder.with_suffix(".log")
    try:
        with open(log, "w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
            if nightly.run(options) == INTERRUPTED:
                raise KeyboardInterrupt
        return read(side, RunFolder.open(folder))
    except LabError as error:
        return Run(side, lost=(visible_line(f"{side}: {error}"),))


def _of_build(run: Run, key: str) -> Run:
    """The run if it was of this build; else one that measured nothing: a branch may move between two runs."""
    if run.key in ("", key):
        return run
    return Run(run.side, lost=(f"{run.side}: a run was of build {run.key}, and not of {key}: its source has moved",))


def read(side: str, folder: RunFolder) -> Run:
    """The figures of a run, and what it did not measure. Figures of a case that failed do not count."""
    found: dict[str, float] = {}
    lost = []
    for result in folder.final_results():
        if result.verdict is Verdict.PASS or result.verdict is Verdict.MISS:
            found |= {name: value for name, value in result.figures.items() if name.endswith(figures.UNITS)}
        if result.verdict not in (Verdict.PASS, Verdict.SKIP):
            lost.append(visible_line(f"{side}: {result.case.rpartition('::')[2]}: {result.verdict} {result.reason}"))
    why = "; ".join(folder.header().remarks) or "nothing says why"
    if missing := folder.missing():
        lost.append(visible_line(f"{side}: {len(missing)} of {len(folder.header().planned)} cases did not run: {why}"))
    elif not found and not lost:
        lost.append(visible_line(f"{side}: no case measured anything: {why}"))
    (facts,) = folder.builds().values() or ({},)
    return Run(side, found, tuple(lost), facts.get("key", ""))


def judged(board: BoardSpec, runs: Iterable[Run]) -> list[Compared]:
    """Each figure of a board over all its runs."""
    values: dict[str, dict[str, list[float]]] = {}
    for one in runs:
        for name, value in one.figures.items():
            values.setdefault(name, {"A": [], "B": []})[one.side].append(value)
    return [
        figures.compare(name, board.name, sides["A"], sides["B"], is_count=board.is_counted)
        for name, sides in sorted(values.items())
    ]
