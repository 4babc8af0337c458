"""A console's bytes, cut into lines."""

from __future__ import annotations

LINE_LIMIT = 8192  # bytes; a longer line is split into several


class Lines:
    """Cuts bytes into lines. What is not UTF-8 is kept as ``\\xNN``; all else, NUL too, as it came."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._told = 0  # how much of it a partial record has shown

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completed."""
        self._pending += data
        *whole, rest = bytes(self._pending).split(b"\n")
        pieces = [piece for line in whole for piece in _pieces(line)]
        *long, rest = _pieces(rest)
        self._pending = bytearray(rest)
        if whole or long:
            self._told = 0
        return [_text(piece.rstrip(b"\r")) for piece in [*pieces, *long]]

    def partial(self) -> str:
        """What waits for its newline, if it was not told yet."""
        if len(self._pending) == self._told:
            return ""
        self._told = len(self._pending)
        return _text(bytes(self._pending))

    def cut(self) -> str:
        """What waits for its newline, which will not come."""
        rest, self._pending, self._told = bytes(self._pending), bytearray(), 0
        return _text(rest.rstrip(b"\r"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _pieces(line: bytes) -> list[bytes]:
    """A line as pieces no longer than LINE_LIMIT, not cut within a character."""
    pieces = []
    while len(line) > LINE_LIMIT:
        cut = LINE_LIMIT
        while cut > LINE_LIMIT - 4 and line[cut] & 0xC0 == 0x80:
            cut -= 1
        pieces.append(line[:cut])
        line = line[cut:]
    return [*pieces, line]
