"""Boards that people share: a real coordinator, exporter, recorders and BMCs; only the boards are not there."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.base import processes
from lab.base.daytime import Daytime
from lab.base.errors import BenchError, UsageError
from lab.base.wait import wait_until
from lab.bmc.ipmi import IpmiBmc
from lab.cli import main
from lab.grid.coordinator import Coordinator
from lab.inventory import Lab
from lab.leases.ledger import Ledger
from lab.leases.queue import choose, in_order, yields
from lab.leases.records import BoardState, Kind, Lease, Request, seconds_of
from lab.virtual import simulated

# -- a lease -------------------------------------------------------------------------------------------------------


def test_a_person_has_what_they_need_under_exact_names(shared: Shared) -> None:
    said = shared.xenlab("reserve", "--need", "iommu,hvm", "--count", "2", "--for", "1h")
    (lease,) = shared.ledger.leases()
    assert lease.state == "held" and len(lease.boards) == 2 and lease.holder == "desk/alice"
    assert f"lease {lease.id}: {' '.join(lease.boards)} until" in said
    assert shared.acquired() == dict.fromkeys(lease.boards, "desk/alice")
    assert f"lease {lease.id}" in shared.xenlab("release")
    shared.wait_acquired({})


def test_a_shell_gets_what_labgrids_own_client_needs(shared: Shared) -> None:
    script = (
        f'eval "$({sys.executable} -P -m lab.cli reserve sim3 --shell --inventory {shared.file})" && '
        'echo "boards $XENLAB_BOARDS" && '
        'labgrid-client -p "$LG_PLACE" power on && labgrid-client -p "$LG_PLACE" power get'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=shared.words(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "boards sim3\n" in done.stdout
    assert "on" in done.stdout.splitlines()[-1]
    assert shared.chassis["sim3"].get("power") == 1
    assert "acquired by" in shared.labgrid("-p", "sim3", "power", "on", user="bob", check=False)


def test_a_lease_ends_by_itself(shared: Shared) -> None:
    number = shared.have("sim1", seconds=1.0)
    wait_until(lambda: shared.ledger.lease(number).state == "ended", 20, "the lease's end")
    assert shared.ledger.lease(number).why_ended == "its time is over"
    assert shared.acquired() == {}


def test_an_extended_lease_goes_on(shared: Shared) -> None:
    number = shared.have("sim1", seconds=6.0)
    shared.xenlab("extend", str(number), "--for", "1h")
    until = shared.ledger.lease(number).until
    assert until and until > time.time() + 3500
    assert shared.ledger.extend(number, 1.0) == pytest.approx(until, abs=0.1), "an extension never shortens"


def test_a_holder_names_a_lease_by_its_board_and_learns_what_became_of_it(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    number = shared.have("sim1", seconds=7200.0)
    said = shared.xenlab("extend", "sim1", "--for", "1h")
    assert said.startswith(f"lease {number}: sim1 until ")
    assert said.rstrip().endswith(" JST, as before: that is later than 1h from now")
    assert "as before" not in shared.xenlab("extend", str(number), "--for", "3h")
    assert "has no lease on sim2" in shared.xenlab("release", "sim2", status=2)
    assert f"lease {number}: sim1: given back" in shared.xenlab("release", "sim1")
    said = shared.xenlab("extend", str(number), status=2)
    assert f"desk/alice has no lease {number}; lease {number} is over: released by its holder" in said


def test_a_lease_ends_with_its_job(shared: Shared) -> None:
    with subprocess.Popen(["sleep", "60"]) as job:
        shared.xenlab("reserve", "sim2", "--pid", str(job.pid))
        assert shared.acquired() == {"sim2": "desk/alice"}
        job.kill()
    wait_until(lambda: not shared.ledger.leases(), 20, "the lease's end")
    assert shared.acquired() == {}


def test_who_waits_and_dies_waits_no_more(shared: Shared) -> None:
    shared.have("sim1", user="bob")
    waiting = shared.start_xenlab("reserve", "sim1", "--wait")
    wait_until(lambda: shared.ledger.leases("waiting"), 20, "a request")
    waiting.kill()
    waiting.communicate()
    wait_until(lambda: not shared.ledger.leases("waiting"), 20, "the request's end")


def test_what_cannot_be_is_said_at_once(shared: Shared) -> None:
    assert "no board sim" in shared.xenlab("reserve", "sim", status=2), "names are exact"
    assert "the lab does not have that many; that can: none" in shared.xenlab("reserve", "--need", "sriov", status=2)
    shared.have("sim1", user="bob")
    assert "sim1: desk/bob until" in shared.xenlab("reserve", "sim1", status=3)
    assert shared.ledger.leases("waiting") == []


def test_a_board_that_is_being_given_back_is_waited_for(shared: Shared) -> None:
    number = shared.have("sim1", user="bob")
    shared.ledger.end(number, "is done")  # the board is still to be switched off
    assert "sim1 until" in shared.xenlab("reserve", "sim1")


# -- several -------------------------------------------------------------------------------------------------------


def test_a_pair_is_taken_whole_or_not_at_all(shared: Shared) -> None:
    mine, other = shared.have("sim1"), shared.have("sim3")
    pair = shared.ask(needs=frozenset({"migration-pair"}), count=2, user="carol")
    wait_until(lambda: len(shared.ledger.tokens(pair)) == 2, 20, "a place in the coordinator's queue for each")
    (free,) = {"sim2", "sim4"} - set(shared.ledger.tokens(pair))
    later = shared.have(free, user="dave")  # served, so the pair was looked at before it
    assert shared.acquired() == {"sim1": "desk/alice", "sim3": "desk/alice", free: "desk/dave"}
    shared.ledger.end(later, "")
    shared.ledger.end(other, "")
    assert shared.held(pair) == ("sim3", "sim4")
    assert shared.ledger.lease(mine).state == "held"


def test_two_that_wait_for_the_same_boards_do_not_block_each_other(shared: Shared) -> None:
    first = shared.have("sim1", "sim2")
    waiting = [shared.ask("sim2", "sim1", user="bob"), shared.ask("sim1", "sim2", user="carol")]
    shared.ledger.end(first, "")
    assert shared.held(waiting[0]) == ("sim1", "sim2")
    assert shared.ledger.lease(waiting[1]).state == "waiting"
    shared.ledger.end(waiting[0], "")
    assert shared.held(waiting[1]) == ("sim1", "sim2")


def test_small_requests_do_not_keep_a_large_one_waiting(shared: Shared) -> None:
    first = shared.have("sim1")
    large = shared.ask("sim1", "sim2", user="bob")
    small = shared.ask("sim2", user="carol")
    shared.have("sim4", user="dave")  # served, so the others were looked at before it
    assert shared.ledger.lease(small).state == "waiting", "sim2 is kept for who came first"
    shared.ledger.end(first, "")
    assert shared.held(large) == ("sim1", "sim2")


def test_labgrids_own_client_and_leases_respect_each_other(shared: Shared) -> None:
    shared.labgrid("-p", "sim4", "acquire", user="bob")
    number = shared.ask("sim4")
    shared.have("sim1", user="dave")  # served, so the other was looked at before it
    assert shared.ledger.lease(number).state == "waiting"
    assert "desk/bob (no lease)" in shared.xenlab("who")
    shared.chassis["sim4"].set(power=1)
    shared.labgrid("-p", "sim4", "release", user="bob")
    assert shared.held(number) == ("sim4",)
    assert shared.chassis["sim4"].get("power") == 0, "what a stranger left was switched off"
    assert "already acquired" in shared.labgrid("-p", "sim4", "acquire", user="bob", check=False)


def test_the_database_itself_refuses_a_second_holder(shared: Shared) -> None:
    shared.have("sim1")
    second = shared.ask("sim1", user="bob")
    with pytest.raises(Exception, match="held already"):
        shared.ledger.grant(second, {"sim2": None, "sim1": None})
    assert [lease.boards for lease in shared.ledger.leases("held")] == [("sim1",)], "nothing of it was given"


# -- restarts ------------------------------------------------------------------------------------------------------


def test_holders_still_hold_after_the_coordinators_death(shared: Shared) -> None:
    shared.have("sim1", "sim2")
    shared.have("sim3", user="bob")
    shared.kill("coordinator")
    shared.wait_acquired({"sim1": "desk/alice", "sim2": "desk/alice", "sim3": "desk/bob"})
    shared.wait_exported()
    assert "already acquired" in shared.labgrid("-p", "sim3", "acquire", user="carol", check=False)


def test_holders_still_hold_after_the_machines_restart(shared: Shared) -> None:
    number = shared.have("sim1")
    shared.stop()
    shared.start()
    shared.wait_acquired({"sim1": "desk/alice"})
    assert shared.ledger.lease(number).state == "held"


def test_a_place_taken_behind_the_holders_back_is_given_back(shared: Shared) -> None:
    shared.have("sim1")
    shared.labgrid("-p", "sim1", "release", "-k", user="bob")
    shared.labgrid("-p", "sim1", "acquire", user="bob", check=False)
    shared.wait_acquired({"sim1": "desk/alice"})


def test_a_reaper_that_died_is_back_and_ends_what_is_over(shared: Shared) -> None:
    number = shared.have("sim1", seconds=3.0)
    shared.kill("reaper")
    wait_until(lambda: shared.ledger.lease(number).state == "ended", 40, "the lease's end")
    assert shared.acquired() == {}


@pytest.mark.parametrize("still_waits", [True, False])
def test_a_reaper_that_died_between_taking_and_giving_leaks_no_board(shared: Shared, still_waits: bool) -> None:
    """It has acquired the place in the holder's name, and the ledger does not know of it yet."""
    reaper = shared.pid("reaper")
    wait_until(lambda: _is_stopped_without_the_lock(reaper, shared.ledger.path), 20, "the reaper stands still")
    number = shared.ask("sim1")
    with closing(Coordinator(shared.lab.coordinator)) as one, one.acting_as("desk/alice") as holder:
        token = holder.reserve("sim1")
        shared.ledger.keep_token(number, "sim1", token)
        wait_until(lambda: one.is_allocated(token), 20, "the place")
        holder.acquire("sim1")
    if not still_waits:
        shared.ledger.end(number, "gave up")
    shared.kill("reaper")
    if still_waits:
        assert shared.held(number) == ("sim1",)
        shared.ledger.end(number, "")
    shared.wait_acquired({})


def _is_stopped_without_the_lock(pid: int, ledger: Path) -> bool:
    """Stop a process between two of its transactions; one that was stopped within one goes on."""
    os.kill(pid, signal.SIGSTOP)
    with closing(sqlite3.connect(ledger, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
    return True


# -- handed back ---------------------------------------------------------------------------------------------------


def test_the_next_holder_gets_a_board_that_is_off_and_the_same_one_as_it_was(shared: Shared) -> None:
    shared.ledger.end(shared.have("sim1"), "")
    shared.chassis["sim1"].set(power=1)
    again = shared.have("sim1")
    assert shared.chassis["sim1"].get("power") == 1
    shared.ledger.end(again, "")
    shared.have("sim1", user="bob")
    assert shared.chassis["sim1"].get("power") == 0


def test_a_board_that_cannot_be_switched_off_is_quarantined_and_another_one_given(shared: Shared) -> None:
    shared.ledger.end(shared.have("sim1"), "")
    others = [shared.have(name, user="bob") for name in ("sim2", "sim3", "sim4")]
    shared.bmcs["sim1"].stop()
    try:
        number = shared.ask(user="carol", needs=frozenset({"hvm"}))
        wait_until(lambda: shared.ledger.board("sim1").quarantine, 90, "a quarantine")
        shared.ledger.end(others[1], "")
        assert shared.held(number) == ("sim3",)
    finally:
        shared.bmcs["sim1"].start()
    state = shared.ledger.board("sim1")
    assert state.quarantine.startswith("its power could not be taken away: sim1: BMC ")
    assert "quarantined: its power could not be taken away" in shared.xenlab("who")


def test_a_console_is_cut_at_the_lease(shared: Shared) -> None:
    line = shared.consoles["sim1"]
    line.say(b"before the lease\r\n")
    saw(shared, "sim1", "before the lease")
    number = shared.have("sim1")
    line.say(b"in the lease\r\n")
    saw(shared, "sim1", "in the lease")
    shared.ledger.end(number, "")
    wait_until(lambda: shared.ledger.lease(number).state == "ended", 30, "the lease's end")
    text = (shared.folder / "leases" / str(number) / "sim1.console.log").read_text(encoding="utf-8")
    assert "in the lease" in text and "before" not in text


def saw(shared: Shared, board: str, text: str) -> None:
    record = shared.folder / "console" / f"{board}.jsonl"
    wait_until(lambda: record.exists() and text in record.read_text(encoding="utf-8"), 20, f"{text!r} recorded")


# -- refused and allowed -------------------------------------------------------------------------------------------


def test_who_does_not_hold_a_board_cannot_drive_it(shared: Shared) -> None:
    shared.have("sim1")
    before = shared.chassis["sim1"].calls("set")
    for words in (
        ("power", "sim1", "on"),
        ("console", "sim1", "--write"),
        ("ssh", "sim1", "true"),
        ("provision", "sim1"),
    ):
        said = shared.xenlab(*words, user="bob", status=2)
        assert "sim1 is held by desk/alice until" in said and "xenlab reserve sim1" in said
    assert shared.chassis["sim1"].calls("set") == before
    assert "has no lease" in shared.xenlab("run", "testcases/sleep", user="bob", status=2)
    assert "on done" in shared.xenlab("power", "sim1", "on")
    assert shared.xenlab("power", "sim1", "status", user="bob") == "on\n", "to look is not to drive"


def test_a_failed_power_command_quarantines(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs in this process, where it is less patient."""
    for name, value in shared.words("alice").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(IpmiBmc.power_on, "__defaults__", (3.0,))  # seconds
    shared.have("sim1")
    shared.chassis["sim1"].set(failures=1000)
    try:
        with pytest.raises(BenchError):  # status 3
            main._invoke(["power", "sim1", "on", "--inventory", str(shared.file)])
    finally:
        shared.chassis["sim1"].set(failures=0)
    assert shared.ledger.board("sim1").quarantine == "power on failed"


class AtConsole:
    """Somebody attached, with what their screen shows."""

    def __init__(self, shared: Shared, user: str, *words: str) -> None:
        self._keys, theirs = os.pipe()[::-1]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lab.cli", "console", "sim1", *words, "--inventory", str(shared.file)],
            env=shared.words(user),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs)
        self.screen = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        while data := self._process.stdout.read1(4096):  # type: ignore[attr-defined]
            self.screen += data

    def shows(self, text: bytes) -> None:
        wait_until(lambda: text in self.screen, 30, f"{text!r} on the screen of {self.screen!r}")

    def type(self, data: bytes) -> None:
        os.write(self._keys, data)

    def leave(self) -> None:
        self.type(b"\x1d")
        assert self._process.wait(20) == 0
        os.close(self._keys)
        self._reader.join(5)
        assert self._process.stdout
        self._process.stdout.close()


def test_a_console_has_history_readers_one_writer_and_take_over_is_said(shared: Shared) -> None:
    shared.have("sim1")
    line = shared.consoles["sim1"]
    line.say(b"said before anybody came\r\n")
    saw(shared, "sim1", "said before anybody came")
    first = AtConsole(shared, "alice", "--write")
    first.shows(b"you type")
    assert b"said before anybody came" in first.screen
    typed = len(line.received)
    first.type(b"ls\r")
    wait_until(lambda: line.received[typed:] == b"ls\r", 20, "what was typed")
    line.say(b"live words\r\n")
    first.shows(b"live words")
    assert "desk/alice types on its console; add --take" in shared.xenlab("console", "sim1", "--write", status=2)
    second = AtConsole(shared, "alice", "--take")
    second.shows(b"taken over from desk/alice")
    first.shows(b"no more you")
    first.type(b"rm -rf\r")
    first.shows(b"not sent")
    second.type(b"pwd\r")
    wait_until(lambda: line.received[typed:] == b"ls\rpwd\r", 20, "what the second one typed")
    second.leave()
    first.leave()
    assert shared.ledger.board("sim1").writer == ""


# -- the nightly and people ----------------------------------------------------------------------------------------


def test_the_nightly_is_asked_to_yield_to_a_person_by_day(shared: Shared) -> None:
    night = shared.have("sim1", "sim2", kind="nightly", user="nightly")
    others = shared.have("sim3", "sim4", user="bob", seconds=7200.0)
    person = shared.ask(user="carol", needs=frozenset({"hvm"}))
    wait_until(lambda: shared.ledger.lease(night).wanted_back, 20, "the nightly being asked")
    assert shared.ledger.lease(night).wanted_back == "desk/carol waits for it"
    assert shared.ledger.lease(night).state == "held", "it is asked, not thrown out"
    assert not shared.ledger.lease(others).wanted_back
    shared.ledger.end(night, "yielded")
    assert shared.held(person) == ("sim1",)


NEVER, ALWAYS = Daytime.read("never"), Daytime.read("always")


def lease(number: int, kind: Kind, boards: Sequence[str] = (), until: float | None = None) -> Lease:
    request = Request(kind, "desk/x", 60.0)
    return Lease(number, request, "held" if boards else "waiting", 0.0, "", None, until, "", "", tuple(boards))


def test_by_night_it_is_first_come_first_served() -> None:
    queue = [lease(1, "nightly"), lease(2, "person")]
    assert [one.id for one in in_order(queue, is_day=True)] == [2, 1]
    assert [one.id for one in in_order(queue, is_day=False)] == [1, 2]
    assert not yields(lease(1, "nightly", ["a"]), False, "person")
    assert not yields(lease(1, "nightly", ["a"]), True, "nightly")
    assert yields(lease(1, "nightly", ["a"]), True, "person")


@pytest.fixture
def four(tmp_path: Path) -> Lab:
    return simulated.lab(tmp_path / "four.yaml", 5)


def chosen_for(
    lab: Lab, ill: Sequence[str] = (), free: dict[str, float] | None = None, kept: Sequence[str] = (), **request: Any
) -> Any:
    states = {name: BoardState(name, quarantine="ill" if name in ill else "") for name in lab.boards}
    asked = Request("person", "desk/x", 60.0, **request)
    return choose(asked, lab, states, free or {}, set(kept))


def test_a_choice_leaves_pairs_whole_and_the_sick_alone(four: Lab) -> None:
    assert chosen_for(four) == ("sim5",), "it has no peer"
    assert chosen_for(four, kept=["sim5", "sim1"]) == ("sim2",), "its peer is gone already"
    assert chosen_for(four, ill=["sim5"]) == ("sim1",)
    pair = {"needs": frozenset({"migration-pair"}), "count": 2}
    assert chosen_for(four, **pair) == ("sim1", "sim2")
    assert chosen_for(four, ill=["sim2"], **pair) == ("sim3", "sim4")
    assert chosen_for(four, free={"sim2": 50.0, "sim3": 20.0}, **pair) == ("sim3", "sim4"), "that is free sooner"
    assert chosen_for(four, kept=["sim1", "sim4"], **pair) is None, "two that are not joined are no pair"
    assert chosen_for(four, count=6) is None


@pytest.mark.parametrize(
    ("rule", "when", "is_day"),
    [
        ("Mon-Fri 07:00-20:00", "2026-11-24 07:00", True),  # a Tuesday
        ("Mon-Fri 07:00-20:00", "2026-11-24 20:00", False),
        ("Mon-Fri 07:00-20:00", "2026-11-28 12:00", False),
        ("Fri-Mon 07:00-20:00", "2026-11-29 12:00", True),
        ("22:00-06:00", "2026-11-24 23:30", True),
        ("Tue 22:00-06:00", "2026-11-25 05:59", True),
        ("Tue 22:00-06:00", "2026-11-24 05:59", False),
        ("always", "2026-11-24 00:00", True),
        ("never", "2026-11-24 12:00", False),
    ],
)
def test_daytime(rule: str, when: str, is_day: bool) -> None:
    assert Daytime.read(rule).holds(time.mktime(time.strptime(when, "%Y-%m-%d %H:%M"))) is is_day


@pytest.mark.parametrize("text", ["", "7-20", "Mon-Foo 07:00-20:00", "07:00-25:00", "07:60-08:00", "sometimes"])
def test_a_rule_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="want `Mon-Fri"):
        Daytime.read(text)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("2h30m", 9000), ("1d", 86400), ("5s", 5)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2h ", "-1h", "1.5h", "0s", "0h0m"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="use 90m"):
        seconds_of(text)


# -- a board's health ----------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def test_two_bench_misses_with_different_builds_quarantine(ledger: Ledger) -> None:
    note: Callable[..., str] = lambda build, bench: ledger.note_result(  # noqa: E731
        "a", build, "MISS", is_bench=bench, evidence="what was seen"
    )
    assert not note("old", True)
    assert not note("old", True), "one build that takes boards down says nothing about the board"
    assert note("new", True) == "3 bench misses in a row with old, new"
    assert ledger.board("a").evidence == "what was seen"
    ledger.clear("a", "looked at", checked=True)
    assert not note("old", True) and not note("old", False) and not note("new", True), "in a row, that is"
    assert ledger.board("a").health == "checked"


def test_the_first_cause_of_a_quarantine_stays(ledger: Ledger) -> None:
    ledger.quarantine("a", "fell off the shelf")
    ledger.quarantine("a", "does not answer")
    assert ledger.board("a").quarantine == "fell off the shelf"


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        seen = processes.mark(process.pid)
        assert processes.is_alive(seen)
        boot, pid, start = seen.split(":")
        assert not processes.is_alive(f"{boot}:{pid}:{int(start) + 1}")
        assert not processes.is_alive(f"00000000:{pid}:{start}")
        process.kill()
        wait_until(lambda: not processes.is_alive(seen), 5, "its end, though nobody waited for it yet")
