"""pytest plugin: boards, verdicts and records for the cases under ``testcases/``.

One process drives one set of boards. A case names what it needs by its fixtures (``host``; ``source`` and
``destination`` for a pair) and by ``@pytest.mark.needs("pv32", ...)``. Each result is decided by
:mod:`lab.results.verdicts` from evidence and appended to the run folder as soon as the case ends.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import (
    BenchError,
    BmcRefused,
    BmcUnreachable,
    HypervisorCrash,
    LabError,
    MissingCapability,
    NotProved,
    PowerTimeout,
    UsageError,
)
from lab.case.rig import Rig, Seat, take, variant_of
from lab.console.client import ConsoleLine
from lab.console.patterns import classify, crash_excerpt
from lab.grid import services
from lab.leases import ledger
from lab.leases.ledger import Ledger
from lab.reporting.figures import timeline_svg
from lab.results import verdicts
from lab.results.record import NESTED_GUEST_CRASH, TRANSIENT, Evidence, RunHeader, TestResult
from lab.results.run_folder import RunFolder
from lab.xen import xtf
from lab.xen.domain import Domain
from lab.xen.host import Host
from lab.xen.migration import Migration

log = logging.getLogger(__name__)

SELECTIONS = ("quick", "full", "weekly")
CRASH_SIGNAL = signal.SIGUSR1
SURVIVED = frozenset({"iommu-fault"})  # what a board goes on after as before, when a case declares it
CASE_TIMEOUT = 600  # seconds; a case that takes longer is ended


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xenlab", "the lab's boards")
    group.addoption("--inventory", default=str(paths.CHECKOUT / "inventory" / "virtual.yaml"), help="inventory file")
    group.addoption("--boards", default="", help="board names, comma separated; default: all of the inventory")
    group.addoption("--run-folder", default="", help="run folder to append to; default: a new one")
    group.addoption("--build", default="pv32-debug", help="hypervisor build under test")
    group.addoption("--select", default="weekly", choices=SELECTIONS, help="how much: cases up to this selection")
    group.addoption("--xtf", default="", help="directory of built XTF tests; without it there are no cases of XTF")
    group.addoption("--stop-at", type=float, default=0.0, help="begin no case after this time, seconds since the epoch")
    group.addoption("--attempt", type=int, default=1, help="number of this attempt at the cases")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): SKIP on boards that lack one of them")
    config.addinivalue_line("markers", "quick: in every selection")
    config.addinivalue_line("markers", "full: a night's work")
    config.addinivalue_line("markers", "weekly: everything")
    config.addinivalue_line("markers", "xen_options(*words): the board is booted with these options of Xen")
    config.addinivalue_line("markers", "expects_crash(*signatures): the case crashes a board on purpose")


def area_of(item: pytest.Item) -> str:
    """The folder below ``testcases/`` a case is in."""
    parts = item.path.parts
    return parts[parts.index("testcases") + 1] if "testcases" in parts else "other"


def selection_of(item: pytest.Item) -> str:
    """The smallest selection a case is in; ``full`` when it says nothing."""
    return next((name for name in SELECTIONS if item.get_closest_marker(name)), "full")


def xen_options_of(item: pytest.Item) -> str:
    """The options of Xen a case asks for."""
    return " ".join(word for marker in item.iter_markers("xen_options") for word in marker.args)


def is_case(item: pytest.Item) -> bool:
    return "testcases" in item.path.parts


def boards_wanted(item: pytest.Item) -> int:
    """How many boards a case takes: 2 with a destination, else 1."""
    names = getattr(item, "fixturenames", ())
    return 2 if "destination" in names else 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_xtf = collection_path.parts[-2:] == ("testcases", "xtf")
    return True if is_xtf and not config.getoption("--xtf") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case for each instance of XTF."""
    if "xtf_instance" not in metafunc.fixturenames:
        return
    try:
        found = xtf.instances(Path(metafunc.config.getoption("--xtf")))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    parameters = []
    for one in found:
        selection = pytest.mark.full if one.category in xtf.BY_DEFAULT else pytest.mark.weekly
        marks = [selection, pytest.mark.needs(*one.needs)]
        parameters.append(pytest.param(one, id=f"{one.category}-{one.name}", marks=marks))
    metafunc.parametrize("xtf_instance", parameters)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = SELECTIONS.index(config.getoption("--select"))
    kept = [item for item in items if not is_case(item) or SELECTIONS.index(selection_of(item)) <= wanted]
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    kept.sort(key=xen_options_of)  # stable; those that ask for options last, and one boot for all of the same
    items[:] = kept


@dataclass
class Running:
    """What is being gathered about the case that runs now."""

    item: pytest.Item
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)
    seats: dict[str, Seat] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    outcome: BaseException | None = None
    skipped: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    crash: HypervisorCrash | None = None
    crash_time: float = 0.0  # when its line was recorded
    crash_numbers: dict[str, set[int]] = field(default_factory=dict)  # board -> records that count, seen live
    expected: frozenset[str] = frozenset()


class CaseLog:
    """The fixture ``evidence``: what a case wants to stand beside its verdict."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running, self._folder = running, folder

    def add(self, title: str, body: str, *, kind: str = "command", board: str | None = None) -> None:
        """Keep a captured fact."""
        self._running.evidence.append(Evidence(kind, title, body, time.time(), board))

    def figure(self, name: str, value: float | None) -> None:
        """Keep a number; the name ends in its unit (``downtime_s``). None: it could not be had."""
        if value is not None:
            self._running.figures[name] = float(value)

    def console(self, title: str, guest: Domain) -> None:
        """Keep what a guest has printed."""
        self.add(title, "\n".join(guest.console()), kind="console", board=guest.host.name)

    def migration(self, migration: Migration) -> None:
        """Keep what was said and what passed in a relocation, and draw its time line."""
        board = migration.source.name
        self.add("xl migrate", migration.output(), board=board)
        self.add("what passed between the hosts", migration.text(), kind="note", board=board)
        if spans := migration.spans():
            title = f"relocation of {migration.domain.name}"
            kinds = {"hand over": "warn", "state": "bad", "guest silent": "bad"}
            coloured = [(*span, kinds.get(span[0], "neutral")) for span in spans]
            self.picture(title, timeline_svg(title, coloured, migration.marks()))

    def unproved(self, why: str) -> NoReturn:
        """The case's precondition could not be established: verdict MISS.

        :raises NotProved: always.
        """
        raise NotProved(f"not proved: {why}")

    def picture(self, title: str, svg: str) -> None:
        """Keep a drawing."""
        path = self._folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', title)}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg, encoding="utf-8")
        self._running.pictures[title] = str(path)


class Bench:
    """The session's boards; made when the first case asks for one."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._session: Any = None
        self._rig: Rig | None = None
        self.running: Running | None = None
        self._armed = False
        self._failure: BenchError | None = None
        try:
            self.lab = inventory.load(Path(config.getoption("--inventory")))
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        names = [name for name in config.getoption("--boards").split(",") if name] or list(self.lab.boards)
        for name in names:
            if name not in self.lab.boards:
                raise pytest.UsageError(f"unknown board {name}; the lab has: {', '.join(self.lab.boards)}")
        self.names = names
        self.folder = self._open_folder()
        signal.signal(CRASH_SIGNAL, self._on_crash_signal)

    def _open_folder(self) -> RunFolder:
        if where := self.config.getoption("--run-folder"):
            return RunFolder.open(Path(where))
        header = RunHeader(
            run_id=time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{os.getpid():x}",
            started=time.time(),
            selection="pytest",
            builds=(self.config.getoption("--build"),),
            boards={name: {"class": self.lab.boards[name].board_class} for name in self.names},
            planned=(),
            required_areas=(),
        )
        return RunFolder.create(paths.state() / "runs" / header.run_id, header)

    def case_directory(self, item: pytest.Item) -> Path:
        """Where what this attempt at a case leaves is kept."""
        attempt, build = self.config.getoption("--attempt"), self.config.getoption("--build")
        several = len(self.folder.header().builds) > 1
        return self.folder.case_directory(item.nodeid, attempt, build if several else "")

    @property
    def rig(self) -> Rig:
        """Acquire the boards once.

        :raises BenchError: no lab is up, or a board is somebody else's.
        :raises UsageError: unknown build.
        """
        if self._failure is not None:
            raise BenchError(f"no boards: {self._failure}")
        if self._rig is None:
            try:
                self._rig = self._take_boards()
            except BenchError as error:
                self._failure = error  # the next case need not wait for it again
                raise
        return self._rig

    def _take_boards(self) -> Rig:
        variant = variant_of(self.folder, self.config.getoption("--build"))
        self._session, rig = take(self.lab, self.names, variant, self.folder.path, self.config.getoption("--xtf"))
        for seat in rig.seats.values():
            seat.board.console.listen(self._on_console)
        return rig

    def note_health(self, result: TestResult, outcome: BaseException | None) -> None:
        """Let the ledger know what this says of the boards: a failed power command, a bench miss, or nothing bad."""
        if self._session is None:
            return
        said = f"{result.case} with {result.build}: {result.reason}"
        is_bench = result.rule in ("bench", TRANSIENT) and not isinstance(outcome, NotProved)
        named = [name for name in result.boards if result.reason.startswith(f"{name}:")]
        for name in result.boards:
            is_its = is_bench and name in (named or result.boards)
            if is_its and isinstance(outcome, PowerTimeout | BmcUnreachable | BmcRefused):
                self._session.ledger.quarantine(name, "a power command failed", said)
            verdict = f"{result.verdict} {result.case.rpartition('::')[2]}"
            self._session.ledger.note_result(name, result.build, verdict, is_bench=is_its, evidence=said)

    def why_stop(self) -> str:
        """Why this process shall begin no further case: its boards are wanted back, lost, or sick."""
        if 0.0 < self.config.getoption("--stop-at") <= time.time():
            return "the deadline"
        if number := os.environ.get(ledger.LEASE):
            return Ledger(services.directory(self.lab)).why_stop(int(number), self.names)
        return str(self._session.why_stop()) if self._session is not None else ""

    def lease_over(self) -> str:
        """Why the boards are no longer this process's, or nothing."""
        if self._session is None:
            return ""
        lease = self._session.ledger.lease(self._session.lease.id)
        return "" if lease.state == "held" else f"lease {lease.id} is over: {lease.why_ended}"

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
        signature = classify(line.text)
        if signature is None or signature.kind != "crash" or signature.name in running.expected:
            return
        strategy = running.seats[line.board].board.strategy
        if not strategy.is_under_test or line.n < strategy.since:
            return  # what the known-good build does is no matter of the case
        running.crash_numbers.setdefault(line.board, set()).add(line.n)
        running.crash_time = line.time
        running.crash = HypervisorCrash(line.board, signature.name, (line.text,))
        if self._armed:
            os.kill(os.getpid(), CRASH_SIGNAL)  # delivered to the main thread, wherever it waits

    def _on_crash_signal(self, number: int, frame: FrameType | None) -> None:
        if self._armed and self.running and self.running.crash and not _is_interrupted():
            self._armed = False
            self.running.figures["crash_to_end_s"] = time.time() - self.running.crash_time
            raise self.running.crash

    def arm(self) -> None:
        """From now on a crash on a console raises in the main thread."""
        self._armed = True
        if self.running and self.running.crash:
            self._armed = False
            raise self.running.crash

    def disarm(self) -> None:
        self._armed = False

    # -- what a case is given -----------------------------------------------------------------------------------

    def seat(self, name: str) -> Seat:
        """The board, ready, for the running case."""
        assert self.running is not None
        rig = self.rig
        self.running.marks.setdefault(name, rig.seats[name].board.console.mark())
        self.running.seats[name] = rig.seats[name]
        self.arm()
        seat = rig.seats[name]
        options = xen_options_of(self.running.item)
        if not (options and seat.capabilities):  # what a board can do is asked without them
            rig.ready(name)
        seat.host.keep, seat.host.phase = lambda title, body: self._keep(name, title, body), rig.phase
        for marker in self.running.item.iter_markers("needs"):
            for capability in marker.args:
                if capability not in seat.capabilities:
                    raise MissingCapability(name, capability, is_declared=capability in seat.host.lacking)
        return rig.ready(name, options) if options else seat

    def _keep(self, name: str, title: str, body: str) -> None:
        if self.running is not None:
            self.running.evidence.append(Evidence("console", title, body, time.time(), name))

    def pair(self) -> tuple[Seat, Seat]:
        """Two boards joined by a link, both ready."""
        for first, second in self.lab.pairs():
            if first.name in self.names and second.name in self.names:
                return self.seat(first.name), self.seat(second.name)
        raise MissingCapability(",".join(self.names), "migration-pair")


BENCH = pytest.StashKey[Bench]()


def bench_of(config: pytest.Config) -> Bench:
    if BENCH not in config.stash:
        config.stash[BENCH] = Bench(config)
    return config.stash[BENCH]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    if not is_case(item):
        return (yield)
    bench = bench_of(item.config)
    if why := bench.why_stop():
        pytest.exit(why, returncode=pytest.ExitCode.INTERRUPTED)  # no result: it can run elsewhere, or later
    running = bench.running = Running(item)
    bench.folder.note_now(bench.names, item.nodeid)
    running.expected = frozenset(name for marker in item.iter_markers("expects_crash") for name in marker.args)
    try:
        result = yield
    finally:
        bench.disarm()
    _conclude(bench, running)
    bench.running = None
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if is_case(item) and item.config.stash.get(BENCH, None):
        running = bench_of(item.config).running
        if running and call.excinfo is not None and running.outcome is None:
            if isinstance(call.excinfo.value, pytest.skip.Exception):
                running.skipped = str(call.excinfo.value) or "skipped"
            else:
                running.outcome = call.excinfo.value
                if not isinstance(call.excinfo.value, LabError):
                    running.evidence.append(Evidence("exception", call.when, str(report.longrepr)[-6000:], time.time()))
        if call.when == "call":
            bench_of(item.config).disarm()
    return report


def _conclude(bench: Bench, running: Running) -> None:
    """Verdict, record and clean-up of one case."""
    item = running.item
    consoles: dict[str, str] = {}
    slices: dict[str, list[ConsoleLine]] = {}
    folder = bench.case_directory(item)
    for name, mark in running.marks.items():
        if running.crash:
            running.seats[name].board.console.quiet()  # the rest of the dump
        slices[name] = running.seats[name].board.console.lines(mark)
        consoles[name] = bench.folder.write_console(folder, name, slices[name])
    rig = bench._rig
    crashes = {name: _crash(running, name, lines) for name, lines in slices.items()}
    seen = {
        name: {found.name for line in lines if (found := classify(line.text)) and found.kind == "crash"}
        for name, lines in slices.items()
    }
    leaks: list[str] = []
    if rig is not None:
        for name in running.seats:
            crashed = crashes[name] is not None or bool(seen[name] & running.expected - SURVIVED)
            after = rig.after(name, crashed=crashed)
            running.evidence += after.evidence
            leaks += after.leaks
        running.evidence[:0] = rig.take_evidence()
    build = bench.config.getoption("--build")
    guest_crash = _guest_crash(running, slices)
    observation = verdicts.Observation(
        symbols=rig.build.symbols if rig else None,
        outcome=running.outcome,
        skipped=running.skipped,
        lease_over=bench.lease_over(),
        leaks=tuple(leaks),
        guest_crash=guest_crash,
        crashed_before=bool(guest_crash)
        and any(
            one.case == item.nodeid and one.build == build and one.rule == NESTED_GUEST_CRASH
            for one in bench.folder.results()
        ),
        crashes=tuple(crash for crash in crashes.values() if crash),
        expected_crashes=running.expected,
        seen_crashes=frozenset().union(*seen.values()),
        console_gaps=tuple(
            f"{name}: {line.text}" for name, lines in slices.items() for line in lines if line.kind == "gap"
        ),
    )
    decision = verdicts.decide(observation)
    result = TestResult(
        case=item.nodeid,
        area=area_of(item),
        verdict=decision.verdict,
        rule=decision.rule,
        reason=decision.reason,
        started=running.started,
        seconds=time.monotonic() - running.clock,
        boards=tuple(running.seats),
        build=build,
        attempt=bench.config.getoption("--attempt"),
        doc=(getattr(item, "obj", None).__doc__ or "").strip(),
        phases=rig.take_phases() if rig else (),
        evidence=tuple(running.evidence) + tuple(decision.evidence),
        figures=running.figures,
        consoles=consoles,
        pictures={title: os.path.relpath(path, bench.folder.path) for title, path in running.pictures.items()},
        fingerprint=decision.fingerprint,
    )
    bench.folder.append(result)
    bench.note_health(result, running.outcome)


def _is_interrupted() -> bool:
    """Whether this thread is on its way out of a case for an interrupt: what breaks then is no matter of the case."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _guest_crash(running: Running, slices: Mapping[str, list[ConsoleLine]]) -> str:
    """Of a guest that died where emulation lies in emulation: the one thing for which the bench is blamed first."""
    if not running.seats or any(seat.board.spec.tags.get("emulation") != "nested" for seat in running.seats.values()):
        return ""
    return verdicts.guest_crash(running.evidence, (line.text for lines in slices.values() for line in lines))


def _crash(running: Running, name: str, lines: list[ConsoleLine]) -> HypervisorCrash | None:
    """The first crash of the build under test in a case's slice of a console, with what it printed."""
    strategy = running.seats[name].board.strategy
    live = running.crash_numbers.get(name, set())
    for index, line in enumerate(lines):
        if line.n not in live and not (strategy.is_under_test and line.n >= strategy.since):
            continue
        signature = classify(line.text)
        if signature and signature.kind == "crash" and signature.name not in running.expected:
            return HypervisorCrash(line.board, signature.name, crash_excerpt(lines, index))
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    if bench := session.config.stash.get(BENCH, None):
        bench.close()


# -- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The boards of this process. For the plugin's own fixtures."""
    return bench_of(request.config)


@pytest.fixture
def evidence(request: pytest.FixtureRequest, bench: Bench) -> CaseLog:
    """Where a case puts what it captured: ``evidence.add(title, body)``, ``evidence.figure(name, value)``."""
    assert bench.running is not None
    folder = bench.case_directory(request.node)
    return CaseLog(bench.running, folder)


@pytest.fixture
def host(bench: Bench) -> Host:
    """dom0 of one board that runs the build under test."""
    return bench.seat(bench.names[0]).host


@pytest.fixture
def hosts(bench: Bench) -> tuple[Host, Host]:
    """Both ends of a migration pair, in name order."""
    first, second = bench.pair()
    return first.host, second.host


@pytest.fixture
def source(hosts: tuple[Host, Host]) -> Host:
    """Where a relocation starts."""
    return hosts[0]


@pytest.fixture
def destination(hosts: tuple[Host, Host]) -> Host:
    """Where it goes."""
    return hosts[1]


@pytest.fixture
def build(bench: Bench) -> builds.Build:
    """The hypervisor build under test."""
    return bench.rig.build
