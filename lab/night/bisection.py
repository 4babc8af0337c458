"""Finds the commit, or build, with which a case began to fail or a figure moved: ``git bisect``, run on boards.

First it is confirmed that the bad one fails and the good one passes, on the same boards. How often the bad one
fails says how often another must pass to be called good. A build that cannot be made, does not come up, or whose runs
say nothing of the product, is skipped. Of a figure both ends are measured, and must be apart by more than the noise;
another revision is called by the end to which it is nearer.

All that was seen is in a folder, run by run, from which ``git bisect`` is replayed: what was killed goes on when it is
started with the same words. Its clone is only asked for the way; no work tree is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lab.base import paths, shape
from lab.base.errors import BenchError, LabError, UsageError
from lab.history import figures, tracks
from lab.history.figures import COUNT, UNITS, Change, is_cost
from lab.history.store import History
from lab.night import nightly, planning
from lab.night.options import DEFAULT_BUILD, VIRTUAL_LAB, NightlyOptions
from lab.night.revisions import Builds, Judged, Revisions, Word
from lab.night.workers import root_of
from lab.reporting import html
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder, replace_file, visible_line
from lab.results.summary import INTERRUPTED

TRIES = 3  # attempts that show how often the bad revision fails
ALPHA = 0.05  # accepted probability, at each step, that a bad revision is called good
FEWEST = {True: 2, False: 5}  # times that a figure is measured, by whether it is a count: fewer decide nothing
UNCOUNTED = 2  # attempts in a row without PASS or FAIL after which a revision is skipped

Runner = Callable[[str, Path], None]  # a recipe (name or file) and the run folder to be made


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to find."""

    case: str  # node id; with a figure, the one that measures it
    good: str  # revisions, or names of builds
    bad: str
    recipe: str = DEFAULT_BUILD  # how a revision is built
    source: str = ""  # repository; empty: the recipe's own
    among: tuple[str, ...] = ()  # builds, the oldest first, instead of revisions
    inventory: Path = VIRTUAL_LAB
    tries: int = TRIES
    root: Path = paths.SHIPPED  # folder that the node id is relative to
    figure: str = ""  # what is looked for; empty: whether the case fails
    boards: tuple[str, ...] = ()  # of the inventory; empty: all

    def folder(self) -> Path:
        """The folder for all attempts. The same request has the same folder, and so goes on there."""
        asked = [self.case, self.good, self.bad, self.recipe, self.source, self.among, str(self.inventory)]
        words = json.dumps([*asked, *([self.figure, self.boards] if self.figure or self.boards else [])])
        return paths.state() / "bisect" / hashlib.sha256(words.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class TriedRevision:
    """One run of the case with a build. ``verdict`` is empty when there is no result."""

    verdict: str
    reason: str
    folder: str
    boards: tuple[str, ...] = ()
    came_up: bool = False  # the build under test was proved to run
    value: float | None = None  # of the figure that is looked for


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the file holds."""

    attempts: Mapping[str, tuple[TriedRevision, ...]]
    judged: Mapping[str, Judged]


@dataclass
class _Memory:
    """The attempts and judgements so far, kept on disk."""

    file: Path
    attempts: dict[str, list[TriedRevision]] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> _Memory:
        memory = cls(file)
        if file.exists():
            try:
                kept = shape.read(_Kept, file.read_bytes())
            except ValueError as error:
                raise UsageError(f"{file}: damaged: {error}; remove it to begin the bisection anew") from None
            memory.attempts = {revision: list(found) for revision, found in kept.attempts.items()}
            memory.judged = dict(kept.judged)
        return memory

    def save(self) -> None:
        attempts = {key: [asdict(one) for one in found] for key, found in self.attempts.items()}
        judged = {key: asdict(one) for key, one in self.judged.items()}
        replace_file(self.file, json.dumps({"attempts": attempts, "judged": judged}, indent=1))


@dataclass(frozen=True, slots=True)
class Found:
    """The result: one revision, or several that could not be told apart. ``lines`` is the text for readers."""

    revisions: tuple[str, ...]
    lines: tuple[str, ...]


def run_case(asked: Asked) -> Runner:
    """The runner that uses boards: a nightly run of the one case, which is not imported into the history."""

    def runner(recipe: str, folder: Path) -> None:
        options = NightlyOptions(
            paths=(str(asked.root / asked.case),),
            inventory=asked.inventory,
            boards=asked.boards,
            output=folder,
            builds=(recipe,),
            select="weekly",
            is_remembered=False,
        )
        if nightly.run(options) == INTERRUPTED:
            raise KeyboardInterrupt

    return runner


def find(asked: Asked, runner: Runner, say: Callable[[str], None]) -> Found:
    """Find the first bad revision. Goes on where an earlier call with the same request was cut off.

    :raises UsageError: no such revision, build or repository; good is not an ancestor of bad.
    :raises BenchError: good or bad could not be confirmed.
    """
    return (_OfFigure if asked.figure else _Bisection)(asked, runner, say).find()


class _Bisection:
    def __init__(self, asked: Asked, runner: Runner, say: Callable[[str], None]) -> None:
        self._asked, self._runner, self._say = asked, runner, say
        self._folder = asked.folder()
        is_new = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            kind = Builds if asked.among else Revisions
            self._history = kind(self._folder, asked.recipe, asked.source, asked.among)
            self._good, self._bad = self._history.resolve(asked.good), self._history.resolve(asked.bad)
        except LabError:
            if is_new:  # nothing was seen that another call could go on from
                shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._memory = _Memory.read(self._folder / "state.json")
        self._needed = 1  # passes by which one is good
        self._came_up = True  # whether the bad one does
        self._boards: tuple[str, ...] = ()

    def find(self) -> Found:
        self._say(f"what is seen is kept in {self._folder}; started again, it goes on there")
        self._confirm()
        while True:
            step = self._history.step(self._good, self._bad, self._memory.judged)
            if isinstance(step, tuple):
                return Found(step, tuple(self._told(step)))
            self._say(f"{self._history.describe(step)}: to be tried")
            judged = self._judge(step)
            self._memory.judged[step] = judged
            self._memory.save()
            self._say(f"{self._history.describe(step)}: {judged.word}: {judged.why}")

    # -- what is seen ------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """Confirm that bad fails and good passes. How often bad fails says how often a good one must pass."""
        seen = self._attempts(self._bad, self._asked.tries)
        fails = [one for one in seen if one.verdict == Verdict.FAIL]
        if not fails:
            raise BenchError(f"the bad revision does not fail: {self._history.describe(self._bad)}: {_summed(seen)}")
        self._came_up, self._boards = fails[0].came_up, fails[0].boards
        share = len(fails) / len(seen)
        if share < 1:
            self._needed = math.ceil(math.log(ALPHA) / math.log(1 - share))
        self._say(f"{self._history.describe(self._bad)}: bad: {_summed(seen)}; {self._needed} PASS make a good one")
        seen = self._attempts(self._good, self._needed)
        if [one for one in seen if one.verdict != Verdict.PASS]:
            raise BenchError(f"the good revision does not pass: {self._history.describe(self._good)}: {_summed(seen)}")
        self._say(f"{self._history.describe(self._good)}: good: {_summed(seen)}, {self._same_boards(seen)}")

    def _same_boards(self, good: Sequence[TriedRevision]) -> str:
        """That the good one ran on the boards of the bad one, in words. :raises BenchError: it did not."""
        if (where := good[0].boards) != self._boards:
            raise BenchError(f"good ran on {', '.join(where)}, bad on {', '.join(self._boards)}: no board ran both")
        return f"on {', '.join(where)} as the bad one"

    def _tells(self, attempt: TriedRevision) -> bool:
        """Whether an attempt says something of what is looked for."""
        return attempt.verdict in (Verdict.PASS, Verdict.FAIL)

    def _attempts(self, revision: str, number: int) -> list[TriedRevision]:
        """That many attempts that tell something.

        :raises BenchError: :data:`UNCOUNTED` attempts in a row did not.
        """
        counted: list[TriedRevision] = []
        idle = 0
        for one in self._each(revision):
            idle = 0 if self._tells(one) else idle + 1
            counted += [one] if self._tells(one) else []
            if idle == UNCOUNTED:
                raise BenchError(f"{self._history.describe(revision)} cannot be judged: {one.reason}")
            if len(counted) == number:
                break
        return counted

    def _judge(self, revision: str) -> Judged:
        passes = idle = 0
        for one in self._each(revision):
            if self._tells(one) and one.boards != self._boards:
                return self._elsewhere(one)
            if one.verdict == Verdict.FAIL and one.came_up is self._came_up:
                return Judged(Word.BAD, one.reason)
            if one.verdict == Verdict.FAIL:
                why = "it came up" if one.came_up else "the build does not come up"
                return Judged(Word.SKIP, f"fails otherwise than the bad one: {why}: {one.reason}")
            passes, idle = (passes + 1, 0) if one.verdict == Verdict.PASS else (passes, idle + 1)
            if passes == self._needed:
                return Judged(Word.GOOD, f"passed {passes} of {passes}")
            if idle == UNCOUNTED:
                return Judged(Word.SKIP, one.reason)
        raise AssertionError("attempts do not end")

    def _elsewhere(self, one: TriedRevision) -> Judged:
        return Judged(Word.SKIP, f"ran on {', '.join(one.boards)}, the bad one on {', '.join(self._boards)}")

    def _each(self, revision: str) -> _Each:
        """The known attempts at a revision, then new ones without end."""
        return _Each(self, revision)

    def known(self, revision: str) -> list[TriedRevision]:
        return self._memory.attempts.setdefault(revision, [])

    def attempt(self, revision: str) -> TriedRevision:
        """Run the case once more, and keep the attempt."""
        known = self.known(revision)
        folder = self._folder / f"{self._history.file_name(revision)}-{len(known) + 1}"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was cut off
        try:
            self._runner(self._history.recipe(revision), folder)
            made = _seen(folder, self._asked)
        except (BenchError, UsageError) as error:  # it cannot be built
            made = TriedRevision("", visible_line(str(error).splitlines()[0]), str(folder))
        known.append(made)
        self._memory.save()
        return made

    # -- words -------------------------------------------------------------------------------------------------

    def _told(self, revisions: tuple[str, ...]) -> list[str]:
        skipped = {key: one for key, one in self._memory.judged.items() if one.word is Word.SKIP}
        if len(revisions) > 1:
            lines = ["the first bad one is among these, of which all but the last could not be judged:"]
            lines += [f"  {self._history.describe(one)}" for one in revisions]
        else:
            lines = [f"first bad: {self._history.describe(revisions[0])}", *self._history.log(revisions[0])]
            lines += [f"seen: {self._shown(revisions[0])}", f"proof: {self._proof(revisions[0], Verdict.FAIL)}"]
        good = [key for key, one in self._memory.judged.items() if one.word is Word.GOOD] or [self._good]
        lines += [f"last seen good: {self._history.describe(good[-1])}: {self._proof(good[-1], Verdict.PASS)}"]
        return lines + [f"skipped: {self._history.describe(key)}: {one.why}" for key, one in skipped.items()]

    def _shown(self, bad: str) -> str:
        """What is wrong with a bad revision."""
        return next(one.reason for one in self.known(bad) if one.verdict == Verdict.FAIL)

    def _proof(self, revision: str, verdict: Verdict) -> Path:
        """The report of an attempt that shows why a revision is called good or bad."""
        return next(Path(one.folder) / html.NAME for one in self.known(revision) if one.verdict == verdict)


class _OfFigure(_Bisection):
    """Looks for a figure that moved; a revision is good or bad by the level to which its own is nearer."""

    _levels = (0.0, 0.0)  # of good and bad

    def _tells(self, attempt: TriedRevision) -> bool:
        return attempt.value is not None

    def _confirm(self) -> None:
        """Measure both, and confirm that they are apart as ``xenlab perf`` would: docs/performance.md."""
        is_count = self._asked.figure.endswith(COUNT)
        number = max(self._asked.tries, FEWEST[is_count])
        bad = self._attempts(self._bad, number)
        self._boards = bad[0].boards
        good = self._attempts(self._good, number)
        where = self._same_boards(good)
        values = [[one.value for one in seen if one.value is not None] for seen in (good, bad)]
        found = figures.compare(self._asked.figure, ",".join(self._boards), *values, is_count=is_count)
        said = f"{self._asked.figure} {found.change:+.2%}, noise {found.noise:.2%}"
        said += "" if found.p is None else f", p={found.p:.3f}"
        if found.verdict not in (Change.MORE, Change.LESS):
            raise BenchError(f"good and bad are not apart: {said}: {found.verdict}")
        self._levels = statistics.median(values[0]), statistics.median(values[1])
        self._needed = 1 if is_count else number
        self._say(f"good has {self._levels[0]:.6g}, bad {self._levels[1]:.6g}: {said}; {where}")

    def _judge(self, revision: str) -> Judged:
        values: list[float] = []
        idle = 0
        for one in self._each(revision):
            if one.value is None:
                idle += 1
                if idle == UNCOUNTED:
                    return Judged(Word.SKIP, one.reason)
                continue
            if one.boards != self._boards:
                return self._elsewhere(one)
            values, idle = [*values, one.value], 0
            if len(values) == self._needed:
                break
        level, (good, bad) = statistics.median(values), self._levels
        if abs(level - good) == abs(level - bad):
            return Judged(Word.SKIP, f"{level:.6g} is as near to the good one as to the bad one")
        word, near, far = (Word.BAD, bad, good) if abs(level - bad) < abs(level - good) else (Word.GOOD, good, bad)
        return Judged(word, f"{self._asked.figure} {level:.6g} is nearer to {near:.6g} than to {far:.6g}")

    def _shown(self, bad: str) -> str:
        judged = self._memory.judged.get(bad)
        return judged.why if judged else f"{self._asked.figure} {self._levels[1]:.6g}, {self._levels[0]:.6g} before"

    def _proof(self, revision: str, verdict: Verdict) -> Path:
        return next(Path(one.folder) / html.NAME for one in self.known(revision) if one.value is not None)


class _Each:
    """Iterates over what is known, then makes more without end."""

    def __init__(self, bisection: _Bisection, revision: str) -> None:
        self._bisection, self._revision, self._next = bisection, revision, 0

    def __iter__(self) -> _Each:
        return self

    def __next__(self) -> TriedRevision:
        known = self._bisection.known(self._revision)
        self._next += 1
        return known[self._next - 1] if self._next <= len(known) else self._bisection.attempt(self._revision)


def _seen(folder: Path, asked: Asked) -> TriedRevision:
    run_folder = RunFolder.open(folder)
    result = next((one for one in run_folder.final_results() if one.case == asked.case), None)
    if result is None:
        return TriedRevision(
            "", visible_line("; ".join(run_folder.header().remarks) or "the case did not run"), str(folder)
        )
    reason = visible_line(f"{result.reason} ({result.rule})")
    value = result.figures.get(asked.figure) if result.verdict in (Verdict.PASS, Verdict.MISS) else None
    if value is None or not is_cost(value):
        value = None
        reason = f"{asked.figure} was not measured: {reason}" if asked.figure else reason
    return TriedRevision(result.verdict.value, reason, str(folder), result.boards, bool(result.proved), value)


def _summed(attempts: Sequence[TriedRevision]) -> str:
    fails = [one for one in attempts if one.verdict == Verdict.FAIL]
    return (
        f"failed {len(fails)} of {len(attempts)}: {fails[0].reason}"
        if fails
        else f"passed {len(attempts)} of {len(attempts)}"
    )


def command(asked: Asked, say: Callable[[str], None]) -> int:
    """``xenlab bisect``. Exit status: 0 for one revision found, 3 for several that could not be told apart.

    :raises UsageError: not one case; and what :func:`find` raises.
    """
    if asked.figure:
        asked = _with_case(asked)
    asked = replace(asked, case=planning.find(asked.case).nodeid, root=root_of([asked.case]))
    found = find(asked, run_case(asked), say)
    for line in found.lines:
        say(line)
    return 0 if len(found.revisions) == 1 else 3


def _with_case(asked: Asked) -> Asked:
    """The same with the case that measures the figure: the history knows it if the user does not say it.

    :raises UsageError: the history has no such figure, or several cases measure it; the name is not one of a cost.
    """
    if not asked.figure.endswith(UNITS):
        raise UsageError(f"--figure {asked.figure}: the name of a figure ends in {' or '.join(UNITS)}")
    if asked.case:
        return asked
    found = {track.series.case for track in tracks.of_figure(History(), asked.figure)}
    if len(found) > 1:
        raise UsageError(f"--figure {asked.figure}: several cases measure it; name one: {', '.join(sorted(found))}")
    return replace(asked, case=found.pop())
