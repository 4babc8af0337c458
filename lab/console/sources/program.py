"""A console that a program holds open: it runs in a pseudo-terminal, and its errors say why it ended."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
import time
import tty
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import IO

from lab.base import credentials
from lab.base.credentials import Credential
from lab.base.errors import LabError
from lab.console.sources.base import CHUNK, POLL, WRITE_TIMEOUT, Source, SourceLost, is_readable, reason

_ERRORS_READ = 16384  # bytes of a program's errors that are looked at, the last ones
_ACTIVATE_TIMEOUT = 30.0  # seconds until the program's session stands


class ProgramSource(Source):
    """A program in a pseudo-terminal of its own.

    It ends, and gives its session back, when the other end of its terminal is gone: so it does not outlive this
    process, however that ends.
    """

    _banner: re.Pattern[bytes]  # what it says when the session stands

    def __init__(self, name: str, credential_name: str) -> None:
        self._name, self._credential_name = name, credential_name
        self._tried: Credential | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # a file: a pipe nobody reads would stall it one day
        self._terminal = -1
        self._first = b""  # came together with the banner

    def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._terminal < 0:
            raise SourceLost(f"{self._name}: not open")
        if not is_readable(self._terminal):
            return b""
        try:
            data = os.read(self._terminal, CHUNK)
        except OSError:  # EIO: the program ended
            data = b""
        if not data:
            raise self._lost()
        return data

    def is_worth_a_try(self) -> bool:
        try:
            return credentials.lookup(self._credential_name) != self._tried
        except LabError:
            return False

    def write(self, data: bytes) -> None:
        deadline = time.monotonic() + WRITE_TIMEOUT
        while data:
            if self._terminal < 0:
                raise SourceLost(f"{self._name}: not open")
            try:
                _, writable, _ = select.select([], [self._terminal], [], POLL)
                if writable:
                    data = data[os.write(self._terminal, data) :]
            except BlockingIOError:
                pass
            except (OSError, ValueError) as error:
                raise SourceLost(f"{self._name}: {reason(error)}") from None
            if data and time.monotonic() > deadline:
                raise SourceLost(f"{self._name}: takes no input")

    def close(self) -> None:
        terminal, self._terminal = self._terminal, -1
        if terminal >= 0:
            os.close(terminal)
        process, self._process = self._process, None
        if process is None:
            return
        # It gives the session back by itself first.
        for send in (None, signal.SIGTERM, signal.SIGKILL):
            if send:
                process.send_signal(send)
            try:
                process.wait(3.0)
                break
            except subprocess.TimeoutExpired:
                continue
        if self._errors:
            self._errors.close()
            self._errors = None

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it, and wait until its session stands. :raises SourceLost:"""
        master, slave = os.openpty()
        self._errors = tempfile.TemporaryFile()
        try:
            tty.setraw(slave)
            self._process = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # Ctrl-C at the supervisor must not tear the session
            )
        except OSError as error:
            os.close(master)
            raise SourceLost(f"{self._name}: {command[0]}: {reason(error)}") from None
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        self._terminal = master
        try:
            self._first = self._await_banner()
        except BaseException:
            self.close()
            raise

    def _await_banner(self) -> bytes:
        """Wait until the session stands; what the board said already."""
        said, deadline = b"", time.monotonic() + _ACTIVATE_TIMEOUT
        while time.monotonic() < deadline:
            said += self.read()
            if banner := self._banner.search(said):
                if said.endswith(b"]"):  # its newline may come by itself
                    said += self.read()
                    banner = self._banner.search(said) or banner
                return said[banner.end() :]
        raise SourceLost(f"{self._name}: no session within {_ACTIVATE_TIMEOUT:.0f} s")

    @abstractmethod
    def _explained(self, said: list[str]) -> SourceLost:
        """What the program's errors mean; there is a line at least."""

    def _lost(self) -> SourceLost:
        """Why the program ended."""
        process, errors = self._process, self._errors
        if process is None or errors is None:
            return SourceLost(f"{self._name}: not open")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _ERRORS_READ))
        said = [line.strip() for line in errors.read().decode(errors="replace").splitlines()]
        if said := [line for line in said if line]:
            return self._explained(said)
        return SourceLost(f"{self._name}: the session ended with status {process.returncode}")

    def _credential(self) -> Credential:
        try:
            self._tried = credentials.lookup(self._credential_name)
        except LabError as error:
            raise SourceLost(f"{self._name}: {error}") from None
        return self._tried
