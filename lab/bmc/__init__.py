"""The board's BMC: power, boot device, NMI, sleep state and sensors behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from lab.base import credentials
from lab.base.errors import UsageError
from lab.bmc.switching import Exchange, Readings
from lab.inventory import BmcSpec

__all__ = ["Bmc", "Exchange", "Readings", "connect"]


class Bmc(Protocol):
    """What a board's BMC does for the lab. Every method may raise a :class:`~lab.base.errors.BenchError`."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was found out of this BMC that the inventory should say; told to people."""

    def is_powered(self) -> bool:
        """Whether the chassis has power. A sleeping board's answer is its maker's choice.

        :raises PowerUnknown: the BMC does not know.
        """

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        """Power on, and see it on. :raises PowerTimeout: not on within ``timeout`` seconds.

        ``proof`` is another sign of power than the BMC's word; once it is true the BMC's word need not settle.
        """

    def power_off(self, timeout: float = 30.0) -> None:
        """Take the power away, and see it off; nothing is shut down. :raises PowerTimeout: still on."""

    def cycle(self, timeout: float = 30.0) -> None:
        """Off, seen off, on, seen on; ``timeout`` is for each half."""

    def reset(self) -> None:
        """Pull the reset line. Nothing can be read back: the console tells."""

    def soft_off(self) -> None:
        """Ask the operating system to shut down (ACPI power button); not waited for."""

    def press_power_button(self) -> None:
        """Wake a sleeping board; power on one that is off."""

    def nmi(self) -> None:
        """Send a diagnostic interrupt. :raises MissingCapability: the BMC has none."""

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        """Boot from ``none``, ``pxe``, ``disk``, ``cdrom`` or ``bios``, the next time or every time."""

    def boot_device(self) -> str:
        """What :meth:`set_boot_device` left in force; ``none`` when nothing is."""

    def sleep_state(self) -> str:
        """ACPI state: ``S0``, ``S3``, ``S5``... :raises MissingCapability: the BMC does not know."""

    def clock(self) -> datetime:
        """The BMC's own time. :raises MissingCapability: it has none, or it was never set."""

    def sensors(self) -> Readings:
        """Readings by name, with units; ``unread`` says which could not be had.

        :raises MissingCapability: the BMC has no sensors.
        """

    def info(self) -> Mapping[str, str]:
        """What the BMC says of itself."""


def connect(board: str, spec: BmcSpec) -> Bmc:
    """The BMC of this board. Opens nothing yet: the first command does.

    :raises UsageError: no such credential, or it is one that the protocol cannot carry.
    """
    if spec.protocol == "none":
        raise UsageError(f"{board}: has no BMC")
    credential = credentials.lookup(spec.credential)
    if spec.protocol == "redfish":
        from lab.bmc.redfish import RedfishBmc  # half a second of imports that most processes do not need

        return RedfishBmc(board, spec, credential)
    from lab.bmc.ipmi import IpmiBmc

    return IpmiBmc(board, spec, credential)
