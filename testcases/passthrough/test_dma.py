"""A device that does DMA on purpose: it reaches the memory of the guest that owns it, and no other memory."""

import pytest

from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload
from lab.xen.pci import PAGE, dma_device, fill_page, frames, owner, page_digest

pytestmark = [
    pytest.mark.full,
    pytest.mark.needs("iommu", "dma-device"),
    pytest.mark.expects_crash("iommu-fault"),
]


def assert_quarantined(host, evidence, device):
    """Nobody owns the device any more: it is DomIO's."""
    after = owner(host, device.address)
    evidence.add("owner after the guest", after, board=host.name)
    assert after.startswith("DomIO"), f"the device belongs to {after}, not to DomIO"


def test_dma_outside_the_guest_is_stopped_and_reported(host, evidence):
    """A guest's device reaches that guest's memory alone; Xen reports the device and address of a forbidden DMA."""
    with dma_device(host) as device:
        owning = payload(host, "pv64", "heartbeat", hb_ms=200, pci=(device.address,))
        with host.domain(payload(host, "pv64", "memory,heartbeat", hb_ms=200)) as victim, host.domain(owning) as guest:
            victim.beats()
            mine, other = frames(guest, 2)
            foreign = frames(victim, 1)[0]
            wanted, before = fill_page(guest, mine, "xenlab"), page_digest(victim, foreign)
            fill_page(guest, other, "other")
            device.read(mine)
            device.write(other)
            assert page_digest(guest, other) == wanted, "the device does not reach the memory of the guest that owns it"
            mark = host.board.console.mark()
            device.write(foreign)
            assert page_digest(victim, foreign) == before, "the device wrote to another guest's memory"
            fault = host.expect_console(device.fault_at(foreign), 10.0, since=mark)
            evidence.add("the fault", fault.text, kind="console", board=host.name)
            for one in (victim, guest):
                one.beats(3)
                assert_unbroken(one.heartbeats())
            bad = [line for line in victim.payload_lines() if getattr(line, "outcome", "") == "FAIL"]
            assert not bad, f"the other guest's memory: {bad[0]}"


@pytest.mark.needs("hap", "qemu")
def test_a_device_of_an_hvm_guest_uses_guest_addresses(host, evidence):
    """The IOMMU translates an HVM guest's addresses as nested paging does, and stops DMA beyond its memory."""
    inside, outside = (12 << 20) // PAGE, (64 << 20) // PAGE  # a frame of a guest of 16 MiB, and a frame of no guest
    with dma_device(host) as device:
        with host.domain(payload(host, "hvm64", "heartbeat", hb_ms=200, pci=(device.address,))) as guest:
            guest.beats()
            assert owner(host, device.address) == f"d{guest.domid()}"
            wanted = fill_page(guest, inside, "xenlab")
            fill_page(guest, inside + 1, "other")
            device.read(inside)
            device.write(inside + 1)
            assert page_digest(guest, inside + 1) == wanted, "the device does not reach its guest's memory"
            mark = host.board.console.mark()
            device.write(outside)
            fault = host.expect_console(device.fault_at(outside), 10.0, since=mark)
            evidence.add("the fault", fault.text, kind="console", board=host.name)
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
        assert_quarantined(host, evidence, device)


def test_device_in_quarantine_does_no_dma(host, evidence):
    """A device that no guest has belongs to DomIO, and Xen stops its DMA to its last owner's memory."""
    with dma_device(host) as device:
        with host.domain(payload(host, "pv64", "heartbeat", pci=(device.address,))) as guest:
            guest.beats()
            frame = frames(guest, 1)[0]
            fill_page(guest, frame, "the guest's")
            assert owner(host, device.address) == f"d{guest.domid()}"
            device.read(frame)
        assert_quarantined(host, evidence, device)
        mark = host.board.console.mark()
        device.write(frame)
        fault = host.expect_console(device.fault_at(frame), 10.0, since=mark)
        evidence.add("the fault", fault.text, kind="console", board=host.name)


def test_guest_killed_with_dma_in_flight(host, evidence):
    """A guest dies while its device writes to its memory: all its memory is freed, and the device reaches nothing."""
    with dma_device(host) as device:
        free = host.free_memory_mib()
        with host.domain(payload(host, "pv64", "heartbeat", pci=(device.address,))) as guest:
            guest.beats()
            page, domid = frames(guest, 1)[0], guest.domid()
            fill_page(guest, page, "the guest's")
            with device.storming(page):
                mark = host.board.console.mark()
                host.xl("destroy", guest.name)
                fault = host.expect_console(device.fault_at(page), 15.0, since=mark)
                evidence.add("the first fault", fault.text, kind="console", board=host.name)
                assert f"General information for domain {domid}:" not in host.debug_keys("q"), (
                    "the dead domain still exists"
                )
        assert_quarantined(host, evidence, device)
        host.expect(lambda: host.free_memory_mib() >= free - 1, 10.0, f"{free} MiB free, as before")
