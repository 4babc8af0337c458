"""The capabilities of a board, probed through its dom0 by the rules of :mod:`lab.inventory.capabilities`."""

from __future__ import annotations

from collections.abc import Collection

from lab.base.errors import LabError
from lab.inventory.capabilities import Facts, conditions, probed
from lab.xen.dom0 import Dom0, Toolstack


def of_board(dom0: Dom0) -> frozenset[str]:
    """What the hypervisor that runs on this board can do, and what the board adds by its ports, its link and its BMC.

    :raises ToolstackFailed: ``xl info`` failed.
    :raises BenchError: dom0 does not answer.
    """
    board = dom0.board
    try:
        board.power.sleep_state()
        tells_sleep = True
    except LabError:
        tells_sleep = False
    tells_power = board.spec.bmc.protocol != "none"
    return of_toolstack(
        dom0, board.spec.nics, is_linked=bool(board.spec.link), tells_sleep=tells_sleep, tells_power=tells_power
    )


def of_toolstack(
    dom0: Toolstack,
    ports: Collection[str] = (),
    *,
    is_linked: bool = False,
    tells_sleep: bool = False,
    tells_power: bool = True,
) -> frozenset[str]:
    """What the running hypervisor can do, where all there is to ask is a dom0's shell.

    :param ports: roles of the board's network ports.
    :param is_linked: a lab link joins the board to another one.
    :param tells_sleep: its BMC tells the ACPI power state.
    :param tells_power: it has a BMC, which tells whether the power is off.
    :raises ToolstackFailed: ``xl info`` failed.
    :raises BenchError: dom0 does not answer.
    """
    facts = Facts(
        info=dom0.info(),
        numa=dom0.xl("info", "-n").stdout.partition("numa_info")[2],
        boot_log=dom0.boot_log(),
        dom0=frozenset(dom0.run(conditions(), check=False).stdout.split()),
        ports=frozenset(ports),
        is_linked=is_linked,
        tells_sleep=tells_sleep,
        tells_power=tells_power,
    )
    return probed(facts)
