"""The database of results: SQLite in the state folder, or what ``XENLAB_HISTORY_URL`` names (PostgreSQL).

It is filled from run folders, run by run; importing one again changes nothing, unless the folder changed.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from lab.base.errors import BenchError, UsageError, WaitTimeout
from lab.base.files import did_you_mean
from lab.base.wait import wait_until
from lab.history import database, schema
from lab.history.database import SETTING
from lab.history.regression import WINDOW, Attempt
from lab.history.schema import builds, cases, results, runs, series
from lab.results.record import RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder, missing, visible_line

DID_NOT_RUN = "did-not-run"  # rule of the MISS that stands for a planned case without a result
COUNTED = ("PASS", "FAIL")
_LOCK = 0x78656E6C  # PostgreSQL's advisory lock of whoever writes
_RUN_KEY = "run:"
_FILES = ("run.json", "builds.json", "results.jsonl")

Imported = Literal["new", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Build:
    """A hypervisor build: what a recipe (its line) made at a time. Times are seconds since the epoch."""

    id: int
    line: str
    key: str
    build_id: str
    version: str
    first_seen: float
    last_seen: float
    accepted: float | None

    @property
    def label(self) -> str:
        """``pv32-debug@34c8e9c8``"""
        return label(self.line, self.key)

    @property
    def is_known(self) -> bool:
        """Whether its run noted what it was."""
        return not self.key.startswith(_RUN_KEY)


def label(line: str, key: str) -> str:
    """A build's name, short enough to be read."""
    return f"{line}@{key if key.startswith(_RUN_KEY) else key[:8]}"


@dataclass(frozen=True, slots=True)
class Selected:
    """All results of a build, or those of one run with it."""

    build: Build
    run: str = ""
    run_id: int | None = None

    @property
    def label(self) -> str:
        return f"run {self.run} ({self.build.label})" if self.run else self.build.label


@dataclass(frozen=True, slots=True)
class Series:
    """A case on a class of boards with a line of builds."""

    id: int
    case: str
    line: str
    board_class: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a series ended with a verdict on the same boards; rule and reason of the last of them."""

    series: Series
    boards: str
    verdict: Verdict
    number: int
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt, for the page of a case. ``started`` in seconds since the epoch."""

    series: Series
    build: Build
    run: str
    verdict: Verdict
    rule: str
    reason: str
    boards: str
    started: float
    seconds: float
    fingerprint: str
    ordinal: int  # place in the run; -1: planned, and did not run


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was taken over, and from which folder. Times are seconds since the epoch."""

    id: int
    name: str
    started: float
    finished: float | None
    exit_status: int | None
    selection: str
    folder: Path


@dataclass(frozen=True, slots=True)
class CrashSeen:
    """A crash over the builds; ``cases`` by name."""

    fingerprint: str
    first: Build
    last: Build
    number: int
    builds: int
    cases: tuple[str, ...]


class History:
    """The database. Every method raises :class:`BenchError` when it fails; its words never hold a password."""

    def __init__(self, url: str | None = None) -> None:
        """Open it, and bring its tables up to date.

        :raises UsageError: ``url`` (default: the setting, else the file in the state folder) is none that is known,
            or a newer xenlab wrote the database.
        """
        self._url = database.url_of(os.environ.get(SETTING, "") if url is None else url)
        self.where = database.described(self._url)
        self._engine = database.engine_of(self._url)
        with self._transaction(writes=False) as connection:
            known = database.version(connection)
        if known != schema.HEAD:
            with self._transaction(writes=True) as connection:
                database.migrate(connection, self.where)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            with self._connect().execution_options(xenlab_writes=writes) as connection, connection.begin():
                if writes and self._url.get_backend_name() == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                yield connection
        except SQLAlchemyError as error:
            raise BenchError(f"history {self.where}: {self._said(error)}") from None

    def _connect(self) -> Connection:
        """A connection; a server that has none left is asked again for a while."""
        refused: list[OperationalError] = []

        def connected() -> Connection | None:
            try:
                return self._engine.connect()
            except OperationalError as error:
                if not database.has_no_connection_left(error):
                    raise
                refused.append(error)
                return None

        try:
            made = wait_until(connected, database.PATIENCE, "a connection", interval=0.5)
        except WaitTimeout:
            raise refused[-1] from None
        assert made is not None  # wait_until gives what is true
        return made

    def _said(self, error: SQLAlchemyError) -> str:
        text = visible_line(str(getattr(error, "orig", None) or error).strip().partition("\n")[0])
        for secret in database.secrets(self._url):
            text = text.replace(secret, "***")
        return text or type(error).__name__

    # -- filling -----------------------------------------------------------------------------------------------

    def import_run(self, folder: Path) -> Imported:
        """Take a run folder over as it is now, in one transaction.

        :raises UsageError: no run folder, or one that cannot be read.
        """
        run = RunFolder.open(folder)
        header, facts = run.header(), run.builds()
        try:
            digest = _digest(run.path)  # before the results: what is appended meanwhile makes the next import one
            if self._digest_of(header.run_id) == digest:
                return "unchanged"
            found = list(run.results())
        except OSError as error:
            raise UsageError(f"{run.path}: {error.strerror or error}") from None
        found += [_did_not_run(header, one.case, one.build) for one in missing(header, found)]
        with self._transaction(writes=True) as connection:
            name = visible_line(header.run_id)
            known = connection.execute(sa.select(runs.c.id, runs.c.digest).where(runs.c.name == name)).first()
            if known and known.digest == digest:
                return "unchanged"
            values = {
                "name": name,
                "started": _finite(header.started),
                "finished": header.finished,
                "exit_status": header.exit_status,
                "selection": visible_line(header.selection),
                "folder": visible_line(str(run.path)),
                "digest": digest,
            }
            old: set[int] = set()
            if known:
                run_id = int(known.id)
                old = set(
                    connection.scalars(sa.select(results.c.build_id).where(results.c.run_id == run_id).distinct())
                )
                connection.execute(results.delete().where(results.c.run_id == run_id))
                connection.execute(runs.update().where(runs.c.id == run_id).values(values))
            else:
                run_id = _insert(connection, runs, values)
            _Filling(connection, header, facts).add(run_id, found)
            for build_id in old:  # of a build that the run turned out not to have had
                if not connection.scalar(sa.select(results.c.id).where(results.c.build_id == build_id).limit(1)):
                    connection.execute(builds.delete().where(builds.c.id == build_id, builds.c.accepted.is_(None)))
        return "updated" if known else "new"

    def _digest_of(self, run_id: str) -> str | None:
        with self._transaction(writes=False) as connection:
            return connection.scalar(sa.select(runs.c.digest).where(runs.c.name == visible_line(run_id)))

    def accept(self, build: Build) -> None:
        """Make a build the baseline of its line from now on."""
        with self._transaction(writes=True) as connection:
            connection.execute(builds.update().where(builds.c.id == build.id).values(accepted=time.time()))

    # -- finding -----------------------------------------------------------------------------------------------

    def builds(self, line: str = "") -> list[Build]:
        """The builds (of a line), first seen first."""
        wanted = sa.select(builds).order_by(builds.c.first_seen, builds.c.id)
        with self._transaction(writes=False) as connection:
            return [Build(*row) for row in connection.execute(wanted.where(builds.c.line == line) if line else wanted)]

    def select(self, text: str) -> Selected:
        """What a user names: ``NAME`` (the build of its latest run), ``NAME@KEYPREFIX``, ``RUN`` or ``RUN@NAME``.

        ``RUN`` is a run's id, or its folder, which is imported then. Builds that their run did not identify are
        taken by ``NAME`` only when there is no other.

        :raises UsageError: no such thing, or several.
        """
        head, at, tail = text.partition("@")
        if head and os.path.isfile(Path(head) / _FILES[0]):
            self.import_run(Path(head))
            head = visible_line(RunFolder.open(Path(head)).header().run_id)
        there = self.builds()
        line = [build for build in there if build.line == head]
        if line and not at:
            return Selected(max(line, key=lambda build: (build.is_known, build.last_seen, build.first_seen)))
        if line:
            known = [Selected(build) for build in line]
            names = [(one, (one.build.key, one.build.build_id)) for one in known if tail]
            fits = [one for one, keys in names if tail in keys]
            fits = fits or [one for one, keys in names if any(key.startswith(tail) for key in keys)]
        else:
            known = self.of_run(head)
            fits = [one for one in known if tail in ("", one.build.line)]
        if len(fits) == 1:
            return fits[0]
        if known:
            said = ", ".join(f"{one.run}@{one.build.line}" if one.run else one.label for one in known[-10:])
            raise UsageError(f"{text!r}: {'several fit' if fits else 'none fits'}; there are: {said}")
        lines = list(dict.fromkeys(build.line for build in there))
        with self._transaction(writes=False) as connection:
            names_of_runs = list(connection.scalars(sa.select(runs.c.name)))
        near = did_you_mean(text, [*lines, *(build.label for build in there), *names_of_runs])
        raise UsageError(f"history has no build or run {text!r}{near}; lines of builds: {', '.join(lines) or 'none'}")

    def last_counted(self) -> dict[str, float]:
        """When each case passed or failed last, on whatever board; seconds since the epoch."""
        wanted = sa.select(cases.c.name, sa.func.max(results.c.started)).join_from(results, series).join(cases)
        wanted = wanted.where(results.c.verdict.in_(COUNTED)).group_by(cases.c.name)
        with self._transaction(writes=False) as connection:
            return {row[0]: float(row[1]) for row in connection.execute(wanted)}

    def of_run(self, name: str) -> list[Selected]:
        """The builds of a run, as it saw them; none when there is no such run."""
        with self._transaction(writes=False) as connection:
            run_id = connection.scalar(sa.select(runs.c.id).where(runs.c.name == name))
            if run_id is None:
                return []
            used = sa.select(results.c.build_id).where(results.c.run_id == run_id)
            rows = connection.execute(sa.select(builds).where(builds.c.id.in_(used)).order_by(builds.c.id))
            return [Selected(Build(*row), name, run_id) for row in rows]

    def case(self, text: str) -> str:
        """The case that a user names: a node id, or the end of one (``test_s3_rtc_wake``).

        :raises UsageError: none, or several.
        """
        with self._transaction(writes=False) as connection:
            names = list(connection.scalars(sa.select(cases.c.name).order_by(cases.c.name)))
        fits = [text] if text in names else [name for name in names if name.endswith((f"::{text}", f"/{text}"))]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise UsageError(f"{text!r}: several cases fit: {', '.join(fits[:10])}")
        short = {name.rpartition("::")[2]: name for name in names}
        near = did_you_mean(text, names) or did_you_mean(text.rpartition("::")[2], list(short))
        raise UsageError(f"history has no case {text!r}{near}")

    # -- reading -----------------------------------------------------------------------------------------------

    def tallies(self, selected: Selected, *, without: Selected | None = None) -> list[Tally]:
        """What was seen with a build or in a run, but not in the run ``without``, by series, boards and verdict."""
        group = (results.c.series_id, results.c.boards, results.c.verdict)
        counted = sa.select(*group, sa.func.count().label("number"), sa.func.max(results.c.id).label("last"))
        counted = counted.where(results.c.build_id == selected.build.id)
        if selected.run_id is not None:
            counted = counted.where(results.c.run_id == selected.run_id)
        if without and without.run_id is not None:
            counted = counted.where(results.c.run_id != without.run_id)
        c = counted.group_by(*group).subquery()
        wanted = (
            sa.select(
                *(series.c.id, cases.c.name, series.c.line, series.c.board_class),
                *(c.c.boards, c.c.verdict, c.c.number, results.c.rule, results.c.reason),
            )
            .join_from(c, results, results.c.id == c.c.last)
            .join(series, series.c.id == c.c.series_id)
            .join(cases, cases.c.id == series.c.case_id)
            .order_by(cases.c.name, series.c.board_class, c.c.boards, c.c.verdict)
        )
        with self._transaction(writes=False) as connection:
            return [Tally(Series(*row[:4]), row[4], Verdict(row[5]), *row[6:]) for row in connection.execute(wanted)]

    def earlier(
        self, wanted: Sequence[Series], until: Build, without: Selected
    ) -> dict[Series, tuple[list[Attempt], bool]]:
        """For each series the last WINDOW counted attempts with builds not newer than ``until``, oldest first.

        Their order is that of the builds, then of time; an attempt's build is ``NAME@KEY``. With them, whether any
        such attempt, however old, passed. Attempts of ``without`` are left out. Series are matched by case and
        class, so that ``until`` may be of another line.
        """
        found: dict[Series, tuple[list[Attempt], bool]] = {}
        with self._transaction(writes=False) as connection:
            ids = self._in_line(connection, wanted, until.line)
            statement = _window(without.run_id is not None)
            values = {"first": until.first_seen, "build": without.build.id, "run": without.run_id}
            for one in wanted:
                rows = connection.execute(statement, {**values, "series": ids.get(one)}).all()
                newest = sorted(rows, key=itemgetter(0), reverse=True)[:WINDOW]
                attempts = [
                    Attempt(f"{until.line}@{key}", verdict == "PASS")
                    for _, _, key, verdict in sorted(newest, key=itemgetter(1, 2, 0))
                ]
                found[one] = attempts, any(verdict == "PASS" for _, _, _, verdict in rows)
        return found

    def _in_line(self, connection: Connection, wanted: Sequence[Series], line: str) -> dict[Series, int]:
        """The ids that series have in a line; mostly their own."""
        if all(one.line == line for one in wanted):
            return {one: one.id for one in wanted}
        rows = connection.execute(
            sa.select(cases.c.name, series.c.board_class, series.c.id).join(cases).where(series.c.line == line)
        )
        there = {(name, board_class): id for name, board_class, id in rows}
        return {one: there[one.case, one.board_class] for one in wanted if (one.case, one.board_class) in there}

    def entries(self, wanted: Sequence[str], limit: int) -> Iterator[Entry]:
        """The last ``limit`` attempts at these cases in each of their series, oldest first; series after series."""
        of = sa.select(series.c.id, cases.c.name, series.c.line, series.c.board_class).join(cases)
        of = of.where(cases.c.name == sa.bindparam("case")).order_by(*series.c[2:])
        last = (
            sa.select(
                *(runs.c.name, results.c.verdict, results.c.rule, results.c.reason, results.c.boards),
                *(results.c.started, results.c.seconds, results.c.fingerprint, results.c.ordinal, builds),
            )
            .join_from(results, builds)
            .join(runs)
            .where(results.c.series_id == sa.bindparam("series"))
            .order_by(results.c.started.desc(), results.c.id.desc())
            .limit(limit)
        )
        with self._transaction(writes=False) as connection:
            for case in wanted:
                for row in connection.execute(of, {"case": case}).all():
                    of_series = Series(*row)
                    for one in reversed(connection.execute(last, {"series": of_series.id}).all()):
                        ordinal = -1 if one.rule == DID_NOT_RUN else one.ordinal
                        facts = (Verdict(one[1]), *one[2:8], ordinal)
                        yield Entry(of_series, Build(*one[9:]), one[0], *facts)

    def runs(self, limit: int) -> list[Run]:
        """The newest runs, newest first."""
        columns = (runs.c.id, runs.c.name, runs.c.started, runs.c.finished, runs.c.exit_status, runs.c.selection)
        wanted = sa.select(*columns, runs.c.folder).order_by(runs.c.started.desc(), runs.c.id.desc()).limit(limit)
        with self._transaction(writes=False) as connection:
            return [Run(*row[:6], Path(row[6])) for row in connection.execute(wanted)]

    def counts(self, run_ids: Sequence[int]) -> list[tuple[int, int, str, Verdict, int]]:
        """Run, build, case, verdict and how often, of these runs."""
        group = (results.c.run_id, results.c.build_id, cases.c.name, results.c.verdict)
        wanted = sa.select(*group, sa.func.count()).join_from(results, series).join(cases).group_by(*group)
        with self._transaction(writes=False) as connection:
            rows = connection.execute(wanted.where(results.c.run_id.in_(run_ids)))
            return [(row[0], row[1], row[2], Verdict(row[3]), row[4]) for row in rows]

    def crashes(self) -> list[CrashSeen]:
        """All crashes: those of the newest builds first, of these the most frequent first."""
        which = results.c.fingerprint
        found: dict[str, list[tuple[int, str, Build]]] = {}
        with self._transaction(writes=False) as connection:
            rows = connection.execute(
                sa.select(which, sa.func.count(), cases.c.name, builds)
                .join_from(results, builds)
                .join(series)
                .join(cases)
                .where(sa.text("fingerprint <> ''"))  # as the index has it
                .group_by(which, cases.c.name, *builds.c)
                .order_by(builds.c.first_seen, builds.c.id, cases.c.name)
            )
            for row in rows:
                found.setdefault(row[0], []).append((row[1], row[2], Build(*row[3:])))
        seen = [
            CrashSeen(
                fingerprint,
                first=times[0][2],
                last=times[-1][2],
                number=sum(number for number, _, _ in times),
                builds=len({build.id for _, _, build in times}),
                cases=tuple(sorted({case for _, case, _ in times})),
            )
            for fingerprint, times in found.items()
        ]
        return sorted(seen, key=lambda one: (-one.last.first_seen, -one.number, one.fingerprint))


def run_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a run folder, else those in it.

    :raises UsageError: neither.
    """
    found = [path] if os.path.isfile(path / _FILES[0]) else sorted(file.parent for file in path.glob(f"*/{_FILES[0]}"))
    if not found:
        raise UsageError(f"{path}: no run folder, and none in it")
    return found


# -- rows --------------------------------------------------------------------------------------------------------


class _Filling:
    """The rows of one run, with those they refer to."""

    def __init__(self, connection: Connection, header: RunHeader, facts: Mapping[str, Mapping[str, str]]) -> None:
        self._connection, self._header, self._facts = connection, header, facts
        self._builds: dict[str, int] = {}
        self._cases: dict[str, int] = {}
        self._series: dict[tuple[int, str, str], int] = {}

    def add(self, run_id: int, found: Sequence[TestResult]) -> None:
        rows = []
        for ordinal, result in enumerate(found):
            line = visible_line(result.build) or "unknown"
            rows.append(
                {
                    "run_id": run_id,
                    "ordinal": ordinal,
                    "build_id": self._build(line, result.build),
                    "series_id": self._of(result, line),
                    "attempt": result.attempt,
                    "verdict": result.verdict.value,
                    "rule": visible_line(result.rule),
                    "reason": visible_line(result.reason),
                    "boards": visible_line(",".join(sorted(result.boards))),
                    "started": _finite(result.started),
                    "seconds": _finite(result.seconds),
                    "fingerprint": visible_line(result.fingerprint),
                }
            )
        if rows:
            self._connection.execute(results.insert(), rows)

    def _build(self, line: str, name: str) -> int:
        if line in self._builds:
            return self._builds[line]
        facts = {key: visible_line(value) for key, value in self._facts.get(name, {}).items()}
        key = facts.get("key") or facts.get("build id") or f"{_RUN_KEY}{visible_line(self._header.run_id)}"
        started = _finite(self._header.started)
        mine = sa.and_(builds.c.line == line, builds.c.key == key)
        row = self._connection.execute(sa.select(builds).where(mine)).first()
        if row is None:
            values: dict[str, Any] = {"line": line, "key": key, "build_id": facts.get("build id", "")}
            values |= {"version": facts.get("version", ""), "first_seen": started, "last_seen": started}
            found = _insert(self._connection, builds, values)
        else:
            found = int(row.id)
            seen = {"first_seen": min(row.first_seen, started), "last_seen": max(row.last_seen, started)}
            self._connection.execute(builds.update().where(mine).values(seen))
        self._builds[line] = found
        return found

    def _of(self, result: TestResult, line: str) -> int:
        name = visible_line(result.case)
        if name not in self._cases:
            row = self._connection.execute(sa.select(cases).where(cases.c.name == name)).first()
            doc = visible_line(result.doc)
            if row is None:
                self._cases[name] = _insert(self._connection, cases, {"name": name, "doc": doc})
            else:
                self._cases[name] = row.id
                if doc and doc != row.doc:
                    self._connection.execute(cases.update().where(cases.c.id == row.id).values(doc=doc))
        key = (self._cases[name], line, _board_class(self._header, result))
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


def _did_not_run(header: RunHeader, case: str, build: str) -> TestResult:
    reason = "planned, and has no result"
    return TestResult(case, "", Verdict.MISS, DID_NOT_RUN, reason, header.started, 0.0, build=build)


def _insert(connection: Connection, table: sa.Table, values: Mapping[str, Any]) -> int:
    done = connection.execute(table.insert().values(values))
    assert done.inserted_primary_key
    return int(done.inserted_primary_key[0])


def _finite(number: float) -> float:
    return float(number) if math.isfinite(number) else 0.0


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        file = path / name
        content = file.read_bytes() if file.is_file() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _window(one_run: bool) -> sa.CompoundSelect[Any]:
    """Counted attempts at a series: the newest WINDOW of each verdict, each by its own stretch of the index."""
    columns = (results.c.started, builds.c.first_seen, builds.c.key, results.c.verdict)
    other = results.c.run_id != sa.bindparam("run") if one_run else results.c.build_id != sa.bindparam("build")
    parts = []
    for verdict in COUNTED:
        part = sa.select(*columns).join_from(results, builds)
        part = part.where(results.c.series_id == sa.bindparam("series"), results.c.verdict == sa.literal(verdict))
        part = part.where(builds.c.first_seen <= sa.bindparam("first"), other)
        parts.append(sa.select(part.order_by(results.c.started.desc()).limit(WINDOW).subquery()))
    return sa.union_all(*parts)
