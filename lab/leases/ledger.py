"""Who has which board and until when, and how the boards are: the lab's own memory, on the lab's own disk.

labgrid's coordinator keeps places and a queue, but forgets both when it restarts, and a place acquired by somebody
who died stays acquired. So what counts is written here: requests, leases, the boards' health, and what happened when.
It is a SQLite file because several processes write to it and a board must never be given twice: the database itself
refuses the second holder (``holds.board`` is its key). :mod:`lab.grid.reaper` makes the coordinator follow.
What it holds is in :mod:`lab.leases.records`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from lab.base import processes
from lab.base.errors import BenchError, UsageError
from lab.leases import away, tables
from lab.leases.records import BoardState, Event, Lease, Request, State

BUSY_TIMEOUT = 30.0  # seconds to wait for another writer
MISSES_TO_QUARANTINE = 2  # bench misses in a row, with as many different builds
LEASE = "XENLAB_LEASE"  # the variable that names the lease a process works under
FILE = "booking.sqlite"
_VERSION = 2
# SQLite's result codes (sqlite.org/rescode.html) by which the file may well be whole; all others say that it is not.
_WHOLE = frozenset(
    (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
    + (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT)
    + (sqlite3.SQLITE_CONSTRAINT,)
)


class LedgerDamaged(BenchError):
    """The file of the ledger is damaged: not a database, or not all of one."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: damaged: {why}; `xenlab lab salvage` makes a new one of what can be read of it")
        self.path = path


class Ledger:
    """The lab's book of leases. Any number of processes may have it open.

    Every method raises :class:`BenchError` when the file cannot be used, and :class:`LedgerDamaged` when it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        with self._change() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, _VERSION):
                raise UsageError(f"{self.path}: the ledger has version {version}; this xenlab needs version {_VERSION}")
            if version != _VERSION:
                for statement in tables.SINCE_1 if version else tables.ALL:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone with the file."""
        try:
            # Without an isolation level the driver begins nothing on its own. It would begin late: two writers could
            # both have read before they write.
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")  # without it, closing the connection takes all of it back
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0)
            is_in_head = code == sqlite3.SQLITE_READONLY and os.access(self.path, os.W_OK)  # fileformat2.html, 1.3.3
            if code & 0xFF in _WHOLE and not is_in_head:
                raise BenchError(f"{self.path}: {error}") from None
            raise LedgerDamaged(self.path, error) from None
        except (TypeError, ValueError, IndexError) as error:  # values of other types than were written, or columns
            raise LedgerDamaged(self.path, error) from None

    # -- leases --------------------------------------------------------------------------------------------------

    def ask(self, request: Request) -> int:
        """Put a request into the queue; the number of what may become a lease. It waits for as long as we live."""
        with self._change() as connection:
            values = {
                "kind": request.kind,
                "holder": request.holder,
                "names": json.dumps(sorted(request.names)),
                "needs": json.dumps(sorted(request.needs)),
                "count": len(request.names) or request.count,
                "seconds": request.seconds,
                "asked": time.time(),
                "waiter": processes.mark(os.getpid()),
                "job": request.job,
                "state": "waiting",
            }
            number = _insert(connection, "leases", values)
            _note(connection, number, "", "asked", f"{request.holder} ({request.kind}): {request}")
            return number

    def lease(self, number: int) -> Lease:
        """:raises UsageError: there is none of this number."""
        found = self._leases("id = ?", [number])
        if not found:
            raise UsageError(f"there is no lease {number}")
        return found[0]

    def leases(self, *states: State) -> list[Lease]:
        """In the order they were asked for; all but the ended ones if no state is named."""
        wanted = states or ("waiting", "held", "ending")
        return self._leases(f"state IN ({', '.join('?' * len(wanted))})", wanted)

    def lease_of(self, board: str) -> Lease | None:
        """The lease under which the board is held now."""
        return next((lease for lease in self.leases("held", "ending") if board in lease.boards), None)

    def grant(self, number: int, marks: dict[str, int | None]) -> bool:
        """Give boards to a waiting request, all or none; False: it waits no more. ``marks``: of their consoles.

        :raises BenchError: one of them is held. Nothing is given then.
        """
        with self._change() as connection:
            row = _row(connection, number)
            if row is None or row["state"] != "waiting":
                return False
            for board, mark in marks.items():
                try:
                    _insert(connection, "holds", {"board": board, "lease": number, "mark": mark})
                except sqlite3.IntegrityError:
                    raise BenchError(f"{board}: is held already; lease {number} cannot have it") from None
                _note(connection, number, board, "granted", row["holder"])
            _update(connection, number, {"state": "held", "since": time.time(), **_until(row["seconds"])})
            return True

    def extend(self, number: int, seconds: float) -> float:
        """Let a lease last ``seconds`` from now, never shorter than it would; when it ends then.

        :raises UsageError: it is not held.
        """
        with self._change() as connection:
            row = _row(connection, number)
            if row is None or row["state"] != "held":
                raise UsageError(f"lease {number} is not held: {'no such lease' if row is None else row['state']}")
            until = _until(max(_left(row), seconds))
            _update(connection, number, until)
            _note(connection, number, "", "extended", time.strftime("until %F %T", time.localtime(until["until"])))
            return until["until"]

    def end(self, number: int, why: str) -> None:
        """Let a lease end: the reaper takes the boards back. A waiting request is withdrawn. Harmless twice."""
        with self._change() as connection:
            row = _row(connection, number)
            after = {"waiting": "ended", "held": "ending"}.get(row["state"] if row else "")
            if after:
                _update(connection, number, {"state": after, "why_ended": why})
                _note(connection, number, "", "withdrawn" if after == "ended" else "ends", why)

    def finish(self, number: int) -> None:
        """The boards of an ending lease are back."""
        with self._change() as connection:
            lease = _row(connection, number)
            assert lease is not None
            for (board,) in connection.execute("SELECT board FROM holds WHERE lease = ?", [number]).fetchall():
                self._set(connection, board, last_holder=lease["holder"], writer="")
                _note(connection, number, board, "back", lease["why_ended"])
            connection.execute("DELETE FROM holds WHERE lease = ?", [number])
            _update(connection, number, {"state": "ended"})

    def want_back(self, number: int, why: str) -> None:
        """Ask the holder to give the boards back at the end of the case that runs; told once."""
        with self._change() as connection:
            change = "UPDATE leases SET wanted_back = ? WHERE id = ? AND wanted_back = ''"
            if connection.execute(change, [why, number]).rowcount:
                _note(connection, number, "", "wanted back", why)

    def why_stop(self, number: int, boards: Iterable[str]) -> str | None:
        """Why no further case may begin on these boards under this lease; None: it may."""
        lease = self.lease(number)
        if lease.state != "held":
            return f"lease {number} is over: {lease.why_ended}"
        ill = [state for state in self.boards(boards).values() if state.quarantine]
        return lease.wanted_back or "; ".join(f"{state.board} is {state.health}" for state in ill) or None

    def mark_of(self, board: str) -> int | None:
        """The first console record of the lease the board is under."""
        with self._change() as connection:
            row = connection.execute("SELECT mark FROM holds WHERE board = ?", [board]).fetchone()
            return row["mark"] if row else None

    def tokens(self, number: int) -> dict[str, str]:
        """The lease's reservations with the coordinator, by board."""
        with self._change() as connection:
            rows = connection.execute("SELECT board, token FROM reservations WHERE lease = ?", [number]).fetchall()
            return {row["board"]: row["token"] for row in rows}

    def all_tokens(self) -> dict[str, int]:
        """The lease of every reservation there is with the coordinator."""
        with self._change() as connection:
            rows = connection.execute("SELECT token, lease FROM reservations").fetchall()
            return {row["token"]: row["lease"] for row in rows}

    def keep_token(self, number: int, board: str, token: str) -> None:
        with self._change() as connection:
            _insert(connection, "reservations", {"token": token, "lease": number, "board": board})

    def drop_token(self, token: str) -> None:
        with self._change() as connection:
            connection.execute("DELETE FROM reservations WHERE token = ?", [token])

    def _leases(self, where: str, values: Sequence[object]) -> list[Lease]:
        with self._change() as connection:
            rows = connection.execute(f"{tables.LEASES_WHERE} {where} ORDER BY id", values).fetchall()
            held: dict[int, list[str]] = {}
            for board, number in connection.execute("SELECT board, lease FROM holds"):
                held.setdefault(number, []).append(board)
            return [read_lease(row, held.get(row["id"], ())) for row in rows]

    # -- boards --------------------------------------------------------------------------------------------------

    def boards(self, names: Iterable[str]) -> dict[str, BoardState]:
        """What is known of these boards."""
        with self._change() as connection:
            rows = {row["board"]: row for row in connection.execute(f"SELECT {tables.OF_BOARD} FROM boards")}
            found = {name: read_board(rows[name]) if name in rows else BoardState(name) for name in names}
        gone = {name: why for name in found if (why := away.why(self.path.parent, name))}
        return found | {name: replace(found[name], quarantine=why, is_away=True) for name, why in gone.items()}

    def board(self, name: str) -> BoardState:
        return self.boards([name])[name]

    def note_user(self, board: str, holder: str) -> None:
        """Somebody uses the board (empty: it was made clean); the next one gets it clean."""
        with self._change() as connection:
            self._set(connection, board, last_holder=holder)

    def quarantine(self, board: str, cause: str, evidence: str = "") -> None:
        """Keep the board from whoever did not ask for it by name. The first cause stays; one that is away has none."""
        if away.why(self.path.parent, board):
            return
        with self._change() as connection:
            if not _of_board(connection, board, "quarantine"):
                self._set(connection, board, quarantine=cause, evidence=evidence, changed=time.time())
                _note(connection, None, board, "quarantined", cause)

    def clear(self, board: str, why: str, *, checked: bool) -> None:
        """Lift the quarantine; ``checked``: a health check passed."""
        with self._change() as connection:
            now = time.time()
            values: dict[str, object] = {"quarantine": "", "evidence": "", "misses": "[]", "changed": now}
            self._set(connection, board, **values, **({"checked": now} if checked else {}))
            _note(connection, None, board, "checked" if checked else "cleared", why)

    def note_result(self, board: str, build: str, verdict: str, *, is_bench: bool, evidence: str) -> str:
        """Remember how a case ended on the board; the cause, when the rule now puts it into quarantine.

        The rule: :data:`MISSES_TO_QUARANTINE` bench misses in a row with different builds. One build that takes the
        board down again and again says nothing about the board.
        """
        cause, is_bench = "", is_bench and not away.why(self.path.parent, board)
        with self._change() as connection:
            known = json.loads(_of_board(connection, board, "misses") or "[]")
            misses = [*known, build] if is_bench else []
            self._set(connection, board, misses=json.dumps(misses[-8:]), verdict=verdict)
            if len(set(misses)) >= MISSES_TO_QUARANTINE:
                cause = f"{len(misses)} bench misses in a row with {', '.join(dict.fromkeys(misses))}"
        if cause:
            self.quarantine(board, cause, evidence)
        return cause

    def take_console(self, board: str, who: str) -> str:
        """Be the one who types on the console; who was it before."""
        with self._change() as connection:
            before = _of_board(connection, board, "writer")
            if before != who:
                self._set(connection, board, writer=who)
                _note(connection, None, board, "console", f"{who or 'nobody'} types{before and f', no more {before}'}")
            return before

    @staticmethod
    def _set(connection: sqlite3.Connection, board: str, **values: object) -> None:
        change = f"UPDATE boards SET {_assigned(values)} WHERE board = :of_board"
        if not connection.execute(change, {**values, "of_board": board}).rowcount:
            _insert(connection, "boards", {"board": board, **values})

    # -- audit ---------------------------------------------------------------------------------------------------

    def note(self, what: str, detail: str, *, lease: int | None = None, board: str = "") -> None:
        """Add a line to the audit."""
        with self._change() as connection:
            _note(connection, lease, board, what, detail)

    def audit(self, last: int = 0) -> list[Event]:
        """What happened, oldest first; the ``last`` so many, or all."""
        query = "SELECT time, lease, board, what, detail FROM audit ORDER BY id DESC LIMIT ?"
        with self._change() as connection:
            rows = connection.execute(query, [last or -1]).fetchall()  # -1: no limit
        return [Event(*row) for row in reversed(rows)]


def _row(connection: sqlite3.Connection, number: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(f"{tables.LEASES_WHERE} id = ?", [number]).fetchone()
    return row


def _of_board(connection: sqlite3.Connection, board: str, column: str) -> str:
    """A column of text of a board's row; empty when there is no row."""
    row = connection.execute(f"SELECT {column} FROM boards WHERE board = ?", [board]).fetchone()
    return str(row[0]) if row else ""


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, object]) -> int:
    """The number of the new row."""
    marks = ", ".join(f":{name}" for name in values)
    return connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", values).lastrowid or 0


def _update(connection: sqlite3.Connection, number: int, values: Mapping[str, object]) -> None:
    change = f"UPDATE leases SET {_assigned(values)} WHERE id = :of_number"
    connection.execute(change, {**values, "of_number": number})


def _assigned(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = :{name}" for name in values)


def _note(connection: sqlite3.Connection, lease: int | None, board: str, what: str, detail: str) -> None:
    values = {"time": time.time(), "lease": lease, "board": board, "what": what, "detail": detail}
    _insert(connection, "audit", values)


Columns = sqlite3.Row | Mapping[str, Any]  # of one row, by name


class _Until(TypedDict):
    until: float
    boot: str
    until_boottime: float


def _until(seconds: float) -> _Until:
    """The columns for a time so many seconds from now, by the wall clock and by the clock of this boot."""
    boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"until": time.time() + seconds, "boot": processes.boot(), "until_boottime": boottime + seconds}


def _left(row: Columns) -> float:
    """Seconds that a lease lasts yet: by the clock that nobody sets, if this is the boot in which it was noted."""
    if row["boot"] == processes.boot():
        return float(row["until_boottime"]) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return float(row["until"]) - time.time()


def read_lease(row: Columns, boards: Sequence[str]) -> Lease:
    """A row of the table ``leases``. :raises TypeError: / :raises ValueError: a column holds something else."""
    names, needs = tuple(json.loads(row["names"])), frozenset(json.loads(row["needs"]))
    request = Request(row["kind"], row["holder"], row["seconds"], names, needs, row["count"], row["job"])
    return Lease(
        row["id"],
        request,
        row["state"],
        float(row["asked"]),
        str(row["waiter"]),
        None if row["since"] is None else float(row["since"]),
        None if row["until"] is None else time.time() + _left(row),
        row["wanted_back"],
        row["why_ended"],
        tuple(sorted(boards)),
    )


def read_board(row: Columns) -> BoardState:
    """A row of the table ``boards``. :raises TypeError: / :raises ValueError: a column holds something else."""
    return BoardState(
        row["board"],
        row["last_holder"],
        row["quarantine"],
        row["evidence"],
        row["changed"],
        row["checked"],
        tuple(json.loads(row["misses"])),
        row["verdict"],
        row["writer"],
    )
