"""The board's BMC: power, boot device, NMI, sleep state and sensors behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from lab import credentials
from lab.bmc.ipmi import BmcRefused, Exchange, IpmiBmc
from lab.errors import UsageError
from lab.inventory import BoardSpec

__all__ = ["Bmc", "BmcRefused", "Exchange", "IpmiBmc", "connect"]


class Bmc(Protocol):
    """What a board's BMC does for the lab. Every method may raise a :class:`~lab.errors.BenchError`."""

    def is_powered(self) -> bool:
        """Whether the chassis has power. A sleeping board's answer is its maker's choice."""

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

    def sensors(self) -> Mapping[str, str]:
        """Readings by name, with units."""

    def info(self) -> Mapping[str, str]:
        """What the BMC says of itself."""


def connect(board: BoardSpec) -> Bmc:
    """The BMC of this board. Opens nothing yet: the first command does.

    :raises UsageError: no such credential, or a protocol nobody speaks here.
    """
    if board.bmc.protocol != "ipmi":
        raise UsageError(f"{board.name}: bmc.protocol {board.bmc.protocol!r} is not supported; only ipmi is")
    return IpmiBmc(board.name, board.bmc, credentials.lookup(board.bmc.credential))
