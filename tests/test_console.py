"""The console: a real recorder process, real sources, real clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from consoles import Recording, Wire
from free_ports import free_port
from ipmi_sim import (  # noqa: F401
    Chassis,
    Simulator,
    chassis_fixture,
)

from lab.base.errors import BenchError, UsageError, WaitTimeout
from lab.base.paths import CHECKOUT
from lab.base.processes import port_is_taken
from lab.base.wait import wait_until
from lab.console import sources
from lab.console.client import Console, ConsoleLine
from lab.console.config import RecorderConfig
from lab.console.cutting import LINE_LIMIT
from lab.console.patterns import classify, crash_excerpt
from lab.console.signatures import MILESTONES, SIGNATURES
from lab.console.sources import SourceLost
from lab.inventory import BmcSpec, ConsoleSpec

DATA = Path(__file__).parent / "data" / "console"
NO_BMC = BmcSpec(host="127.0.0.1", credential="none")


@pytest.fixture(name="wire")
def wire_fixture() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture(name="record")
def record_fixture(tmp_path: Path) -> Iterator[Callable[..., Recording]]:
    """Starts recorders, and ends them."""
    started: list[Recording] = []

    def record(
        console: ConsoleSpec,
        *,
        bmc: BmcSpec = NO_BMC,
        environment: dict[str, str] | None = None,
        **other: Any,
    ) -> Recording:
        console = replace(console, serve_port=free_port(), lines_port=free_port())
        recording = Recording(RecorderConfig("virt1", console, bmc, tmp_path, **other), environment)
        recording.start()
        started.append(recording)
        return recording

    yield record
    for recording in started:
        recording.stop()


@pytest.fixture(name="recording")
def recording_fixture(wire: Wire, record: Callable[..., Recording]) -> Recording:
    return record(tcp(wire))


@pytest.fixture(name="console")
def console_fixture(recording: Recording) -> Iterator[Console]:
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "recorder and source", interval=0.01)
        yield console


def tcp(wire: Wire) -> ConsoleSpec:
    return ConsoleSpec(via="tcp", serve_port=0, lines_port=0, host="127.0.0.1", port=wire.port)


def texts(lines: list[ConsoleLine], kind: str = "line") -> list[str]:
    return [line.text for line in lines if line.kind == kind]


# Lines


def test_lines_have_numbers_times_and_no_line_ends(wire: Wire, console: Console) -> None:
    mark, before = console.mark(), time.time()
    wire.say(b"(XEN) one\r\ntwo\nthree\r\r\n")
    console.wait_for("three", 5.0, since=mark)
    lines = console.lines(mark)
    assert texts(lines) == ["(XEN) one", "two", "three"]
    assert [line.n for line in lines] == [mark, mark + 1, mark + 2]
    assert all(before <= line.time <= time.time() and line.board == "virt1" for line in lines)
    assert texts(console.lines(mark, mark + 2)) == ["(XEN) one", "two"]


def test_prompt_without_newline_is_seen_and_later_comes_whole(wire: Wire, console: Console) -> None:
    mark = console.mark()
    wire.say(b"dom0 login: ")
    prompt = console.wait_for(r"login: $", 5.0, since=mark)
    assert prompt.kind == "partial"
    wire.say(b"root\r\n")
    whole = console.wait_for("login: root", 5.0, since=prompt.n + 1)
    assert (whole.kind, whole.text) == ("line", "dom0 login: root")


def test_line_that_arrives_in_pieces_is_one_line(wire: Wire, console: Console) -> None:
    mark = console.mark()
    for piece in (b"(XEN) Pan", b"ic on ", b"CPU 0:\r", b"\n"):
        wire.say(piece)
    assert console.wait_for("Panic", 5.0, since=mark).text == "(XEN) Panic on CPU 0:"
    assert [line.kind for line in console.lines(mark)] == ["line"]


def test_hostile_bytes_are_kept_readable(wire: Wire, console: Console) -> None:
    mark = console.mark()
    wire.say(b"\x00a\x1b[31mb\xff\xfe\xc3\r\n" + "grün".encode() + b'\n"}\\\n\n')
    wire.say(b"end\n")
    console.wait_for("^end$", 5.0, since=mark)
    assert texts(console.lines(mark)) == ["\0a\x1b[31mb\\xff\\xfe\\xc3", "grün", '"}\\', "", "end"]


def test_endless_line_is_split_but_no_character_is(wire: Wire, console: Console) -> None:
    mark = console.mark()
    text = "x" + "ü" * LINE_LIMIT
    wire.say(text.encode() + b"\nend\n")
    console.wait_for("^end$", 5.0, since=mark)
    *pieces, end = texts(console.lines(mark))
    assert len(pieces) == 3 and "".join(pieces) == text and end == "end"
    assert max(len(piece.encode()) for piece in pieces) <= LINE_LIMIT


# Listeners


def test_every_listener_gets_every_byte(wire: Wire, recording: Recording, console: Console) -> None:
    port = recording.config.console.serve_port
    links = [socket.create_connection(("127.0.0.1", port), 5.0) for _ in range(3)]
    try:
        for link in links:  # what a listener types reaches the board, so it is known to be connected
            link.sendall(b"+")
        wait_until(lambda: wire.received == b"+++", 5.0, "three listeners", interval=0.01)
        wire.say(b"to all\r\n")
        for link in links:
            link.settimeout(5.0)
            assert link.recv(100) == b"to all\r\n"
    finally:
        for link in links:
            link.close()


def test_slow_listener_is_dropped_and_delays_nobody(wire: Wire, recording: Recording, console: Console) -> None:
    mark = console.mark()
    port = recording.config.console.serve_port
    with socket.create_connection(("127.0.0.1", port), 5.0) as sleeper:
        sleeper.sendall(b"+")
        wait_until(lambda: wire.received == b"+", 5.0, "the sleeper listens", interval=0.01)
        line = b"x" * 999 + b"\n"
        for _ in range(120):
            wire.say(line * 100)  # 12 MB: more than the kernel's buffers and the recorder's patience
        wire.say(b"end\n")
        console.wait_for("^end$", 20.0, since=mark)
        assert len(console.lines(mark)) >= 12001
        sleeper.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            while sleeper.recv(1 << 20):
                pass


def test_what_is_sent_reaches_the_board(wire: Wire, console: Console) -> None:
    console.send(b"\x01\x01\x01")
    console.send(b"d\xff~.\r\n~.")
    wait_until(lambda: wire.received == b"\x01\x01\x01d\xff~.\r\n~.", 5.0, "input", interval=0.01)


def test_callback_hears_of_a_panic_within_a_second(wire: Wire, console: Console) -> None:
    heard: list[float] = []
    event = threading.Event()

    def listener(line: ConsoleLine) -> None:
        if (signature := classify(line.text)) and signature.kind == "crash":
            heard.append(time.monotonic())
            event.set()

    def broken(line: ConsoleLine) -> None:
        raise RuntimeError("a listener's bug")

    console.listen(broken)
    unsubscribe = console.listen(listener)
    delays = []
    for _ in range(20):
        event.clear()
        said = time.monotonic()
        wire.say(b"(XEN) Panic on CPU 1:\r\n")
        assert event.wait(5.0)
        delays.append(heard[-1] - said)
    assert max(delays) < 1.0 and sorted(delays)[10] < 0.05, delays
    unsubscribe()
    mark = console.mark()
    wire.say(b"(XEN) Panic on CPU 1:\r\n")
    console.wait_for("Panic", 5.0, since=mark)
    assert len(heard) == 20


# Marks


def test_mark_separates_before_from_after(wire: Wire, console: Console) -> None:
    for turn in range(40):
        wire.say(f"before {turn}\r\n".encode())
        console.wait_for(f"before {turn}$", 5.0, since=0)
        mark = console.mark()
        wire.say(f"after {turn}\r\n".encode())
        found = console.wait_for(f"after {turn}$", 5.0, since=mark)
        assert found.n == mark
        assert f"before {turn}" in texts(console.lines(mark - 1, mark))


def test_mark_counts_what_others_have_seen(wire: Wire, recording: Recording, console: Console) -> None:
    """A second console lags; its mark still stands behind what the first one has."""
    with recording.console() as other:
        for turn in range(40):
            mark = console.mark()
            wire.say(b"x\r\n" * 50)
            last = console.wait_for("x", 5.0, since=mark + 49)
            assert other.mark() > last.n
            assert other.lines(last.n)[0] == last, turn


def test_console_opened_later_reads_what_was_before(wire: Wire, recording: Recording, console: Console) -> None:
    mark = console.mark()
    wire.say(b"early\r\n")
    early = console.wait_for("early", 5.0, since=mark)
    with recording.console() as late:
        assert late.lines(mark)[0] == early
        assert late.wait_for("early", 5.0, since=mark) == early
        assert late.wait_for("early", 5.0, since=0) == early


def test_requests_count_from_the_start_and_from_the_end(wire: Wire, recording: Recording, console: Console) -> None:
    mark = console.mark()
    wire.say(b"a\nb\nc\n")
    console.wait_for("c", 5.0, since=mark)

    def ask(request: str) -> Iterator[dict[str, object]]:
        address = ("127.0.0.1", recording.config.console.lines_port)
        with socket.create_connection(address, 5.0) as link, link.makefile("rwb") as stream:
            stream.write(request.encode() + b"\n")
            stream.flush()
            for line in stream:
                yield json.loads(line)

    assert next(ask('{"since": 0}'))["n"] == 1
    assert next(ask(f'{{"since": {mark}}}')) == {
        **next(ask(f'{{"since": {mark}}}')),
        "kind": "line",
        "text": "a",
    }
    assert [next(ask('{"since": -3}'))["text"], next(ask('{"since": -2}'))["text"]] == ["b", "c"]
    live = ask('{"since": -1}')
    threading.Timer(0.3, wire.say, (b"d\n",)).start()
    assert next(live)["text"] == "d"
    live.close()
    assert next(ask('{"mark": true}')) == {"next": mark + 4, "open": True}
    for bad in ("nonsense", "[]", '{"since": null}', "{}"):
        assert "error" in next(ask(bad))


def test_timeout_says_what_was_seen_last(wire: Wire, console: Console) -> None:
    mark = console.mark()
    wire.say(b"(XEN) Brought up 4 CPUs\r\ngrub> ")
    console.wait_for("grub>", 5.0, since=mark)
    with pytest.raises(WaitTimeout, match=r"virt1: console /login:/: not within 0.2 s") as caught:
        console.wait_for("login:", 0.2, since=mark)
    assert "(XEN) Brought up 4 CPUs" in str(caught.value.last) and "grub> " in str(caught.value)


# Losses


def test_lost_source_is_a_gap_and_comes_back(wire: Wire, console: Console) -> None:
    mark = console.mark()
    wire.say(b"whole\r\nhal")
    console.wait_for("whole", 5.0, since=mark)
    console.wait_for("hal", 5.0, since=mark)
    wire.drop()
    wait_until(lambda: texts(console.lines(mark), "gap"), 5.0, "gap", interval=0.01)
    wait_until(lambda: texts(console.lines(mark), "open"), 5.0, "open", interval=0.01)
    wire.say(b"later\r\n")
    console.wait_for("^later$", 5.0, since=mark)
    kinds = [(line.kind, line.text) for line in console.lines(mark) if line.kind != "partial"]
    assert [kind for kind, _ in kinds] == ["line", "line", "gap", "open", "line"]
    assert kinds[1] == ("line", "hal") and "closed by the other side" in kinds[2][1]


def test_source_that_is_not_there_yet_is_one_gap(record: Callable[..., Recording]) -> None:
    port = free_port()
    recording = record(ConsoleSpec(via="tcp", serve_port=0, lines_port=0, host="127.0.0.1", port=port))
    with recording.console() as console:
        gap = wait_until(lambda: console.lines(0), 10.0, "the gap", interval=0.01)
        assert gap[0].kind == "gap" and f"tcp 127.0.0.1:{port}: Connection refused" in gap[0].text
        assert not console.is_connected()
        time.sleep(1.0)  # a few attempts
        assert len(console.lines(0)) == 1
        with socket.create_server(("127.0.0.1", port)) as server:
            link, _ = server.accept()
            wait_until(console.is_connected, 5.0, "the source", interval=0.01)
            link.close()
        wait_until(lambda: not console.is_connected(), 5.0, "its loss", interval=0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restarted_recorder_numbers_on_and_clients_come_back(
    wire: Wire, recording: Recording, console: Console, how: signal.Signals
) -> None:
    mark = console.mark()
    wire.say(b"before\r\n")
    before = console.wait_for("before", 5.0, since=mark)
    recording.stop(how)
    assert how == signal.SIGKILL or not recording.ready.exists()
    wait_until(lambda: not console.is_connected(), 5.0, "loss noticed", interval=0.01)
    wire.drop()
    recording.start()
    assert recording.ready.read_text() == f"{recording.process.pid}\n"
    wait_until(console.is_connected, 5.0, "reconnected", interval=0.01)
    wire.say(b"after\r\n")
    after = console.wait_for("after", 5.0, since=before.n + 1)
    lines = console.lines(before.n)
    assert [line.n for line in lines] == list(range(before.n, after.n + 1))
    assert "gap" in [line.kind for line in lines]
    assert console.mark() == after.n + 1
    numbers = [record["n"] for record in recording.records()]
    assert numbers == list(range(1, after.n + 1))


def test_line_torn_by_a_crash_harms_no_other(wire: Wire, recording: Recording) -> None:
    recording.stop(signal.SIGKILL)
    whole = recording.log.read_bytes()
    recording.log.write_bytes(whole + b'{"n": 900, "t": 1.0, "kind": "li')
    recording.start()
    with recording.console() as console:
        wait_until(console.is_connected, 5.0, "connected", interval=0.01)
        lines = console.lines(0)
    assert not any(line.n >= 900 for line in lines)
    assert lines[0].n == 1 and len({line.n for line in lines}) == len(lines)


def test_a_dump_that_is_being_printed_is_waited_for(wire: Wire, console: Console) -> None:
    mark = console.mark()
    wire.say(b"Panic\r\n")
    console.wait_for("Panic", 5.0, since=mark)

    def dump() -> None:
        for number in range(20):
            wire.say(b"line %d\r\n" % number)
            time.sleep(0.05)

    with ThreadPoolExecutor(1) as threads:
        printing = threads.submit(dump)
        console.quiet()
        assert texts(console.lines(mark))[-1] == "line 19"
        printing.result()
        wire.say(b"later\r\n")
        console.wait_for("later", 5.0, since=mark)
        printing = threads.submit(dump)
        before = time.monotonic()
        console.quiet(limit=0.4)
        assert time.monotonic() - before < 0.9, "what never ends is not waited for"
        printing.result()


def test_unreachable_recorder_is_the_benchs_fault() -> None:
    console = Console("virt1", "127.0.0.1", free_port(), free_port(), answer_timeout=0.3)
    with pytest.raises(BenchError, match="virt1: console: no recorder answers"):
        console.open()
    with pytest.raises(BenchError, match="virt1: console: input not taken"):
        console.send(b"x")


def test_flood_costs_a_small_part_of_a_processor_and_no_line(
    wire: Wire, recording: Recording, console: Console
) -> None:
    """Ninety seconds of a line at 115200 baud that is never silent, as fast as it can be taken."""
    mark, count = console.mark(), 20_000
    before = _processor_seconds(recording.process.pid)
    wire.say(b"".join(b"(XEN) %06d %s\r\n" % (number, b"x" * 38) for number in range(count)))
    last = console.wait_for(f"{count - 1:06d}", 60.0, since=mark)
    used = _processor_seconds(recording.process.pid) - before
    assert [line.n for line in console.lines(mark)] == list(range(mark, last.n + 1))
    assert len(texts(console.lines(mark))) == count
    seconds = count * 52 / 11520  # a byte is ten bits on the line
    assert used < 0.2 * seconds, f"{used:.1f} s of a processor for {seconds:.0f} s of console"


def _processor_seconds(pid: int) -> float:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


def test_a_recorder_gives_signs_of_life(wire: Wire, record: Callable[..., Recording], tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    recording = record(tcp(wire), environment={"XENLAB_SIGN_OF_LIFE": str(sign)})
    for _ in range(2):
        last = sign.stat().st_mtime_ns
        wait_until(lambda: sign.stat().st_mtime_ns != last, 10.0, "a sign", interval=0.1)  # noqa: B023
    recording.process.send_signal(signal.SIGSTOP)
    try:
        last = sign.stat().st_mtime_ns
        time.sleep(4.0)  # twice as long as between two signs
        assert sign.stat().st_mtime_ns == last
    finally:
        recording.process.send_signal(signal.SIGCONT)


# On disk


def test_records_are_rotated_and_read_back(wire: Wire, record: Callable[..., Recording]) -> None:
    recording = record(tcp(wire), rotate_bytes=20_000)
    with recording.console() as console:
        wait_until(console.is_connected, 5.0, "connected", interval=0.01)
        mark = console.mark()
        for number in range(1500):
            wire.say(b"%06d %s\r\n" % (number, b"x" * 60))
            if number % 50 == 49:  # what comes at once goes into one file
                console.wait_for(f"^{number:06d}", 10.0, since=mark)
    files = sorted(path.name for path in recording.log.parent.glob("virt1.jsonl*"))
    assert files == ["virt1.jsonl", *(f"virt1.jsonl.{number}" for number in range(1, 5))]
    assert all(path.stat().st_size < 100_000 for path in recording.log.parent.glob("virt1.jsonl*"))
    assert recording.records()[0]["kind"] == "rotate"
    recording.stop()
    recording.start()  # its memory is empty: history comes from the files
    with recording.console() as console:
        lines = console.lines(mark)
    assert [line.n for line in lines] == list(range(lines[0].n, lines[-1].n + 1))
    assert any(line.text.startswith("001499") for line in lines) and len(lines) > 500


def test_full_disk_stops_nobody_and_is_made_up_for(wire: Wire, recording: Recording, console: Console) -> None:
    mark = console.mark()
    wire.say(b"fits\r\n")
    console.wait_for("fits", 5.0, since=mark)
    pid, limit = recording.process.pid, resource.RLIMIT_FSIZE
    free = resource.prlimit(pid, limit, (recording.log.stat().st_size + 30, resource.RLIM_INFINITY))
    for number in range(3):
        wire.say(b"does not fit %d\r\n" % number)
        console.wait_for(f"does not fit {number}", 5.0, since=mark)
    notes = texts(console.lines(mark), "note")
    assert len(notes) == 1 and notes[0].startswith("log: not saved: ") and console.is_connected()
    assert not texts(console.lines(mark), "gap")
    resource.prlimit(pid, limit, free)
    wait_until(lambda: _saved(recording, wire), 10.0, "saved", interval=0.3)
    numbers = [record["n"] for record in recording.records()]
    assert numbers == list(range(1, len(numbers) + 1))


def _saved(recording: Recording, wire: Wire) -> bool:
    wire.say(b"room again\r\n")
    return b"room again" in recording.log.read_bytes()


# Starting


def test_taken_port_is_one_line_and_status_2(wire: Wire, recording: Recording, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("serve_port", "lines_port"):
        free = {"serve_port": free_port(), "lines_port": free_port()}
        taken = getattr(recording.config.console, name)
        console = replace(recording.config.console, **{**free, name: taken})
        config = replace(recording.config, console=console, directory=other)
        config.write(other / "config.json")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lab.console.recorder", "--config", str(other / "config.json")],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=20.0,
            check=False,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == f"virt1: console.{name} {taken}: Address already in use\n"
        assert sorted(path.name for path in other.iterdir()) == ["config.json"]


def test_config_survives_the_file_and_bad_ones_are_named(tmp_path: Path) -> None:
    console = ConsoleSpec(via="device", serve_port=1, lines_port=2, device="/dev/ttyS0")
    config = RecorderConfig("virt1", console, NO_BMC, tmp_path)
    path = tmp_path / "config.json"
    config.write(path)
    assert RecorderConfig.read(path) == config
    good = json.loads(path.read_text())
    for change, said in [
        ({"bord": 1}, "bord: unknown field"),
        ({"console": {**good["console"], "serve_port": "1"}}, "console.serve_port: must be a whole number, not '1'"),
        ({"console": {**good["console"], "via": "modem"}}, "console.via: must be one of sol, ssh, tcp, telnet, "),
        ({"bmc": {}}, "bmc.credential: is missing"),
        ({"bmc": 3}, "bmc: must be an object"),
        ({"group": 7}, "group: must be text"),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(UsageError, match=f"config.json: {said}"):
            RecorderConfig.read(path)


# Other sources


def test_serial_device_is_read_and_written(record: Callable[..., Recording]) -> None:
    board, port = os.openpty()
    tty.setraw(port)
    try:
        recording = record(ConsoleSpec(via="device", serve_port=0, lines_port=0, device=os.ttyname(port), speed=115200))
        with recording.console() as console:
            wait_until(console.is_connected, 5.0, "the device", interval=0.01)
            mark = console.mark()
            os.write(board, b"GNU GRUB\r\n")
            assert console.wait_for("GRUB", 5.0, since=mark).text == "GNU GRUB"
            console.send(b"t\xff\x00")
            got = b""
            while len(got) < 3:
                got += os.read(board, 100)
            assert got == b"t\xff\x00"
    finally:
        os.close(board)
        os.close(port)


def test_serial_adapter_that_was_unplugged_is_taken_again(record: Callable[..., Recording], tmp_path: Path) -> None:
    """The kernel gives it another name; the link in by-id, which the inventory has, points to that."""
    by_id = tmp_path / "usb-FTDI-port0"
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        board = plugged(first, by_id)
        recording = record(ConsoleSpec(via="device", serve_port=0, lines_port=0, device=str(by_id)))
        with recording.console() as console:
            wait_until(console.is_connected, 5.0, "the device", interval=0.01)
            mark = console.mark()
            os.write(board, b"one\r\n")
            console.wait_for("one", 5.0, since=mark)
            first.close()
            wait_until(lambda: not console.is_connected(), 5.0, "the loss", interval=0.01)
            board = plugged(second, by_id)
            wait_until(console.is_connected, 10.0, "the device again", interval=0.01)
            os.write(board, b"two\r\n")
            console.wait_for("two", 10.0, since=mark)
            assert [line.kind for line in console.lines(mark)] == ["line", "gap", "open", "line"]


def plugged(stack: contextlib.ExitStack, link: Path) -> int:
    """A terminal under the name ``link``; the board's end of it."""
    board, port = os.openpty()
    tty.setraw(port)
    for handle in (board, port):
        stack.callback(os.close, handle)
    link.unlink(missing_ok=True)
    link.symlink_to(os.ttyname(port))
    return board


@dataclass
class ConsoleServer:
    """A running ser2net: a serial line at ``board``, and TCP ports in front of it."""

    board: int  # the board's end of the line
    ports: dict[str, int]
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(5.0)


SER2NET = """\
connection: &raw
  accepter: tcp,127.0.0.1,{tcp}
  connector: serialdev,{device},{speed}n81,local
  options:
    kickolduser: true
connection: &rfc2217
  accepter: telnet(rfc2217),tcp,127.0.0.1,{rfc2217}
  connector: serialdev,{device},9600n81,local
  options:
    kickolduser: true
"""


@pytest.fixture(name="ser2net")
def ser2net_fixture(tmp_path: Path) -> Iterator[Callable[[], ConsoleServer]]:
    if not (binary := shutil.which("ser2net", path="/usr/sbin:/usr/bin")):
        pytest.skip("needs ser2net")
    with contextlib.ExitStack() as stack:
        board = plugged(stack, tmp_path / "line")
        ports = {"tcp": free_port(), "rfc2217": free_port()}
        config = tmp_path / "ser2net.yaml"
        config.write_text(SER2NET.format(device=os.readlink(tmp_path / "line"), speed=115200, **ports))

        def serve() -> ConsoleServer:
            process = subprocess.Popen([binary, "-n", "-u", "-c", str(config)], stdin=subprocess.DEVNULL)
            server = ConsoleServer(board, ports, process)
            stack.callback(server.stop)
            wait_until(lambda: all(map(port_is_taken, ports.values())), 10.0, "ser2net listens", interval=0.02)
            return server

        yield serve


@pytest.mark.parametrize("via", ["tcp", "rfc2217"])
def test_console_server_is_read_and_written(
    ser2net: Callable[[], ConsoleServer], record: Callable[..., Recording], via: Any
) -> None:
    server = ser2net()
    recording = record(ConsoleSpec(via=via, serve_port=0, lines_port=0, host="127.0.0.1", port=server.ports[via]))
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "the console server", interval=0.01)
        mark = console.mark()
        os.write(server.board, b"\xff login: \xf0\r\n")  # 0xFF is telnet's own escape
        assert console.wait_for("login", 5.0, since=mark).text == "\\xff login: \\xf0"
        console.send(b"t\xff\x00\r")
        got = b""
        while len(got) < 4:
            got += os.read(server.board, 100)
        assert got == b"t\xff\x00\r"


def test_rfc2217_sets_the_speed_of_the_line(
    ser2net: Callable[[], ConsoleServer], record: Callable[..., Recording]
) -> None:
    server = ser2net()
    port = server.ports["rfc2217"]
    assert termios.tcgetattr(server.board)[4] != termios.B57600
    recording = record(ConsoleSpec("rfc2217", serve_port=0, lines_port=0, host="127.0.0.1", port=port, speed=57600))
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "the console server", interval=0.01)
        assert termios.tcgetattr(server.board)[4] == termios.B57600


@pytest.mark.parametrize("via", ["tcp", "rfc2217"])
def test_console_server_that_was_restarted_is_taken_again(
    ser2net: Callable[[], ConsoleServer], record: Callable[..., Recording], via: Any
) -> None:
    server = ser2net()
    recording = record(ConsoleSpec(via=via, serve_port=0, lines_port=0, host="127.0.0.1", port=server.ports[via]))
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "the console server", interval=0.01)
        mark = console.mark()
        server.stop()
        wait_until(lambda: not console.is_connected(), 10.0, "the loss", interval=0.01)
        ser2net()
        wait_until(console.is_connected, 20.0, "the console server again", interval=0.01)
        os.write(server.board, b"back\r\n")
        console.wait_for("back", 5.0, since=mark)
        assert [line.kind for line in console.lines(mark)] == ["gap", "open", "line"]


@dataclass
class Sol:
    """A board behind a BMC: the UART's far end, and the BMC."""

    wire: Wire
    simulator: Simulator

    @property
    def environment(self) -> dict[str, str]:
        return {"XENLAB_CREDENTIAL_TEST": f"{self.simulator.user}:{self.simulator.password}"}


@pytest.fixture(name="sol")
def sol_fixture(tmp_path: Path, chassis: Chassis) -> Iterator[Sol]:
    """The wire is there before ipmi_sim, which would look for it again only after 10 s."""
    if not shutil.which("ipmi_sim") or not shutil.which("ipmitool"):
        pytest.skip("needs openipmi and ipmitool")
    simulator = Simulator(tmp_path, chassis, None)
    port = re.search(r'^sol "tcp:127.0.0.1:(\d+)"', (tmp_path / "sim.conf").read_text(), re.M)
    assert port
    wire = Wire(int(port[1]))
    simulator.start()
    yield Sol(wire, simulator)
    simulator.stop()
    wire.close()


@pytest.fixture(name="sol_recording")
def sol_recording_fixture(sol: Sol, record: Callable[..., Recording]) -> Recording:
    spec = ConsoleSpec(via="sol", serve_port=0, lines_port=0)
    return record(spec, bmc=sol.simulator.spec, environment=sol.environment)


def test_sol_is_read_and_written_without_ipmitools_own_words(sol: Sol, sol_recording: Recording) -> None:
    with sol_recording.console() as console:
        wait_until(console.is_connected, 20.0, "the SOL session", interval=0.05)
        mark = console.mark()
        sol.wire.say(b"(XEN) Xen version 4.17.7\r\n")
        assert console.wait_for("Xen version", 10.0, since=mark).text == "(XEN) Xen version 4.17.7"
        typed = b"\r~.\r~~\n\x01\x03\xffd"  # what ipmitool would take for commands, by default
        console.send(typed)
        wait_until(lambda: sol.wire.received == typed, 10.0, "input", interval=0.02)
        assert not any("SOL" in line.text for line in console.lines(0))


def test_sol_session_that_was_not_closed_is_taken_over(
    sol: Sol, record: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", sol.environment["XENLAB_CREDENTIAL_TEST"])
    stale = sources.SolSource(sol.simulator.spec)
    stale.open()
    try:
        spec = ConsoleSpec(via="sol", serve_port=0, lines_port=0)
        with record(spec, bmc=sol.simulator.spec, environment=sol.environment).console() as console:
            wait_until(console.is_connected, 20.0, "the SOL session", interval=0.05)
    finally:
        stale.close()


def test_sol_session_ended_by_another_is_a_loss(sol: Sol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", sol.environment["XENLAB_CREDENTIAL_TEST"])
    source = sources.SolSource(sol.simulator.spec, ask_after=0.3)
    source.open()
    try:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:  # asked a few times, and there
            assert source.read() == b""
        where, environment = _ipmitool(sol.simulator)
        subprocess.run([*where, "sol", "deactivate"], env=environment, timeout=20.0, check=True)

        def read_on() -> bool:
            source.read()
            return False

        with pytest.raises(SourceLost, match="ended by somebody else"):
            wait_until(read_on, 10.0, "the loss is noticed", interval=0.0)
    finally:
        source.close()


def test_ipmitool_dies_with_the_recorder_and_shows_no_password(sol: Sol, sol_recording: Recording) -> None:
    with sol_recording.console() as console:
        wait_until(console.is_connected, 20.0, "the SOL session", interval=0.05)
    tasks = Path(f"/proc/{sol_recording.process.pid}/task").glob("*/children")
    (child,) = [int(child) for task in tasks for child in task.read_text().split()]
    password = sol.simulator.password.encode()
    line = Path(f"/proc/{child}/cmdline").read_bytes()
    assert b"activate" in line and password not in line
    for path in (sol_recording.log, sol_recording.log.with_name("recorder.json")):
        assert password not in path.read_bytes()
    sol_recording.stop(signal.SIGKILL)
    wait_until(lambda: not _is_alive(child), 10.0, "ipmitool ends", interval=0.05)


def test_wrong_password_of_a_bmc_is_said_in_the_gap(sol: Sol, record: Callable[..., Recording]) -> None:
    spec = ConsoleSpec(via="sol", serve_port=0, lines_port=0)
    wrong = {"XENLAB_CREDENTIAL_TEST": f"{sol.simulator.user}:canary-wrong"}
    with record(spec, bmc=sol.simulator.spec, environment=wrong).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        (gap,) = texts(console.lines(0), "gap")
        assert gap.startswith(f"sol 127.0.0.1:{sol.simulator.spec.port}: ") and "refused the login" in gap
        assert "canary" not in gap


def _ipmitool(simulator: Simulator) -> tuple[list[str], dict[str, str]]:
    where = ["-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", str(simulator.spec.port)]
    environment = {**os.environ, "IPMI_PASSWORD": simulator.password}
    return ["ipmitool", *where, "-U", simulator.user, "-E"], environment


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Patterns


def recorded(name: str) -> list[ConsoleLine]:
    text = (DATA / f"{name}.log").read_bytes().decode(errors="backslashreplace")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return [ConsoleLine("virt1", number, 0.0, "line", line) for number, line in enumerate(lines)]


def names(lines: list[ConsoleLine], kind: str) -> list[str]:
    found = [signature for line in lines if (signature := classify(line.text))]
    return list(dict.fromkeys(signature.name for signature in found if signature.kind == kind))


@pytest.mark.parametrize(
    ("name", "crashes", "warnings"),
    [
        ("417-boot-panic-EPYC", ["xen-panic", "xen-protection-fault"], ["xen-dump"]),
        ("420-EPYC-mwait-panic", ["xen-panic", "xen-protection-fault"], ["xen-dump"]),
        ("417-dom0-crash-smap-tcg", ["dom0-crash"], ["domain-crash", "xen-dump"]),
        ("417-amdiommu-1G-crash", ["dom0-crash"], ["domain-crash"]),
        ("417-edu-dma-fault", ["iommu-fault"], []),
        ("417-good-boot-to-login", [], []),
        ("417-S3-xenpm", [], []),
        ("420-S3-xenpm", [], []),
    ],
)
def test_recorded_consoles_show_their_crashes_and_no_others(name: str, crashes: list[str], warnings: list[str]) -> None:
    lines = recorded(name)
    assert names(lines, "crash") == crashes
    assert names(lines, "warning") == warnings


def test_recorded_boot_and_sleep_pass_their_milestones_in_order() -> None:
    boot = names(recorded("417-good-boot-to-login"), "milestone")
    assert boot == ["xen-banner", "xen-cmdline", "dom0-building", "dom0-linux"]
    sleep = names(recorded("420-S3-xenpm"), "milestone")
    assert sleep == [
        "xen-banner",
        "xen-cmdline",
        "iommu-enabled",
        "dom0-building",
        "s3-prepare",
        "s3-enter",
        "s3-finish",
    ]
    for passed in (boot, sleep):
        assert passed == sorted(passed, key=MILESTONES.index)


# Texts of the sources named in lab/console/said_by_*.py, and of Linux 6.1 to 6.12.
SAID = {
    ("crash", "xen-panic"): ["(XEN) [    1.234567] Panic on CPU 3:", "\rsshd[1(XEN) Panic on CPU 0:"],
    ("crash", "xen-fatal-trap"): ["(XEN) FATAL TRAP: vec 2, NMI[0000] IN INTERRUPT CONTEXT"],
    ("crash", "xen-page-fault"): ["(XEN) FATAL PAGE FAULT", "(XEN) Early fatal page fault at e008:ffff82d0"],
    ("crash", "xen-protection-fault"): [
        "(XEN) GENERAL PROTECTION FAULT",
        "(XEN) CONTROL-FLOW PROTECTION FAULT: #CP[0003] endbr",
    ],
    ("crash", "xen-double-fault"): ["(XEN) *** DOUBLE FAULT ***"],
    ("crash", "xen-bug"): ["(XEN) [2026-11-04 16:52:28.123] Xen BUG at common/page_alloc.c:1234"],
    ("crash", "xen-assertion"): ["(XEN) Assertion '!in_irq()' failed at common/xmalloc_tlsf.c:599"],
    ("crash", "xen-watchdog"): ["(XEN) Watchdog timer detects that CPU2 is stuck!"],
    ("crash", "machine-check"): [
        "(XEN) Fatal machine check: MCA fatal",
        "(XEN) CPU 1: Machine Check Exception: 4",
    ],
    ("crash", "dom0-watchdog"): ["(XEN) Hardware Dom0 shutdown: watchdog rebooting machine"],
    ("crash", "dom0-crash"): [
        "(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting.",
        "(XEN) Domain 0 (vcpu#3) crashed on cpu#1:",
    ],
    ("crash", "iommu-fault"): [
        "(XEN) [   22.04] [VT-D]DMAR:[DMA Write] Request device [0000:00:06.0] fault addr 2000000",
        "(XEN) [VT-D]INTR-REMAP: Request device [0000:00:06.0] fault index 0",
        "(XEN) AMD-Vi: IO_PAGE_FAULT: 0000:00:05.0 d1 addr 00000000fee00000 flags 0x8 I",
    ],
    ("crash", "firmware-exception"): [
        "!!!! X64 Exception Type - 0D(#GP - General Protection)  CPU Apic ID - 00000000 !!!!"
    ],
    ("crash", "xen-efi-loader"): ["\x1b[37mNo configuration file found.", "ERR: Not a 64-bit CPU!"],
    ("crash", "dom0-gives-up"): ["(initramfs) ", "You are in emergency mode. After logging in, type"],
    ("crash", "bsd-panic"): ["login: panic: page fault", "[  37.7235191] panic: trap", "db> ", "db{0}> "],
    ("crash", "linux-panic"): ["[   12.3] Kernel panic - not syncing: Fatal exception in interrupt"],
    ("crash", "linux-oops"): [
        "[    9.1] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[    9.1] BUG: unable to handle page fault for address: ffffc90000000000",
        "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    9.1] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    ],
    ("crash", "linux-bug"): ["[    9.1] kernel BUG at mm/slub.c:435!"],
    ("crash", "linux-hung-task"): ["[  242.6] INFO: task xenwatch:38 blocked for more than 120 seconds."],
    ("crash", "linux-rcu-stall"): [
        "[   60.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
        "[   60.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "[   60.0] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... }",
    ],
    ("crash", "linux-soft-lockup"): ["[   88.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [xl:512]"],
    ("crash", "linux-hard-lockup"): ["[   88.0] watchdog: Watchdog detected hard LOCKUP on cpu 1"],
    ("warning", "iommu-fault"): [
        "[    5.0] DMAR: [DMA Write NO_PASID] Request device [00:06.0] fault addr 0x2000000",
        "[    5.0] AMD-Vi: Event logged [IO_PAGE_FAULT device=00:05.0 domain=0x0]",
    ],
    ("warning", "xen-warn"): ["(XEN) Xen WARN at common/domain.c:99"],
    ("warning", "half-patched"): ["(XEN) livepatch: lp1: Timed out on semaphore in CPU quiesce phase 0/3"],
    ("warning", "dom0-program"): [
        "[   10.0] traps: init[1] general protection fault ip:401000 sp:7ffc error:0",
        "[   10.0] xenstored[612]: segfault at 10 ip 000055d0 sp 00007ffc error 4 in xenstored[55d0+1000]",
        "[FAILED] Failed to start xenstored.service - The Xen xenstore.",
    ],
    ("warning", "guest-crash"): [
        "(XEN) [   61.2] Domain 3 (vcpu#0) crashed on cpu#1:",
        "(XEN) Domain 12 reported crashed by domain 0 on cpu#0:",
    ],
    ("warning", "domain-crash"): ["(XEN) domain_crash called from arch/x86/mm/p2m-pod.c:1313"],
    ("warning", "linux-workqueue-lockup"): [
        "[  853.1] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 101s!"
    ],
    ("warning", "linux-warning"): ["[    4.4] WARNING: CPU: 0 PID: 1 at drivers/xen/events/events_base.c:1"],
    ("warning", "oom-killer"): ["[   99.9] Out of memory: Killed process 312 (qemu-system-i38)"],
    ("warning", "ext4-error"): ["[    7.7] EXT4-fs error (device sda1): ext4_find_entry:1463"],
    ("warning", "dom0-init"): ["[   12.3] systemd[1]: Freezing execution."],
    ("warning", "fs-error"): ["[    7.7] XFS (sda2): Log I/O Error Detected. Shutting down filesystem"],
    ("warning", "hardware-error"): ["[    7.7] EDAC MC0: 1 CE memory read error on any memory"],
    ("warning", "nmi"): ["(XEN) Uhhuh. NMI received for unknown reason 2c."],
    ("warning", "xen-dump"): ["(XEN) ----[ Xen-4.17.5  x86_64  debug=y  Not tainted ]----"],
    ("warning", "linux-trace"): ["[    7.7] Call Trace:"],
    ("warning", "bsd-warning"): ["KDB: stack backtrace:"],
    ("warning", "boot-loader"): ["error: file `/xen.gz' not found.", "BdsDxe: No bootable option or device was found."],
    ("warning", "io-error"): ["[    7.7] I/O error, dev sda, sector 2048 op 0x0:(READ)"],
    ("warning", "guest-watchdog"): ["(XEN) Watchdog timer fired for domain 2"],
    ("warning", "pod-exhausted"): ["(XEN) p2m_pod_demand_populate: Dom1 out of PoD memory! (tot=4097)"],
    ("warning", "cpu-lost"): ["(XEN) Error bringing CPU1 up: -5"],
    ("warning", "iommu-slow"): [
        "(XEN) [VT-D] IOMMU#0: QI dev wait descriptor taking too long",
        "(XEN) AMD IOMMU 0000:00:00.2: iotlb completion wait taking too long",
    ],
    ("warning", "iommu-ats"): ["(XEN) ATS device 0000:00:06.0 flush failed"],
    ("warning", "lines-lost"): ["(XEN) printk: 12 messages suppressed."],
    ("milestone", "press-any-key"): ["Press any key to continue..."],
    ("milestone", "grub-menu"): ["\x1b[H\x1b[J\x1b[1;1H\x1b[2;24HGNU GRUB  version 2.06-13+deb12u2"],
    ("milestone", "xen-banner"): ["Booting from ROM..\x1bc\x1b[2J(XEN) Xen version 4.20.4-pre (Debian)"],
    ("milestone", "xen-cmdline"): ["(XEN) [000000000ae06006] Command line: console=com1 loglvl=all"],
    ("milestone", "iommu-enabled"): ["(XEN) I/O virtualisation enabled"],
    ("milestone", "dom0-building"): ["(XEN) *** Building a PVH Dom0 ***"],
    ("milestone", "dom0-linux"): ["[    0.000000] Linux version 6.1.0-56-amd64"],
    ("milestone", "dom0-up"): ["xenlab: dom0 is up", "dom0 login: "],
    ("milestone", "s3-prepare"): ["(XEN) Preparing system for ACPI S3 state."],
    ("milestone", "s3-enter"): ["(XEN) Entering ACPI S3 state."],
    ("milestone", "s3-finish"): ["(XEN) Finishing wakeup from ACPI S3 state."],
}


def test_every_signature_is_recognised() -> None:
    assert set(SAID) == {(signature.kind, signature.name) for signature in SIGNATURES}
    for meant, said in SAID.items():
        for text in said:
            signature = classify(text)
            assert signature and (signature.kind, signature.name) == meant, text


@pytest.mark.parametrize(
    "text",
    [
        "(d1) [    1.0] Kernel panic - not syncing: Attempted to kill init!",
        "(XEN) (d1) [    1.0] Kernel panic - not syncing: Attempted to kill init!",
        "(XEN) [   35.95] (d12) Oops: 0000 [#1] SMP",
        "(XEN) [2026-11-04 16:52:28] (d3v0) kernel BUG at mm/slub.c:435!",
        "\rgarbage(XEN) (d2) (XEN) Panic on CPU 0:",
        "(XEN) (d1) Linux version 6.1.0",
        "[   10.0] xenconsoled[412]: Kernel panic - not syncing: Fatal exception",
        "(XEN) Hardware Dom0 halted: halting machine",
        "(XEN) Hardware Dom0 shutdown: rebooting machine",
        "(XEN) Entering ACPI S5 state.",
        "(XEN) [   35.955798] HVM d1v0 save: CPU",
        "(XEN) - Hardware Error Registers",
        "[    0.667593] Xen version: 4.17.7 (preserve-AD)",
        "[    0.5] Command line: root=/dev/sda1",
        "Last login: Mon Nov  2 10:00:00 2026",
        "head: standard output: I/O error",
        "[    1.244038] AMD Zen1 FPDSS bug detected, enabling mitigation.",
        "[    3.0] AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.",
        "",
    ],
)
def test_guests_words_and_harmless_ones_mean_nothing(text: str) -> None:
    assert classify(text) is None


def test_dom0s_words_through_xen_are_its_own() -> None:
    signature = classify("(XEN) (d0) Kernel panic - not syncing: Fatal exception")
    assert signature and signature.name == "linux-panic"
    before = classify("[    9.0] Kernel panic - not syncing: Fata(XEN) (d1) harmless")
    assert before and before.name == "linux-panic"


def example(text: str) -> str:
    """A line that a format of a signature fits."""
    for placeholder, said in (("%d", "7"), ("%x", "0bad"), ("%w", "mm/slub.c"), ("%s", " some words ")):
        text = text.replace(placeholder, said)
    return text


def test_every_format_of_a_signature_is_recognised_behind_the_prefix_of_its_speaker() -> None:
    for signature in SIGNATURES:
        for text in signature.formats:
            prefix = {"xen": "(XEN) [    1.234567] ", "linux": "[    1.234567] ", None: ""}[signature.by]
            found = classify(f"{prefix}{example(text)}")
            assert found is not None, text
            assert SIGNATURES.index(found) <= SIGNATURES.index(signature), text  # a graver one may fit, too


def test_no_line_is_passed_over_that_a_signature_matches() -> None:
    lines = [line.text for file in sorted(DATA.glob("*.log")) for line in recorded(file.stem)]
    lines += [f"(XEN) {example(text)}" for signature in SIGNATURES for text in signature.formats]
    compiled = [(re.compile(signature.pattern), signature) for signature in SIGNATURES]
    matched = 0
    for text in lines:
        fits = [one for pattern, one in compiled if pattern.search(text) and not any(x in text for x in one.unless)]
        if "(d1)" not in text and ("(XEN)" in text or all(one.by is None for one in fits)):
            found = classify(text)
            graver = fits[:1] if not fits or fits[0].kind != "crash" else [one for one in fits if one.kind == "crash"]
            assert found in (graver or [None]), text
            matched += bool(fits)
    assert matched > 100


def test_thousands_of_lines_are_classified_in_a_second() -> None:
    lines = [line.text for name in ("417-good-boot-to-login", "417-edu-dma-fault") for line in recorded(name)]
    lines += ["x" * LINE_LIMIT]
    started, count = time.process_time(), 0
    while count < 10_000:
        for text in lines:
            classify(text)
        count += len(lines)
    assert time.process_time() - started < 1.0


def test_excerpt_begins_with_the_line_that_matched() -> None:
    lines = recorded("420-EPYC-mwait-panic")
    index = next(i for i, line in enumerate(lines) if "Panic on CPU" in line.text)
    excerpt = crash_excerpt(lines, index, before=2, after=3)
    assert excerpt[0] == "(XEN) Panic on CPU 3:"
    assert list(excerpt[1:]) == [line.text for line in lines[index - 2 : index + 4]]
    assert crash_excerpt(lines, 0, before=8, after=0) == (lines[0].text, lines[0].text)
