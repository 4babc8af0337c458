"""Stands between xl and its transport in the source's dom0, and breaks a live migration at an exact point.

``python3 -m lab.on_board.proxy --log FILE --control DIR [--action KIND@WHERE[=ARGUMENT]]... -- COMMAND...``

COMMAND is the transport (``ssh PEER xl migrate-receive``). stdin has the sender's stream, stdout gets the receiver's
answers. An action is taken once, before the bytes at WHERE are passed on:

``STEP``, ``STEP:N``  the first (N-th) such step, in either direction
``PAGE_DATA:passN``   the first record of the N-th pass over memory
``>B``, ``<B``        byte B of what the sender (the receiver) writes, from 0

``cut``        the transport is killed, in both directions, when it has sent what was passed on before
``truncate``   half of the step (or ARGUMENT bytes) is passed on; then as ``cut``
``hold``       this direction stands still until DIR/release exists, for at most ARGUMENT seconds (60)
``delay``      from here on each piece in this direction comes ARGUMENT seconds later (0.1)
``throttle``   from here on ARGUMENT bytes a second (1000000) pass in this direction
``drop``       the step is swallowed (at a byte: ARGUMENT bytes, 1)
``duplicate``  the step is sent twice (at a byte: ARGUMENT bytes, 1)
``corrupt``    ARGUMENT ``OFFSET[.BIT]`` (0.0): that bit is turned over; a negative OFFSET counts from the step's end.
               ``magic``: bit 0 of its first byte. ``type``: a record's type becomes one that nobody knows.
               ``length``: a record's length becomes more than 2 GiB
``run``        the shell command ARGUMENT is run to its end

The log has a JSON line for each step (``t``, ``way``, ``step``, ``n``, ``length``, ``offset``). PAGE_DATA records of
one pass and one second share a line (``records``, ``until``, ``pass``, ``pages``, and ``data``: pages whose contents
were sent). Each action that was taken has a line (``action``, ``asked``, ``ahead``: bytes that the writer was ahead of
this point), and at the end each action that was not taken (``missed``).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from lab.on_board.stream import ANSWERS, Mark, Scanner, Step

KINDS = ("cut", "truncate", "hold", "delay", "throttle", "drop", "duplicate", "corrupt", "run")
FIELDS = {"magic": {0: 0x01}, "type": {0: 0x70}, "length": {7: 0x80}}  # offset in the step -> bits to turn
SMALL, LARGE = 65536, 1 << 20  # bytes read at a time
SETTLING, IDLE = 15.0, 1.0  # seconds that a cut may wait for the transport; seconds after which that is idle
NOTED = 1.0  # PAGE_DATA records of so many seconds share a line
_ACTION = re.compile(r"([a-z]+)@(?:([A-Z0-9_]+)(?::(pass)?(\d+))?|([<>])(\d+))(?:=(.*))?", re.DOTALL)
_BIT = re.compile(r"(-?\d+)(?:\.([0-7]))?")


class Action(NamedTuple):
    """One action, taken once: at the ``number``-th such step, the first record of pass ``turn``, or a ``byte``."""

    asked: str
    kind: str
    argument: str
    way: str  # > from the sender, < from the receiver
    step: Step | None = None
    number: int = 1
    turn: int = 0
    byte: int = -1

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read ``KIND@WHERE[=ARGUMENT]``. :raises ValueError: it is no action; says what would be one."""
        match = _ACTION.fullmatch(text)
        if not match or match[1] not in KINDS:
            raise ValueError(f"{text!r}: must be KIND@WHERE[=ARGUMENT], KIND one of {', '.join(KINDS)}")
        kind, name, turn, number, way, byte, argument = match.groups(default="")
        _check(kind, argument, bool(way))
        if way:
            return cls(text, kind, argument, way, byte=int(byte))
        try:
            step = Step(name)
        except ValueError:
            raise ValueError(f"{text!r}: no step {name}") from None
        if turn and step is not Step.PAGE_DATA:
            raise ValueError(f"{text!r}: only PAGE_DATA comes in passes")
        way = "<" if step in ANSWERS else ">"
        return cls(text, kind, argument, way, step, 0 if turn else int(number or 1), int(number) if turn else 0)

    def is_at(self, mark: Mark, number: int) -> bool:
        """Whether the action is taken at this step, the ``number``-th of its kind."""
        if self.step is not mark.step:
            return False
        if self.turn:
            return mark.pages is not None and mark.pages.starts_turn and mark.pages.turn == self.turn
        return number == self.number


def _check(kind: str, argument: str, is_at_byte: bool) -> None:
    if kind == "corrupt":
        if argument in FIELDS and not is_at_byte or not argument or _BIT.fullmatch(argument):
            return
        raise ValueError(f"corrupt={argument}: must be OFFSET[.BIT], or of a step {', '.join(FIELDS)}")
    if kind == "run":
        if not argument:
            raise ValueError("run: needs a command")
    elif argument:
        try:
            is_good = float(argument) > 0
        except ValueError:
            is_good = False
        if not is_good:
            raise ValueError(f"{kind}={argument}: must be a number above 0")


class Cut(Exception):
    """The transport must die now."""


class Log:
    """Lines of JSON, each flushed at once."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._lock = file, threading.Lock()

    def note(self, **fields: object) -> None:
        line = json.dumps({"t": time.time(), **fields}) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


class _PagesLine:
    """PAGE_DATA records of one pass that share a line of the log."""

    def __init__(self, first: Mapping[str, object], turn: int) -> None:
        self._first, self._turn, self._began = first, turn, time.time()
        self._records = self._length = self._pages = self._data = 0

    def takes(self, mark: Mark) -> bool:
        """Whether the record belongs to the same pass, and comes soon enough."""
        return mark.pages is not None and mark.pages.turn == self._turn and time.time() - self._began < NOTED

    def add(self, mark: Mark) -> None:
        assert mark.pages
        self._records += 1
        self._length += mark.length
        self._pages += mark.pages.pfns
        self._data += mark.pages.data

    def fields(self) -> dict[str, object]:
        """The line, as of now."""
        sums = {"records": self._records, "length": self._length, "pages": self._pages, "data": self._data}
        return {**self._first, "t": self._began, "until": time.time(), "pass": self._turn, **sums}


class Flow:
    """One direction: passes bytes from ``source`` to ``target``, and takes its actions on the way."""

    def __init__(self, way: str, source: int, target: int, actions: Sequence[Action], log: Log, control: str) -> None:
        self._way, self._source, self._target, self._log, self._control = way, source, target, log, control
        self._actions = [action for action in actions if action.way == way]
        self._scanner = Scanner.of_sender() if way == ">" else Scanner.of_receiver()
        self._counts: dict[Step, int] = {}
        self._buffer, self._base = b"", 0  # bytes that are not passed on yet, and their read; offset of the first one
        self._at = 0  # all bytes before this offset were passed on or swallowed
        self._bits: dict[int, int] = {}  # offset -> bits to turn over
        self._drop_until = self._copy_until = 0
        self._copy = bytearray()
        self._cut_at = -1
        self._pause, self._rate = 0.0, 0.0
        self._pages: _PagesLine | None = None  # the line of PAGE_DATA that is being added up
        self._can_splice = hasattr(os, "splice")

    @property
    def missed(self) -> list[Action]:
        """The actions that were not taken."""
        return self._actions

    def run(self) -> None:
        """Pass bytes on until the end. :raises Cut: an action says so. :raises OSError: one end is gone."""
        # Small reads keep the sender near: bytes that it wrote beyond a fault's place would blur the fault.
        size = SMALL if self._actions else LARGE
        while True:
            if self._scanner.idle >= SMALL and self._is_untouched():
                self._splice()
            data = os.read(self._source, size)
            if not data:
                self._send(self._scanner.fed)
                self._log.note(way=self._way, event="eof", offset=self._scanner.fed)
                return
            self._buffer = self._buffer[self._at - self._base :] + data if self._at < self._scanner.fed else data
            self._base = self._at
            error = self._scanner.error
            for mark in self._scanner.feed(data):
                if not mark.pages or any(action.step is Step.PAGE_DATA for action in self._actions):
                    self._send(mark.offset)
                self._meet(mark)
            if self._scanner.error != error:
                self._log.note(way=self._way, event="not the protocol", why=self._scanner.error)
            self._send(self._scanner.safe)

    def _is_untouched(self) -> bool:
        """Whether no action changes bytes within a step, now or later."""
        return (
            self._can_splice
            and self._at == self._scanner.fed
            and self._cut_at < 0
            and not (self._bits or self._copy_until or self._pause or self._rate)
            and self._at >= self._drop_until
            and all(action.step for action in self._actions)
        )

    def _splice(self) -> None:
        """Move bodies of PAGE_DATA, which are nearly all bytes, from pipe to pipe within the kernel."""
        try:
            while self._scanner.idle >= SMALL:
                moved = os.splice(self._source, self._target, min(self._scanner.idle, LARGE))
                if not moved:
                    return
                self._scanner.skipped(moved)
                self._at += moved
        except OSError as error:
            if error.errno not in (22, 38):  # EINVAL: neither is a pipe; ENOSYS
                raise
            self._can_splice = False

    def _send(self, end: int) -> None:
        """Pass bytes on up to this offset."""
        while self._at < end:
            for action in [action for action in self._actions if action.byte == self._at]:
                self._act(action, None, int(action.argument or 1) if action.kind in ("drop", "duplicate") else 0)
            edges = (self._drop_until, self._copy_until, self._cut_at, *(action.byte for action in self._actions))
            stop = min([end, *(edge for edge in edges if edge > self._at)])
            piece = memoryview(self._buffer)[self._at - self._base : stop - self._base]
            if self._at < self._copy_until:
                self._copy += piece
            if self._at >= self._drop_until:
                self._write(self._touched(piece) if self._bits else piece)
            self._at = stop
            if self._copy_until == stop and self._copy:
                self._write(memoryview(bytes(self._copy)))
                self._copy_until, self._copy = 0, bytearray()
            if self._cut_at == stop:
                raise Cut

    def _touched(self, piece: memoryview) -> memoryview:
        touched = bytearray(piece)
        for offset in [one for one in self._bits if self._at <= one < self._at + len(piece)]:
            touched[offset - self._at] ^= self._bits.pop(offset)
        return memoryview(touched)

    def _write(self, data: memoryview) -> None:
        if self._pause:
            time.sleep(self._pause)
        while data:
            count = os.write(self._target, data[: max(1, int(self._rate / 10))] if self._rate else data)
            data = data[count:]
            if self._rate:
                time.sleep(count / self._rate)

    def _meet(self, mark: Mark) -> None:
        """Take the actions of a step that begins here, and log the step."""
        number = self._counts[mark.step] = self._counts.get(mark.step, 0) + 1
        for action in [action for action in self._actions if action.is_at(mark, number)]:
            self._act(action, mark, mark.length)
        if mark.pages and self._pages and self._pages.takes(mark):
            self._pages.add(mark)
            return
        self.note_pages()
        fields = {"way": self._way, "step": mark.step.value, "n": number, "length": mark.length, "offset": mark.offset}
        if mark.pages:
            self._pages = _PagesLine(fields, mark.pages.turn)
            self._pages.add(mark)
        else:
            self._log.note(**fields)

    def note_pages(self) -> None:
        """Log the line of PAGE_DATA that was added up."""
        if self._pages:
            self._log.note(**self._pages.fields())
            self._pages = None

    def _act(self, action: Action, mark: Mark | None, length: int) -> None:
        self._actions.remove(action)
        fields: dict[str, object] = {"action": action.kind, "asked": action.asked, "argument": action.argument}
        if mark:
            fields |= {"step": mark.step.value, "n": self._counts[mark.step], "length": mark.length}
            if mark.pages:
                fields["pass"] = mark.pages.turn
        self.note_pages()
        ahead = self._scanner.fed - self._at + _waiting(self._source)
        self._log.note(way=self._way, offset=self._at, ahead=ahead, **fields)
        if action.kind == "cut":
            raise Cut
        if action.kind == "truncate":
            self._cut_at = self._at + (int(action.argument) if action.argument else length // 2)
            if self._cut_at == self._at:
                raise Cut
        elif action.kind == "hold":
            self._hold(float(action.argument or 60.0))
        elif action.kind == "delay":
            self._pause = float(action.argument or 0.1)
        elif action.kind == "throttle":
            self._rate = float(action.argument or 1000000)
        elif action.kind == "drop":
            self._drop_until = self._at + length
        elif action.kind == "duplicate":
            self._copy_until = self._at + length
        elif action.kind == "corrupt":
            self._bits |= {self._at + offset: bits for offset, bits in _bits(action.argument, length).items()}
        elif action.kind == "run":
            done = subprocess.run(action.argument, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
            said = (done.stdout + done.stderr)[-400:].decode(errors="replace")
            self._log.note(event="ran", command=action.argument, status=done.returncode, said=said)

    def _hold(self, timeout: float) -> None:
        deadline, release = time.monotonic() + timeout, os.path.join(self._control, "release")
        while not os.path.exists(release) and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(OSError):
            os.unlink(release)  # it was meant for this hold
        self._log.note(way=self._way, event="released", by_lab=time.monotonic() < deadline)


def _bits(argument: str, length: int) -> dict[int, int]:
    if argument in FIELDS:
        return FIELDS[argument]
    match = _BIT.fullmatch(argument or "0")
    assert match
    offset = int(match[1])
    return {offset + length if offset < 0 else offset: 1 << int(match[2] or 0)}


def _settles(pid: int, pipe: int) -> bool:
    """Wait until the transport is idle; whether it became idle in time.

    A killed ssh loses what it has read and not sent, and its peer what it has not handed on, so that the cut would fall
    before its place. The transport is idle when it uses no processor time and its pipe is empty for a while.
    """
    deadline, idle_since, before = time.monotonic() + SETTLING, time.monotonic(), ""
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                now = " ".join(file.read().rpartition(")")[2].split()[11:13])  # utime, stime: proc(5)
        except OSError:
            return False
        if now != before or _waiting(pipe):
            before, idle_since = now, time.monotonic()
        elif time.monotonic() - idle_since >= IDLE:
            return True
        time.sleep(0.05)
    return False


def _waiting(descriptor: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0])
    except OSError:
        return 0


def run(command: list[str], actions: Sequence[Action], file: IO[str], control: str) -> int:
    """Run the transport to its end. Exits with its status, or with 99 after a cut."""
    log = Log(file)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # If each record woke the proxy, it would take a processor from the sender a thousand times for a guest that is all
    # holes. Under SCHED_BATCH the proxy interrupts nobody: it runs when the sender waits, or when the sender's time
    # slice is over. The transport is started before this, and keeps the usual policy.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    assert child.stdin
    assert child.stdout
    forth = Flow(">", 0, child.stdin.fileno(), actions, log, control)
    back = Flow("<", child.stdout.fileno(), 1, actions, log, control)
    if not forth.missed:  # a large pipe lets the sender run ahead of a fault's place
        for descriptor in (0, child.stdin.fileno()):
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, LARGE)
    was_cut = threading.Event()

    def pump(flow: Flow, way: str, ends: Sequence[int]) -> None:
        try:
            flow.run()
        except Cut:
            was_cut.set()
            if way == ">":
                log.note(event="cut", settled=_settles(child.pid, ends[0]))
            child.kill()
        except OSError as error:
            log.note(way=way, event="lost", why=str(error))
        flow.note_pages()
        for end in ends:  # or whoever reads there waits for ever, and whoever writes is not told
            with contextlib.suppress(OSError):
                os.close(end)

    answers = threading.Thread(target=pump, args=(back, "<", (1, child.stdout.fileno())), daemon=True)
    answers.start()
    threading.Thread(target=pump, args=(forth, ">", (child.stdin.fileno(),)), daemon=True).start()
    status = child.wait()
    answers.join(60)  # the receiver's answers are passed on, even if they are held
    for action in (*forth.missed, *back.missed):
        log.note(missed=action.kind, asked=action.asked)
    log.note(event="end", status=status, cut=was_cut.is_set())
    file.flush()
    os._exit(99 if was_cut.is_set() else status if status >= 0 else 128 - status)


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.on_board.proxy")
    parser.add_argument("--log", required=True)
    parser.add_argument("--control", default="/nonexistent")
    parser.add_argument("--action", action="append", default=[], type=_action)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with open(arguments.log, "w", encoding="ascii") as file:
        run(arguments.command, arguments.action, file, arguments.control)


def _action(text: str) -> Action:
    try:
        return Action.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    main()
