"""``python -m lab.netboot.server FOLDER ADDRESS PORT``: what boards get by HTTP on the network they boot from.

``/image/...`` is the same for all; ``/board/...`` is the asking board's own (another host gets 404), and
``/board/grub.cfg`` is made for each boot (:func:`lab.netboot.menu`). ``/gitlab-ci/...`` is what another CI wrote for
the asking board (key ``jobs`` of the inventory).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import logging
import os
import re
import shutil
import socket
import socketserver
import stat
import struct
import sys
import termios
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from lab import netboot
from lab.base import processes
from lab.base.errors import WaitTimeout
from lab.base.wait import wait_until

log = logging.getLogger("netboot")

IDLE = 60.0  # seconds without a byte after which a board is taken for gone
UNANSWERED = 5.0  # seconds that bytes sent to a board may stay unacknowledged: it was reset

NAME = re.compile(r"/(image|board)/([A-Za-z0-9][A-Za-z0-9.-]*(?:/[A-Za-z0-9][A-Za-z0-9.-]*)?)")
OF_A_JOB = re.compile(rf"/{netboot.JOBS}/([A-Za-z0-9][A-Za-z0-9.-]*)")


class Handler(BaseHTTPRequestHandler):
    """GET, whole or from an offset on: GRUB asks anew with ``Range: bytes=N-`` where it skips.

    No connection may outlive its transfer. GRUB (grub-core/net/tcp.c) counts its ports up from 21550 and its sequence
    numbers from the time since power-on, so the next boot asks from the same ports with lower numbers, which this
    machine's kernel takes for stray segments of a connection that it still remembers: for the minute of TIME-WAIT a
    board that was power-cycled would not get its menu. So what was acknowledged whole ends with a reset.
    """

    timeout = IDLE
    folder: Path  # set by listen()
    places = netboot.places("")  # below it: who has which address

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNANSWERED * 1000))
        # One that paces, such as bbr, waits while an emulated board has its few milliseconds of a busy processor.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")

    def finish(self) -> None:
        super().finish()
        end(self.connection)

    def do_GET(self) -> None:
        own = self.folder / self.places / self.client_address[0]
        try:
            if self.path == "/board/grub.cfg":
                text = netboot.menu(own)
                log.info("%s boots %s", own.resolve().name, text.split()[1].removeprefix("default="))
                self._send(io.BytesIO(text.encode()))
            elif (found := NAME.fullmatch(self.path)) and found[1] == "image":
                with open(self.folder / "image" / found[2], "rb") as file:
                    self._send(file)
            elif found:
                with _regular(own / found[2]) as file:
                    self._send(file)
            elif found := OF_A_JOB.fullmatch(self.path):
                with _regular(own / netboot.JOBS / found[1]) as file:
                    self._send(file)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (FileNotFoundError, IsADirectoryError):
            self.send_error(HTTPStatus.NOT_FOUND)
        except (ConnectionError, TimeoutError) as error:
            log.info("%s gave up on %s: %s", self.client_address[0], self.path, error)

    def _send(self, source: BinaryIO) -> None:
        size = source.seek(0, os.SEEK_END)
        wanted = re.fullmatch(r"bytes=(\d{1,18})-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start and start >= size:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        source.seek(start)
        shutil.copyfileobj(source, self.wfile, 1 << 18)

    def log_message(self, format: str, *args: object) -> None:
        log.info("%s %s", self.client_address[0], format % args)


def _regular(path: Path) -> BinaryIO:
    """A file that somebody else wrote: a symbolic link would lead a job to what only the lab may read.

    :raises FileNotFoundError: there is none, or it is something else.
    """
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise FileNotFoundError(str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileNotFoundError(f"{path}: no regular file")
    return file


def end(connection: socket.socket) -> None:
    """End a connection by a reset, once the board has acknowledged all that was sent.

    The kernel takes megabytes before the board has them, so a slow board may need longer than :data:`UNANSWERED`.
    """
    with contextlib.suppress(WaitTimeout):
        while left := _unacknowledged(connection):
            is_less = functools.partial(_is_less, connection, left)
            wait_until(is_less, UNANSWERED, "more is acknowledged", interval=0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # no FIN, which the server would send first


def _is_less(connection: socket.socket, than: int) -> bool:
    return _unacknowledged(connection) < than


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes sent that the board has not acknowledged (tcp(7), SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0])


class Server(ThreadingHTTPServer):
    """A thread a request; the loop that takes them shows that it turns."""

    def service_actions(self) -> None:
        processes.give_sign_of_life()


def listen(folder: Path, address: str, port: int) -> ThreadingHTTPServer:
    """A server for what is in ``folder``, bound and not yet serving.

    :raises OSError: the address is not this machine's, the port is taken or may not be had.
    """
    handler = type("BoundHandler", (Handler,), {"folder": folder})
    server = Server((address, port), handler)
    server.daemon_threads = True
    return server


def main() -> int:
    """Entry point; the log goes to stdout, which whoever starts this sends to a file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    folder, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    return serve(folder, address, port, lambda: listen(folder, address, port))


def serve(folder: Path, address: str, port: int, make: Callable[[], socketserver.TCPServer]) -> int:
    """Serve until told to end; the exit status of a process that cannot, which has said why."""
    try:
        server = make()
    except PermissionError:
        sys.stdout.write(f"port {port} may not be had; as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port}\n")
        return 1
    except OSError as error:
        sys.stdout.write(f"{address}:{port}: {error.strerror} (netboot.address in the inventory)\n")
        return 1
    (folder / netboot.SERVING).touch()
    log.info("serving %s on %s:%d", folder, address, port)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
