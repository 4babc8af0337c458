"""The one reader of a board's console: ``python -m lab.console.recorder --config FILE.json``.

It runs in the foreground until SIGTERM, under a supervisor. Raw bytes are served on ``serve_port``, records
on ``lines_port``, both on loopback; records are kept in ``<directory>/<board>.jsonl``. The ports, their
protocol and the kinds of record are described in docs/architecture.md, "Console".
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
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.base.errors import UsageError
from lab.console import LOG_TROUBLE, sources
from lab.console.config import RecorderConfig
from lab.console.lines import Lines
from lab.console.log import Log
from lab.console.sources import SourceLost

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SILENCE = 0.3  # seconds after which text without a newline is told as it is: a prompt, a menu
BACKOFF = (0.2, 5.0)  # seconds between two attempts to open the source: the first, and the longest
REMEMBERED = 50_000  # records held in memory; older ones are read back from the files

# A listener that lags by more is dropped, so that one that sleeps cannot fill our memory. One of lines loses
# nothing by it: it asks again from where it was.
RAW_LAG = 1 << 20
LINES_LAG = 8 << 20


class Feed:
    """One listener of lines: first the history it asked for, then what comes."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._backlog: list[bytes] | None = []  # what came while history was sent
        self._lag = 0

    def tell(self, records: bytes) -> bool:
        """Pass new records on; whether the listener keeps up."""
        if self._backlog is None:
            self._writer.write(records)
            self._lag = self._writer.transport.get_write_buffer_size()
        else:
            self._backlog.append(records)
            self._lag += len(records)
        if self._lag > LINES_LAG:
            self._writer.transport.abort()
            return False
        return True

    async def send_history(self, history: list[bytes]) -> None:
        """Send what is older than everything told."""
        for start in range(0, len(history), 500):
            self._writer.write(b"".join(history[start : start + 500]))
            await self._writer.drain()

    async def go_live(self) -> None:
        """Send what came meanwhile, and from now on what comes."""
        while self._backlog:
            pending, self._backlog, self._lag = b"".join(self._backlog), [], 0
            self._writer.write(pending)
            await self._writer.drain()
        self._backlog = None


class Recorder:
    """Reads one source for ever, and tells everybody."""

    def __init__(self, config: RecorderConfig) -> None:
        self._config = config
        self._source = sources.of(config.console, config.bmc)
        self._log = Log(config.directory / f"{config.board}.jsonl", config.rotate_bytes)
        self._ready = config.directory / f"{config.board}.ready"
        self._lines = Lines()
        self._next = 1
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED)
        self._last_byte = 0.0  # time of it
        self._silence: asyncio.TimerHandle | None = None
        self._is_source_open = False
        self._disk_told = False
        self._raw: set[asyncio.StreamWriter] = set()
        self._feeds: dict[asyncio.StreamWriter, Feed] = {}
        self._stop = threading.Event()
        self._source_lock = threading.Lock()  # held while writing and while closing: a descriptor is reused at once
        self._to_source: queue.Queue[bytes] = queue.Queue(maxsize=1000)
        self._loop: asyncio.AbstractEventLoop

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        :raises UsageError: a port is taken, or the directory cannot be written.
        """
        self._loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopped.set)
        console, servers = self._config.console, []
        threads = [threading.Thread(target=self._follow_source, name="source", daemon=True)]
        threads += [threading.Thread(target=self._feed_source, name="input", daemon=True)]
        try:
            # The log is touched only once the ports are ours: another recorder may be writing it.
            serve = await _listen(self._on_raw, console.serve_port, "serve_port", self._config.board)
            servers.append(serve)
            lines = await _listen(self._on_lines, console.lines_port, "lines_port", self._config.board)
            servers.append(lines)
            try:
                self._next = self._log.open()
            except OSError as error:
                raise UsageError(f"{self._config.board}: {self._config.directory}: {error.strerror}") from None
            if self._next > 1:
                self._tell([("gap", time.time(), "the recorder was started anew")])
            for server in servers:
                try:
                    await server.start_serving()
                except OSError as error:  # two recorders started at the same moment
                    raise UsageError(f"{self._config.board}: {error.strerror}") from None
            for thread in threads:
                thread.start()
            self._announce()
            await stopped.wait()
        finally:
            self._stop.set()
            for server in servers:
                server.close()
            if threads[0].is_alive():
                await asyncio.to_thread(threads[0].join, 15.0)
            self._cut()
            for writer in [*self._raw, *self._feeds]:
                writer.close()
            if self._is_announced():
                self._ready.unlink(missing_ok=True)
            self._log.close()
            await asyncio.sleep(0)  # lets the transports close

    def _announce(self) -> None:
        fresh = self._ready.with_name(f".{self._ready.name}.{os.getpid()}")
        fresh.write_text(f"{os.getpid()}\n")
        os.replace(fresh, self._ready)

    def _is_announced(self) -> bool:
        try:
            return self._ready.read_text().strip() == str(os.getpid())
        except OSError:
            return False

    # The source, in threads of its own

    def _follow_source(self) -> None:
        backoff, told = BACKOFF[0], ""
        while not self._stop.is_set():
            try:
                self._source.open()
                backoff, told = BACKOFF[0], ""
                self._post(self._on_open)
                while not self._stop.is_set():
                    if data := self._source.read():
                        self._post(self._on_bytes, data, time.time())
            except SourceLost as error:
                why = str(error)
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
            self._stop.wait(backoff)
            backoff = min(backoff * 2, BACKOFF[1])
        with self._source_lock:
            self._source.close()

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
        self._is_source_open = True
        self._tell([("open", time.time(), "")])

    def _on_lost(self, why: str, at: float) -> None:
        self._is_source_open = False
        self._cut()
        self._tell([("gap", at, why)])

    def _on_bytes(self, data: bytes, at: float) -> None:
        for writer in list(self._raw):
            if writer.transport.get_write_buffer_size() > RAW_LAG:
                _log.warning("%s: a listener of bytes is too slow: dropped", self._config.board)
                self._raw.discard(writer)
                writer.transport.abort()
            else:
                writer.write(data)
        self._last_byte = at
        if lines := self._lines.feed(data):
            self._tell([("line", at, text) for text in lines])
        if self._silence:
            self._silence.cancel()
        self._silence = self._loop.call_later(SILENCE, self._on_silence)

    def _on_silence(self) -> None:
        if text := self._lines.partial():
            self._tell([("partial", self._last_byte, text)])

    def _cut(self) -> None:
        """The source is gone: half a line is all there will be of it."""
        if self._silence:
            self._silence.cancel()
        if text := self._lines.cut():
            self._tell([("line", self._last_byte, text)])

    def _tell(self, records: list[tuple[str, float, str]]) -> None:
        """Number the records, keep them, and pass them on."""
        encoded = b"".join(self._encode(*record) for record in records)
        self._log.append(encoded)  # first: a number that was told must not be given again after a crash
        if self._log.trouble and not self._disk_told:
            self._disk_told = True
            _log.error("%s: records are not saved: %s", self._config.board, self._log.trouble)
            note = self._encode("gap", time.time(), f"{LOG_TROUBLE}not saved: {self._log.trouble}")
            self._log.append(note)
            encoded += note
        elif self._disk_told and not self._log.trouble:
            self._disk_told = False
            _log.info("%s: records are saved again", self._config.board)
        if self._log.is_due() and self._log.rotate():
            note = self._encode("rotate", time.time(), "")
            self._log.append(note)
            encoded += note
        for writer, feed in list(self._feeds.items()):
            if not feed.tell(encoded):
                _log.warning("%s: a listener of lines is too slow: dropped", self._config.board)
                del self._feeds[writer]

    def _encode(self, kind: str, at: float, text: str) -> bytes:
        number, self._next = self._next, self._next + 1
        record = json.dumps({"n": number, "t": round(at, 6), "kind": kind, "text": text}).encode() + b"\n"
        self._recent.append((number, record))
        return record

    # Listeners

    async def _on_raw(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        try:
            request = json.loads(await reader.readline())
            if not isinstance(request, dict):
                raise ValueError("not an object")
            if request.get("mark"):
                answer: dict[str, object] = {"next": self._next, "open": self._is_source_open}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
            else:
                await self._serve_lines(int(request["since"]), reader, writer)
        except ConnectionError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f'want {{"since": N}} or {{"mark": true}}: {error}'}
            writer.write(json.dumps(answer).encode() + b"\n")
        finally:
            self._feeds.pop(writer, None)
            writer.close()

    async def _serve_lines(self, since: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = since if since >= 0 else self._next + since + 1
        # No await from here to the next comment: history and what comes must meet without a seam.
        feed = self._feeds[writer] = Feed(writer)
        held_from = self._recent[0][0] if self._recent else self._next
        held = [record for number, record in self._recent if number >= first] if first < self._next else []
        # The rest of history is older than anything told from now on.
        if first < held_from:
            await feed.send_history(await asyncio.to_thread(lambda: list(self._log.read(first, held_from))))
        await feed.send_history(held)
        await feed.go_live()
        while await reader.read(4096):  # ends when the listener goes
            pass


async def _listen(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], port: int, what: str, board: str
) -> asyncio.Server:
    try:
        return await asyncio.start_server(handler, HOST, port, start_serving=False)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"{board}: console.{what} {port}: {reason}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run a recorder; 0 after SIGTERM, 2 when it could not start."""
    parser = argparse.ArgumentParser(prog="lab.console.recorder", description="Record one board's console.")
    parser.add_argument("--config", type=Path, required=True, help="JSON, as RecorderConfig writes it")
    config_path = parser.parse_args(arguments).config
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(Recorder(RecorderConfig.read(config_path)).run())
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
