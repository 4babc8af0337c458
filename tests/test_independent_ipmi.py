"""The lab's IPMI against a BMC of other people's, and the lab's BMC against clients of other people's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port
from ipmi_sim import (  # noqa: F401
    Chassis,
    Simulator,
    board_bmc_fixture,
    board_simulator_fixture,
    chassis_fixture,
)
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture  # noqa: F401

from lab.base.credentials import Credential
from lab.base.errors import CipherRefused, CommandFailed, LoginRefused, MissingCapability
from lab.base.wait import wait_until
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.switching import Pace
from lab.console.sources import SolSource, SourceLost
from lab.inventory import BmcSpec

pytest.importorskip("pyghmi")

QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.3)
SECRET = "canary-W8n2"


class Independent:
    """The running BMC, its power off."""

    def __init__(self, folder: Path) -> None:
        self.spec = BmcSpec("127.0.0.1", "test", port=free_port(socket.SOCK_DGRAM))
        self._commands = folder / "commands"
        self._commands.touch()
        program = Path(__file__).with_name("independent_bmc.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), str(self.spec.port), str(self._commands)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PASSWORD": SECRET},
        )
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def bmc(self, *, password: str = SECRET, **options: object) -> IpmiBmc:
        return IpmiBmc("alien", replace(self.spec, **options), Credential("lab", password), QUICK)  # type: ignore[arg-type]

    def commands(self) -> list[str]:
        return self._commands.read_text().splitlines()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(name="independent")
def independent_fixture(tmp_path: Path) -> Iterator[Independent]:
    if not shutil.which("ipmitool"):
        pytest.skip("needs ipmitool")
    found = Independent(tmp_path)
    yield found
    found.stop()


# A BMC of other people's


def test_a_bmc_that_answers_suite_17_with_the_algorithms_of_3_is_spoken_to_by_3(independent: Independent) -> None:
    bmc = independent.bmc()
    assert not bmc.is_powered() and bmc.cipher == 3
    assert "say bmc.cipher: 3" in bmc.remarks[0]
    with pytest.raises(CipherRefused, match=r"is not what we requested .*check bmc\.cipher \(17\)"):
        independent.bmc(cipher=17).is_powered()


def test_power_is_switched_and_seen(independent: Independent) -> None:
    bmc = independent.bmc(cipher=3)
    bmc.power_on(20.0)
    bmc.cycle(20.0)
    bmc.reset()
    bmc.soft_off()
    assert bmc.is_powered() and independent.commands() == ["on", "off", "on", "reset", "soft"]


def test_boot_device_is_taken(independent: Independent) -> None:
    independent.bmc(cipher=3, firmware="uefi").set_boot_device("pxe")
    assert independent.commands() == ["boot network"]


def test_what_it_cannot_do_is_a_missing_capability_or_a_failure_and_no_fault_of_ours(independent: Independent) -> None:
    bmc = independent.bmc(cipher=3)
    for ask in (bmc.nmi, bmc.sleep_state, bmc.clock, bmc.sensors):
        with pytest.raises(MissingCapability):
            ask()
    with pytest.raises(CommandFailed):
        bmc.has_sol()


def test_wrong_password_is_told(independent: Independent) -> None:
    with pytest.raises(LoginRefused, match="check user and password"):
        independent.bmc(password="wrong", cipher=3).is_powered()


# Clients of other people's


def test_pyghmi_switches_our_bmc(board_simulator: Simulator, chassis: Chassis) -> None:
    script = (
        "import os, sys; from pyghmi.ipmi.command import Command\n"
        "c = Command('127.0.0.1', sys.argv[2], os.environ['PASSWORD'], port=int(sys.argv[1]))\n"
        "print(c.get_power()['powerstate'], c.set_power('on', wait=20)['powerstate'])\n"
        "c.set_bootdev('network', uefiboot=True); print(c.get_bootdev())\n"
        "c.ipmi_session.logout()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(board_simulator.spec.port), board_simulator.user],
        env=os.environ | {"PASSWORD": board_simulator.password},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "off on"
    assert "'bootdev': 'network'" in done.stdout and "'uefimode': True" in done.stdout
    assert (chassis.get("power"), chassis.get("boot"), chassis.get("efi")) == (1, "pxe", 1)


def freeipmi(program: str, port: int, *words: str) -> list[str]:
    """Its command line. Our BMC, as others, wants the privilege level asked for later (``opensesspriv``)."""
    login = ("-u", "admin", "-p", PASSWORD, "-D", "LAN_2_0", "-I", "3", "-l", "ADMIN", "-W", "opensesspriv")
    return [program, "-h", f"127.0.0.1:{port}", *login, *words]


needs_freeipmi = pytest.mark.skipif(not shutil.which("ipmiconsole"), reason="needs freeipmi-tools")


@needs_freeipmi
def test_freeipmi_reads_and_switches_our_bmc(make_board: Callable[..., VirtualBoard]) -> None:
    board = make_board("ipmi")
    port = board.spec.bmc.port
    read = freeipmi("ipmi-chassis", port, "--get-chassis-status")
    done = subprocess.run(read, capture_output=True, text=True, timeout=60, check=False)
    assert "System Power                        : off" in done.stdout, done.stderr
    done = subprocess.run(freeipmi("ipmipower", port, "--on"), capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip().endswith("ok") and board.ask("get power") == "1"
    cache = f"--sdr-cache-directory={board.folder}"
    read = freeipmi("ipmi-sensors", port, "--quiet-cache", cache)
    done = subprocess.run(read, capture_output=True, text=True, timeout=60, check=False)
    assert "Board Temp | Temperature | 35.00" in done.stdout, done.stderr


@needs_freeipmi
def test_a_bmc_that_a_client_kills_is_there_again_and_the_board_is_not_lost(
    make_board: Callable[..., VirtualBoard], tmp_path: Path
) -> None:
    """What ipmiconsole sends ends ipmi_sim 2.0.33 with a segmentation fault. Its console has a gap."""
    board = make_board("ipmi")
    command = [word for word in freeipmi("ipmiconsole", board.spec.bmc.port) if word not in ("-D", "LAN_2_0")]
    source = SolSource(board.spec.bmc, ask_after=1.0)
    with closing(board.uart()) as line, (tmp_path / "said").open("wb") as said:

        def says(word: bytes) -> bool:
            line.sendall(word)
            return word in source.read()

        source.open()
        wait_until(lambda: says(b"before"), 20.0, "the console is read")
        client = subprocess.Popen(
            ["script", "-qfc", " ".join(command), "/dev/null"], stdin=subprocess.PIPE, stdout=said, stderr=said
        )
        try:
            log = board.folder / "daemon.log"
            wait_until(lambda: "the BMC is back" in log.read_text(), 40.0, "the BMC is back")
        finally:
            client.kill()
            client.communicate()
        assert "ended by itself with status -11" in log.read_text()
        with pytest.raises(SourceLost, match="or the BMC has restarted"):
            wait_until(lambda: source.read() and False, 60.0, "the source notices")
        source.close()
        source.open()
        wait_until(lambda: says(b"after"), 20.0, "the console is read again")
        source.close()
    bmc = board.bmc()
    assert not bmc.is_powered() and bmc.sensors() == {"Board Temp": "35 degrees C"}
    assert board.process.poll() is None
