"""Consoles behind telnet: real servers, which negotiate each in its own way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from consoles import Recording, Wire
from free_ports import free_port
from test_console import plugged, record_fixture, texts, wire_fixture  # noqa: F401

from lab.base.processes import port_is_taken
from lab.base.wait import wait_until
from lab.console.sources import SourceLost, TcpSource
from lab.console.sources.telnet import TelnetSource
from lab.inventory import ConsoleSpec

EVERY_BYTE = bytes(range(256))
SER2NET = """\
connection: &telnet
  accepter: telnet,tcp,127.0.0.1,{port}
  connector: serialdev,{device},115200n81,local
  options:
    kickolduser: true
"""


@dataclass
class Server:
    """A telnet server in front of a serial line."""

    port: int
    board: int  # the board's end of the line


@pytest.fixture(name="ser2net")
def ser2net_fixture(tmp_path: Path) -> Iterator[Server]:
    """A console server that agrees to be transparent."""
    if not (binary := shutil.which("ser2net", path="/usr/sbin:/usr/bin")):
        pytest.skip("needs ser2net")
    with contextlib.ExitStack() as stack:
        board, port = plugged(stack, tmp_path / "line"), free_port()
        config = tmp_path / "ser2net.yaml"
        config.write_text(SER2NET.format(device=os.readlink(tmp_path / "line"), port=port))
        process = subprocess.Popen([binary, "-n", "-u", "-c", str(config)], stdin=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until(lambda: port_is_taken(port), 10.0, "ser2net listens", interval=0.02)
        yield Server(port, board)


# What busybox's telnetd runs for who comes: the serial line, byte by byte, in its pseudo-terminal.
LINE = """\
#!/bin/sh
stty raw -echo
exec 3<>{device}
stty raw -echo <&3
cat <&3 & cat >&3
"""


@pytest.fixture(name="busybox")
def busybox_fixture(tmp_path: Path) -> Iterator[Server]:
    """A telnetd of 1990's ways: it refuses to be transparent, and wants to know the size of a window."""
    if (
        not (binary := shutil.which("busybox"))
        or "telnetd"
        not in subprocess.run([binary, "--list"], capture_output=True, text=True, check=False).stdout.split()
    ):
        pytest.skip("needs busybox with telnetd")
    with contextlib.ExitStack() as stack:
        board, port = plugged(stack, tmp_path / "line"), free_port()
        login = tmp_path / "login"
        login.write_text(LINE.format(device=os.readlink(tmp_path / "line")))
        login.chmod(0o755)
        command = [binary, "telnetd", "-F", "-p", str(port), "-b", "127.0.0.1", "-f", "/dev/null", "-l", str(login)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until(lambda: port_is_taken(port), 10.0, "telnetd listens", interval=0.02)
        yield Server(port, board)


@pytest.fixture(name="server", params=["ser2net", "busybox"])
def server_fixture(request: pytest.FixtureRequest) -> Server:
    served: Server = request.getfixturevalue(request.param)
    return served


def telnet(port: int, via: Any = "telnet") -> ConsoleSpec:
    return ConsoleSpec(via=via, serve_port=0, lines_port=0, host="127.0.0.1", port=port)


def read_from(board: int, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += os.read(board, 4096)
    return got


def test_a_telnet_port_is_read_and_written_byte_by_byte(server: Server, record: Callable[..., Recording]) -> None:
    """No command of the protocol in the record, 0xFF once, a lone carriage return without a NUL; both ways."""
    with record(telnet(server.port)).console() as console:
        wait_until(console.is_connected, 10.0, "the telnet server", interval=0.01)
        mark = console.mark()

        def is_through() -> bool:  # the way to the line takes a moment
            os.write(server.board, b"begin\r\n")
            return "begin" in texts(console.lines(mark))

        wait_until(is_through, 20.0, "the line is read", interval=0.3)
        before = [line.text for line in console.lines(0) if line.kind in ("line", "partial")]
        assert all(text.strip() in ("begin", "") for text in before), "no command of the protocol is the board's word"
        wait_until(lambda: texts(console.lines(mark))[-1:] == ["begin"], 5.0, "the last of them", interval=0.05)
        console.quiet()
        mark = console.mark()
        os.write(server.board, b"(XEN) line 169 \xff end\r\nhalf\rbar \0\xf0\xff\xff.\r\n")
        console.wait_for("bar", 5.0, since=mark)
        assert texts(console.lines(mark)) == ["(XEN) line 169 \\xff end", "half\rbar \0\\xf0\\xff\\xff."]
        typed = EVERY_BYTE + b"\r\r\n\n\r\0\xff\xff\xfb\x01root\r"
        console.send(typed)
        assert read_from(server.board, len(typed)) == typed


def test_all_bytes_in_pieces_of_all_sizes_come_as_they_are(ser2net: Server) -> None:
    source = TelnetSource("127.0.0.1", ser2net.port)
    source.open()
    try:
        sent, got = b"", b""
        for size in (1, 2, 3, 7, 64, 255, 256):
            piece = (EVERY_BYTE * 2)[:size] + b"\xff" * (size % 3)
            os.write(ser2net.board, piece)
            sent += piece
        deadline = time.monotonic() + 10.0
        while len(got) < len(sent) and time.monotonic() < deadline:
            got += source.read()
        assert got == sent
    finally:
        source.close()


@pytest.mark.parametrize("what", ["server", "busybox's way of speaking"])
def test_raw_tcp_notices_a_telnet_port_and_says_so(
    request: pytest.FixtureRequest, record: Callable[..., Recording], what: str
) -> None:
    server: Server = request.getfixturevalue("ser2net" if what == "server" else "busybox")
    with record(telnet(server.port, "tcp")).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 20.0, "gap", interval=0.05)
        gap = texts(console.lines(0), "gap")[0]
        assert gap == f"tcp 127.0.0.1:{server.port}: this port speaks telnet: it needs `via: telnet` in the inventory"
        assert not texts(console.lines(0)) and not texts(console.lines(0), "partial")


def test_rfc2217_says_that_a_port_may_be_plain_telnet(server: Server, record: Callable[..., Recording]) -> None:
    with record(telnet(server.port, "rfc2217")).console() as console:
        gap = wait_until(lambda: texts(console.lines(0), "gap"), 20.0, "gap", interval=0.05)[0]
        assert gap.endswith("; a port that speaks plain telnet needs `via: telnet` in the inventory")


def test_rfc2217_says_nothing_of_telnet_where_nobody_listens(record: Callable[..., Recording]) -> None:
    with record(telnet(free_port(), "rfc2217")).console() as console:
        gap = wait_until(lambda: texts(console.lines(0), "gap"), 20.0, "gap", interval=0.05)[0]
        assert "refused" in gap and "telnet" not in gap


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe\xfd noise of a line",
        b"\xff",
        b"\xff\xfb",
        b"\xff\xff\xfb\x01",
        b"\xff\xfb\x99 no option",
        b"x\xff\xfb\x01",
    ],
)
def test_noise_at_the_beginning_of_a_raw_console_is_no_telnet(wire: Wire, said: bytes) -> None:
    source = TcpSource("127.0.0.1", wire.port)
    source.open()
    try:
        for byte in said:
            wire.say(bytes([byte]))
        got, deadline = b"", time.monotonic() + 5.0
        while len(got) < len(said) and time.monotonic() < deadline:
            got += source.read()
        assert got == said
    finally:
        source.close()


class Scripted:
    """A telnet server that says what a test has it say, and notes what it is told."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.told = b""
        self.link: socket.socket
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            self.link, _ = self._server.accept()
            while data := self.link.recv(4096):
                self.told += data

    def close(self) -> None:
        self._server.close()
        self.link.close()


def answers(told: bytes) -> set[bytes]:
    return set(re.findall(rb"\xff[\xfb-\xfe].", told, re.DOTALL))


def test_what_is_not_needed_of_the_protocol_is_refused_and_never_loops(record: Callable[..., Recording]) -> None:
    """RFC 854: a request is answered, an answer is not. No compression, no window, no environment of ours."""
    server = Scripted()
    source = TelnetSource("127.0.0.1", server.port)
    source.open()
    try:
        wait_until(lambda: len(server.told) >= 9, 5.0, "what the client begins with", interval=0.01)
        assert answers(server.told) == {b"\xff\xfd\x03", b"\xff\xfd\x00", b"\xff\xfb\x00"}  # DO SGA, DO and WILL BINARY
        server.told = b""
        refused = (0x18, 0x1F, 0x20, 0x21, 0x22, 0x23, 0x27, 0x2A, 0x2C, 0x05, 0x55, 0x56, 0xC9)
        server.link.sendall(b"".join(b"\xff\xfd%c\xff\xfb%c" % (option, option) for option in refused) + b"x")
        got = b""
        while not got:
            got = source.read()
        assert got == b"x"
        wait_until(lambda: len(server.told) >= 6 * len(refused), 5.0, "answers", interval=0.01)
        assert answers(server.told) == {b"\xff%c%c" % (no, option) for option in refused for no in (0xFC, 0xFE)}
        server.told = b""
        server.link.sendall(b"\xff\xfc\x00\xff\xfe\x00\xff\xfc\x18\xff\xfe\x18" * 20)  # WONT and DONT want no answer
        server.link.sendall(
            b"\xff\xf1\xff\xf6\xff\xfa\x18\x01\xff\xf0\xff\xfa\x1f\xff\xf0\xff\xef\xff\x07y\r\0z\r\nend"
        )
        got = b""
        while not got.endswith(b"end"):
            got += source.read()
        assert re.fullmatch(rb"[^a-z\r]{0,2}y\rz\r\nend", got), got
        assert len(server.told) < 60, server.told
    finally:
        source.close()
        server.close()


def test_a_return_that_is_split_from_its_nul_is_one_return() -> None:
    server = Scripted()
    source = TelnetSource("127.0.0.1", server.port)
    source.open()
    try:
        wait_until(lambda: server.told, 5.0, "the client", interval=0.01)
        got = b""
        for piece in (b"a\r", b"\0b\r", b"\nc\r", b"\xff\xff\0d"):
            server.link.sendall(piece)
            while not (said := source.read()):
                pass
            got += said
        assert got == b"a\rb\r\nc\r\xff\0d"
    finally:
        source.close()
        server.close()


def test_what_a_server_says_before_it_hangs_up_is_read() -> None:
    """Another client has the line."""
    server = Scripted()
    source = TelnetSource("127.0.0.1", server.port)
    source.open()
    try:
        wait_until(lambda: server.told, 5.0, "the client", interval=0.01)
        server.link.sendall(b"Port already in use\r\n")
        server.link.shutdown(socket.SHUT_RDWR)
        got = b""
        try:
            while True:
                got += source.read()
        except SourceLost as error:
            why = str(error)
        assert got == b"Port already in use\r\n"
        assert why.endswith(": closed by the other side: Port already in use")
    finally:
        source.close()
        server.close()


def test_rfc2217_says_that_a_server_keeps_its_own_settings(record: Callable[..., Recording]) -> None:
    """It takes the protocol, and answers each baud rate with 9600 (RFC 2217, SET-BAUDRATE)."""
    server = Scripted()

    def refuse() -> None:
        wait_until(lambda: b"\xff\xfb\x2c" in server.told, 5.0, "the client offers it", interval=0.01)
        server.link.sendall(b"\xff\xfd\x2c\xff\xfb\x00\xff\xfd\x00\xff\xfb\x03\xff\xfd\x03")
        wait_until(lambda: b"\xff\xfa\x2c\x01" in server.told, 5.0, "a speed", interval=0.01)
        server.link.sendall(b"\xff\xfa\x2c\x65\x00\x00\x25\x80\xff\xf0")

    refusing = threading.Thread(target=refuse)
    refusing.start()
    try:
        with record(telnet(server.port, "rfc2217")).console() as console:
            gap = wait_until(lambda: texts(console.lines(0), "gap"), 20.0, "gap", interval=0.05)[0]
            assert "the server keeps its own settings of the line: set 115200 8n1 there" in gap
    finally:
        refusing.join(10.0)
        server.close()
