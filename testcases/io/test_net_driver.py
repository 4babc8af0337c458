"""A network driver domain that dies, and the guest that it served.

Linux's frontend stays as it is when the domain of its backend is gone. The toolstack makes the connection anew: it
detaches the dead port, and attaches one of another backend.
"""

import re

import pytest

from lab.xen.driver_domains import network, served, serves, vif
from lab.xen.guests import payload
from lab.xen.pci import assignable, dma_device, frames, owner, page_digest

pytestmark = [
    pytest.mark.weekly,
    pytest.mark.needs("pv", "iommu", "spare-nic", "dma-device"),
    pytest.mark.expects_crash("iommu-fault"),
]

LONGEST = 60.0  # seconds from the order to detach the dead port until the peer has answered on the new one

ENDINGS = {
    "destroyed": lambda host, name: host.xl("destroy", name),
    "panics": lambda host, name: host.xl("sysrq", name, "c"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_guest_outlives_its_network_driver_domain(host, evidence, ending):
    """A driver domain dies: its devices are in quarantine, and its guest has its network again through a second one."""
    with assignable(host, "spare") as port, dma_device(host) as device:
        with host.domain(network(host, port.address, device.address)) as first:
            serves(first)
            with host.domain(served(host, first, "netfront,again,heartbeat", hb_ms=500)) as guest:
                assert_answered(guest, "net-ping")
                ENDINGS[ending](host, first.name)
                assert_gone(host, evidence, first)
                assert_in_quarantine(host, evidence, port, device)
                assert_stopped(host, evidence, device)
                guest.beats(3)
                with host.domain(network(host, port.address)) as second:
                    serves(second)
                    before = guest.beats(1)
                    host.xl("network-detach", guest.name, "0")
                    host.xl("network-attach", guest.name, *vif(second).split(","))
                    away = guest.wait_for("^XL away INFO", 120.0)
                    evidence.console("console of the guest", guest)
                    evidence.console("console of the second driver domain", second)
                    assert_answered(guest, "net-again")
                    assert_back(evidence, away, before)
                    guest.beats(3)
        assert not host.grave(), host.grave()[0]


def assert_answered(guest, case):
    """The peer beyond the driver domain answered all that the guest sent."""
    guest.wait_for(f"^XL {case} ", 120.0)
    line = next(line for line in guest.payload_lines() if getattr(line, "case", "") == case)
    assert line.outcome == "PASS", f"{case}: {line.detail}"


def assert_gone(host, evidence, domain):
    """Nothing holds the dead domain."""
    host.expect(lambda: not domain.is_there, 60.0, f"{domain.name} is gone")
    host.all_dead()
    evidence.console("console of the dead driver domain", domain)


def assert_in_quarantine(host, evidence, *devices):
    for device in devices:
        owning = owner(host, device.address)
        evidence.add("owner after the driver domain", f"{device.address}: {owning}", board=host.name)
        assert owning.startswith("DomIO"), f"{device.address} of the dead driver domain is {owning}'s"


def assert_stopped(host, evidence, device):
    """The device does not reach the memory of another guest."""
    with host.domain(payload(host, "pv64", "heartbeat")) as other:
        other.beats()
        page = frames(other, 1)[0]
        before = page_digest(other, page)
        mark = host.board.console.mark()
        device.write(page)
        fault = host.expect_console(device.fault_at(page), 10.0, since=mark)
        evidence.add("the fault", fault.text, kind="console", board=host.name)
        assert page_digest(other, page) == before, "a device of the dead driver domain wrote to another guest's memory"


def assert_back(evidence, away, before):
    """The guest's network was back in time, and the guest has got back all that the dead backend had mapped."""
    first, last = (float(re.search(rf"{word}=([\d.]+)", away)[1]) for word in ("from", "to"))
    back = last - before.system_ns / 1e9
    evidence.figure("outage_s", last - first)
    evidence.figure("network_back_s", back)
    assert "held=0" in away, f"the guest cannot take back what it granted to the dead driver domain: {away}"
    assert back < LONGEST, f"the network was back after {back:.1f} s"
