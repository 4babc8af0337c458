"""A damaged ledger, made anew of what can be read of it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError
from lab.leases.ledger import FILE, Ledger, LedgerDamaged, read_board, read_lease
from lab.leases.records import State

# In this order each row finds what it refers to.
TABLES = ("leases", "holds", "reservations", "boards", "audit")
LISTS = frozenset({"names", "needs", "misses"})  # columns
STATES: tuple[State, ...] = ("waiting", "held", "ending", "ended")


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What became of a damaged ledger: where it is now, and how many rows of each table were read."""

    aside: Path
    rows: Mapping[str, int]
    quarantined: tuple[str, ...]  # boards that the audit says are in quarantine, and the boards' table did not

    def __str__(self) -> str:
        read = ", ".join(f"{number} of {table}" for table, number in self.rows.items())
        more = f"; taken from the audit: {', '.join(self.quarantined)} in quarantine" if self.quarantined else ""
        return f"a new ledger has what could be read ({read}){more}; the damaged one is {self.aside}"


def salvage(folder: Path) -> Salvaged:
    """Put the damaged ledger aside and make a new one of the rows that can be read.

    A board whose own row is lost is in quarantine again if the audit says that it was. A lease whose row is lost is
    over: its boards stay acquired at the coordinator, as boards that somebody took by labgrid's own client.

    :raises UsageError: there is no ledger, or it is not damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise UsageError(f"{path}: there is no ledger")
    if _is_whole(folder):
        raise UsageError(f"{path}: the ledger is not damaged; nothing was done")
    aside = path.with_name(f"{FILE}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    os.replace(path, aside)
    for more in ("-journal", "-wal"):  # they belong to the file that they lie beside
        with contextlib.suppress(FileNotFoundError):
            os.replace(path.with_name(FILE + more), aside.with_name(aside.name + more))
    made = Ledger(folder)
    rows = _copy(aside, path)
    quarantined = _quarantine_again(made)
    result = Salvaged(aside, rows, quarantined)
    made.note("salvaged", str(result))
    return result


def _is_whole(folder: Path) -> bool:
    try:
        ledger = Ledger(folder)
        boards = [board for lease in ledger.leases(*STATES) for board in lease.boards]
        ledger.boards(boards)
        ledger.all_tokens()
        ledger.audit()
    except LedgerDamaged:
        return False
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        try:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
        except sqlite3.DatabaseError:
            return False


def _copy(old: Path, new: Path) -> dict[str, int]:
    """Copy each row that can be read, and fits; how many of each table."""
    copied = {}
    with contextlib.closing(sqlite3.connect(old)) as source, contextlib.closing(sqlite3.connect(new)) as target:
        target.execute("PRAGMA foreign_keys = ON")
        for table in TABLES:
            known = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
            count = 0
            for row in _readable(source, table).values():
                values = {name: value for name, value in row.items() if name in known}
                if not (_are_lists(values) and _is_read(table, values)):
                    continue
                marks = ", ".join(f":{name}" for name in values)
                with contextlib.suppress(sqlite3.Error):
                    target.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", values)
                    count += 1
            copied[table] = count
        target.commit()
    return copied


def _is_read(table: str, values: Mapping[str, object]) -> bool:
    """Whether the ledger can make something of the row."""
    try:
        if table == "leases":
            read_lease(values, ())
        elif table == "boards":
            read_board(values)
    except (TypeError, ValueError, LookupError):
        return False
    return True


def _are_lists(values: Mapping[str, object]) -> bool:
    """Whether the columns that hold JSON do hold lists of text."""
    for name in LISTS & values.keys():
        try:
            read = json.loads(str(values[name]))
        except (ValueError, RecursionError):
            return False
        if not isinstance(read, list) or not all(isinstance(one, str) for one in read):
            return False
    return True


def _readable(source: sqlite3.Connection, table: str) -> dict[int, dict[str, object]]:
    """Rows from both ends of the table up to where it is damaged, by their number in SQLite."""
    found: dict[int, dict[str, object]] = {}
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            cursor = source.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {order}")
            names = [one[0] for one in cursor.description]
            for number, *values in cursor:
                found[number] = dict(zip(names[1:], values, strict=True))
    return dict(sorted(found.items()))


def _quarantine_again(made: Ledger) -> tuple[str, ...]:
    """By the audit: the last word about each board that the new ledger has no row of."""
    last = {}
    for event in made.audit():
        if event.board and event.what in ("quarantined", "cleared", "checked"):
            last[event.board] = event
    lost = [name for name, event in last.items() if event.what == "quarantined" and not made.board(name).quarantine]
    for name in lost:
        made.quarantine(name, last[name].detail, "the ledger was damaged: this is from its audit")
    return tuple(lost)
