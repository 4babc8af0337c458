"""A console behind a raw TCP port."""

from __future__ import annotations

import re
import socket
import time

from lab.console.sources.base import (
    CHUNK,
    CONNECT_TIMEOUT,
    WRITE_TIMEOUT,
    Source,
    SourceLost,
    check_server,
    is_readable,
    reason,
)

# IAC WILL or IAC DO, and an option that the telnet registry of IANA has: what a telnet server begins with.
_TELNET = re.compile(rb"\xff(?:[\xfb\xfd](?:[\x00-\x31])?)?\Z", re.DOTALL)
_TELNET_BEGINS = 3  # bytes
_COMMAND = re.compile(rb"\xff[\xfb-\xfe].", re.DOTALL)
# A server that has no line to give says why, and hangs up: ser2net's "Port already in use".
_AT_ONCE = 5.0  # seconds of a connection after which its end has nothing to do with its beginning
_FEW = 200  # bytes, of such a reason


class TcpSource(Source):
    """A raw TCP port: a terminal server, or a virtual board's cable."""

    _kind = "tcp"

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.name = f"{self._kind} {host}:{port}"
        self._socket: socket.socket | None = None
        self._beginning: bytes | None = None  # the first bytes, until they are seen to be the board's
        self._said, self._opened = b"", 0.0  # all that came yet, as far as it is looked at; when it began

    def open(self) -> None:
        check_server(self.name, self._host, self._port)
        try:
            link = socket.create_connection((self._host, self._port), timeout=CONNECT_TIMEOUT)
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None
        link.settimeout(WRITE_TIMEOUT)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A console may be silent for hours: without probes a dead server would look like a quiet board.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket, self._beginning = link, b""
        self._said, self._opened = b"", time.monotonic()

    def read(self) -> bytes:
        link = self._link()
        try:
            if not is_readable(link.fileno()):
                return self._give_up_beginning()
            data = link.recv(CHUNK)
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None
        if not data:
            raise SourceLost(f"{self.name}: closed by the other side{self._last_words()}")
        if len(self._said) <= _FEW:
            self._said += data
        return self._look_at_beginning(data)

    def write(self, data: bytes) -> None:
        try:
            self._link().sendall(data)
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _last_words(self) -> str:
        """What a server said that has hung up at once; or nothing."""
        if len(self._said) > _FEW or time.monotonic() - self._opened > _AT_ONCE:
            return ""
        words = " ".join(_COMMAND.sub(b"", self._said).decode(errors="replace").split())
        return f": {words}" if words.isprintable() and words else ""

    def _look_at_beginning(self, data: bytes) -> bytes:
        """A telnet server begins with a command. Its record would have commands in it, and each 0xFF twice."""
        if self._beginning is None:
            return data
        data = self._beginning + data
        if _TELNET.match(data[:_TELNET_BEGINS]):
            if len(data) >= _TELNET_BEGINS:
                raise SourceLost(f"{self.name}: this port speaks telnet: it needs `via: telnet` in the inventory")
            self._beginning = data
            return b""
        self._beginning = None
        return data

    def _give_up_beginning(self) -> bytes:
        """What began as telnet does, and does not go on: it is the board's."""
        data = self._beginning
        if not data:
            return b""
        self._beginning = None
        return data

    def _link(self) -> socket.socket:
        link = self._socket
        if link is None:
            raise SourceLost(f"{self.name}: not open")
        return link
