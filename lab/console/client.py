"""The console of a board, followed from a test."""

from __future__ import annotations

import bisect
import contextlib
import json
import logging
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from lab.base.errors import BoardError, WaitTimeout
from lab.base.loopback import require_owner
from lab.base.wait import wait_until
from lab.console import HOST
from lab.inventory import BoardSpec

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

HELD_LIMIT = 64 << 20  # bytes of lines in memory, about; older ones are asked of the recorder again
_OVERHEAD = 250  # bytes that a held line takes beside its text
LAST_LINES = 8  # how many a WaitTimeout shows
_CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 10.0  # seconds; over the time a supervisor needs to start a recorder anew
_AGAIN = 0.1  # seconds between two attempts to reach the recorder
_POLL = 0.2  # how soon the follower notices close()


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """One record. Its kind is line, partial, gap, open, note or rotate; only the first two are the board's words."""

    board: str
    n: int
    time: float  # seconds since the epoch, when its last byte came
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far a recorder is."""

    next: int  # number of the next record
    is_source_open: bool

    @classmethod
    def read(cls, answer: bytes) -> _Mark:
        """:raises ValueError: it is no answer to a request for a mark."""
        try:
            said = json.loads(answer)
            return cls(int(said["next"]), bool(said["open"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"not a mark: {answer[:100]!r}") from None


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a recorder is with the source of its console."""

    is_open: bool
    why: str | None  # the reason of the last loss, or of never having had it; None while it is there
    heard: float | None  # seconds since the epoch when the board's last byte was recorded; None: never one

    @classmethod
    def read(cls, answer: bytes) -> SourceState:
        """:raises ValueError: it is no answer to a request for the source's state."""
        try:
            said = json.loads(answer)
            heard, why = said["heard"], said["why"]
            return cls(bool(said["open"]), None if why is None else str(why), None if heard is None else float(heard))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"not a source's state: {answer[:100]!r}") from None


def next_record(board: BoardSpec, *, timeout: float = 2.0) -> int:
    """The number the next record will have, asked once, of a recorder that runs as this process or as root.

    :raises BenchError: the recorder does not answer within ``timeout`` seconds.
    """
    return _ask_once(board, timeout, {"mark": True}, _Mark.read).next


def source_state(board: BoardSpec, *, timeout: float = 2.0) -> SourceState:
    """How the recorder is with its source, asked once, of a recorder that runs as this process or as root.

    :raises BenchError: the recorder does not answer within ``timeout`` seconds.
    """
    return _ask_once(board, timeout, {"source": True}, SourceState.read)


def _ask_once(
    board: BoardSpec, timeout: float, request: dict[str, object], read: Callable[[bytes], _Answer]
) -> _Answer:
    try:
        with _connect(HOST, board.console.lines_port, None, timeout) as link, link.makefile("rb") as stream:
            link.sendall(json.dumps(request).encode() + b"\n")
            return read(stream.readline())
    except (OSError, ValueError) as error:
        raise BoardError(board.name, f"console: no recorder answers: {error}") from None


def _connect(host: str, port: int, owner: int | None, timeout: float) -> socket.socket:
    """A connection to a recorder, proved to be the lab's before a byte is sent.

    :raises OSError: nobody listens, or somebody else does (PermissionError).
    """
    link = socket.create_connection((host, port), timeout)
    try:
        require_owner(link, os.geteuid() if owner is None else owner, "the lab's recorder", timeout)
    except BaseException:
        link.close()
        raise
    return link


class Console:
    """Follows a recorder in a thread of its own. All methods may be called from any thread.

    ``owner`` is the user (uid) that the recorder must run as, if not as root; None: as this process. A process of
    another user that has taken the port of a dead recorder is sent nothing, and nothing that it says is believed.
    ``answer_timeout``: seconds.
    """

    def __init__(
        self,
        board: str,
        host: str,
        serve_port: int,
        lines_port: int,
        *,
        owner: int | None = None,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._board, self._host, self._owner, self._answer_timeout = board, host, owner, answer_timeout
        self._serve_port, self._lines_port = serve_port, lines_port
        self._changed = threading.Condition()
        self._held: list[ConsoleLine] = []  # guarded by _changed, as are the five below
        self._held_size = 0
        self._next = 0  # number of the next to come
        self._is_followed = self._is_source_open = False
        self._listeners: list[Callable[[ConsoleLine], None]] = []
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None

    @classmethod
    def of(cls, board: BoardSpec) -> Self:
        """A board's console, of a recorder that runs as this process or as root."""
        return cls(board.name, HOST, board.console.serve_port, board.console.lines_port)

    def open(self) -> None:
        """Begin to follow, from now on; what was before is fetched when asked for.

        :raises BenchError: no recorder answers within 10 s.
        """
        if self._follower:
            return
        self._stop.clear()
        mark = self._ask_mark()
        with self._changed:
            self._forget()
            self._next, self._is_source_open = mark.next, mark.is_source_open
        self._follower = threading.Thread(target=self._follow, name=f"console {self._board}", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Stop following. Harmless twice."""
        follower, self._follower = self._follower, None
        self._stop.set()
        if follower and follower is not threading.current_thread():
            follower.join(_CONNECT_TIMEOUT + 1.0)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def mark(self) -> int:
        """The number the next record will have; all before it are in ``lines`` when this returns.

        :raises BenchError: no recorder answers within 10 s.
        """
        number = self._ask_mark().next
        if threading.current_thread() is not self._follower:  # a listener would wait for itself
            if not self._await_number(number - 1, self._answer_timeout):
                raise BoardError(self._board, "console: the recorder's lines do not arrive")
        return number

    def lines(self, since: int, until: int | None = None) -> list[ConsoleLine]:
        """Records from number ``since`` to before ``until``, of all kinds.

        :raises BenchError: they are older than this object, and no recorder answers.
        """
        since = max(since, 0)
        with self._changed:
            first = self._held[0].n if self._held else self._next
            held = self._held[self._index(since) :]
        older = list(self._fetch(since, min(first, until or first))) if since < first else []
        return [line for line in older + held if until is None or line.n < until]

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float, *, since: int) -> ConsoleLine:
        """The first line, finished or not, from number ``since`` on in which ``pattern`` is found.

        :raises WaitTimeout: none within ``timeout`` seconds; ``last`` has the last lines there were.
        """
        wanted, deadline = re.compile(pattern), time.monotonic() + timeout
        while True:
            lines = self.lines(since)
            for line in lines:
                if line.kind in ("line", "partial") and wanted.search(line.text):
                    return line
            since = max([since, *(line.n + 1 for line in lines[-1:])])
            if not self._await_number(since, deadline - time.monotonic()):
                raise WaitTimeout(
                    f"{self._board}: console /{wanted.pattern}/", timeout, self._last_words(), board=self._board
                )

    def quiet(self, seconds: float = 0.3, limit: float = 3.0) -> None:
        """Wait until nothing has come for so long: what was being printed, a dump say, is whole. At most ``limit``.

        Lines of 115200 baud are 10 ms apart.
        """
        deadline = time.monotonic() + limit
        with self._changed:
            seen = self._next
        while self._await_number(seen, min(seconds, deadline - time.monotonic())):
            with self._changed:
                seen = self._next

    def listen(self, callback: Callable[[ConsoleLine], None]) -> Callable[[], None]:
        """Call ``callback`` with each record to come, in the follower's thread; returns what ends that."""
        with self._changed:
            self._listeners.append(callback)

        def unsubscribe() -> None:
            with self._changed, contextlib.suppress(ValueError):
                self._listeners.remove(callback)

        return unsubscribe

    def send(self, data: bytes) -> None:
        """Type ``data`` on the console. When this returns the recorder has it; the board may be deaf.

        :raises BenchError: the recorder does not take it.
        """
        try:
            with self._connect_raw() as link:
                link.sendall(data)
                # Closed at once, with output of the board unread, TCP would throw away what we sent.
                link.shutdown(socket.SHUT_WR)
                while link.recv(65536):
                    pass
        except OSError as error:
            raise BoardError(self._board, f"console: input not taken: {error}") from None

    def attach(self) -> socket.socket:
        """A connection to the raw console: what is read from it the board printed, what is sent to it is typed.

        :raises BenchError: no recorder takes it.
        """
        try:
            return self._connect_raw()
        except OSError as error:
            raise BoardError(self._board, f"no recorder on port {self._serve_port}: {error}") from None

    def is_connected(self) -> bool:
        """Whether the recorder is reached and has its source."""
        with self._changed:
            return self._is_followed and self._is_source_open

    # Asking the recorder

    def _ask_mark(self) -> _Mark:
        """The recorder's answer, if need be after it was started anew."""
        why = ""

        def answered() -> _Mark | None:
            nonlocal why
            try:
                return self._ask_mark_once()
            except (OSError, ValueError) as error:
                why = str(error)
                return None

        try:
            mark = wait_until(answered, self._answer_timeout, "the recorder's answer", interval=_AGAIN)
        except WaitTimeout:
            raise BoardError(self._board, f"console: no recorder answers: {why}") from None
        assert mark
        return mark

    def _ask_mark_once(self) -> _Mark:
        """:raises OSError, ValueError: no recorder answers, or it answers something else."""
        with self._request({"mark": True}) as link, link.makefile("rb") as stream:
            return _Mark.read(stream.readline())

    def _fetch(self, since: int, until: int) -> Iterator[ConsoleLine]:
        """Records before ``until``, of a connection of its own."""
        if since >= until:
            return
        try:
            with self._request({"since": since}) as link, link.makefile("rb") as stream:
                for encoded in stream:
                    for line in self._lines([encoded]):
                        if line.n < until:
                            yield line
                        if line.n >= until - 1:
                            return
        except (OSError, ValueError) as error:
            raise BoardError(self._board, f"console: no recorder answers: {error}") from None

    def _connect_raw(self) -> socket.socket:
        return _connect(self._host, self._serve_port, self._owner, _CONNECT_TIMEOUT)

    def _request(self, request: dict[str, object]) -> socket.socket:
        link = _connect(self._host, self._lines_port, self._owner, _CONNECT_TIMEOUT)
        link.settimeout(self._answer_timeout)
        try:
            link.sendall(json.dumps(request).encode() + b"\n")
        except BaseException:
            link.close()
            raise
        return link

    # The follower

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._check_numbering()
                with self._request({"since": self._next}) as link:
                    with self._changed:
                        self._is_followed = True
                    self._take_lines(link)
            except (OSError, ValueError) as error:
                _log.debug("%s: recorder: %s", self._board, error)
            with self._changed:
                self._is_followed = False
            self._stop.wait(_AGAIN)

    def _check_numbering(self) -> None:
        """Do not wait for old numbers when the records were deleted and begin at 1 again."""
        mark = self._ask_mark_once()
        with self._changed:
            if mark.next < self._next:
                _log.warning("%s: the recorder numbers from 1 again", self._board)
                self._forget()
                self._next = 1

    def _take_lines(self, link: socket.socket) -> None:
        """Until the recorder goes or we are closed."""
        rest = b""
        while not self._stop.is_set():
            if not select.select([link], [], [], _POLL)[0]:
                continue
            data = link.recv(1 << 18)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            if whole:
                self._take(self._lines(whole))

    def _take(self, lines: list[ConsoleLine]) -> None:
        with self._changed:
            lines = [line for line in lines if line.n >= self._next]
            if not lines:
                return
            self._held += lines
            self._next = lines[-1].n + 1
            for line in lines:
                self._held_size += len(line.text) + _OVERHEAD
                if line.kind in ("gap", "open"):
                    self._is_source_open = line.kind == "open"
            if self._held_size > HELD_LIMIT:
                self._forget_oldest()
            listeners = list(self._listeners)
            self._changed.notify_all()
        for line in lines:
            for listener in listeners:
                try:
                    listener(line)
                except Exception:  # one listener's bug must not blind the others
                    _log.exception("%s: a console listener failed", self._board)

    def _forget(self) -> None:
        self._held.clear()
        self._held_size = 0

    def _forget_oldest(self) -> None:
        """A quarter of what is held, so that it is done now and then and not at each line."""
        count = 0
        while self._held_size > HELD_LIMIT * 3 // 4:
            self._held_size -= len(self._held[count].text) + _OVERHEAD
            count += 1
        del self._held[:count]

    def _lines(self, encoded: list[bytes]) -> list[ConsoleLine]:
        """The records, without those that a power cut has damaged: one of them must not hide all others.

        :raises ValueError: what was sent is none, damaged or not.
        """
        try:
            records = json.loads(b"[" + b",".join(encoded) + b"]")
            return [
                ConsoleLine(self._board, int(one["n"]), float(one["t"]), str(one["kind"]), str(one["text"]))
                for one in records
            ]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if len(encoded) > 1:
                return [line for one in encoded for line in self._lines([one])]
            if not encoded[0].startswith(b'{"n": '):
                raise ValueError(f"not a record: {encoded[0][:100]!r}: {error}") from None
            _log.warning("%s: a damaged record is passed over: %.100r", self._board, encoded[0])
            return []

    def _await_number(self, number: int, timeout: float) -> bool:
        """Wait for the record of this number; whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next > number, max(0.0, timeout))

    def _index(self, number: int) -> int:
        """Where in ``_held`` the records from ``number`` on begin."""
        return bisect.bisect_left(self._held, number, key=lambda line: line.n)

    def _last_words(self) -> str:
        with self._changed:
            last = [line for line in self._held[-4 * LAST_LINES :] if line.kind != "rotate"][-LAST_LINES:]
        if not last:
            return "nothing since the console was opened"
        return "".join(f"\n  {line.text if line.kind == 'line' else f'[{line.kind}] {line.text}'}" for line in last)
