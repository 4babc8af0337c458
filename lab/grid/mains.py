"""Power by a switched outlet: for a board whose BMC has stopped answering, and for one that has no BMC."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lab import bmc
from lab.base.errors import (
    BenchError,
    BmcBusy,
    BmcUnreachable,
    MissingCapability,
    PowerTimeout,
    PowerUnknown,
    UsageError,
)
from lab.base.wait import wait_until
from lab.bmc import Bmc, Readings, switching
from lab.bmc.switching import Pace
from lab.grid.host_power import HostPower
from lab.inventory import BmcSpec, BoardSpec, PduSpec
from lab.leases.ledger import Ledger
from lab.leases.records import Lease

if TYPE_CHECKING:
    from labgrid.resource import NetworkPowerPort

_log = logging.getLogger(__name__)

# How long the mains stay off: power supplies carry a machine over a shorter gap, and some keep a BMC alive for seconds.
PACE = Pace(poll=0.5, settle=10.0)
BMC_START = 240.0  # seconds from mains to a BMC that answers; the slow ones take three minutes

T = TypeVar("T")


class PowerDriver(Protocol):
    """labgrid's drivers of an outlet: its ``PowerProtocol``, and what can be read back (``NetworkPowerDriver``)."""

    port: NetworkPowerPort

    def on(self) -> object: ...

    def off(self) -> object: ...

    def get(self) -> object: ...  # some models of labgrid give a number


def power_of(spec: BoardSpec) -> Bmc:
    """The way to this board's power, whatever it is. Opens nothing yet: the first command does.

    :raises UsageError: no such credential.
    """
    if spec.at:
        return HostPower(spec.name, spec.at, spec.bmc, spec.pdu)
    return power_here(spec.name, spec.bmc, spec.pdu)


# What a board's holder may order, and what does it.
ORDERS = {
    "on": "power_on",
    "off": "power_off",
    "cycle": "cycle",
    "reset": "reset",
    "soft": "soft_off",
    "nmi": "nmi",
    "button": "press_power_button",
}


def order(what: str, spec: BoardSpec, lease: Lease, ledger: Ledger, *, boot: str = "", by: str = "") -> None:
    """Do what the board's holder orders (:data:`ORDERS`), and note it with ``by``; a failure puts it into quarantine.

    ``boot`` is set as the boot device first, for one boot.

    :raises BenchError: it failed.
    :raises MissingCapability: the board's way to its power cannot do it.
    """
    control = power_of(spec)
    try:
        if boot:
            control.set_boot_device(boot)
        getattr(control, ORDERS[what])()
    except BenchError as error:
        ledger.quarantine(spec.name, f"power {what} failed", str(error))
        raise
    ledger.note("power", f"{what}{by and f', {by}'}", lease=lease.id, board=spec.name)


def power_here(board: str, own: BmcSpec, pdu: PduSpec | None) -> Bmc:
    """The same of a board that is at this machine. :raises UsageError: no such credential."""
    control = bmc.connect(board, own) if own.protocol != "none" else None
    return power(board, control, _driver(pdu) if pdu else None)


def power(board: str, own: Bmc | None, outlet: PowerDriver | None) -> Bmc:
    """A BMC and a labgrid driver of an outlet, or one of them, as one.

    :raises UsageError: neither.
    """
    if outlet is None:
        if own is None:
            raise UsageError(f"{board}: has neither a BMC nor an outlet")
        return own
    mains = Outlet(board, outlet)
    return MainsBackedBmc(board, own, mains) if own else MainsBmc(board, mains)


def _driver(pdu: PduSpec) -> PowerDriver:
    """labgrid's driver for the outlet, without a place: it is nobody's to acquire."""
    from labgrid import Target
    from labgrid.resource import NetworkPowerPort

    from lab.grid import outlets

    target = Target("pdu")
    NetworkPowerPort(target, None, model=pdu.model, host=pdu.host, index=str(pdu.outlet))
    make: Callable[..., PowerDriver] = (
        outlets.OutletDriver
    )  # its arguments are attrs', which mypy does not see through labgrid's classes
    driver = make(target, None)
    target.activate(driver)
    return driver


class Outlet:
    """One outlet of a PDU, by a labgrid driver; whatever that raises is a BMC that cannot be reached."""

    def __init__(self, board: str, driver: PowerDriver) -> None:
        self._board, self._driver = board, driver
        self.name = f"{driver.port.model} {driver.port.host} outlet {driver.port.index}"

    def is_on(self) -> bool:
        return bool(self._do(self._driver.get))

    def on(self) -> None:
        self._do(self._driver.on)

    def off(self) -> None:
        self._do(self._driver.off)

    def _do(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except Exception as error:  # each of labgrid's backends has errors of its own
            raise BmcUnreachable(self._board, f"PDU {self.name}: {type(error).__name__}: {error}") from error


class MainsBmc:
    """What a board without a BMC still has: mains. Its firmware must be set to power on when they come back."""

    def __init__(self, board: str, outlet: Outlet, pace: Pace = PACE) -> None:
        self.board, self._outlet, self._pace = board, outlet, pace
        self.remarks: tuple[str, ...] = ()
        self._log = _log.getChild(board)

    def is_powered(self) -> bool:
        """Whether the outlet is on; a machine that has shut itself down reads as powered."""
        return self._outlet.is_on()

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """:raises PowerTimeout: the outlet does not read as on within ``timeout`` seconds."""
        self._switch("on", self._outlet.on, timeout, proof)

    def power_off(self, timeout: float = 30.0) -> None:
        """:raises PowerTimeout: the outlet does not read as off within ``timeout`` seconds."""
        self._switch("off", self._outlet.off, timeout)

    def cycle(self, timeout: float = 30.0) -> None:
        """Off for ten seconds, and on."""
        self.power_off(timeout)
        self.power_on(timeout)

    def reset(self) -> None:
        """There is no reset line here: a power cycle."""
        self.cycle()

    def soft_off(self) -> None:
        raise MissingCapability(self.board, "bmc-soft-off")

    def press_power_button(self) -> None:
        raise MissingCapability(self.board, "bmc-power-button")

    def nmi(self) -> None:
        raise MissingCapability(self.board, "bmc-nmi")

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        switching.check_boot_device(device)
        raise MissingCapability(self.board, "bmc-boot-device")

    def boot_device(self) -> str:
        return "none"

    def sleep_state(self) -> str:
        raise MissingCapability(self.board, "bmc-sleep-state")

    def clock(self) -> datetime:
        raise MissingCapability(self.board, "bmc-clock")

    def sensors(self) -> Readings:
        raise MissingCapability(self.board, "bmc-sensors")

    def info(self) -> Mapping[str, str]:
        return {"PDU": self._outlet.name}

    def _switch(
        self, wanted: str, command: Callable[[], None], timeout: float, proof: Callable[[], bool] | None = None
    ) -> None:
        switching.switch(self.board, wanted, self.is_powered, command, timeout, self._pace, self._log, proof=proof)


class MainsBackedBmc:
    """A BMC, and the mains under it: a power command that fails is tried again after the BMC itself was restarted."""

    def __init__(self, board: str, own: Bmc, outlet: Outlet, pace: Pace = PACE) -> None:
        self.board, self._bmc = board, own
        self._mains = MainsBmc(board, outlet, pace)
        self._log = _log.getChild(board)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bmc, name)  # all but power is the BMC's own

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """As the BMC's. :raises PowerTimeout, BmcUnreachable: not even after its mains were cut."""
        self._insist(lambda: self._bmc.power_on(timeout, proof=proof))

    def power_off(self, timeout: float = 30.0) -> None:
        """As the BMC's. :raises PowerTimeout, BmcUnreachable: not even after its mains were cut."""
        self._insist(lambda: self._bmc.power_off(timeout))

    def cycle(self, timeout: float = 30.0) -> None:
        """Off, seen off, on, seen on; ``timeout`` is for each half."""
        self.power_off(timeout)
        self.power_on(timeout)

    def _insist(self, command: Callable[[], None]) -> None:
        try:
            command()
        except (BmcUnreachable, BmcBusy, PowerUnknown, PowerTimeout) as error:
            self._log.warning("cutting the mains: %s", error)
            self._mains.cycle()
            wait_until(
                self._answers, BMC_START, f"{self.board}: the BMC answers after its mains were cut", board=self.board
            )
            command()

    def _answers(self) -> bool:
        try:
            self._bmc.is_powered()
        except PowerUnknown:
            return True
        except BenchError as error:
            self._log.info("not yet: %s", error)
            return False
        return True
