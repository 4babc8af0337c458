"""From power off to a dom0 that answers, on the boot entry that is wanted.

``known-good`` is the boot loader's default and nothing under test; ``under-test`` is booted once at a time: by
GRUB's ``next_entry`` when dom0 can still be asked, by its hotkey on the serial menu when not. A board that boots by
network is served its menu anew at each boot, with the default that is wanted.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import re
import time
from pathlib import Path
from typing import Any

import attr
import pexpect
from labgrid.factory import target_factory
from labgrid.step import step
from labgrid.strategy import Strategy, StrategyError

from lab import netboot
from lab.base.errors import (
    BenchError,
    BoardError,
    HypervisorCrash,
    MissingCapability,
    ProductFailure,
    ProductTimeout,
    ToolstackFailed,
    WaitTimeout,
)
from lab.console.client import Console, ConsoleLine
from lab.console.fault_baseline import SIGNATURE as IOMMU_FAULT
from lab.console.fault_baseline import FaultBaseline
from lab.console.patterns import classify, crash_excerpt
from lab.grid.ssh import CommandResult

log = logging.getLogger(__name__)

HOTKEYS = {"known-good": b"k", "under-test": b"t"}  # firmware/image/grub.cfg, firmware/provision
ENTRY_ID = "xenlab-under-test"
MENU_TIMEOUT = 90.0  # firmware of a steel board takes a minute to its boot loader
XEN_TIMEOUT = 60.0  # from the menu to the hypervisor's first line
DOM0_TIMEOUT = 240.0  # from there to a dom0 that answers
TOOLS_TIMEOUT = 20.0  # a dom0 that answers, until its toolstack does
XEN_SILENCE = 90.0  # a hypervisor that says nothing more, and no dom0 yet: it hangs
SILENCE = 10.0  # a console quiet for so long while Linux boots: dom0 may be up and not say so there
MENU = "GNU GRUB"
LOADED = re.compile(r"Booting `(known-good|under-test)")  # GRUB, grub-core/normal/menu.c
LOADER_ERROR = re.compile(r"\berror: ")


class Status(enum.Enum):
    """How far a board has come."""

    unknown = 0
    off = 1
    on = 2  # chassis power
    hypervisor = 3  # its banner was on the console
    dom0 = 4  # SSH answers, and so does the toolstack


@target_factory.reg_driver
@attr.s(eq=False)
class XenStrategy(Strategy):
    """Brings a board to a status; ``labgrid-client -s dom0`` does it for people."""

    bindings = {
        "power": "BmcDriver",
        "recorder": "RecordedConsoleDriver",
        "serial": "SerialDriver",
        "dom0": "Dom0Driver",
    }
    served: Any = attr.ib(default="", validator=attr.validators.instance_of(str))  # lab.netboot.home; "" with a disk
    baseline: Any = attr.ib(default="", validator=attr.validators.instance_of(str))  # file of the FaultBaseline
    status: Any = attr.ib(default=Status.unknown)
    entry: str = ""  # what the board was last booted into
    since: int = 0  # number of the console record at which that boot began
    milestones: dict[str, float]  # of the last boot: name -> seconds after power on
    faults: FaultBaseline  # IOMMU faults that its known-good build sees, too

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.milestones = {}
        self.faults = FaultBaseline(Path(self.baseline) if self.baseline else None)

    @property
    def console(self) -> Console:
        driver: Any = self.recorder
        return driver.console  # type: ignore[no-any-return]

    @property
    def is_under_test(self) -> bool:
        """Whether what runs on the board is the build under test: only then its crash counts."""
        return self.entry == "under-test"

    @step(args=["status"])
    def transition(self, status: str | Status, *, entry: netboot.Entry = "known-good", step: Any = None) -> None:
        """Bring the board to ``status`` (name or member).

        :raises StrategyError: no such status.
        :raises BenchError, HypervisorCrash, ProductFailure: as :meth:`reboot`.
        """
        try:
            wanted = status if isinstance(status, Status) else Status[status]
        except KeyError:
            names = ", ".join(member.name for member in Status)
            raise StrategyError(f"{self.target.name}: no status {status!r}; there are: {names}") from None
        self._activate()
        if wanted == Status.unknown:
            raise StrategyError(f"{self.target.name}: cannot transition to unknown")
        if wanted == Status.off:
            self.power.off()
            self.entry = ""
        elif wanted == Status.on:
            self.power.on()
        else:
            ready = self.entry in ("", entry) and self.dom0.ssh.is_reachable()
            if not ready:
                self.reboot(entry=entry, until=wanted)
        self.status = wanted

    def reboot(self, *, entry: netboot.Entry, until: Status = Status.dom0) -> None:
        """Cycle power through the BMC and boot ``entry``, until dom0 answers.

        :raises HypervisorCrash: the console showed one on the way.
        :raises ProductTimeout: the boot loader started the hypervisor, but no word or no dom0 came of it.
        :raises ProductFailure: it reset the board.
        :raises ToolstackFailed: dom0 came up, but its toolstack does not work with this hypervisor.
        :raises BenchError: no power, no boot loader, no hypervisor; or anything at all with ``known-good``.
        """
        self._activate()
        self._learn_faults()
        by_menu = self._prepare(entry)
        self.status, self.entry, self.milestones = Status.unknown, entry, {}
        try:
            if by_menu:
                self.target.activate(self.serial)  # listens before the first byte comes
            self.power.off()
            if self.served:  # not before: a board that resets itself all the time would use the choice up
                netboot.choose(Path(self.served), entry)
                with contextlib.suppress(MissingCapability):  # an outlet alone: the firmware's own order must do
                    self.power.bootdev("pxe")
            self.since = self.console.mark()
            started = time.time()
            # What a board that was off has printed proves its power better than a status that is said to settle.
            self.power.on(proof=lambda: bool(self.console.lines(self.since)))
            if by_menu:
                self._choose(entry)
            self._wait_booted(started, until)
        except (HypervisorCrash, ProductFailure) as error:
            if entry == "known-good":
                raise BoardError(self.target.name, f"the known-good build does not boot: {error}") from error
            raise
        finally:
            if by_menu:
                self.target.deactivate(self.serial)
        self.status = until
        self._learn_faults()

    def _learn_faults(self) -> None:
        """The IOMMU faults that the known-good build has seen on this board until now are no news of another build."""
        if self.entry == "known-good" and self.since:
            with contextlib.suppress(BenchError):  # a recorder that does not answer: it will be asked at the next boot
                self.faults.learn(self.since, (line.text for line in self.console.lines(self.since)))

    def is_old_news(self, signature: str, text: str) -> bool:
        """Whether a crash's line says what the known-good build says on this board, too: an IOMMU fault of its own."""
        return signature == IOMMU_FAULT and (self.entry == "known-good" or self.faults.knows(text))

    def _activate(self) -> None:
        for driver in (self.power, self.recorder, self.dom0):
            self.target.activate(driver)

    def _prepare(self, entry: netboot.Entry) -> bool:
        """Ask dom0 to have ``entry`` booted next; True when it cannot be asked, so that the menu must be used."""
        if self.served:
            self.dom0.ssh.close()
            return False
        environment = "/boot/grub/grubenv"
        change = f"set next_entry={ENTRY_ID}" if entry == "under-test" else "unset next_entry"
        try:
            if not self.power.get():
                return True
            self.dom0.ssh.run(f"grub-editenv {environment} {change} && sync", timeout=20, connect_timeout=3.0)
            return False
        except BenchError as error:
            log.info("%s: the boot menu will be used: %s", self.target.name, error)
            return True
        finally:
            self.dom0.ssh.close()

    def _choose(self, entry: str) -> None:
        try:
            self.serial.expect(MENU, timeout=MENU_TIMEOUT)
        except (pexpect.TIMEOUT, pexpect.EOF):
            raise WaitTimeout(
                f"{self.target.name}: boot loader's menu on the console",
                MENU_TIMEOUT,
                self._tail(),
                board=self.target.name,
            ) from None
        self.serial.write(HOTKEYS[entry])

    def _wait_booted(self, started: float, until: Status) -> None:
        """Follow the console from power on; SSH is asked when it says that dom0 is up, or falls silent."""
        seen, deadline, asked, spoke = self.since, started + MENU_TIMEOUT + XEN_TIMEOUT, 0.0, started
        refused = 0.0  # when dom0 first answered and its toolstack did not work
        has_banner = is_up = False
        loaded: list[str] = []  # entries, as the boot loader names them when it starts them
        lines: list[ConsoleLine] = []
        while True:
            fresh = self.console.lines(seen)
            lines += fresh
            for index, line in enumerate(fresh, len(lines) - len(fresh)):
                seen = line.n + 1
                if match := LOADED.search(line.text):
                    loaded += [match[1]] if match[1] not in loaded else []  # a prompt's record, then the line's
                    deadline = time.time() + XEN_TIMEOUT
                elif loaded and not has_banner and LOADER_ERROR.search(line.text):
                    loaded.append("error")
                if loaded[:1] == ["under-test"] == [self.entry] and "known-good" in loaded:
                    raise ProductFailure(f"{self.target.name}: the build reset the board before dom0 was up")
                signature = classify(line.text)
                if signature is None:
                    continue
                if signature.kind == "crash" and not self.is_old_news(signature.name, line.text):
                    self.console.quiet()  # the rest of the dump
                    lines += self.console.lines(seen)
                    raise HypervisorCrash(self.target.name, signature.name, crash_excerpt(lines, index))
                if signature.name == "dom0-up" and not has_banner:
                    continue  # an old login prompt, ended by the first newline after power on
                if signature.kind == "milestone":
                    self.milestones.setdefault(signature.name, line.time - started)
                    if signature.name == "xen-banner" and not has_banner:
                        has_banner, deadline = True, time.time() + DOM0_TIMEOUT
                        if until is Status.hypervisor:
                            return
                    is_up = is_up or signature.name == "dom0-up"
            now = time.time()
            spoke = now if fresh else spoke
            # A console that says nothing of a login: asked unbidden, but not while the boot goes on printing, for a
            # question that nobody hears yet holds up what comes meanwhile.
            is_silent = "dom0-linux" in self.milestones and now - max(spoke, asked) > SILENCE
            if is_up or is_silent:
                asked = now
                answer = self._ask()
                if answer and answer.status == 0:
                    self.milestones["ready"] = time.time() - started
                    return
                refused = (refused or now) if answer else 0.0
                if answer and now - refused > TOOLS_TIMEOUT:
                    raise ToolstackFailed(self.target.name, "xl info", answer.status, answer.stderr or answer.stdout)
            hangs = has_banner and "dom0-linux" not in self.milestones and now - spoke > XEN_SILENCE
            if now > deadline or hangs:
                what = f"{self.target.name}: {'dom0 answers' if has_banner else 'hypervisor starts'} ({self.entry})"
                # A hypervisor that the boot loader has started, and that never says a word, is wrong.
                kind = ProductTimeout if has_banner or loaded == [self.entry] else WaitTimeout
                raise kind(what, now - started, self._tail(), board=self.target.name)
            time.sleep(0.05 if not is_up else 0.3)

    def _ask(self) -> CommandResult | None:
        """What dom0 says to ``xl info``; None when nobody is there to say it."""
        try:
            answer: CommandResult = self.dom0.ssh.run("xl info", timeout=20, connect_timeout=5.0, check=False)
        except BenchError:
            return None
        return answer

    def _tail(self) -> str:
        lines = [line.text for line in self.console.lines(self.since) if line.text.strip()]
        return "\n".join(lines[-6:]) or "nothing on the console since power on"
