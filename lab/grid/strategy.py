"""From power off to a dom0 that answers, on the boot entry that is wanted.

The entry ``known-good`` is the boot loader's default, and nothing in it is under test. The entry ``under-test`` is
chosen for one boot at a time: by GRUB's ``next_entry`` while dom0 answers, else by its hotkey on the serial menu. A
board that boots by network is served a new menu at each boot, with the wanted entry as its default.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import time
from pathlib import Path

import attr
import pexpect
from labgrid.factory import target_factory
from labgrid.step import Step, step
from labgrid.strategy import Strategy, StrategyError

from lab import netboot
from lab.base.errors import (
    BenchError,
    BoardError,
    HypervisorCrash,
    MissingCapability,
    ProductFailure,
    ProductTimeout,
    SilentConsole,
    WaitTimeout,
)
from lab.base.wait import wait_until
from lab.console.client import Console
from lab.console.fault_baseline import SIGNATURE as IOMMU_FAULT
from lab.console.fault_baseline import FaultBaseline
from lab.console.patterns import crash_excerpt
from lab.grid import pulse
from lab.grid.boot import LIMIT, MENU_TIMEOUT, Boot, tail
from lab.grid.client_errors import shown_by_client
from lab.grid.ssh import CommandResult, wait_reachable

log = logging.getLogger(__name__)

HOTKEYS = {"known-good": b"k", "under-test": b"t"}  # firmware/image/grub.cfg, firmware/provision
ENTRY_ID = "xenlab-under-test"
MENU = "GNU GRUB"
STARVED_FACTOR = 4  # so many times a boot's limit may pass on a board that is denied processor time
RESTORED_TIMEOUT = 20.0  # seconds in which dom0 of a restored board answers; 2 were seen


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
        "saved": {"SavedStatesDriver", None},
        "steal": {"StealTimeDriver", None},
        "profile": {"ProfileDriver", None},
    }
    served: str = attr.ib(default="", validator=attr.validators.instance_of(str))  # lab.netboot.home; "" with a disk
    baseline: str = attr.ib(default="", validator=attr.validators.instance_of(str))  # file of the FaultBaseline
    status: Status = attr.ib(default=Status.unknown)
    entry: str = ""  # what the board was last booted into
    since: int = 0  # number of the console record at which that boot began
    milestones: dict[str, float]  # of the last boot: name -> seconds after power on
    faults: FaultBaseline  # IOMMU faults that the board has with its known-good build, too

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.milestones = {}
        self.faults = FaultBaseline(Path(self.baseline) if self.baseline else None)

    @property
    def console(self) -> Console:
        console: Console = self.recorder.console
        return console

    @property
    def is_under_test(self) -> bool:
        """Whether the board runs the build under test. Only the crashes of that build count."""
        return self.entry == "under-test"

    @step(args=["status"])
    @shown_by_client()
    def transition(
        self, status: str | Status, *, entry: netboot.Entry = "known-good", step: Step | None = None
    ) -> None:
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

        :raises HypervisorCrash: the console showed a crash on the way.
        :raises ProductTimeout: the boot loader started the hypervisor, and no output or no dom0 followed.
        :raises SilentConsole: dom0 answers, and the console has not shown that it booted.
        :raises ProductFailure: the hypervisor reset the board.
        :raises ToolstackFailed: dom0 came up, but its toolstack does not work with this hypervisor.
        :raises BenchError: no power, no boot loader or no hypervisor; or any failure of ``known-good``.
        """
        self._activate()
        self._learn_faults()
        by_menu = self._prepare(entry)
        self.status, self.entry, self.milestones = Status.unknown, entry, {}
        try:
            if by_menu:
                self.target.activate(self.serial)  # so that it hears the first byte
            self.power.off()
            if self.served:  # only now: a board that resets itself again and again would use the choice up
                netboot.choose(Path(self.served), entry)
                with contextlib.suppress(
                    MissingCapability
                ):  # a board with an outlet alone boots in its firmware's order
                    self.power.bootdev("pxe")
            self.since = self.console.mark()
            started = time.time()
            # Output of a board that was off proves its power better than the BMC's status, which may lag.
            self.power.on(proof=lambda: bool(self.console.lines(self.since)))
            if by_menu:
                self._choose(entry)
            self._wait_booted(entry, started, until)
        except (HypervisorCrash, ProductFailure) as error:
            if entry == "known-good":
                raise BoardError(self.target.name, f"the known-good build does not boot: {error}") from error
            raise
        finally:
            if by_menu:
                self.target.deactivate(self.serial)
        self.status = until
        self._learn_faults()

    def restore(self, key: str) -> None:
        """Have the board go on from a state that it has saved, until dom0 answers and its clock is right.

        Until :meth:`go_on` nothing that the console shows is taken for the build's.

        :raises BenchError: it does not.
        """
        self._activate()
        self.status, self.entry, self.milestones = Status.unknown, "", {}
        self.dom0.ssh.close()
        self.saved.states.restore(key)
        wait_reachable(self.dom0.ssh, RESTORED_TIMEOUT)
        self.set_clock()

    def go_on(self) -> None:
        """Take a restored board for one that runs the build under test."""
        self.since, self.entry, self.status = self.console.mark(), "under-test", Status.dom0

    def set_clock(self) -> None:
        """Set dom0's wall clock, and with it Xen's, by this machine's. :raises BenchError: dom0 does not answer."""
        late, _ = self._clock()
        self.dom0.ssh.run(f"""date -u -s @$(date +%s.%N | awk '{{ printf "%.3f", $1 - ({late:.3f}) }}')""", timeout=20)

    def clock_offset(self) -> float:
        """Seconds by which dom0's wall clock is at least off: ahead of this machine's, or behind it if negative.

        :raises BenchError: dom0 does not answer.
        """
        late, doubt = self._clock()
        return math.copysign(max(0.0, abs(late) - doubt), late)

    def _clock(self) -> tuple[float, float]:
        """How far ahead dom0's wall clock seems to be, and how wrong that may be: a way's length is not known."""
        asked = time.time()
        said = float(self.dom0.ssh.run("date +%s.%N", timeout=20).stdout)
        heard = time.time()
        return said - (asked + heard) / 2, (heard - asked) / 2

    def _learn_faults(self) -> None:
        """Note the IOMMU faults of the known-good boot that runs, if one does: they are no news of another build."""
        if self.entry == "known-good" and self.since:
            with contextlib.suppress(BenchError):  # the recorder does not answer; the next boot asks it again
                self.faults.learn(self.since, (line.text for line in self.console.lines(self.since)))

    def is_old_news(self, signature: str, text: str) -> bool:
        """Whether a crash's line says an IOMMU fault that the board has with its known-good build, too."""
        return signature == IOMMU_FAULT and (self.entry == "known-good" or self.faults.knows(text))

    def _activate(self) -> None:
        for driver in (self.power, self.recorder, self.dom0):
            self.target.activate(driver)

    def _prepare(self, entry: netboot.Entry) -> bool:
        """Have dom0 choose ``entry`` for the next boot. True: dom0 does not answer, so the menu must be used."""
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
                tail(self.console.lines(self.since)),
                board=self.target.name,
            ) from None
        self.serial.write(HOTKEYS[entry])

    def _wait_booted(self, entry: netboot.Entry, started: float, until: Status) -> None:
        """Follow the console from power on; dom0 is asked when it says that it is up, or falls silent."""
        boot = Boot(self.target.name, entry, started, self.milestones, is_old_news=self.is_old_news)
        what = f"{boot.board}: boot of {entry}"
        before = self._stolen()
        limit = LIMIT * (1 if self.steal is None else STARVED_FACTOR)
        wait_until(lambda: self._is_booted(boot, until, before), limit, what, interval=0.05, board=boot.board)

    def _stolen(self) -> float:
        """Seconds in which this machine did other work than an emulated board's; 0 of a board that does not know."""
        if self.steal is None:
            return 0.0
        with contextlib.suppress(BenchError):
            return float(self.steal.meter.read().stolen)
        return 0.0

    def _is_booted(self, boot: Boot, until: Status, stolen_before: float) -> bool:
        now = time.time()
        fresh = self.console.lines(boot.lines[-1].n + 1 if boot.lines else self.since)
        if found := boot.read(fresh, now):
            signature, index = found
            self.console.quiet()  # the rest of the dump
            lines = [*boot.lines, *self.console.lines(boot.lines[-1].n + 1)]
            raise HypervisorCrash(boot.board, signature.name, crash_excerpt(lines, index))
        if boot.has_banner and until is Status.hypervisor:
            return True
        if boot.is_to_be_asked(now) and boot.take_answer(self._ask(), now, time.time()):
            return True
        # What was stolen from the board is not its time. It is asked for only now, since it takes a moment.
        if boot.overdue(now) and (overdue := boot.overdue(now - max(0.0, self._stolen() - stolen_before))):
            if isinstance(overdue, ProductTimeout) and (answer := self._ask()) and answer.status == 0:
                if pulse.listen(self.console) not in pulse.HEARD:
                    raise SilentConsole(boot.board) from overdue
            raise overdue
        return False

    def _ask(self) -> CommandResult | None:
        """What dom0 answers to ``xl info``; None if nobody answers."""
        try:
            answer: CommandResult = self.dom0.ssh.run("xl info", timeout=20, connect_timeout=5.0, check=False)
        except BenchError:
            return None
        return answer
