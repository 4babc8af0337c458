"""The one reader of a board's console: ``python -m lab.console.recorder --config FILE.json``.

It runs in the foreground until SIGTERM, under a supervisor. Raw bytes are served on ``serve_port``, records on
``lines_port``, both on loopback; records are kept in ``<directory>/<board>.jsonl``. See docs/architecture.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lab.base import processes
from lab.base.errors import UsageError
from lab.base.loopback import Admission, bear_a_crowd, check_group, listener_uid, user
from lab.console import HOST, sources
from lab.console.config import RecorderConfig
from lab.console.cutting import LINE_LIMIT, Lines
from lab.console.log import ConsoleLog
from lab.console.pace import ReadPace
from lab.console.recent import Recent
from lab.console.sources import Source, SourceLost, SourceRefused

_log = logging.getLogger(__name__)

SILENCE = 0.3  # seconds after which text without a newline is told as it is: a prompt, a menu
REFUSED = (60.0, 600.0, 3600.0)  # seconds between two attempts with a login that is refused: at first, and later
SIGN_EVERY = 2.0  # seconds between two signs of life for the supervisor
LOGIN_LOOK = 1.0  # seconds between two looks whether the login was changed meanwhile
BACKOFF = (0.2, 5.0)  # seconds between two attempts to open the source: the first, and the longest
RAW_LAG = 1 << 20  # bytes by which a listener of raw bytes may lag before it is dropped: it must not fill our memory
SYNC_AFTER = 1.0  # seconds until a record is on the disk for good: what a power cut of the lab machine may cost
INPUT_LIMIT = 1000  # pieces of input that wait for a source which takes none
_ANEW = "the recorder was started anew"
_PIECE = 4096  # bytes that are taken from the source at once: of empty lines, so many records that a mark waits 10 ms


class Told(NamedTuple):
    """A record that has no number yet."""

    kind: str
    at: float  # seconds since the epoch
    text: str
    of: int | None = None  # its number in the record that it was copied from


class Recorder:
    """Reads one source for ever, and tells everybody."""

    backoff: ClassVar[tuple[float, float]] = BACKOFF
    began_anew: ClassVar[str] = _ANEW  # what a gap says that is there since this process began

    def __init__(self, config: RecorderConfig) -> None:
        self._config = config
        self._source = self._make_source()
        self._log = ConsoleLog(config.directory / f"{config.board}.jsonl", config.rotate_bytes)
        self._admission = Admission(config.group)
        self._ready = config.directory / f"{config.board}.ready"
        self._lines = Lines()
        self._recent = Recent()
        self._last_byte = 0.0  # time of it
        self._heard: float | None = None  # the same, with what was before this recorder; None: never a byte
        self._silence: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._is_source_open = False
        self._why_lost: str | None = "the source was not opened yet"
        self._is_disk_told = False
        self._raw: set[asyncio.StreamWriter] = set()
        self._listeners: set[asyncio.StreamWriter] = set()
        self._news: set[asyncio.Event] = set()  # one a listener, set when there are new records
        self._refused: set[str] = set()  # who was told of in the log
        self._stop = threading.Event()
        self._pace = ReadPace(self._stop)
        self._taken = threading.Semaphore(0)  # the loop has dealt with what the source said
        self._source_lock = threading.Lock()  # held while writing and while closing: a descriptor is reused at once
        self._to_source: queue.Queue[bytes] = queue.Queue(maxsize=INPUT_LIMIT)
        self._loop: asyncio.AbstractEventLoop

    def _make_source(self) -> Source:
        return sources.of(self._config.console, self._config.bmc)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        :raises UsageError: a port is taken, there is no such group, or the directory cannot be written.
        """
        self._loop = asyncio.get_running_loop()
        bear_a_crowd(self._loop)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopped.set)
        console, servers = self._config.console, []
        threads = [threading.Thread(target=self._follow_source, name="source", daemon=True)]
        threads += [threading.Thread(target=self._feed_source, name="input", daemon=True)]
        if self._config.group is not None:
            check_group(self._config.group)
        try:
            # The log is touched only once the ports are ours: another recorder may be writing it.
            if sockets := self._config.sockets():
                servers += [
                    await _listen_at(on, at) for on, at in zip((self._on_raw, self._on_lines), sockets, strict=True)
                ]
            else:
                serve = await _listen(self._on_raw, console.serve_port, "serve_port", self._config.board)
                servers.append(serve)
                lines = await _listen(self._on_lines, console.lines_port, "lines_port", self._config.board)
                servers.append(lines)
            try:
                self._recent.begin(self._log.open())
                self._heard = self._log.last_heard()
                self._begin()
            except OSError as error:
                raise UsageError(f"{self._config.board}: {self._config.directory}: {error.strerror}") from None
            if self._recent.next > 1:
                self._tell([Told("gap", time.time(), self.began_anew)])
            for server in servers:
                try:
                    await server.start_serving()
                except OSError as error:  # two recorders started at the same moment
                    raise UsageError(f"{self._config.board}: {error.strerror}") from None
            for thread in threads:
                thread.start()
            self._announce()
            self._give_sign_of_life()
            await stopped.wait()
        finally:
            self._stop.set()
            for server in servers:
                server.close()
            if threads[0].is_alive():
                await asyncio.to_thread(threads[0].join, 15.0)
            self._cut()
            for writer in [*self._raw, *self._listeners]:
                writer.close()
            if self._is_announced():
                self._ready.unlink(missing_ok=True)
            if self._sync_timer:
                self._sync_timer.cancel()
            await asyncio.to_thread(self._log.close)
            await asyncio.sleep(0)  # lets the transports close

    def _begin(self) -> None:
        """The log is open."""

    def _give_sign_of_life(self) -> None:
        processes.give_sign_of_life()
        if not self._is_announced():  # there was no room for it
            self._announce()
        self._loop.call_later(SIGN_EVERY, self._give_sign_of_life)

    def _announce(self) -> None:
        """Say in a file that the ports are served: tried again while the disk is full."""
        fresh = self._ready.with_name(f".{self._ready.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fresh.write_text(f"{os.getpid()}\n")
            os.replace(fresh, self._ready)

    def _is_announced(self) -> bool:
        try:
            return self._ready.read_text().strip() == str(os.getpid())
        except OSError:
            return False

    # The source, in threads of its own

    def _follow_source(self) -> None:
        backoff, refusals, told = self.backoff[0] / 2, 0, ""
        while not self._stop.is_set():
            is_refused, opened = False, float("inf")
            try:
                self._source.open()
                refusals, told, opened = 0, "", time.monotonic()
                self._post(self._on_open)
                while not self._stop.is_set():
                    self._take_from_source()
            except SourceLost as error:
                why, is_refused = str(error), isinstance(error, SourceRefused)
            except Exception as error:  # one reader a board: it must not end for a bug in a driver
                _log.exception("%s: source", self._config.board)
                why = f"{type(error).__name__}: {error}"
            else:
                break
            with self._source_lock:
                self._source.close()
            if why != told:
                self._post(self._on_lost, why, time.time())
                told = why
            if is_refused:
                self._wait_for_another_login(REFUSED[min(refusals, len(REFUSED) - 1)])
                refusals += 1
            else:
                is_short = time.monotonic() - opened < self.backoff[1]  # or none at all
                backoff = min(backoff * 2, self.backoff[1]) if is_short else self.backoff[0]
                self._stop.wait(backoff)
        with self._source_lock:
            self._source.close()

    def _take_from_source(self) -> None:
        """What the source has now, if it has anything. :raises SourceLost:"""
        if data := self._source.read():
            self._hand_over(data, time.time())

    def _wait_for_another_login(self, seconds: float) -> None:
        """Do not try the same login again at once: accounts are locked for that. One that was changed is tried."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.wait(LOGIN_LOOK):
            if self._source.is_worth_a_try():
                return

    def _hand_over(self, data: bytes, at: float) -> None:
        """Give the loop what came, piece by piece, each when the last one is dealt with.

        So a source that floods is held up, as a serial line holds up who writes to it, and fills no memory.
        """
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._pace.take(piece)
            self._post(self._on_bytes, piece, at)
            if not self._is_taken():
                return

    def _is_taken(self) -> bool:
        """Wait until the loop has dealt with what it was given last; False: it runs no more."""
        while not self._taken.acquire(timeout=sources.POLL):
            if self._stop.is_set() and not self._loop.is_running():
                return False
        return True

    def _feed_source(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._to_source.get(timeout=sources.POLL)
            except queue.Empty:
                continue
            with self._source_lock:
                try:
                    self._source.write(data)
                except SourceLost as error:  # the reader finds out by itself
                    _log.warning("%s: %d bytes of input lost: %s", self._config.board, len(data), error)

    def _post(self, what: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            self._loop.call_soon_threadsafe(what, *arguments)

    # What the source says, in the loop

    def _on_open(self) -> None:
        self._is_source_open, self._why_lost = True, None
        self._tell([Told("open", time.time(), "")])

    def _on_lost(self, why: str, at: float) -> None:
        self._is_source_open, self._why_lost = False, why[:LINE_LIMIT]
        self._cut()
        self._tell([Told("gap", at, why[:LINE_LIMIT])])

    def _on_bytes(self, data: bytes, at: float) -> None:
        try:
            self._pass_on(data)
            self._last_byte = self._heard = at
            if lines := self._lines.feed(data):
                self._tell([Told("line", at, text) for text in lines])
            if self._silence:
                self._silence.cancel()
            self._silence = self._loop.call_later(SILENCE, self._on_silence)
        finally:
            self._taken.release()

    def _pass_on(self, data: bytes) -> None:
        for writer in list(self._raw):
            if writer.transport.get_write_buffer_size() > RAW_LAG:
                _log.warning("%s: a listener of bytes is too slow: dropped", self._config.board)
                self._raw.discard(writer)
                writer.transport.abort()
            else:
                writer.write(data)

    def _on_silence(self) -> None:
        if text := self._lines.partial():
            self._tell([Told("partial", self._last_byte, text)])

    def _cut(self) -> None:
        """The source is gone: half a line is all there will be of it."""
        if self._silence:
            self._silence.cancel()
        if text := self._lines.cut():
            self._tell([Told("line", self._last_byte, text)])

    def _tell(self, records: Sequence[Told]) -> None:
        """Number the records, keep them, and wake those who listen."""
        encoded = b"".join([self._encode(record) for record in records])
        self._log.append(encoded)  # first: a number that was told must not be given again after a crash
        if self._log.trouble and not self._is_disk_told:
            self._is_disk_told = True
            _log.error("%s: records are not saved: %s", self._config.board, self._log.trouble)
            self._log.append(self._encode(Told("note", time.time(), f"log: not saved: {self._log.trouble}")))
        elif self._is_disk_told and not self._log.trouble:
            self._is_disk_told = False
            _log.info("%s: records are saved again", self._config.board)
        if self._log.is_due() and self._log.rotate():
            self._log.append(self._encode(Told("rotate", time.time(), "")))
        if not self._sync_timer and not self._log.is_synced:
            self._sync_timer = self._loop.call_later(SYNC_AFTER, self._sync)
        for news in self._news:
            news.set()

    def _encode(self, told: Told) -> bytes:
        number, quoted = self._recent.next, json.dumps(told.text)
        of = "" if told.of is None else f'"of": {told.of}, '
        record = f'{{"n": {number}, "t": {told.at:.6f}, {of}"kind": "{told.kind}", "text": {quoted}}}\n'.encode("ascii")
        self._recent.add(record)
        return record

    def _sync(self) -> None:
        """In a thread, since a disk may take long."""
        if self._syncing and not self._syncing.done():
            self._sync_timer = self._loop.call_later(SYNC_AFTER, self._sync)
            return
        self._sync_timer = None
        self._syncing = asyncio.ensure_future(asyncio.to_thread(self._sync_log))

    def _sync_log(self) -> None:
        try:
            self._log.sync()
        except OSError as error:
            _log.error("%s: the log is not on the disk: %s", self._config.board, error.strerror)

    # Listeners

    def _is_admitted(self, writer: asyncio.StreamWriter) -> bool:
        """Whether who connected may use the board's console. Nothing was read from it, or sent to it, before."""
        link: socket.socket = writer.get_extra_info("socket")
        if link.family == socket.AF_UNIX:
            return True  # its folder says who may come
        why = self._admission.why_refused(link)
        if why is None:
            return True
        if why not in self._refused:
            self._refused.add(why)
            _log.warning("%s: a connection is refused: %s", self._config.board, why)
        # Without a wait for its end: strangers could fill the kernel's tables with such ends.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False

    async def _on_raw(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_admitted(writer):
            return
        self._raw.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                try:
                    self._to_source.put_nowait(data)
                except queue.Full:
                    _log.warning("%s: %d bytes of input lost: the source is stuck", self._config.board, len(data))
        self._raw.discard(writer)
        writer.close()

    async def _on_lines(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_admitted(writer):
            return
        self._listeners.add(writer)
        try:
            request = json.loads(await reader.readline())
            if not isinstance(request, dict):
                raise ValueError("not an object")
            if request.get("mark"):
                await self._catch_up()
                answer: dict[str, object] = {"next": self._recent.next, "open": self._is_source_open}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
            elif request.get("source"):
                answer = {"open": self._is_source_open, "why": self._why_lost, "heard": self._heard}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
            else:
                since = request["since"]
                if type(since) is not int:
                    raise ValueError("since must be a whole number")
                await self._serve_lines(since, reader, writer)
        except ConnectionError:
            pass
        except (ValueError, KeyError, RecursionError) as error:
            answer = {"error": f'want {{"since": N}}, {{"mark": true}} or {{"source": true}}: {error}'}
            writer.write(json.dumps(answer).encode() + b"\n")
        finally:
            self._listeners.discard(writer)
            writer.close()

    async def _catch_up(self) -> None:
        """Have all records that there are, before somebody is told how far this is."""

    async def _serve_lines(self, since: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Records from ``since`` on, those there are and those to come; to one who says no more only those there are.

        A listener takes them at its own pace: one that is slow is given them from the files.
        """
        number = since if since >= 0 else self._recent.next + since + 1
        news = asyncio.Event()
        self._news.add(news)
        leaving = asyncio.ensure_future(_end_of(reader))
        leaving.add_done_callback(lambda _: news.set())
        try:
            while True:
                news.clear()
                if number < (first := self._recent.first):
                    with self._log.history(number, first) as blocks:
                        while block := await asyncio.to_thread(next, blocks, b""):
                            writer.write(block)
                            await writer.drain()
                    number = first
                elif records := self._recent.since(number):
                    number += len(records)
                    writer.write(b"".join(records))
                    await writer.drain()
                elif leaving.done():
                    return
                else:
                    await news.wait()
        finally:
            self._news.discard(news)
            leaving.cancel()


async def _end_of(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass


async def _listen(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], port: int, what: str, board: str
) -> asyncio.Server:
    try:
        return await asyncio.start_server(handler, HOST, port, start_serving=False)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        holder = listener_uid(HOST, port)
        by = f" by {user(holder)}" if holder not in (None, os.geteuid()) else ""
        raise UsageError(f"{board}: console.{what} {port}: {reason}{by}") from None


async def _listen_at(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], path: Path
) -> asyncio.Server:
    """On a Unix socket, in a folder that is the lab's user's alone."""
    try:
        return await asyncio.start_unix_server(handler, path, start_serving=False)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def main(arguments: list[str] | None = None, kind: type[Recorder] = Recorder) -> int:
    """Run a recorder; 0 after SIGTERM, 2 when it could not start."""
    parser = argparse.ArgumentParser(prog="lab.console.recorder", description="Record one board's console.")
    parser.add_argument("--config", type=Path, required=True, help="JSON, as RecorderConfig writes it")
    config_path = parser.parse_args(arguments).config
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(kind(RecorderConfig.read(config_path)).run())
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
