"""One virtual board: ``python -m lab.virtual.daemon CONFIG.json [OWNER]``.

Holds the board's serial cable, its BMC (``ipmi_sim`` or a Redfish service), the network it boots from if it has no
disk, and, while powered, its QEMU machine. The BMC owns power: it asks this daemon over the control socket
(``firmware/bmc/chassis``), as a BMC pulls the lines of a mainboard. QMP ends here.

Requests on the control socket, one line each, answered by one line:
``get power`` (0|1), ``get sleep`` (0, 3 or 5: IPMI v2.0 table 20-7),
``set power 0|1`` (1 wakes a sleeping board), ``set reset 1``, ``set shutdown 1`` (ACPI power button), ``set button 1``
(the same, and powers on a board that is off), ``set nmi 1``,
``set boot none|pxe|default|cdrom|bios``, ``set persistent 0|1``, ``set efi 0|1`` (the choice is for UEFI), ``set
clearing N`` (IPMI v2.0 table 28-14, parameter 3), ``get`` of each, ``set link 0|1`` (the lab cable),
``set shape NAME|own`` (processors and memory, from the next power on), ``get sol`` (0: the BMC refuses it),
``get steal`` (seconds that the processors ran, and seconds that were stolen from them: :mod:`lab.virtual.steal`),
``get profile`` (what figures were made of since power on: :mod:`lab.virtual.profile`),
``fault KIND VALUE`` and ``fault none`` (:mod:`lab.virtual.faults`), ``state`` (:mod:`lab.virtual.states`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from qemu.qmp import ConnectError, QMPClient, QMPError

from lab.base import processes
from lab.base.errors import BenchError, UsageError
from lab.base.loopback import bear_a_crowd
from lab.inventory import BoardSpec
from lab.virtual import bare, bmc, faults, profile, qemu, registers
from lab.virtual.cable import SerialCable
from lab.virtual.faults import Faults
from lab.virtual.segment import Segment
from lab.virtual.spec import OWN_SHAPE, read_config
from lab.virtual.states import States
from lab.virtual.steal import StealClock

log = logging.getLogger(__name__)

EXIT_WAIT = 10.0  # seconds a killed QEMU may take to be gone (1.5 s was seen)
# IPMI v2.0 table 28-14, parameter 3: boot flags hold for so many seconds without a Chassis Control, or with this bit.
FLAGS_HOLD = 60.0
KEEP_FLAGS = 0x08
SHORT_LIFE = 5.0  # seconds; a BMC that ends sooner so often in a row will not live
SHORT_LIVES = 3
MANAGEMENT = "management"  # QEMU's name of the network over which dom0 is reached


@dataclass
class BootChoice:
    """What the BMC told the board to boot next, as IPMI's boot flags have it."""

    firmware: str = "bios"  # the board's own, which obeys no choice that is meant for the other kind
    has_timer: bool = True  # of IPMI; Redfish knows none
    is_persistent: bool = False
    is_efi: bool = False
    clearing: int = 0
    _device: str = "none"  # "default" is the disk
    _at: float = 0.0

    @property
    def device(self) -> str:
        """The choice that is in force; ``none`` once its time is over."""
        is_over = self.has_timer and not self.clearing & KEEP_FLAGS and time.monotonic() - self._at > FLAGS_HOLD
        return "none" if is_over else self._device

    def choose(self, device: str) -> None:
        self._device, self._at = device, time.monotonic()

    def note_control(self) -> None:
        """A Chassis Control has come: the time begins again."""
        if self.device == self._device:
            self._at = time.monotonic()

    def take(self) -> str:
        """What the firmware boots now; a choice for once is used up."""
        device = self.device if self.is_efi == (self.firmware == "uefi") else "none"
        if device != self.device:
            kinds = ("UEFI", "legacy BIOS")
            told, own = kinds if self.is_efi else kinds[::-1]
            log.warning("told to boot %s by %s, and the firmware is %s: it boots as ever", self.device, told, own)
        if not self.is_persistent:
            self._device = "none"
        return device


@dataclass
class Machine:
    """A board's QEMU process: there when powered, gone when not."""

    board: BoardSpec
    directory: Path
    wiring: qemu.Wiring
    boot: BootChoice = field(default_factory=BootChoice)
    tap: int = -1  # descriptor of the network that a board without a disk boots from
    shape: str = ""  # of the inventory's `shapes`; its own when empty
    is_offline: bool = False  # the cable of the management network is out
    emulator: qemu.Emulator = qemu.OF_THE_MACHINE
    argv: list[str] = field(default_factory=list)  # with which it was powered on last
    goes_on: bool = False  # it was powered on from a saved state, and not reset since
    _process: asyncio.subprocess.Process | None = None
    _qmp: QMPClient | None = None
    _sleeping: bool = False
    _events: asyncio.Task[None] | None = None

    @property
    def is_powered(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def process(self) -> int | None:
        """The process that is the machine, while there is power."""
        return self._process.pid if self.is_powered and self._process else None

    @property
    def sleep_state(self) -> int:
        """ACPI: 0 working, 3 suspended to RAM, 5 off."""
        return 5 if not self.is_powered else 3 if self._sleeping else 0

    @property
    def client(self) -> QMPClient | None:
        """QMP, while there is power."""
        return self._qmp if self.is_powered else None

    @property
    def memory_mib(self) -> int:
        assert self.board.virtual is not None
        return self.board.virtual.shaped(self.shape).memory_mib

    def arguments(self, boot_device: str = "none") -> list[str]:
        """QEMU's command line."""
        assert self.board.virtual is not None
        form = self.board.virtual.shaped(self.shape)
        return qemu.arguments(
            self.board, form, self.wiring, emulator=self.emulator, boot_device=boot_device, tap=self.tap
        )

    async def power_on(self, state: Path | None = None) -> None:
        """Start the machine; on a sleeping one this is the power button, and wakes it.

        ``state``: what QEMU has saved of the machine. The machine then stands still until somebody lets it go on.
        """
        if self.is_powered:
            if self._sleeping:
                await self._execute("system_wakeup")
            return
        await self._forget()
        self.argv = self.arguments("none" if state else self.boot.take())
        argv = [*self.argv, *(["-S", "-incoming", f"exec:cat {shlex.quote(str(state))}"] if state else [])]
        self._sleeping = self.goes_on = False
        server = QMPClient(self.board.name)
        self.wiring.qmp.unlink(missing_ok=True)
        await server.start_server(str(self.wiring.qmp))
        with open(self.directory / "qemu.log", "ab") as output:
            output.write(f"--- {time.strftime('%FT%TZ', time.gmtime())} {' '.join(argv)}\n".encode())
            output.flush()
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env=processes.environment(), pass_fds=() if self.tap < 0 else (self.tap,),
            )  # fmt: skip
        try:
            await asyncio.wait_for(server.accept(), 10)
        except (TimeoutError, ConnectError) as error:
            log.error("%s: QEMU did not connect: %r; see qemu.log", self.board.name, error)
            await self.power_off()
            return
        self._qmp = server
        self._events = asyncio.create_task(self._watch(server))
        if self.is_offline:
            await self.set_link(False, MANAGEMENT)

    async def power_off(self) -> None:
        """Remove power: the machine is gone at once, what was in memory is lost."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), EXIT_WAIT)
        await self._forget()

    async def reset(self) -> None:
        # Only a start takes a boot device, and QEMU leaves a machine that is reset in its sleep standing still.
        if self._sleeping or self.boot.device not in ("none", "default"):
            await self.power_off()
            await self.power_on()
        else:
            await self._execute("system_reset")
            self._sleeping = False

    async def press_power_button(self) -> None:
        await self._execute("system_wakeup" if self._sleeping else "system_powerdown")

    async def inject_nmi(self) -> None:
        await self._execute("inject-nmi")

    async def set_link(self, up: bool, name: str = "lab") -> None:
        """Plug or unplug a network cable at this board: the lab cable, or that of :data:`MANAGEMENT`."""
        await self._execute("set_link", name=name, up=up)

    async def _execute(self, command: str, **arguments: object) -> None:
        if self._qmp is None or not self.is_powered:
            return
        try:
            await asyncio.wait_for(self._qmp.execute(command, arguments or None), 10)
        except (QMPError, TimeoutError) as error:
            log.warning("%s: %s: %r", self.board.name, command, error)

    async def _watch(self, client: QMPClient) -> None:
        chipset: dict[int, int] = {}
        with contextlib.suppress(QMPError, asyncio.CancelledError):
            async for event in client.events:
                log.info("%s: event %s %s", self.board.name, event["event"], event.get("data", {}))
                if event["event"] == "SUSPEND":
                    chipset = await registers.read(client, registers.LPC, registers.OF_LPC)
                    self._sleeping = True
                elif event["event"] == "WAKEUP":
                    await _wake(client, chipset)
                    self._sleeping = False
                elif event["event"] == "RESET":
                    self._sleeping = self.goes_on = False

    async def _forget(self) -> None:
        if self._events:
            self._events.cancel()
            self._events = None
        if self._qmp:
            with contextlib.suppress(QMPError, TimeoutError, EOFError, ConnectionError):
                await asyncio.wait_for(self._qmp.disconnect(), 5)
            self._qmp = None
        self._process = None


async def _wake(client: QMPClient, chipset: Mapping[int, int]) -> None:
    """Give the chipset its registers back. The CPUs stand still: the firmware may be using the same two ports."""
    await client.execute("stop")
    await registers.write(client, registers.LPC, chipset)
    await client.execute("cont")


class Daemon:
    """Cable, control socket, BMC simulator and machine of one board."""

    def __init__(self, config: Path, owner: str | None = None) -> None:
        self._config = read_config(config)
        self._owner = owner
        self._directory = config.parent
        board = self._config.board
        assert board.virtual is not None
        wiring = bare.wiring(self._directory, self._config.kcs_port, self._config.link_peer_port)
        # IPMI says the mode with each choice; Redfish has one in force.
        is_ipmi, firmware = board.bmc.protocol == "ipmi", board.virtual.firmware
        choice = BootChoice(firmware, has_timer=is_ipmi, is_efi=not is_ipmi and firmware == "uefi")
        self._machine = Machine(board, self._directory, wiring, choice, emulator=self._config.emulator)
        self._states = States(self._config, self._machine, self._directory)
        self._steal = StealClock(lambda: self._machine.process)
        self._faults = Faults()
        self._cable = SerialCable(wiring.uart, board.virtual.serial_port, partial(self._faults.is_on, "serial-off"))
        self._simulator: asyncio.subprocess.Process | None = None
        self._misdeeds: set[asyncio.Task[None]] = set()
        self._is_restarting = False
        self._segment: Segment | None = None
        if self._config.netboot:
            self._segment = Segment(board, self._config.netboot, Path(self._config.served), self._directory)

    async def run(self) -> int:
        """Until SIGTERM; then power is cut. Status 1 when the BMC or the network ended by itself."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        bear_a_crowd(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self._cable.start()
        control = self._directory / "control.sock"
        control.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._control, str(control))
        control.chmod(0o600)
        self._simulator = await bmc.start_simulator(self._directory, self._config)
        parts = {
            asyncio.create_task(
                self._bmc_ended()
            ): "the BMC ended by itself with status %s, again and again; see bmc.log"
        }
        if self._segment:
            await self._segment.start()
            self._machine.tap = self._segment.tap
            parts[asyncio.create_task(self._segment.wait())] = "the network ended with status %s; see segment.log"
        stopped = asyncio.create_task(stop.wait())
        watching = [asyncio.create_task(one) for one in (_watch_owner(self._owner, stop), self._steal.run())]
        (self._directory / "ready").write_text(str(os.getpid()), encoding="ascii")
        await asyncio.wait({stopped, *parts}, return_when=asyncio.FIRST_COMPLETED)
        failed = [(words, part.result()) for part, words in parts.items() if part.done() and not stopped.done()]
        for task in (*self._misdeeds, *watching):
            task.cancel()
        server.close()
        await self._machine.power_off()
        if self._simulator.returncode is None:
            bmc.end(self._simulator, signal.SIGTERM)
            await self._simulator.wait()
        if self._segment:
            await self._segment.stop()
        await self._cable.stop()
        (self._directory / "ready").unlink(missing_ok=True)
        for words, status in failed:
            log.error(words, status)
        return 1 if failed else 0

    async def _bmc_ended(self) -> int:
        """Start the BMC again whenever it ends: told to, or killed by a request, as ipmi_sim 2.0.33 is by some clients.

        Whoever had a session sees a gap. Returns the exit status of a BMC that will not live.
        """
        deaths = 0
        while True:
            assert self._simulator
            born = time.monotonic()
            status = await self._simulator.wait()
            if not self._is_restarting:
                deaths = deaths + 1 if time.monotonic() - born < SHORT_LIFE else 1
                if deaths > SHORT_LIVES:
                    return status
                log.error("%s: the BMC ended by itself with status %s: again", self._config.board.name, status)
            self._is_restarting = False
            try:
                self._simulator = await bmc.start_simulator(self._directory, self._config)
            except BenchError as error:
                log.error("%s", error)
                return status
            log.info("%s: the BMC is back", self._config.board.name)

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                answer = await self._answer(line.decode("ascii", "replace").split())
                writer.write(answer.encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, words: list[str]) -> str:
        log.debug("control: %s", words)
        if words[:1] == ["fault"]:
            return self._misbehave(words[1:])
        if words[:1] == ["state"]:
            return await self._states.answer(words[1:])
        await asyncio.sleep(self._faults.delay)
        instead = self._faults.instead(words, self._machine.is_powered)
        return await self._chassis(words) if instead is None else instead

    def _misbehave(self, words: list[str]) -> str:
        log.info("%s: fault: %s", self._machine.board.name, " ".join(words))
        if words == ["none"]:
            self._faults.clear()
            return "ok"
        words = words or [""]  # which is no fault's name
        try:
            kind, value = faults.parse(*words, *[None] * (2 - len(words)))
        except (UsageError, TypeError) as error:
            return f"error: {error}"
        self._faults.order(kind, value)
        if kind == "network-off":
            self._begin(self._unplug())
        elif kind in ("silent", "drop-sessions"):
            self._begin(self._silence(value) if kind == "silent" else self._restart_bmc(value))
        return "ok"

    def _begin(self, misdeed: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(misdeed)
        self._misdeeds.add(task)
        task.add_done_callback(self._misdeeds.discard)

    async def _unplug(self) -> None:
        """Have the management network's cable out for as long as that fault is in force, power cycles included."""
        self._machine.is_offline = True
        await self._machine.set_link(False, MANAGEMENT)
        while self._faults.is_on("network-off"):
            await asyncio.sleep(0.5)
        self._machine.is_offline = False
        await self._machine.set_link(True, MANAGEMENT)

    async def _silence(self, seconds: float) -> None:
        assert self._simulator
        self._simulator.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if self._simulator.returncode is None:
                self._simulator.send_signal(signal.SIGCONT)

    async def _restart_bmc(self, seconds: float) -> None:
        assert self._simulator
        await asyncio.sleep(seconds)
        self._is_restarting = True
        bmc.end(self._simulator, signal.SIGKILL)  # without a word to whoever has a session

    async def _chassis(self, words: list[str]) -> str:
        machine = self._machine
        if words[:1] == ["set"] and words[1:2] and words[1] in ("power", "reset", "shutdown", "button", "nmi"):
            machine.boot.note_control()
        match words:
            case ["get", "power"]:
                return str(int(machine.is_powered))
            case ["get", "sleep"]:
                return str(machine.sleep_state)
            case ["get", "steal"]:
                return "{:.3f} {:.3f}".format(*self._steal.look())
            case ["get", "profile"]:
                return profile.told(machine.wiring.profile)
            case ["get", "boot"]:
                return machine.boot.device
            case ["get", "persistent"]:
                return str(int(machine.boot.is_persistent))
            case ["get", "efi"]:
                return str(int(machine.boot.is_efi))
            case ["get", "clearing"]:
                return str(machine.boot.clearing)
            case ["set", "power", "1"]:
                await machine.power_on()
            case ["set", "power", "0"]:
                await machine.power_off()
            case ["set", "reset", _]:
                await machine.reset()
            case ["set", "shutdown", _]:
                await machine.press_power_button()
            case ["set", "button", _]:
                await (machine.press_power_button() if machine.is_powered else machine.power_on())
            case ["set", "nmi", _]:
                await machine.inject_nmi()
            case ["set", "boot", device]:
                machine.boot.choose(device)
            case ["set", "persistent", value]:
                machine.boot.is_persistent = value == "1"
            case ["set", "efi", value]:
                machine.boot.is_efi = value == "1"
            case ["set", "clearing", value] if value.isdigit():
                machine.boot.clearing = int(value)
            case ["set", "shape", name]:
                assert machine.board.virtual is not None
                if name != OWN_SHAPE and name not in machine.board.virtual.shapes:
                    return f"error: there is no shape {name}"
                machine.shape = "" if name == OWN_SHAPE else name
            case ["set", "link", state]:
                await machine.set_link(state == "1")
            case _:
                return f"error: unknown request {json.dumps(words)}"
        return "ok"


async def _watch_owner(owner: str | None, stop: asyncio.Event) -> None:
    """A board that was started for one run ends with it, even if the run was killed."""
    while owner is not None and not stop.is_set():
        if not processes.is_alive(owner):
            log.info("the owner (%s) is gone", owner)
            stop.set()
        await asyncio.sleep(1.0)


def main() -> int:
    """Entry point; the log goes to stderr, which whoever starts this sends to a file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("qemu.qmp").setLevel(logging.WARNING)
    return asyncio.run(Daemon(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None).run())


if __name__ == "__main__":
    sys.exit(main())
