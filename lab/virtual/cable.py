"""The serial cable between a board's UART and whatever reads it: the BMC's SOL or a serial server.

QEMU's own socket loses what is printed while nobody is connected, and dies with the machine. A cable does
neither: its far end stays open over power cycles, as a real one does; with nothing plugged in, bytes fall off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from lab.base.loopback import Admission

log = logging.getLogger(__name__)

FAR_END_BUFFER = 1 << 20  # bytes a slow reader may lag before it is dropped


class SerialCable:
    """Joins a unix socket (the UART, one machine at a time) and a loopback TCP port (one or more far ends).

    Both ends are for processes of this one's user, and of root. Any account of the machine can connect to the port:
    others are cut off before a byte passes.
    """

    def __init__(self, uart: Path, port: int, is_out: Callable[[], bool] = lambda: False) -> None:
        """``is_out``: whether the cable is out of its socket. Both ends stay open then, and all bytes fall off."""
        self._uart_path, self._port, self._is_out = uart, port, is_out
        self._uart: asyncio.StreamWriter | None = None
        self._far: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Open both ends. :raises OSError: the port is taken."""
        self._uart_path.unlink(missing_ok=True)
        self._servers = [
            await asyncio.start_server(self._far_end, "127.0.0.1", self._port),
            await asyncio.start_unix_server(self._uart_end, str(self._uart_path)),
        ]
        self._uart_path.chmod(0o600)

    async def stop(self) -> None:
        """Close everything."""
        for server in self._servers:
            server.close()
        for writer in [*self._far, *([self._uart] if self._uart else [])]:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _uart_end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._uart = writer
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for far in [] if self._is_out() else list(self._far):
                    if far.transport.get_write_buffer_size() > FAR_END_BUFFER:
                        far.transport.abort()
                    else:
                        far.write(data)
        if self._uart is writer:
            self._uart = None
        writer.close()

    async def _far_end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if why := Admission().why_refused(writer.get_extra_info("socket")):
            log.warning("serial port %d: a connection is refused: %s", self._port, why)
            writer.transport.abort()
            return
        self._far.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                if self._uart and not self._is_out():
                    self._uart.write(data)
        self._far.discard(writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
