"""Compares what two builds cost: their figures, measured in turn on the same boards.

Each run is of one build, and two runs of one build show what differs without any change. Times are measured A, B, B, A
and so on, so that both builds have early and late runs. Counts do not drift, and a boot takes longer than they do: each
build is measured twice in one boot, and again in another one if a figure changed. The boards work side by side; one
comparison has one board.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import BenchError, BuildFailed, LabError, UsageError
from lab.builds import Build
from lab.history import figures
from lab.history.figures import Change, Compared
from lab.inventory import BoardSpec, Lab
from lab.night import moved, nightly, planning
from lab.night.lab_services import in_use
from lab.night.moved import Moved
from lab.night.options import COUNTED_LAB, NightlyOptions
from lab.results import run_folder
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder, visible_line
from lab.results.summary import INTERRUPTED

CASES = ("testcases/performance",)
CHANGED = frozenset((Change.MORE, Change.LESS))
# What is measured one after the other. The first is always measured, the others while something is to be decided.
OF_COUNTS, OF_TIMES = ("AABB", "AB"), ("ABBAABBAAB", "BA", "AB", "BA")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to compare: two builds by name or recipe file, on boards of an inventory."""

    old: str
    new: str
    inventory: Path = COUNTED_LAB
    boards: tuple[str, ...] = ()  # none: all that measure
    cases: tuple[str, ...] = CASES
    keyword: str = ""  # pytest's -k
    further: tuple[str, ...] = ()  # builds C, D and so on, each to be compared with A as well

    @property
    def builds(self) -> dict[str, str]:
        """The builds by their sides."""
        return dict(zip(string.ascii_uppercase, (self.old, self.new, *self.further), strict=False))


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one build on one board. ``lost``: what was not measured, and why; ``key``: of the build, if known."""

    side: str  # A, B and so on
    figures: Mapping[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    key: str = ""
    build_id: str = ""
    profiles: Mapping[str, moved.Blocks] = field(default_factory=dict)  # by figure


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it, on all boards."""

    names: tuple[str, str]  # A and B, with version and build id
    compared: tuple[Compared, ...]
    lost: tuple[str, ...]
    folder: Path
    why: tuple[Moved, ...] = ()  # the functions that moved, where a board tells

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
        told += [f"not measured: {one}" for one in self.lost]
        return [*told, *(line for one in self.why for line in ("", *one.lines()))]

    def as_data(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "same_build": self.is_same_build,
            "figures": self.compared,
            "functions": self.why,
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
    return run_all(asked, say)[0]


def run_all(asked: Asked, say: Callable[[str], None]) -> list[Report]:
    """The same of B, and of each further build: A is measured once for all.

    :raises UsageError, BuildFailed, BenchError: as :func:`run`.
    """
    lab = _lab(asked)  # what is wrong with it, the cases or the builds is said before anything is made
    for name in asked.builds.values():
        builds.recipe(name)
    options = NightlyOptions(paths=asked.cases, keyword=asked.keyword, inventory=asked.inventory)
    if not planning.collect(options, "weekly"):
        raise UsageError(planning.none_found(options, "weekly"))
    try:
        made = {"A": builds.make(asked.old, progress=say)}
    except BuildFailed as error:
        raise BenchError(f"A cannot be built, so nothing can be said of B: {error}") from None
    made |= {side: builds.make(name, progress=say) for side, name in asked.builds.items() if side != "A"}
    folder = paths.state() / "perf" / run_folder.new_id()
    measured = {
        name: [_of_build(run, made[run.side].key) for run in runs]
        for name, runs in measure(asked, "", folder, say).items()
    }
    return [_report(lab, (made["A"], one), measured, side, folder) for side, one in made.items() if side != "A"]


def pair(runs: Iterable[Run], side: str) -> list[Run]:
    """The runs of A and of another side, which is called B from now on."""
    return [replace(run, side="A" if run.side == "A" else "B") for run in runs if run.side in ("A", side)]


def _report(
    lab: Lab, made: tuple[Build, Build], measured: Mapping[str, Sequence[Run]], side: str, folder: Path
) -> Report:
    """What came of A and another build. :raises BenchError: nothing was measured."""
    compared: list[Compared] = []
    lost: list[str] = []
    why: list[Moved] = []
    for name, everything in measured.items():
        runs = pair(everything, side)
        of_board = judged(lab.boards[name], runs)
        compared += of_board
        was, now = ({k: v for run in runs if run.side == side for k, v in run.profiles.items()} for side in "AB")
        why += moved.why(of_board, was, now, (made[0].symbols, made[1].symbols))
        lost += dict.fromkeys(f"{name}: {one}" for run in runs for one in run.lost)
    if not compared:
        raise BenchError(f"nothing was measured: {'; '.join(lost)}")
    names = [f"{one.name}: Xen {one.version}, build id {one.identity}" for one in made]
    return Report((names[0], names[1]), tuple(compared), tuple(lost), folder, tuple(why))


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
    """All runs on one board; without ``sides`` as many as decide."""
    runs: list[Run] = []
    others = [side for side in asked.builds if side != "A"]
    for part in (sides,) if sides else OF_COUNTS if board.is_counted else OF_TIMES:
        if others := [side for side in others if not runs or _is_open(board, pair(runs, side))]:
            for side in part if sides else _sides(part, others, is_counted=board.is_counted):
                where = folder / f"{board.name}-{len(runs) + 1}-{side}"
                runs.append(_one(side, asked.builds[side], board, asked, where, runs))
    return runs


def _sides(part: str, others: Sequence[str], *, is_counted: bool) -> str:
    """A part of the order for several builds beside A; in counts they stand behind one another, in one place."""
    if is_counted:
        start, repeated = part.rstrip("B"), part.count("B")
        return start + "".join(side * repeated for side in others)
    return "".join(part.replace("B", side) for side in others)


def _is_open(board: BoardSpec, runs: Sequence[Run]) -> bool:
    """Whether further runs may decide something: of counts also whether a change is there in another boot."""
    verdicts = {one.verdict for one in judged(board, runs)}
    is_confirmed = not board.is_counted or len(runs) > len(OF_COUNTS[0])
    return Change.UNDECIDED in verdicts or not is_confirmed and bool(verdicts & CHANGED)


def _one(side: str, recipe: str, board: BoardSpec, asked: Asked, folder: Path, earlier: Sequence[Run]) -> Run:
    options = NightlyOptions(
        paths=asked.cases,
        keyword=asked.keyword,
        inventory=asked.inventory,
        boards=(board.name,),
        output=folder,
        builds=(recipe,),
        select="weekly",
        sound=tuple(sorted({run.build_id for run in earlier if run.build_id and not run.lost})),
        boots_first=not earlier or earlier[-1].side != side,
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
    return Run(side, found, tuple(lost), facts.get("key", ""), facts.get("build id", ""), folder.profiles())


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
