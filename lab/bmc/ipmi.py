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
from typing import TypeVar

from lab.base.credentials import Credential
from lab.base.errors import (
    BenchError,
    BmcFellSilent,
    BmcUnreachable,
    CipherRefused,
    CommandFailed,
    MissingCapability,
    PowerUnknown,
    UsageError,
)
from lab.base.wait import wait_until
from lab.bmc import ipmitool, switching
from lab.bmc.switching import Exchange, Pace, Readings
from lab.inventory import BmcSpec

T = TypeVar("T")

_log = logging.getLogger(__name__)

_COMMAND_TIMEOUT = 25.0  # seconds; over the 14 s of a dead BMC, for an ipmitool that hangs
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
_SOUND = ("ok", "ns", "na")  # a sensor's status that is no fault; the last two: it has no reading
_CLOCK_UNSET_BELOW = 0x20000000  # IPMI v2.0 section 37: less is seconds since the BMC started

# IPMI v2.0 table 28-14, parameter 3: keep the boot flags when no Chassis Control comes within 60 s of them.
_KEEP_BOOT_FLAGS = (0x00, 0x08, 0x03, 0x08)
_BOOT_OPTIONS: Mapping[str, Callable[[BmcSpec, bool], bool]] = {
    "persistent": lambda spec, once: not once,
    "efiboot": lambda spec, once: spec.firmware == "uefi",
}
_POWER = r"(?im)^(?:Chassis Power is )?(on|off)\s*$"  # ipmitool says the whole of it, some makers' own the last word
_THIS_CHANNEL = 0x0E  # the one this request came in by (IPMI v2.0 table 6-1)


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
        self._cipher = ipmitool.suites(spec)[0]
        self._remarks: dict[str, None] = {}
        self._log = _log.getChild(board)

    @property
    def history(self) -> tuple[Exchange, ...]:
        """The last commands and what they printed, oldest first."""
        return tuple(self._history)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the BMC was found to need that the inventory does not say."""
        return tuple(self._remarks)

    @property
    def cipher(self) -> int:
        """The cipher suite in use; of an inventory that names none, known once something was asked."""
        return self._cipher

    def is_powered(self) -> bool:
        """Chassis power as the BMC reports it now."""
        return self._read_power()

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
        """Ask for an orderly shutdown through ACPI, and do not wait for it.

        :raises MissingCapability: the BMC knows no such control.
        """
        self._control_if_known("soft", "Soft", "bmc-soft-off")

    def press_power_button(self) -> None:
        """Wake a sleeping board. IPMI has no button: "power on" is what wakes, whatever the status says."""
        self._control("on", "Up/On")

    def nmi(self) -> None:
        """Send a diagnostic interrupt.

        :raises MissingCapability: the BMC knows no such control.
        """
        self._control_if_known("diag", "Diag", "bmc-nmi")

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        """Choose what is booted next, or from now on: by legacy BIOS or UEFI, as the inventory says of the board.

        The choice holds until the next boot, however late that is, if the BMC can do so; else for 60 s.

        :raises UsageError: not one of none, pxe, disk, cdrom, bios.
        Source: IPMI v2.0 table 28-14, parameters 3 and 5.
        """
        switching.check_boot_device(device)
        options = []
        if device != "none":
            try:
                self._run("raw", *(f"0x{byte:02x}" for byte in _KEEP_BOOT_FLAGS))
            except CommandFailed as error:
                self._log.info("the boot flags hold for 60 s: %s", error)
            options = [word for word, is_so in _BOOT_OPTIONS.items() if is_so(self._spec, once)]
        words = (f"options={','.join(options)}",) if options else ()
        self._ask(f"Set Boot Device to {device}", "chassis", "bootdev", device, *words)

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
        """Whether serial over LAN is enabled on the channel that the BMC is spoken to by.

        :raises CommandFailed: the BMC does not say.
        Source: IPMI v2.0 sections 26.3 (Get SOL Configuration Parameters) and 22.24 (Get Channel Info).
        """
        try:
            return self._has_sol(_THIS_CHANNEL)
        except CommandFailed as error:
            refusal = error
        # A BMC that wants the channel's own number is asked for it first.
        try:
            number = self._raw(0x06, 0x42, _THIS_CHANNEL, length=1)[0] & 0x0F
        except CommandFailed:
            raise refusal from None
        if number == _THIS_CHANNEL:
            raise refusal
        return self._has_sol(number)

    def sensors(self) -> Readings:
        """Readings by name, such as ``35 degrees C``; a status other than ok stands in brackets.

        A record that cannot be read costs its reading alone, and stands in ``unread``.

        :raises MissingCapability: the BMC has no repository of sensors.
        """
        # An empty repository must not be listed: ipmitool 1.8.19 then sends Clear SDR Repository.
        info = self._raw(0x0A, 0x20, length=3, capability="bmc-sensors")  # Get SDR Repository Info: version, records
        if not int.from_bytes(info[1:3], "little"):
            return Readings()
        found, problems = Readings(), list[str]()
        output = self._run("sdr", "list", timeout=_SENSORS_TIMEOUT, problems=problems)
        for line in output.splitlines():
            cells = [cell.strip() for cell in line.rsplit("|", 2)]
            if len(cells) == 3:
                name, reading, status = cells
                found.add(name, reading or "no reading" if status in _SOUND else f"{reading} [{status}]")
        found.unread = tuple(problems)
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
            self._control(wanted, acknowledgement, patience=0.0)

        def is_powered() -> bool:
            return self._read_power(0.0)

        switching.switch(self.board, wanted, is_powered, command, timeout, self._pace, self._log, proof=proof)

    def _read_power(self, patience: float | None = None) -> bool:
        """Whether there is power. :raises PowerUnknown: ipmitool says neither that, nor why it does not."""
        try:
            match = self._ask(_POWER, "chassis", "power", "status", patience=patience)
        except CommandFailed as error:
            if error.status or error.code:
                raise
            told = error.output.strip() or "nothing is said"
            raise PowerUnknown(self.board, error.command, 0, f"the BMC does not know: {told}") from None
        return match[1].lower() == "on"

    def _control(self, action: str, acknowledgement: str, patience: float | None = None) -> None:
        self._ask(f"Chassis Power Control: {acknowledgement}", "chassis", "power", action, patience=patience)

    def _control_if_known(self, action: str, acknowledgement: str, capability: str) -> None:
        """A control that not every BMC has. :raises MissingCapability: this one has not."""
        try:
            self._control(action, acknowledgement)
        except CommandFailed as error:
            # Chassis Control itself is mandatory, this value of it is not: hence also "invalid data" or "out of range".
            if ipmitool.completion_code(error.output) in (*ipmitool.UNSUPPORTED_CODES, 0xC9, 0xCC):
                raise MissingCapability(self.board, capability) from error
            raise

    def _has_sol(self, channel: int) -> bool:
        return bool(self._raw(0x0C, 0x22, channel, 0x01, 0x00, 0x00, length=2)[1] & 1)

    def _ask(self, wanted: str, *command: str, patience: float | None = None) -> re.Match[str]:
        """Run a command whose output must have ``wanted`` in it; ipmitool's status does not tell."""

        def once() -> re.Match[str]:
            output = self._run(*command, patience=0.0)
            match = re.search(wanted, output)
            if match is None:
                raise ipmitool.failure(self.board, _shown(command), 0, self._history[-1].output)
            return match

        return self._patiently(once, patience, command)

    def _raw(self, *request: int, length: int, capability: str = "") -> bytes:
        """Send a request of bytes; the answer without its completion code, at least ``length`` long."""
        command = ("raw", *(f"0x{byte:02x}" for byte in request))
        try:
            answer = self._run(*command)
        except CommandFailed as error:
            if capability and ipmitool.completion_code(error.output) in ipmitool.UNSUPPORTED_CODES:
                raise MissingCapability(self.board, capability) from error
            raise
        data = ipmitool.data(answer)
        if len(data) < length:
            raise CommandFailed(self.board, _shown(command), 0, f"{length} bytes expected: {answer}")
        return data

    def _run(
        self,
        *command: str,
        timeout: float = _COMMAND_TIMEOUT,
        patience: float | None = None,
        problems: list[str] | None = None,
    ) -> str:
        """What ``ipmitool`` wrote to stdout.

        A BMC that is busy, or has no session free, is asked again for ``patience`` seconds; None: as the pace says. A
        command that failed in
        part is taken for good where ``problems`` are asked for: they are what it wrote to stderr.

        :raises BmcUnreachable: no session, and the BMC said nothing.
        :raises BmcFellSilent: it said nothing any more.
        :raises NoSessionNow, BmcBusy: still no session, or still busy.
        :raises BmcRefused: no session, and the BMC said why.
        :raises CommandFailed: a session, but the command failed.
        """

        def once() -> str:
            try:
                return self._try(command, timeout, problems)
            except CipherRefused as error:
                first, *others = ipmitool.suites(self._spec)
                if not others or self._cipher != first:
                    raise
                refusal, self._cipher = error, others[0]
            try:
                output = self._try(command, timeout, problems)
            except (CipherRefused, BmcUnreachable) as error:
                self._cipher = first
                raise (refusal if isinstance(error, CipherRefused) else error) from None
            self._remark(
                f"the BMC does not take cipher suite {first}, so {self._cipher} is used: say bmc.cipher: "
                f"{self._cipher} in the inventory"
            )
            return output

        return self._patiently(once, patience, command)

    def _patiently(self, once: Callable[[], T], patience: float | None, command: tuple[str, ...]) -> T:
        wait = self._pace.patience if patience is None else patience
        return switching.patiently(once, wait, _shown(command), self._log)

    def _try(self, command: tuple[str, ...], timeout: float, problems: list[str] | None) -> str:
        exchange, stdout = self._exchange(*ipmitool.PATIENT, *command, timeout=timeout)
        if exchange.status == 0:
            return stdout
        if exchange.status is None:
            raise BmcUnreachable(
                self.board, f"BMC {self._address}: `{_shown(command)}` did not end within {timeout:.0f} s"
            )
        if ipmitool.is_without_session(exchange.output):
            raise self._no_session(exchange)
        if problems is not None and stdout.strip():
            stderr = exchange.output.removeprefix(stdout)
            lines = [line.strip() for line in stderr.splitlines() if line.strip() and ipmitool.NOISE not in line]
            problems += lines or ["ipmitool does not say what"]
            return stdout
        if ipmitool.fell_silent(exchange.output):
            raise BmcFellSilent(self.board, f"BMC {self._address} fell silent: `{_shown(command)}` had no answer")
        raise ipmitool.failure(self.board, _shown(command), exchange.status, exchange.output)

    def _no_session(self, failed: Exchange) -> BenchError:
        """Why there was no session: mostly only ``-v`` tells, as a wrong password from a dead BMC."""

        def why(told: str, *, is_verbose: bool) -> BenchError | None:
            user = self._credential.user
            return ipmitool.why_no_session(self.board, self._spec, user, self._cipher, told, is_verbose=is_verbose)

        if found := why(failed.output, is_verbose=False):
            return found
        # A slow BMC that has answered at all is given as much time as before.
        pace = ipmitool.PATIENT if failed.seconds < ipmitool.DEAD_AFTER else ipmitool.IMPATIENT
        more = self._exchange("-v", *pace, "mc", "info", timeout=_COMMAND_TIMEOUT)[0].output
        words = ipmitool.unknown_words(failed.output)
        text = f"no session: {words}" if words else f"no answer within {failed.seconds:.0f} s"
        silence = BmcUnreachable(self.board, f"BMC {self._address}: {text}")
        return why(failed.output + more, is_verbose=True) or silence

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks[text] = None
            self._log.warning("%s", text)

    @property
    def _address(self) -> str:
        return f"{self._spec.host}:{self._spec.port}"

    def _exchange(self, *arguments: str, timeout: float) -> tuple[Exchange, str]:
        """Run ``ipmitool`` once; the record of it, and its stdout alone."""
        wait_until(
            lambda: time.monotonic() >= self._quiet_until,
            self._pace.command_gap + 1.0,
            "pause between two commands",
            interval=0.02,
        )
        argv = (*ipmitool.words(self._spec, self._credential, self._cipher), *arguments)
        began, started = time.time(), time.monotonic()
        status: int | None
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                env=ipmitool.environment(self._credential),
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


def _shown(command: tuple[str, ...]) -> str:
    return " ".join(("ipmitool", *command))
