"""A run from nothing to a verdict: set up, bring the lab up, plan, run the cases, report.

Cases run in worker processes, one per set of boards: single-board cases on all boards side by side, then the
cases of each pair. A worker that dies takes no finished result with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lab import builds, inventory, paths, runs
from lab.errors import BenchError, LabError, UsageError
from lab.grid import services
from lab.inventory import BoardSpec, Lab
from lab.options import NightlyOptions, Selection
from lab.record import Phase, RunHeader, TestResult
from lab.reporting import html, junit, terminal
from lab.runs import RunFolder

log = logging.getLogger(__name__)

DEFAULT_BUILD = "pv32-debug"
GUESSED_SECONDS = 30.0  # a case that never ran here
BOOT_SECONDS = 90.0  # to deploy and reboot for options of Xen
WORKER_GRACE = 40.0  # seconds a worker may take to release its boards after an interrupt
HISTORY_NOTE = "history: this run was not imported (xenlab history --import DIR does it later): "
READY_LIMIT = 900.0  # seconds to bring the boards of a pair up: one that needs longer is left to the worker
RUN_LIMIT = 3 * 3600.0  # seconds; a run that takes longer is ended with what it has


@dataclass(frozen=True, slots=True)
class Case:
    """What planning knows of a case."""

    nodeid: str
    area: str
    boards: int
    needs: tuple[str, ...]
    xen_options: str = ""
    selection: str = "full"
    doc: str = ""
    evidence: tuple[str, ...] = ()  # titles of what it keeps


@dataclass(frozen=True, slots=True)
class Share:
    """The cases one worker runs on its boards."""

    boards: tuple[str, ...]
    build: str
    cases: tuple[str, ...]
    shape: str = ""  # of the board, if not its own


def run(options: NightlyOptions) -> int:
    """The whole job; its exit status: 1 any FAIL or ERROR, else 3 any MISS or an area without PASS, else 0.

    :raises UsageError: bad inventory, build, or selection; or a port is taken.
    """
    lab = inventory.load(options.inventory)
    if options.resume:
        return _resume(options, lab)
    names = options.builds or (DEFAULT_BUILD,)
    for name in names:
        builds.recipe(name)  # unknown names are said before anything is set up
    select = options.select or ("quick" if lab.is_virtual else "full")
    cases = collect(options, select)
    if not cases:
        raise UsageError("no case matches the selection")
    header = RunHeader(
        run_id=time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{os.getpid():x}",
        started=time.time(),
        selection=options.describe(select),
        builds=tuple(names),
        boards={name: _facts(board) for name, board in lab.boards.items()},
        planned=tuple(case.nodeid for case in cases),
        required_areas=_required_areas(options),
    )
    folder = RunFolder.create(options.output or paths.state() / "runs" / header.run_id, header)
    return Night(options, lab, folder, cases).run()


def _resume(options: NightlyOptions, lab: Lab) -> int:
    """Run what has no result yet in a run that broke off; what was asked of it stays as it was."""
    assert options.resume is not None
    folder = RunFolder.open(options.resume)
    header = folder.header()
    if left := folder.missing():
        cases = collect(
            replace(options, paths=tuple(dict.fromkeys(one.case for one in left)), keyword="", marker=""),
            "weekly",
        )
    else:
        cases = []
    folder.write_header(replace(header, finished=None, exit_status=None))
    return Night(options, lab, folder, cases).run()


def prepare(lab: Lab, names: Sequence[str], progress: Callable[[str], None]) -> list[builds.Build]:
    """Make what a run needs beside the lab itself: the boards' image if they are virtual, guest payloads, builds.

    :raises BenchError: one of them cannot be made.
    """
    from lab.xen.payloads import build_payloads, kernel_root

    if lab.is_virtual:
        from lab.virtual import image

        image.make(progress=progress)
    build_payloads(paths.cache() / "payloads", kernel_root())
    return [builds.make(name, progress=progress) for name in names or (DEFAULT_BUILD,)]


class Night:
    """One run."""

    def __init__(self, options: NightlyOptions, lab: Lab, folder: RunFolder, cases: list[Case]) -> None:
        self._options, self._lab, self.folder, self._cases = options, lab, folder, cases
        self._header = folder.header()
        self._builds = self._header.builds
        self._phases = list(self._header.phases)
        self._notes = [note for note in self._header.notes if not note.startswith(HISTORY_NOTE)]
        self._say = terminal.Progress(planned=len(folder.missing()))
        self._shown = len(list(folder.results()))

    def run(self) -> int:
        interrupted = False
        with self._say:
            try:
                with ExitStack() as stack:
                    self._set_up()
                    stack.enter_context(self._lab_up())
                    for build in self._builds:
                        left = {one.case for one in self.folder.missing() if one.build == build}
                        self._run_build(build, [case for case in self._cases if case.nodeid in left])
            except KeyboardInterrupt:
                interrupted = True
                self._notes.append("interrupted: the rest did not run")
            except UsageError:
                self._finish(2)
                raise
            except BenchError as error:
                self._notes.append(str(error))
                self._say.note(f"bench: {error}")
            except OSError as error:
                self._notes.append(f"{type(error).__name__}: {error}")
                self._say.note(str(error))
        status = self._finish(130 if interrupted else None)
        return status

    # -- phases --------------------------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started, clock = time.time(), time.monotonic()
        self._say.phase(name)
        try:
            yield
        finally:
            self._phases.append(Phase(name, started, time.monotonic() - clock))

    def _set_up(self) -> None:
        with self._phase("set-up"):
            made = prepare(self._lab, self._builds, self._say.note)
            facts = {b.name: {"version": b.version, "build id": b.identity, "key": b.key} for b in made}
            self.folder.write_builds(facts)

    @contextmanager
    def _lab_up(self) -> Iterator[None]:
        """A lab that is up is used and left up; else ours comes up for this run."""
        directory = services.directory(self._lab)
        if services.status(directory).is_up:
            self._say.note("using the lab that is up")
            yield
            return
        with self._phase("lab up"):
            lab_up(self._lab, detach=False, progress=self._say.note)
        try:
            yield
        finally:
            with self._phase("lab down"):
                lab_down(self._lab)

    def _run_build(self, build: str, cases: Sequence[Case]) -> None:
        durations = _read_durations()
        boards = list(self._lab.boards.values())
        single = [case for case in cases if case.boards == 1]
        pairs = [case for case in cases if case.boards == 2]
        shaped = plan_shaped(single, boards, build)
        single = [case for case in single if not any(case.nodeid in share.cases for share in shaped)]
        shares = plan_single(single, boards, build, durations)
        if shares:
            with self._phase("cases on single boards"):
                self._workers(shares)
        if pairs:
            joined = self._lab.pairs()
            ends = tuple(board.name for board in joined[0]) if joined else tuple(self._lab.boards)
            if joined and not shares:
                with self._phase("boards of the pair"):
                    self._bring_up(ends, build)
            with self._phase("cases on pairs"):
                self._workers([Share(ends, build, tuple(case.nodeid for case in pairs))])
        for share in shaped:
            with self._phase(f"cases on {share.boards[0]} as {share.shape}"), self._reshaped(share):
                self._workers([share])

    @contextmanager
    def _reshaped(self, share: Share) -> Iterator[None]:
        """The share's board has its shape, and the others are off."""
        self._say.note(f"{share.boards[0]} becomes {share.shape}; the other virtual boards are off meanwhile")
        lab_shape(self._lab, share.boards[0], share.shape)
        try:
            yield
        finally:
            lab_shape(self._lab, share.boards[0], "")

    def _workers(self, shares: Sequence[Share]) -> None:
        """Run the shares side by side; show results as they come."""
        running = {index: self._start(share) for index, share in enumerate(shares)}
        deadline = time.time() + RUN_LIMIT
        try:
            while any(process.poll() is None for process in running.values()):
                self._show_new()
                if time.time() > deadline:
                    self._notes.append(f"ended after {RUN_LIMIT / 3600:.0f} h")
                    break
                time.sleep(0.5)
        finally:
            _end(list(running.values()))
            self._show_new()
        for index, process in running.items():
            if process.returncode not in (0, 1):
                tail = self._worker_log(shares[index]).read_text(errors="replace")[-1500:]
                self._notes.append(
                    f"worker on {','.join(shares[index].boards)} ended with status {process.returncode}: {tail.strip()}"
                )

    def _bring_up(self, boards: Sequence[str], build: str) -> None:
        """Bring boards up side by side, for a worker that would do it one after the other."""
        running = []
        for board in boards:
            command = [sys.executable, "-P", "-m", "lab.ready"]
            command += [str(self._options.inventory), board, build, str(self.folder.path)]
            running.append(_spawn(command, self.folder.path / f"ready-{board}-{Path(build).stem}.log"))
        deadline = time.monotonic() + READY_LIMIT
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            _end(running)

    def _show_new(self) -> None:
        results = list(self.folder.results())
        for result in results[self._shown :]:
            self._say.result(result)
        self._shown = len(results)

    def _worker_log(self, share: Share) -> Path:
        where = "-".join((*share.boards, share.shape)).strip("-")
        return self.folder.path / f"worker-{where}-{Path(share.build).stem}.log"

    def _start(self, share: Share) -> subprocess.Popen[bytes]:
        arguments = self._worker_log(share).with_suffix(".args")
        arguments.write_text("\n".join(share.cases) + "\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"--rootdir={paths.CHECKOUT}",
            "-c",
            str(paths.CHECKOUT / "tox.ini"),
        ]
        command += ["-q", "-p", "no:cacheprovider", f"--inventory={self._options.inventory}"]
        command += [
            f"--boards={','.join(share.boards)}",
            f"--run-folder={self.folder.path}",
            f"--build={share.build}",
        ]
        command += [*([f"--xtf={self._options.xtf}"] if self._options.xtf else []), f"@{arguments}"]
        return _spawn(command, self._worker_log(share))

    def _finish(self, forced: int | None) -> int:
        results = self.folder.final_results()
        status = runs.exit_status(self._header, results) if forced is None else forced
        if forced is None and self._notes and status == 0:
            status = 3
        self._header = replace(
            self._header,
            finished=time.time(),
            exit_status=status,
            phases=tuple(self._phases),
            notes=tuple(self._notes),
        )
        written = [
            self._written("run.json", lambda: self.folder.write_header(self._header)),
            self._written("durations", lambda: _write_durations(results)),
        ]
        if self._options.is_remembered and (fault := _to_history(self.folder)):
            self._header = replace(self._header, notes=(*self._header.notes, f"{HISTORY_NOTE}{fault}"))
            written.append(self._written("run.json", lambda: self.folder.write_header(self._header)))
        written.append(self._written("junit.xml", lambda: junit.write(self.folder)))
        written.append(self._written("report.html", lambda: html.write(self.folder)))
        terminal.summary(self.folder)
        return status if all(written) else status or 3

    def _written(self, what: str, write: Callable[[], object]) -> bool:
        """Whether it could be written: a full disk costs the report, not the results that are there."""
        try:
            write()
        except OSError as error:
            self._say.note(f"{what} is not written: {error.strerror or error}: {self.folder.path}")
            return False
        return True


def _to_history(folder: RunFolder) -> str:
    """Import a run that ended; what went wrong, if anything did. Nothing of it may cost the run."""
    try:
        from lab.history.store import History

        History().import_run(folder.path)
    except LabError as error:
        return str(error)
    except Exception as error:  # whatever it is, the run's verdict and reports come first
        log.exception("import into the history")
        return f"{type(error).__name__}: {error}"
    return ""


def _spawn(command: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """A process of this run, what it says appended to a file."""
    with open(log_file, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=paths.CHECKOUT,
            start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            env=paths.environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt what still runs, so that it releases its boards; kill what does not listen."""
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


# -- planning ----------------------------------------------------------------------------------------------------------


def collect(options: NightlyOptions, select: Selection) -> list[Case]:
    """The cases of the selection, as pytest finds them.

    :raises UsageError: a path or expression that pytest refuses; carries its words.
    """
    script = paths.CHECKOUT / "lab" / "collecting.py"
    command = [
        sys.executable,
        str(script),
        f"--rootdir={paths.CHECKOUT}",
        "-c",
        str(paths.CHECKOUT / "tox.ini"),
    ]
    command += [f"--select={select}", *([f"-k={options.keyword}"] if options.keyword else [])]
    command += [f"--xtf={options.xtf}"] if options.xtf else []
    command += [*([f"-m={options.marker}"] if options.marker else []), *(options.paths or ("testcases",))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=paths.CHECKOUT,
        env=paths.environment(),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode not in (0, 5) or (done.returncode == 0 and not lines):
        raise UsageError(f"the cases cannot be collected:\n{(done.stdout + done.stderr).strip()[-1500:]}")
    found = [json.loads(line) for line in lines]
    return [Case(**one | {key: tuple(one[key]) for key in ("needs", "evidence")}) for one in found]


def plan_single(
    cases: Sequence[Case], boards: Sequence[BoardSpec], build: str, durations: dict[str, float]
) -> list[Share]:
    """Spread single-board cases over the boards: longest first, onto the least loaded board that can run it.

    A case that no board can run goes to the first one, where it will say what is missing. The boot cases come
    first on their board. Cases that ask for the same options of Xen stay together, so that one board reboots once.
    """
    together: dict[str, list[Case]] = {}
    for case in cases:
        together.setdefault(case.xen_options or case.nodeid, []).append(case)

    def seconds(group: list[Case]) -> float:
        reboot = BOOT_SECONDS if group[0].xen_options else 0.0
        return reboot + sum(durations.get(case.nodeid, GUESSED_SECONDS) for case in group)

    load = {board.name: 0.0 for board in boards}
    mine: dict[str, list[Case]] = {board.name: [] for board in boards}
    for group in sorted(together.values(), key=lambda group: -seconds(group)):
        needs = {word for case in group for word in case.needs}
        able = [board.name for board in boards if needs <= board.capabilities] or [boards[0].name]
        best = min(able, key=lambda name: load[name])
        load[best] += seconds(group)
        mine[best] += group
    order = {case.nodeid: index for index, case in enumerate(cases)}
    shares = []
    for name, chosen in mine.items():
        chosen.sort(key=lambda case: (case.area != "boot", order[case.nodeid]))
        if chosen:
            shares.append(Share((name,), build, tuple(case.nodeid for case in chosen)))
    return shares


def plan_shaped(cases: Sequence[Case], boards: Sequence[BoardSpec], build: str) -> list[Share]:
    """The single-board cases that no board can run as it is, but one in another shape can: a share for each shape.

    What a shape declares decides, so a board of steel is left as it is, and a case that it can run stays there.
    """
    shares: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        needs = set(case.needs)
        if any(needs <= board.capabilities for board in boards):
            continue
        for board in boards:
            shapes = board.virtual.shapes if board.virtual else {}
            fit = (name for name, shape in shapes.items() if needs <= board.capabilities | shape.capabilities)
            if name := next(fit, ""):
                shares.setdefault((board.name, name), []).append(case.nodeid)
                break
    return [Share((board,), build, tuple(chosen), shape) for (board, shape), chosen in shares.items()]


def _required_areas(options: NightlyOptions) -> tuple[str, ...]:
    """Areas that must have a PASS: those tox.ini lists, unless the user picked cases by hand."""
    if options.paths or options.keyword or options.marker:
        return ()
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    parser.read(paths.CHECKOUT / "tox.ini", encoding="utf-8")
    text = parser.get("xenlab", "required_areas", fallback="")
    return tuple(word for word in text.replace(",", " ").split() if word)


def _facts(board: BoardSpec) -> dict[str, str]:
    return {
        "class": board.board_class,
        "bmc": board.bmc.protocol,
        "console": board.console.via,
        "capabilities": " ".join(sorted(board.capabilities)),
    }


def _durations_file() -> Path:
    return paths.state() / "durations.json"


def _read_durations() -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(_durations_file().read_text(encoding="utf-8")).items()}
    except (OSError, ValueError):
        return {}


def _write_durations(results: Sequence[TestResult]) -> None:
    known = _read_durations()
    known.update({result.case: round(result.seconds, 1) for result in results if result.verdict == "PASS"})
    _durations_file().write_text(json.dumps(known, indent=0, sort_keys=True), encoding="utf-8")


# -- the lab ---------------------------------------------------------------------------------------------------


def lab_up(lab: Lab, *, detach: bool, progress: Callable[[str], None] | None = None) -> None:
    """Start boards (if they are virtual), coordinator, exporter and recorders.

    :raises UsageError: a port is taken.
    :raises BenchError: a part did not come up.
    """
    directory = services.directory(lab)
    directory.mkdir(parents=True, exist_ok=True)
    if services.status(directory).processes:
        raise UsageError(f"lab {lab.name} is up already; `xenlab lab status` shows it, `xenlab lab down` ends it")
    if lab.is_virtual:
        from lab.virtual import boards

        boards.prepare(lab, directory / "boards", paths.state() / "lab" / "ssh", progress=progress)
        boards.start(lab, directory / "boards", owner=None if detach else os.getpid())
    try:
        services.start(lab, directory, detach=detach)
    except LabError:
        lab_down(lab)
        raise


def lab_shape(lab: Lab, name: str, shape: str) -> None:
    """Give a virtual board a shape of the inventory (no name: its own), and power all of them off.

    :raises UsageError: no such board or shape.
    :raises BenchError: the lab is not up, or somebody has one of the boards.
    """
    from lab.grid import session
    from lab.virtual import boards

    directory = services.directory(lab)
    with session.acquire(lab, [board.name for board in lab.boards.values() if board.virtual], directory):
        boards.reshape(lab, directory / "boards", name, shape)


def lab_down(lab: Lab) -> None:
    """Stop all of it; boards made of QEMU lose power."""
    directory = services.directory(lab)
    services.stop(directory)
    if lab.is_virtual:
        from lab.virtual import boards

        boards.stop(directory / "boards")
