"""PCI devices that can be given to a guest, and one that does DMA where a case wants it."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from lab.base.errors import BenchError, LabError, MissingCapability
from lab.base.wait import wait_until
from lab.grid.ssh import Job, until
from lab.on_board.poke import POKE
from lab.xen.domain import Domain
from lab.xen.host import Host

DMA_DEVICE = "1234:11e8"  # vendor and device; lab/on_board/poke.py has its registers
PAGE = 4096
LONGEST_STORM = 120  # seconds
LONGEST_GRANT = 300  # seconds


@dataclass(frozen=True, slots=True)
class Device:
    """A PCI device of a board."""

    address: str  # 0000:00:04.0
    interface: str = ""  # of a network port: its name in dom0 before it was taken from dom0


@contextlib.contextmanager
def assignable(host: Host, role: str) -> Iterator[Device]:
    """Take the board's network port of this role from dom0 (``xl pci-assignable-add``), and give it back at the end.

    :raises MissingCapability: the board has no port of this role.
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
            f"({until(f'[ -e /sys/class/net/{device.interface} ]', 3.0, interval=0.3)}) || true"
        )


def port(host: Host, role: str) -> Device:
    """The board's network port of this role, while dom0 has it. :raises MissingCapability: there is none."""
    nic = host.board.spec.nics.get(role)
    if nic is None:
        raise MissingCapability(host.name, f"{role}-nic")
    address = nic.pci or host.pci_of(nic.mac)
    return Device(address, host.run(f"ls /sys/bus/pci/devices/{address}/net").stdout.strip())


@contextlib.contextmanager
def dma_device(host: Host) -> Iterator[DmaDevice]:
    """The board's DMA device, taken from dom0 until the end. :raises MissingCapability: there is none."""
    found = host.run(f"lspci -Dn -d {DMA_DEVICE}").stdout.split()
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
        with contextlib.suppress(LabError):  # the first error is the one to report
            _take_back(host, address)
        raise
    _take_back(host, address)


def _take_back(host: Host, address: str) -> None:
    host.xl("pci-assignable-remove", "-r", address, check=False)
    driver = f"/sys/bus/pci/devices/{address}/driver"

    def back() -> bool:
        return "pciback" not in host.run(f"readlink {driver} || true").stdout

    wait_until(back, 15, f"{host.name}: {address} is out of pciback's hands")


@dataclass(frozen=True, slots=True)
class DmaDevice:
    """A device that copies half a page between its buffer and a machine address that dom0 tells it.

    The IOMMU applies the rights of the guest that owns the device.
    """

    host: Host
    address: str

    def read(self, frame: int) -> None:
        """Have the device read a page into its buffer."""
        self.host.run(f"{POKE} dma {self.address} from {frame:#x}")

    def write(self, frame: int) -> None:
        """Have the device write its buffer to a page. If the IOMMU stops that, only the console says so."""
        self.host.run(f"{POKE} dma {self.address} to {frame:#x}")

    @contextlib.contextmanager
    def storming(self, frame: int) -> Iterator[None]:
        """Within the block the device writes to a page again and again, even if somebody forbids it DMA in between."""
        job = self.host.board.spawn(f"{POKE} storm {self.address} {frame:#x} {LONGEST_STORM}")
        try:
            wait_until(lambda: "begun" in job.output(), 15.0, f"{self.host.name}: {self.address} writes")
            yield
        finally:
            job.kill()
            job.clean()

    def fault_at(self, frame: int) -> str:
        """A pattern for the console: Xen reports that it stopped this device's write to the page.

        Source: xen/drivers/passthrough/vtd/iommu.c, amd/iommu_init.c.
        """
        where = re.escape(self.address)
        intel = rf"DMAR: ?\[DMA Write\] Request device \[{where}\] fault addr 0*{frame * PAGE:x}\b"
        return rf"{intel}|AMD-Vi: IO_PAGE_FAULT: {where} d\d+ addr 0*{frame * PAGE:x}\b"


@dataclass(frozen=True, slots=True)
class GrantedPage:
    """A page of dom0's that is granted to a payload guest with the work ``granted``."""

    guest: Domain
    reference: int
    job: Job

    def map(self, *, readonly: bool = False) -> int:
        """Have the guest map the page for its devices; its machine frame.

        :raises ProductTimeout: the guest does not say that it has done so.
        """
        line = self._told(f"{self.reference}{' ro' if readonly else ''}", "frame=0x[0-9a-f]+ error=0 status=0")
        return int(line.partition("frame=")[2].split()[0], 16)

    def unmap(self) -> None:
        """Have the guest end its mapping. :raises ProductTimeout: the guest does not say that it has done so."""
        self._told("0", "gone error=0 status=0")

    def holds(self, digest: str) -> bool:
        """Whether the beginning of the page has this SHA-256 by now."""
        return self.job.output().rstrip().endswith(digest)

    def _told(self, value: str, answer: str) -> str:
        seen = len(self.guest.console())
        self.guest.host.run(f"xenstore-write /local/domain/{self.guest.domid()}/data/granted {shlex.quote(value)}")
        return self.guest.wait_for(f"^XL granted INFO {answer}", 20.0, after=seen)


@contextlib.contextmanager
def granted_page(guest: Domain) -> Iterator[GrantedPage]:
    """Grant a page of dom0's to a guest until the end of the block.

    :raises BenchError: dom0's kernel cannot grant pages (module xen-gntalloc).
    """
    host = guest.host
    job = host.board.spawn(f"modprobe xen-gntalloc; exec {POKE} share {guest.domid()} {LONGEST_GRANT}")
    try:
        wait_until(lambda: "page" in job.output() or job.poll() is not None, 15.0, f"{host.name}: a page is granted")
        found = re.search(r"^reference (\d+)$", job.output(), re.MULTILINE)
        if found is None:
            raise BenchError(f"{host.name}: dom0 grants no page: {job.output()[-200:]}")
        yield GrantedPage(guest, int(found[1]), job)
    finally:
        job.kill()
        job.clean()


def iommu_orders(dump: str, domid: int) -> dict[str, int]:
    """How many IOMMU table entries of each size map a domain's memory, read from the output of debug key ``o``.

    Each level of the tables is indented by one more blank. Source: xen/drivers/passthrough/vtd/iommu.c and
    amd/pci_amd_iommu.c, *_dump_page_table_level.

    :raises ValueError: the output has no tables of this domain.
    """
    tables = re.split(r"(?m)^.*\b(d\d+) table has (\d+) levels", dump)
    for name, levels, table in zip(tables[1::3], tables[2::3], tables[3::3], strict=True):
        if name == f"d{domid}":
            depths = [len(blanks) for blanks in re.findall(r"(?m)^\(XEN\) ?(?:\[[^]]*\] )?( *)dfn: ", table)]
            last = int(levels) - 1
            return {size: depths.count(last - up) for up, size in enumerate(("4KB", "2MB", "1GB"))}
    raise ValueError(f"no tables of d{domid} in: {dump[-300:]}")


_ENTRY = re.compile(r"pfn=(0x[0-9a-f]+) ==> mfn=(0x[0-9a-f]+) \(type (0x[0-9a-f]+)\)")
_ORDINARY = 0
_TABLES = (0x1, 0x2, 0x3, 0x4, 0x9, 0xA, 0xB, 0xC)  # of level 1 to 4, not pinned and pinned


def frames(domain: Domain, count: int) -> list[int]:
    """Machine frames of ordinary pages from the middle of a PV guest's memory.

    :raises BenchError: the guest does not have so many.
    """
    found = ordinary_frames(domain)
    middle = len(found) // 2
    if len(found) < count + 1:
        raise BenchError(f"{domain.name}: xen-mfndump lists only {len(found)} ordinary pages")
    return found[middle : middle + count]


def ordinary_frames(domain: Domain) -> list[int]:
    """Machine frames of a PV guest's ordinary pages, in the order of its own memory."""
    return [frame for frame, kind in _typed_frames(domain) if kind == _ORDINARY]


def table_frames(domain: Domain) -> list[int]:
    """Machine frames of a PV guest's page tables, of all levels."""
    return [frame for frame, kind in _typed_frames(domain) if kind in _TABLES]


def _typed_frames(domain: Domain) -> list[tuple[int, int]]:
    """Machine frames of a PV guest and their types. Source: tools/misc/xen-mfndump.c, dump-p2m."""
    text = domain.host.run(f"xen-mfndump dump-p2m $(xl domid {shlex.quote(domain.name)})").stdout
    return [(int(match[2], 16), int(match[3], 16)) for match in _ENTRY.finditer(text)]


def has_frame(domain: Domain, frame: int) -> bool:
    """Whether a guest has a page there: a machine frame of a PV guest, a guest frame of an HVM guest."""
    answer = domain.host.run(f"{POKE} page $(xl domid {shlex.quote(domain.name)}) {frame:#x}", check=False)
    return answer.status == 0


def page_digest(domain: Domain, frame: int) -> str:
    """SHA-256 of the beginning of a guest's page as it is now: of as many bytes as one DMA moves."""
    return domain.host.run(f"{POKE} page $(xl domid {shlex.quote(domain.name)}) {frame:#x}").stdout.strip()


def fill_page(domain: Domain, frame: int, text: str) -> str:
    """Fill the beginning of a guest's page with repetitions of ``text``; the SHA-256 of it.

    A PV guest's IOMMU tables have only the pages that were written to: Xen maps a page there when the page becomes
    writable (xen/arch/x86/mm.c, _get_page_type).
    """
    command = f"{POKE} fill $(xl domid {shlex.quote(domain.name)}) {frame:#x} {shlex.quote(text)}"
    return domain.host.run(command).stdout.strip()


def owner(host: Host, address: str) -> str:
    """The owner of a device as Xen's debug key Q prints it: ``d0``, ``d7``, ``DomIO:8001``; empty: Xen knows none.

    Source: xen/drivers/passthrough/pci.c, _dump_pci_devices.
    """
    match = re.search(rf"{re.escape(address)} - (\S+) - ", host.debug_keys("Q"))
    return match[1] if match else ""
