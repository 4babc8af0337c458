"""The end of a case: what its consoles show, what it left on its boards, the verdict, and the record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lab.base.errors import HypervisorCrash, SilentConsole
from lab.case.bench import Bench
from lab.case.evidence import Running
from lab.case.markers import area_of
from lab.case.seat import After
from lab.console import recalled, untold
from lab.console.client import ConsoleLine
from lab.console.patterns import classify, crash_excerpt
from lab.results import verdicts
from lab.results.observation import StealTime
from lab.results.record import COVERAGE, HOST_LOST, NESTED_GUEST_CRASH, Evidence, TestResult

XEN_BANNER = "xen-banner"  # a signature: the hypervisor's first line
SURVIVED = frozenset({"iommu-fault"})  # a board runs on unharmed after these crashes, when a case declares them


@dataclass(frozen=True, slots=True)
class ConsoleSlice:
    """What one board's console showed while the case ran."""

    board: str
    lines: tuple[ConsoleLine, ...]
    crash: HypervisorCrash | None  # the first one that the case did not declare
    signatures: frozenset[str]  # of all crashes, declared or not

    @property
    def gaps(self) -> tuple[str, ...]:
        """The times when the recorder had lost the console: "virt1: 3.2 s"."""
        return tuple(f"{self.board}: {line.text}" for line in self.lines if line.kind == "gap")


def conclude(bench: Bench, running: Running) -> None:
    """Judge a case that has ended, clean its boards up, and append its record to the run folder."""
    steal = {name: took for name in running.seats if (took := running.look_at_steal(name))}
    slices = [_read_console(running, name) for name in running.marks]
    folder = bench.case_directory(running.item)
    consoles = {one.board: bench.folder.write_console(folder, one.board, one.lines) for one in slices}
    running.evidence += _old_news(running, slices)
    _count(bench, running, slices)
    _switch_off(bench, running, slices)
    found = _clean_up(bench, running, slices)
    decision = verdicts.decide(_observe(bench, running, slices, found, steal))
    result = _record(bench, running, decision, consoles)
    bench.folder.append(result)
    if not bench.switch.number:  # what a mutant did says nothing of the bench
        bench.note_health(result, decision)


def _count(bench: Bench, running: Running, slices: Sequence[ConsoleSlice]) -> None:
    """Read what the case executed, before its boards are cleaned up."""
    rig = bench.acquired_rig
    if not bench.is_counting or rig is None:
        return
    crashed = _crashed(running, slices)
    with rig.phase(COVERAGE):
        for name, seat in running.seats.items():
            running.counted.end(seat.host, bench.case_directory(running.item), crashed=name in crashed)
    for board, why in running.counted.not_read.items():
        title = f"{board}: what the case executed is not known"
        running.evidence.append(Evidence("note", title, why, time.time(), board))


def _switch_off(bench: Bench, running: Running, slices: Sequence[ConsoleSlice]) -> None:
    """Switch the mutant off, if one was on; a board on which that fails is not trusted."""
    crashed = _crashed(running, slices)
    for name, seat in running.seats.items():
        if why := bench.switch.end(seat.host, crashed=name in crashed):
            seat.suspect = why
            running.evidence.append(Evidence("note", f"{name}: {why}", why, time.time(), name))


def _crashed(running: Running, slices: Sequence[ConsoleSlice]) -> set[str]:
    """The boards that do not run on after what their consoles show."""
    return {one.board for one in slices if one.crash or one.signatures & running.expected - SURVIVED}


def _reset(running: Running, slices: Sequence[ConsoleSlice]) -> Iterator[str]:
    """The boards that the case lost, and whose console shows a boot that the lab did not ask for."""
    if not isinstance(running.outcome, verdicts.TRANSIENT_KINDS):
        return
    for one in slices:
        since = running.seats[one.board].board.strategy.since  # where the last boot began that was asked for
        found = (classify(line.text) for line in one.lines if line.n >= since)
        boots = sum(signature is not None and signature.name == XEN_BANNER for signature in found)
        if boots > (since >= running.marks[one.board]):
            yield one.board


def _read_console(running: Running, name: str) -> ConsoleSlice:
    console = running.seats[name].board.console
    if running.crash:
        console.quiet()  # the rest of the dump
    lines = console.lines(running.marks[name])
    signatures = frozenset(signature.name for _, signature in recalled.crashes(lines))
    return ConsoleSlice(name, tuple(lines), _crash(running, name, lines), signatures)


def _crash(running: Running, name: str, lines: Sequence[ConsoleLine]) -> HypervisorCrash | None:
    """The first crash of the build under test in a case's slice of a console, with what it printed."""
    strategy = running.seats[name].board.strategy
    live = running.crash_numbers.get(name, set())
    for index, signature in recalled.crashes(lines):
        line = lines[index]
        if line.n not in live and not (strategy.is_under_test and line.n >= strategy.since):
            continue
        if signature.name in running.expected:
            continue
        if line.n in live or not strategy.is_old_news(signature.name, line.text):
            return HypervisorCrash(line.board, signature.name, crash_excerpt(lines, index))
    own = [line for line in lines if strategy.is_under_test and line.n >= strategy.since]
    if own and not running.expected and (found := untold.crash(own)):
        return HypervisorCrash(own[0].board, *found)
    return None


def _old_news(running: Running, slices: Sequence[ConsoleSlice]) -> Iterator[Evidence]:
    """The IOMMU faults that do not count, since the board has them with its known-good build, too."""
    for one in slices:
        if told := running.seats[one.board].board.strategy.faults.told(line.text for line in one.lines):
            title = "IOMMU faults that this board has with its known-good build, too"
            yield Evidence("note", title, told, time.time(), one.board)


def _clean_up(bench: Bench, running: Running, slices: Sequence[ConsoleSlice]) -> list[After]:
    """Bring the boards back to what they were before the case. Returns what was found on them."""
    rig = bench.acquired_rig
    if rig is None:
        return []
    crashed, reset = _crashed(running, slices), set(_reset(running, slices))
    found = list[After]()
    for name in running.seats:
        is_mute = isinstance(running.outcome, SilentConsole) and running.outcome.board == name
        is_mutant = bool(bench.switch.number)
        after = rig.after(name, crashed=name in crashed, was_reset=name in reset, is_mute=is_mute, is_mutant=is_mutant)
        running.evidence += after.evidence
        if (name in crashed or after.loss) and not is_mutant:  # what a mutant does says nothing of the state
            rig.distrust(name)
        found.append(after)
    running.evidence[:0] = rig.take_evidence()
    return found


def _observe(
    bench: Bench,
    running: Running,
    slices: Sequence[ConsoleSlice],
    found: Sequence[After],
    steal: Mapping[str, StealTime],
) -> verdicts.Observation:
    losses = tuple(one.loss for one in found if one.loss)
    guest_crash = _guest_crash(running, slices)
    return verdicts.Observation(
        symbols=bench.acquired_rig.build.symbols if bench.acquired_rig else None,
        outcome=running.outcome,
        skipped=running.skipped,
        lease_over=bench.lease_over(),
        leaks=tuple(leak for one in found for leak in one.leaks),
        slowings=tuple(one.slowing for one in found if one.slowing),
        guest_crash=guest_crash,
        losses=losses,
        lost_before=bool(losses) and _ended_before(bench, running, HOST_LOST),
        crashed_before=guest_crash is not None and _ended_before(bench, running, NESTED_GUEST_CRASH),
        crashes=tuple(one.crash for one in slices if one.crash),
        expected_crashes=running.expected,
        seen_crashes=frozenset[str]().union(*(one.signatures for one in slices)),
        console_gaps=tuple(gap for one in slices for gap in one.gaps),
        steal=steal,
    )


def _guest_crash(running: Running, slices: Sequence[ConsoleSlice]) -> str | None:
    """How a guest died on nested emulation, if that is so. Such a death is blamed on the bench first."""
    if not running.seats or any(seat.board.spec.tags.get("emulation") != "nested" for seat in running.seats.values()):
        return None
    return verdicts.guest_crash(running.guests, (line.text for one in slices for line in one.lines))


def _ended_before(bench: Bench, running: Running, rule: str) -> bool:
    """Whether this rule decided an earlier attempt at the case in this run."""
    return any(
        one.case == running.item.nodeid and one.build == bench.variant.name and one.rule == rule
        for one in bench.folder.results()
    )


def _record(bench: Bench, running: Running, decision: verdicts.Decision, consoles: Mapping[str, str]) -> TestResult:
    return TestResult(
        case=running.item.nodeid,
        area=area_of(running.item),
        verdict=decision.verdict,
        rule=decision.rule,
        reason=decision.reason,
        started=running.started,
        seconds=time.monotonic() - running.clock,
        boards=tuple(running.seats),
        build=bench.variant.name,
        attempt=bench.config.getoption("--attempt"),
        doc=(getattr(running.item, "obj", None).__doc__ or "").strip(),
        phases=(*running.phases, *(bench.acquired_rig.take_phases() if bench.acquired_rig else ())),
        evidence=(*running.evidence, *decision.evidence),
        checks=tuple(running.checks),
        figures=running.figures,
        consoles=consoles,
        pictures={title: os.path.relpath(path, bench.folder.path) for title, path in running.pictures.items()},
        counters={board: os.path.relpath(path, bench.folder.path) for board, path in running.counted.files.items()},
        not_read=running.counted.not_read,
        fingerprint=decision.fingerprint,
        proved=bench.acquired_rig.take_proved() if bench.acquired_rig else (),
        restored=bench.acquired_rig.take_restored() if bench.acquired_rig else (),
    )
