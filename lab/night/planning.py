"""The plan of a run: which cases there are, how long they take here, and which boards run which."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lab.base import paths, processes, shape
from lab.base.errors import UsageError, did_you_mean
from lab.base.shape import Between
from lab.inventory import BoardSpec
from lab.night.options import NightlyOptions, Selection
from lab.night.workers import pytest_words, root_of
from lab.results import reference
from lab.results.record import TestResult, Verdict

SELECTIONS: tuple[Selection, ...] = get_args(Selection)  # each holds the one before
NAMED = 10  # cases in a message
GUESSED_SECONDS = 30.0  # for a case that never passed, here or on the boards of the reference
BOOT_SECONDS = 90.0  # to deploy and reboot for options of Xen


@dataclass(frozen=True, slots=True)
class Case:
    """What planning knows about a case. ``attempt`` is the number of the next attempt at it."""

    nodeid: str
    area: str
    boards: int
    needs: tuple[str, ...]
    attempt: int = 1
    xen_options: str = ""
    selection: str = "full"
    doc: str = ""
    evidence: tuple[str, ...] = ()  # titles of what it keeps


@dataclass(frozen=True, slots=True)
class Share:
    """The cases that one worker runs on its boards."""

    boards: tuple[str, ...]
    build: str
    cases: tuple[str, ...]  # none: only bring the board up
    attempt: int = 1
    shape: str = ""  # of the board, if not its own


Unit = tuple[BoardSpec, ...]  # boards that are taken together: a joined pair, or one


def collect(options: NightlyOptions, select: Selection) -> list[Case]:
    """The cases of the selection, as pytest finds them.

    :raises UsageError: a path or expression that pytest refuses; carries its words.
    """
    root = root_of(options.paths)
    command = [sys.executable, "-P", "-m", "lab.night.collecting", *pytest_words(root)]
    command += [f"--select={select}", *([f"-k={options.keyword}"] if options.keyword else [])]
    command += [f"--xtf={options.xtf}"] if options.xtf else []
    command += [*([f"-m={options.marker}"] if options.marker else []), *(options.paths or ("testcases",))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=root,
        env=processes.environment(processes.PYTHON),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode not in (0, 5) or (done.returncode == 0 and not lines):
        raise UsageError(f"the cases cannot be collected: {_told(done.stdout + done.stderr)}")
    found = [json.loads(line) for line in lines]
    return [Case(**one | {key: tuple(one[key]) for key in ("needs", "evidence")}) for one in found]


_COUNT = re.compile(r"\S+\.py: \d+|\{.*")  # of `--collect-only -qq`, and the listing itself


def _told(text: str) -> str:
    """What pytest said is wrong, without the counts of the cases that it did find."""
    said = [line for line in text.splitlines() if line and not _COUNT.fullmatch(line)]
    wrong = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return "\n".join(wrong or said)[-1500:]


def none_found(options: NightlyOptions, select: Selection) -> str:
    """Why no case was collected, and in which larger selection there are some."""
    words = [*options.paths]
    words += [f"-k {options.keyword!r}"] if options.keyword else []
    words += [f"-m {options.marker!r}"] if options.marker else []
    asked = " ".join(words) or "the cases"
    larger_ones = SELECTIONS[SELECTIONS.index(select) + 1 :]
    there = collect(options, SELECTIONS[-1]) if larger_ones else []
    for larger in larger_ones:
        if number := sum(SELECTIONS.index(case.selection) <= SELECTIONS.index(larger) for case in there):
            some = "1 case" if number == 1 else f"{number} cases"
            return f"{asked}: no case in the selection {select}; --select {larger} has {some}"
    return f"{asked}: no case matches"


def find(text: str) -> Case:
    """The one case that a user names: a node id, or the end of one (``test_s3_rtc_wake``).

    :raises UsageError: no such case, or several.
    """
    file = Path(text.partition("::")[0])
    is_path = (paths.SHIPPED / file).exists()  # an absolute path stays what it is
    cases = collect(NightlyOptions(paths=(text,) if is_path else ()), "weekly")
    fits = cases if is_path else [one for one in cases if _is_named(one.nodeid, text)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = [one.nodeid for one in fits[:NAMED]]
        more = f" and {len(fits) - NAMED} more" if len(fits) > NAMED else ""
        raise UsageError(f"{text!r} names {len(fits)} cases; name one: {', '.join(names)}{more}")
    short = {one.nodeid.rpartition("::")[2]: one.nodeid for one in cases}
    raise UsageError(f"there is no case {text!r}{did_you_mean(text, [*short, *short.values()])}")


def _is_named(nodeid: str, text: str) -> bool:
    whole = (nodeid, function_of(nodeid))
    return any(one == text or one.endswith((f"::{text}", f"/{text}")) for one in whole)


def function_of(nodeid: str) -> str:
    """The node id of a case without its variant."""
    return nodeid.partition("[")[0]


def is_able(units: Iterable[Unit], case: Case) -> bool:
    """Whether any of these boards can run the case, as far as is known beforehand."""
    seats = (
        (unit for unit in units if len(unit) == 2) if case.boards == 2 else ((one,) for unit in units for one in unit)
    )
    return any(all(set(case.needs) <= board.capabilities for board in seat) for seat in seats)


def can_begin(cases: Iterable[Case], units: Sequence[Unit]) -> bool:
    """Whether there are boards, and one of the cases can run on them."""
    return bool(units) and any(is_able(units, case) for case in cases)


def plan(
    cases: Sequence[Case], units: Sequence[Unit], build: str, durations: Mapping[str, float]
) -> dict[Unit, list[list[Share]]]:
    """Spread cases over units. Each unit works through stages in order; the shares of a stage run side by side.

    The longest cases are placed first, each on the least loaded boards that can run it. The cases of pairs are placed
    before those of single boards, which so tend to boards that no pair case waits for. A unit's single boards run
    before its pair. A case that no board can run goes to the first board, where it says what is missing. Cases with
    the same options of Xen stay together, so that they share one reboot.
    """
    pairs = [unit for unit in units if len(unit) == 2]
    load: dict[str, float] = {board.name: 0.0 for unit in units for board in unit}
    mine: dict[tuple[str, ...], list[Case]] = {}
    alone: list[Unit] = [(board,) for unit in units for board in unit]
    for wanted, seats in ((2, pairs or alone[:1]), (1, alone)):
        chosen = [case for case in cases if case.boards == wanted]
        for group in sorted(_together(chosen), key=lambda group: -_seconds(group, durations)):
            needs = {word for case in group for word in case.needs}
            able = [seat for seat in seats if all(needs <= board.capabilities for board in seat)] or seats[:1]
            best = min(able, key=lambda seat: max(load[board.name] for board in seat))
            for board in best:
                load[board.name] += _seconds(group, durations)
            mine.setdefault(tuple(board.name for board in best), []).extend(group)
    order = {case.nodeid: index for index, case in enumerate(cases)}
    stages: dict[Unit, list[list[Share]]] = {}
    for unit in units:
        names = tuple(board.name for board in unit)
        singles = [_shares((name,), build, mine.get((name,), []), order) for name in names]
        together = _shares(names, build, mine.get(names, []), order) if len(names) == 2 else []
        depth = max(map(len, singles))
        here = [[shares[turn] for shares in singles if turn < len(shares)] for turn in range(depth)]
        if together and not here:  # bring both boards up side by side; a pair's worker would do it one after the other
            here = [[Share((name,), build, ()) for name in names]]
        here += [[share] for share in together]
        if here:
            stages[unit] = here
    return stages


def plan_shaped(cases: Sequence[Case], boards: Sequence[BoardSpec], build: str) -> list[Share]:
    """Shares for the single-board cases that need another shape of a virtual board: one share for each shape.

    A case that some board can run as it is stays there. The capabilities that a shape declares decide.
    """
    shares: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        needs = set(case.needs)
        if case.boards != 1 or any(needs <= board.capabilities for board in boards):
            continue
        for board in boards:
            shapes = board.virtual.shapes if board.virtual else {}
            fit = (name for name, shape in shapes.items() if needs <= board.capabilities | shape.capabilities)
            if name := next(fit, ""):
                shares.setdefault((board.name, name), []).append(case.nodeid)
                break
    return [Share((board,), build, tuple(chosen), shape=shape) for (board, shape), chosen in shares.items()]


def _shares(boards: tuple[str, ...], build: str, cases: Sequence[Case], order: Mapping[str, int]) -> list[Share]:
    """One share for each attempt number; boot cases come first."""
    ordered = sorted(cases, key=lambda case: (case.area != "boot", order[case.nodeid]))
    attempts = sorted({case.attempt for case in ordered})
    return [
        Share(boards, build, tuple(case.nodeid for case in ordered if case.attempt == attempt), attempt)
        for attempt in attempts
    ]


def _together(cases: Iterable[Case]) -> list[list[Case]]:
    """Groups of cases that must stay together: those with the same options of Xen. Any other case is alone."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.xen_options or case.nodeid, []).append(case)
    return list(groups.values())


def _seconds(group: Sequence[Case], durations: Mapping[str, float]) -> float:
    reboot = BOOT_SECONDS if group[0].xen_options else 0.0
    return reboot + sum(durations.get(case.nodeid, GUESSED_SECONDS) for case in group)


def required_areas(options: NightlyOptions) -> tuple[str, ...]:
    """Areas that must have a PASS: those listed in tox.ini, unless the user named cases by hand."""
    if options.paths or options.keyword or options.marker:
        return ()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(paths.PYTEST_SETTINGS, encoding="utf-8")
    text = parser.get("xenlab", "required_areas", fallback="")
    return tuple(word for word in text.replace(",", " ").split() if word)


def durations() -> dict[str, float]:
    """Seconds that each case took when it last passed here; else on the virtual boards that the reference is of."""
    return {case: row.seconds for case, row in reference.read().items() if row.seconds} | _durations_here()


def _durations_here() -> dict[str, float]:
    try:
        return shape.read_numbers(_durations_file().read_bytes(), Between(0.0, 1e9))
    except (OSError, ValueError):
        return {}


def took(results: Iterable[TestResult]) -> dict[str, float]:
    """Seconds that each passed case took, without provisioning, since any case may be the first on a board."""
    return {result.case: round(result.own_seconds, 1) for result in results if result.verdict is Verdict.PASS}


def note_durations(results: Iterable[TestResult]) -> None:
    """Remember how long the cases that passed took."""
    known = _durations_here() | took(results)
    _durations_file().write_text(json.dumps(known, indent=0, sort_keys=True), encoding="utf-8")


def _durations_file() -> Path:
    return paths.state() / "durations.json"
