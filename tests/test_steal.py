"""Steal time: what the machine keeps from an emulated board, and what that does to a verdict."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_verdicts import OFF, SILENT, after_nmi
from virtual_board import VirtualBoard, make_board_fixture  # noqa: F401

from lab.base.errors import BoardError, BoardUnreachable, CaseTimeout, HypervisorCrash, ProductTimeout
from lab.grid.board_socket import StealMeter
from lab.results.observation import HostLoss, Observation, StealTime
from lab.results.record import STARVED, Verdict
from lab.results.verdicts import decide
from lab.virtual import steal
from lab.virtual.steal import StealClock

MakeBoard = Callable[..., VirtualBoard]
# Pinned to one processor: one that works, and as many beside it as are asked for; says the number of the first.
CROWD = """\
import os, subprocess, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
words = [sys.executable, "-c", "import time\\nend = time.monotonic() + 20\\nwhile time.monotonic() < end: pass"]
crowd = [subprocess.Popen(words) for _ in range(1 + int(sys.argv[1]))]
print(crowd[0].pid, flush=True)
sys.stdin.read()
for one in crowd:
    one.kill()
    one.wait()
"""
OVERDUE = ProductTimeout("virt1: `xl list`", 60.0)
LOCKUP = HypervisorCrash(
    "virt1", "linux-soft-lockup", ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sshd:657]",)
)
PANIC = HypervisorCrash("virt1", "xen-panic", ("(XEN) Panic on CPU 0:",))
STARVING, FED = StealTime(9.0, 91.0), StealTime(28.0, 72.0)


def test_what_others_take_is_stolen_and_a_process_that_is_gone_takes_nothing_more() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as crowd:
        assert crowd.stdin and crowd.stdout
        numbers: list[int | None] = [int(crowd.stdout.readline())]
        clock = StealClock(lambda: numbers[0])
        before = StealTime(*clock.look())
        while (got := StealTime(*clock.look()).since(before)).ran < 0.4:
            time.sleep(0.1)
        assert got.share < 0.5, got
        numbers[0] = None
        time.sleep(steal.SHORTEST)
        after = StealTime(*clock.look())
        assert after.ran >= before.ran + got.ran and StealTime(*clock.look()) == after
        crowd.stdin.close()


@pytest.mark.parametrize(
    ("ran", "waited", "share"),
    [
        (2.0, 6.0, 1.0),  # eight threads had both processors: they waited for each other
        (1.0, 7.0, 0.5),  # two such boards
        (0.2, 0.8, 0.2),  # one thread
        (0.0, 0.0, 1.0),  # it slept
    ],
)
def test_threads_that_wait_for_each_other_are_not_robbed(
    monkeypatch: pytest.MonkeyPatch, ran: float, waited: float, share: float
) -> None:
    now, threads = [100.0], {"7/7": (0, 0)}
    monkeypatch.setattr(steal, "_threads", lambda process: dict(threads))
    monkeypatch.setattr(steal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(steal, "os", SimpleNamespace(sched_getaffinity=lambda process: {0, 1}))
    clock = StealClock(lambda: 7)
    clock.look()
    now[0], threads["7/7"] = 101.0, (int(ran * 1e9), int(waited * 1e9))
    assert StealTime(*clock.look()).share == pytest.approx(share)


def test_a_board_says_what_was_stolen_from_it(make_board: MakeBoard) -> None:
    board = make_board("redfish", tls="off")
    meter = StealMeter("mini", str(board.folder / "control.sock"))
    assert meter.read() == StealTime(0.0, 0.0)
    assert board.ask("set power 1") == "ok"
    while (on := meter.read()).ran < 0.1:
        time.sleep(0.1)
    assert board.ask("set power 0") == "ok"
    assert meter.read().ran >= on.ran
    with pytest.raises(BoardError, match="mini: get steal: no answer"):
        StealMeter("mini", str(board.folder / "nothing.sock")).read()


@pytest.mark.parametrize(
    "found",
    [
        Observation(OVERDUE),
        Observation(CaseTimeout(600.0)),
        Observation(LOCKUP),
        Observation(AssertionError("3 pages"), crashes=(LOCKUP,)),
        Observation(BoardUnreachable("virt1", "ssh"), losses=(HostLoss("virt1", SILENT, comes_back=True),)),
    ],
)
def test_a_board_without_processor_time_fails_no_case_by_being_late(found: Observation) -> None:
    starved = decide(_with(found, STARVING))
    assert (starved.verdict, starved.rule) == (Verdict.MISS, STARVED)
    assert "its processors got 9% of what they could have had" in starved.reason
    assert starved.failed_boards is None, "it is not the board's fault"
    fed = decide(_with(found, FED))
    assert fed.rule != STARVED and fed.reason == decide(found).reason
    assert [one.title for one in fed.evidence].count("the lab's machine was busy") == 1


@pytest.mark.parametrize(
    "found",
    [
        Observation(AssertionError("3 pages")),
        Observation(OVERDUE, crashes=(PANIC, LOCKUP)),
        Observation(PANIC),
        Observation(BoardUnreachable("virt1", "ssh"), losses=(HostLoss("virt1", SILENT, after_nmi(OFF)),)),
    ],
)
def test_what_time_does_not_explain_fails_on_a_busy_machine_too(found: Observation) -> None:
    assert decide(_with(found, STARVING)).verdict is Verdict.FAIL
    assert decide(_with(found, STARVING)).rule == decide(found).rule


def test_a_case_that_passed_is_passed() -> None:
    assert decide(_with(Observation(), STARVING)).rule == "passed"


def _with(found: Observation, got: StealTime) -> Observation:
    return replace(found, steal={"virt1": got})
