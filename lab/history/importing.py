"""A run's rows: what is read from its folder, and written into the tables."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lab.base.errors import UsageError
from lab.history.records import RUN_KEY, known_text
from lab.history.schema import builds, cases, results, runs, series
from lab.results.failures import bad_checks, failure_of, known_findings
from lab.results.record import RunHeader, TestResult
from lab.results.run_folder import visible_line
from lab.results.summary import RunSummary, did_not_run

FILES = ("run.json", "builds.json", "results.jsonl")


def run_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a run folder, else those in it.

    :raises UsageError: neither.
    """
    found = [path] if os.path.isfile(path / FILES[0]) else sorted(file.parent for file in path.glob(f"*/{FILES[0]}"))
    if not found:
        raise UsageError(f"{path}: not a run folder, and there is none in it")
    return found


def digest_of(path: Path) -> str:
    """Changes whenever what is imported of a run folder does.

    :raises OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for name in FILES:
        file = path / name
        size = file.stat().st_size if file.is_file() else 0
        digest.update(f"{name} {size}\n".encode())
        if size:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def line_of(build: str) -> str:
    """The line of a build as a run names it: of a recipe given as a file the file's name, wherever it is."""
    name = Path(build).stem if build.endswith((".yaml", ".yml")) else build
    return visible_line(name) or "unknown"


def write_run(connection: Connection, summary: RunSummary, digest: str) -> bool:
    """Write the rows of a run in place of those it had; whether it had any."""
    header = summary.header
    name = visible_line(header.run_id)
    known = connection.scalar(sa.select(runs.c.id).where(runs.c.name == name))
    values = {
        "name": name,
        "started": _finite(header.started),
        "finished": header.finished,
        "exit_status": header.exit_status,
        "selection": visible_line(header.selection),
        "folder": visible_line(str(summary.path)),
        "digest": digest,
    }
    old: set[int] = set()
    if known is None:
        run_id = _insert(connection, runs, values)
    else:
        run_id = int(known)
        old = set(connection.scalars(sa.select(results.c.build_id).where(results.c.run_id == run_id).distinct()))
        connection.execute(results.delete().where(results.c.run_id == run_id))
        connection.execute(runs.update().where(runs.c.id == run_id).values(values))
    _Filling(connection, summary).add(run_id)
    for build_id in old:  # a build that the run turned out not to have had
        if not connection.scalar(sa.select(results.c.id).where(results.c.build_id == build_id).limit(1)):
            connection.execute(builds.delete().where(builds.c.id == build_id, builds.c.accepted.is_(None)))
    return known is not None


class _Filling:
    """The rows of one run, with those they refer to."""

    def __init__(self, connection: Connection, summary: RunSummary) -> None:
        self._connection, self._summary, self._header = connection, summary, summary.header
        self._builds: dict[str, int] = {}
        self._cases: dict[str, int] = {}
        self._series: dict[tuple[int, str, str], int] = {}

    def add(self, run_id: int) -> None:
        gone = [did_not_run(self._header, one) for one in self._summary.missing]
        rows = [self._row(run_id, number, one) for number, one in enumerate([*self._summary.everything, *gone])]
        if rows:
            self._connection.execute(results.insert(), rows)

    def _row(self, run_id: int, ordinal: int, result: TestResult) -> Mapping[str, object]:
        figures = {visible_line(name): value for name, value in result.figures.items() if _is_number(value)}
        return {
            "run_id": run_id,
            "ordinal": ordinal,
            "build_id": self._build(result.build),
            "series_id": self._of(result),
            "attempt": result.attempt,
            "verdict": result.verdict.value,
            "rule": visible_line(result.rule),
            "reason": visible_line(result.reason),
            "boards": visible_line(",".join(sorted(result.boards))),
            "started": _finite(result.started),
            "seconds": _finite(result.own_seconds),
            "fingerprint": visible_line(result.fingerprint),
            "failure": visible_line(failure_of(result)),
            "known": visible_line(known_text(known_findings(result))),
            "bad": visible_line(" ".join(bad_checks(result))),
            "figures": json.dumps(figures, sort_keys=True) if figures else "",
        }

    def _build(self, name: str) -> int:
        if name in self._builds:
            return self._builds[name]
        facts = {key: visible_line(value) for key, value in self._summary.builds.get(name, {}).items()}
        key = facts.get("key") or facts.get("build id") or f"{RUN_KEY}{visible_line(self._header.run_id)}"
        started = _finite(self._header.started)
        line = line_of(name)
        mine = sa.and_(builds.c.line == line, builds.c.key == key)
        row = self._connection.execute(sa.select(builds).where(mine)).mappings().first()
        source = self._source(name)
        if row is None:
            values = {"line": line, "key": key, "build_id": facts.get("build id", "")}
            times = {"first_seen": started, "last_seen": started}
            found = _insert(
                self._connection, builds, {**values, **times, **source, "version": facts.get("version", "")}
            )
        else:
            found = int(row["id"])
            seen = {"first_seen": min(row["first_seen"], started), "last_seen": max(row["last_seen"], started)}
            self._connection.execute(builds.update().where(mine).values({**seen, **source}))
        self._builds[name] = found
        return found

    def _source(self, name: str) -> Mapping[str, str]:
        """The columns for what is known of a build's source; what is not known stays as it is."""
        source = self._summary.sources.get(name)
        if not source:
            return {}
        said = {key: getattr(source, key) for key in type(source).__slots__}
        return {f"source_{key}": visible_line(value) for key, value in said.items() if value}

    def _of(self, result: TestResult) -> int:
        name = visible_line(result.case)
        if name not in self._cases:
            row = self._connection.execute(sa.select(cases).where(cases.c.name == name)).mappings().first()
            doc = visible_line(result.doc)
            if row is None:
                self._cases[name] = _insert(self._connection, cases, {"name": name, "doc": doc})
            else:
                self._cases[name] = int(row["id"])
                if doc and doc != row["doc"]:
                    self._connection.execute(cases.update().where(cases.c.id == row["id"]).values(doc=doc))
        key = (self._cases[name], line_of(result.build), _board_class(self._header, result))
        if key not in self._series:
            columns = (series.c.case_id, series.c.line, series.c.board_class)
            mine = sa.and_(*(column == value for column, value in zip(columns, key, strict=True)))
            known = self._connection.scalar(sa.select(series.c.id).where(mine))
            values = {"case_id": key[0], "line": key[1], "board_class": key[2]}
            self._series[key] = _insert(self._connection, series, values) if known is None else int(known)
        return self._series[key]


def _board_class(header: RunHeader, result: TestResult) -> str:
    """The sorted classes of the boards, joined: a pair of two classes is a class of its own."""
    classes = [header.boards.get(board, {}).get("class") or "unknown" for board in result.boards]
    return visible_line("+".join(sorted(classes)))


def _insert(connection: Connection, table: sa.Table, values: Mapping[str, object]) -> int:
    done = connection.execute(table.insert().values(dict(values)))
    assert done.inserted_primary_key
    return int(done.inserted_primary_key[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _finite(number: float) -> float:
    return float(number) if math.isfinite(number) else 0.0
