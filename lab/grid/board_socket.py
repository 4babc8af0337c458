"""Asks what only virtual boards can answer, on a Unix socket at the lab machine. Each line gets one line as its answer.

``state …``: :mod:`lab.grid.states`. ``get steal``: two numbers (:class:`lab.results.observation.StealTime`). ``get
profile``: how many figures guests have measured since power on, and behind a semicolon for each the blocks that it was
made of: address, instructions, address and so on. What a board refuses, it answers by ``error: WHY``.
"""

from __future__ import annotations

import socket

from lab.base.errors import BoardError
from lab.results.observation import StealTime

TIMEOUT = 120.0  # seconds; a saved state takes a few


class StealMeter:
    """The steal time of one board."""

    def __init__(self, board: str, path: str) -> None:
        self.board, self._path = board, path

    def read(self) -> StealTime:
        """Since the board is in the lab. :raises BoardError: it does not say."""
        answer = ask(self.board, self._path, "get steal")
        try:
            ran, stolen = map(float, answer.split())
        except ValueError as error:
            raise BoardError(self.board, f"get steal: {answer!r} is not two numbers") from error
        return StealTime(ran, stolen)


class Profiler:
    """What the figures of one board are made of, by the hypervisor's addresses."""

    def __init__(self, board: str, path: str) -> None:
        self.board, self._path = board, path

    def read(self) -> list[dict[int, int]]:
        """Address and instructions of each block, for each figure since power on, the oldest first.

        :raises BoardError: it does not say.
        """
        answer = ask(self.board, self._path, "get profile")
        number, *lines = answer.split(";")
        try:
            found = [list(line.split()) for line in lines]
            if int(number) != len(found):
                raise ValueError("cut short")
            return [
                {int(at, 16): int(count) for at, count in zip(line[::2], line[1::2], strict=True)} for line in found
            ]
        except ValueError as error:
            raise BoardError(self.board, f"get profile: {answer[:80]!r} is no profile: {error}") from error


def ask(board: str, path: str, request: str) -> str:
    """The answer to one request. :raises BoardError: the board refuses, or does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(f"{request}\n".encode("ascii"))
            answer = connection.makefile("r", encoding="utf-8", errors="replace").readline().strip()
    except OSError as error:
        raise BoardError(board, f"{request}: no answer: {error.strerror or error}") from error
    if not answer or answer.startswith("error"):
        raise BoardError(board, f"{request}: {answer.removeprefix('error: ') or 'no answer'}")
    return answer
