"""PDUs: each model that an inventory takes can be loaded, and those that speak SNMP switch a real agent's outlets."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from pysnmp.proto.rfc1902 import Null, OctetString
from pysnmp.proto.rfc1905 import NoSuchObject

from lab import inventory
from lab.base.errors import BmcUnreachable, PowerTimeout, UsageError
from lab.base.wait import wait_until
from lab.bmc.switching import Pace
from lab.grid import mains, outlets, snmp
from lab.grid.mains import MainsBmc, Outlet
from lab.grid.snmp import SnmpFailed
from lab.inventory import PduSpec, pdus

RACK_MD = Path(__file__).parents[1] / "docs" / "rack.md"
QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.1)

BOARD = """\
all:
  vars: {{xenlab: {{lab: unit}}}}
  hosts:
    desk:
      xenlab:
        bmc: {{protocol: none}}
        pdu: {{model: {model}, host: "{host}", outlet: {outlet}}}
        console: {{via: tcp, host: h, port: 1, serve_port: 2, lines_port: 3}}
"""


def read(folder: Path, model: str, host: str, outlet: int) -> PduSpec:
    """A board's PDU as an inventory takes it."""
    path = folder / "unit.yaml"
    path.write_text(BOARD.format(model=model, host=host, outlet=outlet))
    pdu = inventory.load(path).boards["desk"].pdu
    assert pdu
    return pdu


# What is on the list


@pytest.mark.parametrize("name", pdus.working())
def test_a_model_that_is_on_the_list_can_be_loaded(name: str, tmp_path: Path) -> None:
    model = pdus.MODELS[name]
    driver = mains._driver(read(tmp_path, name, model.example, model.first))
    assert callable(driver.backend.power_get) and callable(driver.backend.power_set)
    assert driver.backend is outlets.SNMP_BACKENDS.get(name, driver.backend)


def test_each_model_of_labgrid_is_on_the_list_or_it_is_said_why_not() -> None:
    folder = Path(importlib.import_module("labgrid.driver.power").__path__[0])
    there = {file.stem for file in folder.glob("[!_]*.py")}
    assert there == pdus.MODELS.keys() | pdus.UNSUPPORTED.keys()


def test_a_model_whose_module_is_not_installed_is_refused_with_what_to_install(tmp_path: Path) -> None:
    lacking = [name for name, model in pdus.MODELS.items() if model.lacks]
    for name in lacking:
        model = pdus.MODELS[name]
        with pytest.raises(UsageError, match=f"-m pip install {model.package}$"):
            read(tmp_path, name, model.example, model.first)
    assert "tplink" in lacking, "or there is no case of it any more"


@pytest.mark.parametrize(
    ("model", "host", "said"),
    [
        ("apc", "203.0.113.50/", "wants an address, or ADDRESS:PORT"),
        ("apc", "203.0.113.50:snmp", "wants an address, or ADDRESS:PORT"),
        ("apc", "203.0.113.50:99999", "wants an address, or ADDRESS:PORT"),
        ("apc", "2001:db8::50", "wants an address, or ADDRESS:PORT"),
        ("apc", "203.0.113.500", "wants an address, or ADDRESS:PORT"),
        ("apc", "", "wants an address, or ADDRESS:PORT"),
        ("apc", "http://203.0.113.50", "wants an address alone"),
        ("shelly_gen2", "203.0.113.50", "wants a URL for host"),
        ("shelly_gen2", "http://", "wants a URL of http or https with an address in it"),
        ("shelly_gen2", "http://203.0.113.50:none", "wants a URL"),
        ("shelly_gen2", "http://203.0.113.50/{index}", "knows no {index} in host"),
        ("rest", "ftp://203.0.113.50/relay/{index}/value", "wants a URL of http or https"),
        ("rest", "http://203.0.113.50/relay/{outlet}/value", "knows no {outlet} in host"),
        ("rest", "http://203.0.113.50/relay/{index/value", "wants a URL"),
        ("simplerest", "http://203.0.113.50/relay/{index}", "needs {value} in host"),
    ],
)
def test_a_host_by_which_a_model_could_not_work_is_refused_with_what_would_be_right(
    tmp_path: Path, model: str, host: str, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"unit\.yaml:7: all\.hosts\.desk\.xenlab\.pdu.*{re.escape(said)}.*such as "):
        read(tmp_path, model, host, 1)


@pytest.mark.parametrize(
    ("model", "host"),
    [
        ("apc", "203.0.113.50:1161"),
        ("apc", "pdu-3.lab.example"),
        ("shelly_gen2", "https://[2001:db8::50]:8443"),
        ("rest", "http://203.0.113.50/the-only-relay"),
        ("simplerest", "http://203.0.113.50/{value}"),
    ],
)
def test_a_host_may_have_a_port_or_a_name_or_one_outlet(tmp_path: Path, model: str, host: str) -> None:
    assert read(tmp_path, model, host, 1).host == host


def test_the_manual_has_each_model_with_its_host_and_its_outlets() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| `([^`]+)`.* \| (\d+)(?: to (\d+)| on) \|$", RACK_MD.read_text(), re.M))
    wanted = {(name, model.example, str(model.first), str(model.last or "")) for name, model in pdus.MODELS.items()}
    assert rows == wanted


@pytest.mark.parametrize(
    ("model", "host", "outlet", "said"),
    [
        ("shelly_gen2", "127.0.0.50", 0, r"wants a URL for host, such as http://203\.0\.113\.50$"),
        ("rest", "127.0.0.50", 0, r"wants a URL for host, such as http://203\.0\.113\.50/relay/\{index\}/value$"),
        ("ubus", "127.0.0.50", 1, r"such as http://203\.0\.113\.50/ubus$"),
        ("apc", "http://127.0.0.50", 3, r"wants an address alone for host, such as 203\.0\.113\.50$"),
        ("apc", "127.0.0.50", 0, r"outlet 0: model apc counts its outlets from 1 to 48$"),
        ("netio", "127.0.0.50", 5, r"outlet 5: model netio counts its outlets from 1 to 4$"),
        ("netio_kshell", "127.0.0.50", 1, r"netio_kshell is not supported: .*; netio drives the same devices$"),
    ],
)
def test_what_a_model_cannot_use_is_refused_with_an_example(
    tmp_path: Path, model: str, host: str, outlet: int, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, model, host, outlet)


# SNMP


class Agent:
    """snmpd, with the outlets of one vendor's PDU."""

    def __init__(self, folder: Path, vendor: str) -> None:
        port = free_port(socket.SOCK_DGRAM)
        self.host = f"127.0.0.1:{port}"
        self._state = folder / "outlets.json"
        self._state.write_text(json.dumps({"1": True, "3": True}))
        script = Path(__file__).with_name("snmp_pdu.py")
        config, log = folder / "snmpd.conf", folder / "agent.log"
        config.write_text(
            f"agentaddress udp:127.0.0.1:{port}\nrwcommunity private\n"
            f"{'rw' if vendor == 'eaton' else 'ro'}community public\n"
            + "".join(f"pass_persist .{base} {sys.executable} {script} {self._state} {vendor}\n" for base in BASES)
        )
        words = ["-f", "-C", "-c", str(config), "-Lf", str(log), "-p", str(folder / "agent.pid"), "-I", "-smux"]
        environment = os.environ | {"SNMP_PERSISTENT_DIR": str(folder)}
        self.process = subprocess.Popen(["/usr/sbin/snmpd", *words], env=environment, stdin=subprocess.DEVNULL)
        wait_until(lambda: log.exists() and "NET-SNMP version" in log.read_text(), 20, "the agent answers")

    def outlets(self) -> dict[str, bool]:
        found: dict[str, bool] = json.loads(self._state.read_text())
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


BASES = ("1.3.6.1.4.1.318", "1.3.6.1.4.1.534", "1.3.6.1.2.1.105", "1.3.6.1.4.1.13742", "1.3.6.1.4.1.1718")


@pytest.fixture(name="agent_of")
def agent_of_fixture(tmp_path: Path) -> Iterator[Callable[[str], Agent]]:
    if not shutil.which("snmpd", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("needs snmpd")
    started: list[Agent] = []

    def start(vendor: str) -> Agent:
        started.append(Agent(tmp_path, vendor))
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


@pytest.mark.parametrize("vendor", outlets.SNMP_BACKENDS)
def test_a_pdu_that_speaks_snmp_is_switched(vendor: str, agent_of: Callable[[str], Agent], tmp_path: Path) -> None:
    agent = agent_of(vendor)
    number = 11 if vendor == "sentry" else 3  # its outlets are counted over infeeds of eight: 1.2.3
    outlet = Outlet("desk", mains._driver(read(tmp_path, vendor, agent.host, number)))
    bmc = MainsBmc("desk", outlet, QUICK)
    assert bmc.is_powered()
    bmc.power_off(20.0)
    assert agent.outlets() == {"1": True, "3": False} and not bmc.is_powered()
    bmc.power_on(20.0)
    assert agent.outlets() == {"1": True, "3": True}


def test_an_outlet_on_its_way_to_off_has_power_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """EATON-EPDU-MIB, outletControlStatus: pendingOff, and off a second later."""
    told, states = list[tuple[str, int]](), [1, 2, 2, 0]

    class Slow:
        def get(self, _: str) -> int:
            return states.pop(0) if len(states) > 1 else states[0]

        def set(self, oid: str, value: int) -> None:
            told.append((oid, value))

    monkeypatch.setattr(outlets, "_agent", lambda host, community: Slow())
    driver = mains._driver(read(tmp_path, "eaton", "203.0.113.50", 3))
    MainsBmc("desk", Outlet("desk", driver), QUICK).power_off(5.0)
    assert states == [0] and len(told) == 1


def test_an_outlet_that_switches_and_an_agent_that_answers_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An APC AP8965, phillipsnick/apc-pdu-snmp#18: genErr, and the outlet is off. Another one's genErr is meant so."""
    state = [1]

    class Confused:
        is_obedient = True

        def get(self, _: str) -> int:
            return state[0]

        def set(self, _: str, value: int) -> None:
            if self.is_obedient:
                state[0] = value
            raise SnmpFailed("genErr")

    monkeypatch.setattr(outlets, "_agent", lambda host, community: Confused())
    control = MainsBmc("desk", Outlet("desk", mains._driver(read(tmp_path, "apc", "203.0.113.50", 3))), QUICK)
    control.power_off(5.0)
    assert state == [2]
    monkeypatch.setattr(Confused, "is_obedient", False)
    with pytest.raises(PowerTimeout, match="outlet 3: SnmpFailed: genErr"):
        control.power_on(2.0)


def test_an_outlet_that_a_pdu_does_not_have_is_said_to_be_the_boards(
    agent_of: Callable[[str], Agent], tmp_path: Path
) -> None:
    agent = agent_of("apc")
    outlet = Outlet("desk", mains._driver(read(tmp_path, "apc", agent.host, 7)))
    with pytest.raises(
        BmcUnreachable, match=r"desk: PDU apc 127\.0\.0\.1:\d+ outlet 7: SnmpFailed: noSuchName"
    ) as caught:
        MainsBmc("desk", outlet, QUICK).is_powered()
    assert caught.value.board == "desk"


def test_a_pdu_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    spec = read(tmp_path, "raritan", f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}", 3)
    with pytest.raises(BmcUnreachable, match="No SNMP response received"):
        MainsBmc("desk", Outlet("desk", mains._driver(spec)), QUICK).is_powered()


@pytest.mark.parametrize(
    ("value", "said"),
    [(OctetString("on"), "no number: 'on'"), (NoSuchObject(""), "No Such Object"), (Null(""), "no number")],
)
def test_an_agent_that_answers_with_no_number_is_said_to(
    value: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = snmp.Agent("192.0.2.1", 161, lambda: snmp.community("private", version=1))
    monkeypatch.setattr(agent, "_ask", lambda command: value)
    with pytest.raises(SnmpFailed, match=said):
        agent.get("1.3.6.1.4.1.318.1.1.4.4.2.1.3.7")
