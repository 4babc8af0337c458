"""Soft off (ACPI S5), and power on again."""

import pytest

pytestmark = [pytest.mark.cold, pytest.mark.quick, pytest.mark.needs("s5")]


def test_s5_and_power_on(host, evidence):
    """dom0's poweroff puts the machine into S5, its BMC reports power off, and power on boots it again."""
    board = host.board
    mark = board.console.mark()
    host.shutdown()
    host.expect_console(r"Entering ACPI S5 state|Hardware Dom0 halted", 60.0, since=mark)
    host.expect(lambda: not board.power.is_powered(), 30.0, "the BMC reports power off")
    evidence.add("power after S5", "off", kind="bmc", board=host.name)
    board.strategy.reboot(entry="under-test")
    board.reconnect()
    assert board.power.is_powered()
    assert "Domain-0" in host.xl("list").stdout
