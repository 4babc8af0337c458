"""Power by outlets: of a board without a BMC, and of one whose BMC has died."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest
from free_ports import free_port
from ipmi_sim import (  # noqa: F401
    Chassis,
    Simulator,
    chassis_fixture,
    simulator_fixture,
)
from small_lab import SmallLab, lab_up_fixture, ports  # noqa: F401
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture  # noqa: F401

from lab.base.credentials import Credential
from lab.base.errors import BmcUnreachable, MissingCapability, PowerTimeout
from lab.bmc import ipmitool
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.switching import Pace
from lab.grid import mains
from lab.grid.mains import MainsBackedBmc, MainsBmc, Outlet
from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec, PduSpec

QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.2)
HASTY = ("-N", "1", "-R", "1")  # ipmitool gives a dead BMC up after 2 s


class Pdu:
    """A power switch as labgrid's model ``rest`` speaks to it: GET and PUT of 0 or 1 at /OUTLET."""

    def __init__(self, switched: Callable[[bool], None] = lambda on: None) -> None:
        self.on, self.deaf, self.commands = True, 0, list[bool]()
        pdu = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(str(int(pdu.on)))

            def do_PUT(self) -> None:
                wanted = self.rfile.read(int(self.headers["Content-Length"])) == b"1"
                pdu.commands.append(wanted)
                if pdu.deaf:
                    pdu.deaf -= 1
                elif wanted != pdu.on:
                    pdu.on = wanted
                    switched(wanted)
                self._answer("")

            def _answer(self, text: str) -> None:
                self.send_response(200 if self.path == "/outlets/3" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.spec = PduSpec("rest", f"http://127.0.0.1:{self._server.server_address[1]}/outlets/{{index}}", 3)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def outlet(self) -> Outlet:
        """Through labgrid's driver for it."""
        return Outlet("mini", mains._driver(self.spec))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(name="pdu")
def pdu_fixture() -> Iterator[Pdu]:
    pdu = Pdu()
    yield pdu
    pdu.close()


# A board without a BMC


def test_outlet_is_power_for_a_board_without_a_bmc(pdu: Pdu) -> None:
    bmc = MainsBmc("mini", pdu.outlet(), QUICK)
    assert bmc.is_powered()
    bmc.cycle()
    assert pdu.commands == [False, True] and pdu.on
    bmc.power_off()
    bmc.power_off()
    assert pdu.commands == [False, True, False] and not bmc.is_powered()


def test_command_that_the_pdu_forgets_is_repeated(pdu: Pdu) -> None:
    pdu.deaf = 1
    MainsBmc("mini", pdu.outlet(), QUICK).power_off(10.0)
    assert pdu.commands == [False, False] and not pdu.on


def test_outlet_that_stays_on_is_a_power_timeout(pdu: Pdu) -> None:
    pdu.deaf = 99
    with pytest.raises(PowerTimeout, match="mini: chassis power not off after 2"):
        MainsBmc("mini", pdu.outlet(), QUICK).power_off(2.0)


def test_pdu_that_is_gone_is_unreachable_and_named(pdu: Pdu) -> None:
    bmc = MainsBmc("mini", pdu.outlet(), QUICK)
    pdu.close()
    with pytest.raises(BmcUnreachable, match=r"mini: PDU rest http://127\.0\.0\.1:\d+/outlets/\{index\} outlet 3: "):
        bmc.power_on()


def test_what_only_a_bmc_can_is_a_missing_capability(pdu: Pdu) -> None:
    bmc = MainsBmc("mini", pdu.outlet(), QUICK)
    for action in (bmc.nmi, bmc.soft_off, bmc.press_power_button, bmc.sleep_state, bmc.clock):
        with pytest.raises(MissingCapability):
            action()


def test_board_of_the_inventory_is_switched_by_what_it_has(pdu: Pdu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", "admin:x")
    console = ConsoleSpec("tcp", 1, 2, host="127.0.0.1", port=3)
    own = BmcSpec("127.0.0.1", "test", port=free_port(), cipher=3)
    boards = {
        IpmiBmc: BoardSpec("mini", "127.0.0.1", own, console),
        MainsBackedBmc: BoardSpec("mini", "127.0.0.1", own, console, pdu=pdu.spec),
        MainsBmc: BoardSpec("mini", "127.0.0.1", BmcSpec("", "", "none", port=0), console, pdu=pdu.spec),
    }
    for kind, board in boards.items():
        assert type(mains.power_of(board)) is kind
    assert mains.power_of(boards[MainsBmc]).is_powered()


# A BMC with mains under it


def test_dead_bmc_comes_back_when_its_mains_are_cut(
    simulator: Simulator, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's BMC does not answer until it is restarted, which is what mains do to it."""
    monkeypatch.setattr(ipmitool, "PATIENT", HASTY)
    simulator.stop()
    pdu = Pdu(lambda on: simulator.start() if on else None)
    try:
        own = IpmiBmc("mini", simulator.spec, Credential(simulator.user, simulator.password), QUICK)
        bmc = MainsBackedBmc("mini", own, pdu.outlet(), QUICK)
        bmc.power_on(30.0)
        assert pdu.commands == [False, True]
        assert chassis.get("power") == 1 and bmc.is_powered()
    finally:
        pdu.close()


def test_bmc_that_does_its_work_keeps_its_mains(simulator: Simulator, chassis: Chassis, pdu: Pdu) -> None:
    own = IpmiBmc("mini", simulator.spec, Credential(simulator.user, simulator.password), QUICK)
    bmc = MainsBackedBmc("mini", own, pdu.outlet(), QUICK)
    bmc.cycle()
    assert pdu.commands == [] and chassis.get("power") == 1


def test_bmc_that_does_not_switch_even_then_is_a_power_timeout(
    simulator: Simulator, chassis: Chassis, pdu: Pdu
) -> None:
    chassis.set(ignores=99)
    own = IpmiBmc("mini", simulator.spec, Credential(simulator.user, simulator.password), QUICK)
    with pytest.raises(PowerTimeout):
        MainsBackedBmc("mini", own, pdu.outlet(), QUICK).power_on(1.5)
    assert pdu.commands == [False, True]


def test_bmc_that_stays_dead_is_said_so(pdu: Pdu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mains, "BMC_START", 1.0)
    monkeypatch.setattr(ipmitool, "PATIENT", HASTY)
    spec = BmcSpec("127.0.0.1", "test", port=free_port(), cipher=3)
    own = IpmiBmc("mini", spec, Credential("admin", "x"), QUICK)
    with pytest.raises(Exception, match="mini: the BMC answers after its mains were cut: not within 1.0 s"):
        MainsBackedBmc("mini", own, pdu.outlet(), QUICK).power_off(5.0)
