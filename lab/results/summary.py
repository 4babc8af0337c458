"""What came of a run, read once: every report, the history and the exit status say the same of it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lab.results.build_source import Source
from lab.results.failures import known_findings
from lab.results.record import HOST_LOST, NESTED_GUEST_CRASH, RunHeader, TestResult, Verdict

DID_NOT_RUN = "did-not-run"  # rule of the MISS that stands for a planned case without a result
INTERRUPTED = 130  # exit status

STATUS_MEANING = {
    0: "all that was asked for passed",
    1: "a case ended with FAIL or ERROR",
    2: "wrong use: an option, the inventory or a recipe",
    3: "the bench failed, or not all that was asked for ran",
    INTERRUPTED: "the run was interrupted",
}


class State(enum.StrEnum):
    """How far a run came. Only a COMPLETE run can be good."""

    COMPLETE = "complete"
    RUNNING = "still running"
    BROKE_OFF = "broke off"  # nobody noted its end, and nobody writes to it
    INTERRUPTED = "interrupted"
    INCOMPLETE = "incomplete"  # it ended, and planned cases have no result


@dataclass(frozen=True, slots=True)
class Missing:
    """A planned case without a result for a build."""

    case: str
    build: str


@dataclass(frozen=True, slots=True)
class Excused:
    """Cases that passed only because these findings are known, with each of these builds."""

    findings: tuple[str, ...]
    builds: tuple[str, ...]
    cases: Sequence[str]


@dataclass(frozen=True)
class RunSummary:
    """A run as its folder had it when it was read."""

    path: Path
    header: RunHeader
    builds: Mapping[str, Mapping[str, str]]  # what is known of each build
    sources: Mapping[str, Source]
    everything: tuple[TestResult, ...]  # every attempt, in the order written
    is_held: bool = False  # somebody has the folder open for writing
    unread: tuple[str, ...] = ()  # lines of the record that are no result, and why

    @cached_property
    def attempts(self) -> Mapping[tuple[str, str], list[TestResult]]:
        """All attempts at each case and build."""
        return by_case(self.everything)

    @cached_property
    def results(self) -> tuple[TestResult, ...]:
        """The deciding attempt for each case and build, in the order of the plan."""
        return tuple(final(self.header, self.everything))

    @cached_property
    def missing(self) -> tuple[Missing, ...]:
        """What was planned and has no result."""
        return tuple(missing(self.header, self.everything))

    @cached_property
    def shortfalls(self) -> tuple[str, ...]:
        """Why the run is not good beside its FAIL and ERROR."""
        return tuple(shortfalls(self.header, self.results))

    @cached_property
    def status(self) -> int:
        """The noted exit status; what it would be now if none is noted, or a 0 whose results cannot all be read."""
        noted = self.header.exit_status
        if noted is None or (noted == 0 and self.unread):
            return exit_status(self.header, self.results)
        return noted

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of the header, and that results cannot be read: a case whose result that is seems not to have run."""
        if not self.unread:
            return self.header.remarks
        many = f"{len(self.unread)} records of results.jsonl" if len(self.unread) > 1 else "a record of results.jsonl"
        hint = "another version of xenlab may have written it"
        return (*self.header.remarks, f"{many} cannot be read ({hint}): {self.unread[0]}")

    @property
    def meaning(self) -> str:
        """What the exit status says."""
        return STATUS_MEANING.get(self.status, "ended abnormally")

    @cached_property
    def state(self) -> State:
        """How far the run came."""
        if self.header.finished is None:
            return State.RUNNING if self.is_held else State.BROKE_OFF
        if self.status == INTERRUPTED:
            return State.INTERRUPTED
        return State.INCOMPLETE if self.missing else State.COMPLETE

    @property
    def overall(self) -> Verdict:
        """The run in one verdict: the gravest; MISS where the run is not complete or not good."""
        gravest = max((result.verdict for result in self.results), key=lambda v: v.severity, default=Verdict.MISS)
        is_good = self.state is State.COMPLETE and self.status == 0 and not self.shortfalls
        return gravest if is_good or gravest.severity > Verdict.MISS.severity else Verdict.MISS

    @property
    def progress(self) -> str | None:
        """How far an incomplete run came: ``still running: 22 of 23 planned cases have a result``."""
        if self.state is State.COMPLETE:
            return None
        wanted = len(dict.fromkeys((case, build) for case in self.header.planned for build in self.header.builds))
        verb = "has" if wanted == 1 else "have"
        cases = "case" if wanted == 1 else "cases"
        return f"{self.state}: {wanted - len(self.missing)} of {wanted} planned {cases} {verb} a result"

    @cached_property
    def counts(self) -> Counter[Verdict]:
        """Cases by verdict. A planned case without a result is a MISS."""
        counts = Counter(result.verdict for result in self.results)
        counts[Verdict.MISS] += len(self.missing)
        return counts

    def counted(self) -> str:
        """``1 FAIL, 7 MISS (4 did not run), 12 PASS (2 with a known bug)``"""
        besides = {}
        if self.missing:
            besides[Verdict.MISS] = f" ({len(self.missing)} did not run)"
        if count := sum(map(bool, self.known.values())):
            besides[Verdict.PASS] = f" ({count} with a known bug)"
        parts = [f"{self.counts[one]} {one}{besides.get(one, '')}" for one in Verdict if self.counts[one]]
        return ", ".join(parts) or "no results"

    @cached_property
    def known(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """For each case and build that passed only because findings are known: their names."""
        named = {(one.case, one.build): tuple(f.name for f in known_findings(one)) for one in self.results}
        return {key: names for key, names in named.items() if names}

    @cached_property
    def excused(self) -> Sequence[Excused]:
        """What :attr:`known` says, with all cases that the same findings excuse in the same builds at one place."""
        builds: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (case, build), names in self.known.items():
            builds.setdefault((case, names), []).append(build)
        cases: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for (case, names), of_case in builds.items():
            cases.setdefault((names, tuple(of_case)), []).append(case)
        return [Excused(names, of_builds, found) for (names, of_builds), found in cases.items()]

    @cached_property
    def areas(self) -> Mapping[str, Counter[Verdict]]:
        """Cases with a result by area and verdict, the areas that must have a PASS first."""
        areas: dict[str, Counter[Verdict]] = {area: Counter() for area in self.header.required_areas}
        for result in self.results:
            areas.setdefault(result.area, Counter())[result.verdict] += 1
        return areas

    @property
    def has_several_builds(self) -> bool:
        return len({*self.header.builds, *(result.build for result in self.results)}) > 1

    @property
    def seconds(self) -> float | None:
        """How long the run took; None before its end."""
        return None if self.header.finished is None else self.header.finished - self.header.started


def did_not_run(header: RunHeader, one: Missing) -> TestResult:
    """The MISS that stands for a planned case without a result."""
    reason = "planned, and has no result"
    return TestResult(one.case, "", Verdict.MISS, DID_NOT_RUN, reason, header.started, 0.0, build=one.build)


def by_case(results: Iterable[TestResult]) -> dict[tuple[str, str], list[TestResult]]:
    """The attempts at each case and build, in their order."""
    attempts: dict[tuple[str, str], list[TestResult]] = {}
    for result in results:
        attempts.setdefault((result.case, result.build), []).append(result)
    return attempts


def final(header: RunHeader, results: Iterable[TestResult]) -> list[TestResult]:
    """The deciding ones of ``results`` for each case and build, in the order of the plan: see :func:`deciding`."""
    last = {key: deciding(tried) for key, tried in by_case(results).items()}
    cases = {case: index for index, case in enumerate(header.planned)}
    builds = {build: index for index, build in enumerate(header.builds)}
    seen = {key: index for index, key in enumerate(last)}

    def place(key: tuple[str, str]) -> tuple[int, int, int]:
        case, build = key
        return cases.get(case, len(cases)), builds.get(build, len(builds)), seen[key]

    return [last[key] for key in sorted(last, key=place)]


def deciding(attempts: Sequence[TestResult]) -> TestResult:
    """The attempt at a case that decides: the last FAIL; else a guest crash or a silence in doubt; else the last.

    So nothing that failed passes by being tried again.
    """

    def weight(one: TestResult) -> tuple[bool, bool, int]:
        return one.verdict is Verdict.FAIL, one.rule in (NESTED_GUEST_CRASH, HOST_LOST), one.attempt

    return max(reversed(attempts), key=weight)


def is_flaky(attempts: Sequence[TestResult]) -> bool:
    """Whether a case passes now, but did not pass at each attempt."""
    return deciding(attempts).verdict is Verdict.PASS and any(one.verdict is not Verdict.PASS for one in attempts)


def missing(header: RunHeader, results: Iterable[TestResult]) -> list[Missing]:
    """Planned cases and builds of which ``results`` has none."""
    there = {(result.case, result.build) for result in results}
    wanted = ((case, build) for case in header.planned for build in header.builds)
    return [Missing(case, build) for case, build in dict.fromkeys(wanted) if (case, build) not in there]


def due(header: RunHeader, results: Iterable[TestResult]) -> list[Missing]:
    """Attempts that were asked for and have no result yet: a case and build once for each such attempt."""
    there = by_case(results)
    wanted = dict.fromkeys((case, build) for case in header.planned for build in header.builds)
    return [Missing(*key) for key in wanted for _ in range(header.repeat - len(there.get(key, ())))]


def short_of_repeats(header: RunHeader, results: Iterable[TestResult]) -> list[str]:
    """Why a run that was to repeat its cases is not good: attempts that did not run, cases that did not always PASS."""
    if header.repeat == 1:
        return []
    short, results = [], list(results)
    if count := len(due(header, results)):
        short.append(f"{count} of the attempts that were asked for did not run")
    if count := sum(map(is_flaky, by_case(results).values())):
        short.append(f"did not PASS each time: {count} cases")
    return short


def shortfalls(header: RunHeader, results: Sequence[TestResult]) -> list[str]:
    """Why a run without FAIL and ERROR is not good; empty when it is good."""
    results = final(header, results)
    short = []
    if count := sum(result.verdict is Verdict.MISS for result in results):
        short.append(f"{count} MISS")
    if gone := missing(header, results):
        short.append(f"planned cases without a result: {len(gone)}")
    passed = {result.area for result in results if result.verdict is Verdict.PASS}
    if not passed:
        short.append("nothing passed" if results else "nothing ran")
    short += [f"no PASS in area {area}" for area in header.required_areas if area not in passed]
    return short


def exit_status(header: RunHeader, results: Sequence[TestResult]) -> int:
    """1 for any FAIL or ERROR; else 3 for what :func:`shortfalls` names; else 0."""
    results = final(header, results)
    if any(result.verdict in (Verdict.FAIL, Verdict.ERROR) for result in results):
        return 1
    return 3 if shortfalls(header, results) else 0
