"""PCI devices that a guest may be given, and one that does DMA where a case wants it to."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from lab.base.errors import BenchError, LabError, MissingCapability
from lab.base.wait import wait_until
from lab.on_board.poke import POKE
from lab.xen.domain import Domain
from lab.xen.host import Host

DMA_DEVICE = "1234:11e8"  # vendor and device; its registers: lab/on_board/poke.py
PAGE = 4096
LONGEST_STORM = 120  # seconds


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a board."""

    address: str  # 0000:00:04.0
    interface: str = ""  # its name in dom0, before it was taken away; of network ports


@contextlib.contextmanager
def assignable(host: Host, role: str) -> Iterator[Device]:
    """Take the board's network port of this role from dom0 (``xl pci-assignable-add``) and give it back at the end.

    :raises MissingCapability: the board has none.
    :raises ToolstackFailed: xl refused.
    """
    device = port(host, role)
    host.run(f"ip link set {device.interface} down")
    try:
        with _lent(host, device.address):
            yield device
    finally:
        driver = f"/sys/bus/pci/devices/{device.address}/driver"
        host.run(
            f"[ -e {driver} ] || echo {device.address} > /sys/bus/pci/drivers_probe; "
            f"for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /sys/class/net/{device.interface} ] && break; sleep 0.3; done"
        )


def port(host: Host, role: str) -> Device:
    """The board's network port of this role, which dom0 has. :raises MissingCapability: the board has none."""
    nic = host.board.spec.nics.get(role)
    if nic is None:
        raise MissingCapability(host.name, f"{role}-nic")
    address = nic.pci or host.pci_of(nic.mac)
    return Device(address, str(host.run(f"ls /sys/bus/pci/devices/{address}/net").stdout).strip())


@contextlib.contextmanager
def dma_device(host: Host) -> Iterator[DmaDevice]:
    """The board's DMA device, taken from dom0 as :func:`assignable` does. :raises MissingCapability: it has none."""
    found = str(host.run(f"lspci -Dn -d {DMA_DEVICE}").stdout).split()
    if not found:
        raise MissingCapability(host.name, "dma-device")
    with _lent(host, found[0]):
        yield DmaDevice(host, found[0])


@contextlib.contextmanager
def _lent(host: Host, address: str) -> Iterator[None]:
    host.xl("pci-assignable-add", address)
    try:
        yield
    except BaseException:
        with contextlib.suppress(LabError):  # what went wrong first is what there is to say
            _take_back(host, address)
        raise
    _take_back(host, address)


def _take_back(host: Host, address: str) -> None:
    host.xl("pci-assignable-remove", "-r", address, check=False)
    driver = f"/sys/bus/pci/devices/{address}/driver"

    def back() -> bool:
        return "pciback" not in str(host.run(f"readlink {driver} || true").stdout)

    wait_until(back, 15, f"{host.name}: {address} is out of pciback's hands")


@dataclass(frozen=True, slots=True)
class DmaDevice:
    """A device that moves half a page between its buffer and where dom0 tells it; whose it is, the IOMMU knows."""

    host: Host
    address: str

    def read(self, frame: int) -> None:
        """Have it read a page into its buffer."""
        self.host.run(f"{POKE} dma {self.address} from {frame:#x}")

    def write(self, frame: int) -> None:
        """Have it write its buffer to a page. Where the IOMMU stops it, nothing tells but the console."""
        self.host.run(f"{POKE} dma {self.address} to {frame:#x}")

    @contextlib.contextmanager
    def storming(self, frame: int) -> Iterator[None]:
        """Within, it writes to a page all the time, whoever takes its right to do DMA away."""
        job = self.host.board.spawn(f"{POKE} storm {self.address} {frame:#x} {LONGEST_STORM}")
        try:
            wait_until(lambda: "begun" in job.output(), 15.0, f"{self.host.name}: {self.address} writes")
            yield
        finally:
            job.kill()
            job.clean()

    def fault_at(self, frame: int) -> str:
        """The pattern of Xen's report that this device's write to the page was stopped.

        Source: xen/drivers/passthrough/vtd/iommu.c, amd/iommu_init.c.
        """
        where = re.escape(self.address)
        intel = rf"DMAR: ?\[DMA Write\] Request device \[{where}\] fault addr 0*{frame * PAGE:x}\b"
        return rf"{intel}|AMD-Vi: IO_PAGE_FAULT: {where} d\d+ addr 0*{frame * PAGE:x}\b"


def iommu_orders(dump: str, domid: int) -> dict[str, int]:
    """How many entries of which size map a domain's memory for its devices, of what debug key ``o`` wrote.

    A level of the tables is a blank more before the entry. Source: xen/drivers/passthrough/vtd/iommu.c and
    amd/pci_amd_iommu.c, *_dump_page_table_level.

    :raises ValueError: the domain has no tables of its own there.
    """
    tables = re.split(r"(?m)^.*\b(d\d+) table has (\d+) levels", dump)
    for name, levels, table in zip(tables[1::3], tables[2::3], tables[3::3], strict=True):
        if name == f"d{domid}":
            depths = [len(blanks) for blanks in re.findall(r"(?m)^\(XEN\) ?(?:\[[^]]*\] )?( *)dfn: ", table)]
            last = int(levels) - 1
            return {size: depths.count(last - up) for up, size in enumerate(("4KB", "2MB", "1GB"))}
    raise ValueError(f"no tables of d{domid} in: {dump[-300:]}")


_ENTRY = re.compile(r"pfn=(0x[0-9a-f]+) ==> mfn=(0x[0-9a-f]+) \(type 0x0\)")


def frames(domain: Domain, count: int) -> list[int]:
    """Machine frames of ordinary pages from the middle of a PV guest's memory (``xen-mfndump dump-p2m``).

    :raises BenchError: it has not that many.
    """
    text = str(domain.host.run(f"xen-mfndump dump-p2m $(xl domid {shlex.quote(domain.name)})").stdout)
    found = [int(match[2], 16) for match in _ENTRY.finditer(text)]
    middle = len(found) // 2
    if len(found) < count + 1:
        raise BenchError(f"{domain.name}: xen-mfndump tells of {len(found)} ordinary pages: {text[-200:]}")
    return found[middle : middle + count]


def page_digest(domain: Domain, frame: int) -> str:
    """SHA-256 of the beginning of a page of a guest, as it is now; as much as a DMA moves."""
    return str(domain.host.run(f"{POKE} page $(xl domid {shlex.quote(domain.name)}) {frame:#x}").stdout).strip()


def fill_page(domain: Domain, frame: int, text: str) -> str:
    """Write ``text`` again and again over the beginning of a page of a guest; its SHA-256 then.

    Only what was written to is in a PV guest's IOMMU tables: Xen maps a page there when it becomes a writable one
    (xen/arch/x86/mm.c, _get_page_type).
    """
    command = f"{POKE} fill $(xl domid {shlex.quote(domain.name)}) {frame:#x} {shlex.quote(text)}"
    return str(domain.host.run(command).stdout).strip()


def owner(host: Host, address: str) -> str:
    """Whose the device is, in the words of Xen's debug key Q: ``d0``, ``d7``, ``DomIO:8001``; empty when it knows none.

    Source: xen/drivers/passthrough/pci.c, _dump_pci_devices.
    """
    match = re.search(rf"{re.escape(address)} - (\S+) - ", host.debug_keys("Q"))
    return match[1] if match else ""
