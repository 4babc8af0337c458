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
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lab.base.errors import UsageError
from lab.console import LOG_TROUBLE, sources
from lab.console.sources import SourceLost
from lab.inventory import BmcSpec, ConsoleSpec

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SILENCE = 0.3  # seconds after which text without a newline is told as it is: a prompt, a menu
LINE_LIMIT = 8192  # bytes; longer lines are split
ROTATE_BYTES = 16 << 20
ROTATED_KEPT = 4
BACKOFF = (0.2, 5.0)  # seconds between two attempts to open the source: the first, and the longest
REMEMBERED = 50_000  # records held in memory; older ones are read back from the files

# A listener that lags by more is dropped, so that one that sleeps cannot fill our memory. One of lines loses
# nothing by it: it asks again from where it was.
RAW_LAG = 1 << 20
LINES_LAG = 8 << 20
UNSAVED_LIMIT = 16 << 20  # bytes waiting for room on the disk
_SAVE_AGAIN = 1.0  # seconds between two attempts to write to a disk that refused


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What a recorder is told. Holds no secret: the BMC's credential is named."""

    board: str
    console: ConsoleSpec
    bmc: BmcSpec
    directory: Path
    rotate_bytes: int = ROTATE_BYTES

    def write(self, path: Path) -> None:
        """Save as JSON for :meth:`read`."""
        values = asdict(self) | {"directory": str(self.directory)}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RecorderConfig:
        """Load what :meth:`write` saved.

        :raises UsageError: unreadable, or something is missing, unknown or of the wrong type.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None
        own = _checked(path, "", values, cls)
        own["console"] = ConsoleSpec(**_checked(path, "console.", own["console"], ConsoleSpec))
        own["bmc"] = BmcSpec(**_checked(path, "bmc.", own["bmc"], BmcSpec))
        own["directory"] = Path(own["directory"])
        return cls(**own)


def _checked(path: Path, prefix: str, values: object, wanted: type[Any]) -> dict[str, Any]:
    """``values`` as keyword arguments of the dataclass ``wanted``."""
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {prefix or 'the file'} must be an object")
    known = {field.name: field for field in fields(wanted)}
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown key {prefix}{key}; known: {', '.join(known)}")
    for key, field in known.items():
        kind = {"str": str, "int": int, "Path": str}.get(str(field.type))
        if key in values and kind and type(values[key]) is not kind:
            raise UsageError(f"{path}: {prefix}{key}: must be {'a number' if kind is int else 'text'}")
    try:
        wanted(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {prefix or 'the file'}: {error}") from None
    return dict(values)


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


class Log:
    """The records of one board on disk, one JSON object a line, numbered on over restarts."""

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        self._path, self._rotate_bytes = path, rotate_bytes
        self._handle = -1
        self._size = 0
        self._unsaved = bytearray()
        self._again_at = 0.0
        self.trouble = ""  # why records wait in memory for the disk

    def open(self) -> int:
        """Begin to append; the number of the next record.

        :raises OSError: the directory or the file cannot be had.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last, torn = 0, 0
        for path in self._files():
            tail = _tail(path)
            if path == self._path:
                torn = len(tail) - (tail.rfind(b"\n") + 1)
                tail = tail[: len(tail) - torn]
            last = max([last, *(number for line in tail.splitlines() if (number := _number(line)) is not None)])
        self._open()
        if torn:  # by a crash, before anybody was told of it
            self._size -= torn
            os.ftruncate(self._handle, self._size)
        return last + 1

    def append(self, records: bytes) -> None:
        """Write whole lines. A disk that refuses is tried again later; nothing is raised."""
        self._unsaved += records
        if self.trouble and time.monotonic() < self._again_at:
            self._shed()
            return
        try:
            if self._handle < 0:
                self._open()
            while self._unsaved:
                written = os.write(self._handle, self._unsaved)
                del self._unsaved[:written]
                self._size += written
            self.trouble = ""
        except OSError as error:
            self.trouble = error.strerror or str(error)
            self._again_at = time.monotonic() + _SAVE_AGAIN
            self._shed()

    def is_due(self) -> bool:
        """Whether it is time to rotate."""
        return self._size >= self._rotate_bytes and not self.trouble

    def rotate(self) -> bool:
        """Put the file away as ``.1``, and forget the oldest; whether that could be done."""
        try:
            for number in range(ROTATED_KEPT - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self._numbered(number), self._numbered(number + 1))
            os.replace(self._path, self._numbered(1))
            self.close()
            self._open()
        except OSError as error:
            self.trouble = error.strerror or str(error)
            self._again_at = time.monotonic() + _SAVE_AGAIN
            return False
        return True

    def close(self) -> None:
        """Stop writing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def read(self, since: int, until: int) -> Iterator[bytes]:
        """Records from ``since`` to before ``until``, oldest first, as they stand in the files."""
        for path in self._files():
            if _last_number(path) < since:
                continue
            try:
                with path.open("rb") as stream:
                    for line in stream:
                        number = _number(line)
                        if number is not None and since <= number < until and line.endswith(b'"}\n'):
                            yield line
            except FileNotFoundError:  # rotated away meanwhile
                continue

    def _open(self) -> None:
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._handle).st_size

    def _files(self) -> list[Path]:
        """What there is, oldest first."""
        paths = [self._numbered(number) for number in range(ROTATED_KEPT, 0, -1)] + [self._path]
        return [path for path in paths if path.exists() and stat.S_ISREG(path.stat().st_mode)]

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _shed(self) -> None:
        """Forget the oldest whole lines, when too many wait."""
        if len(self._unsaved) > UNSAVED_LIMIT:
            cut = self._unsaved.find(b"\n", len(self._unsaved) - UNSAVED_LIMIT // 2)
            del self._unsaved[:cut]  # the newline stays, and ends a line the disk took half of


def _tail(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 8 * LINE_LIMIT))
        return stream.read()


def _last_number(path: Path) -> int:
    try:
        numbers = [number for line in _tail(path).splitlines() if (number := _number(line)) is not None]
    except FileNotFoundError:
        return -1
    return numbers[-1] if numbers else -1


def _number(line: bytes) -> int | None:
    """The number of a record, which stands first; None for what is no record."""
    head, _, rest = line.partition(b":")
    digits = rest.partition(b",")[0].strip()
    return int(digits) if head == b'{"n"' and digits.isdigit() else None


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
