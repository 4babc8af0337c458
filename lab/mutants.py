"""Proof that cases bite: hypervisors broken on purpose, and the cases that must say FAIL to each.

``tests/mutants/AREA.yaml`` names the mutants of an area, ``tests/mutants/AREA/NAME.patch`` is how one is broken. Each
is built, run on the boards of the lab as any build is, and its verdict kept: the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from ruamel.yaml import YAML

from lab import builds, inventory, nightly, paths, planning
from lab.builds.recipes import RECIPES
from lab.builds.trees import digest
from lab.errors import BenchError, UsageError
from lab.files import Strict, at, did_you_mean, read_yaml, validate
from lab.grid import services
from lab.options import VIRTUAL_LAB, NightlyOptions
from lab.runs import RunFolder
from lab.xen.payloads import SOURCES

MUTANTS = paths.CHECKOUT / "tests" / "mutants"

Outcome = Literal["caught", "missed", "not judged"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A build broken on purpose. ``says``: its cases, and what is searched for in the reason of each one's FAIL."""

    area: str
    name: str
    why: str
    says: Mapping[str, str]
    build: str
    patch: Path

    @property
    def label(self) -> str:
        return f"{self.area}/{self.name}"

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(self.says)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a mutant. ``key`` names all that it depends on."""

    label: str
    key: str
    outcome: Outcome
    reason: str
    seconds: float


def areas(directory: Path = MUTANTS) -> tuple[str, ...]:
    """The areas that have mutants."""
    return tuple(sorted(file.stem for file in directory.glob("*.yaml")))


def load(area: str, directory: Path = MUTANTS) -> list[Mutant]:
    """The mutants of an area, in the order of its file.

    :raises UsageError: no such area, or the file is wrong; says file, line, key and what would be right.
    """
    if area not in areas(directory):
        known = ", ".join(areas(directory)) or "none"
        raise UsageError(f"no area {area!r} has mutants{did_you_mean(area, areas(directory))}; areas: {known}")
    file = directory / f"{area}.yaml"
    tree = read_yaml(file)
    data = validate(_File, file, tree)
    found = []
    for name, entry in data.mutants.items():
        patch = directory / area / f"{name}.patch"
        if not patch.is_file():
            raise UsageError(f"{at(file, tree, ('mutants', name))}: its patch is not there ({patch})")
        says = {entry.case: entry.says, **entry.also}
        for case, expression in says.items():
            try:
                re.compile(expression)
            except re.error as error:
                where = ("also", case) if case in entry.also else ("says",)
                raise UsageError(
                    f"{at(file, tree, ('mutants', name, *where))}: not a regular expression: {error}"
                ) from None
        found.append(Mutant(area, name, entry.why, says, entry.build or data.build, patch))
    if stray := {path.stem for path in (directory / area).glob("*.patch")} - data.mutants.keys():
        raise UsageError(f"{at(file, tree, ('mutants',))}: nothing is said of {', '.join(sorted(stray))}.patch")
    return found


_Case = Annotated[str, pydantic.StringConstraints(pattern=r"^testcases/\S+\.py::\S+$")]
_Says = Annotated[str, pydantic.StringConstraints(min_length=3)]


class _Entry(Strict):
    why: Annotated[str, pydantic.StringConstraints(min_length=10, pattern=r"^[^\n]+$")]
    case: _Case
    says: _Says
    also: dict[_Case, _Says] = {}
    build: str = ""


class _File(Strict):
    build: str = nightly.DEFAULT_BUILD
    mutants: dict[Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9-]+$")], _Entry]


# -- running them ------------------------------------------------------------------------------------------------------


def run(names: Sequence[str], inventory_file: Path = VIRTUAL_LAB, *, is_sample: bool = False) -> int:
    """Try the mutants of these areas, or of all; ``is_sample``: the first of each, with its first case. What was judged
    is not tried again.

    The last line is ``N of M mutants caught``. Exit status: 0 all, 1 one was missed, 3 one could not be judged,
    130 interrupted.

    :raises UsageError: no such area, a wrong file, a case that is not there.
    """
    say = partial(print, flush=True)
    chosen = [load(name)[: 1 if is_sample else None] for name in names or areas()]
    mutants = [mutant for of_area in chosen for mutant in of_area]
    if is_sample:
        mutants = [replace(one, says={one.cases[0]: one.says[one.cases[0]]}) for one in mutants]
    lab = inventory.load(inventory_file)
    known = {case.nodeid: case for case in planning.collect(NightlyOptions(), "weekly")}
    for mutant in mutants:
        for case in mutant.cases:
            if case not in known:
                near = did_you_mean(case, sorted(known))
                raise UsageError(f"{mutant.area}.yaml: {mutant.name}: there is no case {case}{near}")
    ledger = Ledger(paths.state() / "mutants.jsonl")
    judged = {mutant.label: found for mutant in mutants if (found := ledger.find(mutant))}
    left = [mutant for mutant in mutants if mutant.label not in judged]
    if judged:
        say(f"{len(judged)} of {len(mutants)} were judged before")
    interrupted = False
    if left:
        with _lab_up(lab):
            try:
                for found in _tried(left, lab, inventory_file, known):
                    judged[found.label] = found
                    ledger.append(found)
                    say(f"{found.label}: {found.outcome} in {found.seconds:.0f} s: {found.reason}")
            except KeyboardInterrupt:
                interrupted = True
    outcomes = [judged[mutant.label].outcome if mutant.label in judged else "not judged" for mutant in mutants]
    for line in _table(mutants, judged, known):
        say(line)
    say(f"{outcomes.count('caught')} of {len(mutants)} mutants caught")
    if interrupted:
        return 130
    return 1 if "missed" in outcomes else 3 if "not judged" in outcomes else 0


def _table(mutants: Sequence[Mutant], judged: Mapping[str, Judgement], known: Collection[str]) -> Iterator[str]:
    for mutant in mutants:
        found = judged.get(mutant.label)
        yield f"{found.outcome if found else 'not judged':<11} {mutant.label}: {found.reason if found else 'not run'}"
    for area in dict.fromkeys(mutant.area for mutant in mutants):
        biting = {case for mutant in load(area) for case in mutant.cases}
        idle = sorted(case for case in set(known) - biting if case.startswith(f"testcases/{area}/"))
        if idle:
            yield f"not proved, since no mutant must fail them ({area}): {', '.join(_short(case) for case in idle)}"


def _short(case: str) -> str:
    return case.rpartition("::")[2]


def _tried(
    mutants: Sequence[Mutant], lab: inventory.Lab, inventory_file: Path, cases: Mapping[str, planning.Case]
) -> Iterator[Judgement]:
    """What came of each, as they end. All boards work side by side; pairs come after single ones.

    :raises KeyboardInterrupt: also when only a run was interrupted.
    """
    of = {mutant.label: [cases[case] for case in mutant.cases] for mutant in mutants}
    left = sorted(mutants, key=lambda mutant: max(case.boards for case in of[mutant.label]))
    free = list(lab.boards.values())
    running: dict[Future[Judgement | None], Sequence[inventory.BoardSpec]] = {}
    with ProcessPoolExecutor(len(free), multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
        while left or running:
            for mutant in list(left):
                if taken := _seat(free, of[mutant.label], is_all_free=not running):
                    left.remove(mutant)
                    free = [board for board in free if board not in taken]
                    names = tuple(board.name for board in taken)
                    running[pool.submit(_try, mutant, inventory_file, names)] = taken
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                free += running.pop(future)
                if not (found := future.result()):
                    raise KeyboardInterrupt
                yield found


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes: a run that goes on ends itself, and one that waits for work has nothing to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _seat(
    free: Sequence[inventory.BoardSpec], cases: Sequence[planning.Case], *, is_all_free: bool
) -> Sequence[inventory.BoardSpec]:
    """The free boards to run cases on; none: they wait. Those that need a board of another shape get all."""
    if any(case.boards == 2 for case in cases):
        return free if is_all_free else ()
    able = [board for board in free if all(planning.is_able([(board,)], case) for case in cases)]
    return able[:1] or (free if is_all_free else ())


def _try(mutant: Mutant, inventory_file: Path, boards: tuple[str, ...]) -> Judgement | None:
    """Build it, run its cases on these boards, and say what came of it; None: interrupted."""
    started = time.monotonic()
    folder = paths.state() / "mutants" / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{mutant.area}-{mutant.name}"
    folder.mkdir(parents=True)
    recipe = folder / f"mutant-{mutant.area}-{mutant.name}.yaml"
    _write_recipe(recipe, mutant)
    options = NightlyOptions(
        paths=mutant.cases,
        inventory=inventory_file,
        boards=boards,
        output=folder / "run",
        builds=(str(recipe),),
        select="weekly",
        is_remembered=False,
    )
    outcome: Outcome
    try:
        with open(folder / "nightly.log", "w", encoding="utf-8") as log, redirect_stdout(log):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                status = nightly.run(options)
            finally:
                _ignore_interrupts()
        if status == 130:
            return None
        outcome, reason = judge(mutant, RunFolder.open(folder / "run"))
    except (BenchError, UsageError) as error:  # a patch that does not apply or compile is no verdict on a case
        outcome, reason = "not judged", str(error).splitlines()[0]
    return Judgement(mutant.label, key(mutant), outcome, reason, round(time.monotonic() - started, 1))


def judge(mutant: Mutant, folder: RunFolder) -> tuple[Outcome, str]:
    """What a run of the mutant says: caught is a FAIL of each of its cases for the reason that was foretold."""
    found = [_judge(case, says, folder) for case, says in mutant.says.items()]
    for outcome, reason in found:
        if outcome != "caught":
            return outcome, reason
    return "caught", "; ".join(reason for _, reason in found)


def _judge(case: str, says: str, folder: RunFolder) -> tuple[Outcome, str]:
    result = next((one for one in folder.final_results() if one.case == case), None)
    if result is None:
        return "not judged", "; ".join(folder.header().notes) or f"{_short(case)} did not run"
    said = result.reason.splitlines()[0] if result.reason else ""
    if result.verdict == "FAIL" and re.search(says, result.reason):
        return "caught", said
    if result.verdict == "FAIL":
        return "missed", f"{_short(case)}: FAIL, but its reason has no /{says}/: {said}"
    if result.verdict in ("PASS", "SKIP"):
        return "missed", f"{_short(case)}: {result.verdict} {said}".strip()
    return "not judged", f"{_short(case)}: {result.verdict}: {said}"


def _write_recipe(file: Path, mutant: Mutant) -> None:
    """The recipe of the build it is a mutant of, and its patch last."""
    base = RECIPES / f"{mutant.build}.yaml"
    patches = [*builds.recipe(mutant.build).patches, mutant.patch]
    data = dict(read_yaml(base)) | {"description": mutant.why, "patches": [str(patch) for patch in patches]}
    with open(file, "w", encoding="utf-8") as opened:
        YAML(typ="rt").dump(data, opened)


@contextmanager
def _lab_up(lab: inventory.Lab) -> Iterator[None]:
    """One lab for all of them; one that is up is used and left up."""
    if services.status(services.directory(lab)).is_up:
        yield
        return
    nightly.lab_up(lab, detach=False, progress=partial(print, flush=True))
    try:
        yield
    finally:
        nightly.lab_down(lab)


# -- what was judged ---------------------------------------------------------------------------------------------------


def key(mutant: Mutant) -> str:
    """Names what a judgement depends on: patch, recipe, the cases' files, the payloads, what is foretold."""
    case_files = sorted({paths.CHECKOUT / case.partition("::")[0] for case in mutant.cases})
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    content = digest(mutant.patch, RECIPES / f"{mutant.build}.yaml", *case_files, *sources)
    return hashlib.sha256(f"{content}\0{dict(mutant.says)}".encode()).hexdigest()[:16]


class Ledger:
    """Judgements, a line of JSON each; what could not be judged is not among them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Judgement] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    found = Judgement(**json.loads(line))
                except (ValueError, TypeError):  # the end of a run that was killed
                    continue
                self._known[f"{found.label} {found.key}"] = found

    def find(self, mutant: Mutant) -> Judgement | None:
        """What came of just this mutant before."""
        return self._known.get(f"{mutant.label} {key(mutant)}")

    def append(self, found: Judgement) -> None:
        if found.outcome == "not judged":
            return
        self._known[f"{found.label} {found.key}"] = found
        with open(self._file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(found)) + "\n")
