"""Redfish, by ``sushy``. Sources: DSP0266 (protocol), DSP0268 (ComputerSystem, Manager, Thermal).

Each request logs in by itself (HTTP basic authentication, which DSP0266 demands of a service): BMCs have few
sessions, and a worker that was killed would leave its own behind.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sushy
from requests.adapters import HTTPAdapter
from sushy import auth, exceptions
from sushy.connector import Connector
from urllib3.exceptions import InsecureRequestWarning

from lab.base.credentials import Credential
from lab.base.errors import BmcRefused, BmcUnreachable, CommandFailed, MissingCapability, UsageError
from lab.bmc import switching
from lab.bmc.switching import Exchange, Pace
from lab.inventory import BmcSpec

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_TIMEOUT = 5.0
_READ_TIMEOUT = 25.0  # seconds; BMCs compute an answer for some, and are slow to
# How often sushy sends a request. Once, since it also repeats a Reset whose answer was lost, which would press the
# button a second time; and a GET that the service failed at (5xx) once more after this many seconds.
_TRIES = 1
_TRY_AGAIN = 1.0

_BOOT_SOURCES = {
    "none": sushy.BootSource.NONE,
    "pxe": sushy.BootSource.PXE,
    "disk": sushy.BootSource.HDD,
    "cdrom": sushy.BootSource.CD,
    "bios": sushy.BootSource.BIOS_SETUP,
}
_DISABLED = sushy.BootSourceOverrideEnabled.DISABLED


class _Pinned(HTTPAdapter):
    """Connections to whoever has this certificate, whatever name and dates are in it: BMCs sign their own, badly."""

    def __init__(self, certificate: Path) -> None:
        try:
            encoded = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise UsageError(f"bmc.ca_file {certificate}: no certificate (PEM): {error}") from None
        self._fingerprint = hashlib.sha256(encoded).hexdigest()
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, assert_fingerprint=self._fingerprint, **options)


@dataclass(frozen=True, slots=True)
class SshConsole:
    """A serial console behind SSH, at the BMC's address and with its users."""

    port: int
    entry: str  # what is typed to get at it


def ssh_console(system: Mapping[str, Any]) -> SshConsole | None:
    """Of a system's resource. Source: DSP0268, ComputerSystem v1.13, SerialConsole.SSH."""
    told = (system.get("SerialConsole") or {}).get("SSH") or {}
    if not told.get("ServiceEnabled"):
        return None
    return SshConsole(int(told.get("Port") or 22), str(told.get("ConsoleEntryCommand") or ""))


class RedfishBmc:
    """A BMC spoken to by Redfish. Nothing is asked before the first command.

    :raises UsageError: the file with the certificate is not there.
    """

    def __init__(self, board: str, spec: BmcSpec, credential: Credential, pace: Pace | None = None) -> None:
        if spec.ca_file and not Path(spec.ca_file).is_file():
            raise UsageError(f"{board}: bmc.ca_file {spec.ca_file}: no such file")
        self.board = board
        self._spec = spec
        self._credential = credential
        self._pace = pace or Pace()
        self._history: deque[Exchange] = deque(maxlen=switching.HISTORY_LENGTH)
        self._system: Any = None
        self._root: Any = None
        self._log = _log.getChild(board)

    @property
    def history(self) -> tuple[Exchange, ...]:
        """The last requests and what was answered, oldest first. A request without an answer is not in it."""
        return tuple(self._history)

    def is_powered(self) -> bool:
        """Whether the system has power; on its way to either counts as not there yet."""
        return self._ask("power state", lambda system: system.power_state) in (
            sushy.PowerState.ON,
            sushy.PowerState.POWERING_OFF,
            sushy.PowerState.PAUSED,
        )

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """Power on, repeated until the BMC has reported it on for a while, or once and ``proof`` is true.

        Sends nothing when it is on already.

        :raises PowerTimeout: not on within ``timeout`` seconds.
        :raises BmcUnreachable: no answer, neither at first nor at the deadline.
        """
        self._switch("on", (sushy.ResetType.ON, sushy.ResetType.FORCE_ON), timeout, proof)

    def power_off(self, timeout: float = 30.0) -> None:
        """Take the power away, repeated until the BMC has reported it off for a while; raises as :meth:`power_on`."""
        self._switch("off", (sushy.ResetType.FORCE_OFF,), timeout)

    def cycle(self, timeout: float = 30.0) -> None:
        """Power off and on again, each of them seen; ``timeout`` is for each half."""
        self.power_off(timeout)
        self.power_on(timeout)

    def reset(self) -> None:
        """Pull the reset line; there is no status to verify it by."""
        self._reset(sushy.ResetType.FORCE_RESTART)

    def soft_off(self) -> None:
        """Ask for an orderly shutdown, and do not wait for it."""
        self._reset(sushy.ResetType.GRACEFUL_SHUTDOWN, sushy.ResetType.PUSH_POWER_BUTTON)

    def press_power_button(self) -> None:
        """Wake a sleeping board; power on one that is off. On one that is awake the real button shuts it down."""
        self._reset(sushy.ResetType.PUSH_POWER_BUTTON, sushy.ResetType.ON)

    def nmi(self) -> None:
        """Send a diagnostic interrupt. :raises MissingCapability: the BMC offers none."""
        self._reset(sushy.ResetType.NMI, capability="bmc-nmi")

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        """Choose what is booted next, or from now on.

        :raises UsageError: not one of none, pxe, disk, cdrom, bios.
        """
        switching.check_boot_device(device)
        every = sushy.BootSourceOverrideEnabled
        enabled = _DISABLED if device == "none" else every.ONCE if once else every.CONTINUOUS

        def override(system: Any) -> None:
            target = None if device == "none" else _BOOT_SOURCES[device]  # not every service takes "None" for a target
            system.set_system_boot_options(target, enabled=enabled)

        self._ask(f"boot override {device}", override)

    def boot_device(self) -> str:
        """The override in force; ``none`` when there is none."""
        boot = self._ask("boot override", lambda system: system.boot)
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
        """The BMC's time. :raises MissingCapability: it does not tell."""
        said = self._ask("clock", lambda system: [manager.datetime for manager in _parts(system, "managers")])
        for text in filter(None, said):
            found = datetime.fromisoformat(text)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        raise MissingCapability(self.board, "bmc-clock")

    def sensors(self) -> Mapping[str, str]:
        """Temperatures and fans by name, such as ``35 degrees C``; a health other than OK stands in brackets."""
        found: dict[str, str] = {}

        def add(name: str, reading: object, unit: str, status: Any) -> None:
            health = status.health if status else None
            remark = "" if health in (None, sushy.HEALTH_OK) else f" [{health.value}]"
            key, twin = name, 2
            while key in found:  # names are not unique on every board
                key, twin = f"{name} #{twin}", twin + 1
            found[key] = "no reading" if reading is None else f"{reading} {unit}{remark}"

        def read(system: Any) -> None:
            for chassis in _parts(system, "chassis"):
                try:
                    thermal = chassis.thermal
                except (exceptions.MissingAttributeError, exceptions.ResourceNotFoundError):
                    continue  # a chassis need not have one
                for one in thermal.temperatures:
                    add(one.name, one.reading_celsius, "degrees C", one.status)
                for one in thermal.fans:
                    add(
                        one.name or one.fan_name,
                        one.reading,
                        one.reading_units.value if one.reading_units else "",
                        one.status,
                    )

        self._ask("sensors", read)
        return {switching.printable(key.encode()): switching.printable(value.encode()) for key, value in found.items()}

    def ssh_console(self) -> SshConsole | None:
        """Where the serial console is to be had by SSH; None: nowhere, or the BMC does not say."""
        return ssh_console(self._ask("the serial console", lambda system: system.json))

    def info(self) -> Mapping[str, str]:
        """Of the service, the system and its managers, by the names Redfish has for them."""

        def read(system: Any) -> dict[str, object]:
            found = {"RedfishVersion": self._root.redfish_version, "Product": self._root.product}
            found |= {name: system.json.get(name) for name in ("Manufacturer", "Model", "BiosVersion", "UUID")}
            for manager in _parts(system, "managers"):
                found |= {"Manager": manager.model or manager.name, "FirmwareVersion": manager.firmware_version}
                console = manager.serial_console
                if console and console.service_enabled:
                    found["SerialConsole"] = ", ".join(console.connect_types_supported or ())
            return found

        said = self._ask("information", read)
        return {key: switching.printable(str(value).encode()) for key, value in said.items() if value}

    # -- the service -------------------------------------------------------------------------------------------

    def _switch(
        self,
        wanted: str,
        kinds: tuple[sushy.ResetType, ...],
        timeout: float,
        proof: Callable[[], bool] | None = None,
    ) -> None:
        def command() -> None:
            self._reset(*kinds)

        switching.switch(self.board, wanted, self.is_powered, command, timeout, self._pace, self._log, proof=proof)

    def _reset(self, *kinds: sushy.ResetType, capability: str = "") -> None:
        """The first of these kinds of Reset that the system offers.

        :raises MissingCapability: none of them, if that would be ``capability``.
        """

        def act(system: Any) -> None:
            offered = system.get_allowed_reset_system_values()
            kind = next((kind for kind in kinds if kind in offered), None)
            if kind is None:
                if capability:
                    raise MissingCapability(self.board, capability)
                words = " or ".join(kind.value for kind in kinds)
                raise CommandFailed(self.board, f"Reset {words}", 0, f"the BMC offers {sorted(offered)}")
            self._log.debug("Reset %s", kind.value)
            system.reset_system(kind)

        self._ask(f"Reset {kinds[0].value}", act)

    def _ask(self, what: str, question: Callable[[Any], T]) -> T:
        """``question`` of the system as it is now.

        :raises BmcUnreachable: no answer.
        :raises BmcRefused: the login or the certificate is not taken.
        :raises CommandFailed: the service says no, or something that makes no sense.
        """
        try:
            with warnings.catch_warnings():  # who says `tls: unverified` has been told what it means
                warnings.simplefilter("ignore", InsecureRequestWarning)
                if self._system is None:
                    self._connect()
                else:
                    self._system.refresh(force=True)
                return question(self._system)
        except exceptions.ConnectionError as error:
            self._system = None
            said = str(error)
            if "ingerprints did not match" in said:
                raise BmcRefused(self.board, f"BMC {self._url}: has another certificate than bmc.ca_file") from None
            if "CERTIFICATE_VERIFY_FAILED" in said:
                raise BmcRefused(
                    self.board,
                    f"BMC {self._url}: its certificate is not trusted: name the one it is signed by in "
                    "bmc.ca_file, or its own with bmc.tls: pinned",
                ) from None
            raise BmcUnreachable(self.board, f"BMC {self._url}: {what}: no answer: {_reason(said)}") from None
        except exceptions.AccessError as error:
            self._system = None
            raise BmcRefused(
                self.board,
                f"BMC {self._url} refused the login (HTTP {error.status_code}): check user and password; "
                f"user {self._credential.user!r}, credential {self._spec.credential!r}",
            ) from None
        except exceptions.HTTPError as error:
            raise CommandFailed(self.board, f"Redfish: {what}", error.status_code, str(error)) from None
        except exceptions.SushyError as error:
            raise CommandFailed(self.board, f"Redfish: {what}", 0, str(error)) from None
        except ValueError as error:  # no JSON, or a date that is none
            raise CommandFailed(self.board, f"Redfish: {what}", 0, f"{type(error).__name__}: {error}") from None

    def _connect(self) -> None:
        spec = self._spec
        connector = Connector(
            self._url,
            verify=spec.tls == "verified" and (spec.ca_file or True),
            response_callback=self._record,
            server_side_retries=_TRIES,
            server_side_retries_delay=_TRY_AGAIN,
            default_request_timeout=_READ_TIMEOUT,
            connect_timeout=_CONNECT_TIMEOUT,
        )
        if spec.tls == "pinned":
            connector._session.mount("https://", _Pinned(Path(spec.ca_file)))
        connector._session.trust_env = False  # neither a proxy nor a .netrc of the user's is for BMCs
        login = auth.BasicAuth(self._credential.user, self._credential.password)
        self._root = sushy.Sushy(self._url, connector=connector, auth=login)
        listed = [str(system.path) for system in self._root.get_system_collection().get_members()]
        chosen = [path for path in listed if spec.system in ("", path, path.rstrip("/").rpartition("/")[2])]
        if len(chosen) != 1:
            wanted = f"bmc.system {spec.system!r} is none" if spec.system else "say which one in bmc.system: it is one"
            names = ", ".join(path.rstrip("/").rpartition("/")[2] for path in listed)
            raise UsageError(f"{self.board}: BMC {self._url}: {wanted} of {names or 'no system at all'}")
        self._system = self._root.get_system(chosen[0])

    @property
    def _url(self) -> str:
        return f"{'http' if self._spec.tls == 'off' else 'https'}://{self._spec.host}:{self._spec.port}"

    def _record(self, response: Any) -> None:
        seconds = response.elapsed.total_seconds()
        request = response.request
        body = request.body.decode() if isinstance(request.body, bytes) else request.body or ""
        argv = tuple(filter(None, (request.method, request.url, body)))  # the login is in a header
        self._history.append(
            Exchange(time.time() - seconds, argv, response.status_code, switching.printable(response.content), seconds)
        )


def _parts(system: Any, name: str) -> Iterable[Any]:
    """The system's ``managers`` or ``chassis``: small services name none."""
    try:
        found: Iterable[Any] = getattr(system, name)
    except exceptions.MissingAttributeError:
        return ()
    return found


def _reason(said: str) -> str:
    """sushy quotes requests, which quotes urllib3: the last of it is the cause."""
    return said.rstrip("')> ").rpartition(": ")[2][-200:]
