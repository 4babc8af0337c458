"""``python -m lab.grid.reaper DIRECTORY``: gives boards out and takes them back, as the ledger says.

It runs under the lab's supervisor. The ledger (:mod:`lab.leases.ledger`) is the truth and the coordinator follows it:
who holds a lease holds the places, after a restart of the coordinator or of this machine too. When a lease is over,
the places are released, whoever may still be using them. A board goes to another holder with its power off, so that
it comes up in its boot loader's default, the known-good entry; a holder who comes again finds it as it was left.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from labgrid.remote.common import Place

from lab.base import processes
from lab.base.errors import BenchError, LabError
from lab.console.client import Console, next_record
from lab.grid import services
from lab.grid.coordinator import Coordinator, Refused
from lab.grid.mains import power_of
from lab.inventory import Lab
from lab.leases import queue
from lab.leases.ledger import Ledger
from lab.leases.records import Lease
from lab.results import run_folder

log = logging.getLogger("reaper")

INTERVAL = 0.3  # seconds between two looks at the ledger
CLEANERS = 8  # boards whose power is taken away at the same time


class Reaper:
    """One look after the other (:meth:`look`); each may fail, and the next makes up for it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder
        self.ledger = Ledger(folder)
        self._coordinator = Coordinator(lab.coordinator)
        self._cleaners = ThreadPoolExecutor(CLEANERS, thread_name_prefix="cleaner")
        self._cleaning: dict[str, Future[str]] = {}
        self._told: dict[str, str] = {}

    def close(self) -> None:
        self._cleaners.shutdown(wait=False, cancel_futures=True)
        self._coordinator.close()

    def look(self) -> None:
        """End what is over, take back, restore, give out.

        :raises CoordinatorLost: the places could not be seen to; what is over has ended in the ledger all the same.
        """
        now = time.time()
        for lease in self.ledger.leases():
            if lease.state != "ending" and (why := lease.why_over(now)):
                self.ledger.end(lease.id, why)
        leases = self.ledger.leases()
        places = self._coordinator.places()
        for lease in leases:
            processes.give_sign_of_life()
            try:
                if lease.state == "ending":
                    self._take_back(lease)
                elif lease.state == "held":
                    self._keep(lease, places)
            except Refused as error:
                self._tell(f"lease {lease.id}", str(error))
        self._cancel_orphans()
        self._look_at_others(leases, places)
        self._give_out()

    # -- held leases ---------------------------------------------------------------------------------------------

    def _keep(self, lease: Lease, places: Mapping[str, Place]) -> None:
        """See that the coordinator has the holder's name at each of the lease's places."""
        for board in lease.boards:
            place = places.get(board)
            if place is None:
                self._tell(board, "the coordinator has no such place")
            elif place.acquired != lease.holder:
                self._restore(lease, board, place)

    def _restore(self, lease: Lease, board: str, place: Place) -> None:
        with self._coordinator.acting_as(lease.holder) as holder:
            if missing := holder.lacks(self._lab.boards[board]):
                self._tell(board, f"not restored yet: no exporter offers its {missing}")
                return
            if place.acquired:  # taken behind our back, while the coordinator knew of nobody
                self._coordinator.release(board, place.acquired)
                self.ledger.note("taken from", place.acquired, lease=lease.id, board=board)
            if place.reservation and place.reservation not in self.ledger.tokens(lease.id).values():
                self._coordinator.cancel(place.reservation)
            holder.acquire(board)
        self.ledger.note("restored", f"{lease.holder} is at the coordinator again", lease=lease.id, board=board)

    def _take_back(self, lease: Lease) -> None:
        for board in lease.boards:
            self._cut_console(lease, board)
            self._coordinator.release(board, lease.holder)
        for token in self.ledger.tokens(lease.id).values():
            self._cancel(token)
        self.ledger.finish(lease.id)

    def _cut_console(self, lease: Lease, board: str) -> None:
        """Write what the console said during the lease to ``leases/NUMBER/BOARD.console.log``."""
        since = self.ledger.mark_of(board)
        if since is None or board not in self._lab.boards:
            return
        path, spec = self._folder / "leases" / str(lease.id) / f"{board}.console.log", self._lab.boards[board]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            until = next_record(spec)  # quick to say that there is no recorder
            with Console.of(spec) as console:
                run_folder.write_lines(path, console.lines(since, until))
        except (BenchError, OSError) as error:
            self.ledger.note("console not cut", str(error), lease=lease.id, board=board)

    # -- requests ------------------------------------------------------------------------------------------------

    def _give_out(self) -> None:
        now = time.time()
        is_day = self._lab.nightly_yields.holds(now)
        waiting = queue.in_order(self.ledger.leases("waiting"), is_day)
        kept: set[str] = set()
        for lease in waiting:
            processes.give_sign_of_life()
            held = self.ledger.leases("held", "ending")
            free = queue.free_at(held, now, is_day, lease.request.kind)
            states = self.ledger.boards(self._lab.boards)
            chosen = queue.choose(lease.request, self._lab, states, free, kept)
            kept |= set(chosen or lease.request.names)
            try:
                if chosen is None:
                    self._unqueue(lease, ())
                elif self._is_refused(lease, chosen):
                    self._unqueue(lease, ())
                elif self._queue(lease, chosen) and not set(chosen) & set(free):
                    self._give(lease, chosen)
                else:
                    self._ask_back(lease, chosen, held, is_day)
            except Refused as error:
                self._tell(f"lease {lease.id}", str(error))
        for token in self._stale_tokens():
            self._cancel(token)

    def _is_refused(self, lease: Lease, chosen: tuple[str, ...]) -> bool:
        """A board in quarantine is for people who ask for it by name, to find out what ails it."""
        if lease.request.kind in ("person", "check"):
            return False
        for name, state in self.ledger.boards(chosen).items():
            if state.quarantine:
                self.ledger.end(lease.id, f"{name} is {state.health}")
                return True
        return False

    def _queue(self, lease: Lease, chosen: tuple[str, ...]) -> bool:
        """Be in the coordinator's queue for these boards; whether all are allocated to the request."""
        self._unqueue(lease, chosen)
        tokens = self.ledger.tokens(lease.id)
        answers = {board: self._coordinator.is_allocated(token) for board, token in tokens.items()}
        for board, answer in answers.items():
            if answer is None:  # forgotten, with the coordinator's restart
                self.ledger.drop_token(tokens[board])
        missing = [board for board in chosen if answers.get(board) is None]
        if missing:
            with self._coordinator.acting_as(lease.holder) as holder:
                for board in missing:
                    token = holder.reserve(board)
                    self.ledger.keep_token(lease.id, board, token)
                    answers[board] = self._coordinator.is_allocated(token)
        return all(answers[board] for board in chosen)

    def _unqueue(self, lease: Lease, keep: tuple[str, ...]) -> None:
        for board, token in self.ledger.tokens(lease.id).items():
            if board not in keep:
                self._cancel(token)

    def _give(self, lease: Lease, chosen: tuple[str, ...]) -> None:
        """All of them or none; not before each is clean."""
        clean = [self._is_clean(lease, board) for board in chosen]  # all are asked, and cleaned side by side
        if not all(clean):
            return
        taken: list[str] = []
        try:
            with self._coordinator.acting_as(lease.holder) as holder:
                for board in chosen:
                    if missing := holder.lacks(self._lab.boards[board]):
                        raise Refused(f"{board}: no exporter offers its {missing}")
                    holder.acquire(board)
                    taken.append(board)
            if self.ledger.grant(lease.id, {board: self._mark(board) for board in chosen}):
                taken.clear()
        finally:
            for board in taken:
                self._coordinator.release(board, lease.holder)

    def _mark(self, board: str) -> int | None:
        try:
            return next_record(self._lab.boards[board])
        except BenchError as error:
            self._tell(board, str(error))
            return None

    def _is_clean(self, lease: Lease, board: str) -> bool:
        """Whether the board can go to this holder as it is; begins to clean it when not."""
        state = self.ledger.board(board)
        if state.last_holder in ("", lease.holder):
            return True
        if board not in self._cleaning:
            self._cleaning[board] = self._cleaners.submit(self._power_off, board)
        if not self._cleaning[board].done():
            return False
        if trouble := self._cleaning.pop(board).result():
            self.ledger.quarantine(board, f"its power could not be taken away: {' '.join(trouble.split())}", trouble)
            return bool(state.quarantine)  # who asks for a sick board by name gets it as it is
        self.ledger.note_user(board, "")
        return True

    def _power_off(self, board: str) -> str:
        """In a thread: what went wrong, if anything did."""
        try:
            power_of(self._lab.boards[board]).power_off()
        except LabError as error:
            return str(error)
        except Exception as error:  # it must reach the ledger, not a thread's traceback
            log.exception("%s: power off", board)
            return f"{type(error).__name__}: {error}"
        return ""

    def _ask_back(self, lease: Lease, chosen: tuple[str, ...], held: list[Lease], is_day: bool) -> None:
        for other in held:
            if set(other.boards) & set(chosen) and queue.yields(other, is_day, lease.request.kind):
                self.ledger.want_back(other.id, f"{lease.holder} waits for it")

    # -- the rest ------------------------------------------------------------------------------------------------

    def _look_at_others(self, leases: list[Lease], places: Mapping[str, Place]) -> None:
        """Places that are acquired, and not by a lease.

        One that a request of ours was in the queue for was taken by a reaper that died before it could give it: it goes
        back. Who has a board by labgrid's own client leaves it to the next one as a lease's holder does.
        """
        leased = {board for lease in leases for board in lease.boards}
        requests, strangers = self.ledger.all_tokens(), {}
        for name, place in places.items():
            if not place.acquired or name in leased:
                continue
            if number := requests.get(place.reservation):
                self._coordinator.release(name, place.acquired)
                self.ledger.note("released", "it was taken and never given", lease=number, board=name)
            else:
                strangers[name] = place.acquired
        for board, state in self.ledger.boards(strangers).items():
            if state.last_holder != strangers[board]:
                self.ledger.note_user(board, strangers[board])

    def _cancel_orphans(self) -> None:
        """Reservations that the ledger knows nothing of: a reaper died, or a call failed, before it was noted.

        Nobody refreshes them, and labgrid keeps the places for them for more than a minute.
        """
        known = self.ledger.all_tokens()
        for token in self._coordinator.reservations():
            if token not in known:
                self._coordinator.cancel(token)
                log.info("reservation %s is cancelled: the ledger knows nothing of it", token)

    def _stale_tokens(self) -> list[str]:
        live = {lease.id for lease in self.ledger.leases()}
        return [token for token, number in self.ledger.all_tokens().items() if number not in live]

    def _cancel(self, token: str) -> None:
        self._coordinator.cancel(token)
        self.ledger.drop_token(token)

    def _tell(self, about: str, what: str) -> None:
        """Log what stays the same once."""
        if self._told.get(about) != what:
            self._told[about] = what
            log.warning("%s: %s", about, what)


def main() -> int:
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stdout)
    lab = services.copied_inventory(folder)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    reaper: Reaper | None = None
    said = ""
    while not ending.wait(INTERVAL):
        processes.give_sign_of_life()
        trouble = ""
        try:
            reaper = reaper or Reaper(lab, folder)
            reaper.look()
        except LabError as error:
            trouble = str(error)
            if trouble != said:
                log.warning("%s", error)
        except Exception as error:  # a lab whose leases nobody ends is worse than a look that failed
            trouble = f"{type(error).__name__}: {error}"
            if trouble != said:
                log.exception("a look failed")
        said = trouble  # what stays the same is said once: there are three looks a second
    if reaper:
        reaper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
