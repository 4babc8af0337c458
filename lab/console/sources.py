"""Where a console's bytes come from: a BMC's SOL or SSH, a TCP port, an RFC 2217 server or a serial device."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import tty
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import serial

from lab.base import credentials, paths, processes
from lab.base.credentials import Credential
from lab.base.errors import BenchError, LabError, UsageError
from lab.inventory import BmcSpec, ConsoleSpec

POLL = 0.2  # seconds read() may block when nothing comes; how soon a stop is noticed
_CHUNK = 65536
_CONNECT_TIMEOUT = 5.0
_WRITE_TIMEOUT = 10.0  # over a few retransmissions of a SOL packet
_DEACTIVATE_TIMEOUT = 25.0
_ACTIVATE_TIMEOUT = 30.0
# ipmitool's own keepalive proves the BMC alive, not that the session still carries the console: it does not
# notice when somebody else deactivates it. So the BMC is asked whenever nothing came for this many seconds.
# (Its other keepalive, by empty SOL packets, does not keep ipmi_sim 2.0.33 from ending an idle session.)
_ASK_AFTER = 30.0
_ASK = ("raw", "0x06", "0x4a", "0x01")  # IPMI v2.0 section 24.4, Get Payload Activation Status, of SOL

# As everywhere in this project: the first wait is longer than a loaded BMC takes to answer.
_PATIENT = ("-N", "3", "-R", "2")
# ipmitool obeys commands in what it is sent: this character and another after a newline. 0xFF is never part
# of UTF-8 text, and where C's char is signed ipmitool 1.8.19 does not even recognise it.
_ESCAPE = b"\xff"
_BANNER = re.compile(rb"\[SOL Session operational\.[^\]]*\]\r?\n?")

_CONNECTED = "[xenlab: connected]"
_ASKPASS = Path(__file__).with_name("askpass")


class SourceLost(BenchError):
    """The source gives no bytes any more, or never did. The message says why."""


class Source(ABC):
    """A console's bytes. One thread opens, reads and closes; another may write."""

    @abstractmethod
    def open(self) -> None:
        """Begin. A source that was lost may be opened again after ``close``.

        :raises SourceLost: not to be had now.
        """

    @abstractmethod
    def read(self) -> bytes:
        """What came, at once; empty if nothing came for ``POLL`` seconds.

        :raises SourceLost: it ended.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises SourceLost: it ended, or takes nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Harmless twice."""


def of(console: ConsoleSpec, bmc: BmcSpec) -> Source:
    """The source this console is read from.

    :raises UsageError: the console's description lacks something.
    """
    if console.via == "sol":
        if bmc.protocol != "ipmi":
            raise UsageError(f"console.via sol needs a BMC that speaks ipmi, not {bmc.protocol}")
        return SolSource(bmc)
    if console.via == "device":
        if not console.device:
            raise UsageError("console.via device needs console.device")
        return SerialSource(console.device, console.speed)
    if not console.host or not console.port:
        raise UsageError(f"console.via {console.via} needs console.host and console.port")
    if console.via == "ssh":
        return SshSource(console)
    if console.via == "tcp":
        return TcpSource(console.host, console.port)
    # DTR and RTS are set, and no answer is waited for: a line without modem control (an adapter, ser2net on one) gives
    # none, and pyserial would take that for a dead server.
    return SerialSource(f"rfc2217://{console.host}:{console.port}?ign_set_control", console.speed)


class TcpSource(Source):
    """A raw TCP port: a terminal server, or a virtual board's cable."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._socket: socket.socket | None = None

    def open(self) -> None:
        try:
            link = socket.create_connection((self._host, self._port), timeout=_CONNECT_TIMEOUT)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {_reason(error)}") from None
        link.settimeout(_WRITE_TIMEOUT)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A console may be silent for hours: without probes a dead server would look like a quiet board.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = link

    def read(self) -> bytes:
        link = self._link()
        try:
            if not _is_readable(link.fileno()):
                return b""
            data = link.recv(_CHUNK)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {_reason(error)}") from None
        if not data:
            raise SourceLost(f"tcp {self._host}:{self._port}: closed by the other side")
        return data

    def write(self, data: bytes) -> None:
        try:
            self._link().sendall(data)
        except OSError as error:
            raise SourceLost(f"tcp {self._host}:{self._port}: {_reason(error)}") from None

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _link(self) -> socket.socket:
        link = self._socket
        if link is None:
            raise SourceLost(f"tcp {self._host}:{self._port}: not open")
        return link


class SerialSource(Source):
    """A serial device or an RFC 2217 server, by pyserial."""

    def __init__(self, url: str, speed: int) -> None:
        self._url, self._speed = url, speed
        self._port: Any = None

    def open(self) -> None:
        # Nobody else may read the device: each byte goes to one reader only. RFC 2217 knows neither option.
        own: dict[str, Any] = {"exclusive": True, "write_timeout": _WRITE_TIMEOUT}
        options = {} if "://" in self._url else own
        try:
            self._port = serial.serial_for_url(self._url, baudrate=self._speed, timeout=POLL, **options)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise SourceLost(f"{self._url}: {_reason(error)}") from None

    def read(self) -> bytes:
        port = self._open_port()
        try:
            first: bytes = port.read(1)
            return first + port.read(port.in_waiting) if first else b""
        except (OSError, TypeError, ValueError) as error:  # pyserial, when closed or cut meanwhile
            raise SourceLost(f"{self._url}: {_reason(error)}") from None

    def write(self, data: bytes) -> None:
        try:
            self._open_port().write(data)
        except (OSError, TypeError, ValueError) as error:
            raise SourceLost(f"{self._url}: {_reason(error)}") from None

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(OSError):
                port.close()

    def _open_port(self) -> Any:
        port = self._port
        if port is None:
            raise SourceLost(f"{self._url}: not open")
        return port


class ProgramSource(Source):
    """A program in a pseudo-terminal of its own.

    It ends, and gives its session back, when the other end of its terminal is gone: so it does not outlive this
    process, however that ends.
    """

    _banner: re.Pattern[bytes]  # what it says when the session stands
    _gist = 0  # which line of its errors says why it ended

    def __init__(self, name: str) -> None:
        self._name = name
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
        if not _is_readable(self._terminal):
            return b""
        try:
            data = os.read(self._terminal, _CHUNK)
        except OSError:  # EIO: the program ended
            data = b""
        if not data:
            raise SourceLost(f"{self._name}: {self._last_words()}")
        return data

    def write(self, data: bytes) -> None:
        deadline = time.monotonic() + _WRITE_TIMEOUT
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
                raise SourceLost(f"{self._name}: {_reason(error)}") from None
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
            raise SourceLost(f"{self._name}: {command[0]}: {_reason(error)}") from None
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

    def _last_words(self) -> str:
        """Why it ended."""
        process, errors = self._process, self._errors
        if process is None or errors is None:
            return "not open"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
        errors.seek(0)
        said = [line.strip() for line in errors.read(4096).decode(errors="replace").splitlines()]
        said = [line for line in said if line]
        return said[self._gist] if said else f"the session ended with status {process.returncode}"

    def _credential(self, name: str) -> Credential:
        try:
            return credentials.lookup(name)
        except LabError as error:
            raise SourceLost(f"{self._name}: {error}") from None


class SolSource(ProgramSource):
    """Serial over LAN, by ``ipmitool``."""

    _banner = _BANNER

    def __init__(self, bmc: BmcSpec) -> None:
        super().__init__(f"sol {bmc.host}:{bmc.port}")
        self._bmc = bmc
        self._question: subprocess.Popen[bytes] | None = None
        self._ask_at = 0.0

    def open(self) -> None:
        command, environment = self._ipmitool()
        self._deactivate(command, environment)
        self._ask_at = time.monotonic() + _ASK_AFTER
        self._start([*command, "-e", os.fsdecode(_ESCAPE), "sol", "activate"], environment)

    def read(self) -> bytes:
        data = super().read()
        if data:
            self._ask_at = time.monotonic() + _ASK_AFTER
        else:
            self._check_session()
        return data

    def close(self) -> None:
        super().close()
        self._end_question()

    def _ipmitool(self) -> tuple[list[str], dict[str, str]]:
        """The beginning of each command, and its environment."""
        bmc = self._bmc
        credential = self._credential(bmc.credential)
        # IPMITOOL_PASSWORD must not be among them: with -E it would win over IPMI_PASSWORD.
        environment = processes.environment() | {"IPMI_PASSWORD": credential.password, "LC_ALL": "C"}
        suite = 17 if bmc.cipher is None else bmc.cipher
        where = ("-I", "lanplus", "-C", str(suite), "-L", bmc.privilege.upper(), "-H", bmc.host, "-p", str(bmc.port))
        return ["ipmitool", *where, "-U", credential.user, "-E", *_PATIENT], environment

    def _deactivate(self, command: list[str], environment: dict[str, str]) -> None:
        """End a session that was not closed, ours or another's: a console has one reader."""
        try:
            done = subprocess.run(
                [*command, "sol", "deactivate"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DEACTIVATE_TIMEOUT,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SourceLost(f"{self._name}: `sol deactivate` did not end") from None
        except OSError as error:
            raise SourceLost(f"{self._name}: ipmitool: {_reason(error)}") from None
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode and "Unable to establish" in said:
            raise SourceLost(f"{self._name}: {said.splitlines()[-1]}")

    def _check_session(self) -> None:
        """Ask the BMC now and then whether SOL is active; no answer means nothing, ipmitool sees to that."""
        if self._question is None:
            if time.monotonic() < self._ask_at:
                return
            command, environment = self._ipmitool()
            with contextlib.suppress(OSError):
                self._question = subprocess.Popen(
                    [*command, *_ASK],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            self._ask_at = time.monotonic() + _ASK_AFTER
        elif self._question.poll() is not None:
            said = self._end_question().split()
            # Instances there can be, then a bit for each that is active. ipmitool asks for the first one.
            if len(said) >= 2 and not int(said[1], 16) & 1:
                raise SourceLost(f"{self._name}: the session was ended by somebody else")

    def _end_question(self) -> bytes:
        question, self._question = self._question, None
        if question is None:
            return b""
        if question.poll() is None:
            question.kill()
        return question.communicate()[0]


class SshSource(ProgramSource):
    """A BMC's console, or a console server's line, behind SSH: by OpenSSH's client, with a password.

    OpenBMC has one on port 2200; Redfish tells port and command of others (DSP0268, ComputerSystem, SerialConsole.SSH).
    The host's key must be known. What is typed to get at the console is sent once the other side has said something.
    """

    _banner = re.compile(re.escape(_CONNECTED).encode() + rb"\r?\n?")
    _gist = -1  # behind its warnings in frames

    def __init__(self, console: ConsoleSpec) -> None:
        super().__init__(f"ssh {console.host}:{console.port}")
        self._console = console
        self._is_entered = False

    def open(self) -> None:
        console, credential = self._console, self._credential(self._console.credential)
        hosts = " ".join(f'"{path}"' for path in paths.known_hosts())
        words = [
            "PreferredAuthentications=password,keyboard-interactive",
            "NumberOfPasswordPrompts=1",
            f"UserKnownHostsFile={hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "LogLevel=ERROR",
            f"ConnectTimeout={_CONNECT_TIMEOUT:.0f}",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "EscapeChar=none",
            "PermitLocalCommand=yes",
            f"LocalCommand=echo '{_CONNECTED}'",
        ]
        options = [part for word in words for part in ("-o", word)]
        environment = processes.environment() | {
            "XENLAB_CONSOLE_PASSWORD": credential.password,
            "SSH_ASKPASS": str(_ASKPASS),
            "SSH_ASKPASS_REQUIRE": "force",
            "TERM": "vt100",
        }
        self._is_entered = not console.entry
        where = ["-p", str(console.port), "-l", credential.user, "--", console.host]
        self._start(["ssh", "-F", "none", "-tt", *options, *where], environment)

    def read(self) -> bytes:
        data = super().read()
        if data and not self._is_entered:
            self._is_entered = True
            self.write(self._console.entry.encode() + b"\r")
        return data


def _is_readable(handle: int) -> bool:
    return bool(select.select([handle], [], [], POLL)[0])


def _reason(error: BaseException) -> str:
    said = str(getattr(error, "strerror", None) or error)
    return said.splitlines()[0] if said else type(error).__name__
