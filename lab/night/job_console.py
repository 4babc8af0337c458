"""The console of a job, as bytes for its script: what the board said since the job began, then what it says.

The end of it is told at once: a crash, the loss of the lease, the script's leaving.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.base.errors import BenchError, BoardError, UsageError
from lab.console.catching_up import catch_up
from lab.console.client import Console, ConsoleLine
from lab.inventory import BoardSpec
from lab.leases.console_access import Writer
from lab.night.job import Job, Watch

LOOK = 0.5  # seconds between two looks at what may end the stream besides the console
QUIET = 0.4  # seconds of silence after which a dump is whole
DUMP = 5.0  # seconds for a dump at most: Xen reboots the board after 5
UNREAD_LIMIT = 8 << 20  # bytes that the script may leave unread
_PIECE = 4096  # bytes that a pipe takes without blocking, once it takes any (pipe(7), PIPE_BUF)
_ENDED = select.POLLERR | select.POLLHUP | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Where the script's words come from, and where the console's go."""

    words: int = 0
    out: int = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a stream ended."""

    how: str
    crash: ConsoleLine | None = None
    is_over: bool = False  # the job itself is over, and recorded: the board was powered off


class JobConsole:
    """One stream, from its beginning to its end (:meth:`run`)."""

    def __init__(self, board: BoardSpec, job: Job, watch: Watch, writer: Writer, ends: Descriptors) -> None:
        self._board, self._job, self._watch, self._writer, self._ends = board, job, watch, writer, ends
        self._crash: ConsoleLine | None = None
        self._seen = threading.Event()
        self._unread, self._limit = bytearray(), UNREAD_LIMIT
        self._may_type: bool | None = None  # None: nothing was typed yet
        self._is_heard = True  # there may be more words of the script

    def run(self, look: Callable[[], str | None], say: Callable[[str], None]) -> Ended:
        """Stream until there is a reason to end.

        :param look: asked twice a second: whether the job is over, and how; None: it goes on. May raise.
        :param say: takes what the script's reader should know.
        :raises BenchError: no recorder answers, or the script does not read what it is given.
        """
        try:
            with Console.of(self._board) as console, console.attach() as line:
                unsubscribe = console.listen(self._take)
                try:
                    for record in console.lines(self._job.since, console.mark()):
                        self._take(record)
                    self._unread += catch_up(console, line, self._job.since)
                    self._limit += len(self._unread)  # the past is not the script's delay
                    return self._pump(line, look, say)
                finally:
                    unsubscribe()
        finally:
            if self._may_type:
                self._writer.end()

    def _take(self, record: ConsoleLine) -> None:
        """Of the follower's thread, and of the main one."""
        if not self._seen.is_set() and record.n >= self._job.since and self._watch.is_crash(record):
            self._crash = record
            self._seen.set()

    def _pump(self, line: socket.socket, look: Callable[[], str | None], say: Callable[[str], None]) -> Ended:
        looked = heard = time.monotonic()
        crashed: float | None = None
        while True:
            now = time.monotonic()
            if self._seen.is_set():
                crashed = now if crashed is None else crashed
                if (now - max(heard, crashed) >= QUIET or now - crashed >= DUMP) and not self._unread:
                    assert self._crash
                    return Ended(f"a crash ended the console: {self._crash.text.strip()}", self._crash)
                if now - crashed >= 2 * DUMP:  # the script does not even read that
                    return Ended("a crash, and nobody reads the console", self._crash)
            if now - looked >= LOOK:
                looked = now
                if why := look():
                    return Ended(why, is_over=True)
            events = self._wait(line)
            if events.get(self._ends.out, 0) & _ENDED:
                return Ended("the job left the console")
            if events.get(line.fileno()):
                heard = time.monotonic()
                self._hear(line)
            if events.get(self._ends.out, 0) & select.POLLOUT:
                del self._unread[: os.write(self._ends.out, self._unread[:_PIECE])]
            if events.get(self._ends.words):
                self._pass_on(line, say)

    def _wait(self, line: socket.socket) -> dict[int, int]:
        poll = select.poll()
        poll.register(line, select.POLLIN)
        poll.register(self._ends.out, select.POLLOUT if self._unread else 0)  # its loss is always told
        if self._is_heard:
            poll.register(self._ends.words, select.POLLIN)
        return dict(poll.poll(100 if self._seen.is_set() else int(LOOK * 1000)))

    def _hear(self, line: socket.socket) -> None:
        data = line.recv(65536)
        if not data:
            raise BoardError(self._board.name, "the recorder ended the connection")
        self._unread += data
        if len(self._unread) > self._limit:
            raise BoardError(self._board.name, f"the job has left {len(self._unread) >> 20} MiB of the console unread")

    def _pass_on(self, line: socket.socket, say: Callable[[str], None]) -> None:
        """What the script types, as long as no person types."""
        typed = os.read(self._ends.words, _PIECE)
        if not typed:  # it sends no more, and may go on reading
            self._is_heard = False
            return
        if self._may_type is None:
            try:
                self._writer.begin(take=False)
                self._may_type = True
            except UsageError as error:
                self._may_type = False
                say(f"not typed: {str(error).partition(';')[0]}")
        if self._may_type and self._writer.now() == self._writer.name:
            try:
                line.sendall(typed)
            except OSError as error:
                raise BenchError(f"{self._board.name}: input not taken: {error}") from None
