"""A console behind SSH."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab.base import paths, processes
from lab.console.sources.base import CONNECT_TIMEOUT, SourceLost, SourceRefused, reason
from lab.console.sources.program import ProgramSource
from lab.inventory import ConsoleSpec

_CONNECTED = "[xenlab: connected]"
_ASKPASS = Path(__file__).parents[1] / "askpass"

# What ssh says at the log level INFO: OpenSSH 9.2, sshconnect.c, sshconnect2.c, kex.c and packet.c.
_NO_MATCH = re.compile(r"no matching (key exchange method|host key type|cipher|MAC) found\. Their offer: (\S+)")
_OPTIONS = {
    "key exchange method": "KexAlgorithms",
    "host key type": "HostKeyAlgorithms",
    "cipher": "Ciphers",
    "MAC": "MACs",
}
_SHORT_KEY = re.compile(r"Invalid key length")
_REFUSED = re.compile(r"Permission denied|Too many authentication failures")
# What comes behind the reason, and the warning that OpenSSH 10.1 has for each server without post-quantum algorithms.
_BESIDE = re.compile(r"(?:Connection to \S+ closed\.|Disconnected from .*|\*\* .*)$")
_KEY = re.compile(r"Host key for \S+ has changed|host key is known for")  # why it could not be verified
# What a BMC says instead of the line when another session has it (iLO 3 on), and what its command line says of an entry
# that it does not take or cannot do (SMASH CLP, DSP0214, 5.2). Its prompt comes next, which is no console.
_TAKEN = re.compile(
    rb"Virtual Serial Port is [^\r\n]*\bin use\b[^\r\n]*"
    rb"|status_tag=(COMMAND (?:PROCESSING|EXECUTION) FAILED(?:[\r\n]+(?:job|error|message)\w*=[^\r\n]*)*)"
)
_ENTRY_ANSWER = 2000  # bytes that are looked at for it


class SshSource(ProgramSource):
    """A BMC's console, or a console server's line, behind SSH: by OpenSSH's client, with a password.

    OpenBMC has one on port 2200; Redfish tells port and command of others (DSP0268, ComputerSystem, SerialConsole.SSH).
    The host's key must be known. What is typed to get at the console is sent once the other side has said something.
    No configuration file of ssh is read but the one that the console's entry names.
    """

    _banner = re.compile(re.escape(_CONNECTED).encode() + rb"\r?\n?")

    def __init__(self, console: ConsoleSpec) -> None:
        super().__init__(f"ssh {console.host}:{console.port}", console.credential)
        self._console = console
        self._is_entered = False
        self._answer: bytes | None = None  # to the entry, while it may be that the line is not to be had

    def open(self) -> None:
        console, credential = self._console, self._credential()
        hosts = " ".join(f'"{path}"' for path in paths.known_hosts())
        # The first value that ssh sees of an option counts, so none of these is changed by a file.
        words = [
            "PreferredAuthentications=password,keyboard-interactive",
            "NumberOfPasswordPrompts=1",
            f"UserKnownHostsFile={hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "LogLevel=INFO",
            f"ConnectTimeout={CONNECT_TIMEOUT:.0f}",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "EscapeChar=none",
            "ControlMaster=no",
            "ControlPath=none",
            "PermitLocalCommand=yes",
            f"LocalCommand=echo '{_CONNECTED}'",
            *(f"{name}={value}" for name, value in console.ssh_options.items()),
        ]
        options = [part for word in words for part in ("-o", word)]
        environment = processes.environment(processes.NETWORK) | {
            "XENLAB_CONSOLE_PASSWORD": credential.password,
            "SSH_ASKPASS": str(_ASKPASS),
            "SSH_ASKPASS_REQUIRE": "force",
            "TERM": "vt100",
        }
        self._is_entered, self._answer = not console.entry, None
        where = ["-p", str(console.port), "-l", credential.user, "--", console.host]
        if console.ssh_config is None:
            self._start(["ssh", "-F", "none", "-tt", *options, *where], environment)
            return
        file = str(Path(console.ssh_config).expanduser())
        # It may lead over other hosts. They must not be told the password.
        environment["XENLAB_CONSOLE_LOGIN"] = f"{credential.user}@{self._host(file, where, environment)}"
        self._start(["ssh", "-F", file, "-tt", *options, *where], environment)

    def read(self) -> bytes:
        data = super().read()
        if data and self._answer is not None:
            self._answer += data
            if taken := _TAKEN.search(self._answer):
                told = " ".join((taken[1] or taken[0]).decode(errors="replace").split())
                raise SourceLost(f"{self._name}: {self._console.entry}: {told}")
            if len(self._answer) > _ENTRY_ANSWER:
                self._answer = None
        if data and not self._is_entered:
            self._is_entered, self._answer = True, b""
            self.write(self._console.entry.encode() + b"\r")
        return data

    def _host(self, file: str, where: list[str], environment: Mapping[str, str]) -> str:
        """The host that a configuration file of ssh has for the console's; ssh asks for the password of that."""
        try:
            done = subprocess.run(
                ["ssh", "-F", file, "-G", *where],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CONNECT_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceLost(f"{self._name}: {reason(error)}") from None
        found = re.search(r"^hostname (\S+)$", done.stdout, re.M)
        if done.returncode or not found:
            said = done.stderr.strip().splitlines() or [f"`ssh -G` ended with status {done.returncode}"]
            raise SourceLost(f"{self._name}: {said[-1]}")
        return found[1]

    def _explained(self, said: list[str]) -> SourceLost:
        for line in reversed(said):
            if match := _NO_MATCH.search(line):
                first = match[2].split(",")[0]
                option = f"{{{_OPTIONS[match[1]]}: +{first}}}"
                return SourceLost(f"{self._name}: {line}; console.ssh_options: {option} in the inventory allows it")
            if _SHORT_KEY.search(line):
                option = "{RequiredRSASize: 1024}"
                return SourceLost(f"{self._name}: {line}; console.ssh_options: {option} in the inventory allows it")
            if _REFUSED.search(line):
                return SourceRefused(f"{self._name}: {line}")
            if _KEY.search(line):
                return SourceLost(f"{self._name}: {line} {said[-1]}")
        telling = [line for line in said if not _BESIDE.match(line)] or said
        return SourceLost(f"{self._name}: {telling[-1]}")
