"""``python -m lab.grid.wire DIRECTORY LINK``: the cable between two virtual boards that are not at one machine.

A virtual board's end of the lab link is a pair of UDP ports on its machine's loopback. An end of the wire stands for
the peer there, and passes what is sent to it through SSH to the other end. Boards of steel have a cable of their own.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import paths, processes, shape
from lab.base.errors import UsageError
from lab.console import HOST
from lab.grid import hosts
from lab.inventory import BoardSpec, HostSpec, Lab

log = logging.getLogger("wire")

AGAIN = 5.0  # seconds between two attempts
_BEGIN = b"xenlink1"  # what each end says first
_LENGTH = 2  # bytes of a frame's length, before it
_LARGEST = 1 << 16
_LAG = 1 << 20  # bytes that wait for the other end


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire."""

    own_port: int  # the board's end of the lab link
    peer_port: int  # where the board sends to
    at: HostSpec | None

    def command(self) -> list[str]:
        """What runs the end, here or at its host."""
        ports = (str(self.peer_port), str(self.own_port))
        if self.at:
            return [*hosts.command(self.at), hosts.program(self.at, "wire", *ports)]
        return [sys.executable, "-P", "-m", "lab.cli", "host", "wire", *ports]


@dataclass(frozen=True, slots=True)
class Wire:
    """A lab link whose ends are at two machines."""

    link: str
    ends: tuple[End, ...]

    def write(self, folder: Path) -> None:
        _path(folder, self.link).write_text(json.dumps(asdict(self)), encoding="utf-8")


def wires(lab: Lab) -> list[Wire]:
    """The lab links of virtual boards that need one."""
    return [Wire(one.link, (_end(one, other), _end(other, one))) for one, other in lab.pairs() if _is_apart(one, other)]


def names(folder: Path) -> list[str]:
    """The links that have a wire in the lab of this folder."""
    return sorted(file.name.removesuffix(".wire.json") for file in folder.glob("*.wire.json"))


def _is_apart(one: BoardSpec, other: BoardSpec) -> bool:
    return bool(one.virtual and other.virtual and one.at != other.at)


def _end(board: BoardSpec, peer: BoardSpec) -> End:
    assert board.virtual and peer.virtual
    return End(board.virtual.link_port, peer.virtual.link_port, board.at)


def _path(folder: Path, link: str) -> Path:
    return folder / f"{link}.wire.json"


def end(peer_port: int, own_port: int) -> None:
    """Be an end, on the standard streams, until the other end is gone.

    :raises UsageError: the port is taken, or what comes is not from the other end.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as board:
        try:
            board.bind((HOST, peer_port))
        except OSError as error:
            raise UsageError(f"UDP port {peer_port} of the lab link: {error.strerror}") from None
        board.connect((HOST, own_port))
        os.set_blocking(1, False)  # both ends would else wait for one another
        rest, has_begun, left = b"", False, bytearray(_BEGIN)
        while True:
            there, free, _ = select.select([0, board.fileno()], [1] if left else [], [])
            if board.fileno() in there:
                with suppress(ConnectionRefusedError):  # the board has no power
                    frame = board.recv(_LARGEST)
                    if len(left) < _LAG:  # else it is lost, as on a busy line
                        left += len(frame).to_bytes(_LENGTH) + frame
            if free:
                with suppress(BlockingIOError):
                    del left[: os.write(1, left)]
            if 0 in there:
                data = os.read(0, _LARGEST)
                if not data:
                    return
                rest += data
                if not has_begun and len(rest) >= len(_BEGIN):
                    if not rest.startswith(_BEGIN):
                        raise UsageError(f"this is no other end of a lab link: {rest[:40]!r}")
                    rest, has_begun = rest[len(_BEGIN) :], True
                if has_begun:
                    rest = _pass_on(rest, board)


def _pass_on(data: bytes, board: socket.socket) -> bytes:
    """Give the board the frames; what is not a whole one yet."""
    while len(data) >= _LENGTH and len(data) - _LENGTH >= (size := int.from_bytes(data[:_LENGTH])):
        with suppress(OSError):  # a cable does not care whether anybody hears
            board.send(data[_LENGTH : _LENGTH + size])
        data = data[_LENGTH + size :]
    return data


def _join(wire: Wire, ending: threading.Event) -> None:
    """Run both ends, each with the other's output as its input, until one of them ends."""
    running = []
    try:
        for one, link in zip(wire.ends, socket.socketpair(), strict=True):
            with link:
                running.append(
                    subprocess.Popen(
                        one.command(),
                        stdin=link.fileno(),
                        stdout=link.fileno(),
                        env=processes.environment(processes.PYTHON, processes.NETWORK),
                        cwd=paths.state(),
                    )
                )
        while not ending.wait(0.5) and all(process.poll() is None for process in running):
            processes.give_sign_of_life()
    finally:
        for process in running:
            process.terminate()
            try:
                process.wait(3.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    wire = shape.read(Wire, _path(Path(sys.argv[1]), sys.argv[2]).read_bytes())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stdout)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    while not ending.is_set():
        _join(wire, ending)
        processes.give_sign_of_life()
        ending.wait(AGAIN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
