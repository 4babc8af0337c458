"""Redfish, by ``sushy``. Sources: DSP0266 (protocol), DSP0268 (ComputerSystem, Manager, Chassis)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import sushy
from sushy import exceptions
from sushy.resources.system.system import System

from lab.base.credentials import Credential
from lab.base.errors import (
    BmcBusy,
    BmcUnreachable,
    CommandFailed,
    CommandRefused,
    MissingCapability,
    PowerTimeout,
    PowerUnknown,
    WaitTimeout,
)
from lab.base.wait import wait_until
from lab.bmc import redfish_sensors, switching
from lab.bmc.redfish_answers import BUSY, Resource, elements, not_changed, part, path_of, reference, said, said_of
from lab.bmc.redfish_service import RedfishService
from lab.bmc.switching import Exchange, Pace, Readings
from lab.inventory import BmcSpec

_log = logging.getLogger(__name__)

_SENSORS_TIMEOUT = 90.0  # seconds; a few hundred resources, read one by one from a slow BMC
_CLOCK_UNSET_BELOW = datetime(1987, 1, 1, tzinfo=UTC)  # a clock that counts from the epoch since the BMC started

# DSP0268, Resource, PowerState: whether that is power.
_POWER = {"On": True, "Paused": True, "Off": False}
_ON_ITS_WAY = {"PoweringOff": True, "PoweringOn": False}  # it does not count as there yet
_BOOT_SOURCES = {
    "none": sushy.BootSource.NONE,
    "pxe": sushy.BootSource.PXE,
    "disk": sushy.BootSource.HDD,
    "cdrom": sushy.BootSource.CD,
    "bios": sushy.BootSource.BIOS_SETUP,
}
_DISABLED = sushy.BootSourceOverrideEnabled.DISABLED
# DSP0268, Task, TaskState: the ones of a task that will not get its work done, and of one that still has it before it.
_TASK_FAILED = frozenset({"Exception", "Killed", "Cancelled", "Interrupted", "Suspended"})
_TASK_RUNS = frozenset({"New", "Starting", "Running", "Pending", "Stopping", "Service", "Cancelling"})
_TASK_WATCHED = 5.0  # seconds that the task of a command is watched whose effect nobody sees
_RESET = "#ComputerSystem.Reset"


@dataclass(frozen=True, slots=True)
class SshConsole:
    """A serial console behind SSH, at the BMC's address and with its users."""

    port: int
    entry: str  # what is typed to get at it


def ssh_console(system: Resource) -> SshConsole | None:
    """Of a system's resource. Source: DSP0268, ComputerSystem v1.13, SerialConsole.SSH."""
    told = part(part(system, "SerialConsole"), "SSH")
    port = told.get("Port") or 22
    if not told.get("ServiceEnabled") or not isinstance(port, int):
        return None
    return SshConsole(port, str(told.get("ConsoleEntryCommand") or ""))


class RedfishBmc:
    """A BMC spoken to by Redfish. Nothing is asked before the first command.

    :raises UsageError: the file with the certificate is not there.
    """

    def __init__(self, board: str, spec: BmcSpec, credential: Credential, pace: Pace | None = None) -> None:
        self.board = board
        self._pace = pace or Pace()
        self._log = _log.getChild(board)
        self._service = RedfishService(board, spec, credential, self._pace, self._log)
        self._task: str | None = None  # what the service does about the last command

    @property
    def history(self) -> tuple[Exchange, ...]:
        """The last requests and what was answered, oldest first. A request without an answer is not in it."""
        return tuple(self._service.history)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the service was found to need that the inventory does not say."""
        return tuple(self._service.remarks)

    def is_powered(self) -> bool:
        """Whether the system has power; on its way to either counts as not there yet.

        :raises PowerUnknown: the service does not know, as some do for seconds.
        """
        return self._read_power(self._pace.patience)

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """Power on, repeated until the BMC has reported it on for a while, or once and ``proof`` is true.

        Sends nothing when it is on already.

        :raises PowerTimeout: not on within ``timeout`` seconds.
        :raises PowerUnknown: the service still does not know at the deadline.
        :raises CommandRefused: the service offers no way to power on.
        :raises BmcUnreachable: no answer, neither at first nor at the deadline.
        """
        self._switch("on", (sushy.ResetType.ON, sushy.ResetType.FORCE_ON), timeout, proof)

    def power_off(self, timeout: float = 30.0) -> None:
        """Take the power away, repeated until the BMC has reported it off for a while; raises as :meth:`power_on`."""
        self._switch("off", (sushy.ResetType.FORCE_OFF,), timeout)

    def cycle(self, timeout: float = 30.0) -> None:
        """Power off and on again, each of them seen; ``timeout`` is for each half.

        A service that offers no ForceOff is told to do it by itself, by PowerCycle or else ForceRestart: then the gap
        cannot be seen.
        """
        try:
            self.power_off(timeout)
        except _NotOffered:
            self._service.remark("no Reset of ForceOff: a cycle is the BMC's own, and its gap is not seen")
            self._reset(sushy.ResetType.POWER_CYCLE, sushy.ResetType.FORCE_RESTART)
        self.power_on(timeout)

    def reset(self) -> None:
        """Pull the reset line; there is no status to verify it by. :raises CommandRefused: it is not offered."""
        self._reset_watched(sushy.ResetType.FORCE_RESTART)

    def soft_off(self) -> None:
        """Ask for an orderly shutdown, and do not wait for it. :raises MissingCapability: it is not offered."""
        kinds = (sushy.ResetType.GRACEFUL_SHUTDOWN, sushy.ResetType.PUSH_POWER_BUTTON)
        self._reset_watched(*kinds, capability="bmc-soft-off")

    def press_power_button(self) -> None:
        """Wake a sleeping board; power on one that is off. On one that is awake the real button shuts it down."""
        self._reset_watched(sushy.ResetType.PUSH_POWER_BUTTON, sushy.ResetType.ON)

    def nmi(self) -> None:
        """Send a diagnostic interrupt. :raises MissingCapability: the BMC offers none."""
        self._reset_watched(sushy.ResetType.NMI, capability="bmc-nmi")

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        """Choose what is booted next, or from now on; by legacy BIOS or UEFI as it is in force.

        :raises UsageError: not one of none, pxe, disk, cdrom, bios.
        :raises CommandRefused: the service does not offer this one.
        """
        switching.check_boot_device(device)
        every = sushy.BootSourceOverrideEnabled
        enabled = _DISABLED if device == "none" else every.ONCE if once else every.CONTINUOUS

        def override(system: System) -> None:
            target = None if device == "none" else _BOOT_SOURCES[device]  # not every service takes "None" for a target
            if target is not None and target not in (offered := system.get_allowed_system_boot_source_values()):
                words = ", ".join(sorted(source.value for source in offered))
                raise CommandRefused(self.board, f"Redfish: boot override {device}", 0, f"the BMC offers {words}")
            try:
                _override_boot(system, target, enabled)
            except exceptions.BadRequestError as refusal:
                refused = self._service.last
                system.refresh(force=True)  # an iDRAC 8 refuses what it has done
                if not _is_overridden(system, target, enabled):
                    self._service.last = refused
                    raise
                self._log.info("%s is in force, though it was refused: %s", what, refusal)
                return
            self._task = self._task_of_answer()
            self._check_change(what)

        what = f"boot override {device}"
        self._service.ask(what, override)
        self._watch_task(what)

    def boot_device(self) -> str:
        """The override in force; ``none`` when there is none."""
        boot = self._service.ask("boot override", lambda system: system.boot)
        if boot is None or boot.enabled in (None, _DISABLED) or boot.target is None:
            return "none"
        names = {source: name for name, source in _BOOT_SOURCES.items()}
        return names.get(boot.target, str(boot.target.value))

    def sleep_state(self) -> str:
        """``S4/S5`` when power is off.

        :raises MissingCapability: power is on: Redfish has no word for sleep, so that may be S0 or S3.
        """
        if not self.is_powered():
            return "S4/S5"
        raise MissingCapability(self.board, "bmc-sleep-state")

    def clock(self) -> datetime:
        """The BMC's time. :raises MissingCapability: no manager tells one that was set."""

        def read(_: System) -> list[object]:
            return [manager.get("DateTime") for manager in self._service.linked("ManagedBy", "Managers", [])]

        for text in self._service.ask("clock", read):
            try:
                found = datetime.fromisoformat(str(text))
            except ValueError:  # none, or one of zeros
                continue
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
            if found >= _CLOCK_UNSET_BELOW:
                return found
        raise MissingCapability(self.board, "bmc-clock")

    def sensors(self) -> Readings:
        """Temperatures, fans and more by name, such as ``35 degrees C``; a health other than OK stands in brackets.

        :raises MissingCapability: the service offers no sensors.
        """

        def read(_: System) -> Readings:
            unread, deadline, left = list[str](), time.monotonic() + _SENSORS_TIMEOUT, list[str]()

            def get(path: str) -> Resource | None:
                if time.monotonic() > deadline:
                    left.append(path)
                    return None
                return self._service.get_or_none(path, unread)

            chassis = self._service.linked("Chassis", "Chassis", unread)
            found = redfish_sensors.readings(chassis, get)
            late = [f"{len(left)} resources, not within {_SENSORS_TIMEOUT:.0f} s"] if left else []
            found.unread = (*unread, *late)
            return found

        found = self._service.ask("sensors", read)
        if not found and not found.unread:
            raise MissingCapability(self.board, "bmc-sensors")
        return found

    def ssh_console(self) -> SshConsole | None:
        """Where the serial console is to be had by SSH; None: nowhere, or the BMC does not say."""
        return ssh_console(self._service.ask("the serial console", lambda system: system.json))

    def systems(self) -> dict[str, str | None]:
        """The systems behind this BMC and the UUID of each, by name.

        :raises UsageError: the inventory says ``system``, and there is no such one.
        """
        return self._service.systems()

    def info(self) -> Mapping[str, str]:
        """Of the service, the system and its managers, by the names Redfish has for them."""

        def read(system: System) -> dict[str, object]:
            root = self._service.root
            found: dict[str, object] = {name: root.get(name) for name in ("RedfishVersion", "Product")}
            found |= {name: system.json.get(name) for name in ("Manufacturer", "Model", "BiosVersion", "UUID")}
            for manager in self._service.linked("ManagedBy", "Managers", []):
                found |= {
                    "Manager": manager.get("Model") or manager.get("Name"),
                    "FirmwareVersion": manager.get("FirmwareVersion"),
                }
                console = part(manager, "SerialConsole")
                if console.get("ServiceEnabled"):
                    found["SerialConsole"] = ", ".join(map(str, elements(console.get("ConnectTypesSupported"))))
            return found

        told = self._service.ask("information", read)
        return {key: switching.printable(str(value).encode()) for key, value in told.items() if value}

    # -- power -------------------------------------------------------------------------------------------------

    def _read_power(self, patience: float, wanted: bool | None = None) -> bool:
        """Whether the system has power; one on its way has not what is ``wanted``, whichever that is."""

        def read(system: System) -> tuple[object, object]:
            told = system.json.get("PowerState@Message.ExtendedInfo") or system.json.get("@Message.ExtendedInfo")
            return system.json.get("PowerState"), told

        state, told = self._service.ask("power state", read, patience)
        if isinstance(state, str) and state in _POWER:
            return _POWER[state]
        if isinstance(state, str) and state in _ON_ITS_WAY:
            return _ON_ITS_WAY[state] if wanted is None else not wanted
        why = f"; {reason}" if str(reason := said({"@Message.ExtendedInfo": told})) else ""
        unknown = f"the BMC does not know: PowerState is {state!r}{why}"
        raise PowerUnknown(self.board, "Redfish: power state", 0, unknown)

    def _switch(
        self,
        wanted: str,
        kinds: tuple[sushy.ResetType, ...],
        timeout: float,
        proof: Callable[[], bool] | None = None,
    ) -> None:
        def is_powered() -> bool:
            return self._read_power(0.0, wanted == "on")

        def command() -> None:
            self._reset(*kinds, patience=0.0)

        try:
            switching.switch(self.board, wanted, is_powered, command, timeout, self._pace, self._log, proof=proof)
        except PowerTimeout as error:
            if error.reason is None and (reason := self._look_at_task()[1]):
                raise PowerTimeout(self.board, wanted, error.waited, reason) from None
            raise

    def _reset(self, *kinds: sushy.ResetType, capability: str = "", patience: float | None = None) -> None:
        """The first of these kinds of Reset that the system offers.

        :raises MissingCapability: it offers none of them, if that would be ``capability``.
        :raises CommandRefused: it offers none of them.
        """

        def act(system: System) -> None:
            action = part(part(system.json, "Actions"), _RESET)
            target, offered = path_of(action.get("target")), self._kinds_of_reset(action)
            kind = next((kind for kind in kinds if kind in offered), None) if target else None
            if target is None or kind is None:
                if capability:
                    raise MissingCapability(self.board, capability)
                words = " or ".join(kind.value for kind in kinds)
                there = ", ".join(sorted(kind.value for kind in offered)) if target else "no Reset at all"
                raise _NotOffered(self.board, f"Reset {words}", 0, f"the BMC offers {there or 'none'}")
            self._log.debug("Reset %s", kind.value)
            self._service.post(target, {"ResetType": kind.value})
            self._task = self._task_of_answer()

        self._service.ask(f"Reset {kinds[0].value}", act, patience)

    def _reset_watched(self, *kinds: sushy.ResetType, capability: str = "") -> None:
        """A Reset whose effect nobody sees here. :raises CommandFailed: its task says that there was none."""
        self._reset(*kinds, capability=capability)
        self._watch_task(f"Reset {kinds[0].value}")

    def _kinds_of_reset(self, action: Resource) -> frozenset[sushy.ResetType]:
        """The kinds that the system offers: all, where it does not say. Source: DSP0266, action info."""
        values = action.get("ResetType@Redfish.AllowableValues")
        info = action.get("@Redfish.ActionInfo")
        if not values and (path := path_of(info) or reference(info)):
            found = self._service.get_or_none(path, []) or {}
            named = [one for one in elements(found.get("Parameters")) if isinstance(one, Mapping)]
            values = next((one.get("AllowableValues") for one in named if one.get("Name") == "ResetType"), None)
        words = list(elements(values))
        return frozenset(kind for kind in sushy.ResetType if kind.value in words or not words)

    def _check_change(self, what: str) -> None:
        """:raises CommandFailed: the last answer is a success by its status, and says that nothing was changed."""
        answer = self._service.last
        try:
            reason = None if answer is None else not_changed(answer.json())
        except ValueError:
            return
        if answer is not None and reason:
            status, text = answer.status_code, reason.message or reason.name
            raise CommandFailed(self.board, f"Redfish: {what}", status, text, reason.message_id)

    def _task_of_answer(self) -> str | None:
        """Where the task is followed that the last answer was, if it was one (DSP0266, asynchronous operations)."""
        answer = self._service.last
        if answer is None or answer.status_code != 202:
            return None
        try:
            body = answer.json()
        except ValueError:
            body = None
        return reference(body) or path_of(answer.headers.get("Location"))

    def _watch_task(self, what: str) -> None:
        """See that the last command's task does not fail, as long as one waits for such a thing.

        :raises CommandFailed: it failed.
        """

        def has_ended() -> bool:
            try:
                runs, failure = self._look_at_task()
            except (BmcBusy, BmcUnreachable):  # the command was taken; its BMC has too much to do to tell of it
                return False
            if failure:
                raise CommandFailed(self.board, f"Redfish: {what}", 202, failure)
            return not runs

        with contextlib.suppress(WaitTimeout):  # it still runs
            wait_until(has_ended, _TASK_WATCHED, what, interval=self._pace.poll)

    def _look_at_task(self) -> tuple[bool, str | None]:
        """Whether there is a task of the last command that still runs; and what it failed by, if it did."""
        if self._task is None:
            return False, None
        task, unread = self._task, list[str]()
        found = self._service.ask("task", lambda _: self._service.get_or_none(task, unread), 0.0)
        answer = self._service.last
        status = answer.status_code if answer is not None else 0
        if answer is not None and found is None:  # a monitor gives what the command came to; a task may be gone
            failed = status >= 400 and status not in (404, 410) and status not in BUSY
            failure = f"its task ended with HTTP {status}: {said_of(answer)}" if failed else None
            return status == 202 or status in BUSY, failure
        state = str((found or {}).get("TaskState"))
        if state in _TASK_FAILED or (found or {}).get("TaskStatus") == "Critical":
            return False, f"its task ended as {state}: {said(found)}"
        return state in _TASK_RUNS, None


class _NotOffered(CommandRefused):
    """The system has no such kind of Reset."""


def _override_boot(system: System, target: sushy.BootSource | None, enabled: sushy.BootSourceOverrideEnabled) -> None:
    mode, is_listed = _boot_mode(system)
    try:
        system.set_system_boot_options(target, enabled=enabled, mode=mode if is_listed else None)
    except exceptions.BadRequestError:
        if mode is None:
            raise
        # Some demand the mode without a list of the modes there are, others list it and take none.
        system.set_system_boot_options(target, enabled=enabled, mode=None if is_listed else mode)


def _is_overridden(system: System, target: sushy.BootSource | None, enabled: sushy.BootSourceOverrideEnabled) -> bool:
    boot = system.boot
    return boot is not None and boot.enabled == enabled and target in (None, boot.target)


def _boot_mode(system: System) -> tuple[sushy.BootSourceOverrideMode | None, bool]:
    """The mode in force, and whether the service lists it among those it takes. None: it tells no mode."""
    boot = part(system.json, "Boot")
    listed = boot.get("BootSourceOverrideMode@Redfish.AllowableValues")
    try:
        mode = sushy.BootSourceOverrideMode(boot.get("BootSourceOverrideMode"))
    except ValueError:
        return None, False
    return mode, isinstance(listed, list) and mode.value in listed
