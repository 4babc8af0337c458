"""A serial device of this machine, or a line behind an RFC 2217 server."""

from __future__ import annotations

import contextlib
import urllib.parse
from typing import Any

import serial

from lab.console.sources.base import POLL, WRITE_TIMEOUT, Source, SourceLost, check_server, reason


class SerialSource(Source):
    """A serial device or an RFC 2217 server, by pyserial."""

    def __init__(self, url: str, speed: int) -> None:
        self._url, self._speed = url, speed
        self._port: Any = None

    def open(self) -> None:
        # Nobody else may read the device: each byte goes to one reader only. RFC 2217 knows neither option.
        own: dict[str, Any] = {"exclusive": True, "write_timeout": WRITE_TIMEOUT}
        options = {} if "://" in self._url else own
        if server := urllib.parse.urlsplit(self._url).hostname:
            check_server(self._url, server, urllib.parse.urlsplit(self._url).port or 0)
        try:
            self._port = serial.serial_for_url(self._url, baudrate=self._speed, timeout=POLL, **options)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise SourceLost(f"{self._url}: {reason(error)}{self._hint(error) if server else ''}") from None

    def read(self) -> bytes:
        port = self._open_port()
        try:
            first: bytes = port.read(1)
            return first + port.read(port.in_waiting) if first else b""
        except (OSError, TypeError, ValueError) as error:  # pyserial, when closed or cut meanwhile
            raise SourceLost(f"{self._url}: {reason(error)}") from None

    def write(self, data: bytes) -> None:
        try:
            self._open_port().write(data)
        except (OSError, TypeError, ValueError) as error:
            raise SourceLost(f"{self._url}: {reason(error)}") from None

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(OSError):
                port.close()

    def _hint(self, error: OSError | ValueError) -> str:
        """What to do about a server that is there, and does not obey; nothing about one that is not."""
        if isinstance(error, ValueError):  # it took the protocol, and not the value
            return (
                f"; the server keeps its own settings of the line: set {self._speed} 8n1 there, or console.speed to "
                "what it has, or take `via: telnet`"
            )
        if isinstance(error, ConnectionError):
            return "; the server ended the connection: perhaps somebody else uses the line"
        is_refusal = isinstance(error, serial.SerialException) and not isinstance(error.__context__, OSError)
        return "; a port that speaks plain telnet needs `via: telnet` in the inventory" if is_refusal else ""

    def _open_port(self) -> Any:
        port = self._port
        if port is None:
            raise SourceLost(f"{self._url}: not open")
        return port
