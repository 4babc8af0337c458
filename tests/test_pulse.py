"""A silent console and a dead host are told apart: a real recorder, sshd and BMC, each of which can be dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from consoles import Recording, Wire
from dom0 import Dom0, dom0_fixture  # noqa: F401
from free_ports import free_port
from ipmi_sim import Chassis, Simulator, chassis_fixture, simulator_fixture  # noqa: F401

from lab.base.credentials import Credential
from lab.base.wait import wait_until
from lab.bmc.ipmi import IpmiBmc
from lab.console.config import RecorderConfig
from lab.grid import pulse
from lab.grid.pulse import SWITCH, Pulse, Voice
from lab.inventory import ConsoleSpec

PROMPT = {b"\r": b"\r\nmini login: "}
XEN = {SWITCH: b"(XEN) *** Serial input to Xen (type 'CTRL-a' three times to switch input)\r\n"}


@pytest.fixture(name="board")
def board_fixture(
    dom0: Dom0, simulator: Simulator, chassis: Chassis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """All of it alive, and powered."""
    monkeypatch.setattr(pulse, "ANSWER_TIMEOUT", 1.0)
    chassis.set(power=1)
    wire = Wire()
    wire.replies = dict(PROMPT)
    spec = ConsoleSpec("tcp", free_port(), free_port(), host="127.0.0.1", port=wire.port)
    recording = Recording(RecorderConfig("mini", spec, simulator.spec, tmp_path))
    recording.start()
    bmc = IpmiBmc("mini", simulator.spec, Credential(simulator.user, simulator.password))
    ssh = dom0.ssh()
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "the console")
        yield SimpleNamespace(
            name="mini",
            power=bmc,
            console=console,
            is_reachable=ssh.is_reachable,
            sleeps=lambda: ssh.sleeps(2.0),
            wire=wire,
            dom0=dom0,
        )
    ssh.close()
    recording.stop()
    wire.close()


def test_host_that_answers_everywhere_is_alive(board: Any) -> None:
    found = pulse.take(board)
    assert (found.is_powered, found.is_reachable, found.voice) == (True, True, Voice.DOM0)
    assert found.summary == "mini: the host is alive" and found.loss is None


def test_silent_console_of_a_host_that_is_alive(board: Any) -> None:
    board.wire.replies = {}
    found = pulse.take(board)
    assert found.is_alive and found.summary == "mini: the host is alive, but its console is silent"


def test_console_that_the_recorder_has_lost(board: Any) -> None:
    board.wire.close()
    wait_until(lambda: not board.console.is_connected(), 10.0, "the loss")
    found = pulse.take(board)
    assert found.summary == "mini: the host is alive, but its console is not there: the recorder has lost it"
    board.dom0.stop()
    assert pulse.take(board).loss is None, "nobody heard the host"


def test_network_that_is_dead(board: Any) -> None:
    board.dom0.stop()
    found = pulse.take(board)
    assert found.is_alive and found.summary.endswith(
        "dom0 answers on its console and not over SSH: its network is dead"
    )
    assert found.loss == "lost its network: dom0 answers on the console, and not over SSH"


def test_timers_that_are_dead(board: Any) -> None:
    board.dom0.program("sleep", "exec timeout 20 tail -f /dev/null")
    found = pulse.take(board)
    assert found.is_alive and found.summary == (
        "mini: dom0 runs commands, and a short sleep does not end: timers are dead"
    )
    assert found.loss == "lost its timers: dom0 runs commands, and a short sleep does not end"
    assert "dom0 over SSH: answers, and its sleeps do not end" in found.as_evidence().body


def test_hypervisor_that_outlives_its_dom0(board: Any) -> None:
    board.dom0.stop()
    board.wire.replies = dict(XEN)
    found = pulse.take(board)
    assert found.voice is Voice.XEN and found.summary == "mini: dom0 is dead, the hypervisor is alive"
    assert found.loss == "lost its dom0: only the hypervisor answers"
    assert board.wire.received.count(SWITCH) == 2, "the input is given back"


def test_dead_host(board: Any, chassis: Chassis, simulator: Simulator) -> None:
    board.dom0.stop()
    board.wire.replies = {}
    found = pulse.take(board)
    assert not found.is_alive
    assert found.summary == "mini: the host is dead: silent on console and network; the power is on"
    assert "console: is silent" in found.as_evidence().body
    assert found.loss == "fell silent: no answer on console and network"
    chassis.set(power=0)
    assert pulse.take(board).summary == "mini: the power is off"


def test_no_answer_from_anything_is_not_called_dead(board: Any, simulator: Simulator) -> None:
    found = Pulse("mini", None, False, Voice.LOST, 0.0)
    assert "its console is not there: the recorder has lost it; the BMC does not answer either" in found.summary
