"""A run from nothing to a verdict: set up, bring the lab up, plan, run the cases, report.

Cases run in worker processes, one for each set of boards. Single-board cases run on all boards side by side; the cases
of pairs run on a pair as soon as both its boards are done. Finished results survive the death of a worker. When boards
are wanted back or fall sick, the cases that they leave are planned anew onto the boards that remain.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lab import builds, inventory
from lab.base import paths
from lab.base.daytime import Deadline
from lab.base.errors import BenchError, BuildFailed, UsageError
from lab.builds import Build, matrix
from lab.builds.matrix import Variant
from lab.grid import services
from lab.inventory import BoardSpec, Lab
from lab.leases import queue
from lab.leases.ledger import Ledger
from lab.night import planning, progress, publishing
from lab.night.crew import Crew, Ended
from lab.night.lab_services import in_use, lab_shape, prepare
from lab.night.options import COUNTING_BUILD, DEFAULT_BUILD, NightlyOptions
from lab.night.planning import Case, Share
from lab.night.workers import pytest_command, root_of, spawn
from lab.reporting import terminal
from lab.results import run_folder, summary, verdicts
from lab.results.record import BUILD_CASE, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder

log = logging.getLogger(__name__)

RUN_LIMIT = 3 * 3600.0  # seconds; a run without a deadline that takes longer is ended with what it has
ATTEMPTS = 3  # at a case whose boards fell sick


def run(options: NightlyOptions) -> int:
    """Do a whole run. Exit status: 1 for any FAIL or ERROR, else 3 for any MISS or an area without PASS, else 0.

    :raises UsageError: bad inventory, build, or selection; or a port is taken.
    """
    lab = inventory.load(options.inventory).restricted(options.boards)
    if options.resume:
        return _resume(options, lab)
    variants, notes = _variants(options, lab)
    select = options.select or ("quick" if lab.is_virtual else "full")
    cases = planning.collect(options, select)
    if not cases:
        raise UsageError(planning.none_found(options, select))
    header = RunHeader(
        run_id=options.run_id or run_folder.new_id(),
        started=time.time(),
        selection=options.describe(select),
        builds=tuple(variant.name for variant in variants),
        boards={name: _facts(board) for name, board in lab.boards.items()},
        planned=tuple(case.nodeid for case in cases),
        required_areas=planning.required_areas(options),
        repeat=options.repeat,
        counts=options.coverage,
        root=None if (root := root_of(options.paths)) == paths.SHIPPED else str(root),
    )
    folder = RunFolder.create(options.output or paths.state() / "runs" / header.run_id, header)
    folder.write_builds({variant.name: variant.facts() for variant in variants})
    return Night(options, lab, folder, cases).run(said=notes)


def _variants(options: NightlyOptions, lab: Lab) -> tuple[list[Variant], list[str]]:
    """The variants to run, and why others of the matrix are left out.

    :raises UsageError: unknown builds, a wrong matrix file, or nothing of it can run here.
    """
    if not options.matrix:
        default = COUNTING_BUILD if options.coverage else DEFAULT_BUILD
        return _plain(options.builds or (default,)), []
    if options.builds:
        raise UsageError("--build and --matrix: give one of them; the matrix names its builds")
    return matrix.runnable(options.matrix, lab)


def _plain(given: Sequence[str]) -> list[Variant]:
    """The builds that are given by name or recipe file, each once.

    :raises UsageError: an unknown one, a wrong recipe, or two different ones of one name.
    """
    found: dict[str, Variant] = {}
    for build in given:
        builds.recipe(build)  # a wrong name or recipe is reported before anything is set up
        variant = Variant.plain(build)
        other = found.setdefault(variant.name, variant)
        if other != variant:
            raise UsageError(f"{other.build} and {build} are both called {variant.name}: rename one of the recipes")
    return list(found.values())


def _resume(options: NightlyOptions, lab: Lab) -> int:
    """Go on with a run that broke off: run the cases that have no result yet, as the run's options were."""
    assert options.resume is not None
    folder = RunFolder.open(options.resume)
    header = folder.header()
    if left := folder.due():
        cases = planning.collect(
            replace(
                options,
                paths=tuple(str(header.cases_root() / case) for case in dict.fromkeys(one.case for one in left)),
                keyword="",
                marker="",
            ),
            "weekly",
        )
    else:
        cases = []
    folder.write_header(replace(header, finished=None, exit_status=None))
    return Night(options, lab, folder, cases).run()


class Night:
    """One run."""

    def __init__(self, options: NightlyOptions, lab: Lab, folder: RunFolder, cases: list[Case]) -> None:
        self._options, self._lab, self.folder, self._cases = options, lab, folder, cases
        self._deadline = Deadline.at(options.deadline or time.time() + RUN_LIMIT)
        self._header = folder.header()
        self._builds = self._header.builds
        self._phases = list(self._header.phases)
        self._notes = list(self._header.notes)
        self._cut_short: str | None = None
        self._has_failed = False  # the bench failed in a way that no result shows
        self._say = terminal.Progress(planned=len(folder.due()))
        self._shown = len(list(folder.results()))

    def run(self, said: Sequence[str] = ()) -> int:
        """Do the run; ``said`` is shown first. Returns the exit status."""
        interrupted = False
        with self._say:
            for note in said:
                self._say.note(note)
            try:
                with ExitStack() as stack:
                    self._set_up()
                    if self._builds:
                        self._run_builds(stack)
            except KeyboardInterrupt as error:  # a signal other than SIGINT is named in it
                interrupted = True
                self._cut_short = f"interrupted by {str(error) or 'SIGINT (Ctrl-C)'}"
            except UsageError:
                self._finish(2)
                raise
            except BenchError as error:
                self._fail(str(error))
            except OSError as error:
                self._fail(f"{type(error).__name__}: {error}")
        status = self._finish(130 if interrupted else None)
        return status

    def _run_builds(self, stack: ExitStack) -> None:
        stack.enter_context(in_use(self._lab, progress=self._say.note, phase=self._phase))
        crew = stack.enter_context(self._crew())
        for build in self._builds:
            self._run_build(build, crew)
        if crew.is_over and (left := self.folder.due()):
            self._cut_short = f"stopped at {self._deadline.clock}"
            self._say.note(f"{self._cut_short}: {len(left)} did not run")

    # -- phases --------------------------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started, clock = time.time(), time.monotonic()
        self._say.phase(name)
        self._written(progress.RUNNING, lambda: progress.note(self._lab, self.folder.path, name))
        try:
            yield
        finally:
            self._phases.append(Phase(name, started, time.monotonic() - clock))

    def _set_up(self) -> None:
        """Make what the run needs. A build that fails is left out, and has a FAIL of its own."""
        with self._phase("set-up"):
            noted = self.folder.builds()
            commits = {name: source.commit for name, source in self.folder.sources().items()}
            variants = [Variant.of_facts(name, noted.get(name, {}), commits.get(name)) for name in self._builds]
            prepare(self._lab, self._say.note)
            made: dict[str, Build] = {}
            failed: dict[str, BuildFailed | BenchError] = {}
            for recipe, commit in {variant.build: variant.commit for variant in variants}.items():
                try:
                    made[recipe] = builds.make(recipe, commit=commit, progress=self._say.note)
                except (BuildFailed, BenchError) as error:
                    failed[recipe] = error
            if self._header.counts:
                for build in made.values():
                    build.demand_notes()
            facts = {one.name: one.facts() | (made[one.build].facts() if one.build in made else {}) for one in variants}
            for one in variants:  # of a build that failed, readers want to know the commit
                if isinstance(why := failed.get(one.build), BuildFailed) and why.source:
                    facts[one.name] |= {"source": why.source}
            self.folder.write_builds(facts)
            for one in variants:
                if one.build in failed:
                    self._note_failed_build(one, failed[one.build])
            self._builds = tuple(one.name for one in variants if one.build in made)

    def _note_failed_build(self, variant: Variant, error: BuildFailed | BenchError) -> None:
        decision = verdicts.decide(verdicts.Observation(error))
        before = [one for one in self.folder.results() if (one.case, one.build) == (BUILD_CASE, variant.name)]
        result = TestResult(
            case=BUILD_CASE,
            area="build",
            verdict=decision.verdict,
            rule=decision.rule,
            reason=decision.reason,
            started=time.time(),
            seconds=0.0,
            build=variant.name,
            attempt=len(before) + 1,
            doc="The source of the build under test compiles, and its patches apply.",
            evidence=decision.evidence,
        )
        self.folder.append(result)
        self._show_new()
        self._note(f"no case ran with {variant.name}: {str(error).splitlines()[0]}")

    @contextmanager
    def _crew(self) -> Iterator[Crew]:
        """The boards of the run, which are given back at the end of the block."""
        ledger = Ledger(services.directory(self._lab))
        crew = Crew(
            self._lab,
            ledger,
            self._start,
            self._note,
            deadline=self._deadline,
            hope=None if self._options.deadline is None else self._deadline.left,
            examine=self._examine if self._options.checks else None,
        )
        try:
            yield crew
        finally:
            crew.dismiss()

    def _run_build(self, build: str, crew: Crew) -> None:
        boards = list(self._lab.boards.values())
        reshaped = {nodeid for share in planning.plan_shaped(self._cases, boards, build) for nodeid in share.cases}
        lost: set[str] = set()  # cases whose worker died
        while not crew.is_over:
            cases = [case for case in self._left(build, crew) if case.nodeid not in lost | reshaped]
            if not cases:
                break
            all_there, possible = queue.units(self._lab, frozenset(self._lab.boards)), crew.possible()
            if not possible:
                if crew.await_away() or crew.possible():
                    continue
                raise BenchError("there is no board to work on")
            sick = [one for one in cases if planning.is_able(all_there, one) and not planning.is_able(possible, one)]
            if sick and len(sick) < len(cases) and crew.has_away():
                cases = [one for one in cases if one not in sick]  # hosts come back: these wait for theirs
            elif sick and (crew.await_away() or crew.possible() != possible):  # or one came back just now
                continue
            elif sick:
                self._fail(f"{len(sick)} cases with {build} did not run: the boards that they need are in quarantine")
                lost |= {one.nodeid for one in sick}
                continue
            wanted = [
                one for one in cases if planning.is_able(all_there, one)
            ]  # other cases are run to say what the lab lacks
            with self._phase("boards"):
                units = crew.muster(partial(planning.can_begin, wanted) if wanted else bool)
            now = [one for one in cases if one not in wanted or planning.is_able(units, one)]
            if not units or not now:
                raise BenchError(f"no board could be acquired for the {len(cases)} cases that are left")
            known = planning.durations() | planning.took(self.folder.results())
            with self._phase("cases"):
                ended = crew.work(planning.plan(now, units, build, known), self._show_new)
            lost |= self._note_ended(ended)
        boards.sort(key=lambda board: crew.is_away(board.name))  # those that are there come first
        for share in planning.plan_shaped(self._cases, boards, build):
            self._run_shaped(share, crew)

    def _run_shaped(self, share: Share, crew: Crew) -> None:
        def left(beside: Collection[str]) -> list[Case]:
            mine = set(share.cases) - set(beside)
            return [case for case in self._left(share.build, crew) if case.nodeid in mine]

        board, lost = share.boards[0], set[str]()
        while not crew.is_over and (cases := left(beside=lost)):
            if crew.is_away(board):
                if not crew.await_away() and crew.is_away(board):
                    self._fail(f"{len(cases)} cases on {board} as {share.shape} did not run: its host is away")
                    return
                continue
            try:
                with self._phase(f"cases on {board} as {share.shape}"), self._reshaped(share, crew):
                    lost |= self._work_shaped(share, crew, partial(left, beside=lost))
            except BenchError:
                if not crew.is_away(board):  # else it went away just before: it is waited for
                    raise

    def _work_shaped(self, share: Share, crew: Crew, left: Callable[[], list[Case]]) -> set[str]:
        """Try what is left while the board has its shape and its host is there. Returns what was not tried."""
        board, lost = share.boards[0], set[str]()
        while not crew.is_over and not crew.is_away(board):
            cases = [case for case in left() if case.nodeid not in lost]
            if not cases:
                break
            first = min(case.attempt for case in cases)
            cut = tuple(case.nodeid for case in cases if case.attempt == first)
            stage = [replace(share, cases=cut, attempt=first)]
            stages = {unit: [stage] for unit in crew.muster() if board in [one.name for one in unit]}
            lost |= self._note_ended(crew.work(stages, self._show_new))
            lost |= set() if crew.is_away(board) else set(cut) - self._tried(share, first)
        return lost

    def _tried(self, share: Share, attempt: int) -> set[str]:
        """Cases that have a result of this attempt with the share's build."""
        return {one.case for one in self.folder.results() if (one.build, one.attempt) == (share.build, attempt)}

    def _left(self, build: str, crew: Crew) -> list[Case]:
        """Cases to run with a build: those without a result, those that a rule retries, and MISSes of sick boards."""
        due = {one.case for one in self.folder.due() if one.build == build}
        again = {}
        for (case, of), tried in summary.by_case(self.folder.results()).items():
            if of != build:
                continue
            sick = tried[-1].verdict is Verdict.MISS and crew.has_sick(tried[-1].boards) and len(tried) < ATTEMPTS
            if case in due or sick or verdicts.is_tried_again(tried):
                again[case] = tried[-1].attempt + 1
        return [
            replace(case, attempt=again.get(case.nodeid, case.attempt))
            for case in self._cases
            if case.nodeid in due or case.nodeid in again
        ]

    def _note_ended(self, ended: Sequence[Ended]) -> set[str]:
        """Note each worker that died. Returns its cases without a result, which are not tried again."""
        lost: set[str] = set()
        done = {(result.case, result.build, result.attempt) for result in self.folder.results()}
        for one in ended:
            if not one.share.cases or one.status in (0, 1) or one.why_stopped:
                continue
            tail = self._worker_log(one.share).read_text(errors="replace")[-1500:]
            boards = ",".join(one.share.boards)
            self._fail(f"worker on {boards} ended with status {one.status}: {tail.strip()}")
            lost |= {nodeid for nodeid in one.share.cases if (nodeid, one.share.build, one.share.attempt) not in done}
        return lost

    @contextmanager
    def _reshaped(self, share: Share, crew: Crew) -> Iterator[None]:
        """Within the block, the share's board has the share's shape, and the virtual boards beside it are off.

        A board whose host goes away is waited for, since it keeps the shape there.
        """
        board = share.boards[0]
        self._say.note(f"{board} becomes {share.shape}; the other virtual boards of its machine are off meanwhile")
        crew.dismiss()
        lab_shape(self._lab, board, share.shape)
        try:
            yield
        finally:
            crew.dismiss()
            while crew.is_away(board) and crew.await_away():
                pass
            try:
                lab_shape(self._lab, board, "")
            except BenchError as error:
                self._fail(f"{board} keeps the shape {share.shape}, call `xenlab lab shape {board}`: {error}")

    def _examine(self, board: BoardSpec, lease: int) -> bool:
        """Check a board from within, in a process of its own, since labgrid allows one session per process."""
        command = [sys.executable, "-P", "-m", "lab.cli", "board", "check", board.name]
        log_file = self.folder.path / f"check-{board.name}.log"
        process = spawn([*command, "--inventory", str(self._options.inventory)], log_file, lease)
        return process.wait() == 0

    def _fail(self, text: str) -> None:
        """Note that the bench failed. The run is then not good, whatever its results are."""
        self._has_failed = True
        self._note(text)

    def _note(self, text: str) -> None:
        """Note what a reader of the run must know, such as a sick board whose cases ran elsewhere."""
        self._notes.append(text)
        self._say.note(text)

    def _show_new(self) -> None:
        results = list(self.folder.results())
        for result in results[self._shown :]:
            self._say.result(result)
        self._shown = len(results)

    def _worker_log(self, share: Share) -> Path:
        where = "-".join((*share.boards, share.shape)).strip("-")
        return self.folder.path / f"worker-{where}-{Path(share.build).name}.log"

    def _start(self, share: Share, lease: int) -> subprocess.Popen[bytes]:
        """Start a worker. For a share without cases it only brings its board up."""
        if not share.cases:
            command = [sys.executable, "-P", "-m", "lab.case.ready", str(self._options.inventory), share.boards[0]]
            log_file = self.folder.path / f"ready-{share.boards[0]}-{Path(share.build).name}.log"
            return spawn([*command, share.build, str(self.folder.path)], log_file, lease)
        arguments = self._worker_log(share).with_suffix(".args")
        arguments.write_text("\n".join(share.cases) + "\n", encoding="utf-8")
        root, options = self._header.cases_root(), self._options
        words = ["-q", f"--run-folder={self.folder.path}", f"--build={share.build}", f"--attempt={share.attempt}"]
        words += [f"--xtf={options.xtf}"] if options.xtf else []
        words += ["--coverage"] if self._header.counts else []
        words += [f"--sound={','.join(options.sound)}"] if options.sound else []
        words += ["--boot-first"] if options.boots_first else []
        words += [f"--stop-at={self._deadline.boottime}", f"@{arguments}"]
        command = pytest_command(root, options.inventory, share.boards, words)
        return spawn(command, self._worker_log(share), lease, root)

    def _finish(self, forced: int | None) -> int:
        run = self.folder.summary()
        for text in summary.short_of_repeats(self._header, run.everything):
            self._fail(text)
        status = summary.exit_status(self._header, run.results) if forced is None else forced
        if forced is None and self._has_failed and status == 0:
            status = 3
        self._header = replace(
            self._header,
            finished=time.time(),
            exit_status=status,
            phases=tuple(self._phases),
            notes=tuple(self._notes),
            cut_short=self._cut_short,
            import_fault=None,
        )
        written = [
            self._written("run.json", lambda: self.folder.write_header(self._header)),
        ]
        if self._options.is_remembered and not self._header.counts:  # else what is measured, or broken, takes longer
            written.append(self._written("durations", lambda: planning.note_durations(run.results)))
        written.append(publishing.publish(self.folder, self._say.note, is_remembered=self._options.is_remembered))
        return status if all(written) else status or 3

    def _written(self, what: str, write: Callable[[], object]) -> bool:
        """Write a file of the run. False, and a note, when the disk is full: the results so far stay."""
        try:
            write()
        except OSError as error:
            self._say.note(f"{what} is not written: {error.strerror or error}: {self.folder.path}")
            return False
        return True


def _facts(board: BoardSpec) -> dict[str, str]:
    return {
        "class": board.board_class,
        "bmc": board.bmc.protocol,
        "console": board.console.via,
        "capabilities": " ".join(sorted(board.capabilities)),
    }
