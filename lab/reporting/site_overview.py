"""The words of the overview: how the newest builds stand, and what is to be believed of a fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.base.errors import UsageError
from lab.history import dearer, gate
from lab.history.gate import Comparison
from lab.history.news import FailingCase, Fault, News, never_passed
from lab.history.records import Run, Tally
from lab.history.regression import Change
from lab.history.store import History
from lab.reporting.words import some_of
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder
from lab.results.summary import INTERRUPTED

# The groups behind what got worse: what became of cases, and what to make of it.
GROUPS = (
    (
        "Known bugs",
        "a known bug fails these cases; it is excused for the baseline's release, and not for this one",
        (Change.KNOWN_FINDING,),
    ),
    ("Fails as before", "the cases failed with the baseline, too", (Change.STILL_FAILING,)),
    ("Never passed", "", (Change.NEVER_PASSED,)),  # the entries say which of the reasons
    ("Flaky", "the cases pass and fail with the same build; each says how often", (Change.FLAKY,)),
)


def meaning(said: str, faults: Iterable[Fault]) -> str:
    """What stands beside a group's title."""
    return said or never_passed(case for fault in faults for case in fault.cases).strip(" ()")


def headline(told: News) -> tuple[str, str]:
    """The first line of the overview, and its colour."""
    failed = sum(found.failed for found in told.comparisons)
    blocking = [dearer.counted(len(told.dearer))] if told.dearer else []
    if worse := told.worse:
        cases = told.new_failures
        faults = "all with one fault" if len(worse) == 1 and cases > 1 else "with one fault"
        faults = faults if len(worse) == 1 else f"with {len(worse)} faults"
        blocking.insert(0, f"{cases} cases fail anew, {faults}" if cases > 1 else f"1 case fails anew, {faults}")
    if blocking:
        return "; ".join(blocking), "FAIL"
    if not told.comparisons:
        return "No run yet", "MISS"
    judged = [found for found in told.comparisons if found.base]
    alone = [found for found in told.comparisons if not found.base]
    if judged and alone and not any(found.exit_status for found in judged):
        return _of_both(judged, alone), "MISS"
    words = [f"{failed} failed"] if failed else []
    words += ["no baseline yet"] if any(found.base is None for found in told.comparisons) else []
    if incomplete := [why for found in told.comparisons if (why := found.shortfall)]:
        why = re.sub(r"^run \S+ ", "the run ", incomplete[0])  # its link stands below
        words.append(f"incomplete: {why}")
    if words != [f"{failed} failed"] and words:
        text = "; ".join(words)
        return text[0].upper() + text[1:], "MISS"
    if any(found.exit_status for found in told.comparisons):
        return "Nothing to judge: no case passed or failed", "MISS"
    words = ["Nothing got worse", *_still(told.comparisons)]
    return ("; ".join(words), "MISS") if words[1:] else ("Nothing got worse; nothing fails", "PASS")


def _of_both(judged: Sequence[Comparison], alone: Sequence[Comparison]) -> str:
    """Where some builds are sound against their baselines, and others have none: each is named beside what it did."""
    names = some_of([found.new.build.line for found in judged], 2)
    words = [", ".join([f"Nothing got worse with {names}", *_still(judged)])]
    words += [f"{found.new.build.line}: {found.decided('incomplete').replace('; ', ', ')}" for found in alone[:2]]
    words += [f"{len(alone) - 2} more without a baseline"] if len(alone) > 2 else []
    return "; ".join(words)


def _still(comparisons: Sequence[Comparison]) -> list[str]:
    """What is not good of builds with which nothing got worse."""
    words = []
    if failed := sum(found.failed for found in comparisons):
        words.append(f"{failed} still fail{'s' if failed == 1 else ''}")
    if silent := sum(found.uncounted for found in comparisons):
        words.append(f"{silent} of {sum(len(found.cases) for found in comparisons)} cases were not counted")
    if undecided := sum(len(found.open_figures) for found in comparisons):
        words.append(f"{undecided} of {sum(len(found.figures) for found in comparisons)} figures say nothing")
    return words


def state(found: Comparison) -> str:
    """The colour of a build: green only if it was judged, is complete, nothing failed, and all told something."""
    if found.exit_status == 1:
        return "FAIL"
    is_silent = found.uncounted or found.open_figures
    return "PASS" if found.exit_status == 0 and not found.failed and not is_silent else "MISS"


def decision(found: Comparison) -> str:
    """The gate's decision; why a run is incomplete is told beside it."""
    said = "the run is incomplete" if found.incomplete else "too many cases say nothing"
    return found.decided(f"no verdict, {said}")


def sums(found: Comparison, told: News) -> str:
    """How many cases each change has, with the reasons of those that never passed."""
    mine = [case for fault in told.faults for case in fault.of(found.new.build)]
    counted = Change.NEVER_PASSED.counted(len(found.of(Change.NEVER_PASSED)))
    return gate.summed(found).replace(counted, counted + never_passed(mine))


def causes(found: Comparison, told: News) -> list[tuple[Fault, list[FailingCase]]]:
    """Why cases were not counted with a build, the commonest reason first."""
    mine = [(fault, cases) for fault in told.uncounted if (cases := fault.of(found.new.build))]
    return sorted(mine, key=lambda one: -len(one[1]))


def ended(run: Run) -> str:
    """By what a run was ended before it was complete, as far as its record tells; empty where it tells nothing."""
    try:
        folder = RunFolder.open(run.folder)
        why = folder.header().cut_short
    except UsageError:
        return ""
    if run.finished is None:
        if folder.is_held():
            return "is still running"
        return "has no end in its record: it was killed, or its machine stopped"
    if why is not None:
        return f"was {why}"
    return "was interrupted; its record does not say by what" if run.exit_status == INTERRUPTED else ""


def bench_says(run: Run) -> tuple[str, ...]:
    """What readers must know of the bench, as the run's record has it."""
    try:
        return RunFolder.open(run.folder).header().remarks
    except UsageError:
        return ()


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts at the cases that show a fault."""

    passes: int
    fails: int
    rules: frozenset[str]  # that decided the FAILs

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Attempts:
        passes = fails = 0
        rules = set()
        for tally in tallies:
            passes += tally.number * (tally.verdict is Verdict.PASS)
            fails += tally.number * (tally.verdict is Verdict.FAIL)
            rules |= {tally.rule} if tally.verdict is Verdict.FAIL else set()
        return cls(passes, fails, frozenset(rules))

    def __str__(self) -> str:
        """``1 failed and 79 passed``"""
        return f"{self.fails or 'none'} failed and {self.passes or 'none'} passed"


def believe(store: History, fault: Fault, comparisons: Sequence[Comparison]) -> str:
    """Whether a fault is to be believed, in sentences: where it shows, and how its cases' attempts ended."""
    many = len(fault.names)
    boards = " and ".join(sorted({board for pair in fault.boards for board in pair.split(",")}))
    classes = sorted({word for case in fault.cases for word in case.finding.series.board_class.split("+")} - {""})
    where = f" on {boards}" * bool(boards) + f" (board class {', '.join(classes)})" * bool(classes)
    told = [f"{many} case{' shows' if many == 1 else 's show'} it{where}"]
    if len(fault.changes) > 1:
        told[0] += f": {', '.join(change.counted(number) for change, number in fault.changes.items())}"
    now, before = _attempts(store, fault, comparisons)
    with_base = f"; with the baseline {before}" if before.passes + before.fails else "; none counted with the baseline"
    told.append(f"Of all attempts at {'it' if many == 1 else 'them'} with {_these(fault)} {now}{with_base}")
    if now.rules == {"console-crash"}:
        told.append(
            "The crash is in the case's own console record"
            if many == 1
            else "Each case has the crash in its own console record: none just found a host that was dead already"
        )
    if fault.seen and fault.seen.number > len(fault.cases):
        told.append(f"Seen {fault.seen.number} times in all runs")
    return "".join(f"{one}. " for one in told).rstrip()


def _these(fault: Fault) -> str:
    return "this build" if len(fault.builds) == 1 else "these builds"


def _attempts(store: History, fault: Fault, comparisons: Sequence[Comparison]) -> tuple[Attempts, Attempts]:
    """At the cases of the fault: with the builds in question, and with their baselines."""
    now: list[Tally] = []
    before: list[Tally] = []
    for found in comparisons:
        keys = {(c.finding.series.case, c.finding.series.board_class) for c in fault.of(found.new.build)}
        if not keys:
            continue
        now += _with(store.tallies(found.new), keys)
        before += _with(store.tallies(found.base), keys) if found.base else []
    return Attempts.of(now), Attempts.of(before)


def _with(tallies: Iterable[Tally], keys: set[tuple[str, str]]) -> list[Tally]:
    return [tally for tally in tallies if (tally.series.case, tally.series.board_class) in keys]


def silence(told: News, missing: int) -> str:
    """Why cases were not counted, in numbers: of those that never started the bench is not to blame."""
    places = [case.finding.place for fault in told.uncounted for case in fault.cases]
    ran = sum(place is not None and place.ordinal >= 0 for place in places)
    whys = {
        "did not run": len(places) - ran,
        "ended by a failure of the bench or of the case's own code": ran,
        "in the baseline, and not with this build": missing,
    }
    words = [f"{number} {why}" for why, number in whys.items() if number]
    return f"{', '.join(words)}: nothing is known about the hypervisor"
