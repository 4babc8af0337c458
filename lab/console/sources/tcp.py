"""A console behind a raw TCP port."""

from __future__ import annotations

import socket

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


class TcpSource(Source):
    """A raw TCP port: a terminal server, or a virtual board's cable."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._socket: socket.socket | None = None

    def open(self) -> None:
        check_server(f"tcp {self._host}:{self._port}", self._host, self._port)
        try:
            link = socket.create_connection((self._host, self._port), timeout=CONNECT_TIMEOUT)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {reason(error)}") from None
        link.settimeout(WRITE_TIMEOUT)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A console may be silent for hours: without probes a dead server would look like a quiet board.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = link

    def read(self) -> bytes:
        link = self._link()
        try:
            if not is_readable(link.fileno()):
                return b""
            data = link.recv(CHUNK)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {reason(error)}") from None
        if not data:
            raise SourceLost(f"tcp {self._host}:{self._port}: closed by the other side")
        return data

    def write(self, data: bytes) -> None:
        try:
            self._link().sendall(data)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {reason(error)}") from None

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _link(self) -> socket.socket:
        link = self._socket
        if link is None:
            raise SourceLost(f"tcp {self._host}:{self._port}: not open")
        return link
