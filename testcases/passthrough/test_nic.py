"""A network port passed through to a guest behind the IOMMU, and back."""

import pytest

from lab.xen.guests import linux
from lab.xen.pci import assignable

pytestmark = [pytest.mark.quick, pytest.mark.needs("iommu", "spare-nic")]


def test_assign_and_give_back(host, evidence):
    """A device made assignable leaves dom0's driver for quarantine, and comes back to its driver."""
    before = host.run("ls /sys/class/net").stdout.split()
    with assignable(host, "spare") as device:
        listed = host.xl("pci-assignable-list").stdout
        owners = host.debug_keys("Q")
        evidence.add("xl pci-assignable-list", listed, board=host.name)
        evidence.add("debug key Q", owners, board=host.name)
        assert device.address in listed
        line = next((line for line in owners.splitlines() if device.address in line), "")
        assert "DomIO" in line, f"the device is not in quarantine: {line!r}"
    assert host.run("ls /sys/class/net").stdout.split() == before, "dom0's driver has not got it back"


def test_nic_works_in_a_guest(host, evidence):
    """A guest drives the network port: MSI-X interrupts arrive and packets are answered; then dom0 has it back."""
    with assignable(host, "spare") as device:
        guest_config = linux(
            host,
            "pv",
            "nic",
            cmdline="iommu=soft ip=10.0.2.15/24 peer=10.0.2.2 count=5",
            pci=(device.address,),
        )
        with host.domain(guest_config) as guest:
            results = guest.results(120.0)
            evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
            owners = host.debug_keys("Q")
            evidence.add("debug key Q", owners, board=host.name)
            assert results["nic-ping"].outcome == "PASS", results["nic-ping"].detail
            assert results["nic-irq"].outcome == "PASS", results["nic-irq"].detail
    assert device.interface in host.run("ls /sys/class/net").stdout.split()
