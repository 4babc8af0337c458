"""pytest plugin: boards, verdicts and records for the cases under ``testcases/``.

One process drives one set of boards. A case asks for boards by its fixtures (``host``; ``source`` and ``destination``
for a pair) and for capabilities by ``@pytest.mark.needs("pv32", ...)``. When a case ends, :mod:`lab.case.conclude`
judges it by the rules of :mod:`lab.results.verdicts` and appends the result to the run folder.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Protocol

import pytest

from lab import builds
from lab.base import paths
from lab.base.errors import CaseTimeout, LabError, UsageError
from lab.case import mutating
from lab.case.bench import Bench
from lab.case.conclude import conclude
from lab.case.evidence import CaseLog, Running
from lab.case.markers import (
    MARKERS,
    SELECTIONS,
    expected_crashes_of,
    is_case,
    selection_of,
    wrong_needs,
    xen_options_of,
)
from lab.leases.queue import CASE_LIMIT
from lab.results.record import Evidence
from lab.xen import xtf
from lab.xen.host import Host

BENCH = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xenlab", "the lab's boards")
    group.addoption("--inventory", default=str(paths.INVENTORY / "virtual.yaml"), help="inventory file")
    group.addoption("--boards", default="", help="board names, comma separated; default: all of the inventory")
    group.addoption("--run-folder", default="", help="run folder to append to; default: a new one")
    group.addoption("--build", default="pv32-debug", help="hypervisor build under test")
    group.addoption("--select", default="weekly", choices=SELECTIONS, help="how much: cases up to this selection")
    group.addoption("--xtf", default="", help="directory of built XTF tests; without it there are no cases of XTF")
    group.addoption(
        "--stop-at", type=float, default=0.0, help="begin no case after this time, seconds of CLOCK_BOOTTIME"
    )
    group.addoption("--coverage", action="store_true", help="count what each case executes; the build must be able to")
    group.addoption("--mutation", default="", help="plan of mutants to try, in the folder of their build's score")
    group.addoption("--sound", default="", help="build ids, comma separated, from which boards may be deployed")
    group.addoption("--boot-first", action="store_true", help="boot each board before its first case")
    group.addoption("--attempt", type=int, default=1, help="number of this attempt at the cases")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_xtf = collection_path.parts[-2:] == ("testcases", "xtf")
    return True if is_xtf and not config.getoption("--xtf") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one case for each XTF instance."""
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


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every case has a time limit."""
    if is_case(item) and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(CASE_LIMIT, func_only=True))


class TimeoutSettings(Protocol):
    """What is used of ``pytest_timeout.Settings``, which comes without types."""

    timeout: float


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: TimeoutSettings) -> Generator[None, object, object]:
    """Have pytest-timeout raise :class:`CaseTimeout` in a case; its own exception is that of ``pytest.fail``."""
    result = yield
    on_alarm = signal.getsignal(signal.SIGALRM)
    if not is_case(item) or not callable(on_alarm):
        return result

    def end_case(number: int, frame: FrameType | None) -> None:
        try:
            on_alarm(number, frame)
        except pytest.fail.Exception as error:
            raise CaseTimeout(settings.timeout) from error

    signal.signal(signal.SIGALRM, end_case)
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop cases that are not selected, and put those that need a boot of their own last.

    :raises pytest.UsageError: a case needs a capability that does not exist: it would be skipped on every board.
    """
    if wrong := [said for item in items if is_case(item) for said in wrong_needs(item)]:
        raise pytest.UsageError(*dict.fromkeys(wrong))
    wanted = SELECTIONS.index(config.getoption("--select"))
    kept = [item for item in items if not is_case(item) or SELECTIONS.index(selection_of(item)) <= wanted]
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    kept.sort(
        key=xen_options_of
    )  # stable: cases without options come first, and cases with the same options share a boot
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With ``--mutation``, the cases run as its plan says, and not in turn."""
    plan = session.config.getoption("--mutation")
    if not plan or session.testsfailed:  # a case that cannot be collected
        return None
    mutating.Loop(session, bench_of(session.config), Path(plan)).run()
    return True


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
        pytest.exit(why, returncode=pytest.ExitCode.INTERRUPTED)  # no result, so that the case runs elsewhere or later
    running = bench.running = Running(item, expected=expected_crashes_of(item))
    bench.folder.note_now(bench.names, item.nodeid)
    try:
        result = yield
    finally:
        bench.disarm()
    conclude(bench, running)
    bench.running = None
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if is_case(item) and item.config.stash.get(BENCH, None):
        bench = bench_of(item.config)
        if bench.running and call.excinfo is not None:
            _note_outcome(bench.running, call.excinfo.value, call.when, str(report.longrepr))
        if call.when == "call":
            bench.disarm()
    return report


def _note_outcome(running: Running, raised: BaseException, when: str, traceback: str) -> None:
    """Keep the first thing that a case raised, in its set-up, its body or its tear-down."""
    if running.outcome is not None:
        return
    if isinstance(raised, pytest.skip.Exception):
        running.skipped = str(raised) or "skipped"
        return
    running.outcome = raised
    if not isinstance(raised, LabError) or isinstance(raised, CaseTimeout):  # the message of any other says it all
        running.evidence.append(Evidence("exception", when, traceback[-6000:], time.time()))


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
    """Where a case keeps what it captured: ``evidence.add(title, body)``, ``evidence.figure(name, value)``."""
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
    """The host on which a migration starts."""
    return hosts[0]


@pytest.fixture
def destination(hosts: tuple[Host, Host]) -> Host:
    """The host to which it goes."""
    return hosts[1]


@pytest.fixture
def build(bench: Bench) -> builds.Build:
    """The hypervisor build under test."""
    return bench.rig.build
