"""Whether a board can be used: looked at from outside, on real BMCs and recorders."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from consoles import Wire
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.base.wait import wait_until
from lab.boards import health
from lab.boards.health import HealthFact
from lab.console.client import source_state
from lab.leases.ledger import Ledger

SOAK = Path(__file__).parent / "soak" / "testcases" / "soak" / "test_leases.py"


def test_a_good_board_is_good_but_a_quick_look_lifts_no_quarantine(shared: Shared) -> None:
    shared.ledger.quarantine("sim1", "smells of smoke")
    shared.consoles["sim1"].say(b"hello\r\n")
    saw(shared, "sim1", "hello")
    said = shared.xenlab("board", "check", "sim1", "--quick")
    assert "ok  power: off" in said and "ok  BMC sensors: 1 readings" in said
    assert "ok  console: read; the board's last word came " in said
    assert "sim1 is quarantined: smells of smoke" in said
    assert "smells of smoke" in shared.xenlab("boards")
    assert "by desk/alice, unseen" in shared.xenlab("board", "clear", "sim1") + shared.xenlab("who", "--audit")
    assert shared.ledger.board("sim1").quarantine == ""


def test_a_console_that_was_never_read_is_bad_with_the_reason_of_the_last_gap(shared: Shared) -> None:
    """Its records are gaps, and gaps are not the board's words."""
    port = shared.lab.boards["sim3"].console.port
    shared.consoles["sim3"].close()
    try:
        refused = f"tcp 127.0.0.1:{port}: Connection refused"
        saw(shared, "sim3", refused)
        said = shared.xenlab("board", "check", "sim3", "--quick", status=3)
        assert f"BAD console: sim3: console: not read: {refused}" in said and "ok  power" in said
        assert shared.ledger.board("sim3").quarantine == f"console: sim3: console: not read: {refused}"
        rows = shared.xenlab("lab", "status").splitlines()
        assert f"{'console of sim3':<24} GONE: {refused}" in rows
        told = json.loads(shared.xenlab("lab", "status", "--json"))["consoles"]
        assert told["sim3"] == {"is_read": False, "detail": refused} and told["sim2"]["is_read"] is True
    finally:
        shared.consoles["sim3"] = Wire(port)
    wait_until(lambda: "GONE" not in shared.xenlab("lab", "status"), 20, "the console is read again")


def test_a_console_that_leads_nowhere_is_told_from_one_of_a_board_that_is_off(shared: Shared) -> None:
    """The source is there. A board that is on would have said something; one that is off, or boots next, may."""
    board = shared.lab.boards["sim4"]
    assert not (shared.folder / "console" / "sim4.jsonl").read_text().count('"kind": "line"')
    silent = "read; the board has said nothing yet"
    wait_until(lambda: source_state(board).is_open, 20, "the source")
    assert f"ok  console: {silent}" in shared.xenlab("board", "check", "sim4", "--quick")
    shared.chassis["sim4"].set(power=1)
    try:
        assert str(health.look(board, boots_next=True)[3]) == f"ok  console: {silent}"
        said = shared.xenlab("board", "check", "sim4", "--quick", status=3)
        assert "BAD console: sim4: console: the source is there, and nothing was ever read from it" in said
        shared.consoles["sim4"].say(b"x")  # a byte is enough, also without a newline
        saw(shared, "sim4", '"partial"')
        assert "ok  console" in shared.xenlab("board", "check", "sim4", "--quick", status=0)
    finally:
        shared.chassis["sim4"].set(power=0)


def test_a_recorder_that_hangs_is_gone_with_its_console(shared: Shared) -> None:
    pid = shared.pid("recorder-sim2")
    os.kill(pid, signal.SIGSTOP)
    try:
        row = next(row for row in shared.xenlab("lab", "status").splitlines() if row.startswith("console of sim2"))
        assert "GONE: sim2: console: no recorder answers" in row
    finally:
        os.kill(pid, signal.SIGCONT)


def saw(shared: Shared, board: str, text: str) -> None:
    record = shared.folder / "console" / f"{board}.jsonl"
    wait_until(lambda: record.exists() and text in record.read_text(encoding="utf-8"), 20, f"{text!r} recorded")


def test_a_board_without_bmc_or_recorder_goes_into_quarantine(shared: Shared) -> None:
    shared.bmcs["sim2"].stop()
    try:
        said = shared.xenlab("board", "check", "sim2", "--quick", status=3)
    finally:
        shared.bmcs["sim2"].start()
    state = shared.ledger.board("sim2")
    assert "BAD power: sim2: BMC" in said and state.quarantine.startswith("power: sim2: BMC")
    assert "BAD BMC sensors" in state.evidence and "ok  console" in state.evidence


def test_a_sick_board_is_lent_to_who_asks_for_it_by_name_and_nobody_else(shared: Shared) -> None:
    for name in ("sim1", "sim2", "sim3"):
        shared.ledger.quarantine(name, "smells of smoke")
    said = shared.xenlab("reserve", "--count", "2", status=2)
    assert "of them not to be had: sim1 (quarantined: smells of smoke)" in said
    assert "sim3 is quarantined" in shared.xenlab("reserve", "sim3")
    run = shared.ask("sim2", kind="run")
    shared.ledger.end(shared.have("sim4", user="dave"), "")  # served, so the other was looked at before it
    assert shared.ledger.lease(run).why_ended == "sim2 is quarantined: smells of smoke"


def test_a_holder_runs_cases_on_what_they_hold(shared: Shared) -> None:
    shared.xenlab("reserve", "sim4")
    said = shared.xenlab("run", f"{SOAK}::test_one[1]")
    assert "1 passed" in said
    assert shared.chassis["sim4"].get("power") == 1
    assert shared.ledger.board("sim4").verdict == "PASS test_one[1]"
    assert [lease.state for lease in shared.ledger.leases()] == ["held"], "the lease outlives the run"


def test_a_check_that_is_not_whole_lifts_nothing_and_a_bad_one_says_why(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.quarantine("a", "old")
    good, bad = HealthFact("power", True, "on"), HealthFact("disk", False, "7 MiB free, and a build needs 100")
    assert health.conclude(ledger, "a", [good], is_whole=False)
    assert ledger.board("a").quarantine == "old"
    assert health.conclude(ledger, "a", [good], is_whole=True)
    assert ledger.board("a").health == "checked"
    assert not health.conclude(ledger, "a", [good, bad], is_whole=True)
    assert ledger.board("a").quarantine == "disk: 7 MiB free, and a build needs 100"
    assert "ok  power: on\nBAD disk" in ledger.board("a").evidence
