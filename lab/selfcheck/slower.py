"""Proof that figures can tell: builds that are right and cost more on purpose, compared with the build they change.

A figure is no verdict by itself, so ``xenlab perf`` judges these: each foretold figure must cost more on each board,
and no other may.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lab import builds
from lab.base import paths
from lab.base.errors import LabError
from lab.builds import recipes
from lab.history.figures import Change, stem
from lab.night import performance
from lab.night.performance import Asked, Report
from lab.selfcheck.mutant_manifest import Mutant, Outcome, Slower


def caught(slow: Sequence[Slower], say: Callable[[str], None]) -> list[Outcome]:
    """Build them, compare each with the build that it changes, and say what came of it.

    Those of one build are measured side by side, since that build is then measured once for all of them.
    """
    outcomes: dict[str, Outcome] = {}
    for build in dict.fromkeys(one.build for one in slow):
        recipes_of = {}
        for one in (one for one in slow if one.build == build):
            recipe = write_recipe(one)
            try:
                builds.make(str(recipe), progress=say)
                recipes_of[one] = recipe
            except LabError as error:  # a patch that does not apply or compile is no verdict on a figure
                outcomes[one.label] = _told(one, "not judged", str(error).splitlines()[0], say)
        outcomes |= _compared(build, recipes_of, say)
    return [outcomes[one.label] for one in slow]


def _compared(build: str, recipes_of: Mapping[Slower, Path], say: Callable[[str], None]) -> dict[str, Outcome]:
    if not recipes_of:
        return {}
    first, *further = map(str, recipes_of.values())
    try:
        reports = performance.run_all(Asked(build, first, further=tuple(further)), say)
    except LabError as error:
        return {one.label: _told(one, "not judged", str(error).splitlines()[0], say) for one in recipes_of}
    found: dict[str, Outcome] = {}
    for (one, recipe), report in zip(recipes_of.items(), reports, strict=True):
        recipe.with_name("report.txt").write_text("\n".join(report.lines()) + "\n", encoding="utf-8")
        found[one.label] = _told(one, *judge(one, report), say)
    return found


def _told(slow: Slower, outcome: Outcome, reason: str, say: Callable[[str], None]) -> Outcome:
    say(f"{outcome:<11} {slow.label}: {reason}")
    return outcome


def judge(slow: Slower, report: Report) -> tuple[Outcome, str]:
    """What a comparison says of it, and why."""
    boards = sorted({one.board for one in report.compared} | {one.partition(":")[0] for one in report.lost})
    more = {(stem(one.figure), one.board): one for one in report.compared if one.verdict is Change.MORE}
    if other := [one for (stem, _), one in more.items() if stem not in slow.figures and not re.search(slow.may, stem)]:
        told = ", ".join(f"{one.figure} {one.change:+.1%} on {one.board}" for one in other)
        return "turned red", f"{told}; if it must or may, foretell it (figures:, may:)"
    known = {(stem(one.figure), one.board): one for one in report.compared if one.verdict is not Change.MISSING}
    wanted = [(figure, board) for figure in slow.figures for board in boards]
    if lost := [f"{figure} on {board}" for figure, board in wanted if (figure, board) not in known]:
        return "not judged", f"not measured: {', '.join(lost)}"
    if missed := [known[one] for one in wanted if one not in more]:
        told = ", ".join(f"{one.figure} {one.change:+.2%} on {one.board}" for one in missed)
        return "missed", f"does not cost more: {told}"
    return "caught", ", ".join(f"{one.figure} {one.change:+.1%} on {one.board}" for one in map(more.get, wanted) if one)


def write_recipe(mutant: Mutant | Slower) -> Path:
    """Write the recipe of the build it is a mutant of, its patch last, into a new folder for what comes of it."""
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{mutant.area}-{mutant.name}"
    file = paths.state() / "mutants" / f"{started}-{name}" / f"mutant-{name}.yaml"
    file.parent.mkdir(parents=True)
    base = builds.recipe(mutant.build)
    recipes.write(replace(base, description=mutant.why, patches=(*base.patches, mutant.patch)), file)
    return file
