"""The records of one board on disk: ``BOARD.jsonl`` and the files that it was rotated to."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from lab.console.lines import LINE_LIMIT

ROTATED_KEPT = 4  # old files
UNSAVED_LIMIT = 16 << 20  # bytes that wait in memory for room on the disk
_SAVE_AGAIN = 1.0  # seconds between two attempts to write to a disk that refused


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
