"""A console that never stops: the recorder stays within its memory and answers, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import Recording
from free_ports import free_port
from test_console import record_fixture  # noqa: F401

from lab.base.wait import wait_until
from lab.console.pace import ReadPace
from lab.console.recent import MEMORY_LIMIT, Recent
from lab.inventory import ConsoleSpec

SECONDS = 4.0  # twice what the recorder holds in memory
KEPT_UP = 6.0  # seconds; longer, for there to be a middle of what is measured
MEMORY_KIB = 80 << 10  # 24 MiB of Python, 8 of records, 16 that may wait for the disk; twice that


FLOODER = """\
import socket, sys
piece = bytes.fromhex(sys.stdin.readline())
server = socket.create_server(("127.0.0.1", 0))
sys.stdout.write(f"{server.getsockname()[1]}\\n")
sys.stdout.flush()
link, _ = server.accept()
while True:
    link.sendall(piece)
"""


class Flood:
    """A TCP port that says the same again and again, as fast as it is read; a process of its own."""

    def __init__(self, piece: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", FLOODER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(piece.hex() + "\n")
        self._process.stdin.flush()
        self.port = int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(name="flood")
def flood_fixture(record: Callable[..., Recording]) -> Iterator[Callable[[bytes], tuple[Flood, Recording]]]:
    with contextlib.ExitStack() as stack:

        def start(piece: bytes) -> tuple[Flood, Recording]:
            flood = Flood(piece)
            stack.callback(flood.end)
            spec = ConsoleSpec("tcp", serve_port=0, lines_port=0, host="127.0.0.1", port=flood.port)
            return flood, record(spec)

        yield start


def memory_kib(pid: int) -> int:
    """The most that a process has had in memory: VmHWM of proc_pid_status(5)."""
    return int(next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in row).split()[1])


def mark(recording: Recording) -> int:
    address = ("127.0.0.1", recording.config.console.lines_port)
    with socket.create_connection(address, 10.0) as link, link.makefile("rb") as stream:
        link.sendall(b'{"mark": true}\n')
        return int(json.loads(stream.readline())["next"])


FLOODS = {
    "lines": b"(XEN) [  123.456789] something of the usual length is said here\r\n" * 1000,
    "empty lines": b"\n" * 65536,
    "no lines": b"x" * 65536,
    "NULs": b"\0" * 8191 + b"\n",
    "bytes that are no text": b"\xff\xfe" * 4000 + b"\n",
    "one character a line": b"x\n" * 32768,
}


@pytest.mark.parametrize("piece", FLOODS.values(), ids=FLOODS)
def test_a_flood_costs_no_memory_and_a_mark_is_answered_within_a_second(
    flood: Callable[[bytes], tuple[Flood, Recording]], piece: bytes
) -> None:
    """Also with somebody who asked for all records and never reads one, and somebody who never reads a byte."""
    _, recording = flood(piece)
    with contextlib.ExitStack() as stack:
        for port, request in (
            (recording.config.console.lines_port, b'{"since": 0}\n'),
            (recording.config.console.serve_port, b""),
        ):
            sleeper = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5.0))
            sleeper.sendall(request)
        if b"\n" in piece:
            wait_until(lambda: mark(recording) > 1000, 60.0, "the flood", interval=0.01)
        end, delays = time.monotonic() + SECONDS, []
        first = mark(recording)
        while time.monotonic() < end:
            asked = time.monotonic()
            last = mark(recording)
            delays.append(time.monotonic() - asked)
        assert last > first or b"\n" not in piece
    assert max(delays) < 1.0, sorted(delays)[-5:]
    assert memory_kib(recording.process.pid) < MEMORY_KIB


def test_a_console_keeps_up_with_a_flood(flood: Callable[[bytes], tuple[Flood, Recording]]) -> None:
    _, recording = flood(FLOODS["lines"])
    with recording.console() as console:
        wait_until(console.is_connected, 10.0, "the source", interval=0.01)
        end, delays, since = time.monotonic() + KEPT_UP, [], console.mark()
        while time.monotonic() < end:
            asked = time.monotonic()
            until = console.mark()
            delays.append(time.monotonic() - asked)
            assert [line.n for line in console.lines(since, until)] == list(range(since, until))
            since = until
        # What is handed out is parsed here, in this process: on a machine with more to do a single one may take longer.
        assert sorted(delays)[len(delays) // 2] < 0.5 and max(delays) < 4.0, sorted(delays)[-5:]


def test_a_listener_that_slept_through_a_flood_gets_every_line(
    flood: Callable[[bytes], tuple[Flood, Recording]],
) -> None:
    """More than the recorder holds in memory: what is missing comes from the files."""
    source, recording = flood(FLOODS["lines"])
    address = ("127.0.0.1", recording.config.console.lines_port)
    with socket.create_connection(address, 10.0) as link, link.makefile("rb") as stream:
        link.sendall(b'{"since": 0}\n')
        wait_until(lambda: mark(recording) > 2 * MEMORY_LIMIT // 100, 60.0, "more than fits into memory")
        source.end()
        until = mark(recording)
        numbers = []
        while not numbers or numbers[-1] < until - 1:
            numbers.append(int(json.loads(stream.readline())["n"]))
        assert numbers == list(range(1, until))


def test_a_source_is_held_up_to_the_pace_and_no_sooner() -> None:
    pace = ReadPace(threading.Event(), rate=100_000, burst=50_000)
    started = time.monotonic()
    pace.take(b"x" * 50_000)
    assert time.monotonic() - started < 0.2, "a burst waits for nothing"
    for _ in range(5):
        pace.take(b"x" * 10_000)
    assert 0.45 < time.monotonic() - started < 1.5
    started = time.monotonic()
    pace.take(b"\n" * 1000)
    assert time.monotonic() - started > 0.35, "a line costs more than its byte"


def test_recent_records_are_bounded_by_their_bytes() -> None:
    recent = Recent(limit=100_000)
    recent.begin(7)
    assert (recent.first, recent.next, recent.since(7)) == (7, 7, [])
    for number in range(7, 5007):
        recent.add(b"%d" % number)
        assert recent.since(number) == [b"%d" % number]
    assert recent.next == 5007 and recent.first > 7
    held = []
    while records := recent.since(recent.first + len(held)):
        held += records
    assert held == [b"%d" % number for number in range(recent.first, 5007)]
    assert sum(map(len, held)) < 100_000
    recent.add(b"x" * 200_000)
    assert (recent.first, recent.next, recent.since(5008)) == (5008, 5008, [])


def test_more_connections_than_a_recorder_may_have_fill_no_log(record: Callable[..., Recording]) -> None:
    """They wait, or are cut off; when they have left, it answers; and that is said in a line."""
    recording = record(ConsoleSpec("tcp", 0, 0, host="127.0.0.1", port=free_port()))
    pid = recording.process.pid
    most = max(int(number) for number in os.listdir(f"/proc/{pid}/fd")) + 6
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
    address = ("127.0.0.1", recording.config.console.lines_port)
    with contextlib.ExitStack() as crowd:
        for _ in range(30):
            crowd.enter_context(socket.create_connection(address, 10.0))
        time.sleep(1.5)

    def answers() -> bool:
        try:
            return mark(recording) >= 1
        except (OSError, ValueError):  # cut off with the others
            return False

    wait_until(answers, 60.0, "an answer")
    said = recording.stop()
    assert said.count("no more connections are taken until others end: Too many open files") == 1
    assert len(said) < 5000
