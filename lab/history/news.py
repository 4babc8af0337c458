"""What is new with builds or in a run: one entry for one fault, since when it shows, and what people said of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lab.history import gate, known_issues
from lab.history.dearer import FigureChange
from lab.history.gate import CaseChange, Comparison
from lab.history.known_issues import KnownIssue, KnownIssues
from lab.history.onsets import Onset, bisect_command, onsets
from lab.history.records import RecordedBuild, Seen, Selected
from lab.history.regression import Change
from lab.history.store import History
from lab.results.failures import digits_of, shown_by, shown_label

# What a fault is called by the gravest of what became of its cases.
WORST_FIRST = (
    Change.NEW_FAILURE,
    Change.KNOWN_FINDING,
    Change.STILL_FAILING,
    Change.NEVER_PASSED,
    Change.FLAKY,
    Change.NOT_COUNTED,
)


@dataclass(frozen=True, slots=True)
class FailingCase:
    """One of the cases that show a fault, with one build."""

    build: RecordedBuild
    finding: CaseChange
    onset: Onset | None

    @property
    def bisect(self) -> str | None:
        """The command that finds the commit with which the case began to fail."""
        return bisect_command(self.finding.series.case, self.onset) if self.onset else None

    @property
    def never(self) -> str:
        """What ``never passed`` means of it: that has several reasons."""
        if self.finding.change is not Change.NEVER_PASSED or not self.onset:
            return ""
        return self.onset.never or "passed only with builds after the baseline"

    @property
    def state(self) -> str:
        """What became of the case: ``never passed (only one build was tested)``"""
        return f"{self.finding.change} ({self.never})" if self.never else str(self.finding.change)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, over all builds, boards and cases that show it. Each case has its own change."""

    name: str  # lab.results.failures.failure_key
    cases: tuple[FailingCase, ...]  # the gravest change first
    seen: Seen | None  # over the whole history
    issues: tuple[KnownIssue, ...]
    has_baseline: bool  # something was judged against a build

    @property
    def label(self) -> str:
        """What happened, in words; of what is not counted also where (:func:`lab.results.failures.shown_label`)."""
        bench = self.boards if self.change is Change.NOT_COUNTED else ()
        return shown_label(self.name, {case.finding.reason for case in self.cases}, bench)

    @property
    def boards(self) -> list[str]:
        """The boards on which it showed with these builds."""
        return sorted({board for case in self.cases for board in case.finding.boards})

    @property
    def digits(self) -> str:
        """The short name, which commands take."""
        return digits_of(self.name)

    @property
    def builds(self) -> tuple[RecordedBuild, ...]:
        """The builds in question that show it."""
        return tuple({case.build.id: case.build for case in self.cases}.values())

    def of(self, build: RecordedBuild) -> list[FailingCase]:
        """The cases that show it with this build."""
        return [case for case in self.cases if case.build.id == build.id]

    @property
    def names(self) -> tuple[str, ...]:
        """The cases, each once."""
        return tuple(dict.fromkeys(case.finding.series.case for case in self.cases))

    @property
    def where(self) -> str:
        """``40 cases``, ``1 case with 2 builds``"""
        return shown_by(self.names, self.builds, len(self.cases))

    @property
    def change(self) -> Change:
        """The gravest of what became of its cases."""
        return self.cases[0].finding.change

    @property
    def changes(self) -> Mapping[Change, int]:
        """How many cases have which change, the gravest first."""
        return Counter(case.finding.change for case in self.cases)

    @property
    def states(self) -> str:
        """What became of its cases: ``8 new failures, 4 never passed (skipped or not run until now)``."""
        return ", ".join(change.counted(number) for change, number in self.changes.items()) + never_passed(self.cases)

    @property
    def seen_before(self) -> Seen | None:
        """Where it showed first, if that was with an earlier build than the first of its cases' failing stretch."""
        onset = self.telling.onset
        return self.seen if self.seen and onset and onset.is_after(self.seen.first) else None

    @property
    def telling(self) -> FailingCase:
        """The case that shows best since when: of those with the gravest change, one with the commonest beginning."""

        def beginning(case: FailingCase) -> tuple[int, int] | None:
            return (case.onset.since.id, case.onset.good.id if case.onset.good else 0) if case.onset else None

        gravest = [case for case in self.cases if case.finding.change is self.change]
        usual = Counter(beginning(case) for case in gravest).most_common(1)[0][0]
        return next(case for case in gravest if beginning(case) == usual)


def never_passed(cases: Iterable[FailingCase]) -> str:
    """Behind ``12 never passed``: why, with numbers where there are several reasons. Empty where none never passed."""
    whys = Counter(case.never for case in cases if case.never)
    words = [f"{number} {why}" if len(whys) > 1 else why for why, number in whys.items()]
    return f" ({', '.join(words)})" if words else ""


@dataclass(frozen=True, slots=True)
class News:
    """Builds, or the builds of a run, each against its baseline."""

    comparisons: tuple[Comparison, ...] = ()
    faults: tuple[Fault, ...] = ()  # what failed, the gravest first
    uncounted: tuple[Fault, ...] = ()  # what the bench or the cases themselves made fail
    issues: KnownIssues = KnownIssues()

    @property
    def worse(self) -> list[Fault]:
        """The faults by which at least one case got worse: they block."""
        return [fault for fault in self.faults if fault.change is Change.NEW_FAILURE]

    @property
    def dearer(self) -> list[tuple[Comparison, FigureChange]]:
        """The figures that cost more: they block, too."""
        return [(found, one) for found in self.comparisons for one in found.dearer]

    @property
    def new_failures(self) -> int:
        """Cases that got worse."""
        return sum(len(found.of(Change.NEW_FAILURE)) for found in self.comparisons)


def news_of(history: History, selected: Sequence[Selected]) -> News:
    """What is new with each of these, against its baseline.

    :raises BenchError: the database fails.
    """
    comparisons = [gate.compare(history, one, gate.baseline(history, one)) for one in selected]
    issues = known_issues.read(history)
    failing = {
        found.new.build.id: onsets(history, [one.series.id for one in found.cases if one.is_failure], found.new.build)
        for found in comparisons
    }
    of_failures = _grouped(comparisons, failing, lambda one: one.is_failure)
    uncounted = _grouped(comparisons, {}, lambda one: one.change is Change.NOT_COUNTED and bool(one.failure))
    seen = history.failures([*of_failures, *uncounted])

    def faults(groups: Mapping[str, list[tuple[Comparison, FailingCase]]]) -> tuple[Fault, ...]:
        made = [
            Fault(
                name,
                cases=tuple(sorted((case for _, case in of), key=lambda one: WORST_FIRST.index(one.finding.change))),
                seen=seen.get(name),
                issues=_issues(issues, name, (case for _, case in of)),
                has_baseline=any(found.base for found, _ in of),
            )
            for name, of in groups.items()
        ]
        made.sort(key=lambda one: (WORST_FIRST.index(one.change), -len(one.cases), one.name))
        return tuple(made)

    return News(tuple(comparisons), faults(of_failures), faults(uncounted), issues)


def _grouped(
    comparisons: Iterable[Comparison], begun: Mapping[int, Mapping[int, Onset]], wanted: Callable[[CaseChange], bool]
) -> dict[str, list[tuple[Comparison, FailingCase]]]:
    """The findings that are wanted, by their failures' names."""
    groups: dict[str, list[tuple[Comparison, FailingCase]]] = defaultdict(list)
    for found in comparisons:
        of_build = begun.get(found.new.build.id, {})
        for one in found.cases:
            if wanted(one):
                groups[one.failure].append((found, FailingCase(found.new.build, one, of_build.get(one.series.id))))
    return groups


def _issues(issues: KnownIssues, name: str, cases: Iterable[FailingCase]) -> tuple[KnownIssue, ...]:
    found = [issue for case in cases for issue in issues.of(name, case.finding.series.case)]
    return tuple(dict.fromkeys(found))
