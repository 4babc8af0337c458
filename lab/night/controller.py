"""A board for the scripts of another CI: four words, as the test controllers of Xen's own hardware CI take them.

Its script powers the board on, reads the console until it has seen what it wants, wakes the board if it slept, and
powers it off; each by an SSH login of its own. Each word is answered by a process of its own, so what goes on is noted
in the lab's folder (:class:`lab.night.job.Job`), one file a board.

A lease that is made for a job is short. Whoever reads the console extends it again and again, so the lease of a job
that is gone ends by itself.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lab import netboot
from lab.base import lock, processes
from lab.base.errors import BenchError, BoardError, LabError, MissingCapability, UsageError, WaitTimeout
from lab.base.wait import wait_until
from lab.bmc import switching
from lab.console.client import next_record
from lab.grid import mains, services
from lab.inventory import Lab
from lab.leases import queue
from lab.leases.asking import callers_lease, wait_for
from lab.leases.console_access import Writer
from lab.leases.ledger import Ledger
from lab.leases.records import Lease, Request, caller
from lab.night import job as jobs
from lab.night.job import Job, Watch
from lab.night.job_console import Descriptors, JobConsole
from lab.reporting.words import seconds_text
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import visible

Word = Literal["poweron", "console", "wake", "poweroff"]

COMMAND = "SSH_ORIGINAL_COMMAND"  # what the client asked sshd for
PREFIX = "gitlabci"  # which Xen's script puts before `poweron`
GRACE = 300.0  # seconds that a job's lease lasts without a reader of the console
EXTEND_EVERY = 10.0  # seconds; the loss of a lease is noticed as soon
PATIENCE = 120.0  # seconds for a lease: what the last holder left is switched off first
LOCK_PATIENCE = 60.0  # seconds for another word of the same job: a power command may take half of that
READER_PATIENCE = 3.0  # seconds
PASSED = "test passed"  # in all lines by which Xen's scripts pass: "ping test passed", "suspend test passed"...


def word_of(said: str | None) -> Word:
    """The word that a client asked for: one of four, perhaps with ``gitlabci`` before it, and nothing else.

    :raises UsageError: it is none.
    """
    parts = (said or "").split()
    words = get_args(Word)
    if parts[:1] == [PREFIX]:
        parts = parts[1:]
    for word in words:
        if parts == [word]:
            return word  # type: ignore[no-any-return]  # an element of Word
    asked = f"{said[:100]!r}" if said else "a login without a command"
    raise UsageError(f"refused: {asked}; this key can do nothing but: {', '.join(words)}")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the lab's people decide about the jobs on a board."""

    passed: str = PASSED  # regular expression of the line by which a job passes
    boot: str = ""  # boot device of `poweron`, once: pxe, disk...; empty: pxe with a folder of jobs, else as it is set
    seconds: float = 7200.0  # time limit of a job


class Controller:
    """Answers for one board (:meth:`answer`)."""

    def __init__(self, lab: Lab, name: str, ledger: Ledger, wishes: Wishes) -> None:
        """``lab`` is up and has the board. :raises UsageError: a wish that cannot be."""
        if wishes.boot:
            switching.check_boot_device(wishes.boot)
        self._board, self._ledger, self._wishes = lab.boards[name], ledger, wishes
        self._folder = services.directory(lab)
        own = self._folder / "controller"
        own.mkdir(exist_ok=True)
        self._note, self._lock, self._reader = own / f"{name}.json", own / f"{name}.lock", own / f"{name}.reader"
        self._lab, self._name = lab, name
        self._watch = Watch(self._folder / "iommu-faults" / f"{name}.json", wishes.passed)

    def answer(self, word: Word, ends: Descriptors | None = None) -> int:
        """Do what the word says; the exit status, 1 after a crash.

        :raises UsageError: no job runs, or somebody else has the board.
        :raises BenchError: power, lease or console failed, or the board cannot do it.
        """
        if word == "console":
            return self._console(ends or Descriptors())
        try:
            {"poweron": self._power_on, "wake": self._wake, "poweroff": self._power_off}[word]()
        except MissingCapability as error:
            raise BoardError(self._name, f"{word} cannot be done: {error}") from None
        return 0

    # -- power ------------------------------------------------------------------------------------------------------

    def _power_on(self) -> None:
        with self._alone():
            if old := Job.read(self._note):
                if pid := processes.holder_of(self._reader):
                    raise BoardError(self._name, f"a job runs already: process {pid} reads its console")
                self._close(old, "another job began, and this one had not powered the board off")
            folder = jobs.begin(self._board)
            job = Job(str(folder.path), 0, False, 0, now := time.time(), now + self._wishes.seconds)
            try:
                lease, is_own = self._lease()
                job = replace(job, lease=lease.id, is_own=is_own)
                job.write(self._note)
                self._order("off", lease)  # what a job that is gone left running says nothing of this one
                job = replace(job, since=next_record(self._board), started=time.time())
                job.write(self._note)
                boot = self._wishes.boot
                if self._board.jobs:
                    netboot.choose(netboot.home(self._lab, self._board), "job")
                    boot = boot or "pxe"
                self._order("on", lease, boot)
            except BaseException as error:  # the script has no trap yet that would power the board off
                fault = error if isinstance(error, LabError) else BenchError(f"interrupted: {error}")
                self._close(job, "the board was not powered on", fault)
                raise
        self._say(f"lease {lease.id}, run {folder.path}")

    def _order(self, what: str, lease: Lease, boot: str = "") -> None:
        mains.order(what, self._board, lease, self._ledger, boot=boot, by="by a job")

    def _wake(self) -> None:
        self._order("button", self._held(self._running()))

    def _power_off(self) -> None:
        with self._alone():
            job = self._running()
            remarks = []
            try:
                try:
                    job = self._record(job, "the job powered the board off")[0]
                finally:
                    self._order("off", self._held(job))
            except LabError as error:
                remarks.append(str(error))
                raise
            finally:
                self._end(job, remarks)

    # -- the console ------------------------------------------------------------------------------------------------

    def _console(self, ends: Descriptors) -> int:
        job = self._running()
        self._held(job)
        if not job.since:
            raise UsageError(f"{self._name}: `poweron` of this job has not ended; the console can be read after it")
        try:  # who read it for the last job may just be going
            wait_until(lambda: processes.hold_for_life(self._reader), READER_PATIENCE, "the console is free")
        except WaitTimeout:
            raise BoardError(self._name, "the console of this job is read already") from None
        looked = time.monotonic()

        def look() -> str | None:
            nonlocal looked
            now = Job.read(self._note)
            if now is None or now.run != job.run:
                return "the job is over"
            if time.monotonic() - looked >= EXTEND_EVERY:
                looked = time.monotonic()
                self._extend(job)
            if time.time() >= job.until:
                raise BoardError(self._name, f"the job has had its {seconds_text(self._wishes.seconds)}")
            return None

        self._extend(job)
        writer = Writer(self._ledger, self._name, caller())
        try:
            ended = JobConsole(self._board, job, self._watch, writer, ends).run(look, self._say)
        except BaseException as error:
            fault = error if isinstance(error, LabError) else None
            how = str(error) or type(error).__name__
            self._record_alone(job, f"the console ended: {how}", fault)
            raise
        if ended.is_over:
            return 0
        result = self._record_alone(job, ended.how)
        if ended.crash is None:
            return 0
        verdict = result.verdict if result else Verdict.FAIL
        self._tell(ends, f"\r\nxenlab: {verdict}: {visible(result.reason if result else ended.crash.text.strip())}\r\n")
        return 1 if verdict is Verdict.FAIL else 3

    def _record_alone(self, job: Job, how: str, fault: LabError | None = None) -> TestResult | None:
        """The result of a stream that ended; None: there is nothing new, or the job was over before."""
        with self._alone():
            now = Job.read(self._note)
            if now is None or now.run != job.run:
                return None
            after, result = self._record(now, how, fault)
            jobs.finish(after)  # no other word may follow
            return result

    def _extend(self, job: Job) -> None:
        lease, now = self._held(job), time.time()
        is_due = (lease.until or 0.0) - now < GRACE - 60.0  # the ledger notes each extension
        if job.is_own and is_due and job.until > now:
            self._ledger.extend(job.lease, min(GRACE, job.until - now))

    def _tell(self, ends: Descriptors, text: str) -> None:
        """The last words on the console; nobody may be there to read them."""
        try:
            if select.select([], [ends.out], [], 1.0)[1]:
                os.write(ends.out, text.encode(errors="replace"))
                return
        except OSError:
            pass
        self._say(text.strip())

    # -- the job, and its lease -------------------------------------------------------------------------------------

    def _alone(self) -> AbstractContextManager[int]:
        return lock.held(self._lock, LOCK_PATIENCE, f"{self._name}: the job's note")

    def _running(self) -> Job:
        if job := Job.read(self._note):
            return job
        raise UsageError(f"{self._name}: no job runs, so nothing is done; a job begins with: {PREFIX} poweron")

    def _held(self, job: Job) -> Lease:
        """The lease of a job, which still holds the board."""
        lease = self._ledger.lease(job.lease)
        if lease.state != "held" or self._name not in lease.boards:
            raise BoardError(self._name, f"lease {lease.id} of this job is over: {lease.why_ended}")
        return lease

    def _lease(self) -> tuple[Lease, bool]:
        """The caller's lease on the board, else a new one, and whether it is new.

        :raises BenchError: somebody else has the board for longer than :data:`PATIENCE`, or it is in quarantine.
        """
        if lease := callers_lease(self._ledger, (self._name,)):
            return lease, False
        request = Request("run", caller(), GRACE, (self._name,))
        queue.check(request, self._lab, self._ledger.boards(self._lab.boards))
        number_asked = self._ledger.ask(request)
        try:
            return wait_for(self._ledger, number_asked, PATIENCE), True
        except WaitTimeout:
            other = self._ledger.lease_of(self._name)
            who = f"held by {other.holder}" if other else "not to be had (`xenlab who`, `xenlab lab status`)"
            raise BoardError(self._name, f"{who}; waited {PATIENCE:.0f} s") from None
        finally:
            if self._ledger.lease(number_asked).state == "waiting":
                self._ledger.end(number_asked, "its job stopped waiting")

    def _record(self, job: Job, how: str, fault: LabError | None = None) -> tuple[Job, TestResult | None]:
        if job.since:
            try:
                self._held(job)
            except LabError as error:  # what the console said since then is another holder's
                job, fault = replace(job, since=0), fault or error
        job, result = jobs.record(job, self._board, self._watch, how, fault)
        job.write(self._note)
        return job, result

    def _close(self, job: Job, how: str, fault: LabError | None = None) -> None:
        """End a job that cannot end itself any more."""
        try:
            if not job.results():
                job = self._record(job, how, fault)[0]
        finally:
            self._end(job, [how])

    def _end(self, job: Job, remarks: list[str]) -> None:
        try:
            jobs.finish(job, remarks)
        finally:
            self._note.unlink(missing_ok=True)
            if self._board.jobs:  # which the board has not asked for if it did not boot
                netboot.choose(netboot.home(self._lab, self._board), "known-good")
            if job.is_own:
                self._ledger.end(job.lease, "its job is over")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"xenlab: {self._name}: {text}\n")
        sys.stderr.flush()
