"""Two builds or two runs to compare, as a user names them; and a comparison as plain data."""

from __future__ import annotations

import os
from pathlib import Path

from lab.base.errors import UsageError
from lab.history.dearer import FigureChange
from lab.history.gate import CaseChange, Comparison
from lab.history.records import RecordedBuild, Selected
from lab.history.store import History
from lab.results.build_source import Source
from lab.results.run_folder import RunFolder, visible_line


def pairs(store: History, old: str, new: str) -> list[tuple[Selected, Selected]]:
    """What to compare: one pair, or a pair for each line of builds that two runs have in common.

    :raises UsageError: there is no such build or run, or the two have no line in common.
    """
    olds, news = _selections(store, old), _selections(store, new)
    if len(olds) == 1 and len(news) == 1:
        return [(olds[0], news[0])]
    by_line = {one.build.line: one for one in olds}
    found = [(by_line[one.build.line], one) for one in news if one.build.line in by_line]
    if not found:
        here, there = (", ".join(one.build.line for one in side) for side in (olds, news))
        raise UsageError(f"{old} and {new} have no build in common: {old} has {here}; {new} has {there}")
    return found


def _selections(store: History, text: str) -> list[Selected]:
    """The builds of a run that has several; of anything else the one that :meth:`History.select` finds."""
    name = text
    if os.path.isfile(Path(text) / "run.json"):
        store.import_run(Path(text))
        name = visible_line(RunFolder.open(Path(text)).header().run_id)
    of_run = store.of_run(name)
    return of_run if len(of_run) > 1 else [store.select(text)]


def as_data(found: Comparison) -> dict[str, object]:
    """A comparison for JSON: the two builds, and what became of each case and figure."""
    return {
        "new": _selected(found.new),
        "base": _selected(found.base) if found.base else None,
        "verdict": found.verdict,
        "incomplete": found.incomplete,
        "findings": [_finding(one) for one in found.cases],
        "figures": [_figure(one) for one in found.figures],
    }


def _selected(one: Selected) -> dict[str, object]:
    return {"label": one.label, "run": one.run or None, "build": _build(one.build)}


def _build(build: RecordedBuild) -> dict[str, object]:
    return {
        "line": build.line,
        "key": build.key,
        "build_id": build.build_id,
        "version": build.version,
        "accepted": build.accepted,
        "source": {name: getattr(build.source, name) for name in Source.__slots__} if build.source else None,
    }


def _figure(one: FigureChange) -> dict[str, object]:
    return {
        "figure": one.track.figure,
        "case": one.track.series.case,
        "board_class": one.track.series.board_class,
        "boards": one.track.boards,
        "change": one.change.value,
        "has_baseline": one.has_baseline,
        "old": list(one.found.old),
        "new": list(one.found.new),
        "share": one.found.change,
        "noise": one.found.noise,
        "why": one.why,
    }


def _finding(one: CaseChange) -> dict[str, object]:
    return {
        "case": one.series.case,
        "board_class": one.series.board_class or None,
        "change": one.change.value,
        "why": one.why,
        "failure": one.failure or None,
        "known": list(one.known),
    }
