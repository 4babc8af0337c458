"""A network port passed through to a guest behind the IOMMU, and given back."""

import re
import shlex

import pytest

from lab.base.errors import ToolstackFailed
from lab.xen.driver_domains import ADDRESS, PEER, network, served, serves
from lab.xen.guests import linux
from lab.xen.pci import assignable, owner, port

pytestmark = [pytest.mark.needs("iommu", "spare-nic")]

PACKETS = 400  # round trips of 1400 bytes
LEAST = 0.1  # share of dom0's own rate: a slower guest waits for interrupts that do not come


def driving(host, work, *addresses, kind="pv", **options):
    """A Linux guest that drives the port."""
    words = f"iommu=soft ip={ADDRESS} peer={PEER} count=5 packets={PACKETS}"
    return linux(host, kind, work, cmdline=words, pci=addresses, **options)


def assert_passed(guest, evidence, *cases):
    """The guest has all the results, and all are PASS. Linux on an emulated board takes its time."""
    results = guest.results(120.0)
    evidence.console(f"console of {guest.name}", guest)
    for case in cases:
        assert results[case].outcome == "PASS", f"{case}: {results[case].detail}"
    return results


def assert_msix(results):
    """The interrupts that came were MSI-X, by the guest's own list of vectors."""
    detail = results["nic-irq"].detail
    assert re.search("msi-?x", detail, re.IGNORECASE), f"the interrupts were no MSI-X: {detail}"


@pytest.mark.quick
def test_assign_and_give_back(host, evidence):
    """A device that is made assignable leaves dom0's driver for quarantine, and later returns to that driver."""
    before = host.run("ls /sys/class/net").stdout.split()
    with assignable(host, "spare") as device:
        listed = host.xl("pci-assignable-list").stdout
        owning = owner(host, device.address)
        evidence.add("xl pci-assignable-list", listed, board=host.name)
        evidence.add("owner by debug key Q", owning, board=host.name)
        assert device.address in listed
        assert owning.startswith("DomIO"), f"the device is not in quarantine, but {owning}'s"
    assert host.run("ls /sys/class/net").stdout.split() == before, "dom0's driver does not have the port back"
    assert owner(host, device.address) == "d0"


@pytest.mark.quick
def test_nic_works_in_a_guest(host, evidence):
    """A PV guest drives a network port: MSI-X interrupts and packets arrive; then dom0 has the port back."""
    with assignable(host, "spare") as device:
        with host.domain(driving(host, "nic", device.address)) as guest:
            assert_msix(assert_passed(guest, evidence, "nic-ping", "nic-irq"))
            assert owner(host, device.address) == f"d{guest.domid()}"
    assert device.interface in host.run("ls /sys/class/net").stdout.split()


@pytest.mark.full
@pytest.mark.needs("hap", "qemu", "guest-cr2")
def test_nic_works_in_an_hvm_guest(host, evidence):
    """An HVM guest drives a network port that its device model shows it: MSI-X interrupts and packets arrive."""
    with assignable(host, "spare") as device:
        with host.domain(driving(host, "nic", device.address, kind="hvm")) as guest:
            assert_msix(assert_passed(guest, evidence, "nic-ping", "nic-irq"))
            assert owner(host, device.address) == f"d{guest.domid()}"
        owning = owner(host, device.address)
        assert owning.startswith("DomIO"), f"after the guest the device is {owning}'s"
    assert device.interface in host.run("ls /sys/class/net").stdout.split()


@pytest.mark.full
def test_reassigned_to_another_guest(host, evidence):
    """Two guests drive a port one after the other; in between it is in quarantine, and at the end dom0 has it."""
    with assignable(host, "spare") as device:
        for number in (1, 2):
            with host.domain(driving(host, "nic", device.address)) as guest:
                assert_passed(guest, evidence, "nic-ping", "nic-irq")
            owning = owner(host, device.address)
            assert owning.startswith("DomIO"), f"after guest {number} the device is {owning}'s"
    assert owner(host, device.address) == "d0"
    assert device.interface in host.run("ls /sys/class/net").stdout.split()


@pytest.mark.full
def test_hot_add_and_remove(host, evidence):
    """A running guest is given a network port, drives it, and loses it again."""
    with assignable(host, "spare") as device:
        with host.domain(driving(host, "nic,unplug", more={"passthrough": '"enabled"'})) as guest:
            guest.wait_for("XL pci INFO waits", 60.0)
            host.xl("pci-attach", guest.name, device.address)
            guest.wait_for("XL nic-irq (PASS|FAIL)", 90.0)
            assert device.address in host.xl("pci-list", guest.name).stdout
            host.xl("pci-detach", guest.name, device.address)
            assert_passed(guest, evidence, "nic-ping", "nic-irq", "unplug")
            owning = owner(host, device.address)
            assert owning.startswith("DomIO"), f"after hot removal the device is {owning}'s"
            assert device.address not in host.xl("pci-list", guest.name).stdout


@pytest.mark.full
def test_rate_and_interrupts_against_dom0(host, evidence):
    """A guest with a network port does at least a tenth of dom0's own round trips a second, and gets interrupts."""
    device = port(host, "spare")
    own = f"ip netns exec xenlab sh -c {shlex.quote(_dom0_pings(device.interface))}"
    host.run(f"ip netns add xenlab && ip link set {device.interface} netns xenlab")
    try:
        said = host.run(own, timeout=120).stdout
    finally:
        host.run("ip netns del xenlab")
    evidence.add("the same in dom0", said, board=host.name)
    host.expect(lambda: device.interface in host.run("ls /sys/class/net").stdout.split(), 10.0, "the port is back")
    with assignable(host, "spare") as device, host.domain(driving(host, "nic,rate", device.address)) as guest:
        detail = assert_passed(guest, evidence, "nic-ping", "nic-irq", "rate")["rate"].detail
    (dom0_rate, dom0_interrupts), (guest_rate, guest_interrupts) = _rate(said), _rate(detail)
    evidence.figure("dom0_round_trips_per_s", dom0_rate)
    evidence.figure("dom0_interrupts_per_round_trip", dom0_interrupts)
    evidence.figure("guest_round_trips_per_s", guest_rate)
    evidence.figure("guest_interrupts_per_round_trip", guest_interrupts)
    evidence.figure("guest_rate_ratio", guest_rate / dom0_rate)
    assert guest_interrupts > 0, "the guest got no interrupt"
    assert guest_rate > LEAST * dom0_rate, (
        f"{guest_rate:.0f} round trips a second in the guest, {dom0_rate:.0f} in dom0"
    )


def _dom0_pings(interface):
    """What the guest's work `rate` does, as a script for dom0."""
    count = f"awk '/ {interface}(-|$)/ {{ for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i }} END {{ print n + 0 }}'"
    return (
        f"ip link set {interface} up; ip addr add {ADDRESS} dev {interface}; "
        f"n=0; while [ $n -lt 150 ] && [ $(cat /sys/class/net/{interface}/carrier) != 1 ]; "
        "do sleep 0.1; n=$((n + 1)); done; "
        f"busybox ping -c 1 -W 5 {PEER} >/dev/null; read -r from rest </proc/uptime; b=$({count} /proc/interrupts); "
        f"busybox ping -A -q -c {PACKETS} -s 1400 -W 5 {PEER} | grep 'packets transmitted'; "
        f"a=$({count} /proc/interrupts); read -r to rest </proc/uptime; echo from=$from to=$to interrupts=$((a - b))"
    )


def _rate(text):
    """Round trips a second and interrupts a round trip, read from what was printed."""
    seconds = float(re.search(r"to=([\d.]+)", text)[1]) - float(re.search(r"from=([\d.]+)", text)[1])
    answered = int(re.search(r"(\d+) packets received", text)[1])
    return answered / seconds, int(re.search(r"interrupts=(\d+)", text)[1]) / answered


@pytest.mark.full
def test_a_guest_has_it_alone(host, evidence):
    """A device that one guest has is refused to a second guest, and the first goes on using it."""
    with assignable(host, "spare") as device:
        with host.domain(driving(host, "nic,heartbeat", device.address)) as guest:
            guest.wait_for("XL nic-irq PASS", 90.0)
            with pytest.raises(ToolstackFailed) as refused, host.domain(driving(host, "idle", device.address)):
                pass
            evidence.add("the second guest", str(refused.value), board=host.name)
            assert "not assignable" in refused.value.output or "already assigned" in refused.value.output
            assert owner(host, device.address) == f"d{guest.domid()}"
            guest.beats(3)


@pytest.mark.full
@pytest.mark.needs("hap")
def test_pvh_guests_get_none(host, evidence):
    """A PVH guest is refused a passed-through device, and xl says why. Source: tools/libs/light/libxl_x86.c."""
    with assignable(host, "spare") as device:
        with (
            pytest.raises(ToolstackFailed) as refused,
            host.domain(linux(host, "pvh", "idle", pci=(device.address,))),
        ):
            pass
        evidence.add("xl create", refused.value.output[-2000:], board=host.name)
        assert "passthrough not yet supported for x86 PVH guests" in refused.value.output
        assert owner(host, device.address).startswith("DomIO")
        assert not host.domains(), "a domain was left behind"


@pytest.mark.full
@pytest.mark.needs("shadow")
def test_no_relocation_with_a_device(host, evidence):
    """A guest with a device does not migrate: Xen refuses log-dirty mode, and the guest runs on where it is.

    Source: xen/arch/x86/mm/paging.c, paging_log_dirty_enable; tools/libs/guest/xg_sr_save.c.
    """
    with assignable(host, "spare") as device:
        with host.domain(driving(host, "nic,heartbeat", device.address)) as guest:
            guest.wait_for("XL nic-irq PASS", 90.0)
            said = host.toolstack(f"xl migrate -s '' {guest.name} 'xl migrate-receive'", timeout=120)
            evidence.add("xl migrate", f"status {said.status}\n{said.stdout}{said.stderr}", board=host.name)
            assert said.status != 0, "xl says that it migrated a guest with a device"
            refused = "Failed to enable logdirty" in said.stderr
            assert refused, f"xl failed, but Xen did not refuse log-dirty mode: {said.stderr[-400:]}"
            assert list(host.domains()) == [guest.name], f"the guests are now: {list(host.domains())}"
            assert owner(host, device.address) == f"d{guest.domid()}"
            guest.beats(3)


@pytest.mark.full
def test_driver_domain_serves_another_guest(host, evidence):
    """A guest that has the network port is the network backend of another guest, whose packets go out through it."""
    with assignable(host, "spare") as device:
        with host.domain(network(host, device.address)) as backend:
            serves(backend)
            with host.domain(served(host, backend, "netfront")) as guest:
                results = guest.results(120.0)
                evidence.console("console of the guest", guest)
                evidence.console("console of the driver domain", backend)
                evidence.add("xl network-list", host.xl("network-list", guest.name).stdout, board=host.name)
                assert results["net-ping"].outcome == "PASS", results["net-ping"].detail
            backend.wait_for("XL plug INFO none", 30.0)
            assert "Domain-0" in host.xl("list").stdout
