"""What `xenlab perf` calls a change: nothing between a build and itself, and one per cent that is planted.

And what is called a step over builds, of made-up histories.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
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
RUNS = 10  # of one build: windows of four, each divided in three ways, make 21 comparisons
WINDOW = 4
PLANTED = (1.0, 2.0, 5.0)  # per cent of a PV guest's null hypercall
FIGURE = "pv64_hypercall_instructions"
CASE = "pv64"
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


def _divided(runs: list[Run]) -> Iterator[list[Run]]:
    """Each window of runs that follow one another, divided into A and B in each way."""
    for first in range(len(runs) - WINDOW + 1):
        window = runs[first : first + WINDOW]
        for mine in combinations(range(1, WINDOW), WINDOW // 2 - 1):  # the first is always A's
            yield [Run("A" if at in (0, *mine) else "B", one.figures) for at, one in enumerate(window)]


@benchmark("perf-noise", unit="figures", bar={"called-changed": 0.0}, better="lower")
def noise() -> Mapping[str, float]:
    """Figures that are called changed in 21 comparisons of a build with itself, while the machine is busy."""
    asked = Asked(BUILD, BUILD)
    boards = load(asked.inventory).boards
    with tempfile.TemporaryDirectory() as scratch, _busy():
        measured = performance.measure(asked, "A" * RUNS, Path(scratch) / "runs", _say)
    found: list[Compared] = []
    comparisons = 0
    for name, runs in measured.items():
        divisions = list(_divided(runs))
        comparisons = len(divisions)
        for division in divisions:
            found += performance.judged(boards[name], division)
    for one in found:
        if one.verdict in (Change.MORE, Change.LESS):
            note(f"{one.figure} on {one.board}: {one.old} and {one.new}")
    return {
        "called-changed": sum(one.verdict in (Change.MORE, Change.LESS) for one in found),
        "undecided": sum(one.verdict is Change.UNDECIDED for one in found),
        "not-measured": sum(one.verdict is Change.MISSING for one in found),
        "judged": len(found),
        "comparisons-a-board": comparisons,
    }


@benchmark("perf-detect", unit="%", bar=1.0)
def detect() -> float:
    """The smallest planted change of a PV guest's null hypercall that is found on both boards; 1, 2 and 5 % are."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain = performance.measure(Asked(BUILD, BUILD, keyword=CASE), "A", folder / "runs", _say)
        cost = min(run.figures[FIGURE] for runs in plain.values() for run in runs)
        found = []
        for percent in PLANTED:
            count = round(cost * percent / 100 + 0.5)  # at least so much
            report = performance.run(Asked(BUILD, str(_planted(folder, count)), keyword=CASE), _say)
            mine = [one for one in report.compared if one.figure == FIGURE]
            told = ", ".join(f"{one.change:+.2%} on {one.board}: {one.verdict}" for one in mine)
            note(f"{percent:g} % ({count} instructions of {cost:.1f}): {told}")
            if mine and all(one.verdict is Change.MORE for one in mine):
                found.append(percent)
    return min(found) if found and found == list(PLANTED[-len(found) :]) else 100.0


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
