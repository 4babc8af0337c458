"""Whether a board can be used: looked at from outside, on real BMCs and recorders."""

from __future__ import annotations

from pathlib import Path

from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.boards import health
from lab.boards.health import Finding
from lab.leases.ledger import Ledger

SOAK = Path(__file__).parent / "soak" / "testcases" / "soak" / "test_leases.py"


def test_a_good_board_is_good_but_a_quick_look_lifts_no_quarantine(shared: Shared) -> None:
    shared.ledger.quarantine("sim1", "smells of smoke")
    said = shared.xenlab("board", "check", "sim1", "--quick")
    assert "ok  power: off" in said and "ok  BMC sensors: 1 readings" in said and "ok  console: recorded" in said
    assert "sim1 is quarantined: smells of smoke" in said
    assert "smells of smoke" in shared.xenlab("boards")
    assert "by desk/alice, unseen" in shared.xenlab("board", "clear", "sim1") + shared.xenlab("who", "--audit")
    assert shared.ledger.board("sim1").quarantine == ""


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
    good, bad = Finding("power", True, "on"), Finding("disk", False, "7 MiB free, and a build needs 100")
    assert health.conclude(ledger, "a", [good], is_whole=False)
    assert ledger.board("a").quarantine == "old"
    assert health.conclude(ledger, "a", [good], is_whole=True)
    assert ledger.board("a").health == "checked"
    assert not health.conclude(ledger, "a", [good, bad], is_whole=True)
    assert ledger.board("a").quarantine == "disk: 7 MiB free, and a build needs 100"
    assert "ok  power: on\nBAD disk" in ledger.board("a").evidence
