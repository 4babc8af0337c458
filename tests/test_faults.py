"""A BMC that misbehaves on order, and what the lab does: a real board daemon, BMC and QEMU."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import Recording
from free_ports import free_port
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture  # noqa: F401

from lab import inventory
from lab.base.credentials import Credential
from lab.base.errors import BmcUnreachable, PowerTimeout, UsageError
from lab.base.wait import wait_until
from lab.bmc import Bmc, ipmitool
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.redfish import RedfishBmc
from lab.bmc.switching import Pace
from lab.cli.main import main
from lab.console.config import RecorderConfig
from lab.grid import services
from lab.inventory import ConsoleSpec
from lab.leases.ledger import Ledger
from lab.leases.records import Request
from lab.night.options import VIRTUAL_LAB
from lab.virtual import faults

QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.5)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(name="board", params=["ipmi", "redfish"])
def board_fixture(make_board: Callable[..., VirtualBoard], request: pytest.FixtureRequest) -> VirtualBoard:
    return make_board(request.param)


def bmc_of(board: VirtualBoard, pace: Pace = QUICK) -> Bmc:
    kind = RedfishBmc if board.spec.bmc.protocol == "redfish" else IpmiBmc
    return kind("mini", board.spec.bmc, Credential("admin", PASSWORD), pace)


def order(board: VirtualBoard, fault: str) -> None:
    assert board.ask(f"fault {fault}") == "ok"


def test_ignored_power_on_is_repeated(board: VirtualBoard) -> None:
    order(board, "ignore-power-on 2")
    started = time.monotonic()
    bmc_of(board).power_on(20.0)
    assert board.ask("get power") == "1"
    assert time.monotonic() - started > 2 * QUICK.repeat_after


def test_power_on_that_is_ignored_for_ever_is_a_power_timeout(board: VirtualBoard) -> None:
    order(board, "ignore-power-on 100")
    with pytest.raises(PowerTimeout, match="mini: chassis power not on after"):
        bmc_of(board).power_on(3.0)
    order(board, "none")
    bmc_of(board).power_on()


def test_late_answers_are_waited_for(board: VirtualBoard) -> None:
    order(board, "late 0.5")
    started = time.monotonic()
    bmc_of(board).power_on(30.0)
    assert time.monotonic() - started > 1.0, "reading, switching and reading again each take half a second"
    order(board, "none")
    assert board.ask("get power") == "1"


def test_wrong_status_passes_and_the_power_is_as_wanted(board: VirtualBoard) -> None:
    """It says on while it is off: nothing is sent, and what is believed at first is not the truth, until it is read."""
    order(board, "wrong-status 2")
    bmc = bmc_of(board)
    assert bmc.is_powered()
    wait_until(lambda: not bmc.is_powered(), 10.0, "the truth")
    bmc.power_on(20.0)
    order(board, "wrong-status 3")
    bmc.cycle(30.0)
    assert board.ask("get power") == "1" and bmc.is_powered()


def test_lie_about_the_power_is_seen_through(board: VirtualBoard) -> None:
    """It reports on as soon as it is told to, and has done nothing: the reading must hold for longer than the lie."""
    order(board, "lie 2")
    bmc_of(board, Pace(command_gap=0.0, poll=0.1, repeat_after=1.0, settle=3.0)).power_on(40.0)
    assert board.ask("get power") == "1"


def test_sessions_that_are_dropped_in_a_power_on_are_made_anew(board: VirtualBoard) -> None:
    bmc = bmc_of(board)
    assert not bmc.is_powered()
    order(board, "ignore-power-on 1")
    order(board, "drop-sessions 1")
    bmc.power_on(60.0)
    assert board.ask("get power") == "1"
    assert (board.folder / "daemon.log").read_text().count("BMC is back") == 1


def test_bmc_that_restarts_in_the_middle_of_a_command_is_back(
    board: VirtualBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was running for that command goes with it, or would keep its port from the new one."""
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "2", "-R", "1"))  # to be quick
    order(board, "late 2")
    order(board, "drop-sessions 1")
    with contextlib.suppress(BmcUnreachable):
        bmc_of(board).is_powered()
    wait_until(lambda: "BMC is back" in (board.folder / "daemon.log").read_text(), 20.0, "the BMC")
    order(board, "none")
    wait_until(lambda: _answers(bmc_of(board)), 20.0, "an answer")


def test_silent_bmc_is_unreachable_and_forgiven_afterwards(
    board: VirtualBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))  # to be quick
    monkeypatch.setattr("lab.bmc.redfish_service.READ_TIMEOUT", 2.0)
    bmc = bmc_of(board)
    order(board, "silent 6")
    with pytest.raises(BmcUnreachable):
        bmc.is_powered()
    wait_until(lambda: _answers(bmc), 20.0, "an answer")
    bmc.power_on()
    assert board.ask("get power") == "1"


def _answers(bmc: Bmc) -> bool:
    try:
        return not bmc.is_powered()
    except BmcUnreachable:
        return False


# The console


@pytest.fixture(name="sol")
def sol_fixture(make_board: Callable[..., VirtualBoard], tmp_path: Path) -> Iterator[tuple[VirtualBoard, Recording]]:
    """A board with a recorder at its SOL."""
    board = make_board("ipmi")
    console = ConsoleSpec("sol", free_port(), free_port())
    recording = Recording(RecorderConfig("mini", console, board.spec.bmc, tmp_path), dict(os.environ))
    recording.start()
    yield board, recording
    recording.stop()


def test_refused_sol_is_a_gap_that_says_why_and_ends(sol: tuple[VirtualBoard, Recording]) -> None:
    board, recording = sol
    with recording.console() as console:
        wait_until(console.is_connected, 20.0, "SOL", interval=0.05)
        mark = console.mark()
        order(board, "refuse-sol 600")
        order(board, "drop-sessions")

        def gaps() -> list[str]:
            return [line.text for line in console.lines(mark) if line.kind == "gap"]

        refused = "SOL payload already active on another session"
        wait_until(lambda: any(refused in text for text in gaps()), 80.0, f"a gap that says {refused}")
        assert not console.is_connected()
        order(board, "none")
        wait_until(console.is_connected, 60.0, "SOL again", interval=0.05)


def test_sol_survives_a_bmc_that_is_silent_for_a_while(sol: tuple[VirtualBoard, Recording]) -> None:
    board, recording = sol
    with recording.console() as console:
        wait_until(console.is_connected, 20.0, "SOL", interval=0.05)
        mark = console.mark()
        order(board, "silent 5")
        uart = board.uart()
        uart.sendall(b"said while nobody listened\r\n")
        try:
            console.wait_for("said while nobody listened", 60.0, since=mark)
        finally:
            uart.close()


# Ordering


def test_fault_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(
        UsageError, match=r"no fault 'ignore-poweron' \(did you mean ignore-power-on\?\); there are: ig"
    ):
        faults.parse("ignore-poweron", None)
    with pytest.raises(UsageError, match="late 99: must be a number from 0 to 10"):
        faults.parse("late", "99")
    with pytest.raises(UsageError, match="lie x: must be a number from 0 to 600"):
        faults.parse("lie", "x")


def test_daemon_refuses_what_it_does_not_know(make_board: Callable[..., VirtualBoard]) -> None:
    board = make_board("ipmi")
    assert board.ask("fault explode").startswith("error: no fault 'explode'")
    assert board.ask("fault").startswith("error")
    assert board.ask("fault late 1 2").startswith("error")


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["virt1", "late", "99"], "late 99: must be a number from 0 to 10", 2),
        (["virt9", "late"], "); there are: virt1, virt2", 2),
        (["virt1", "late"], "virt1: the board daemon does not answer", 3),
    ],
)
def test_command_says_what_is_wrong(
    words: list[str],
    said: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["lab", "fault", *words])
    assert ended.value.code == status and said in capsys.readouterr().err


def test_bmc_of_a_board_that_somebody_holds_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ledger = Ledger(services.directory(inventory.load(VIRTUAL_LAB)))
    assert ledger.grant(ledger.ask(Request("person", "desk/alice", 600.0, ("virt1",))), {"virt1": None})
    for caller, said in (("bob", "virt1 is held by desk/alice until "), ("alice", "daemon does not answer")):
        monkeypatch.setenv("LG_HOSTNAME", "desk")
        monkeypatch.setenv("LG_USERNAME", caller)
        with pytest.raises(SystemExit):
            main(["lab", "fault", "virt1", "silent"])
        assert said in capsys.readouterr().err


# Cables


def test_a_serial_cable_that_is_out_passes_nothing_and_stays_open(make_board: Callable[..., VirtualBoard]) -> None:
    board = make_board("ipmi")
    assert board.spec.virtual
    with board.uart() as uart, socket.create_connection(("127.0.0.1", board.spec.virtual.serial_port)) as far:
        for end in (uart, far):
            end.settimeout(10.0)
        far.sendall(b"here")  # connected is not yet accepted, and nobody hears what is said until then
        assert uart.recv(100) == b"here"
        uart.sendall(b"before")
        assert far.recv(100) == b"before"
        order(board, "serial-off 600")
        uart.sendall(b"lost")
        far.sendall(b"lost")
        time.sleep(0.3)
        order(board, "none")
        uart.sendall(b"after")
        far.sendall(b"after")
        assert (far.recv(100), uart.recv(100)) == (b"after", b"after")


def test_a_network_that_is_off_stays_off_over_a_power_cycle(make_board: Callable[..., VirtualBoard]) -> None:
    board = make_board("ipmi")
    log = board.folder / "daemon.log"
    order(board, "network-off 600")
    assert board.ask("set power 1") == "ok"
    order(board, "none")
    assert board.ask("set power 0") == "ok"
    assert "set_link" not in log.read_text(), "QEMU has refused it"
