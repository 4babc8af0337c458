"""Proof that cases can fail: hypervisors broken on purpose, and the cases that must say FAIL to each.

``tests/mutants/AREA.yaml`` names the mutants of an area, ``tests/mutants/AREA/NAME.patch`` is how one is broken. Each
is built, run on the boards of the lab as any build is, and its verdict kept: the next run goes on from there. Cases
that go red whatever is broken prove nothing: those of other areas must not, unless it is foretold.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import BenchError, UsageError, did_you_mean
from lab.builds.recipes import RECIPES
from lab.builds.trees import digest, identify
from lab.night import nightly, planning
from lab.night.lab_services import in_use
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.results.record import OUTCOME
from lab.results.run_folder import RunFolder
from lab.results.summary import INTERRUPTED
from lab.selfcheck import slower
from lab.selfcheck.mutant_manifest import Mutant, Outcome, areas, chosen, chosen_slower, load, moved, unproved
from lab.xen.payloads import SOURCES

GOOD = ("caught", "left alone")


@dataclass(frozen=True, slots=True)
class Trial:
    """A mutant and an area: of its own it must fail ``cases`` (some may be of another), of another leave them alone."""

    mutant: Mutant
    area: str
    cases: tuple[str, ...]
    source: str = ""  # what the build's source is now, where that is not the mutant's own build

    @property
    def is_own(self) -> bool:
        return self.area == self.mutant.area

    @property
    def name(self) -> tuple[str, str]:
        return self.mutant.label, self.area


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of a trial. ``key`` names all that it depends on."""

    label: str
    area: str
    key: str
    outcome: Outcome
    reason: str
    seconds: float

    @property
    def trial(self) -> tuple[str, str]:
        """The name of the trial."""
        return self.label, self.area


# -- running them ------------------------------------------------------------------------------------------------------


def run(names: Sequence[str], inventory_file: Path = VIRTUAL_LAB, *, is_sample: bool = False, build: str = "") -> int:
    """Try the mutants of these areas, those named ``AREA/NAME``, or all. What went as it must is not tried again.

    ``is_sample``: the first of each area, or those named, with the first case alone, and of all areas only those that a
    run requires. ``build``: the recipe to break in place of each mutant's own; slower builds are left out.

    The last line is ``N of M mutants caught``. Exit status: 0 all, 1 one was missed or turned a case of another area
    red, 3 one could not be judged, 130 interrupted.

    :raises UsageError: no such area or mutant, a wrong file, a case that is not there.
    """
    say = partial(print, flush=True)
    options = NightlyOptions()
    wanted = names or (planning.required_areas(options) if is_sample else ())
    is_first_alone = is_sample and not any("/" in name for name in names)
    mutants = [mutant for of_area in chosen(wanted) for mutant in of_area[: 1 if is_first_alone else None]]
    slow = () if is_sample or build else chosen_slower(names)  # a comparison takes longer than a sample may
    source = ""
    if build:
        mutants = [moved(mutant, build) for mutant in mutants]
        source = identify(builds.recipe(build).source, say)
    lab = inventory.load(inventory_file)
    known = {case.nodeid: case for case in planning.collect(options, "weekly")}
    for mutant in mutants:
        _check(mutant, known)
    if is_sample:
        trials = [Trial(mutant, mutant.area, mutant.cases[:1], source) for mutant in mutants]
    else:
        trials = [trial for mutant in mutants for trial in _trials(mutant, known.values(), source)]
    before = KeptResults(paths.state() / "mutants.jsonl")
    judged = {trial.name: found for trial in trials if (found := before.find(trial))}
    left = [trial for trial in trials if trial.name not in judged]
    if judged:
        whole = len(mutants) - len({trial.mutant.label for trial in left})
        say(f"{whole} of {len(mutants)} were judged before")
    interrupted = False
    if left:
        with in_use(lab, progress=partial(print, flush=True)):
            try:
                for of_one in _tried(left, lab, inventory_file, known):
                    judged |= {found.trial: found for found in of_one}
                    for found in of_one:
                        before.append(found)
                    for line in _lines(of_one):
                        say(f"{line} ({of_one[0].seconds:.0f} s)")
            except KeyboardInterrupt:
                interrupted = True
    compared = [] if interrupted else slower.caught(slow, say)
    of_areas = dict.fromkeys(one.area for one in (*mutants, *slow))
    named = [area for area in of_areas if area in (names or areas())]
    for line in [*_table(trials, judged), *_not_proved(named, known)]:
        say(line)
    outcomes = [judged[trial.name].outcome if trial.name in judged else "not judged" for trial in trials]
    outcomes += compared
    say(f"{outcomes.count('caught')} of {len(mutants) + len(slow)} mutants caught")
    return 130 if interrupted else _exit_status(outcomes)


def _exit_status(outcomes: Collection[Outcome]) -> int:
    if {"missed", "turned red"} & set(outcomes):
        return 1
    return 3 if "not judged" in outcomes else 0


def _check(mutant: Mutant, known: Mapping[str, planning.Case]) -> None:
    """See that the cases and areas a mutant names exist.

    :raises UsageError: one does not.
    """
    for case in mutant.cases:
        if case not in known:
            near = did_you_mean(case, sorted(known))
            raise UsageError(f"{mutant.area}.yaml: {mutant.name}: there is no case {case}{near}")
    others = sorted({case.area for case in known.values()} - {mutant.area})
    for area in mutant.may:
        if area not in others:
            near = did_you_mean(area, others) or f"; it may be one of {', '.join(others)}"
            raise UsageError(f"{mutant.area}.yaml: {mutant.name}: may: {area} is not another area{near}")


def _trials(mutant: Mutant, cases: Iterable[planning.Case], source: str = "") -> Iterator[Trial]:
    """Its own, and one with each other area's quick cases on one board of which nothing is foretold."""
    yield Trial(mutant, mutant.area, mutant.cases, source)
    others: dict[str, list[str]] = {}
    for case in cases:
        if (
            case.selection == "quick"
            and case.boards == 1
            and case.area != mutant.area
            and case.nodeid not in mutant.says
        ):
            others.setdefault(case.area, []).append(case.nodeid)
    for area, quick in others.items():
        yield Trial(mutant, area, tuple(quick), source)


def _lines(judgements: Sequence[TrialResult]) -> Iterator[str]:
    """A line for each, and one for all the areas that had nothing to say or were not tried."""
    together: dict[Outcome, list[str]] = {}
    for found in judgements:
        is_own = found.area == found.label.partition("/")[0]
        if (found.outcome == "left alone" and not found.reason) or not found.key:
            together.setdefault(found.outcome, []).append(found.area)
        else:
            yield f"{found.outcome:<11} {found.label}: {'' if is_own else f'{found.area}: '}{found.reason}"
    for outcome, found_in in together.items():
        not_run = " not run" if outcome == "not judged" else ""
        yield f"{outcome:<11} {judgements[0].label}: {', '.join(found_in)}{not_run}"


def _table(trials: Sequence[Trial], judged: Mapping[tuple[str, str], TrialResult]) -> Iterator[str]:
    ended = [judged.get(trial.name) or TrialResult(*trial.name, "", "not judged", "not run", 0.0) for trial in trials]
    for _, of_one in groupby(ended, key=lambda found: found.label):
        yield from _lines(list(of_one))
    if mutants := {trial.mutant.label for trial in trials if not trial.is_own}:
        red = {found.label for found in ended if found.outcome == "turned red"}
        yield f"{len(red)} of {len(mutants)} mutants turned a quick case of another area red"


def _not_proved(of: Sequence[str], cases: Collection[str]) -> Iterator[str]:
    """The cases of these areas that no mutant of any area must fail, variants aside, and why."""
    biting = {planning.function_of(case) for area in areas() for mutant in load(area) for case in mutant.cases}
    for area in of:
        why = unproved(area)
        for function in sorted({planning.function_of(case) for case in cases} - biting):
            if function.startswith(f"testcases/{area}/"):
                yield f"not proved: {function}: {why.get(function, 'no mutant must fail it')}"


def _short(case: str) -> str:
    return case.rpartition("::")[2]


def _tried(
    trials: Sequence[Trial], lab: inventory.Lab, inventory_file: Path, cases: Mapping[str, planning.Case]
) -> Iterator[list[TrialResult]]:
    """What came of the trials of each mutant, as they end. All boards work side by side; pairs come after single ones.

    :raises KeyboardInterrupt: also when only a run was interrupted.
    """
    left = [tuple(of_one) for _, of_one in groupby(trials, key=lambda trial: trial.mutant.label)]
    own = {trial.mutant.label: [cases[case] for case in trial.cases] for trial in trials if trial.is_own}
    left.sort(key=lambda of_one: max((case.boards for case in own.get(of_one[0].mutant.label, ())), default=1))
    free = list(lab.boards.values())
    running: dict[Future[list[TrialResult] | None], Sequence[inventory.BoardSpec]] = {}
    with ProcessPoolExecutor(len(free), multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
        while left or running:
            for of_one in list(left):
                if taken := _seat(free, own.get(of_one[0].mutant.label, ()), is_all_free=not running):
                    left.remove(of_one)
                    free = [board for board in free if board not in taken]
                    names = tuple(board.name for board in taken)
                    running[pool.submit(_try, of_one, inventory_file, names)] = taken
            try:
                ended = wait(running, return_when=FIRST_COMPLETED).done
            except KeyboardInterrupt:  # of this process alone, if it was no terminal's
                for child in multiprocessing.active_children():
                    if child.pid is not None:
                        os.kill(child.pid, signal.SIGINT)
                raise
            for future in ended:
                free += running.pop(future)
                if not (found := future.result()):
                    raise KeyboardInterrupt
                yield found


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes: a run that goes on ends itself, and one that waits for work has nothing to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    """An interrupt of the terminal's may come twice, by the parent too: the second must not stop the clearing up."""
    _ignore_interrupts()
    raise KeyboardInterrupt


def _seat(
    free: Sequence[inventory.BoardSpec], cases: Sequence[planning.Case], *, is_all_free: bool
) -> Sequence[inventory.BoardSpec]:
    """The free boards to run cases on; none: they wait. Those that need a board of another shape get all."""
    if any(case.boards == 2 for case in cases):
        return free if is_all_free else ()
    able = [board for board in free if all(planning.is_able([(board,)], case) for case in cases)]
    return able[:1] or (free if is_all_free else ())


def _try(trials: Sequence[Trial], inventory_file: Path, boards: tuple[str, ...]) -> list[TrialResult] | None:
    """Build the mutant that these are of, run their cases on these boards; what came of each. None: interrupted.

    Its own area's come last: what they set off, such as a clock that is wrong after a sleep, is no matter of others.
    """
    started = time.monotonic()
    mutant = trials[0].mutant
    recipe = slower.write_recipe(mutant)
    folder = recipe.parent
    options = NightlyOptions(
        paths=tuple(case for trial in sorted(trials, key=lambda trial: trial.is_own) for case in trial.cases),
        inventory=inventory_file,
        boards=boards,
        output=folder / "run",
        builds=(str(recipe),),
        select="weekly",
        is_remembered=False,
    )
    found: list[tuple[Outcome, str]]
    try:
        with open(folder / "nightly.log", "w", encoding="utf-8") as log, redirect_stdout(log):
            signal.signal(signal.SIGINT, _interrupt_once)
            try:
                status = nightly.run(options)
            finally:
                _ignore_interrupts()
        if status == INTERRUPTED:
            return None
        run_folder = RunFolder.open(folder / "run")
        found = [judge(trial, run_folder) for trial in trials]
    except (BenchError, UsageError) as error:  # a patch that does not apply or compile is no verdict on a case
        found = [("not judged", str(error).splitlines()[0])] * len(trials)
    seconds = round(time.monotonic() - started, 1)
    return [
        TrialResult(*trial.name, key(trial), outcome, reason, seconds)
        for trial, (outcome, reason) in zip(trials, found, strict=True)
    ]


def judge(trial: Trial, folder: RunFolder) -> tuple[Outcome, str]:
    """What a run of the mutant says. Caught is a FAIL of each of its cases for the reason that was foretold; another
    area's cases are left alone if each FAIL is for the reason it may have: a SKIP is for want of what the mutant hides.
    """
    if trial.is_own:
        found = [_judge(case, trial.mutant.says[case], folder) for case in trial.cases]
        good: Outcome = "caught"
    else:
        found = [_judge_other(case, trial.mutant.may.get(trial.area), folder) for case in trial.cases]
        good = "left alone"
    order = ("missed", "turned red", "not judged")
    bad = sorted((one for one in found if one[0] != good), key=lambda one: order.index(one[0]))
    return bad[0] if bad else (good, "; ".join(reason for _, reason in found if reason))


def _judge(case: str, says: str, folder: RunFolder) -> tuple[Outcome, str]:
    result = next((one for one in folder.final_results() if one.case == case), None)
    if result is None:
        return "not judged", "; ".join(folder.header().remarks) or f"{_short(case)} did not run"
    said = result.reason.splitlines()[0] if result.reason else ""
    itself = [one.body for one in result.evidence if one.kind == OUTCOME]
    foretold = next((found for found in (result.reason, *itself) if re.search(says, found)), None)
    if result.verdict == "FAIL" and foretold is not None:
        return "caught", foretold.partition("\n")[0]
    if result.verdict == "FAIL":
        return "missed", f"{_short(case)}: FAIL, but its reason has no /{says}/: {said}"
    if result.verdict in ("PASS", "SKIP"):
        return "missed", f"{_short(case)}: {result.verdict} {said}".strip()
    return "not judged", f"{_short(case)}: {result.verdict}: {said}"


def _judge_other(case: str, may: str | None, folder: RunFolder) -> tuple[Outcome, str]:
    result = next((one for one in folder.final_results() if one.case == case), None)
    if result is None:
        return "not judged", f"{_short(case)} did not run"
    said = f"{_short(case)}: {result.verdict} {result.reason.partition(chr(10))[0]}".strip()
    if result.verdict == "FAIL" and may is not None and re.search(may, result.reason):
        return "left alone", f"by right {said}"
    if result.verdict == "FAIL":
        return "turned red", f"{said}; if it must or may, foretell it (also:, may:)"
    return ("left alone", "") if result.verdict in ("PASS", "SKIP") else ("not judged", said)


# -- what was judged ---------------------------------------------------------------------------------------------------


def key(trial: Trial) -> str:
    """Names what a judgement depends on: patch, recipe, the cases and their files, the payloads, what is foretold."""
    mutant = trial.mutant
    case_files = sorted({paths.SHIPPED / case.partition("::")[0] for case in trial.cases})
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    recipe_file = RECIPES / (mutant.build if mutant.build.endswith(".yaml") else f"{mutant.build}.yaml")
    content = digest(mutant.patch, recipe_file, *case_files, *sources) + trial.source
    foretold = {case: mutant.says.get(case) or mutant.may.get(trial.area, "") for case in trial.cases}
    return hashlib.sha256(f"{content}\0{foretold}".encode()).hexdigest()[:16]


class KeptResults:
    """Results of trials, a line of JSON each; those that went as they must: the rest is tried again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[tuple[str, str, str], TrialResult] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    found = TrialResult(**json.loads(line))
                except (ValueError, TypeError):  # the end of a run that was killed
                    continue
                self._known[found.label, found.area, found.key] = found

    def find(self, trial: Trial) -> TrialResult | None:
        """What came of just this trial before."""
        return self._known.get((trial.mutant.label, trial.area, key(trial)))

    def append(self, found: TrialResult) -> None:
        if found.outcome not in GOOD:
            return
        self._known[found.label, found.area, found.key] = found
        with open(self._file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(found)) + "\n")
