"""What is kept of a job that a foreign script drives on one of our boards: a run folder, and a note of what goes on.

The script says nothing of how it judges. So the verdict is ours, from the console alone: a crash is a FAIL, a line that
says "passed" is a PASS, and without either nothing is known, which is a MISS.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lab.base import paths, shape
from lab.base.errors import BenchError, HypervisorCrash, LabError, NotProved, UsageError
from lab.base.shape import Between
from lab.console import recalled, untold
from lab.console.client import Console, ConsoleLine
from lab.console.fault_baseline import SIGNATURE, FaultBaseline
from lab.console.formats import Signature
from lab.console.patterns import classify, crash_excerpt
from lab.inventory import BoardSpec
from lab.reporting import html, junit
from lab.results import verdicts
from lab.results.record import RunHeader, TestResult, Time, Verdict
from lab.results.run_folder import RunFolder, new_id, replace_file, visible_line
from lab.results.summary import exit_status

CASE = "controller::job"  # the one case of such a run, under the same name in every run
AREA = "controller"
BUILD = "foreign"  # nobody proved which hypervisor it was; what its banner said is among the facts of the build
SELECTION = "a job of another CI"
_THEIR_GUEST = re.compile(r"\((?:domU|qemu-dm)\) ")  # Xen's script so marks what a guest and its device model print
_BANNER = {  # what Xen itself says; Linux in a guest says "Xen version", too
    "version": re.compile(r"\(XEN\) .*\bXen version (\S{1,80})"),
    "changeset": re.compile(r"\(XEN\) .*\bLatest ChangeSet: (.{1,120})"),
}


@dataclass(frozen=True, slots=True)
class Job:
    """The job that runs on a board, as it is noted from one command to the next."""

    run: str  # its run folder
    lease: int
    is_own: bool  # the lease was made for the job, and ends with it
    since: Annotated[int, Between(0, 2**62)]  # the console record with which it begins, or goes on; 0: not begun yet
    started: Time
    until: Time  # its time limit

    @classmethod
    def read(cls, path: Path) -> Job | None:
        """The noted job; None: there is none.

        :raises BenchError: the note is damaged.
        """
        try:
            return shape.read(cls, path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BenchError(f"{path}: {error}; remove it: the job is lost") from None

    def results(self) -> list[TestResult]:
        """The results that it has. :raises UsageError: its run folder is gone."""
        return list(RunFolder.open(Path(self.run)).results())

    def write(self, path: Path) -> None:
        """Note it, whole or not at all."""
        replace_file(path, json.dumps(dataclasses.asdict(self)))


class Watch:
    """What of a board's console lines concerns a job: its crashes, and the line by which it passes."""

    def __init__(self, baseline: Path, passed: str) -> None:
        """``baseline``: the file of the board's IOMMU faults; ``passed``: a regular expression.

        :raises UsageError: it is none.
        """
        self._faults = FaultBaseline(baseline)
        try:
            self.passed = re.compile(passed)
        except re.error as error:
            raise UsageError(f"invalid pattern {passed!r}: {error}") from None

    def is_crash(self, line: ConsoleLine) -> bool:
        """Whether this line alone tells a crash of the hypervisor or dom0; not of a guest."""
        found = classify(line.text)
        return bool(found and found.kind == "crash" and not found.recalled_by and self._counts(found, line))

    def first_crash(self, lines: Sequence[ConsoleLine]) -> HypervisorCrash | None:
        """The first crash in these lines, with what it printed."""
        for index, told in recalled.crashes(lines):
            if self._counts(told, lines[index]):
                return HypervisorCrash(lines[index].board, told.name, crash_excerpt(lines, index))
        found = untold.crash([line for line in lines if self._is_said(line)])
        return HypervisorCrash(lines[0].board, *found) if found else None

    def first_pass(self, lines: Iterable[ConsoleLine]) -> ConsoleLine | None:
        """The first line that says that the job passed; a guest may say it, as in Xen's jobs with PCI devices."""
        return next((one for one in lines if one.kind in ("line", "partial") and self.passed.search(one.text)), None)

    def _counts(self, crash: Signature, line: ConsoleLine) -> bool:
        return self._is_said(line) and not (crash.name == SIGNATURE and self._faults.knows(line.text))

    @staticmethod
    def _is_said(line: ConsoleLine) -> bool:
        """Whether the board said it, and not one of its guests."""
        return line.kind in ("line", "partial") and not _THEIR_GUEST.match(line.text)


def begin(board: BoardSpec) -> RunFolder:
    """A new run folder for a job. Its JUnit says "did not run" until there is more to say.

    :raises UsageError: it cannot be made.
    """
    header = RunHeader(
        run_id=(name := f"{new_id()}-{board.name}"),
        started=time.time(),
        selection=SELECTION,
        builds=(BUILD,),
        boards={board.name: {"class": board.board_class}},
        planned=(CASE,),
        required_areas=(),
    )
    folder = RunFolder.create(paths.state() / "jobs" / name, header)  # no runs: the history takes none of them
    report(folder)
    return folder


def record(
    job: Job, board: BoardSpec, watch: Watch, how: str, fault: LabError | None = None
) -> tuple[Job, TestResult | None]:
    """Write down what came of the job since ``job.since``; the job as it goes on, and the result.

    After the first result only a crash, or a pass that was missing, is news; after a FAIL nothing is. Without news
    there is no result.

    :param how: how it ended, as in "the job powered the board off".
    :param fault: what went wrong on our side; its result is a MISS.
    :raises OSError: the disk is full.
    """
    if fault is not None and not isinstance(fault, BenchError):
        fault = BenchError(str(fault))
    folder, results = RunFolder.open(Path(job.run)), job.results()
    before = {one.verdict for one in results}
    lines: list[ConsoleLine] = []
    until = job.since
    try:
        if job.since:  # what the board said to others before is not the job's
            with Console.of(board) as console:
                until = console.mark()
                lines = console.lines(job.since, until)
    except BenchError as error:
        fault = fault or error
    crash, good = watch.first_crash(lines), watch.first_pass(lines)
    if before and (Verdict.FAIL in before or not (crash or (good and Verdict.PASS not in before))):
        return replace(job, since=until), None
    if fault is None and good is None:
        said = next((one.text for one in reversed(lines) if one.kind in ("line", "partial") and one.text.strip()), "")
        last = f"its last line: {visible_line(said)}" if said else "it said nothing"
        fault = NotProved(f"{board.name}: {how}, and no line had said /{watch.passed.pattern}/; {last}")
    seen = verdicts.Observation(outcome=fault, crashes=(crash,) if crash else ())
    decision = verdicts.decide(seen)
    attempt = len(results) + 1
    slice_path = folder.write_console(folder.case_directory(CASE, attempt, BUILD), board.name, lines)
    now = time.time()
    result = TestResult(
        case=CASE,
        area=AREA,
        verdict=decision.verdict,
        rule=decision.rule,
        reason=decision.reason,
        started=job.started,
        seconds=now - job.started,
        boards=(board.name,),
        build=BUILD,
        attempt=attempt,
        doc=f"{how}.",
        evidence=decision.evidence,
        figures={"passed_after_s": good.time - job.started} if good and decision.verdict is Verdict.PASS else {},
        consoles={board.name: slice_path},
        fingerprint=decision.fingerprint,
    )
    folder.append(result)
    if facts := _facts(lines):
        folder.write_builds({BUILD: facts})
    report(folder)
    return replace(job, since=until, started=now), result


def finish(job: Job, remarks: Iterable[str] = ()) -> None:
    """Note the end of the run, and what readers must know of it."""
    folder = RunFolder.open(Path(job.run))
    header = folder.header()
    notes = (*header.notes, *remarks)
    status = exit_status(header, list(folder.results()))
    folder.write_header(replace(header, finished=time.time(), exit_status=status, notes=notes))
    report(folder)


def report(folder: RunFolder) -> None:
    """Write JUnit and the page anew."""
    summary = folder.summary()
    junit.write(summary)
    html.write(summary)


def _facts(lines: Iterable[ConsoleLine]) -> dict[str, str]:
    """What Xen's banner says of itself."""
    found: dict[str, str] = {}
    for line in lines:
        for name, pattern in _BANNER.items():
            if match := pattern.search(line.text):
                found[name] = visible_line(match[1]).strip()
    return found
