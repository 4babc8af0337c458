"""Who may use a console: other accounts of the lab machine get nothing and change nothing."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import Recording, Wire
from free_ports import free_port
from ipmi_sim import Chassis, Simulator, board_bmc_fixture, board_simulator_fixture, chassis_fixture  # noqa: F401
from strangers import NEEDS_ROOT, NOBODY, leave, squatting, talk
from test_console import console_fixture, record_fixture, recording_fixture, tcp, wire_fixture  # noqa: F401

from lab.base.errors import BenchError
from lab.base.wait import wait_until
from lab.console.client import Console, next_record, source_state
from lab.console.sources import SourceLost, TcpSource
from lab.grid import services
from lab.inventory import BmcSpec, BoardSpec
from lab.virtual.cable import SerialCable


def board(recording: Recording) -> BoardSpec:
    return BoardSpec("virt1", "127.0.0.1", BmcSpec("127.0.0.1", "none"), recording.config.console)


@NEEDS_ROOT
def test_another_user_types_nothing_and_reads_nothing(wire: Wire, recording: Recording, console: Console) -> None:
    spec = recording.config.console
    mark = console.mark()
    wire.say(b"secret\r\n")
    console.wait_for("secret", 5.0, since=mark)
    assert talk(spec.serve_port, b"typed by nobody\n") == b""
    leave(spec.serve_port, b"typed by nobody who has left\n")
    assert talk(spec.lines_port, b'{"since": 0}\n') == b""
    assert talk(spec.lines_port, b'{"mark": true}\n') == b""
    console.send(b"ours")
    wait_until(lambda: wire.received, 5.0, "input", interval=0.01)
    assert wire.received == b"ours"
    said = recording.stop()
    assert f"virt1: a connection is refused: it belongs to nobody (uid {NOBODY})" in said
    assert said.count(f"(uid {NOBODY})") == 1, "each is told of once"


@NEEDS_ROOT
def test_members_of_the_labs_group_may_use_its_consoles(wire: Wire, record: Callable[..., Recording]) -> None:
    recording = record(tcp(wire), group=grp.getgrgid(NOBODY).gr_name)
    spec = recording.config.console
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "recorder and source", interval=0.01)
    talk(spec.serve_port, b"typed by a member\n", 0.5)
    wait_until(lambda: wire.received == b"typed by a member\n", 5.0, "input", interval=0.01)
    assert json.loads(talk(spec.lines_port, b'{"mark": true}\n', 0.5))["open"] is True


def test_a_group_that_is_not_there_is_one_line_and_status_2(wire: Wire, record: Callable[..., Recording]) -> None:
    with pytest.raises(AssertionError, match="this machine has no Unix group 'no-such-group'"):
        record(tcp(wire), group="no-such-group")


@NEEDS_ROOT
def test_who_squats_a_dead_recorders_ports_is_told_nothing(wire: Wire, recording: Recording) -> None:
    spec, here = recording.config.console, board(recording)
    with recording.console() as console:
        recording.stop()
        with squatting(spec.serve_port, 6.0) as raw, squatting(spec.lines_port, 6.0) as lines:
            other = Console("virt1", "127.0.0.1", spec.serve_port, spec.lines_port, answer_timeout=0.5)
            held = rf"port \d+ is held by nobody \(uid {NOBODY}\), and the lab's recorder runs as root \(uid 0\)"
            for act in (
                other.open,
                lambda: other.send(b"password\r"),
                other.attach,
                lambda: next_record(here),
                lambda: source_state(here),
            ):
                with pytest.raises(BenchError, match=held):
                    act()
            assert not console.is_connected()
            for process in (raw, lines):
                assert process.stdout and process.stdout.readline() == "\n", "nothing was sent"


@NEEDS_ROOT
def test_a_recorder_says_who_has_taken_its_port(wire: Wire, recording: Recording) -> None:
    recording.stop()
    port = recording.config.console.lines_port
    with (
        squatting(port, 10.0),
        pytest.raises(AssertionError, match=f"lines_port {port}: Address already in use by nobody"),
    ):
        recording.start()


@NEEDS_ROOT
def test_a_member_proves_the_recorder_by_its_owner(wire: Wire, recording: Recording) -> None:
    """Whoever is not the lab's user says which user the recorder must have."""
    spec = recording.config.console
    with Console("virt1", "127.0.0.1", spec.serve_port, spec.lines_port, owner=NOBODY) as console:
        assert console.mark() > 0, "root is trusted always"
    recording.stop()
    with squatting(spec.lines_port, 10.0):
        trusting = Console("virt1", "127.0.0.1", spec.serve_port, spec.lines_port, owner=NOBODY)
        with trusting:
            assert trusting.mark() == 1000


def test_the_owner_of_a_recorder_is_exported(recording: Recording) -> None:
    assert services.exported(board(recording))["ConsoleRecorder"]["owner"] == os.geteuid()


@NEEDS_ROOT
def test_a_source_on_this_machine_is_no_other_users(wire: Wire) -> None:
    port = free_port()
    with squatting(port, 10.0):
        source = TcpSource("127.0.0.1", port)
        with pytest.raises(SourceLost, match=rf"tcp 127\.0\.0\.1:{port}: the port is held by nobody \(uid {NOBODY}\)"):
            source.open()


@pytest.fixture(name="cable")
def cable_fixture(tmp_path: Path) -> Iterator[tuple[socket.socket, int]]:
    """The board's end of a virtual board's serial cable, and the port of its far end."""
    port, loop = free_port(), asyncio.new_event_loop()
    cable = SerialCable(tmp_path / "uart.sock", port)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(cable.start(), loop).result(10.0)
    uart = socket.socket(socket.AF_UNIX)
    uart.connect(str(tmp_path / "uart.sock"))
    uart.settimeout(1.0)
    yield uart, port
    uart.close()
    asyncio.run_coroutine_threadsafe(cable.stop(), loop).result(10.0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@NEEDS_ROOT
def test_a_virtual_boards_serial_port_is_closed_to_other_users(
    cable: tuple[socket.socket, int], tmp_path: Path
) -> None:
    uart, port = cable
    talk(port, b"typed by nobody\n", 0.5)
    with pytest.raises(TimeoutError):
        uart.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as far:
        far.sendall(b"ours")
        assert uart.recv(100) == b"ours"
        uart.sendall(b"secret")
        assert far.recv(100) == b"secret"
        assert talk(port, b"", 0.5) == b""
    assert (tmp_path / "uart.sock").stat().st_mode & 0o777 == 0o600


def kcs_port(simulator: Simulator) -> int:
    line = next(
        line for line in (simulator.folder / "sim.conf").read_text().splitlines() if line.startswith("serial kcs")
    )
    return int(line.split()[3])


def connected(port: int) -> socket.socket:
    """A machine's connection, made again until the BMC has noticed the end of the last one, as QEMU does."""

    def served() -> socket.socket | None:
        machine = socket.create_connection(("127.0.0.1", port))
        machine.settimeout(5.0)
        if machine.recv(100):  # the BMC tells its version first
            return machine
        machine.close()
        return None

    machine = wait_until(served, 5.0, "the BMC serves a machine", interval=0.05)
    assert machine
    return machine


# A message as a machine sends it: sequence, network function and LUN, command, data, checksum, end (OpenIPMI,
# lanserv/serial_ipmi.c). It is Chassis Control, power up (IPMI v2.0, 28.3).
POWER_UP = bytes([0x05, 0x00, 0x02, 0x01, 0xF8, 0xA0])


@NEEDS_ROOT
def test_a_virtual_bmcs_system_interface_is_closed_to_other_users(board_simulator: Simulator) -> None:
    """It asks for no password: whoever is served there switches the board."""
    port, calls = kcs_port(board_simulator), board_simulator.chassis.calls
    for _ in range(3):
        assert talk(port, POWER_UP) == b""
        leave(port, POWER_UP)
    assert not calls("set")
    with connected(port) as machine:
        assert talk(port, POWER_UP) == b"", "one at a time, and not this one"
        assert not calls("set")
        machine.sendall(POWER_UP)
        wait_until(lambda: calls("set"), 5.0, "what a machine asks for is done", interval=0.05)


def test_a_virtual_bmcs_system_interface_serves_its_machine_again_and_again(board_simulator: Simulator) -> None:
    for _ in range(5):
        connected(kcs_port(board_simulator)).close()
