"""What is asked of a host that crashes: its console's port, its power, and that nobody reset it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab.base.errors import NotProved, ProductTimeout
from lab.console.client import ConsoleLine
from lab.xen import kexec
from lab.xen.dom0 import Dom0
from lab.xen.kexec import Course

XEN, RUNS = "(XEN) Executing kexec image on cpu1", "xenlab: the crash kernel runs"


def course(*texts: str, powered: bool = True) -> Course:
    lines = [ConsoleLine("virt1", n, 1000.0 + n, "line", text) for n, text in enumerate(texts)]
    console = SimpleNamespace(lines=lambda since: [line for line in lines if line.n >= since])
    board: Any = SimpleNamespace(
        steal_meter=None, name="virt1", run=None, console=console, power=SimpleNamespace(is_powered=lambda: powered)
    )
    host: Any = Dom0(board)
    host.slowness = lambda: 1.0
    return Course(host, 0)


def test_the_power_of_a_later_reboot_does_not_count() -> None:
    """The crash kernel reboots the board when it is done, and power may go off for that."""
    seen = course(XEN, RUNS, "xenlab: the crash kernel is done, status 0")
    leaves, runs = seen.wait(kexec.LEAVES, 1.0), seen.wait(RUNS, 1.0)
    seen.host.board.power.is_powered = lambda: False
    done = seen.wait(kexec.DONE, 1.0)
    seen.check(leaves, runs)
    assert not seen.is_always_on and "off " in seen.power() and "always on" in seen.power(2)
    with pytest.raises(AssertionError, match="the BMC reports the power off: asked 3 times"):
        seen.check(leaves, done)


@pytest.mark.parametrize(
    ("options", "port"),
    [
        ("com1=115200,8n1 console=com1", "ttyS0,115200"),
        ("com1=115200 console=com1 com2=57600,8n1 console=com2", "ttyS1,57600"),
        ("com1=115200,8n1 com1=9600 console=vga,com1", "ttyS0,9600"),
        ("console=com2", "ttyS1,115200"),
    ],
)
def test_the_crash_kernel_speaks_where_xen_does(options: str, port: str) -> None:
    host: Any = SimpleNamespace(name="virt1", info=lambda: {"xen_commandline": options})
    assert kexec._serial_port(host) == port


def test_a_console_that_is_no_serial_port_proves_nothing() -> None:
    host: Any = SimpleNamespace(name="virt1", info=lambda: {"xen_commandline": "console=vga"})
    with pytest.raises(NotProved, match="no serial port: console=vga"):
        kexec._serial_port(host)


def test_lines_are_waited_for_in_their_order() -> None:
    seen = course(RUNS, XEN, RUNS)
    leaves = seen.wait(kexec.LEAVES, 1.0)
    assert (leaves.n, seen.wait(RUNS, 1.0, leaves).n) == (1, 2)
    seen.check(leaves, seen.wait(RUNS, 1.0, leaves))
    assert "power was always on" in seen.power() and seen.is_always_on


def test_a_line_that_does_not_come_is_owed_by_the_product() -> None:
    with pytest.raises(ProductTimeout, match="the crash kernel runs"):
        course(XEN).wait(RUNS, 0.2)


def test_a_board_that_was_reset_is_told_from_one_that_was_not() -> None:
    seen = course(XEN, "GNU GRUB  version 2.06", RUNS)
    leaves, runs = seen.wait(kexec.LEAVES, 1.0), seen.wait(RUNS, 1.0)
    with pytest.raises(AssertionError, match="reset instead of starting what was loaded: GNU GRUB"):
        seen.check(leaves, runs)


def test_power_that_went_off_is_told() -> None:
    seen = course(XEN, RUNS, powered=False)
    leaves, runs = seen.wait(kexec.LEAVES, 1.0), seen.wait(RUNS, 1.0)
    with pytest.raises(AssertionError, match="the BMC reports the power off: asked 2 times"):
        seen.check(leaves, runs)
