"""PCI devices that a guest may be given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lab.errors import MissingCapability
from lab.wait import wait_until
from lab.xen.host import Host


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a board."""

    address: str  # 0000:00:04.0
    interface: str  # its name in dom0, before it was taken away


@contextlib.contextmanager
def assignable(host: Host, role: str) -> Iterator[Device]:
    """Take the board's network port of this role from dom0 (``xl pci-assignable-add``) and give it back at the end.

    :raises MissingCapability: the board has none.
    :raises CommandFailed: xl refused.
    """
    nic = host.board.spec.nics.get(role)
    if nic is None:
        raise MissingCapability(host.name, f"{role}-nic")
    address = nic.pci or host.pci_of(nic.mac)
    interface = str(host.run(f"ls /sys/bus/pci/devices/{address}/net").stdout).strip()
    host.run(f"ip link set {interface} down")
    host.xl("pci-assignable-add", address)
    try:
        yield Device(address, interface)
    finally:
        host.xl("pci-assignable-remove", "-r", address, check=False)
        driver = f"/sys/bus/pci/devices/{address}/driver"

        def back() -> bool:
            return "pciback" not in str(host.run(f"readlink {driver} || true").stdout)

        wait_until(back, 15, f"{host.name}: {address} is out of pciback's hands")
        host.run(
            f"[ -e {driver} ] || echo {address} > /sys/bus/pci/drivers_probe; "
            f"for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /sys/class/net/{interface} ] && break; sleep 0.3; done"
        )
