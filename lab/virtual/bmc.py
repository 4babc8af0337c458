"""The BMC of a virtual board: OpenIPMI's ``ipmi_sim`` or a Redfish service, told to ask the daemon of the chassis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

from lab.base import credentials, paths, processes
from lab.base.errors import BenchError
from lab.virtual.compiled import compiled
from lab.virtual.qemu import DIE_WITH_PARENT
from lab.virtual.spec import DaemonConfig

EXTENSION = paths.FIRMWARE / "bmc"
HEADERS = Path("/usr/include/OpenIPMI")
CHASSIS = Path(__file__).with_name("chassis.py")

START_TIMEOUT = 20.0  # seconds; ipmi_sim takes none, the Redfish service imports for two

# mc_add: address, device id, has SDRs, revision, firmware major and minor, device support, manufacturer, product.
# Sensor 0 must be a watchdog. Sensor 1 is a temperature, since clients of other people's take an empty repository of
# sensors for a broken one. `persist_sdr` in mc_add would add its record once more at each start.
# Source: ipmi_sim_cmd(5).
COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
sensor_add 0x20 0 0 35 0x6f event-only
sensor_add 0x20 0 1 0x01 0x01
sensor_set_value 0x20 0 1 {celsius} 0
sensor_set_event_support 0x20 0 1 enable scanning none {no_events}
main_sdr_add 0x20 {temperature}
mc_enable 0x20
"""
CELSIUS = 35  # what the sensor reads


def temperature_record(name: bytes) -> str:
    """SDR of sensor 1 in degrees C, as bytes for ``main_sdr_add``. Source: IPMI v2.0 table 43-1."""
    key = [0x20, 0x00, 0x01]
    entity = [0x07, 0x01, 0x67, 0x40, 0x01, 0x01]  # system board; temperature, threshold type
    units = [0] * 6 + [0x00, 0x01, 0x00]  # no events; unsigned, degrees C
    factors = [0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00]  # linear, y = x
    limits = [0, 0, 0, 0, 0xFF, 0] + [0] * 6 + [0] * 5
    body = [*key, *entity, *units, *factors, *limits, 0xC0 | len(name), *name]
    return " ".join(f"0x{byte:02x}" for byte in (0x01, 0x00, 0x51, 0x01, len(body), *body))


def extension() -> Path:
    """``firmware/bmc``, built: sleep state, diagnostic interrupt and boot flags for ``ipmi_sim``. Kept by content.

    It is another one for another version of OpenIPMI, whose structures have other offsets.

    :raises BenchError: it does not compile; carries the compiler's words.
    """
    return compiled(EXTENSION, "board_bmc.so", "libopenipmi-dev", HEADERS.glob("*.h"))


async def start_simulator(directory: Path, config: DaemonConfig) -> asyncio.subprocess.Process:
    """Start what answers for the board's BMC, and wait until it does.

    :raises BenchError: it is not installed, or ended at once.
    """
    board = config.board
    kind = socket.SOCK_STREAM if board.bmc.protocol == "redfish" else socket.SOCK_DGRAM
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT
    while processes.port_is_taken(board.bmc.port, kind):  # what the last one was running may take a moment to end
        if asyncio.get_running_loop().time() > deadline:
            raise BenchError(f"{board.name}: port {board.bmc.port} of its BMC is in use")
        await asyncio.sleep(0.02)
    if board.bmc.protocol == "redfish":
        command = [sys.executable, "-P", "-m", "lab.virtual.redfish", str(directory)]
    else:
        command = _ipmi_sim(directory, config)
    with open(directory / "bmc.log", "ab") as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *DIE_WITH_PARENT,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=processes.environment(processes.PYTHON, processes.CREDENTIALS),
                process_group=0,  # with what it runs for a command, which has its sockets as well: see end()
            )
        except FileNotFoundError as error:
            raise BenchError(f"{error.filename} is not installed (Debian package util-linux)") from error
    while not processes.port_is_taken(board.bmc.port, kind):
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            tail = (directory / "bmc.log").read_text(errors="replace")[-500:]
            ended = f"ended with status {process.returncode}" if process.returncode is not None else "does not listen"
            raise BenchError(f"{board.name}: {board.bmc.protocol} BMC {ended}: {tail}")
        await asyncio.sleep(0.05)
    return process


def end(simulator: asyncio.subprocess.Process, by: signal.Signals) -> None:
    """Send this signal to what :func:`start_simulator` started, and to what that is running for a command.

    A simulator that was told to be silent takes it as well.
    """
    for number in (by, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(simulator.pid, number)


def _ipmi_sim(directory: Path, config: DaemonConfig) -> list[str]:
    """Its command line; its configuration holds the password and is readable by its owner only."""
    board = config.board
    assert board.virtual is not None
    # The simulator serves nobody else while this runs, and ipmitool asks again after 3 s.
    chassis = f"timeout --foreground 2.5 /usr/bin/python3 -I -S {CHASSIS} {directory / 'control.sock'}"
    account = credentials.lookup(board.bmc.credential)
    text = f"""\
name "{board.name}"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {board.bmc.port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {uuid.uuid5(uuid.NAMESPACE_DNS, board.name).hex}
  endlan
  chassis_control "{chassis}"
  loadlib "{extension()}" "{chassis}"
  serial kcs 127.0.0.1 {config.kcs_port} codec VM
  sol "tcp:127.0.0.1:{board.virtual.serial_port}" 115200
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "{account.user}" "{account.password}" admin 10 none md2 md5 straight
"""
    conf, emu, state = directory / "bmc.conf", directory / "bmc.emu", directory / "bmc-state"
    conf.touch(mode=0o600)
    conf.chmod(0o600)
    conf.write_text(text, encoding="utf-8")
    own = {"celsius": CELSIUS, "no_events": " ".join(["0" * 15] * 4), "temperature": temperature_record(b"Board Temp")}
    emu.write_text(COMMANDS.format(**own), encoding="utf-8")
    state.mkdir(exist_ok=True)
    return ["ipmi_sim", "-c", str(conf), "-f", str(emu), "-s", str(state), "-n"]
