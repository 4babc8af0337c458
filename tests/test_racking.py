"""A new board: what is found of a machine by a real sshd and a real BMC, and that an inventory takes it as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dom0 import Dom0, dom0_fixture  # noqa: F401
from ipmi_sim import (  # noqa: F401
    Chassis,
    Simulator,
    board_bmc_fixture,
    board_simulator_fixture,
    chassis_fixture,
    simulator_fixture,
)
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture  # noqa: F401

from lab import inventory
from lab.base.errors import UsageError
from lab.bmc import ipmitool
from lab.bmc.redfish import SshConsole
from lab.boards import probe
from lab.cli.main import main
from lab.grid import services
from lab.grid.ssh import CommandResult
from lab.inventory import BmcSpec
from lab.leases import away
from lab.leases.ledger import Ledger
from lab.night.options import VIRTUAL_LAB

# What a server with Debian and no Xen answers to probe.SCRIPT, shortened.
SERVER = """\
@name epyc7
@cpu AMD EPYC 7313P 16-Core Processor
@flags fpu vme pdpe1gb svm npt lm
@cpus 32
@nodes 2
@iommu 5
@can s3 s5 rtcwake
@ipmi yes
@reached 192.0.2.9 51000 192.0.2.13 22
@serial 0 1
@nic eno1 02:00:00:00:13:00 0000:c1:00.0 1 7 192.0.2.13/24
@nic eno2 02:00:00:00:13:01 0000:c1:00.1 0 7
@nic enp1s0 02:00:00:00:13:02 0000:01:00.0 1 0 198.51.100.1/30
@nic usb0 02:00:00:00:13:03 1-1.2:1.0 0 0
"""


def look(text: str) -> probe.ProbedMachine:
    return probe.look("", "192.0.2.13", 22, lambda command, **_: CommandResult(command, 0, text, "", 0.1))


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """``xenlab WORDS`` in this process: exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def loaded(folder: Path, entry: str) -> inventory.BoardSpec:
    """The entry as an inventory takes it."""
    tree = {"all": {"vars": {"xenlab": {"lab": "unit"}}, "hosts": yaml.safe_load(entry)}}
    (folder / "unit.yaml").write_text(yaml.safe_dump(tree))
    (board,) = inventory.load(folder / "unit.yaml").boards.values()
    return board


# What is seen


def test_server_without_xen_is_told_by_its_processor_and_firmware() -> None:
    found = look(SERVER)
    assert (found.name, found.cpus, found.nodes) == ("epyc7", 32, 2)
    wanted = {"hvm", "hap", "pae-guests", "sp2m", "sp1g", "iommu", "numa", "cpu-offline"}
    wanted |= {"s3", "s5", "rtcwake", "spare-nic", "sriov"}
    assert found.capabilities == wanted
    assert any("no Xen runs there" in remark for remark in found.remarks)


def test_port_that_was_reached_manages_and_one_without_address_is_spare() -> None:
    found = look(SERVER)
    assert {role: nic.name for role, nic in found.nics.items()} == {"management": "eno1", "spare": "eno2"}
    assert [nic.name for nic in found.others] == ["enp1s0", "usb0"], "an adapter on USB cannot be passed through"


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ("svm npt", "", {"hvm", "hap", "pae-guests", "sp2m", "sp1g"}),
        ("pdpe1gb", "", {"sp1g"}),
        ("@iommu 5", "@iommu 0", {"iommu"}),
        ("@nodes 2", "@nodes 1", {"numa"}),
        ("@can s3", "@can", {"s3"}),
        ("s5", "", {"s5"}),
        ("rtcwake", "", {"rtcwake"}),
        ("@cpus 32", "@cpus 1", {"cpu-offline"}),
    ],
)
def test_what_is_not_there_is_not_declared(old: str, new: str, lost: set[str]) -> None:
    assert look(SERVER).capabilities - look(SERVER.replace(old, new)).capabilities == lost


# The command


def test_probe_prints_an_entry_that_an_inventory_takes(
    dom0: Dom0,
    board_simulator: Simulator,
    chassis: Chassis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_DESK", f"{board_simulator.user}:{board_simulator.password}")
    bmc = f"127.0.0.1:{board_simulator.spec.port}"
    words = ["board", "probe", f"{dom0.user}@127.0.0.1", "--port", str(dom0.port), "--name", "desk1"]
    status, entry, errors = run(*words, "--bmc", bmc, "--credential", "desk", capsys=capsys)
    assert status == 0, errors
    board = loaded(tmp_path, entry)
    assert (board.name, board.ssh_host, board.ssh_port) == ("desk1", "127.0.0.1", dom0.port)
    assert (board.bmc.protocol, board.bmc.port, board.bmc.cipher) == ("ipmi", board_simulator.spec.port, 3)
    assert "bmc-sleep-state" in board.capabilities
    assert ("cpu-offline" in board.capabilities) == ((os.cpu_count() or 1) > 1)
    assert chassis.calls() == [], "nothing was switched"
    assert board_simulator.password not in entry + errors


def test_a_console_that_redfish_knows_of_is_in_the_entry(tmp_path: Path) -> None:
    found = look(SERVER)
    found.bmc = BmcSpec("203.0.113.7", "rack-bmc", "redfish", port=443)
    found.ssh_console = SshConsole(2200, "console com2")
    console = loaded(tmp_path, probe.entry(found, serve_port=22300)).console
    assert (console.via, console.host, console.port) == ("ssh", "203.0.113.7", 2200)
    assert (console.credential, console.entry, console.lines_port) == ("rack-bmc", "console com2", 22301)


def test_what_the_known_good_build_lacks_is_not_declared(tmp_path: Path) -> None:
    """Debian's Xen has no 32-bit PV guests; a build under test may have them, and would lack `no-pv32`."""
    found = look(SERVER)
    found.bmc, found.capabilities = BmcSpec("203.0.113.7", "rack-bmc"), {"no-pv32", "pv", "hvm"}
    found.has_sol = True
    assert loaded(tmp_path, probe.entry(found, serve_port=22300)).capabilities >= {"pv", "hvm"}
    assert "no-pv32" not in loaded(tmp_path, probe.entry(found, serve_port=22300)).capabilities


def test_a_machine_without_a_bmc_has_no_soft_off_that_anybody_could_see(tmp_path: Path) -> None:
    found = look(SERVER)
    assert "s5" not in yaml.safe_load(probe.entry(found, serve_port=22300))["epyc7"]["xenlab"]["capabilities"]
    found.bmc = BmcSpec("203.0.113.7", "rack-bmc")
    assert "s5" in yaml.safe_load(probe.entry(found, serve_port=22300))["epyc7"]["xenlab"]["capabilities"]


def test_probe_under_xen_takes_its_word(
    dom0: Dom0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dom0.program(
        "xl",
        'case $1 in info) echo "nr_cpus : 4"; echo "nr_nodes : 2"; echo "virt_caps : pv hvm hap shadow pv_directio"; '
        'echo "xen_caps : xen-3.0-x86_64 xen-3.0-x86_32p";; '
        'dmesg) echo "(XEN) HVM: HAP page sizes: 4kB, 2MB, 1GB";; esac',
    )
    words = ["board", "probe", f"{dom0.user}@127.0.0.1", "--port", str(dom0.port), "--name", "desk1"]
    status, entry, errors = run(*words, capsys=capsys)
    assert status == 0, errors
    wanted = {"pv32", "hvm", "hap", "shadow", "iommu", "numa", "cpu-offline", "sp2m", "sp1g"}
    assert wanted <= loaded(tmp_path, entry).capabilities
    assert "2 NUMA nodes" in entry and "pdu: model, host and outlet are to be filled in" in entry


def test_bmc_that_speaks_only_redfish_is_found(
    make_board: Callable[..., VirtualBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))  # to be quick
    board = make_board("redfish", tls="verified")
    found = probe.find_bmc("desk1", f"127.0.0.1:{board.spec.bmc.port}", "test")
    assert (found.best.protocol, found.best.tls) == ("redfish", "unverified")
    assert "RedfishVersion 1.5.0" in found.remarks[0] and "no answer within" in found.remarks[-1]


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["192.0.2.1", "--bmc", "h"], "--bmc needs --credential", 2),
        (["127.0.0.1", "--port", "1"], "dom0 does not answer over SSH at 127.0.0.1:1", 3),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], said: str, status: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    got, _, errors = run("board", "probe", *words, capsys=capsys)
    assert got == status and said in errors and errors.count("\n") == 1


def test_name_that_is_taken_is_refused_and_ports_are_free_ones(
    dom0: Dom0, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["board", "probe", f"{dom0.user}@127.0.0.1", "--port", str(dom0.port)]
    shipped = Path(inventory.__file__).parents[2] / "inventory" / "rack-example.yaml"
    status, _, errors = run(*words, "--name", "numa1", "--inventory", str(shipped), capsys=capsys)
    assert status == 2 and "has a board numa1 already: --name gives this one another" in errors
    status, entry, errors = run(*words, "--name", "desk7", "--inventory", str(shipped), capsys=capsys)
    assert status == 0, errors
    taken = {board.console.serve_port for board in inventory.load(shipped).boards.values()}
    assert loaded(tmp_path, entry).console.serve_port == max(taken) + 10


def test_the_first_board_of_an_inventory_is_probed_for_it(
    dom0: Dom0, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["board", "probe", f"{dom0.user}@127.0.0.1", "--port", str(dom0.port), "--name", "desk7"]
    (tmp_path / "new.yaml").write_text("all: {vars: {xenlab: {lab: unit}}}\n")
    status, entry, errors = run(*words, "--inventory", str(tmp_path / "new.yaml"), capsys=capsys)
    assert status == 0, errors
    assert loaded(tmp_path, entry).name == "desk7"
    with pytest.raises(UsageError, match="has no boards"):
        inventory.load(tmp_path / "new.yaml")


def test_accept_refuses_a_board_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    status, _, errors = run("board", "accept", "virt9", capsys=capsys)
    assert status == 2 and "no board virt9" in errors


@pytest.mark.parametrize(
    "words", [["reserve", "virt9"], ["console", "virt9"], ["board", "check", "virt9"], ["power", "virt9", "on"]]
)
def test_a_board_that_is_not_there_is_said_whether_the_lab_is_up_or_not(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    status, _, errors = run(*words, capsys=capsys)
    assert (status, errors.count("\n")) == (2, 1) and "no board virt9 (did you mean virt" in errors


def test_accept_does_not_begin_with_a_board_that_is_sick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Ledger(services.directory(inventory.load(VIRTUAL_LAB))).quarantine("virt1", "power on failed")
    status, _, errors = run("board", "accept", "virt1", capsys=capsys)
    assert status == 3 and "virt1 is in quarantine (power on failed): `xenlab board check virt1` comes first" in errors
    away.begin(services.directory(inventory.load(VIRTUAL_LAB)), ["virt1"], "its host is away: host h1: no route")
    status, _, errors = run("board", "accept", "virt1", capsys=capsys)
    assert status == 3 and "virt1 is away: its host is away: host h1: no route" in errors
