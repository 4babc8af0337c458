"""The database of results: SQLite in the state folder, or what ``XENLAB_HISTORY_URL`` names (PostgreSQL).

It is filled from run folders, run by run; importing one again changes nothing, unless the folder changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from lab.base.errors import BenchError, UsageError, WaitTimeout, did_you_mean
from lab.base.wait import wait_until
from lab.history import database, importing, schema
from lab.history.database import SETTING
from lab.history.records import (
    COUNTED,
    ENTRY_COLUMNS,
    VERDICTS,
    Entry,
    RecordedBuild,
    Run,
    Seen,
    Selected,
    Series,
    Tally,
)
from lab.history.regression import WINDOW, Attempt
from lab.history.schema import builds, cases, results, runs, series
from lab.results.record import BUILD_CASE, Verdict
from lab.results.run_folder import RunFolder, visible_line
from lab.results.summary import RunSummary

_LOCK = 0x78656E6C  # PostgreSQL's advisory lock of whoever writes

Imported = Literal["new", "updated", "unchanged"]


def named(*columns: sa.Column[object]) -> list[sa.Label[object]]:
    """Columns as :mod:`lab.history.records` reads them: ``builds_key``, ``results_rule``."""
    return [column.label(f"{column.table.name}_{column.name}") for column in columns]


OF_SERIES = named(series.c.id, cases.c.name, series.c.line, series.c.board_class)
RECORDED = (  # results, each with its series, build and run; what is wanted of them is to be said
    sa.select(*OF_SERIES, *named(runs.c.name, *results.c, *builds.c))
    .join_from(results, builds)
    .join(runs, runs.c.id == results.c.run_id)
    .join(series, series.c.id == results.c.series_id)
    .join(cases, cases.c.id == series.c.case_id)
)


class History:
    """The database. Every method raises :class:`BenchError` when it fails; its words never hold a password."""

    def __init__(self, url: str | Path | None = None) -> None:
        """Open it, and bring its tables up to date.

        :param url: the database's URL, or the path of a SQLite file. Default: the setting, else the file in the
            state folder.
        :raises UsageError: ``url`` is none that is known, or a newer xenlab wrote the database.
        """
        if isinstance(url, Path):
            self._url = database.url_of_file(url)
        else:
            self._url = database.url_of(os.environ.get(SETTING, "") if url is None else url)
        self.where = database.described(self._url)
        self._engine = database.engine_of(self._url)
        with self.transaction(writes=False) as connection:
            known = database.version(connection)
        if known != schema.HEAD:
            with self.transaction(writes=True) as connection:
                database.migrate(connection, self.where)

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Connection]:
        """A connection whose statements take effect together, or not at all."""
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

    def import_run(self, run: Path | RunSummary) -> Imported:
        """Take a run over as its folder has it now, in one transaction.

        :param run: its folder; or what was read from it just now.
        :raises UsageError: no run folder, or one that cannot be read.
        """
        folder = RunFolder.open(run.path if isinstance(run, RunSummary) else run)
        run_id = folder.header().run_id
        try:  # the digest before the results: what is appended meanwhile makes the next import one
            digest = importing.digest_of(folder.path)
            if self._digest_of(run_id) == digest:
                return "unchanged"
            summary = run if isinstance(run, RunSummary) else folder.summary()
        except OSError as error:
            raise UsageError(f"{folder.path}: {error.strerror or error}") from None
        with self.transaction(writes=True) as connection:
            name = visible_line(run_id)
            if connection.scalar(sa.select(runs.c.digest).where(runs.c.name == name)) == digest:
                return "unchanged"
            return "updated" if importing.write_run(connection, summary, digest) else "new"

    def _digest_of(self, run_id: str) -> str | None:
        with self.transaction(writes=False) as connection:
            return connection.scalar(sa.select(runs.c.digest).where(runs.c.name == visible_line(run_id)))

    def accept(self, build: RecordedBuild) -> None:
        """Make a build the baseline of its line from now on."""
        with self.transaction(writes=True) as connection:
            connection.execute(builds.update().where(builds.c.id == build.id).values(accepted=time.time()))

    # -- finding -----------------------------------------------------------------------------------------------

    def builds(self, line: str = "") -> list[RecordedBuild]:
        """The builds (of a line), first seen first."""
        wanted = sa.select(*named(*builds.c)).order_by(builds.c.first_seen, builds.c.id)
        with self.transaction(writes=False) as connection:
            rows = connection.execute(wanted.where(builds.c.line == line) if line else wanted).mappings()
            return [RecordedBuild.of(row) for row in rows]

    def select(self, text: str) -> Selected:
        """What a user names: ``NAME`` (the build of its latest run), ``NAME@KEYPREFIX``, ``RUN`` or ``RUN@NAME``.

        ``RUN`` is a run's id, or its folder, which is imported then. Builds that their run did not identify are
        taken by ``NAME`` only when there is no other, or when they could not be made: that is the line's newest word.

        :raises UsageError: no such thing, or several.
        """
        head, at, tail = text.partition("@")
        if head and os.path.isfile(Path(head) / importing.FILES[0]):
            self.import_run(Path(head))
            head = visible_line(RunFolder.open(Path(head)).header().run_id)
        there = self.builds()
        line = [build for build in there if build.line == head]
        if line and not at:
            unmade = self._unmade(head)
            told = [build for build in line if build.is_known or build.id in unmade]
            return Selected(max(told or line, key=lambda build: (build.last_seen, build.first_seen)))
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
            raise UsageError(f"{text!r}: {'several match' if fits else 'nothing matches'}; there are: {said}")
        lines = list(dict.fromkeys(build.line for build in there))
        with self.transaction(writes=False) as connection:
            names_of_runs = list(connection.scalars(sa.select(runs.c.name)))
        near = did_you_mean(text, [*lines, *(build.label for build in there), *names_of_runs])
        raise UsageError(f"history has no build or run {text!r}{near}; lines of builds: {', '.join(lines) or 'none'}")

    def _unmade(self, line: str) -> set[int]:
        """The builds of a line that could not be made: the source did not compile, or a patch did not apply."""
        wanted = sa.select(results.c.build_id).join_from(results, series).join(cases)
        wanted = wanted.where(
            series.c.line == line, cases.c.name == BUILD_CASE, results.c.verdict == Verdict.FAIL.value
        )
        with self.transaction(writes=False) as connection:
            return set(connection.scalars(wanted))

    def last_counted(self) -> dict[str, float]:
        """When each case passed or failed last, on whatever board; seconds since the epoch."""
        wanted = sa.select(cases.c.name, sa.func.max(results.c.started)).join_from(results, series).join(cases)
        wanted = wanted.where(results.c.verdict.in_(COUNTED)).group_by(cases.c.name)
        with self.transaction(writes=False) as connection:
            return {row[0]: float(row[1]) for row in connection.execute(wanted)}

    def of_run(self, name: str) -> list[Selected]:
        """The builds of a run, as it saw them; none when there is no such run."""
        with self.transaction(writes=False) as connection:
            run_id = connection.scalar(sa.select(runs.c.id).where(runs.c.name == name))
            if run_id is None:
                return []
            used = sa.select(results.c.build_id).where(results.c.run_id == run_id)
            wanted = sa.select(*named(*builds.c)).where(builds.c.id.in_(used)).order_by(builds.c.id)
            return [Selected(RecordedBuild.of(row), name, run_id) for row in connection.execute(wanted).mappings()]

    def folder_of(self, text: str) -> Path:
        """The folder of a run that a user names, by its id or its folder; of the newest run if they name none.

        :raises UsageError: no such run.
        """
        if text and (Path(text) / importing.FILES[0]).is_file():
            return Path(text)
        wanted = sa.select(runs.c.folder).order_by(runs.c.started.desc(), runs.c.id.desc()).limit(1)
        if text:
            wanted = wanted.where(runs.c.name == visible_line(text))
        with self.transaction(writes=False) as connection:
            folder = connection.scalar(wanted)
            names = list(connection.scalars(sa.select(runs.c.name))) if folder is None else []
        if folder is None:
            raise UsageError(f"the history has no run {text}{did_you_mean(text, names)}" if text else "no run yet")
        return Path(folder)

    def case(self, text: str) -> str:
        """The case that a user names: a node id, or the end of one (``test_s3_rtc_wake``).

        :raises UsageError: none, or several.
        """
        with self.transaction(writes=False) as connection:
            names = list(connection.scalars(sa.select(cases.c.name).order_by(cases.c.name)))
        fits = [text] if text in names else [name for name in names if name.endswith((f"::{text}", f"/{text}"))]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise UsageError(f"{text!r}: several cases match: {', '.join(fits[:10])}")
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
        last = named(*(results.c[name] for name in ("rule", "reason", "failure", "known", "bad", "ordinal")))
        wanted = (
            sa.select(*OF_SERIES, c.c.boards, c.c.verdict, c.c.number, *last, *named(runs.c.name))
            .join_from(c, results, results.c.id == c.c.last)
            .join(runs, runs.c.id == results.c.run_id)
            .join(series, series.c.id == c.c.series_id)
            .join(cases, cases.c.id == series.c.case_id)
            .order_by(cases.c.name, series.c.board_class, c.c.boards, c.c.verdict)
        )
        with self.transaction(writes=False) as connection:
            return [Tally.of(row) for row in connection.execute(wanted).mappings()]

    def last_run(self, selected: Selected) -> Run | None:
        """The newest run with a build, or the run that is selected."""
        used = sa.select(results.c.run_id).where(results.c.build_id == selected.build.id)
        wanted = sa.select(runs).where(runs.c.id.in_(used)).order_by(runs.c.started.desc(), runs.c.id.desc())
        if selected.run_id is not None:
            wanted = wanted.where(runs.c.id == selected.run_id)
        with self.transaction(writes=False) as connection:
            row = connection.execute(wanted.limit(1)).mappings().first()
            return None if row is None else Run.of(row)

    def earlier(
        self, wanted: Sequence[Series], until: RecordedBuild, without: Selected
    ) -> dict[Series, tuple[list[Attempt], bool]]:
        """For each series the last WINDOW counted attempts with builds not newer than ``until``, oldest first.

        Their order is that of the builds, then of time; an attempt's build is ``NAME@KEY``. With them, whether any
        such attempt, however old, passed. Attempts of ``without`` are left out. Series are matched by case and
        class, so that ``until`` may be of another line.
        """
        found: dict[Series, tuple[list[Attempt], bool]] = {}
        with self.transaction(writes=False) as connection:
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
        """The last ``limit`` attempts at these cases in each of their series, oldest first; series after series.

        Cases come by name. Builds and runs are read once, and not with each of so many rows.
        """
        place = sa.func.row_number().over(
            partition_by=results.c.series_id, order_by=(results.c.started.desc(), results.c.id.desc())
        )
        columns = [results.c[name] for name in ("run_id", "build_id", "series_id", *ENTRY_COLUMNS)]
        with self.transaction(writes=False) as connection:
            of = [RecordedBuild.of(row) for row in connection.execute(sa.select(*named(*builds.c))).mappings()]
            by_id = {build.id: build for build in of}
            names = {row.id: row.name for row in connection.execute(sa.select(runs.c.id, runs.c.name))}
            for part in _parts(wanted, 200):
                mine = sa.select(*OF_SERIES).join(cases).where(cases.c.name.in_(part))
                mine = mine.order_by(cases.c.name, series.c.line, series.c.board_class)
                known = {row["series_id"]: Series.of(row) for row in connection.execute(mine).mappings()}
                numbered = sa.select(*columns, place.label("place")).where(results.c.series_id.in_(known)).subquery()
                shown = [numbered.c[column.name] for column in columns]
                last = sa.select(*shown).where(numbered.c.place <= limit).order_by(numbered.c.place.desc())
                found: dict[int, list[Entry]] = {id: [] for id in known}
                for run_id, build_id, series_id, *row in connection.execute(last).all():
                    found[series_id].append(Entry.of(known[series_id], by_id[build_id], names[run_id], row))
                for entries in found.values():
                    yield from entries

    def runs(self, limit: int) -> list[Run]:
        """The newest runs, newest first."""
        wanted = sa.select(runs).order_by(runs.c.started.desc(), runs.c.id.desc()).limit(limit)
        with self.transaction(writes=False) as connection:
            return [Run.of(row) for row in connection.execute(wanted).mappings()]

    def counts(self, run_ids: Sequence[int]) -> list[tuple[int, int, str, Verdict, int]]:
        """Run, build, case, verdict and how often, of these runs; a row for each series of a case."""
        group = (results.c.run_id, results.c.build_id, results.c.series_id, results.c.verdict)
        wanted = sa.select(*group, sa.func.count()).group_by(*group)
        with self.transaction(writes=False) as connection:
            rows = connection.execute(wanted.where(results.c.run_id.in_(run_ids))).all()
            # Asked second: an import may add series meanwhile, and none ever goes.
            names = {row.id: row.name for row in connection.execute(sa.select(series.c.id, cases.c.name).join(cases))}
        return [(run, build, names[of], VERDICTS[verdict], number) for run, build, of, verdict, number in rows]

    def digests(self) -> dict[str, str]:
        """Of each run what its rows were made of: another one whenever they were written anew."""
        with self.transaction(writes=False) as connection:
            return {row.name: row.digest for row in connection.execute(sa.select(runs.c.name, runs.c.digest))}

    def spans(self, names: Sequence[str]) -> dict[str, tuple[float, float]]:
        """From when to when the results of runs are, and the first runs of their builds; none of a run without any."""
        times = (results.c.started, builds.c.first_seen)
        ends = [function(time) for function in (sa.func.min, sa.func.max) for time in times]
        wanted = sa.select(runs.c.name, *ends).join_from(results, builds).join(runs, runs.c.id == results.c.run_id)
        found = {}
        with self.transaction(writes=False) as connection:
            for part in _parts(names):
                rows = connection.execute(wanted.where(runs.c.name.in_(part)).group_by(runs.c.name))
                found.update({row[0]: (min(row[1:3]), max(row[3:5])) for row in rows})
        return found

    def contents(self, names: Sequence[str]) -> tuple[set[str], set[str]]:
        """The cases of runs, and the names of their failures."""
        wanted = sa.select(cases.c.name, results.c.failure).join_from(results, series).join(cases).distinct()
        wanted = wanted.join(runs, runs.c.id == results.c.run_id)
        rows: list[sa.Row[*tuple[str, ...]]] = []
        with self.transaction(writes=False) as connection:
            for part in _parts(names):
                rows += connection.execute(wanted.where(runs.c.name.in_(part))).all()
        return {row[0] for row in rows}, {row[1] for row in rows if row[1]}

    def crashes(self) -> list[Seen]:
        """All crashes: those of the newest builds first, of these the most frequent first."""
        seen = self._seen("fingerprint", None)
        return sorted(seen.values(), key=lambda one: (-one.last.first_seen, -one.number, one.name))

    def failures(self, names: Sequence[str]) -> dict[str, Seen]:
        """What is known of failures by their names (:func:`lab.results.failures.failure_key`)."""
        return self._seen("failure", names)

    def _seen(self, column: str, names: Sequence[str] | None) -> dict[str, Seen]:
        which = results.c[column]
        wanted = (
            sa.select(
                which.label("name"),
                sa.func.count().label("number"),
                sa.func.min(results.c.started).label("started"),
                *named(cases.c.name, *builds.c),
            )
            .join_from(results, builds)
            .join(series)
            .join(cases)
            .where(sa.text(f"{column} <> ''"))  # as the index has it
            .group_by(which, cases.c.name, *builds.c)
            .order_by(builds.c.first_seen, builds.c.id, cases.c.name)
        )
        found: dict[str, list[tuple[int, float, str, RecordedBuild]]] = {}
        with self.transaction(writes=False) as connection:
            parts = [wanted] if names is None else [wanted.where(which.in_(part)) for part in _parts(names)]
            for part in parts:
                for row in connection.execute(part).mappings():
                    times = found.setdefault(row["name"], [])
                    times.append((row["number"], row["started"], row["cases_name"], RecordedBuild.of(row)))
        return {
            name: Seen(
                name,
                first=times[0][3],
                first_case=times[0][2],
                last=times[-1][3],
                number=sum(number for number, _, _, _ in times),
                builds=len({build.id for _, _, _, build in times}),
                cases=tuple(sorted({case for _, _, case, _ in times})),
                first_started=min(started for _, started, _, _ in times),
            )
            for name, times in found.items()
        }


def _parts(names: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    """As many at once as a statement may have parameters."""
    unique = sorted(set(names))
    for start in range(0, len(unique), size):
        yield unique[start : start + size]


def _window(one_run: bool) -> sa.CompoundSelect[*tuple[float, float, str, str]]:
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
