"""What `xenlab perf` calls a change: nothing between a build and itself, and one per cent that is planted.

And what is called a step over builds, of made-up histories.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from lab import builds
from lab.builds import recipes
from lab.history import levels
from lab.history.figures import Change, Compared
from lab.inventory import load
from lab.night import performance
from lab.night.performance import Asked, Run
from lab.selfcheck.benchmarking import benchmark, note

BUILD = "release"
BOOTS = 7  # of one build: any two of them are a comparison as `xenlab perf` makes it first, 21 in all
PLANTED = (1.0, 2.0, 5.0)  # per cent of a PV guest's null hypercall
FIGURE = "pv64_hypercall_instructions"
CASE = "pv64"
QUICK = "operations and (pv64 or pvh64)"
PATCH = """\
--- a/xen/arch/x86/pv/hypercall.c
+++ b/xen/arch/x86/pv/hypercall.c
@@ -38,6 +38,8 @@
\x20
     curr->hcall_preempted = false;
\x20
+    asm volatile ( ".rept {count}; nop; .endr" );
+
     if ( !compat )
     {{
         unsigned long rdi = regs->rdi;
"""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Within the block another process uses a processor without pause."""
    load = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        load.kill()
        load.wait()


def _compared(runs: Sequence[Run], first: int, second: int) -> list[Run]:
    """The two runs of each of two boots, as if they were of two builds."""
    sides = ((first, "A"), (second, "B"))
    return [replace(run, side=side) for boot, side in sides for run in runs[2 * boot : 2 * boot + 2]]


@benchmark("perf-noise", unit="figures", bar={"called-changed": 0.0}, better="lower")
def noise() -> Mapping[str, float]:
    """Figures that are called changed in 21 comparisons of a build with itself, while the machine is busy."""
    asked = Asked(BUILD, BUILD)
    boards = load(asked.inventory).boards
    sides = "".join("AB"[boot % 2] * 2 for boot in range(BOOTS))  # a change of sides is a boot
    with tempfile.TemporaryDirectory() as scratch, _busy():
        measured = performance.measure(asked, sides, Path(scratch) / "runs", _say)
    found: list[Compared] = []
    two_boots = list(combinations(range(BOOTS), 2))
    for name, runs in measured.items():
        for first, second in two_boots:
            found += performance.judged(boards[name], _compared(runs, first, second))
    for one in found:
        if one.verdict in (Change.MORE, Change.LESS):
            note(f"{one.figure} on {one.board}: {one.old} and {one.new}")
    return {
        "called-changed": sum(one.verdict in (Change.MORE, Change.LESS) for one in found),
        "undecided": sum(one.verdict is Change.UNDECIDED for one in found),
        "not-measured": sum(one.verdict is Change.MISSING for one in found),
        "judged": len(found),
        "comparisons-a-board": len(two_boots),
    }


@benchmark("perf-detect", unit="%", bar=1.0)
def detect() -> float:
    """The smallest planted change of a PV guest's null hypercall that is found on both boards; 1, 2 and 5 % are."""
    boards = load(Asked(BUILD, BUILD).inventory).boards
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain = performance.measure(Asked(BUILD, BUILD, keyword=CASE), "AA", folder / "plain", _say)
        cost = min(run.figures[FIGURE] for runs in plain.values() for run in runs)
        counts = [round(cost * percent / 100 + 0.5) for percent in PLANTED]  # at least so much
        recipes_of = [str(_planted(folder, count)) for count in counts]
        asked = Asked(BUILD, recipes_of[0], keyword=CASE, further=tuple(recipes_of[1:]))
        planted = performance.measure(asked, "BBCCDD", folder / "planted", _say)
        found = []
        for percent, count, side in zip(PLANTED, counts, "BCD", strict=True):
            mine = [
                one
                for name, runs in planted.items()
                for one in performance.judged(boards[name], performance.pair([*plain[name], *runs], side))
                if one.figure == FIGURE
            ]
            told = ", ".join(f"{one.change:+.2%} on {one.board}: {one.verdict}" for one in mine)
            note(f"{percent:g} % ({count} instructions of {cost:.1f}): {told}")
            if mine and all(one.verdict is Change.MORE for one in mine):
                found.append(percent)
    return min(found) if found and found == list(PLANTED[-len(found) :]) else 100.0


@benchmark("perf-time", unit="min", bar=15.0)
def minutes() -> float:
    """What a comparison of the quick figures takes on both boards, from two builds that are there to the table."""
    with tempfile.TemporaryDirectory() as scratch:
        changed = str(_planted(Path(scratch), 14))  # a figure that moves is measured in another boot, too
        for name in (BUILD, changed):
            builds.make(name, progress=_say)
        started = time.monotonic()
        report = performance.run(Asked(BUILD, changed, keyword=QUICK), _say)
        took = (time.monotonic() - started) / 60
    note("; ".join(report.lines()[-2:]))
    return took


def _planted(folder: Path, count: int) -> Path:
    """A recipe of the build whose hypercalls of PV guests have so many instructions more."""
    patch = folder / f"planted-{count}.patch"
    patch.write_text(PATCH.format(count=count), encoding="utf-8")
    why = f"{count} instructions more in each hypercall of a PV guest"
    file = folder / f"planted-{count}.yaml"
    recipes.write(replace(builds.recipe(BUILD), description=why, patches=(patch,)), file)
    return file


HISTORIES = 200  # of each kind
SIDE = 6  # builds on each side of a step: of fewer, chance can make a step in times
KINDS = {"counts": (0.0002, PLANTED), "times": (0.02, (20.0,))}  # the noise of one build, and per cents


@benchmark("perf-drift", unit="histories", bar={"false": 0.0, "missed": 0.0, "misplaced": 0.0}, better="lower")
def drift() -> Mapping[str, float]:
    """Made-up histories with a step where none is, without one that is planted, and with one at a wrong build."""
    chances = random.Random(1)
    found = dict.fromkeys(("false", "missed", "misplaced", "without-step", "with-step"), 0.0)
    for kind, (noise, planted) in KINDS.items():
        for percent in (0.0, *planted):
            for number in range(HISTORIES):
                count = chances.randint(20, 60)
                at = chances.randint(SIDE, count - SIDE)
                change = percent / 100 if number % 2 else -percent / 100
                steps = _steps(chances, kind, noise, count, {at: change})
                found["with-step" if percent else "without-step"] += 1
                found["false"] += bool(steps) and not percent
                found["missed"] += not steps and bool(percent)
                found["misplaced"] += bool(percent) and bool(steps) and steps != [at]
    return found


def _steps(chances: random.Random, kind: str, noise: float, count: int, planted: Mapping[int, float]) -> list[int]:
    """Where steps are told of a history with one value a build."""
    level, builds = 1000.0, []
    for at in range(count):
        level *= 1 + planted.get(at, 0.0)
        builds.append([chances.gauss(level, level * noise)])
    return [one.first for one in levels.levels(builds, is_count=kind == "counts")[1:]]
