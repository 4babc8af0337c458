"""A block driver domain that dies in the middle of writes, and what the guest was told about them.

A guest's disk is the disk of the driver domain, and that is a file of dom0. Linux's frontend keeps the requests that
the dead backend has not answered, and waits. So the toolstack attaches the same file as a second disk, through another
driver domain.
"""

import pytest

from lab.xen.disks import blank, disk, numbered, with_disk
from lab.xen.domain import assert_unbroken, numbers
from lab.xen.driver_domains import serves, storage
from lab.xen.guests import linux, payload

pytestmark = [pytest.mark.weekly, pytest.mark.needs("pv")]

MIB = 256  # more than the guest writes meanwhile
ENOUGH = r"^XL acknowledged INFO blocks=(6[4-9]|[7-9][0-9]|[0-9]{3,})$"


def acknowledged(guest):
    """How many blocks the disk has acknowledged, by the guest's last line about it."""
    said = [line.detail for line in guest.payload_lines() if getattr(line, "case", "") == "acknowledged"]
    assert not [one for one in said if "error" in one], f"the guest's disk: {said[-1]}"
    return numbers(said[-1])["blocks"]


def test_acknowledged_writes_outlive_the_driver_domain(host, evidence):
    """A block driver domain dies in the middle of writes: its guest lives, and reads all that was acknowledged."""
    with blank(host, MIB) as path, host.domain(storage(host, path)) as first:
        serves(first)
        writer = linux(host, "pv", "disk,heartbeat", cmdline="hb_ms=500 seed=7")
        with host.domain(with_disk(writer, "/dev/xvda", backend=first.name)) as guest:
            guest.wait_for(ENOUGH, 120.0)
            before = acknowledged(guest)
            host.xl("destroy", first.name)
            host.all_dead()
            guest.beats(3)
            with host.domain(storage(host, path)) as second:
                serves(second)
                host.xl("block-attach", guest.name, disk("/dev/xvda", "xvdb", backend=second.name))
                kept = numbers(guest.wait_for("^XL kept ", 180.0))
                evidence.console("console of the guest", guest)
                evidence.console("console of the first driver domain", first)
                evidence.console("console of the second driver domain", second)
                evidence.figure("acknowledged_blocks", kept["blocks"])
                if kept["blocks"] <= before:
                    evidence.unproved(
                        f"the driver domain died when the guest had written {before} blocks, and none after"
                    )
                assert not kept["lost"], (
                    f"{kept['lost']} of {kept['blocks']} blocks are lost, the first is {kept['first']}"
                )
                guest.beats(3)
        host.all_dead()
        assert not host.grave(), host.grave()[0]


@pytest.mark.parametrize(
    "kind",
    [
        "pv64",
        pytest.param("pv32", marks=pytest.mark.needs("pv32")),
        pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    ],
)
def test_a_guest_takes_back_what_a_dead_backend_had(host, evidence, kind):
    """When a block driver domain dies, its guest can take back all grants, and the event channel has one end."""
    with numbered(host) as path, host.domain(storage(host, path)) as driver:
        serves(driver)
        reader = with_disk(payload(host, kind, "disk,orphan,heartbeat", hb_ms=200), "/dev/xvda", backend=driver.name)
        with host.domain(reader) as guest:
            guest.wait_for("^XL orphan INFO waits", 60.0)
            host.xl("destroy", driver.name)
            results = guest.results(180.0)
            evidence.console("console of the guest", guest)
            evidence.console("console of the driver domain", driver)
            failed = [f"{name}: {line.detail}" for name, line in results.items() if line.outcome == "FAIL"]
            assert not failed, "; ".join(failed)
            assert results.keys() >= {"disk-read", "orphan-port", "orphan-send", "orphan-grants"}
            host.all_dead()
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
    assert not host.grave(), host.grave()[0]
