"""Sleeps that must fail, each in its own way. tests/boards/test_verdicts_on_boards.py looks at the verdicts."""

import pytest

from lab.xen.sleep import suspend

pytestmark = [pytest.mark.quick, pytest.mark.needs("s3", "bmc-sleep-state")]


def test_never_slept(host):
    """dom0's kernel only freezes its processes and thaws them again, and asks Xen for nothing."""
    host.run("echo freezer > /sys/power/pm_test")
    try:
        suspend(host, while_asleep=host.board.power.press_power_button).check()
    finally:
        host.run("echo none > /sys/power/pm_test")


def test_rebooted_instead(host):
    """The reset line is pulled while the host sleeps."""
    suspend(host, while_asleep=host.board.power.reset).check()


def test_never_woke(host):
    """Nobody wakes it."""
    suspend(host, timeout=15.0).check()


def test_sleeps_again_afterwards(host):
    """A host that never woke is brought back through its BMC, and sleeps and wakes."""
    suspend(host, while_asleep=host.board.power.press_power_button).check()
