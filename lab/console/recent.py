"""The newest records of a console, held in memory for those who listen."""

from __future__ import annotations

# Bytes, with what Python itself takes for each record; older ones are read back from the files.
MEMORY_LIMIT = 8 << 20
_OVERHEAD = 64  # bytes: an object, and its place in the list
_AT_ONCE = 500  # records


class Recent:
    """Records by their numbers, which have no holes; the oldest are forgotten."""

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self._limit = limit
        self._records: list[bytes] = []
        self._size = 0
        self._forgotten = 0  # how many of the list's beginning are to be dropped
        self.next = 1  # number of the next record

    def begin(self, number: int) -> None:
        """Count from this number on; nothing is held yet."""
        self.next = number

    @property
    def first(self) -> int:
        """Number of the oldest record that is held; that of the next one if none is."""
        return self.next - len(self._records) + self._forgotten

    def add(self, record: bytes) -> None:
        """Hold the next record."""
        self._records.append(record)
        self.next += 1
        self._size += len(record) + _OVERHEAD
        while self._size > self._limit:
            self._size -= len(self._records[self._forgotten]) + _OVERHEAD
            self._records[self._forgotten] = b""
            self._forgotten += 1
        if self._forgotten > len(self._records) // 2:  # not each time: the rest of the list moves
            del self._records[: self._forgotten]
            self._forgotten = 0

    def since(self, number: int) -> list[bytes]:
        """Some hundred records from this number on, which must not be forgotten; none: there is nothing newer."""
        start = number - self.first + self._forgotten
        return self._records[start : start + _AT_ONCE]
