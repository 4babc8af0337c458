"""A person at a board's console: what it said, what it says, and one of them may type."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lab.base import processes
from lab.base.errors import BenchError, UsageError
from lab.console.client import Console
from lab.console.screen import Screen
from lab.inventory import BoardSpec
from lab.leases.ledger import Ledger

DETACH = b"\x1d"  # Ctrl-]
HISTORY = 60  # lines shown at first
LOOK = 0.5  # seconds between two looks at who types


class Writer:
    """Who types: at most one at a time, by the ledger."""

    def __init__(self, ledger: Ledger, board: str, who: str) -> None:
        self._ledger, self._board = ledger, board
        self.name = f"{who} {processes.mark(os.getpid())}"

    def now(self) -> str:
        """Who types now; empty when nobody does, or who did is gone."""
        name = self._ledger.board(self._board).writer
        return name if name and processes.is_alive(name.rpartition(" ")[2]) else ""

    def begin(self, *, take: bool) -> str:
        """Be the one; who was it before.

        :raises UsageError: somebody else is, and ``take`` was not said.
        """
        other = self.now()
        if other and other != self.name and not take:
            raise UsageError(
                f"{self._board}: {person(other)} types on its console; add --take to take the keyboard over"
            )
        self._ledger.take_console(self._board, self.name)
        return other

    def end(self) -> None:
        """Type no more, if it is still us."""
        if self._ledger.board(self._board).writer == self.name:
            self._ledger.take_console(self._board, "")


def person(writer: str) -> str:
    return writer.rpartition(" ")[0]


def attach(
    spec: BoardSpec, writer: Writer, *, types: bool, take: bool = False, keys: int = 0, screen: BinaryIO | None = None
) -> None:
    """Show the console until Ctrl-], or the end of input; ``types``: pass on what comes from the descriptor ``keys``.

    What a terminal would obey beyond showing text is left out (:mod:`lab.console.screen`). A take-over is said on
    every console that is attached.

    :raises UsageError: somebody else types.
    :raises BenchError: no recorder answers.
    """
    out = screen or sys.stdout.buffer

    def say(text: str) -> None:
        out.write(f"\r\n--- {text} ---\r\n".encode())
        out.flush()

    before = writer.begin(take=take) if types else ""
    try:
        with Console.of(spec) as console, console.attach() as line, _raw(keys):
            _show_history(console, out)
            say(f"{spec.name}: live, {'you type' if types else 'read only'}; Ctrl-] ends it")
            if before and before != writer.name:
                say(f"taken over from {person(before)}")
            _pump(line, keys if types or os.isatty(keys) else None, out, writer, types, say)
    finally:
        writer.end()


def _pump(
    line: socket.socket,
    keys: int | None,
    out: BinaryIO,
    writer: Writer,
    types: bool,
    say: Callable[[str], None],
) -> None:
    known, looked, screen = writer.now(), time.monotonic(), Screen()
    while True:
        sources: list[socket.socket | int] = [line, *([keys] if keys is not None else [])]
        ready = select.select(sources, [], [], LOOK)[0]
        if time.monotonic() - looked >= LOOK:
            looked, now = time.monotonic(), writer.now()
            if now != known:
                say(f"{person(now) or 'nobody'} types now{', no more you' if known == writer.name else ''}")
                known = now
        if line in ready:
            data = line.recv(65536)
            if not data:
                raise BenchError("the recorder ended the connection")
            out.write(screen.show(data))
            out.flush()
        if keys is not None and keys in ready:
            typed = os.read(keys, 1024)
            if not typed or DETACH in typed:
                return
            if types and writer.now() == writer.name:
                line.sendall(typed)
            else:
                say(f"not sent: {person(writer.now()) or 'nobody'} types; --write, with --take if need be")


def _show_history(console: Console, out: BinaryIO) -> None:
    next_one = console.mark()
    for record in console.lines(next_one - HISTORY, next_one):
        if record.kind == "line":
            out.write(Screen().show(record.text.encode(errors="replace")) + b"\r\n")


@contextlib.contextmanager
def _raw(keys: int) -> Iterator[None]:
    """Each key as it is pressed, if it is a terminal."""
    if not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
