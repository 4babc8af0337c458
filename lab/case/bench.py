"""The boards of one pytest process: held when a case first asks for one, watched for crashes, released at the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import (
    BenchError,
    BmcRefused,
    BmcUnreachable,
    HypervisorCrash,
    MissingCapability,
    PowerTimeout,
    UsageError,
)
from lab.builds.matrix import Variant
from lab.case.evidence import Running
from lab.case.markers import is_cold_case, needs_of, xen_options_of
from lab.case.rig import Rig, timed
from lab.case.seat import Seat
from lab.case.switch import Switch
from lab.case.taking import take, variant_of
from lab.console.client import ConsoleLine
from lab.console.recalled import Live
from lab.grid import services, session
from lab.grid.session import Session
from lab.leases import ledger
from lab.leases.ledger import Ledger
from lab.results.record import COVERAGE, PROVISION, GuestConsole, RunHeader, TestResult
from lab.results.run_folder import RunFolder
from lab.results.verdicts import Decision

log = logging.getLogger(__name__)

CRASH_SIGNAL = signal.SIGUSR1


class Bench:
    """The boards of a pytest session. They are acquired when the first case asks for one."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._session: Session | None = None
        self._rig: Rig | None = None
        self.running: Running | None = None
        self.is_armed = False  # whether a crash on a console ends the running case at once
        self._failure: BenchError | None = None
        self._untold: list[tuple[TestResult, Decision]] = []  # what the ledger has not taken yet
        self.switch = Switch()
        self.is_counting = bool(config.getoption("--coverage"))
        self.is_mutating = bool(config.getoption("--mutation"))  # no mutant is on during a boot, so none is asked for
        try:
            self.lab = inventory.load(Path(config.getoption("--inventory")))
            self.names = [name for name in config.getoption("--boards").split(",") if name] or list(self.lab.boards)
            self.lab.restricted(self.names)
            self.folder = self._open_folder()
            self.variant = variant_of(self.folder, config.getoption("--build"))
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        signal.signal(CRASH_SIGNAL, self.on_crash_signal)

    def _open_folder(self) -> RunFolder:
        """:raises UsageError: it is none, or there is no such build."""
        if where := self.config.getoption("--run-folder"):
            return RunFolder.open(Path(where))
        variant = Variant.plain(self.config.getoption("--build"))
        builds.recipe(variant.build)
        header = RunHeader(
            run_id=time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{os.getpid():x}",
            started=time.time(),
            selection="pytest",
            builds=(variant.name,),
            boards={name: {"class": self.lab.boards[name].board_class} for name in self.names},
            planned=(),
            required_areas=(),
            counts=self.is_counting,
        )
        folder = RunFolder.create(paths.state() / "runs" / header.run_id, header)
        folder.write_builds({variant.name: variant.facts()})
        return folder

    def case_directory(self, item: pytest.Item) -> Path:
        """The folder for what this attempt at a case leaves."""
        several = len(self.folder.header().builds) > 1
        attempt = self.config.getoption("--attempt")
        return self.folder.case_directory(item.nodeid, attempt, self.variant.name if several else "")

    @property
    def acquired_rig(self) -> Rig | None:
        """The boards with the build under test, if a case has asked for one already."""
        return self._rig

    def hold(self) -> Session:
        """Hold the boards without any build on them, as for a case that needs their leases and BMCs only.

        :raises BenchError: no lab is up, or a board is somebody else's.
        """
        if self._session is None:
            self._session = session.acquire(self.lab, self.names, services.directory(self.lab))
        return self._session

    @property
    def rig(self) -> Rig:
        """The boards with the build under test; acquired at the first call.

        :raises BenchError: no lab is up, or a board is somebody else's.
        :raises UsageError: unknown build.
        """
        if self._failure is not None:
            raise BenchError(f"no boards: {self._failure}")
        if self._rig is None:
            try:
                with timed(self.running.phases if self.running else [], PROVISION):
                    self._rig = self._take_boards()
            except BenchError as error:
                self._failure = error  # so that the next case does not wait for it again
                raise
        return self._rig

    def _take_boards(self) -> Rig:
        option = self.config.getoption
        self._session, rig = take(
            self.lab,
            self.names,
            self.variant,
            self.folder.path,
            option("--xtf"),
            self._keep,
            sound=frozenset(option("--sound").split(",")) - {""},
            boots_first=option("--boot-first"),
        )
        for seat in rig.seats.values():
            seat.board.console.listen(self._on_console)
        return rig

    def note_health(self, result: TestResult, decision: Decision) -> None:
        """Tell the ledger what the end of a case says of its boards.

        A failed power command puts a board into quarantine; other bench failures are counted by the ledger. Where
        the bench failed and no board is named, all boards of the case are suspected. A ledger that cannot be written
        ends nothing: it is told with the next result.
        """
        if self._session is None:
            return
        self._untold.append((result, decision))
        try:
            while self._untold:
                self._tell(self._session.ledger, *self._untold[0])
                del self._untold[0]
        except BenchError as error:  # its disk may be full; the results themselves are kept elsewhere
            log.warning("%d results not yet told to the ledger: %s", len(self._untold), error)

    @staticmethod
    def _tell(book: Ledger, result: TestResult, decision: Decision) -> None:
        said = f"{result.case} with {result.build}: {result.reason}"
        failed = decision.failed_boards
        suspects = frozenset[str]() if failed is None else failed & set(result.boards) or frozenset(result.boards)
        is_power = isinstance(decision.outcome, PowerTimeout | BmcUnreachable | BmcRefused)
        for name in result.boards:
            if name in suspects and is_power:
                book.quarantine(name, "a power command failed", said)
            verdict = f"{result.verdict} {result.case.rpartition('::')[2]}"
            is_bench = name in suspects
            book.note_result(name, result.build, verdict, is_bench=is_bench, evidence=said)

    def why_stop(self) -> str | None:
        """Why this process must begin no further case: the deadline, or its boards are wanted back, lost or sick."""
        if 0.0 < self.config.getoption("--stop-at") <= time.clock_gettime(time.CLOCK_BOOTTIME):
            return "the deadline"
        if number := os.environ.get(ledger.LEASE):
            return Ledger(services.directory(self.lab)).why_stop(int(number), self.names)
        return self._session.why_stop() if self._session is not None else None

    def lease_over(self) -> str | None:
        """Why the boards are no longer this process's; None while they are, or when it has asked for none yet."""
        if self._session is None:
            return None
        lease = self._session.ledger.lease(self._session.lease.id)
        return None if lease.state == "held" else f"lease {lease.id} is over: {lease.why_ended}"

    def close(self) -> None:
        """Release the boards."""
        self.folder.note_now(self.names, "")
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- a crash ends the running test ------------------------------------------------------------------------

    def _on_console(self, line: ConsoleLine) -> None:
        running = self.running
        if running is None or running.crash or line.kind not in ("line", "partial"):
            return
        if line.board not in running.marks or line.n < running.marks[line.board]:
            return
        found = running.live.setdefault(line.board, Live[ConsoleLine]()).take(line)
        if found is None or found[1].name in running.expected:
            return
        line, signature = found
        strategy = running.seats[line.board].board.strategy
        if not strategy.is_under_test or line.n < strategy.since:
            return  # a crash of the known-good build says nothing about the case
        if strategy.is_old_news(signature.name, line.text):
            return
        running.crash_numbers.setdefault(line.board, set()).add(line.n)
        running.crash_time = line.time
        running.crash = HypervisorCrash(line.board, signature.name, (line.text,))
        if self.is_armed:
            os.kill(os.getpid(), CRASH_SIGNAL)  # delivered to the main thread, wherever it waits

    def on_crash_signal(self, number: int, frame: FrameType | None) -> None:
        """Raise the crash that the console thread has seen; the handler of :data:`CRASH_SIGNAL`.

        :raises HypervisorCrash: unless the case is disarmed, or on its way out for an interrupt.
        """
        if self.is_armed and self.running and self.running.crash and not _is_interrupted():
            self.is_armed = False
            self.running.figures["crash_to_end_s"] = time.time() - self.running.crash_time
            raise self.running.crash

    def arm(self) -> None:
        """From now on, a crash on a console raises in the main thread.

        :raises HypervisorCrash: there was one already.
        """
        self.is_armed = True
        if self.running and self.running.crash:
            self.is_armed = False
            raise self.running.crash

    def disarm(self) -> None:
        self.is_armed = False

    # -- what a case is given -----------------------------------------------------------------------------------

    def seat(self, name: str) -> Seat:
        """Bring a board to the build under test, and with the options that it asks for, for the running case.

        :raises MissingCapability: the board lacks a capability that the case needs.
        :raises HypervisorCrash, BenchError: as :meth:`lab.case.rig.Rig.ready`.
        """
        assert self.running is not None
        rig = self.rig
        self.running.marks.setdefault(name, rig.seats[name].board.console.mark())
        self.running.seats[name] = rig.seats[name]
        self.arm()
        seat = rig.seats[name]
        options, is_cold = xen_options_of(self.running.item), is_cold_case(self.running.item) and not self.is_mutating
        if not (options and seat.capabilities):  # capabilities are probed without the case's options
            rig.ready(name, is_cold=is_cold)
        for capability in needs_of(self.running.item):
            if capability not in seat.capabilities:
                raise MissingCapability(name, capability, is_declared=capability in seat.host.lacking)
        seat = rig.ready(name, options, is_cold=is_cold) if options else seat
        self.running.look_at_steal(name)
        if self.is_counting:
            with rig.phase(COVERAGE):
                self.running.counted.begin(seat.host, self.case_directory(self.running.item))
        self.switch.begin(seat.host)
        self.folder.note_now(self.names, self.running.item.nodeid, is_ready=True)
        return seat

    def _keep(self, title: str, guest: GuestConsole) -> None:
        if self.running is not None:
            self.running.keep(title, guest)

    def pair(self) -> tuple[Seat, Seat]:
        """Two boards that a link joins, both brought to the build under test.

        :raises MissingCapability: the process has no such pair.
        """
        for first, second in self.lab.pairs():
            if first.name in self.names and second.name in self.names:
                return self.seat(first.name), self.seat(second.name)
        raise MissingCapability(",".join(self.names), "migration-pair")


def _is_interrupted() -> bool:
    """Whether an interrupt ends the running case. Its guests lose their devices then, so a fault proves nothing."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
