"""The copy that the lab has of a console that a host records: ``python -m lab.console.mirror --config FILE.json``.

It is a recorder whose source is the recorder at the host, and everybody at the lab uses it as one. A record keeps its
time and gets a number of the lab's own; ``of`` is the number that it has at the host. While the host is away the copy
has a gap, and what was recorded there meanwhile follows when the host is back: no record is lost or has a twin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.console import recorder
from lab.console.client import SourceState
from lab.console.cutting import LINE_LIMIT
from lab.console.log import RECORD_LIMIT
from lab.console.recorder import Recorder, Told
from lab.console.sources.base import CHUNK, CONNECT_TIMEOUT, POLL, WRITE_TIMEOUT, Source, SourceLost, reason

_KINDS = frozenset(("line", "partial", "gap", "open", "note", "rotate"))
_CAUGHT_UP = 2.0  # seconds that a mark waits for records that are on their way


class HostSource(Source):
    """A recorder at a host, by Unix sockets that SSH forwards: its records, and its raw bytes both ways."""

    def __init__(self, host: str, raw: Path, lines: Path, since: Callable[[], int]) -> None:
        self.name, self._raw_path, self._lines_path, self._since = f"host {host}", raw, lines, since
        self.state = SourceState(False, None, None)  # of the console there, when it was opened
        self._raw: socket.socket | None = None
        self._lines: socket.socket | None = None
        self._rest = b""
        self._records: list[Told] = []

    def open(self) -> None:
        try:
            self.state = SourceState.read(ask(self._lines_path, {"source": True}))
            behind = int(json.loads(ask(self._lines_path, {"mark": True}))["next"])
            since = self._since()
            self._lines = _connected(self._lines_path)
            # Its records were deleted, and begin at 1 again.
            self._lines.sendall(json.dumps({"since": since if since <= behind else 1}).encode() + b"\n")
            self._raw = _connected(self._raw_path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise SourceLost(f"{self.name}: no recorder answers there: {reason(error)}") from None

    def read(self) -> bytes:
        """Raw bytes; records that came are for :meth:`take_records`."""
        raw, lines = self._raw, self._lines
        if raw is None or lines is None:
            raise SourceLost(f"{self.name}: not open")
        there = select.select([raw, lines], [], [], POLL)[0]
        try:
            if lines in there:
                self._read_records(self._received(lines))
            return self._received(raw) if raw in there else b""
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise SourceLost(f"{self.name}: not a record: {error}") from None

    def take_records(self) -> list[Told]:
        """The records that :meth:`read` found, once."""
        records, self._records = self._records, []
        return records

    def write(self, data: bytes) -> None:
        if self._raw is None:
            raise SourceLost(f"{self.name}: not open")
        try:
            self._raw.sendall(data)
        except OSError as error:
            raise SourceLost(f"{self.name}: {reason(error)}") from None

    def close(self) -> None:
        links, self._raw, self._lines, self._rest = (self._raw, self._lines), None, None, b""
        for link in links:
            if link:
                link.close()

    def _received(self, link: socket.socket) -> bytes:
        data = link.recv(4 * CHUNK)
        if not data:
            raise SourceLost(f"{self.name}: the connection to the recorder there ended")
        return data

    def _read_records(self, data: bytes) -> None:
        """:raises ValueError, KeyError, TypeError: it is none."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > RECORD_LIMIT:
            raise ValueError(f"longer than {RECORD_LIMIT} bytes")
        for line in whole:
            one = json.loads(line)
            kind, at = str(one["kind"]), float(one["t"])
            if kind not in _KINDS or not math.isfinite(at):
                raise ValueError(f"{line[:80]!r}")
            self._records.append(Told(kind, at, str(one["text"])[:LINE_LIMIT], int(one["n"])))


def ask(lines: Path, request: dict[str, object]) -> bytes:
    """What a recorder answers by the Unix socket of its records. :raises OSError: nobody answers."""
    with _connected(lines) as link, link.makefile("rb") as stream:
        link.sendall(json.dumps(request).encode() + b"\n")
        return stream.readline()


def _connected(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(CONNECT_TIMEOUT)
        link.connect(str(path))
        link.settimeout(WRITE_TIMEOUT)
    except BaseException:
        link.close()
        raise
    return link


class Mirror(Recorder):
    """A recorder that copies records instead of making them."""

    backoff = (0.1, 0.4)  # a socket of this machine is asked: what waits for a host waits for this, too
    began_anew = "the lab's copy was started anew; what the host recorded meanwhile follows"
    _source: HostSource
    _copied = 0  # number, at the host, of the newest record that is copied

    def _make_source(self) -> Source:
        from lab.console.config import sockets

        assert self._config.reached_in is not None
        raw, self._lines_path = sockets(self._config.reached_in, self._config.board)
        self._more = asyncio.Event()
        return HostSource(self._config.host, raw, self._lines_path, lambda: self._copied + 1)

    def _begin(self) -> None:
        self._copied = self._log.last_of()

    def _take_from_source(self) -> None:
        data, records = self._source.read(), self._source.take_records()
        if data or records:
            self._post(self._on_copied, data, records)
            self._is_taken()

    def _on_open(self) -> None:
        state = self._source.state
        self._is_source_open, self._why_lost = state.is_open, state.why
        if state.is_open:
            self._tell([Told("open", time.time(), "")])

    def _on_copied(self, data: bytes, records: Sequence[Told]) -> None:
        try:
            self._pass_on(data)
            for one in records:
                if one.kind in ("gap", "open"):
                    self._is_source_open = one.kind == "open"
                    self._why_lost = one.text if one.kind == "gap" else None
                elif one.kind in ("line", "partial"):
                    self._heard = one.at
            if records:
                self._tell(records)
                assert records[-1].of is not None
                self._copied = records[-1].of
                self._more.set()
        finally:
            self._taken.release()

    async def _catch_up(self) -> None:
        """A mark stands behind all that the recorder at the host has: so what is late is not taken for new."""
        if not self._is_source_open:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, TimeoutError):
            async with asyncio.timeout(_CAUGHT_UP):
                reader, writer = await asyncio.open_unix_connection(self._lines_path)
                try:
                    writer.write(b'{"mark": true}\n')
                    behind = int(json.loads(await reader.readline())["next"])
                finally:
                    writer.close()
                while self._copied < behind - 1:
                    self._more.clear()
                    await self._more.wait()


if __name__ == "__main__":
    sys.exit(recorder.main(kind=Mirror))
