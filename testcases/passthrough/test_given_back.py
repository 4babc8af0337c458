"""What a guest gives back, and what it may not write itself, is out of reach of the device that it has."""

import pytest

from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload
from lab.xen.pci import (
    PAGE,
    dma_device,
    fill_page,
    granted_page,
    has_frame,
    ordinary_frames,
    page_digest,
    table_frames,
)

pytestmark = [
    pytest.mark.full,
    pytest.mark.needs("iommu", "dma-device"),
    pytest.mark.expects_crash("iommu-fault"),
]

MIB = 32
KINDS = [
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pv64", marks=pytest.mark.needs("pv")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]


def two_frames(guest):
    """A frame of the first half and one of the end of a guest's memory, as the device sees them."""
    if guest.config.kind == "hvm":
        return [mib * 2**20 // PAGE for mib in (8, 24)]
    mine = ordinary_frames(guest)
    return [mine[len(mine) // 4], mine[len(mine) * 3 // 4]]


def assert_reaches(device, guest, source, target):
    """The device copies one page of the guest to another page of the guest."""
    wanted = fill_page(guest, source, "copied")
    fill_page(guest, target, "other")
    device.read(source)
    device.write(target)
    assert page_digest(guest, target) == wanted, f"the device does not reach frame {target:#x} of its guest"


def assert_stopped(host, evidence, device, frame):
    """The IOMMU stops the device's write to this frame, and Xen reports it."""
    mark = host.board.console.mark()
    device.write(frame)
    fault = host.expect_console(device.fault_at(frame), 10.0, since=mark)
    evidence.add("the fault", fault.text, kind="console", board=host.name)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_given_back_is_out_of_reach(host, evidence, kind):
    """Memory that a guest gives back is out of its device's reach at once, and in reach when the guest has it again."""
    with dma_device(host) as device:
        owning = payload(host, kind, "balloon,heartbeat", hb_ms=200, memory_mib=MIB, pci=(device.address,))
        with host.domain(owning) as guest:
            guest.beats()
            kept, given = two_frames(guest)
            assert_reaches(device, guest, kept, given)  # from now on the IOMMU may remember the translation
            host.xl("mem-set", guest.name, str(MIB // 2))
            guest.wait_for(r"^XL balloon INFO pages=[1-9][0-9]+ error=0", 60.0)
            if has_frame(guest, given):
                evidence.unproved(f"the guest still has the frame {given:#x} after it gave back half of its memory")
            assert_stopped(host, evidence, device, given)
            assert_reaches(device, guest, kept, kept + 1 if kind == "hvm64" else ordinary_frames(guest)[-1])
            host.xl("mem-set", guest.name, str(MIB))
            guest.wait_for(r"^XL balloon INFO pages=0 error=0", 60.0)
            assert_reaches(device, guest, *two_frames(guest))
            guest.beats(3)
            assert_unbroken(guest.heartbeats())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_page_tables_are_out_of_reach(host, evidence, kind):
    """The device of a PV guest cannot write to the guest's page tables, which Xen alone may change."""
    with dma_device(host) as device:
        with host.domain(payload(host, kind, "heartbeat", hb_ms=200, pci=(device.address,))) as guest:
            guest.beats()
            tables = table_frames(guest)
            evidence.add("page tables", " ".join(f"{frame:#x}" for frame in tables), board=host.name)
            if not tables:
                evidence.unproved("xen-mfndump lists no page table of the guest")
            assert_reaches(device, guest, *two_frames(guest))
            before = page_digest(guest, tables[-1])
            assert_stopped(host, evidence, device, tables[-1])
            assert page_digest(guest, tables[-1]) == before, "the device wrote to a page table of its guest"
            guest.beats(3)
            assert_unbroken(guest.heartbeats())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_granted_page_is_in_reach_while_it_is_mapped(host, evidence, kind):
    """A PV guest's device reaches a granted page only while the guest maps it, and only as the grant allows."""
    with dma_device(host) as device:
        owning = payload(host, kind, "granted,heartbeat", hb_ms=200, pci=(device.address,))
        with host.domain(owning) as guest:
            guest.beats()
            source, target = two_frames(guest)
            wanted = fill_page(guest, source, "copied")
            with granted_page(guest) as granted:
                frame = granted.map()
                device.read(source)
                device.write(frame)
                host.expect(lambda: granted.holds(wanted), 10.0, "the device's bytes in the page that dom0 granted")
                granted.unmap()
                fill_page(guest, source, "a later write")
                device.read(source)
                assert_stopped(host, evidence, device, frame)
                assert granted.map(readonly=True) == frame
                # The write comes first: QEMU's VT-d reports no fault for a page whose translation a read has cached.
                assert_stopped(host, evidence, device, frame)
                assert granted.holds(wanted), "the device changed the page"
                fill_page(guest, target, "other")
                device.read(frame)
                device.write(target)
                assert page_digest(guest, target) == wanted, "the device cannot read a page that is granted for reading"
                granted.unmap()
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
