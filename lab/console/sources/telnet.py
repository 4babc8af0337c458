"""A console server's telnet port: bytes with commands of the protocol between them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from telnetlib3.stream_writer import TelnetWriter
from telnetlib3.telopt import BINARY, DO, ECHO, SGA, WILL

from lab.console.sources.base import SourceLost, reason
from lab.console.sources.tcp import TcpSource

_IAC = 0xFF  # RFC 854: what follows is a command; doubled it is the byte itself
# Options: the line is one of 8 bits (BINARY, RFC 856), each byte is sent at once (SGA, RFC 858), and the board echoes
# what is typed (ECHO, RFC 857; never we). All others are refused: no server needs the lab's terminal or its size.
_THEIRS = frozenset({BINARY, SGA, ECHO})
_OURS = frozenset({BINARY, SGA})
_OPTIONS = frozenset(bytes([number]) for number in range(256))


class TelnetSource(TcpSource):
    """A telnet server (RFC 854) in front of a serial line; telnetlib3 negotiates.

    Where the server refuses to be transparent for bytes, a carriage return goes as CR NUL and comes as such.
    """

    _kind = "telnet"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._talking = threading.RLock()  # answers to the server go between what is typed, not into it
        self._telnet: TelnetWriter | None = None
        self._is_after_return = False  # the last byte was a carriage return

    def open(self) -> None:
        super().open()
        beginning = bytearray()  # sent at once: who ends the connection at the first of it is heard out
        wire = _Wire(beginning.extend)
        telnet = TelnetWriter(wire, None, client=True)
        telnet.always_dont, telnet.always_wont = set(_OPTIONS - _THEIRS), set(_OPTIONS - _OURS)
        telnet.compression = False
        telnet.slc_simulated = False  # no character has a meaning of its own
        for command, option in ((DO, SGA), (DO, BINARY), (WILL, BINARY)):
            telnet.iac(command, option)
        wire.send = self._send
        self._telnet, self._is_after_return = telnet, False
        try:
            self._send(bytes(beginning))
        except SourceLost:
            self.close()
            raise

    def read(self) -> bytes:
        return self._in_band(super().read())

    def write(self, data: bytes) -> None:
        with self._talking:
            telnet = self._session()
            telnet.write(data if telnet.outbinary else data.replace(b"\r", b"\r\0"))

    def close(self) -> None:
        super().close()
        self._telnet = None

    def _look_at_beginning(self, data: bytes) -> bytes:
        return data

    def _in_band(self, data: bytes) -> bytes:
        """What of it the board said; commands are answered."""
        telnet, said, at = self._session(), bytearray(), 0
        while at < len(data):
            if not telnet.is_oob:
                end = data.find(_IAC, at)
                self._add(said, data[at : end if end >= 0 else len(data)])
                if end < 0:
                    break
                at = end
            with self._talking:
                try:
                    is_said = telnet.feed_byte(data[at : at + 1])
                except ValueError:  # a command that makes no sense: RFC 854 has it ignored
                    is_said = False
            if is_said:
                self._add(said, data[at : at + 1])
            at += 1
        return bytes(said)

    def _add(self, said: bytearray, data: bytes) -> None:
        """A carriage return that is no newline comes with a NUL behind it, unless the server is transparent."""
        if not data:
            return
        if not self._session().inbinary:
            if self._is_after_return and data.startswith(b"\0"):
                data = data[1:]
                self._is_after_return = False
            data = data.replace(b"\r\0", b"\r")
        if data:
            self._is_after_return = data.endswith(b"\r")
        said += data

    def _session(self) -> TelnetWriter:
        if self._telnet is None:
            raise SourceLost(f"{self.name}: not open")
        return self._telnet

    def _send(self, data: bytes) -> None:
        try:
            self._link().sendall(data)
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None


class _Wire(asyncio.Transport):
    """What telnetlib3 writes to: its protocol engine needs no event loop, only something to write to."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self.send = send

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.send(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """The source closes its socket itself."""
