"""A console behind SSH."""

from __future__ import annotations

import re
from pathlib import Path

from lab.base import paths, processes
from lab.console.sources.base import CONNECT_TIMEOUT
from lab.console.sources.program import ProgramSource
from lab.inventory import ConsoleSpec

_CONNECTED = "[xenlab: connected]"
_ASKPASS = Path(__file__).parents[1] / "askpass"


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
            f"ConnectTimeout={CONNECT_TIMEOUT:.0f}",
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
        where = ["-p", str(console.port), "-l", credential.user, console.host]
        self._start(["ssh", "-F", "none", "-tt", *options, *where], environment)

    def read(self) -> bytes:
        data = super().read()
        if data and not self._is_entered:
            self._is_entered = True
            self.write(self._console.entry.encode() + b"\r")
        return data
