"""Host suspend to RAM (ACPI S3)."""

import time

import pytest

from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload
from lab.xen.sleep import suspend

pytestmark = [pytest.mark.quick, pytest.mark.needs("s3", "rtcwake")]

ASLEEP = 8  # seconds


def test_s3_with_a_guest_running(host, evidence):
    """The host sleeps, as the BMC sees it too, wakes by RTC in time, and a guest goes on where it was."""
    with host.domain(payload(host, "pvh64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        cpus = host.info()["nr_cpus"]
        night = suspend(host, wake_after=ASLEEP)
        evidence.add("sleep", night.text(), kind="console", board=host.name)
        for name, value in night.figures().items():
            evidence.figure(name, value)
        assert night.entered, "Xen never said that it enters S3"
        assert night.finished, "Xen never said that it woke up"
        assert not night.rebooted, "the machine rebooted instead of waking"
        assert night.seen_asleep, "the board itself was never asleep"
        assert night.asleep_seconds >= ASLEEP - 3, f"woke after {night.asleep_seconds:.1f} s of {ASLEEP} s"
        assert host.info()["nr_cpus"] == cpus
        guest.beats(5)
        assert_unbroken(guest.heartbeats())


def test_s3_woken_by_the_power_button(host, evidence):
    """Without an alarm the host sleeps until its power button is pressed through the BMC."""
    night = suspend(host, wake_after=None)
    evidence.add("sleep", night.text(), kind="console", board=host.name)
    assert night.seen_asleep, "the board itself was never asleep"
    assert night.finished, "Xen never said that it woke up"
    assert not night.rebooted
    assert time.time() - float(host.run("date +%s.%N").stdout) < 5.0, "dom0's clock is off after waking"
