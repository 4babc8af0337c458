"""All cases and all boards of some runs, each in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from lab.history.records import Place, Series, place_of
from lab.history.schema import cases, results, runs, series
from lab.history.store import OF_SERIES, History, named
from lab.results.record import Verdict


@dataclass(frozen=True, slots=True)
class CaseRow:
    """A case on a class of boards with a line of builds: its last result, and how often each verdict came."""

    series: Series
    doc: str
    verdict: Verdict
    reason: str
    known: str
    started: float
    place: Place
    counts: Mapping[Verdict, int]


@dataclass(frozen=True, slots=True)
class BoardRow:
    """A board: how its attempts ended, and the last of them."""

    name: str
    classes: tuple[str, ...]
    counts: Counter[Verdict]
    last: float
    last_verdict: Verdict
    last_place: Place


def case_rows(history: History, run_ids: Sequence[int]) -> list[CaseRow]:
    """By case, line and class."""
    group = (results.c.series_id, results.c.verdict)
    numbers = (
        sa.select(*group, sa.func.count().label("number"), sa.func.max(results.c.id).label("last"))
        .where(results.c.run_id.in_(run_ids))
        .group_by(*group)
    )
    of = sa.select(*OF_SERIES, cases.c.doc.label("doc")).join_from(series, cases)
    counts: dict[int, dict[Verdict, int]] = {}
    last: dict[int, int] = {}
    with history.transaction(writes=False) as connection:
        for row in connection.execute(numbers).mappings():
            counts.setdefault(row["series_id"], {})[Verdict(row["verdict"])] = row["number"]
            last[row["series_id"]] = max(last.get(row["series_id"], 0), row["last"])
        known = {row["series_id"]: (Series.of(row), row["doc"]) for row in connection.execute(of).mappings()}
        newest = _by_id(history, list(last.values()))
    rows = [
        CaseRow(
            *known[id],
            verdict=Verdict(newest[number]["results_verdict"]),
            reason=newest[number]["results_reason"],
            known=newest[number]["results_known"],
            started=newest[number]["results_started"],
            place=place_of(newest[number]),
            counts=counts[id],
        )
        for id, number in last.items()
    ]
    return sorted(rows, key=lambda row: (row.series.case, row.series.line, row.series.board_class))


def board_rows(history: History, run_ids: Sequence[int]) -> list[BoardRow]:
    """By name. An attempt on two boards counts for both."""
    group = (results.c.boards, results.c.verdict, series.c.board_class)
    numbers = (
        sa.select(*group, sa.func.count().label("number"), sa.func.max(results.c.id).label("last"))
        .join_from(results, series)
        .where(results.c.run_id.in_(run_ids), results.c.boards != "")
        .group_by(*group)
    )
    found: dict[str, _OfBoard] = {}
    with history.transaction(writes=False) as connection:
        for row in connection.execute(numbers).mappings():
            names = row["boards"].split(",")
            for name in names:
                of = found.setdefault(name, _OfBoard())
                of.counts[Verdict(row["verdict"])] += row["number"]
                of.last = max(of.last, row["last"])
                if len(names) == 1:
                    of.classes.add(row["board_class"])
    newest = _by_id(history, [one.last for one in found.values()])
    return [
        BoardRow(
            name,
            tuple(sorted(of.classes)),
            of.counts,
            last=newest[of.last]["results_started"],
            last_verdict=Verdict(newest[of.last]["results_verdict"]),
            last_place=place_of(newest[of.last]),
        )
        for name, of in sorted(found.items())
    ]


@dataclass(slots=True)
class _OfBoard:
    counts: Counter[Verdict] = field(default_factory=Counter)
    classes: set[str] = field(default_factory=set)
    last: int = 0


def _by_id(history: History, ids: Sequence[int]) -> dict[int, sa.RowMapping]:
    found = {}
    with history.transaction(writes=False) as connection:
        for start in range(0, len(ids), 500):
            wanted = sa.select(*named(runs.c.name, *results.c)).join_from(results, runs)
            rows = connection.execute(wanted.where(results.c.id.in_(ids[start : start + 500]))).mappings()
            found.update({int(row["results_id"]): row for row in rows})
    return found


def docs(history: History, names: Sequence[str]) -> dict[str, str]:
    """What each case proves, by its docstring."""
    found: dict[str, str] = {}
    with history.transaction(writes=False) as connection:
        for start in range(0, len(names), 500):
            wanted = sa.select(cases.c.name, cases.c.doc).where(cases.c.name.in_(names[start : start + 500]))
            found.update({row["name"]: row["doc"] for row in connection.execute(wanted).mappings()})
    return found
