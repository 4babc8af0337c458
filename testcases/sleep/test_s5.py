"""Soft off (ACPI S5) and back."""

import pytest

from lab.errors import ProductTimeout, WaitTimeout
from lab.wait import wait_until

pytestmark = [pytest.mark.quick, pytest.mark.needs("s5")]


def test_s5_and_power_on(host, evidence):
    """dom0's poweroff takes the machine to S5, which the BMC reports as power off; power on brings it back."""
    board = host.board
    mark = board.console.mark()
    host.shutdown()
    host.expect_console(r"Entering ACPI S5 state|Hardware Dom0 halted", 60.0, since=mark)
    try:
        wait_until(lambda: not board.power.is_powered(), 30.0, f"{host.name}: the BMC reports power off")
    except WaitTimeout as error:
        raise ProductTimeout(error.what, error.timeout, error.last) from error  # it said that it would
    evidence.add("power after S5", "off", kind="bmc", board=host.name)
    board.strategy.reboot(entry="under-test")
    board.reconnect()
    assert board.power.is_powered()
    assert "Domain-0" in host.xl("list").stdout
