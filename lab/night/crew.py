"""The boards of a nightly run: acquired under leases, checked before use, worked on, and given back.

The two boards of a pair are acquired together. While somebody else holds one of them, the other is used alone. When a
unit's boards are wanted back, or one of them falls sick, the unit finishes the cases that are running and stops. Its
other cases go to other units, or are run later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from lab.base.daytime import Deadline
from lab.base.errors import WaitTimeout
from lab.base.processes import mark
from lab.base.wait import wait_until
from lab.boards import health
from lab.inventory import BoardSpec, Lab
from lab.leases import queue
from lab.leases.ledger import LEASE, Ledger
from lab.leases.records import Lease, Request, caller
from lab.night.planning import Share, Unit

LEASE_SECONDS = 900.0  # of a nightly lease, which is extended during the run
KEEP_INTERVAL = 60.0
PATIENCE = 60.0  # seconds to wait for free boards: the reaper first powers off what the last holder left on
AWAY = 600.0  # seconds to wait for the hosts of boards without which nothing can go on
RETRY = 1.0  # seconds between two requests for boards
HOPE = 60.0  # seconds to wait for a first board in a run without a deadline, where somebody waits for the answer
WORKER_GRACE = 40.0  # seconds for a worker to release its boards after an interrupt
DEADLINE_GRACE = 120.0  # seconds after the deadline in which running cases may end

Start = Callable[[Share, int], "subprocess.Popen[bytes]"]  # a share, and the lease to work under


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended; ``why_stopped``: why its boards were taken from it, if they were."""

    share: Share
    status: int
    why_stopped: str | None


class Crew:
    """``start`` starts a worker; ``say`` is told what a reader of the run must know, each thing once."""

    def __init__(
        self,
        lab: Lab,
        ledger: Ledger,
        start: Start,
        say: Callable[[str], None],
        *,
        deadline: Deadline,
        hope: float | None = None,
        examine: Callable[[BoardSpec, int], bool] | None = None,
    ) -> None:
        """``hope`` is in seconds to wait for a first board.

        ``examine`` checks a board thoroughly, under a lease. Without it, boards are checked from outside only.
        """
        self._hope = HOPE if hope is None else hope
        self._lab, self._ledger, self._start, self._deadline = lab, ledger, start, deadline
        self._tell, self._told = say, set[str]()
        self._examine = examine or self._look
        self._held: dict[Unit, int] = {}
        self._own: set[int] = set()
        self._kept = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the deadline has come."""
        return self._deadline.left <= 0

    # -- having boards -------------------------------------------------------------------------------------------

    def possible(self) -> list[Unit]:
        """The units of all boards that are not in quarantine, whoever holds them."""
        states = self._ledger.boards(self._lab.boards)
        return queue.units(self._lab, frozenset(name for name in states if not states[name].quarantine))

    def muster(self, suffices: Callable[[list[Unit]], bool] = bool) -> list[Unit]:
        """Acquire every healthy free board; retry until ``suffices(units)`` or the wait limit. Gives all held units."""

        def has_enough() -> bool:
            asked = self._ask()
            try:
                self._await(asked)
            finally:
                for unit, number in asked.items():
                    self._settle(unit, number)
            self._check([unit for unit in asked if unit in self._held])
            return suffices(list(self._held))

        with suppress(WaitTimeout):
            wait_until(has_enough, self._hope, "boards for the night", interval=RETRY)
        return list(self._held)

    def _ask(self) -> dict[Unit, int]:
        """Request every unit of healthy boards that this run does not hold, also those that others hold now."""
        states = self._ledger.boards(self._lab.boards)
        for name, state in states.items():
            if state.quarantine:
                self._say(f"{name} is {state.health}: not used")
        names = {name for name, state in states.items() if not state.quarantine}
        held = self._ledger.leases("held")
        mine = [one for one in held if one.holder == caller()]
        mine = [one for one in mine if one.request.kind == "person"]
        if number := os.environ.get(LEASE):
            mine = [one for one in mine if str(one.id) == number]
            names &= {board for one in mine for board in one.boards}
        taken = {board for one in held if one.id not in self._own and one not in mine for board in one.boards}
        self._rejoin(names - taken)
        free = names - {board.name for unit in self._held for board in unit}
        for one in mine:  # the caller's own leases, which the caller gives back
            self._held |= dict.fromkeys(queue.units(self._lab, free & set(one.boards)), one.id)
            free -= set(one.boards)
        asked: dict[Unit, int] = {}
        for unit in [*queue.units(self._lab, free - taken), *queue.units(self._lab, free & taken)]:
            wanted = {board.name for board in unit}
            holder = caller().partition("/")[0] + "/nightly"
            request = Request("nightly", holder, LEASE_SECONDS, tuple(sorted(wanted)), job=mark(os.getpid()))
            asked[unit] = self._ledger.ask(request)
        return asked

    def _await(self, asked: Mapping[Unit, int]) -> None:
        def is_settled() -> bool:
            held = {board for lease in self._ledger.leases("held") for board in lease.boards}
            waiting = {lease.id for lease in self._ledger.leases("waiting")}
            free = [unit for unit, number in asked.items() if number in waiting and not _names(unit) & held]
            return not free

        with suppress(WaitTimeout):  # the ledger does not know their holder, or no reaper runs
            wait_until(is_settled, PATIENCE, "boards for the night", interval=0.3)

    def _settle(self, unit: Unit, number: int) -> None:
        lease = self._ledger.lease(number)
        names = ", ".join(sorted(_names(unit)))
        if lease.state == "held":
            self._held[unit] = number
            self._own.add(number)
            return
        has = [
            f"{one.holder} has {', '.join(one.boards)}"
            for one in self._ledger.leases("held")
            if set(one.boards) & _names(unit)
        ]
        self._ledger.end(number, "the run stopped waiting")
        if lease.why_ended:
            self._say(f"{names}: {lease.why_ended}")
        else:
            self._say(f"{names}: not acquired: {'; '.join(has) or 'held through labgrid-client, or not exported'}")

    def _rejoin(self, names: AbstractSet[str]) -> None:
        """Give back a board that is held alone when its partner is free again, so that both are acquired together."""
        for pair in self._lab.pairs():
            if _names(pair) <= names:
                for board in pair:
                    self._let_go((board,), "its partner is back")

    def _check(self, units: Sequence[Unit]) -> None:
        """Check boards before use. A sick one goes into quarantine, and its unit is given back."""
        boards = [(unit, board) for unit in units for board in unit]
        with ThreadPoolExecutor(8) as threads:
            good = list(threads.map(lambda one: self._examine(one[1], self._held[one[0]]), boards))
        for (unit, board), is_good in zip(boards, good, strict=True):
            if not is_good:
                self._say(f"{board.name} is {self._ledger.board(board.name).health}: not used")
                self._let_go(unit, f"{board.name} is sick")

    def _look(self, board: BoardSpec, lease: int) -> bool:
        return health.conclude(self._ledger, board.name, health.look(board, boots_next=True), is_whole=False)

    def _let_go(self, unit: Unit, why: str) -> None:
        number = self._held.pop(unit, None)
        if number in self._own:
            self._ledger.end(number, why)

    def has_sick(self, boards: Iterable[str]) -> bool:
        """Whether one of these is in quarantine."""
        return any(state.quarantine for state in self._ledger.boards(boards).values())

    def has_away(self) -> bool:
        """Whether the host of a board is away: it may come back by itself."""
        return any(state.is_away for state in self._ledger.boards(self._lab.boards).values())

    def is_away(self, board: str) -> bool:
        """Whether the host of this board is away."""
        return self._ledger.board(board).is_away

    def await_away(self) -> bool:
        """Wait until a board is back whose host is away; False: none is away, or none came back in time."""
        away = [name for name, state in self._ledger.boards(self._lab.boards).items() if state.is_away]
        if not away:
            return False
        self._say(f"waiting for {', '.join(away)}, whose hosts are away")

        def is_back() -> bool:
            self._keep()
            return not all(state.is_away for state in self._ledger.boards(away).values())

        with suppress(WaitTimeout):
            return wait_until(is_back, min(AWAY, self._deadline.left), "a host that is away", interval=RETRY)
        return False

    def dismiss(self) -> None:
        """Give all boards back."""
        for unit in list(self._held):
            self._let_go(unit, "the run is over")

    # -- working on them -----------------------------------------------------------------------------------------

    def work(self, stages: Mapping[Unit, list[list[Share]]], watch: Callable[[], None]) -> list[Ended]:
        """Work through the stages of each unit. Returns the shares that were begun, and how their workers ended.

        ``watch`` is called again and again meanwhile.
        """
        left = {unit: list(turns) for unit, turns in stages.items() if unit in self._held}
        running: dict[Unit, list[tuple[Share, subprocess.Popen[bytes]]]] = {}
        ended: list[Ended] = []

        def is_done() -> bool:
            for unit in list(left):
                if all(process.poll() is not None for _, process in running.get(unit, ())):
                    why = self._why_stop(unit)
                    ended.extend(Ended(share, process.returncode, why) for share, process in running.pop(unit, ()))
                    if turn := self._next_turn(unit, why, left):
                        running[unit] = [(share, self._start(share, self._held[unit])) for share in turn]
            watch()
            self._keep()
            return not left

        limit = self._deadline.left + DEADLINE_GRACE
        try:
            with suppress(WaitTimeout):
                wait_until(is_done, limit, "the workers are done", interval=0.3)
        finally:
            end([process for pairs in running.values() for _, process in pairs])
            watch()
        why = "the deadline"
        return ended + [Ended(share, one.returncode, why) for pairs in running.values() for share, one in pairs]

    def _next_turn(self, unit: Unit, why_stop: str | None, left: dict[Unit, list[list[Share]]]) -> list[Share]:
        """The shares that a unit begins now, taken off ``left``; none when it is done or must stop."""
        if why_stop:
            self._say(f"{', '.join(sorted(_names(unit)))}: stopped: {why_stop}")
            self._let_go(unit, why_stop)
        if why_stop or not left[unit]:
            del left[unit]
            return []
        return left[unit].pop(0)

    def _why_stop(self, unit: Unit) -> str | None:
        if self.is_over:
            return "the deadline"
        return self._ledger.why_stop(self._held[unit], _names(unit))

    def _keep(self) -> None:
        """Extend the run's leases that are still held."""
        if time.monotonic() - self._kept < KEEP_INTERVAL:
            return
        self._kept = time.monotonic()
        for lease in self._leases():
            if lease.id in self._own and lease.state == "held":
                self._ledger.extend(lease.id, LEASE_SECONDS)

    def _leases(self) -> list[Lease]:
        return [self._ledger.lease(number) for number in set(self._held.values())]

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes that still run, so that they release their boards; kill those that do not end."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + WORKER_GRACE
    for process in alive:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _names(unit: Unit) -> frozenset[str]:
    return frozenset(board.name for board in unit)
