"""When an HVM guest must get no device: Xen or the toolstack refuses, and says why."""

import dataclasses
import errno
import os

import pytest

from lab.base.errors import ToolstackFailed
from lab.xen.domain import assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration import Ending, start_migration
from lab.xen.migration_matrix.faults import THROTTLE
from lab.xen.migration_matrix.one_board import on_one_board
from lab.xen.pci import assignable, owner

pytestmark = [pytest.mark.full, pytest.mark.needs("iommu", "spare-nic", "hap", "qemu")]


@pytest.mark.needs("self-ssh")
def test_no_device_during_a_relocation(host, evidence):
    """While Xen logs a guest's writes it refuses to give the guest a device (EXDEV); the migration is unharmed.

    A device's writes would not be logged. Source: xen/drivers/passthrough/x86/iommu.c, arch_iommu_use_permitted.
    """
    moved = payload(host, "hvm64", "memory,heartbeat", hb_ms=100, dirty_kib=64)
    moved = dataclasses.replace(moved, more={**moved.more, "passthrough": '"enabled"'})
    source, destination = on_one_board(host)
    with assignable(host, "spare") as device, source.domain(moved) as guest:
        guest.beats(3, 60)
        migration = start_migration(guest, destination, actions=(THROTTLE, "hold@PAGE_DATA:pass2=120"))
        migration.wait_acted(120, kind="hold")
        said = host.toolstack(f"xl pci-attach {guest.name} {device.address}")
        evidence.add("xl pci-attach in pre-copy", f"status {said.status}\n{said.stdout}{said.stderr}", board=host.name)
        owning = owner(host, device.address)
        evidence.add("owner by debug key Q", owning, board=host.name)
        migration.release()
        ending = migration.ending(180)
        evidence.migration(migration)
        assert said.status != 0, "xl says that it gave a device to a guest whose writes are logged"
        assert owning.startswith("DomIO"), f"the device belongs to {owning}"
        assert os.strerror(errno.EXDEV) in said.stderr, f"xl failed, but not by Xen's refusal: {said.stderr[-400:]}"
        assert ending is Ending.SUCCESS, f"xl ended with {ending.name}"
        there = guest.on(destination)
        there.beats(5, 60)
        assert_unhurt(there)


def test_no_device_with_memory_on_demand(host, evidence):
    """A guest with populate-on-demand memory is refused a device, and xl says why.

    Source: tools/libs/light/libxl_create.c.
    """
    config = payload(host, "hvm64", "idle")
    with assignable(host, "spare") as device:
        config = dataclasses.replace(config, pci=(device.address,), more={**config.more, "maxmem": "64"})
        with pytest.raises(ToolstackFailed) as refused, host.domain(config):
            pass
        evidence.add("xl create", refused.value.output[-2000:], board=host.name)
        assert "not supported together with PoD" in refused.value.output
        assert owner(host, device.address).startswith("DomIO")
        assert not host.domains(), "a domain was left behind"
