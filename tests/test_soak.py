"""Two people and a nightly share four boards while everything dies around them. `xenlab selftest soak --for 4h`.

For longer than CI has it, each service is killed and stopped, too, and the disk of the state folder fills up.

The people are simulated, and so are the boards; coordinator, exporter, recorders, reaper, BMCs, the night's processes
and those that kill them are real.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.base import paths, processes
from lab.base.errors import BenchError, WaitTimeout
from lab.base.wait import wait_until
from lab.grid import services
from lab.grid.coordinator import CoordinatorLost
from lab.grid.service import STARTING
from lab.leases.ledger import Ledger
from lab.leases.records import Request, seconds_of
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder

STATE_SIZE = "96m"  # of a disk of the test's own, which is filled
NIGHT = Path(__file__).parent / "soak" / "night.py"
SECONDS_A_CASE = 2.5  # about; of four boards side by side
# Seconds at most between two wishes of a person: the night yields to each, before its first case if need be.
THINKING = 15.0
# Seconds for which a night that finishes nothing is let live: one that never gets anywhere proves nothing.
A_TURN = 60.0
TO_COME_BACK = 45.0  # seconds in which a restarted coordinator must have the ledger's holders again
TO_BE_NOTICED = STARTING + 60.0  # seconds after which a service that hangs has been started anew
TO_END = 90.0  # seconds in which a lease ends, its boards powered off
HABITS = {"ignores": 1, "acts_after": 1.5, "lies_for": 1.5, "answers_after": 0.5, "failures": 2}


class Patient:
    """The ledger of somebody who tries again while it cannot be written."""

    def __init__(self, ledger: Ledger, full: threading.Event) -> None:
        self._ledger, self._full = ledger, full

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._ledger, name)

        def tried(*arguments: Any, **more: Any) -> Any:
            while True:
                was_full = self._full.is_set()
                try:
                    return method(*arguments, **more)
                except BenchError:
                    if not was_full and not self._full.is_set():
                        raise
                    time.sleep(0.5)

        return tried


class Soak:
    """What goes on, and what was found wrong."""

    def __init__(self, shared: Shared, run: Path, cases: int) -> None:
        self.shared, self.run, self.cases = shared, run, cases
        self.full = threading.Event()  # the ledger cannot be written: its disk is full, or who changes it is stopped
        self.slack = 0.0  # seconds more for all that waits for a service, since one hung
        shared.ledger = cast(Ledger, Patient(Ledger(shared.folder), self.full))
        self.wrong: list[str] = []
        self.over = threading.Event()  # no more trouble; people go home
        self.night_done = threading.Event()
        self.night: subprocess.Popen[bytes] | None = None
        self.faults: Counter[str] = Counter()
        self.finished: set[tuple[str, str]] = set()  # results seen in the run folder
        self.served = 0

    def guarded(self, what: Callable[..., None], *arguments: object) -> threading.Thread:
        """In a thread; what it raises is found wrong."""

        def body() -> None:
            try:
                what(*arguments)
            except BaseException as error:
                self.wrong.append(f"{what.__name__}{arguments}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    # -- those who share -----------------------------------------------------------------------------------------

    def person(self, name: str) -> None:
        """Has boards again and again; gives them back, lets the lease end, or dies."""
        dice, ledger = random.Random(name), self.shared.ledger
        wishes = (
            {"needs": frozenset({"hvm"})},
            {"needs": frozenset({"migration-pair"}), "count": 2},
            {"names": ("sim1", "sim3")},
            {"names": ("sim3", "sim1")},
        )
        while not self.over.is_set():
            with subprocess.Popen(["sleep", "600"]) as job:
                how = dice.choice(("gives back", "time ends", "dies"))
                seconds = 1.5 if how == "time ends" else 600.0
                wish = dice.choice(wishes)
                mark = processes.mark(job.pid)
                number = ledger.ask(Request("person", f"desk/{name}", seconds, job=mark, **wish))  # type: ignore[arg-type]
                try:
                    boards = self.shared.held(number, timeout=90.0)
                    self._use(number, boards, how, dice)
                    self.served += 1
                except WaitTimeout:
                    ledger.end(number, "has waited long enough")  # boards are in quarantine, or the night has them
                job.kill()
            self._ends(number)
            self.over.wait(dice.uniform(0.0, THINKING))

    def _ends(self, number: int) -> None:
        """Wait for the end of a lease; if a service hangs meanwhile, as much longer as that takes to be noticed."""
        ledger = self.shared.ledger
        began = time.monotonic()
        while ledger.lease(number).state != "ended":
            if time.monotonic() > began + TO_END + self.slack:
                raise WaitTimeout(f"end of lease {number}", TO_END + self.slack, ledger.lease(number))
            time.sleep(0.2)

    def _use(self, number: int, boards: tuple[str, ...], how: str, dice: random.Random) -> None:
        """Nobody may take them away before the lease is over."""
        ledger = self.shared.ledger
        end = time.monotonic() + dice.uniform(0.5, 2.5)
        while time.monotonic() < end and how != "time ends":
            lease = ledger.lease(number)
            if lease.state != "held" or lease.boards != boards:
                self.wrong.append(f"lease {number} was lost: {lease}")
                return
            self.over.wait(0.2)
        if how == "gives back":
            ledger.end(number, "given back")

    def nightly(self) -> None:
        """Goes on with the run whenever it was killed, until all of it has a result."""
        while True:
            log = open(self.run.with_suffix(".log"), "ab")
            command = [sys.executable, "-P", str(NIGHT), str(self.shared.file), str(self.run), str(self.cases)]
            with (
                log,
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=paths.environment()
                ) as self.night,
            ):
                status = self.night.wait()
            self.look_at_results()
            if (self.run / "run.json").exists() and not RunFolder.open(self.run).missing():
                self.night_done.set()
                return
            if status not in (-9, 3):  # killed; or boards were not to be had for a time
                self.wrong.append(f"the night ended with status {status}")
                return

    # -- trouble -------------------------------------------------------------------------------------------------

    def trouble(self, seconds: float) -> None:
        dice, end = random.Random(7), time.monotonic() + seconds
        kinds = ["BMC", "runner", "coordinator", "BMC", "reaper", "dead BMC", "service", "stall", "full disk", "hang"]
        for turn in count():
            if time.monotonic() >= end and turn >= 3:  # a slow machine has its first three, too
                break
            kind = kinds[turn % len(kinds)]
            name = dice.choice(sorted(self.shared.chassis))
            if kind == "BMC":
                habit = dice.choice(sorted(HABITS))
                self.shared.chassis[name].set(**{habit: HABITS[habit]})
            elif kind == "dead BMC":
                self.shared.bmcs[name].stop()
                self.over.wait(3.0)
                self.shared.bmcs[name].start()
            elif kind == "runner":
                self._kill_night()
            elif kind == "full disk":
                self._fill_disk(dice.uniform(3.0, 12.0))
            elif kind in ("service", "stall", "hang"):
                self._trouble_a_service(kind, dice)
            else:
                self.shared.kill(kind)
            self.faults[kind] += 1
            self.over.wait(dice.uniform(0.5, 2.0))
        for chassis in self.shared.chassis.values():
            chassis.set(**dict.fromkeys(HABITS, 0))

    def _trouble_a_service(self, kind: str, dice: random.Random) -> None:
        """Kill one; or stop it for some seconds; or until the supervisor has noticed, and started another."""
        there = services.status(self.shared.folder).processes
        name = dice.choice(sorted(there.keys() - {"supervisor"}))
        self.faults[f"{kind} of {name.partition(' ')[0]}"] += 1
        if kind == "service":
            self.shared.kill(name)
            return
        self.full.set()  # whoever is stopped in the middle of a change keeps the ledger locked
        os.kill(there[name], signal.SIGSTOP)
        if kind == "stall":
            time.sleep(dice.uniform(1.0, 8.0))
            with suppress(ProcessLookupError):
                os.kill(there[name], signal.SIGCONT)
            self.full.clear()
            return
        self.slack = TO_BE_NOTICED

        def is_another() -> bool:
            return services.status(self.shared.folder).processes.get(name, there[name]) != there[name]

        wait_until(is_another, TO_BE_NOTICED, f"another {name}")
        self.full.clear()

    def _fill_disk(self, seconds: float) -> None:
        """Leave no room on the disk of the state folder for a while, if it is one of the test's own."""
        if not self.shared.folder.parents[2].is_mount():
            return
        filling = self.shared.folder.parents[2] / "filling"
        self.full.set()
        with suppress(OSError), open(filling, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self.over.wait(seconds)
        filling.unlink()
        time.sleep(1.0)
        self.full.clear()

    def _kill_night(self) -> None:
        """In the middle of its work: once it has finished something since it was killed last."""
        before, started = len(self.finished), time.monotonic()
        while len(self.finished) == before and time.monotonic() < started + A_TURN and not self.night_done.is_set():
            self.over.wait(0.2)
        if self.night:
            self.night.kill()

    def technician(self) -> None:
        """Looks after boards in quarantine."""
        while not self.night_done.wait(1.0):
            for name, state in self.shared.ledger.boards(self.shared.lab.boards).items():
                if state.quarantine:
                    self.shared.chassis[name].set(**dict.fromkeys(HABITS, 0))
                    self.shared.ledger.clear(name, "the technician looked", checked=False)

    def watch(self) -> None:
        """All along: nobody has a place but the holder of its lease, and nothing finished goes away."""
        since: dict[str, float] = {}
        while not self.night_done.wait(0.5):
            self.look_at_results()
            try:
                acquired = self.shared.acquired()
            except CoordinatorLost:
                continue
            held = {board: one.holder for one in self.shared.ledger.leases("held") for board in one.boards}
            for board in self.shared.lab.boards:
                if acquired.get(board) == held.get(board):
                    since.pop(board, None)
                elif time.monotonic() - since.setdefault(board, time.monotonic()) > TO_COME_BACK + self.slack:
                    self.wrong.append(f"{board}: held by {held.get(board)}, acquired by {acquired.get(board)}")
                    since.pop(board)

    def look_at_results(self) -> None:
        there = {(one.case, one.build) for one in RunFolder(self.run).results()} if self.run.exists() else set()
        if gone := self.finished - there:
            self.wrong.append(f"results that were there are gone: {sorted(gone)[:3]}")
        self.finished |= there


@pytest.mark.timeout(0)  # all waiting in it is bounded
def test_nothing_is_lost_or_doubled(
    shared: Shared, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    seconds = seconds_of(request.config.getoption("--soak"))
    soak = Soak(shared, tmp_path / "run", cases=max(6, min(500, round(seconds / SECONDS_A_CASE))))
    night, watch, technician = map(soak.guarded, (soak.nightly, soak.watch, soak.technician))
    people = [soak.guarded(soak.person, name) for name in ("alice", "bob")]
    soak.guarded(soak.trouble, seconds).join()
    soak.over.set()
    for thread in (*people, night):
        thread.join(300 + seconds)
    soak.night_done.set()
    for thread in (watch, technician):
        thread.join(30)
    log = (tmp_path / "run.log").read_text(errors="replace")[-3000:]
    assert soak.wrong == [], log
    assert soak.night_done.is_set() and not RunFolder.open(soak.run).missing(), log
    assert soak.served and all(soak.faults[kind] for kind in ("BMC", "runner", "coordinator")), soak.faults

    final = RunFolder.open(soak.run).final_results()
    verdicts = Counter(result.verdict for result in final)
    assert set(verdicts) <= {Verdict.PASS, Verdict.MISS}, [one for one in final if one.verdict is Verdict.FAIL][:2]
    assert verdicts[Verdict.PASS] > len(final) / 2, "the night got somewhere"

    wait_until(lambda: not shared.ledger.leases() and shared.acquired() == {}, 60, "every board back")
    for board in shared.lab.boards:
        book = [event for event in shared.ledger.audit() if event.board == board and event.what in ("granted", "back")]
        assert [event.what for event in book] == ["granted", "back"] * (len(book) // 2), f"{board} in turns"
        assert [one.lease for one in book[::2]] == [one.lease for one in book[1::2]], f"{board} by who had it"
    said = f"{len(final)} results, {dict(verdicts)}, {soak.served} people served, faults: {dict(soak.faults)}"
    record_property("soak", said)
    logging.getLogger(__name__).info("%s", said)
