"""Soft off (ACPI S5) and back."""

import pytest

pytestmark = [pytest.mark.quick, pytest.mark.needs("s5")]


def test_s5_and_power_on(host, evidence):
    """dom0's poweroff takes the machine to S5, which the BMC reports as power off; power on brings it back."""
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
