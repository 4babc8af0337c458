"""Saved states of a virtual board: its machine and its disk at one moment, from which the board can go on.

A state is QEMU's migration stream of the standing machine, with a copy of the board's disk and of UEFI's variables. Its
name is a digest of all that it was made of: what whoever saved it says was on the board, the board's entry in the
inventory, its identity, its image, QEMU, and this machine's processor. So a board that differs in any of it has none.

The daemon's control socket takes ``state has|save|restore|drop KEY``, and ``state current``: the key of the state that
the board goes on from since its last power on or reset, or ``none``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qemu.qmp import QMPClient, QMPError

from lab.base import paths, shape
from lab.base.errors import BenchError
from lab.virtual import qemu, registers

if TYPE_CHECKING:
    from lab.virtual.daemon import Machine
    from lab.virtual.spec import DaemonConfig

log = logging.getLogger(__name__)

KEPT_BYTES = 4 * 2**30  # of all states of this machine; those that were not used for longest go first
SPARE_BYTES = 2 * 2**30  # that must be free on the disk beside a board's memory before a state is saved
HALF_SAVED = 600.0  # seconds after which a state that is not whole is nobody's any more
TIMEOUT = 45.0  # seconds for QEMU to write or read a machine; 4 were seen
NEVER_SAVED = 5  # slot of the DMA device, of which QEMU saves nothing
HEADER = range(0, 0x100, 4)  # registers of a PCI function: its whole configuration
MACHINE, DISK, VARIABLES, ABOUT = "machine", "disk.qcow2", "uefi-variables.fd", "state.json"


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a state beside its files."""

    devices: str  # all PCI functions, as the monitor shows them
    dma_device: Mapping[str, int]  # its registers, by number
    digests: Mapping[str, str]  # SHA-256 of each file


class States:
    """The states of one board."""

    def __init__(self, config: DaemonConfig, machine: Machine, home: Path) -> None:
        self._config, self._machine, self._home = config, machine, home
        self._current = ""
        self._turn = asyncio.Lock()

    async def answer(self, words: Sequence[str]) -> str:
        """Obey a request, whose first word is not here any more."""
        try:
            async with self._turn:
                match words:
                    case ["current"]:
                        return self._current if self._machine.is_powered and self._machine.goes_on else "none"
                    case ["has", key]:
                        return "yes" if self._folder(key).is_dir() else "no"
                    case ["drop", key]:
                        shutil.rmtree(self._folder(key), ignore_errors=True)
                    case ["save", key]:
                        await self._save(key)
                    case ["restore", key]:
                        await self._restore(key)
                    case _:
                        return "error: unknown request"
        except (BenchError, OSError, QMPError, TimeoutError, ValueError) as error:
            log.warning("%s: state: %s: %r", self._config.board.name, " ".join(words), error)
            return f"error: {' '.join(str(error).split()) or type(error).__name__}"
        return "ok"

    def _folder(self, key: str) -> Path:
        """Where the state is, if there is one."""
        config = portless(self._config)
        assert config.board.virtual
        form = config.board.virtual.shaped(self._machine.shape)
        ends = replace(self._machine.wiring, kcs_port=config.kcs_port, link_peer_port=config.link_peer_port)
        argv = qemu.arguments(config.board, form, ends, emulator=config.emulator)
        own = [key, self._machine.shape, argv, asdict(config)]
        digest = hashlib.sha256(json.dumps(own, default=sorted, sort_keys=True).encode())
        digest.update((self._home / "seed.tar").read_bytes())
        return folder() / f"{self._config.board.name}-{digest.hexdigest()[:32]}"

    async def _save(self, key: str) -> None:
        """Save the machine as it is; it stands still meanwhile, and goes on. :raises BenchError: it cannot be saved."""
        machine, target = self._machine, self._folder(key)
        client = machine.client
        if client is None or machine.sleep_state != 0:
            raise BenchError("the board does not run")
        if self._config.board.boot != "disk" or "kvm" in machine.argv or "-icount" in machine.argv:
            raise BenchError("states are for boards with a disk, on TCG, by the machine's clock")
        if machine.argv != machine.arguments():
            raise BenchError("the board was not powered on as it usually is")
        if target.is_dir():
            return
        need = machine.memory_mib * 2**20 + SPARE_BYTES
        made = folder() / f".{target.name}-{os.getpid()}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True, mode=0o700)
        try:
            if shutil.disk_usage(made).free < need:
                raise BenchError(f"{made.parent}: less than {need >> 20} MiB are free on the disk")
            started = time.monotonic()
            await client.execute("stop")
            try:
                devices = await registers.monitor(client, "info pci")
                dma_device = await registers.read(client, NEVER_SAVED, HEADER) if self._has_dma_device else {}
                await _write_machine(client, made / MACHINE)
                for name in self._files():
                    await asyncio.to_thread(shutil.copyfile, self._home / name, made / name)
            finally:
                await client.execute("cont")
            stood = time.monotonic() - started
            digests = {name: await asyncio.to_thread(_digest, made / name) for name in (MACHINE, *self._files())}
            about = About(devices, {str(number): value for number, value in dma_device.items()}, digests)
            (made / ABOUT).write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        size = _size(target) >> 20
        log.info("%s: saved as %s: %d MiB; it stood still for %.1f s", self._config.board.name, key, size, stood)
        prune(KEPT_BYTES)

    async def _restore(self, key: str) -> None:
        """Power the board off, and have it go on from a state. A state from which it does not is removed.

        :raises BenchError: there is no such state, or it is not sound; the power is then off.
        """
        target, machine = self._folder(key), self._machine
        if not target.is_dir():
            raise BenchError("there is no such state")
        await machine.power_off()
        try:
            about = shape.read(About, (target / ABOUT).read_bytes())
            for name, digest in about.digests.items():
                if await asyncio.to_thread(_digest, target / name) != digest:
                    raise BenchError(f"{name} is damaged")
            for name in self._files():
                await asyncio.to_thread(shutil.copyfile, target / name, self._home / name)
            await machine.power_on(target / MACHINE)
            await self._go_on(about)
            self._current = key
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            await machine.power_off()
            raise
        os.utime(target)
        log.info("%s: goes on from %s", self._config.board.name, key)

    async def _go_on(self, about: About) -> None:
        """Wait until QEMU has read the machine, give it what QEMU does not save, and let it run."""
        machine = self._machine
        if (client := machine.client) is None:
            raise BenchError("QEMU did not start; see qemu.log")
        deadline = time.monotonic() + TIMEOUT
        while (await _asked(client, "query-status"))["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise BenchError("QEMU did not read the machine")
            await asyncio.sleep(0.05)
        if about.dma_device:
            await registers.write(client, NEVER_SAVED, {int(one): value for one, value in about.dma_device.items()})
        if (found := await registers.monitor(client, "info pci")) != about.devices:
            log.warning("PCI functions were\n%s\nand are\n%s", about.devices, found)
            raise BenchError("its PCI functions are not as they were; see daemon.log")
        await client.execute("cont")
        machine.goes_on = True

    @property
    def _has_dma_device(self) -> bool:
        return "dma-device" in self._config.board.capabilities

    def _files(self) -> tuple[str, ...]:
        virtual = self._config.board.virtual
        return (DISK, VARIABLES) if virtual and virtual.firmware == "uefi" else (DISK,)


def portless(config: DaemonConfig) -> DaemonConfig:
    """A board wherever its ports are: they are outside of the machine, and ``--ports`` moves them."""
    board = config.board
    assert board.virtual
    plain = replace(
        board,
        ssh_port=0,
        bmc=replace(board.bmc, port=0),
        sol=board.sol and replace(board.sol, port=0),
        console=replace(board.console, serve_port=0, lines_port=0, port=0),
        virtual=replace(board.virtual, serial_port=0, link_port=0),
    )
    has_kcs, has_link = bool(config.kcs_port), bool(config.link_peer_port)
    return replace(config, board=plain, kcs_port=int(has_kcs), link_peer_port=int(has_link))


async def _write_machine(client: QMPClient, file: Path) -> None:
    await client.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})  # as fast as the disk takes it
    await client.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(file))}"})
    deadline = time.monotonic() + TIMEOUT
    while True:
        said = await _asked(client, "query-migrate")
        if said.get("status") == "completed":
            return
        if said.get("status") in ("failed", "cancelled"):
            raise BenchError(f"QEMU did not write the machine: {said.get('error-desc', said)}")
        if time.monotonic() > deadline:
            await client.execute("migrate_cancel")
            raise BenchError("QEMU did not write the machine in time")
        await asyncio.sleep(0.05)


async def _asked(client: QMPClient, command: str) -> dict[str, Any]:
    """The answer to a query that has no arguments."""
    return cast(dict[str, Any], await client.execute(command))


def folder() -> Path:
    """Where the states of all boards of this machine are."""
    return paths.cache() / "states"


def prune(limit: int) -> None:
    """Remove the states that were not used for longest, until all together take at most so many bytes.

    What a daemon was saving when it was killed goes, too.
    """
    there = list(folder().iterdir())
    for half in there:
        if half.name.startswith(".") and time.time() + _age(half) > HALF_SAVED:
            shutil.rmtree(half, ignore_errors=True)
    states = sorted((one for one in there if not one.name.startswith(".")), key=_age)
    total = 0
    for state in states:
        total += _size(state)
        if total > limit:
            log.info("state %s goes: all together took more than %d MiB", state.name, limit >> 20)
            shutil.rmtree(state, ignore_errors=True)


def _age(state: Path) -> float:
    """The time of its last use, negative: the newest is the least."""
    with suppress(OSError):
        return -state.stat().st_mtime
    return 0.0


def _size(state: Path) -> int:
    """Bytes on the disk, of which a file with holes has fewer than its length."""
    total = 0
    with suppress(OSError):  # another daemon removes it
        total = sum(one.stat().st_blocks * 512 for one in state.iterdir())
    return total


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
