"""What the lab and a host say to each other over SSH: lines of JSON on the standard streams of a command there."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO

from lab.base import processes, shape
from lab.base.errors import BenchError, WaitTimeout
from lab.base.release import release
from lab.base.wait import wait_until
from lab.grid import hosts
from lab.inventory import BmcSpec, BoardSpec, HostSpec, NetbootSpec, PduSpec

COORDINATOR = "coordinator"  # name of the Unix socket by which a host's exporter reaches it
NETBOOT = "netboot"  # name of the socket by which a host's relay of boots reaches the lab, and of what serves boots
DOWN = b"down\n"  # the lab goes down, and what runs for it at the host shall end
HELLO = 60.0  # seconds that a host has for its first words; xenlab there may have to find its libraries first
NOTICED = 1.0  # seconds in which the lab's own connection to a host is seen to be gone, too
LINE_LIMIT = 64 << 20  # bytes; orders have certificates and the identities of virtual boards in them
_ERRORS_READ = 4096  # bytes of what ssh says that are looked at, the last ones
_COMMAND_NOT_FOUND = 127  # a shell's exit status
_SSH_FAILED = 255
_NO_HOST_KEY = "strict checking"  # sshconnect.c: of a host key that is not known, and of another one


class HostAway(BenchError):
    """A host is not reached, or xenlab there cannot be used. This may pass by itself."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a host says first."""

    release: str  # :func:`lab.base.release.release`
    clock: float  # seconds since the epoch
    sockets: str = ""  # folder of its recorders' sockets, and of the coordinator's


@dataclass(frozen=True, slots=True)
class Login:
    """A credential on its way. Only ever on a standard stream."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Netboot:
    """What a host needs for its boards that boot by network, beside the way to the lab's server."""

    network: NetbootSpec
    grubs: Mapping[str, str]  # file name -> GRUB, in base64


@dataclass(frozen=True, slots=True)
class Orders:
    """What a host is told to run for a lab, and all that it needs for it."""

    lab: str
    host: str
    boards: tuple[BoardSpec, ...]
    exported: str  # the exporter's configuration
    certificates: Mapping[str, str] = field(default_factory=dict)  # board -> PEM that its BMC is verified by
    seeds: Mapping[str, str] = field(default_factory=dict)  # virtual board -> the tar of its identity, in base64
    peers: Mapping[str, int] = field(default_factory=dict)  # virtual board -> UDP port of the lab link's other end
    logins: Mapping[str, Login] = field(default_factory=dict)  # by the credential's name
    netboot: Netboot | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How a host is doing: it is said again and again."""

    said: str = ""  # what it does before it is up
    failed: str = ""  # why it cannot do what it was told; the last that it says
    is_up: bool = False
    processes: Mapping[str, int] = field(default_factory=dict)  # services that run there, and their process ids
    gone: tuple[str, ...] = ()  # services that should


@dataclass(frozen=True, slots=True)
class PowerOf:
    """A board whose power is asked for."""

    board: str
    bmc: BmcSpec
    pdu: PduSpec | None = None
    login: Login | None = None
    certificate: str = ""


def await_link(host: HostSpec) -> None:
    """Give the lab's own connection a moment to end, too: so a host that is away is not taken for a board's fault."""
    with suppress(WaitTimeout):
        wait_until(lambda: not hosts.control(host).exists(), NOTICED, "the host is seen to be away")


def encoded(one: Hello | Orders | Report | PowerOf) -> bytes:
    """As a line, for :func:`lab.base.shape.read`."""
    return json.dumps(asdict(one), default=sorted, sort_keys=True).encode() + b"\n"  # sorted: of sets


class Lines:
    """Lines that are read from a file descriptor, each waited for as long as one likes."""

    def __init__(self, source: int) -> None:
        self._source, self._rest = source, b""

    def has_one(self, timeout: float) -> bool:
        """Whether a line, or the end, comes within ``timeout`` seconds."""
        return b"\n" in self._rest or bool(select.select([self._source], [], [], timeout)[0])

    def next(self, timeout: float) -> bytes | None:
        """The next line; None: none came within ``timeout`` seconds. :raises EOFError: there will be none."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([self._source], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(self._source, 1 << 16)
            if not data or len(self._rest) > LINE_LIMIT:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


class Remote:
    """A command of xenlab at a host, by ssh: a line each way is a message. Its end is that of its streams."""

    def __init__(self, host: HostSpec, errors: IO[bytes], *words: str, options: tuple[str, ...] = ()) -> None:
        """``errors``: an open file that takes what ssh, and xenlab there, say on stderr.

        :raises HostAway: there is no ssh.
        """
        self.host, self._errors = host, errors
        argv = hosts.command(host, *options)
        try:
            self.process = subprocess.Popen(
                [*argv, hosts.program(host, *words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=processes.environment(processes.NETWORK),
                start_new_session=True,
            )
        except OSError as error:
            raise HostAway(f"host {host.name}: ssh: {error.strerror}") from None
        assert self.process.stdin and self.process.stdout
        self._input: IO[bytes] = self.process.stdin
        self._output: IO[bytes] = self.process.stdout
        self._lines = Lines(self._output.fileno())

    def is_there(self, timeout: float) -> bool:
        """Whether it says something, or ends, within ``timeout`` seconds."""
        return self._lines.has_one(timeout)

    def greet(self, timeout: float) -> Hello:
        """Its first words. :raises HostAway: it does not say them, or is of another release."""
        line = self.next(timeout)
        if line is None:
            raise HostAway(f"host {self.host.name}: {self.host.program} there says nothing")
        try:
            hello = shape.read(Hello, line)
        except ValueError:
            said = line[:80].decode(errors="replace")
            raise HostAway(
                f"host {self.host.name}: {self.host.program} there is no xenlab of this release ({release()}): "
                f"it says {said!r}"
            ) from None
        if hello.release != release():
            raise HostAway(
                f"host {self.host.name} has xenlab {hello.release}, and the lab machine has {release()}: "
                "install the same there"
            )
        return hello

    def send(self, line: bytes) -> None:
        """:raises HostAway: it is gone."""
        try:
            self._input.write(line)
            self._input.flush()
        except OSError:
            raise self.lost() from None

    def next(self, timeout: float) -> bytes | None:
        """Its next line; None: none came within ``timeout`` seconds. :raises HostAway: it is gone."""
        try:
            return self._lines.next(timeout)
        except (EOFError, OSError):
            raise self.lost() from None

    def lost(self) -> HostAway:
        """Why it is gone, in words."""
        self.close()
        status = self.process.returncode
        self._errors.flush()
        with open(f"/proc/self/fd/{self._errors.fileno()}", "rb") as errors:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _ERRORS_READ))
            said = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
        return HostAway(f"host {self.host.name}: {_why(self.host, status, said)}")

    def close(self) -> None:
        """End it: it sees the end of its input."""
        for stream in (self._input, self._output):
            try:
                stream.close()
            except OSError:
                pass
        for end in (None, self.process.terminate, self.process.kill):
            if end:
                end()
            try:
                self.process.wait(2.0)
                return
            except subprocess.TimeoutExpired:
                continue


def _why(host: HostSpec, status: int, said: list[str]) -> str:
    from lab.base import paths

    last = said[-1] if said else f"the connection ended with status {status}"
    if status == _COMMAND_NOT_FOUND:
        return (
            f"it has no {host.program}: install xenlab there, or say in hosts.{host.name}.xenlab where it is ({last})"
        )
    if status == _SSH_FAILED and (told := next((line for line in reversed(said) if _NO_HOST_KEY in line), None)):
        scan = f"ssh-keyscan -p {host.port} {host.address}"
        return (
            f"its SSH host key is not known, or another one: {told}; compare `{scan}` with what the host shows, "
            f"and put it into {paths.known_hosts()[0]}"
        )
    return last.rstrip(".")
