"""Boards at a host that boot by network: their requests come to the lab machine through SSH, where all files are.

``python -m lab.netboot.relay SOCKET FOLDER ADDRESS PORT`` is the end at the host: it takes the boards' connections and
passes each on to a Unix socket, which SSH forwards; the board's address goes first.
``python -m lab.netboot.relay SOCKET FOLDER HOST`` is the end at the lab machine: it answers there as
:mod:`lab.netboot.server` answers the boards of its own network.
"""

from __future__ import annotations

import ipaddress
import logging
import select
import socket
import socketserver
import sys
from pathlib import Path

from lab import netboot
from lab.base import processes
from lab.netboot import server

log = logging.getLogger("netboot")

CONNECT_TIMEOUT = 10.0  # seconds
CHUNK = 1 << 18
ADDRESS_LIMIT = 64  # bytes


class There(socketserver.BaseRequestHandler):
    """A board's connection, passed on byte by byte."""

    path: str

    def handle(self) -> None:
        board: socket.socket = self.request
        board.settimeout(server.IDLE)
        board.setsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT, int(server.UNANSWERED * 1000))
        with socket.socket(socket.AF_UNIX) as lab:
            lab.settimeout(CONNECT_TIMEOUT)
            try:
                lab.connect(self.path)
                lab.settimeout(server.IDLE)
                lab.sendall(f"{self.client_address[0]}\n".encode())
                _pass_on(board, lab)
            except OSError as error:
                log.info("%s is not answered: %s", self.client_address[0], error)
        server.end(board)


def _pass_on(board: socket.socket, lab: socket.socket) -> None:
    """Until the lab has said all, or the board is gone."""
    while there := select.select([board, lab], [], [], server.IDLE)[0]:
        for source in there:
            data = source.recv(CHUNK)
            if not data:
                return
            (lab if source is board else board).sendall(data)


class Here(server.Handler):
    """A board's request by way of a host, which says first whose it is."""

    def setup(self) -> None:
        socketserver.StreamRequestHandler.setup(self)
        said = self.rfile.readline(ADDRESS_LIMIT).decode("ascii", "replace").strip()
        try:
            self.client_address = (str(ipaddress.ip_address(said)), 0)
        except ValueError:
            self.client_address = ("nobody", 0)

    def finish(self) -> None:
        socketserver.StreamRequestHandler.finish(self)


class _ServerHere(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def service_actions(self) -> None:
        processes.give_sign_of_life()


class _ServerThere(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = allow_reuse_address = True

    def service_actions(self) -> None:
        processes.give_sign_of_life()


def listen_there(path: str, address: str, port: int) -> socketserver.TCPServer:
    """The end at the host, bound and not yet serving. :raises OSError: as :func:`lab.netboot.server.listen`."""
    return _ServerThere((address, port), type("BoundThere", (There,), {"path": path}))


def listen_here(path: str, folder: Path, host: str) -> socketserver.BaseServer:
    """The end at the lab machine. :raises OSError: the socket cannot be made."""
    Path(path).unlink(missing_ok=True)
    return _ServerHere(path, type("BoundHere", (Here,), {"folder": folder, "places": netboot.places(host)}))


def main() -> int:
    """Entry point; the log goes to stdout, which whoever starts this sends to a file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    path, folder, *where = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if len(where) == 1:
        listen_here(path, folder, where[0]).serve_forever()
        return 0
    address, port = where[0], int(where[1])
    return server.serve(folder, address, port, lambda: listen_there(path, address, port))


if __name__ == "__main__":
    sys.exit(main())
