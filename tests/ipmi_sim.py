"""A real ``ipmi_sim`` for tests, in front of a chassis that can be told to misbehave.

Import the ``*_fixture`` functions to have the fixtures ``chassis``, ``simulator`` (a plain one),
``board_simulator`` (with our extension of it) and ``board_bmc`` (that extension, built).
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from lab.base.paths import CHECKOUT
from lab.base.wait import wait_until
from lab.inventory import BmcSpec
from lab.virtual.bmc import temperature_record

# Configuration of ipmi_sim 2.0.33 and 2.0.37 (-c). It holds the password: the file must have mode 0600. The
# parser takes no space and no quote in user or password, and no quote in a command.
# - RMCP+ cipher 3 needs no line of its own; 17 is not known to 2.0.33.
# - `serial kcs` is what QEMU's ipmi-bmc-extern connects to; `sol` connects to the board's UART, again
#   and again until somebody listens there.
# - without -p, users changed over IPMI are kept in the -s directory and win over this file.
CONFIG = """\
name "{name}"
startlan 1
  addr 127.0.0.1 {lan_port}
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
  guid {guid}
endlan
chassis_control "timeout 2.5 {program}"
serial kcs 127.0.0.1 {kcs_port} codec VM
sol "tcp:127.0.0.1:{sol_port}" 115200
user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
user 3 true "operator" "{password}" operator 10 none md2 md5 straight
"""
EXTENSION = 'loadlib "{library}" "timeout 2.5 {program}"\n'

# Its devices (-f): a BMC with an event log, a watchdog (must be sensor 0) and a temperature of 35 degrees C.
# From 2.0.37 on only a sensor that is polled has a reading, and that once it was polled.
# `persist_sdr` at the end of mc_add would add the sensor's record once more at each start.
EMULATION = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
sensor_add 0x20 0 0 35 0x6f event-only
sensor_add 0x20 0 1 0x01 0x01 poll 50 file "{reading}"
sensor_set_event_support 0x20 0 1 enable scanning none {no_events}
main_sdr_add 0x20 {temperature}
mc_enable 0x20
"""

# Stands between ipmi_sim and the chassis' state. Called with `get NAME...` or `set NAME VALUE...`.
PROGRAM = """\
import fcntl, json, os, sys, time
folder, verb, words = sys.argv[1], sys.argv[2], sys.argv[3:]
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(json.dumps([time.time(), verb, *words]) + "\\n")
with open(os.path.join(folder, "state.json"), "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    state, now, answer, status = json.load(file), time.time(), "", 0
    due = [x for x in state["pending"] if x[0] <= now]
    state["pending"] = [x for x in state["pending"] if x[0] > now]
    for _, name, value in due:
        state[name] = value
    nap = state["answers_after"]
    if state["failures"]:
        state["failures"] -= 1
        status = 1
    elif verb == "get":
        for name in words:
            lying = name == "power" and now < state["lie_until"]
            answer += f"{name}:{state['lie'] if lying else state[name]}\\n"
    else:
        for name, value in zip(words[::2], words[1::2]):
            value = value if name == "boot" else int(value.split()[0])
            if name == "power":
                state["lie"], state["lie_until"] = value, now + state["lies_for"]
            if name == "power" and state["ignores"]:
                state["ignores"] -= 1
            elif state["acts_after"]:
                state["pending"].append([now + state["acts_after"], name, value])
            else:
                state[name] = value
    file.seek(0)
    file.truncate()
    json.dump(state, file)
time.sleep(nap)
sys.stdout.write(answer)
sys.exit(status)
"""


class Chassis:
    """What the simulated BMC controls. Its habits are changed by :meth:`set`, all off at first.

    ``ignores``: so many power commands are acknowledged and forgotten; ``acts_after``: seconds between
    acknowledging and acting; ``lies_for``: seconds during which the power reads as last commanded;
    ``answers_after``: seconds until the BMC answers at all; ``failures``: so many calls fail.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)
        state: dict[str, Any] = {
            "power": 0,
            "boot": "none",
            "persistent": 0,
            "efi": 0,
            "clearing": 0,
            "sleep": 5,
            "nmi": 0,
            "sol": 1,
            "pending": [],
        }
        habits = {"ignores": 0, "acts_after": 0.0, "lies_for": 0.0, "answers_after": 0.0, "failures": 0}
        self._path = folder / "state.json"
        self._path.write_text(json.dumps(state | habits | {"lie": 0, "lie_until": 0.0}))
        (folder / "calls").touch()

    @property
    def program(self) -> str:
        """For the simulator's configuration."""
        return shlex.join([sys.executable, "-ISB", str(self.folder / "program.py"), str(self.folder)])

    def set(self, **values: Any) -> None:
        """Change state or habits."""
        with self._path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            changed = json.load(file) | values
            file.seek(0)
            file.truncate()
            json.dump(changed, file)

    def get(self, name: str) -> Any:
        """A piece of state, as true as the last call left it."""
        return self._state()[name]

    def calls(self, verb: str = "set") -> list[list[str]]:
        """The words after ``verb`` of each call, oldest first."""
        lines = map(json.loads, (self.folder / "calls").read_text().splitlines())
        return [words for _, said, *words in lines if said == verb]

    def _state(self) -> dict[str, Any]:
        with self._path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            state: dict[str, Any] = json.load(file)
            return state


class Simulator:
    """A running ``ipmi_sim``; ``library`` is our extension of it, or None for a plain one."""

    user, password = "admin", "canary-Z4q8vT1m"

    def __init__(self, folder: Path, chassis: Chassis, library: Path | None, sensor: bytes | None = b"Board Temp"):
        self.folder, self.chassis = folder, chassis
        lan, kcs, sol = free_port(socket.SOCK_DGRAM), free_port(), free_port()
        self.sol_port = sol  # where it looks for the board's serial line
        self.spec = BmcSpec(host="127.0.0.1", credential="test", port=lan, cipher=3)
        config = CONFIG.format(
            name="test",
            lan_port=lan,
            kcs_port=kcs,
            sol_port=sol,
            guid="a123456789abcdefa123456789abcde1",
            program=chassis.program,
            user=self.user,
            password=self.password,
        )
        if library:
            config += EXTENSION.format(library=library, program=chassis.program)
        with open(os.open(folder / "sim.conf", os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
            stream.write(config)
        emulation = EMULATION.format(
            no_events=" ".join(["0" * 15] * 4),
            temperature=temperature_record(sensor or b""),
            reading=folder / "reading",
        )
        lines = [line for line in emulation.splitlines(keepends=True) if sensor or "sdr_add" not in line]
        (folder / "sim.emu").write_text("".join(lines))
        (folder / "reading").write_text("35\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it listens."""
        command = [
            "ipmi_sim",
            "-p",
            "-n",
            "-c",
            str(self.folder / "sim.conf"),
            "-f",
            str(self.folder / "sim.emu"),
        ]
        with (self.folder / "sim.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process, address = self._process, f"0100007F:{self.spec.port:04X}"

        def is_up() -> bool:
            if process.poll() is not None:
                pytest.fail(f"ipmi_sim ended: {(self.folder / 'sim.log').read_text()}")
            return address in Path("/proc/net/udp").read_text()

        wait_until(is_up, 10.0, "ipmi_sim listens", interval=0.02)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(3.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(3.0)
        self._process = None


@pytest.fixture(name="board_bmc", scope="session")
def board_bmc_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our extension of ipmi_sim, built."""
    if not shutil.which("gcc") or not Path("/usr/include/OpenIPMI/mcserv.h").exists():
        pytest.skip("needs gcc and libopenipmi-dev")
    out = tmp_path_factory.mktemp("board_bmc")
    make = ["make", "-s", "-C", str(CHECKOUT / "firmware" / "bmc"), f"OUT={out}"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "board_bmc.so"


@pytest.fixture(name="chassis")
def chassis_fixture(tmp_path: Path) -> Chassis:
    folder = tmp_path / "chassis"
    folder.mkdir()
    return Chassis(folder)


@pytest.fixture(name="simulator")
def simulator_fixture(tmp_path: Path, chassis: Chassis) -> Iterator[Simulator]:
    """A plain ipmi_sim, without our extension."""
    if not shutil.which("ipmi_sim") or not shutil.which("ipmitool"):
        pytest.skip("needs openipmi and ipmitool")
    simulator = Simulator(tmp_path, chassis, None)
    simulator.start()
    yield simulator
    simulator.stop()


@pytest.fixture(name="board_simulator")
def board_simulator_fixture(tmp_path: Path, chassis: Chassis, board_bmc: Path) -> Iterator[Simulator]:
    """An ipmi_sim with our extension, as the virtual lab runs it."""
    simulator = Simulator(tmp_path, chassis, board_bmc)
    simulator.start()
    yield simulator
    simulator.stop()
