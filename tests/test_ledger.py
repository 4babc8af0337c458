"""The ledger of leases: a clock that is set, a file that is damaged, a reaper that died between two steps."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.base import processes
from lab.base.daytime import Deadline
from lab.base.errors import UsageError
from lab.base.wait import wait_until
from lab.grid.coordinator import Coordinator
from lab.leases.ledger import FILE, Ledger, LedgerDamaged
from lab.leases.records import Request
from lab.leases.salvage import salvage


def held(ledger: Ledger, board: str = "b1", seconds: float = 600.0) -> int:
    number = ledger.ask(Request("person", "desk/a", seconds, (board,)))
    assert ledger.grant(number, {board: 1})
    return number


# -- the clock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-86400.0, 86400.0 * 400])
def test_a_clock_that_is_set_ends_no_lease_and_lengthens_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    ledger, real = Ledger(tmp_path), time.time
    short, long = held(ledger, "b1", 0.5), held(ledger, "b2", 600.0)
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert ledger.lease(long).why_over(time.time()) == ""
    left = ledger.lease(long).until - time.time()  # type: ignore[operator]
    assert 590 < left <= 600
    assert ledger.extend(long, 60.0) - time.time() == pytest.approx(left, abs=1.0)
    wait_until(lambda: ledger.lease(short).why_over(time.time()) == "its time is over", 2, "its end")


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_a_clock_that_is_set_moves_no_deadline(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    real = time.time
    deadline = Deadline.at(real() + 100.0)
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert deadline.left == pytest.approx(100.0, abs=2.0)


def test_after_a_reboot_the_wall_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    number = held(ledger, seconds=600.0)
    monkeypatch.setattr(processes, "boot", lambda: "another")
    monkeypatch.setattr(time, "clock_gettime", lambda _: 5.0)
    assert 590 < ledger.lease(number).until - time.time() <= 600  # type: ignore[operator]
    assert 690 < ledger.extend(number, 700.0) - time.time() <= 700


def test_a_ledger_lies_where_its_folder_says(tmp_path: Path) -> None:
    """In a URL of SQLite ``?`` and ``%`` mean something."""
    folder = tmp_path / "100%?mode=memory"
    assert Ledger(folder).leases() == []
    assert [path.name for path in folder.iterdir()] == [FILE] and [*tmp_path.iterdir()] == [folder]


def test_a_ledger_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    number = held(Ledger(tmp_path))
    with closing(sqlite3.connect(tmp_path / FILE)) as old:
        for column in ("boot", "until_boottime"):
            old.execute(f"ALTER TABLE leases DROP COLUMN {column}")
        old.execute("PRAGMA user_version = 1")
    assert 590 < Ledger(tmp_path).lease(number).until - time.time() <= 600  # type: ignore[operator]
    assert Ledger(tmp_path).extend(number, 700.0) > time.time() + 600


# -- damage --------------------------------------------------------------------------------------------------------


def _head(file: Path) -> None:
    file.write_bytes(b"\0" * 100 + file.read_bytes()[100:])


def _version(file: Path) -> None:
    """In its head: SQLite then reads it, and takes it for read-only."""
    data = bytearray(file.read_bytes())
    data[18] = 9
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _text(file: Path) -> None:
    file.write_text("not a database\n" * 100)


def _pages(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 1000] = os.urandom(1000)
    file.write_bytes(data)


def _table(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("DROP TABLE holds; DROP TABLE reservations")


def _column(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("ALTER TABLE leases RENAME COLUMN needs TO wants")


def _json(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("UPDATE leases SET names = '[['")


DAMAGE: tuple[Callable[[Path], None], ...] = (_head, _version, _cut, _text, _pages, _table, _column, _json)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_said_in_one_line_with_a_way_out(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    ledger = Ledger(tmp_path)
    for number in range(40):
        held(ledger, f"b{number}")
    damage(ledger.path)
    with pytest.raises(LedgerDamaged) as raised:
        Ledger(tmp_path).leases()
    assert str(raised.value).startswith(f"{ledger.path}: damaged: ")
    assert "`xenlab lab salvage`" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_column_is_missed_in_a_ledger_without_rows(tmp_path: Path) -> None:
    path = Ledger(tmp_path).path
    _column(path)
    with pytest.raises(LedgerDamaged):
        Ledger(tmp_path).leases()
    assert salvage(tmp_path).aside.exists()
    assert Ledger(tmp_path).leases() == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_can_be_read_of_it_makes_a_new_one(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    ledger = Ledger(tmp_path)
    numbers = [held(ledger, f"b{number}") for number in range(40)]
    ledger.quarantine("b7", "it burns")
    damage(ledger.path)
    told = salvage(tmp_path)
    assert told.aside.exists()
    after = Ledger(tmp_path)
    assert {lease.id for lease in after.leases()} <= set(numbers)
    assert after.audit()[-1].what == "salvaged"
    held(after, "another")
    if damage is _table:
        assert after.board("b7").quarantine == "it burns"
        assert {lease.id for lease in after.leases("held")} > set(numbers)
    with pytest.raises(UsageError, match="is not damaged"):
        salvage(tmp_path)


def test_a_quarantine_whose_row_is_lost_comes_back_from_the_audit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for board in ("b1", "b2"):
        ledger.quarantine(board, "it burns")
    ledger.clear("b2", "put out", checked=True)
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("DROP TABLE boards")
    assert salvage(tmp_path).quarantined == ("b1",)
    assert (Ledger(tmp_path).board("b1").quarantine, Ledger(tmp_path).board("b2").quarantine) == ("it burns", "")


def test_a_lease_that_says_nonsense_is_left_out_of_a_new_ledger(tmp_path: Path) -> None:
    first, second = held(Ledger(tmp_path), "b1"), held(Ledger(tmp_path), "b2")
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("UPDATE leases SET until_boottime = NULL WHERE id = ?", [first])
        connection.commit()
    with pytest.raises(LedgerDamaged):
        Ledger(tmp_path).leases()
    salvage(tmp_path)
    assert [lease.id for lease in Ledger(tmp_path).leases()] == [second]


def test_damage_is_status_3_for_people_and_one_line_for_the_reaper(shared: Shared) -> None:
    whole = shared.ledger.path.read_bytes()
    log = shared.folder / "reaper.log"
    before = len(log.read_text())
    shared.ledger.path.write_text("not a database\n" * 100)
    try:
        said = shared.xenlab("who", status=3)
        assert "damaged: file is not a database" in said and "Traceback" not in said

        def said_by_reapers() -> list[str]:
            return log.read_text()[before:].splitlines()

        for number in (1, 2):
            wait_until(lambda wanted=number: len(said_by_reapers()) >= wanted, 30, "a line of the reaper")
            time.sleep(2)  # some six looks
            assert len(said_by_reapers()) == number
            assert "damaged" in said_by_reapers()[-1]
            if number == 1:
                shared.kill("reaper")
        assert "a new ledger has what could be read" in shared.xenlab("lab", "salvage")
        shared.have("sim1")
    finally:
        if shared.ledger.path.read_bytes().startswith(b"not a database"):
            shared.ledger.path.write_bytes(whole)


# -- a reaper that died --------------------------------------------------------------------------------------------


def test_a_reservation_that_was_never_noted_keeps_nobody_waiting(shared: Shared) -> None:
    """As a reaper leaves it that is killed between the coordinator's answer and its own note."""
    with closing(Coordinator(shared.lab.coordinator)) as one, one.acting_as("desk/ghost") as ghost:
        ghost.reserve("sim1")
        os.kill(shared.pid("reaper"), signal.SIGKILL)
    began = time.monotonic()
    shared.have("sim1")
    assert time.monotonic() - began < 20


def test_reservations_that_people_made_themselves_are_left_alone(shared: Shared) -> None:
    said = shared.labgrid("reserve", "--shell", "name=sim2", user="bob")
    token = said.strip().removeprefix("export LG_TOKEN=").strip("'\"")
    time.sleep(2)
    with closing(Coordinator(shared.lab.coordinator)) as one:
        assert one.is_allocated(token) is not None
        one.cancel(token)
