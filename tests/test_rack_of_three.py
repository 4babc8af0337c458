"""Three unlike boards in one lab: IPMI with SOL; power by Redfish with SOL by IPMI; an outlet and a serial adapter.

BMCs, PDU and lines are real services on loopback; everything between them and the findings is the lab's own, brought up
by its commands. No operating system runs on these boards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from consoles import Wire
from free_ports import free_port
from ipmi_sim import Chassis, Simulator
from redfish_zoo import PASSWORD, USER, MakeZoo, zoo_fixture  # noqa: F401
from small_lab import SmallLab, lab_up_fixture  # noqa: F401
from test_power import Pdu, pdu_fixture  # noqa: F401

from lab.base.wait import wait_until

# The supervisor is not ours to wait for: it ends when we do, or is told to.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(name="simulators")
def simulators_fixture(tmp_path: Path) -> Iterator[list[Simulator]]:
    if not shutil.which("ipmi_sim") or not shutil.which("ipmitool"):
        pytest.skip("needs openipmi and ipmitool")
    started: list[Simulator] = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        started.append(Simulator(folder, Chassis(folder), None))
        started[-1].start()
    yield started
    for simulator in started:
        simulator.stop()


def test_a_rack_of_three_unlike_boards_is_checked_and_switched(
    simulators: list[Simulator],
    zoo: MakeZoo,
    pdu: Pdu,
    lab_up: Callable[..., SmallLab],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ipmi, behind_dell = simulators
    monkeypatch.setenv("XENLAB_CREDENTIAL_RACK_BMC", f"{ipmi.user}:{ipmi.password}")
    monkeypatch.setenv("XENLAB_CREDENTIAL_DELL_BMC", f"{USER}:{PASSWORD}")
    dell = zoo("dell")
    dell.tree["Managers/iDRAC.Embedded.1"]["DateTime"] = datetime.now(UTC).isoformat()
    adapter, device = os.openpty()

    def recorded(**console: Any) -> dict[str, Any]:
        return {**console, "serve_port": free_port(), "lines_port": free_port()}

    host = {"host": "127.0.0.1"}
    sol = {"port": behind_dell.spec.port, "credential": "rack-bmc"}
    outlet = {"model": pdu.spec.model, "host": pdu.spec.host, "outlet": pdu.spec.outlet}
    with contextlib.closing(Wire(ipmi.sol_port)) as first, contextlib.closing(Wire(behind_dell.sol_port)) as second:
        lab = lab_up(
            {
                "bmc": {**host, "port": ipmi.spec.port, "credential": "rack-bmc"},
                "console": recorded(via="sol"),
            },
            dell={
                "bmc": {**host, "protocol": "redfish", "tls": "off", "port": dell.port, "credential": "dell-bmc"},
                "console": recorded(via="sol", ipmi=sol),
            },
            desk={
                "bmc": {"protocol": "none"},
                "pdu": outlet,
                "console": recorded(via="device", device=os.ttyname(device)),
            },
        )
        first.say(b"mini speaks\r\n")
        second.say(b"dell speaks\r\n")
        os.write(adapter, b"desk speaks\r\n")
        for name in ("mini", "dell", "desk"):
            log = lab.folder / "console" / f"{name}.jsonl"
            wait_until(lambda log=log, name=name: f"{name} speaks" in log.read_text(), 30.0, "it is recorded")
            said = lab.xenlab("board", "check", name, "--quick")
            assert "BAD" not in said and "ok  console: " in said, said
        said = lab.xenlab("board", "check", "mini", "--quick")
        assert "ok  power: off; the BMC does not take cipher suite 17, so 3 is used" in said
        assert "ok  BMC sensors: 4 readings; not read: " in lab.xenlab("board", "check", "dell", "--quick")
        for name in ("mini", "dell", "desk"):
            assert f"acquired place {name}" in lab.shell(f"labgrid-client -p {name} acquire").stdout
            done = lab.shell(f"labgrid-client -p {name} power cycle")
            assert done.returncode == 0 and "is on" in lab.shell(f"labgrid-client -p {name} power get").stdout
    assert ipmi.chassis.get("power") == 1 and behind_dell.chassis.get("power") == 0
    assert dell.resets() == ["On"] and pdu.commands == [False, True]
    os.close(adapter)
    os.close(device)
