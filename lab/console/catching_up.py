"""What a console said before somebody listened, and what it says from then on, joined: nothing lost, nothing twice."""

from __future__ import annotations

import select
import socket
import time

from lab.base.errors import BenchError
from lab.console.client import Console

SETTLED = 0.4  # seconds without a byte: the recorder has told the beginning of a line by then (its SILENCE)
LIMIT = 2.0  # seconds for that, on a console that never ends a line and never rests
_LOOKS = 20  # a console at full speed makes a line each 5 ms or so, and a look takes less
_PIECE = 65536


def catch_up(console: Console, line: socket.socket, since: int) -> bytes:
    """What the console said from record ``since`` until now; what is read from ``line`` hereafter follows it.

    Lines of the past end with CR LF, and what was not UTF-8 in them is shown as ``\\xNN``: records are text. A line
    that is longer than a record may be (:mod:`lab.console.cutting`) can be cut there, or be repeated in part.

    :param console: open.
    :param line: of a fresh :meth:`Console.attach`.
    :raises BenchError: no recorder answers, or it ended the connection.
    """
    raw = _first_line(line)
    before, now = -1, console.mark()
    for _ in range(_LOOKS):
        raw += _there(line)
        before, now = now, console.mark()
        if now == before:  # so what was read ends in the middle of the line that the next record will be
            break
    records = console.lines(since, before)
    texts = [one.text for one in records if one.kind == "line"]
    past = b"".join(text.encode(errors="replace") + b"\r\n" for text in texts)
    if b"\n" in raw:
        return past + (raw.rpartition(b"\n")[2] if now == before else _behind(texts, raw))
    if not records or records[-1].kind != "partial":
        return past + raw
    begun = records[-1].text.encode(errors="replace")
    overlap = next(size for size in range(len(raw), -1, -1) if begun.endswith(raw[:size]))
    return past + begun + raw[overlap:]


def _behind(texts: list[str], raw: bytes) -> bytes:
    """What of ``raw`` comes behind the lines ``texts``, on a console that never rests between two lines.

    ``raw`` begins before the end of ``texts``, in the middle of a line. All but that line is given where they cannot be
    matched: nothing is lost then, and some is said twice.
    """
    _, *lines = raw.split(b"\n")
    told = [one.rstrip(b"\r").decode(errors="backslashreplace") for one in lines[:-1]]
    for count in range(min(len(told), len(texts)), 0, -1):
        if texts[-count:] == told[:count]:
            return b"\n".join(lines[count:])
    return b"\n".join(lines)


def _first_line(line: socket.socket) -> bytes:
    """Read until a line has ended, so that the next one is read from its beginning, or until the console rests."""
    raw, deadline = b"", time.monotonic() + LIMIT
    while b"\n" not in raw and time.monotonic() < deadline and select.select([line], [], [], SETTLED)[0]:
        raw += _piece(line)
    return raw


def _there(line: socket.socket) -> bytes:
    """What has come already."""
    raw = b""
    while select.select([line], [], [], 0)[0]:
        raw += _piece(line)
    return raw


def _piece(line: socket.socket) -> bytes:
    data = line.recv(_PIECE)
    if not data:
        raise BenchError("the recorder ended the connection")
    return data
