"""The records of one board on disk: ``BOARD.jsonl`` and the files that it was rotated to."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_log = logging.getLogger(__name__)

ROTATED_KEPT = 4  # old files
UNSAVED_LIMIT = 16 << 20  # bytes that wait in memory for room on the disk
RECORD_LIMIT = 64 << 10  # bytes; a line of LINE_LIMIT NULs, six bytes each in JSON, takes 49 KB
_BLOCK = 128 << 10  # bytes of history that are read at once
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in its place is an error
_SAVE_AGAIN = 1.0  # seconds between two attempts to write to a disk that refused


class ConsoleLog:
    """The records of one board on disk, one JSON object a line, numbered on over restarts.

    :meth:`sync` and the blocks of :meth:`history` may be used in other threads; all else belongs to one thread.
    """

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        self._path, self._rotate_bytes = path, rotate_bytes
        self._handle = -1
        self._size = 0
        self._unsaved = bytearray()
        self._again_at = 0.0
        self._syncing = threading.Lock()
        self._retired: list[int] = []  # files that were rotated away, and are not synced yet
        self.is_synced = True
        self.trouble: str | None = None  # why records wait in memory for the disk

    def open(self) -> int:
        """Begin to append; the number of the next record.

        What stands behind the last whole record is cut off: a crash tore it, or a power cut left zeros there.

        :raises OSError: the directory or the file cannot be had.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last = {path: _last_record(path) for path in self._files()}
        self._open()
        end = last.get(self._path, _NONE).end
        if end < self._size:
            _log.warning("%s: %d bytes behind the last whole record are cut off", self._path, self._size - end)
            os.ftruncate(self._handle, end)
            self._size = end
            os.fsync(self._handle)
        _sync_folder(self._path.parent)
        return max((one.number for one in last.values()), default=0) + 1

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
            self.trouble, self.is_synced = None, False
        except OSError as error:
            self._is_refused(error)
            self._shed()

    def sync(self) -> None:
        """Have all that was appended on the disk, with the names of rotated files.

        :raises OSError: the disk fails.
        """
        with self._syncing:
            self.is_synced = True
            retired, self._retired = self._retired, []
            handle = os.dup(self._handle) if self._handle >= 0 else -1
            try:
                for old in retired:
                    os.fsync(old)
                if retired:
                    _sync_folder(self._path.parent)
                if handle >= 0:
                    os.fdatasync(handle)
            finally:
                for old in [*retired, *([handle] if handle >= 0 else [])]:
                    os.close(old)

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
            with self._syncing:
                self._retired.append(self._handle)
                self._handle = -1
            self._open()
        except OSError as error:
            self._is_refused(error)
            return False
        self.is_synced = False
        return True

    def close(self) -> None:
        """Stop writing; all that the disk took is on it."""
        with contextlib.suppress(OSError):
            self.sync()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @contextlib.contextmanager
    def history(self, since: int, until: int) -> Iterator[Iterator[bytes]]:
        """Records from ``since`` to before ``until``, oldest first, as blocks of whole lines.

        The files are opened here, in the thread that rotates them: so a rotation meanwhile takes nothing away.
        """
        with contextlib.ExitStack() as stack:
            streams: list[BinaryIO] = []
            for path in self._files():
                with contextlib.suppress(FileNotFoundError):
                    streams.append(stack.enter_context(path.open("rb")))
            yield _blocks(streams, bytes(self._unsaved), since, until)

    def read(self, since: int, until: int) -> Iterator[bytes]:
        """The same, record by record."""
        with self.history(since, until) as blocks:
            for block in blocks:
                yield from block.splitlines(keepends=True)

    def last_heard(self) -> float | None:
        """When the newest line of the board was recorded, in seconds since the epoch; None if there is none."""
        for path in reversed(self._files()):
            # In a record's text quotes are escaped, so these are found nowhere else.
            newest = max(_last_record(path, f'"kind": "{kind}"'.encode()) for kind in ("line", "partial"))
            if newest.number:
                return newest.time
        return None

    def last_of(self) -> int:
        """The newest number of the record that this one is a copy of; 0 if nothing was copied yet."""
        for path in reversed(self._files()):
            if number := _last_record(path, b'"of": ').number:
                return int(json.loads(b"".join(self.read(number, number + 1)))["of"])
        return 0

    def _open(self) -> None:
        self._handle = os.open(self._path, _APPEND, 0o644)
        self._size = os.fstat(self._handle).st_size

    def _files(self) -> list[Path]:
        """The files that there are, oldest first."""
        paths = [self._numbered(number) for number in range(ROTATED_KEPT, 0, -1)] + [self._path]
        return [path for path in paths if path.exists() and stat.S_ISREG(path.stat().st_mode)]

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _is_refused(self, error: OSError) -> None:
        self.trouble = error.strerror or str(error)
        self._again_at = time.monotonic() + _SAVE_AGAIN

    def _shed(self) -> None:
        """Forget the oldest whole lines, when too many wait."""
        if len(self._unsaved) > UNSAVED_LIMIT:
            cut = self._unsaved.find(b"\n", len(self._unsaved) - UNSAVED_LIMIT // 2)
            del self._unsaved[:cut]  # the newline stays, and ends a line the disk took half of


def _sync_folder(folder: Path) -> None:
    """A name that was made or changed is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Found(NamedTuple):
    """A record in a file."""

    number: int
    time: float
    end: int  # offset of what stands behind it


_NONE = _Found(0, 0.0, 0)


def _last_record(path: Path, having: bytes = b"\n") -> _Found:
    """The last whole record of a file that has these bytes; number 0 if there is none."""
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return _NONE
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            place = text.rfind(having)
            while place >= 0:
                newline = text.find(b"\n", place)
                start = max(text.rfind(b"\n", max(0, place - RECORD_LIMIT), place) + 1, place - RECORD_LIMIT)
                if newline >= 0 and (found := _whole(text[start : newline + 1])):
                    return _Found(*found, newline + 1)
                place = text.rfind(having, 0, place)
    return _NONE


def _whole(line: bytes) -> tuple[int, float] | None:
    """Number and time of a record; None for what is no whole one."""
    line = line.lstrip(b"\0")  # what a power cut left before it
    if not _number(line):
        return None
    try:
        record = json.loads(line)
        is_record = isinstance(record["kind"], str) and isinstance(record["text"], str)
        return (int(record["n"]), float(record["t"])) if is_record else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _number(line: bytes) -> int | None:
    """The number of a record, which stands first; None for what is no record."""
    head, _, rest = line.partition(b":")
    digits = rest.partition(b",")[0].strip()
    return int(digits) if head == b'{"n"' and digits.isdigit() and len(digits) < 20 else None


def _blocks(streams: list[BinaryIO], unsaved: bytes, since: int, until: int) -> Iterator[bytes]:
    for stream in streams:
        for block in _of_whole_lines(stream):
            if chosen := _chosen(block, since, until):
                since = chosen[-1][0] + 1
                yield b"".join(line for _, line in chosen)
    if chosen := _chosen(unsaved, since, until):
        yield b"".join(line for _, line in chosen)


def _of_whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(_BLOCK):
        whole, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield whole + newline
        rest = rest[-RECORD_LIMIT:]  # a longer line is no record


def _chosen(block: bytes, since: int, until: int) -> list[tuple[int, bytes]]:
    """The whole records of a block with numbers from ``since`` to before ``until``, in their order."""
    last = _number(block[block.rfind(b"\n", 0, -1) + 1 :])
    if last is not None and last < since:
        return []
    found = []
    for line in block.splitlines(keepends=True):
        line = line.lstrip(b"\0")  # what a power cut left before it
        number = _number(line)
        if number is not None and since <= number < until and line.endswith(b'"}\n'):
            found.append((number, line))
            since = number + 1
    return found
