"""IPMI 2.0 over LAN by ``ipmitool``.

``ipmitool`` answers status 0 to some commands that failed, so the wanted answer is looked for in the
text. The password travels in the environment (``IPMI_PASSWORD``, ``-E``), never in argv.
"""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from lab.base import processes
from lab.base.credentials import Credential
from lab.base.errors import BenchError, BmcRefused, BmcUnreachable, CommandFailed, MissingCapability, UsageError
from lab.base.wait import wait_until
from lab.bmc import switching
from lab.bmc.switching import Exchange, Pace
from lab.inventory import BmcSpec

_log = logging.getLogger(__name__)

# Retransmission belongs to ipmitool: its waits are N, N+1, ... (R of them), twice when nothing ever
# answers. A retransmitted command may be executed twice (ipmi_sim does), so the first wait is longer than
# a loaded BMC takes to answer. A dead BMC is given up after 2 x (3 + 4) = 14 s [measured on 1.8.19].
_PATIENT = ("-N", "3", "-R", "2")
_IMPATIENT = ("-N", "1", "-R", "1")  # 2 s; for asking again why no session was had
_COMMAND_TIMEOUT = 25.0  # seconds; over the 14 s above, for an ipmitool that hangs
_SENSORS_TIMEOUT = 90.0  # a few hundred records, read one by one by a slow BMC

# IPMI v2.0 table 20-7, Get ACPI Power State, byte 2. 2Ah is "unknown", 20h/21h are for systems without ACPI.
_SLEEP_STATES = {
    0x00: "S0",
    0x01: "S1",
    0x02: "S2",
    0x03: "S3",
    0x04: "S4",
    0x05: "S5",
    0x06: "S4/S5",  # soft off, the BMC cannot tell which
    0x07: "G3",  # mechanical off
    0x08: "S1-S3",  # sleeping, the BMC cannot tell how deep
    0x09: "S1-S4",
    0x0A: "S5",  # entered by override: the button held for 4 s
    0x20: "legacy on",
    0x21: "legacy off",
}
# IPMI v2.0 table 28-14, boot flags data 2, bits 5:2: names as in `ipmitool chassis bootdev`.
_BOOT_DEVICES = {0: "none", 1: "pxe", 2: "disk", 3: "safe", 4: "diag", 5: "cdrom", 6: "bios", 15: "floppy"}
_CLOCK_UNSET_BELOW = 0x20000000  # IPMI v2.0 section 37: less is seconds since the BMC started

_NO_SESSION = "Unable to establish"
_FELL_SILENT = "Close Session command failed"  # there was a session, and then no answer any more
# What `ipmitool -v` says when the BMC answered, and said no.
_LOGIN_REFUSED = re.compile(
    r"RAKP \d.* error ?: ?(unauthorized name|invalid integrity check value|invalid role|unauthorized role.*)"
    r"|RAKP 2 HMAC is invalid|Invalid user name|Activate Session error|password is longer"
)
_SESSION_REFUSED = re.compile(r"Error in open session response message ?: ?(.+)|RAKP \d.* error ?: ?(.+)")
_UNSUPPORTED = re.compile(r"rsp=0xc1\b|: Invalid command\b")


class IpmiBmc:
    """A BMC spoken to by ``ipmitool``, one process a command.

    :raises UsageError: user or password longer than IPMI allows, which some BMCs cut short in silence.
    """

    def __init__(self, board: str, spec: BmcSpec, credential: Credential, pace: Pace | None = None) -> None:
        if len(credential.user.encode()) > 16 or len(credential.password.encode()) > 20:
            raise UsageError(f"{board}: credential {spec.credential!r}: IPMI takes 16 bytes of user and 20 of password")
        self.board = board
        self._spec = spec
        self._credential = credential
        self._pace = pace or Pace()
        self._history: deque[Exchange] = deque(maxlen=switching.HISTORY_LENGTH)
        self._quiet_until = 0.0
        self._log = _log.getChild(board)

    @property
    def history(self) -> tuple[Exchange, ...]:
        """The last commands and what they printed, oldest first."""
        return tuple(self._history)

    def is_powered(self) -> bool:
        """Chassis power as the BMC reports it now."""
        return self._ask(r"Chassis Power is (on|off)", "chassis", "power", "status")[1] == "on"

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """Power on, repeated until the BMC has reported it on for a while, or once and ``proof`` is true.

        Sends nothing when it is on already: a sleeping board would take that for its power button.

        :raises PowerTimeout: not on within ``timeout`` seconds.
        :raises BmcUnreachable: no answer, neither at first nor at the deadline.
        """
        self._power("on", "Up/On", timeout, proof)

    def power_off(self, timeout: float = 30.0) -> None:
        """Take the power away, repeated until the BMC has reported it off for a while.

        Nothing is shut down; what was in memory is lost. Raises as :meth:`power_on` does.
        """
        self._power("off", "Down/Off", timeout)

    def cycle(self, timeout: float = 30.0) -> None:
        """Power off and on again, each of them seen; ``timeout`` is for each half.

        Not the BMC's own "power cycle": that answers before it acts, and the gap cannot be seen.
        """
        self.power_off(timeout)
        self.power_on(timeout)

    def reset(self) -> None:
        """Pull the reset line; there is no status to verify it by."""
        self._control("reset", "Reset")

    def soft_off(self) -> None:
        """Ask for an orderly shutdown through ACPI, and do not wait for it."""
        self._control("soft", "Soft")

    def press_power_button(self) -> None:
        """Wake a sleeping board. IPMI has no button: "power on" is what wakes, whatever the status says."""
        self._control("on", "Up/On")

    def nmi(self) -> None:
        """Send a diagnostic interrupt.

        :raises MissingCapability: the BMC knows no such control.
        """
        try:
            self._control("diag", "Diag")
        except CommandFailed as error:
            # Chassis Control itself is mandatory, this value of it is not: hence also "invalid field".
            if _UNSUPPORTED.search(error.output) or "Invalid data field" in error.output:
                raise MissingCapability(self.board, "bmc-nmi") from error
            raise

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        """Choose what is booted next, or from now on.

        :raises UsageError: not one of none, pxe, disk, cdrom, bios.
        """
        switching.check_boot_device(device)
        options = () if once else ("options=persistent",)
        self._ask(f"Set Boot Device to {device}", "chassis", "bootdev", device, *options)

    def boot_device(self) -> str:
        """The choice in force; ``none`` as well when the BMC marks its boot flags as not valid."""
        data = self._raw(0x00, 0x09, 0x05, 0x00, 0x00, length=7)  # Get System Boot Options, boot flags
        valid, device = data[2] & 0x80, data[3] >> 2 & 0x0F
        return _BOOT_DEVICES.get(device, f"0x{device:x}") if valid else "none"

    def sleep_state(self) -> str:
        """The ACPI state the BMC knows the board to be in: ``S0`` to ``S5``, ``G3``, ``S4/S5``...

        :raises MissingCapability: the BMC lacks the command, or says that it does not know.
        """
        state = self._raw(0x06, 0x07, length=2, capability="bmc-sleep-state")[0] & 0x7F
        if state not in _SLEEP_STATES:
            raise MissingCapability(self.board, "bmc-sleep-state")
        return _SLEEP_STATES[state]

    def clock(self) -> datetime:
        """The time the BMC stamps its event log with, as if it kept UTC (some keep local time).

        :raises MissingCapability: no event log, or its clock was never set.
        """
        data = self._raw(0x0A, 0x48, length=4, capability="bmc-clock")  # Get SEL Time
        seconds = int.from_bytes(data, "little")
        if seconds < _CLOCK_UNSET_BELOW or seconds == 0xFFFFFFFF:
            raise MissingCapability(self.board, "bmc-clock")
        return datetime.fromtimestamp(seconds, UTC)

    def has_sol(self) -> bool:
        """Whether serial over LAN is enabled on the first channel (Get SOL Configuration Parameters, 26.3)."""
        return bool(self._raw(0x0C, 0x22, 0x01, 0x01, 0x00, 0x00, length=2)[1] & 1)

    def sensors(self) -> Mapping[str, str]:
        """Readings by name, such as ``35 degrees C``; a status other than ok stands in brackets."""
        # An empty repository must not be listed: ipmitool 1.8.19 then sends Clear SDR Repository.
        info = self._raw(0x0A, 0x20, length=14, capability="bmc-sensors")
        if not int.from_bytes(info[1:3], "little"):
            return {}
        found: dict[str, str] = {}
        for line in self._run("sdr", "list", timeout=_SENSORS_TIMEOUT).splitlines():
            cells = [cell.strip() for cell in line.rsplit("|", 2)]
            if len(cells) != 3:
                continue
            name, reading, status = cells
            twin = 2
            while name in found:  # names are not unique on every board
                name, twin = f"{cells[0]} #{twin}", twin + 1
            found[name] = reading if status in ("ok", "ns") else f"{reading} [{status}]"
        return found

    def info(self) -> Mapping[str, str]:
        """``mc info`` by its own headings; a list becomes one value with commas."""
        found: dict[str, str] = {}
        heading = ""
        for line in self._run("mc", "info").splitlines():
            key, colon, value = line.partition(":")
            if colon and not line[0].isspace():
                heading = key.strip()
                found[heading] = value.strip()
            elif heading and line.strip():
                found[heading] = ", ".join(filter(None, (found[heading], line.strip())))
        return found

    def _power(
        self, wanted: str, acknowledgement: str, timeout: float, proof: Callable[[], bool] | None = None
    ) -> None:
        def command() -> None:
            self._control(wanted, acknowledgement)

        switching.switch(self.board, wanted, self.is_powered, command, timeout, self._pace, self._log, proof=proof)

    def _control(self, action: str, acknowledgement: str) -> None:
        self._ask(f"Chassis Power Control: {acknowledgement}", "chassis", "power", action)

    def _ask(self, wanted: str, *command: str) -> re.Match[str]:
        output = self._run(*command)
        match = re.search(wanted, output)
        if match is None:
            raise CommandFailed(self.board, _shown(command), 0, self._history[-1].output)
        return match

    def _raw(self, *request: int, length: int, capability: str = "") -> bytes:
        """Send a request of bytes; the answer without its completion code, at least ``length`` long."""
        command = ("raw", *(f"0x{byte:02x}" for byte in request))
        try:
            answer = self._run(*command)
        except CommandFailed as error:
            if capability and _UNSUPPORTED.search(error.output):
                raise MissingCapability(self.board, capability) from error
            raise
        try:
            data = bytes.fromhex("".join(answer.split()))
        except ValueError:
            data = b""
        if len(data) < length:
            raise CommandFailed(self.board, _shown(command), 0, f"{length} bytes expected: {answer}")
        return data

    def _run(self, *command: str, timeout: float = _COMMAND_TIMEOUT) -> str:
        """What ``ipmitool`` wrote to stdout.

        :raises BmcUnreachable: no session, and the BMC said nothing; or it fell silent.
        :raises BmcRefused: no session, and the BMC said why.
        :raises CommandFailed: a session, but the command failed.
        """
        exchange, stdout = self._exchange(*_PATIENT, *command, timeout=timeout)
        if exchange.status == 0:
            return stdout
        if exchange.status is None:
            raise BmcUnreachable(
                self.board, f"BMC {self._address}: `{_shown(command)}` did not end within {timeout:.0f} s"
            )
        if _NO_SESSION in exchange.output or _LOGIN_REFUSED.search(exchange.output):
            raise self._no_session(exchange)
        if _FELL_SILENT in exchange.output:
            raise BmcUnreachable(self.board, f"BMC {self._address} fell silent: `{_shown(command)}` had no answer")
        raise CommandFailed(self.board, _shown(command), exchange.status, exchange.output)

    def _no_session(self, failed: Exchange) -> BenchError:
        """Why there was no session: only ``-v`` tells a wrong password from a dead BMC."""
        told = failed.output + self._exchange("-v", *_IMPATIENT, "mc", "info", timeout=_COMMAND_TIMEOUT)[0].output
        who = f"user {self._credential.user!r}, credential {self._spec.credential!r}"
        if match := _LOGIN_REFUSED.search(told):
            return BmcRefused(
                self.board,
                f"BMC {self._address} refused the login ({match[1] or match[0]}): check user and password; {who}",
            )
        if match := _SESSION_REFUSED.search(told):
            return BmcRefused(
                self.board,
                f"BMC {self._address} refused the session ({(match[1] or match[2]).strip()}): "
                f"check bmc.cipher ({self._spec.cipher}) in the inventory; {who}",
            )
        if "Address lookup" in told:
            return BmcUnreachable(self.board, f"BMC {self._address}: host name not known")
        return BmcUnreachable(self.board, f"BMC {self._address}: no answer within {failed.seconds:.0f} s")

    @property
    def _address(self) -> str:
        return f"{self._spec.host}:{self._spec.port}"

    def _exchange(self, *arguments: str, timeout: float) -> tuple[Exchange, str]:
        """Run ``ipmitool`` once; the record of it, and its stdout alone."""
        spec = self._spec
        wait_until(
            lambda: time.monotonic() >= self._quiet_until,
            self._pace.command_gap + 1.0,
            "pause between two commands",
            interval=0.02,
        )
        cipher = ("-C", str(spec.cipher)) if spec.interface == "lanplus" else ()
        where = ("-I", spec.interface, *cipher, "-H", spec.host, "-p", str(spec.port))
        argv = ("ipmitool", *where, "-U", self._credential.user, "-E", *arguments)
        began, started = time.time(), time.monotonic()
        status: int | None
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                env=self._environment(),
                check=False,
            )
            status, stdout, stderr = done.returncode, switching.printable(done.stdout), switching.printable(done.stderr)
        except subprocess.TimeoutExpired as late:
            status, stdout, stderr = None, switching.printable(late.stdout), switching.printable(late.stderr)
        except FileNotFoundError:
            raise UsageError("ipmitool is not installed: apt-get install ipmitool") from None
        self._quiet_until = time.monotonic() + self._pace.command_gap
        exchange = Exchange(began, argv, status, stdout + stderr, time.monotonic() - started)
        self._history.append(exchange)
        self._log.debug("%s: status %s in %.2f s", _shown(arguments), status, exchange.seconds)
        return exchange, stdout

    def _environment(self) -> dict[str, str]:
        """Not kept in a variable of the caller's frame: tracebacks may show those."""
        # IPMITOOL_PASSWORD must not be among them: with -E it would win over IPMI_PASSWORD.
        return processes.environment() | {"IPMI_PASSWORD": self._credential.password, "LC_ALL": "C"}


def _shown(command: tuple[str, ...]) -> str:
    return " ".join(("ipmitool", *command))
