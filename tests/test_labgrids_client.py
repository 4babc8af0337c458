"""Power as people have it: labgrid's own coordinator, exporter and client, on top of real BMCs and an outlet."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from consoles import Wire
from free_ports import free_port
from small_lab import SmallLab, ports
from test_power import Pdu
from virtual_board import PASSWORD, VirtualBoard, need_programs

from lab.base.wait import wait_until

# The supervisor is not ours to wait for: it ends when we do, or is told to.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@dataclass
class Rack:
    """A lab of four boards: behind IPMI, behind Redfish, with an outlet alone, and with a BMC that is dead."""

    lab: SmallLab
    mini: VirtualBoard
    redfish: VirtualBoard
    pdu: Pdu
    wire: Wire  # the console of the board with the outlet
    dead: int  # the port where nobody answers


@pytest.fixture(scope="module", name="rack")
def rack_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """One lab for all tests here: each has a board of its own, or gives it back."""
    need_programs()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("XENLAB_CREDENTIAL_TEST", f"admin:{PASSWORD}")

        def behind(protocol: str, port: int, **more: object) -> dict[str, object]:
            own = {"cipher": 3} if protocol == "ipmi" else {"tls": "off"}
            bmc = {"protocol": protocol, "host": "127.0.0.1", "port": port, "credential": "test", **own}
            return {"bmc": bmc, "console": ports(free_port()), **more}

        boards = []
        for protocol in ("ipmi", "redfish"):
            boards.append(VirtualBoard(tmp_path_factory.mktemp("board"), protocol))
            stack.callback(boards[-1].stop)
        mini, redfish = boards
        pdu, dead = stack.enter_context(closing(Pdu())), free_port()
        wire = stack.enter_context(closing(Wire()))
        outlet = {"model": pdu.spec.model, "host": pdu.spec.host, "outlet": pdu.spec.outlet}
        others = {
            "redfish": behind("redfish", redfish.spec.bmc.port),
            "outlet": {"bmc": {"protocol": "none"}, "console": ports(wire.port), "pdu": outlet},
            "dead": behind("redfish", dead),
        }
        lab = SmallLab(tmp_path_factory.mktemp("lab"), {"mini": behind("ipmi", mini.spec.bmc.port), **others})
        lab.up()
        stack.callback(lab.xenlab, "lab", "down")
        yield Rack(lab, mini, redfish, pdu, wire, dead)


@pytest.mark.parametrize(("name", "resource"), [("mini", "IPMIPort"), ("redfish", "RedfishPort")])
def test_it_powers_a_board(rack: Rack, name: str, resource: str) -> None:
    lab, board = rack.lab, rack.mini if name == "mini" else rack.redfish
    lab.client("acquire", board=name)
    assert f"power for place {name} is off" in lab.client("power", "get", board=name)
    lab.client("power", "cycle", board=name)
    assert board.ask("get power") == "1" and "is on" in lab.client("power", "get", board=name)
    lab.client("power", "off", board=name)
    assert board.ask("get power") == "0"
    shown = lab.client("show", board=name)
    assert resource in shown and PASSWORD not in shown
    lab.client("release", board=name)


def test_it_powers_a_board_by_its_outlet_alone(rack: Rack) -> None:
    rack.lab.client("acquire", board="outlet")
    rack.lab.client("power", "off", board="outlet")
    assert not rack.pdu.on and "is off" in rack.lab.client("power", "get", board="outlet")
    rack.lab.client("release", board="outlet")


def test_it_takes_the_board_that_is_named_and_no_other(rack: Rack) -> None:
    """As rack.md, sharing.md and README say: env.sh, then labgrid's own client, in a lab of several boards."""
    lab = rack.lab

    def held() -> set[str]:
        shown = lab.shell("labgrid-client who").stdout
        return {name for name in ("mini", "redfish", "outlet", "dead") if f" {name} " in shown.replace("\n", " \n")}

    wait_until(lambda: held() == set(), 30.0, "what other tests held is given back")
    assert "acquired place mini" in (said := lab.shell("labgrid-client -p mini acquire").stdout), said
    assert held() == {"mini"}
    somebody = f"LG_USERNAME=somebody {Path(sys.executable).with_name('labgrid-client')} -p dead"
    assert lab.shell(f"{somebody} acquire").returncode == 0, "it was left to others"
    assert held() == {"mini", "dead"}
    assert "is off" in (said := lab.shell("labgrid-client -p mini power get").stdout), said
    assert lab.shell("export LG_PLACE=mini; labgrid-client power cycle").returncode == 0
    assert rack.mini.ask("get power") == "1" and rack.redfish.ask("get power") == "0"
    assert "released place mini" in (said := lab.shell("labgrid-client -p mini release").stdout), said
    assert held() == {"dead"}
    assert lab.shell(f"{somebody} release").returncode == 0


def test_it_says_in_a_line_that_a_bmc_is_dead(rack: Rack) -> None:
    lab = rack.lab
    lab.shell("labgrid-client -p dead acquire")
    done = lab.shell("labgrid-client -p dead power get")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    said = f"dead: BMC http://127.0.0.1:{rack.dead}: power state: no answer"
    assert any(said in line for line in done.stdout.splitlines())  # stdout and stderr come in either order
    plain = f"{Path(sys.executable).with_name('labgrid-client')} -c {lab.folder / 'env.yaml'}"
    done = lab.shell(f"unset XENLAB_CREDENTIAL_TEST; {plain} -p dead power get")
    assert done.returncode == 1 and "Traceback" not in done.stdout and "no credential 'test'" in done.stdout
    lab.shell("labgrid-client -p dead release")


def test_a_service_that_was_killed_is_there_again(rack: Rack) -> None:
    """Weeks of recording: whatever ends is started anew, and numbers on."""
    lab, recorder = rack.lab, "recorder-outlet"
    rack.wire.say(b"before\r\n")
    log = lab.folder / "console" / "outlet.jsonl"
    wait_until(lambda: "before" in log.read_text(), 10.0, "a record")
    before = lab.services()
    for name in (recorder, "exporter"):
        os.kill(before[name], signal.SIGKILL)
    for name in (recorder, "exporter"):
        wait_until(lambda name=name: lab.services()[name] not in (0, before[name]), 30.0, f"{name} anew")
    wait_until(lambda: '"gap"' in log.read_text(), 20.0, "the gap")
    rack.wire.say(b"after\r\n")
    wait_until(lambda: "after" in log.read_text(), 20.0, "a record")
    numbers = [json.loads(line)["n"] for line in log.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert lab.services()["coordinator"] == before["coordinator"]
