"""Tries a patch series: base and series are built, the same cases run on both, and the difference is the verdict.

The base is a build's source at one commit or version. The series is the same with the patches on it, so one source tree
serves both and only what the patches touch is compiled again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import BenchError, BuildFailed, UsageError
from lab.builds import recipes, series
from lab.builds.making import Build
from lab.builds.recipes import Git, Recipe
from lab.builds.series import Series
from lab.history import gate
from lab.history.gate import Comparison
from lab.history.records import Selected
from lab.history.regression import Change
from lab.history.store import History
from lab.night import nightly, planning
from lab.night.options import VIRTUAL_LAB, NightlyOptions, Selection
from lab.reporting import html, reply
from lab.reporting.reply import Outcome, Step
from lab.results import run_folder
from lab.results.run_folder import RunFolder, visible_line
from lab.results.summary import INTERRUPTED

UPSTREAM = "upstream"  # the build that patches are tried on when nothing is said
BASE, WHOLE = "base", "series"  # names of builds, as reports show them
REPLY = "reply.txt"
MAKE_XEN = {"xen", "config", "Config.mk", "Makefile"}  # of a source tree, what the hypervisor is made of

Runner = Callable[[NightlyOptions], int]  # a run of cases: its options, its exit status
Maker = Callable[[str], Build]  # a recipe file -> its build; raises BuildFailed


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to try."""

    series: str  # an mbox, a folder, or a range of commits: lab.builds.series
    on: str = ""  # build whose source the patches go onto; empty: upstream, or what a range of commits stands on
    paths: tuple[str, ...] = ()
    keyword: str = ""
    select: Selection | None = None
    inventory: Path = VIRTUAL_LAB
    each: bool = False  # run every patch, and not the whole series alone


def command(asked: Asked, say: Callable[[str], None]) -> int:
    """``xenlab try``. Exit status: 0 no new failure, 1 a new failure or a patch that cannot be built, 3 no verdict.

    :raises UsageError: no such series or build, or one that is not compiled.
    :raises BenchError: the base cannot be had or does not compile itself.
    """

    options = _options(asked)
    lab = inventory.load(asked.inventory)  # a mistake there, or in the cases, is said before anything is built
    select = asked.select or ("quick" if lab.is_virtual else "full")
    if not planning.collect(options, select):
        raise UsageError(planning.none_found(options, select))

    def make(recipe: str) -> Build:
        return builds.make(recipe, progress=say)

    outcome = find(asked, make, nightly.run, say)
    return outcome.status


def find(asked: Asked, make: Maker, runner: Runner, say: Callable[[str], None]) -> Outcome:
    """Build, run, compare; print the verdict and the reply, and keep the reply beside the run.

    :raises UsageError, BenchError: as :func:`command`.
    """
    started = time.monotonic()
    folder = paths.state() / "tries" / run_folder.new_id()
    try:
        given = series.read(asked.series, folder / "patches")
        base = _base(asked, given)
        trial = _Trial(folder, given, base, make, say)
        built = trial.build(each=asked.each)
        outcome = trial.outcome()
        if WHOLE in built:
            outcome = _run(asked, trial, built, runner)
    except UsageError:
        if not (folder / "run").exists():  # it only holds patches of a request that was wrong
            shutil.rmtree(folder, ignore_errors=True)
        raise
    written = reply.text(outcome)
    run_folder.replace_file(folder / REPLY, written)
    say(f"\n{written}")
    say(f"verdict after {(time.monotonic() - started) / 60:.1f} min: {outcome.verdict}")
    if outcome.run:
        say(f"report: {outcome.run.path / html.NAME}")
    say(f"reply:  {folder / REPLY}")
    return outcome


def _options(asked: Asked) -> NightlyOptions:
    return NightlyOptions(paths=asked.paths, keyword=asked.keyword, select=asked.select, inventory=asked.inventory)


def _base(asked: Asked, given: Series) -> Recipe:
    """How the base is built.

    :raises UsageError: no such build, or one that is not compiled.
    """
    found = builds.recipe(asked.on or UPSTREAM)
    if given.repository and not asked.on:
        return replace(found, source=Git(str(given.repository), given.base))
    if not found.is_compiled:
        raise UsageError(f"--on {asked.on}: patches need a build from source, and this one is not compiled")
    return found


class _Trial:
    """The builds of a series: ``base``, ``series``, and ``up-to-N`` between them."""

    def __init__(self, folder: Path, given: Series, base: Recipe, make: Maker, say: Callable[[str], None]) -> None:
        self.folder, self.given, self.recipe = folder, given, base
        self._make, self._say = make, say
        self.failures: dict[int, BuildFailed] = {}  # by number of the patch
        self._write(0)
        try:
            self.base = make(self.file(0))
        except BuildFailed as error:
            raise BenchError(f"the base cannot be built, so nothing can be said of the series: {error}") from None
        if isinstance(base.source, Git) and self.base.origin.commit:  # the branch may move while the series is built
            self.recipe = replace(base, source=replace(base.source, revision=self.base.origin.commit))
            self._write(0)

    def name(self, count: int) -> str:
        """The name of the build with that many patches."""
        if count == 0:
            return BASE
        return WHOLE if count == len(self.given.patches) else f"up-to-{count}"

    def file(self, count: int) -> str:
        """The recipe of the build with that many patches."""
        return str(self.folder / f"{self.name(count)}.yaml")

    def _write(self, count: int) -> None:
        added = tuple(patch.file for patch in self.given.patches[:count])
        recipes.write(replace(self.recipe, patches=(*self.recipe.patches, *added)), Path(self.file(count)))

    def build(self, *, each: bool) -> tuple[str, ...]:
        """Make the builds. Returns the names of those that can run; without :data:`WHOLE` nothing is to be run.

        With ``each`` all are made; else the base and the whole, and others only to find the patch at fault.
        """
        number = len(self.given.patches)
        good = [0, *(count for count in range(1, number + 1) if each and self._is_good(count))]
        if not each and self._is_good(number):
            good.append(number)
        if number not in good and not each:
            self._find_fault(number)
        return tuple(self.name(count) for count in good)

    def _is_good(self, count: int) -> bool:
        patch = self.given.patches[count - 1]
        self._say(visible_line(f"building with patch {count} of {len(self.given.patches)}: {patch.subject}"))
        self._write(count)
        try:
            self._make(self.file(count))
        except UsageError as error:  # the base took the same recipe: a Kconfig symbol is gone, say
            raise UsageError(
                f"the base can be configured so, and the tree with all up to patch {count} cannot: {error}"
            ) from None
        except BuildFailed as error:
            at_fault = [n for n, one in enumerate(self.given.patches, 1) if str(one.file) in error.what]
            self.failures[at_fault[0] if at_fault else count] = error
            return False
        return True

    def _find_fault(self, bad: int) -> None:
        """Find a patch with which the tree does not compile and without which it does, unless it is known by now."""
        if bad not in self.failures or not reply.compiles_not(self.failures[bad]):
            return  # patch(1) names the patch that does not apply
        good = 0
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._is_good(middle):
                good = middle
            else:
                del self.failures[bad]
                bad = middle

    def outcome(self) -> Outcome:
        """What is known before anything has run."""
        source = self.base.origin
        said = f'{source.commit[:12]} ("{source.subject}"), {source.date}' if source.commit else self.base.source
        words = [self.recipe.name, said, f"Xen {self.base.version}"]
        settings = [self.recipe.config, *(one.stem for one in self.recipe.fragments), self.recipe.compiler]
        settings += [f"tools: {self.recipe.tools if isinstance(self.recipe.tools, str) else 'packages'}"]
        patches = enumerate(self.given.patches, 1)
        built = MAKE_XEN | ({"tools"} if self.recipe.tools == "source" else set())
        steps = tuple(
            Step(
                number,
                patch.subject,
                self.failures.get(number),
                is_built=not patch.touches or bool(patch.touches & built),
            )
            for number, patch in patches
        )
        return Outcome(self.given.subject, ", ".join(words), ", ".join(settings), steps)


def _run(asked: Asked, trial: _Trial, built: Sequence[str], runner: Runner) -> Outcome:
    """Run the cases on all builds; run those that fail anew once more, on the builds that their judgement rests on."""
    folders = [trial.folder / "run"]
    files = tuple(str(trial.folder / f"{name}.yaml") for name in built)
    options = replace(_options(asked), builds=files, output=folders[0], is_remembered=False)
    _done(runner, options)
    history = History(trial.folder / "history.sqlite")
    whole, single = _compared(history, folders)
    if new := {one.series.case for of in (whole, *single.values()) for one in of.of(Change.NEW_FAILURE)}:
        root = RunFolder.open(folders[0]).header().cases_root()
        cases = tuple(str(root / case) for case in sorted(new))
        steps = [pair for pair in pairwise(built) if single[pair[1]].of(Change.NEW_FAILURE)]
        involved = {BASE, WHOLE, *chain.from_iterable(steps)}
        files = tuple(file for name, file in zip(built, files, strict=True) if name in involved)
        folders.append(trial.folder / "again")
        again = replace(options, paths=cases, keyword="", select="weekly", builds=files, output=folders[1])
        _done(runner, again)
        whole, single = _compared(history, folders)
    outcome = trial.outcome()
    judged = outcome.steps
    if asked.each:
        judged = tuple(replace(step, found=single.get(trial.name(step.number))) for step in judged)
    return replace(outcome, steps=judged, run=RunFolder.open(folders[0]).summary(), found=whole)


def _done(runner: Runner, options: NightlyOptions) -> None:
    if runner(options) == INTERRUPTED:
        raise KeyboardInterrupt


def _compared(history: History, folders: Sequence[Path]) -> tuple[Comparison, Mapping[str, Comparison]]:
    """The last build of the first run against its first one; and each against the one before it. All runs count."""
    for folder in folders:
        history.import_run(folder)
    header = RunFolder.open(folders[0]).header()
    by_name = {one.build.line: Selected(one.build) for one in history.of_run(header.run_id)}
    if missing := [name for name in header.builds if name not in by_name]:
        raise BenchError(f"nothing is known of {', '.join(missing)}: the run did not come to it: {folders[0]}")
    ran = [by_name[name] for name in header.builds]
    single = {new.build.line: gate.compare(history, new, base) for base, new in pairwise(ran)}
    return gate.compare(history, ran[-1], ran[0]), single
