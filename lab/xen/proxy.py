"""Stands in the middle of a live migration, in the source's dom0, and breaks it at an exact point.

``python3 -m lab.xen.proxy --log FILE --control DIR [--action KIND@STEP[:N][=ARGUMENT]]... -- COMMAND...``

COMMAND is the transport (``ssh PEER xl migrate-receive``); stdin is the sender's stream, stdout the receiver's answers.
An action happens before the N-th (first) STEP is passed on:

``cut``       the transport dies at once, both ways
``truncate``  half of the step's first piece is passed on, then as ``cut``
``hold``      nothing more is passed on until DIR/release exists (or ARGUMENT seconds, 60)
``drop``      the step is swallowed
``corrupt``   a byte of it is turned over (ARGUMENT: its offset, 0)
``run``       the shell command ARGUMENT is run, and waited for

The log has a JSON line for each step that passed (``{"t", "way", "step", "n", "length", "offset"}``) and each action.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any

from lab.xen.stream import Piece, Splitter, Step, StreamError

KINDS = ("cut", "truncate", "hold", "drop", "corrupt", "run")
_ACTION = re.compile(r"([a-z]+)@([A-Z0-9_]+)(?::(\d+))?(?:=(.*))?", re.DOTALL)


@dataclass
class Action:
    """One thing to do, once."""

    kind: str
    step: Step
    number: int = 1
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> Action:
        """:raises ValueError: not an action; says what would be."""
        match = _ACTION.fullmatch(text)
        if not match or match[1] not in KINDS:
            raise ValueError(f"{text!r}: must be KIND@STEP[:N][=ARGUMENT], KIND one of {', '.join(KINDS)}")
        try:
            return cls(match[1], Step(match[2]), int(match[3] or 1), match[4] or "")
        except ValueError:
            raise ValueError(f"{text!r}: no step {match[2]}") from None


class Cut(Exception):
    """The transport shall die now."""


class Proxy:
    """Two directions, one log."""

    def __init__(self, child: subprocess.Popen[bytes], actions: list[Action], log: IO[str], control: str) -> None:
        self._child, self._actions, self._log, self._control = child, actions, log, control
        self._lock = threading.Lock()
        self._counts: dict[Step, int] = {}

    def note(self, **fields: Any) -> None:
        with self._lock:
            self._log.write(json.dumps({"t": time.time(), **fields}) + "\n")
            self._log.flush()

    def pump(self, way: str, source: int, target: int, splitter: Splitter) -> None:
        """Pass on what comes, piece by piece, until the end. :raises Cut:"""
        swallowing = False
        while True:
            data = os.read(source, 65536)
            if not data:
                self.note(way=way, event="eof", offset=splitter.offset)
                return
            try:
                for piece in splitter.feed(data):
                    if piece.starts:
                        swallowing = False
                    piece, swallow = self._meet(way, piece, splitter, target)
                    swallowing = swallowing or swallow
                    if not swallowing:
                        _write(target, piece.data)
            except StreamError as error:
                self.note(way=way, event="not the protocol", why=str(error))
                _write(target, splitter.rest())

    def _meet(self, way: str, piece: Piece, splitter: Splitter, target: int) -> tuple[Piece, bool]:
        if not piece.starts:
            return piece, False
        number = self._counts[piece.step] = self._counts.get(piece.step, 0) + 1
        swallow = False
        for action in [a for a in self._actions if a.step is piece.step and a.number == number]:
            self._actions.remove(action)
            self.note(way=way, action=action.kind, step=piece.step.value, n=number, argument=action.argument)
            if action.kind == "cut":
                raise Cut
            if action.kind == "truncate":
                _write(target, piece.data[: len(piece.data) // 2])
                raise Cut
            if action.kind == "hold":
                self._hold(float(action.argument or 60.0))
            elif action.kind == "drop":
                swallow = True
            elif action.kind == "corrupt":
                where = int(action.argument or 0) % len(piece.data)
                data = bytearray(piece.data)
                data[where] ^= 0xFF
                piece = Piece(piece.step, bytes(data), True, piece.length)
            elif action.kind == "run":
                done = subprocess.run(action.argument, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
                said = (done.stdout + done.stderr)[-400:].decode(errors="replace")
                self.note(event="ran", command=action.argument, status=done.returncode, said=said)
        self.note(way=way, step=piece.step.value, n=number, length=piece.length, offset=splitter.offset)
        return piece, swallow

    def _hold(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not os.path.exists(os.path.join(self._control, "release")) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.note(event="released", in_time=time.monotonic() < deadline)

    def run(self) -> int:
        """Until the transport ends. The exit status is the transport's, or 99 after a cut."""
        assert self._child.stdin and self._child.stdout
        upstream, downstream = self._child.stdin, self._child.stdout
        cut = threading.Event()

        def answers() -> None:
            try:
                self.pump("<", downstream.fileno(), 1, Splitter.of_receiver())
            except Cut:
                cut.set()
                self._die()
            except OSError as error:
                self.note(way="<", event="lost", why=str(error))
            os.close(1)  # or the sender waits for ever

        back = threading.Thread(target=answers, daemon=True)
        back.start()

        def stream() -> None:
            try:
                self.pump(">", 0, upstream.fileno(), Splitter.of_sender())
            except Cut:
                cut.set()
                self._die()
            except OSError as error:
                self.note(way=">", event="lost", why=str(error))
            try:
                upstream.close()
            except OSError:
                pass

        threading.Thread(target=stream, daemon=True).start()
        status = self._child.wait()
        back.join(10)
        self.note(event="end", status=status, cut=cut.is_set())
        return 99 if cut.is_set() else status

    def _die(self) -> None:
        self._child.kill()


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab.xen.proxy")
    parser.add_argument("--log", required=True)
    parser.add_argument("--control", default="/nonexistent")
    parser.add_argument("--action", action="append", default=[], type=Action.parse)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with open(arguments.log, "w", encoding="ascii") as log:
        child = subprocess.Popen(arguments.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return Proxy(child, arguments.action, log, arguments.control).run()


if __name__ == "__main__":
    sys.exit(main())
