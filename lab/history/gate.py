"""A build against its baseline: what changed, whether that blocks it, and the words for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lab.base.errors import UsageError
from lab.history import dearer
from lab.history.dearer import Costs, FigureChange
from lab.history.figures import Change as CostChange
from lab.history.records import Place, RecordedBuild, Selected, Series, Tally, day, label
from lab.history.regression import Attempt, Change, Count, classify, count
from lab.history.store import History
from lab.results.record import BUILD_CASE, Verdict
from lab.results.summary import DID_NOT_RUN, INTERRUPTED

LOOK_BACK = 10  # builds asked for one whose gate passes, when none was accepted

UNCOUNTED = (Change.MISSING, Change.NOT_COUNTED, Change.SKIPPED)
LOST = 0.1  # of the cases that counted with the baseline: if more than that are not counted, it is no pass

Key = tuple[str, str]  # case and board class


@dataclass(frozen=True, slots=True)
class Tallied:
    """What was seen of a case on a class of boards, with one build or in one run."""

    tallies: tuple[Tally, ...] = ()
    count: Count = Count()


NOTHING = Tallied()


@dataclass(frozen=True, slots=True)
class CaseChange:
    """What became of a case on a class of boards."""

    series: Series
    change: Change
    why: str
    failure: str = ""  # its name, where the case failed or was not counted: lab.results.failures.failure_key
    place: Place | None = None  # the result that shows it best
    known: tuple[str, ...] = ()  # findings that excused it
    has_baseline: bool = False  # the baseline has attempts that count
    figures: str = ""  # the part of ``why`` that has the rule's figures, and the boards
    reason: str = ""  # of the result that shows it best
    boards: tuple[str, ...] = ()  # on which it failed

    @property
    def is_failure(self) -> bool:
        """Whether the case failed with the build; what was not counted did not."""
        return bool(self.failure) and self.change not in UNCOUNTED

    def line(self, word: str = "") -> str:
        """One line, that begins with ``word`` (default: the change)."""
        where = f" [{self.series.board_class}]" if self.series.board_class else ""
        return f"{word or self.change:<19}  {self.series.case}{where}: {self.why}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of each case with a build or in a run. ``base`` is None if there was nothing to judge it against."""

    new: Selected
    base: Selected | None
    cases: tuple[CaseChange, ...]
    incomplete: str | None = None  # why more results of ``new`` are still to come, or never came
    figures: tuple[FigureChange, ...] = ()  # of what both cost

    @property
    def dearer(self) -> list[FigureChange]:
        """The figures that cost more, the largest change first: they block."""
        more = [one for one in self.figures if one.change is CostChange.MORE]
        return sorted(more, key=lambda one: -one.found.change)

    @property
    def open_figures(self) -> list[FigureChange]:
        """The figures that the baseline has, and of which nothing can be said: undecided, or not measured."""
        undecided = (CostChange.UNDECIDED, CostChange.MISSING)
        return [one for one in self.figures if one.has_baseline and one.change in undecided]

    @property
    def is_blocked(self) -> bool:
        """Whether a case fails anew, or a figure costs more."""
        return bool(self.of(Change.NEW_FAILURE) or self.dearer)

    def of(self, *changes: Change) -> list[CaseChange]:
        return [one for one in self.cases if one.change in changes]

    @property
    def exit_status(self) -> int:
        """Of the gate: 1 it is blocked; else 3 no baseline, incomplete or too much lost, nothing judged; else 0."""
        if self.is_blocked:
            return 1
        return 0 if self.base and self.counted and not self.gap else 3

    @property
    def failed(self) -> int:
        """How many cases failed, on whatever class of boards."""
        return sum(one.is_failure for one in self.cases)

    @property
    def known(self) -> int:
        """How many cases passed only because a known finding was excused."""
        return sum(bool(one.known) for one in self.cases if not one.is_failure)

    @property
    def counted(self) -> int:
        """How many cases passed or failed."""
        return len(self.cases) - len(self.of(*UNCOUNTED))

    @property
    def uncounted(self) -> int:
        """How many cases say nothing, since the bench or their own code failed, or since they did not run."""
        return len(self.of(Change.NOT_COUNTED, Change.MISSING))

    @property
    def lost(self) -> str | None:
        """How many of the baseline's cases, or else figures, say nothing here, if they are more than :data:`LOST`."""
        before = [one for one in self.cases if one.has_baseline and one.change is not Change.MISSING]
        lost = sum(one.change is Change.NOT_COUNTED for one in before)
        if lost > LOST * len(before):
            return f"{lost} of {len(before)} cases that passed or failed with the baseline did neither now"
        measured = [one for one in self.figures if one.has_baseline and one.change is not CostChange.MISSING]
        undecided = sum(one.change is CostChange.UNDECIDED for one in measured)
        return f"{undecided} of {len(measured)} figures are undecided" if undecided > LOST * len(measured) else None

    @property
    def gap(self) -> str | None:
        """Why what counted does not suffice for a pass: more is to come or never came, or too much was lost."""
        return self.incomplete or self.lost

    @property
    def shortfall(self) -> str | None:
        """The same of a build with cases that counted: without any there is nothing to judge, whatever was lost."""
        return self.gap if self.counted else self.incomplete

    @property
    def verdict(self) -> str:
        """The gate's decision in words."""
        return self.decided(f"incomplete: {self.shortfall}")

    def decided(self, incomplete: str) -> str:
        """The same; ``incomplete`` says that there is a shortfall."""
        words = []
        if self.is_blocked:
            words.append("blocked")
        elif self.base is None and self.counted:
            words.append(f"{self.failed} failed" if self.failed else f"{self.counted} passed")
            words.append("not judged: it is the baseline" if self.new.build.accepted else "no baseline yet")
        if self.incomplete or (self.shortfall and not words):
            words.append(incomplete)
        if not words:
            words.append("pass" if self.counted else "nothing to judge: no case passed or failed")
        return "; ".join(words)


def compare(history: History, new: Selected, base: Selected | None) -> Comparison:
    """Judge every case of ``new`` against ``base``, by :func:`lab.history.regression.classify`.

    A run against all of its own build is judged against the other runs with it.

    :raises UsageError: they are the same, or ``base`` is one of the runs with ``new``.
    """
    return _Judge(history).compare(new, base)


def baseline(history: History, new: Selected) -> Selected | None:
    """What a build is judged against when nothing is said: the build of its line that was accepted last.

    Without any, the newest of up to LOOK_BACK earlier builds that nothing blocks against its own such baseline; else
    none. A build is never its own baseline; it is that of one of its runs if there are others. Builds that
    their run did not identify are none, unless accepted.
    """
    line = history.builds(new.build.line)
    judge, base, undecided = _Judge(history), None, list[Selected]()
    for build in sorted((b for b in line if b.accepted is not None), key=lambda b: b.accepted or 0.0, reverse=True):
        if build.id != new.build.id or new.run and judge.seen(Selected(build), without=new):
            return Selected(build)
    older = [b for b in line[: [b.id for b in line].index(new.build.id)] if b.is_known]
    for build in reversed(older[-LOOK_BACK:]):
        counts = [seen.count for seen in judge.seen(Selected(build)).values()]
        passes = any(count.passes for count in counts)
        if any(count.fails for count in counts) or (passes and judge.costs.has(build)):
            undecided.append(Selected(build))
        elif passes:
            base = Selected(build)  # passes against whatever baseline
            break
    for one in reversed(undecided):
        if not judge.compare(one, base, only_fails=True).is_blocked:
            base = one
    return base


class _Judge:
    """Comparisons that share what they read."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.costs = Costs(history)
        self._known: dict[tuple[Selected, Selected | None], Mapping[Key, Tallied]] = {}

    def seen(self, selected: Selected, *, without: Selected | None = None) -> Mapping[Key, Tallied]:
        if (selected, without) not in self._known:
            found: dict[Key, list[Tally]] = defaultdict(list)
            for tally in self._history.tallies(selected, without=without):
                found[tally.series.case, tally.series.board_class].append(tally)
            seen = {key: Tallied(tuple(tallies), _count(tallies)) for key, tallies in found.items()}
            self._known[selected, without] = seen
        return self._known[selected, without]

    def compare(self, new: Selected, base: Selected | None, *, only_fails: bool = False) -> Comparison:
        """With ``only_fails``, findings of what failed with ``new`` alone: no other can block."""
        own = base is not None and base.build.id == new.build.id
        if base and own and (new == base or not new.run):
            raise UsageError(f"{new.label} cannot be compared with itself or a run of its own: {base.label}")
        here = self.seen(new)
        there = dict(self.seen(base, without=new if own else None)) if base else {}
        if any(seen.count.passes for seen in there.values()):  # so the baseline could be made, though nothing says so
            made = Tallied(count=Count(passes=1))
            there |= {key: made for key, seen in here.items() if key[0] == BUILD_CASE and seen.count.fails}
        counted = {key: seen for key, seen in here.items() if seen.count.total}
        if only_fails:
            counted = {key: seen for key, seen in counted.items() if seen.count.fails}
        unsettled = [
            seen.tallies[0].series
            for key, seen in counted.items()
            if seen.count.fails or (before := there.get(key, NOTHING).count).fails or not before.total
        ]
        earlier = self._history.earlier(unsettled, base.build, new) if base else {}
        findings = [
            _judged(seen, there.get(key, NOTHING), *earlier.get(seen.tallies[0].series, ([], False)))
            for key, seen in counted.items()
        ]
        if not only_fails:
            findings += _not_counted(here, there)
        findings.sort(key=lambda one: (one.series.case, one.series.board_class))
        costs = self.costs.judged(new, base) if base else []
        return Comparison(new, base, tuple(findings), None if only_fails else self._incomplete(new, here), tuple(costs))

    def _incomplete(self, new: Selected, here: Mapping[Key, Tallied]) -> str | None:
        """Why what was seen of ``new`` is not all that was asked for; None when it is."""
        ran, planned = set[str](), set[str]()
        for (case, _), seen in here.items():
            planned.add(case)
            if any(tally.rule != DID_NOT_RUN for tally in seen.tallies):
                ran.add(case)
        run = self._history.last_run(new)
        words = []
        if run and run.finished is None:
            words.append(f"run {run.name} has not ended")
        elif run and run.exit_status == INTERRUPTED and ran != planned:
            words.append(f"run {run.name} was interrupted")
        if ran != planned:
            words.append(f"{len(planned - ran)} of {len(planned)} planned cases did not run")
        return ", ".join(words) or None


def _not_counted(here: Mapping[Key, Tallied], there: Mapping[Key, Tallied]) -> Iterator[CaseChange]:
    """What has neither PASS nor FAIL here, and why. A result without a board speaks for every class of its case."""
    ran: dict[str, list[str]] = defaultdict(list)
    for (case, board_class), seen in here.items():
        if seen.count.total:
            ran[case].append(board_class)
    judged = {case for (case, _), seen in there.items() if seen.count.total} | ran.keys()
    for (case, board_class), seen in here.items():
        if not seen.count.total and (board_class or case not in judged):
            yield _uncounted(seen.tallies[0].series, seen, there.get((case, board_class), NOTHING).count)
    for key, before in there.items():
        if key in here or not before.count.total:
            continue
        case, series = key[0], before.tallies[0].series
        if boardless := here.get((case, "")):
            yield _uncounted(series, boardless, before.count)
        else:
            others = f"; it ran on {', '.join(sorted(ran[case]))}" if ran[case] else ""
            why = f"no attempt{others}{_with_baseline(before.count)}"
            yield CaseChange(series, Change.MISSING, why, has_baseline=True)


def _judged(now: Tallied, before: Tallied, earlier: Sequence[Attempt], ever_passed: bool) -> CaseChange:
    reference, name = before.count, "the baseline"
    if earlier and not reference.total:
        reference = count(one for one in earlier if one.build == earlier[-1].build)
        name = label(*earlier[-1].build.split("@", 1))
    ever_passed = ever_passed or reference.passes > 0
    judgement = classify(now.count, reference, earlier, ever_passed=ever_passed, reference=name)
    change, figures = judgement.change, [judgement.why]
    known = _known(now.tallies)
    failed = [tally for tally in now.tallies if tally.verdict is Verdict.FAIL]
    shown = failed[-1] if failed else now.tallies[-1]
    words = list(figures)
    if failed:
        figures += _boards(now, before)
        words = [f"{shown.reason} ({shown.rule})", *figures]
        if change is Change.NEW_FAILURE and (said := _listed_elsewhere(failed, before.tallies)):
            change = Change.KNOWN_FINDING
            words.insert(1, said)
    elif known:
        words = [f"passed with the known bug {', '.join(known)}", *figures]
        if change is Change.FIXED and _is_only_excused(now.tallies, before.tallies):
            change = Change.KNOWN_FINDING
            words.insert(0, "not fixed: it is listed for this release, and not for the baseline's")
    return CaseChange(
        series=now.tallies[0].series,
        change=change,
        why="; ".join(words),
        failure=shown.failure if failed else "",
        place=shown.place,
        known=known,
        has_baseline=before.count.total > 0,
        figures="; ".join(figures),
        reason=shown.reason,
        boards=tuple(sorted({tally.boards for tally in failed if tally.boards})),
    )


def _known(tallies: Iterable[Tally]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.name for tally in tallies for one in tally.known))


def _is_only_excused(now: Iterable[Tally], before: Iterable[Tally]) -> bool:
    """Whether what failed in the baseline are only checks that a known finding excuses now."""
    excused = {check for tally in now for one in tally.known for check in one.checks}
    failed = [tally for tally in before if tally.verdict is Verdict.FAIL]
    return bool(failed) and all(tally.bad and set(tally.bad) <= excused for tally in failed)


def _listed_elsewhere(failed: Sequence[Tally], before: Sequence[Tally]) -> str | None:
    """The known finding that the baseline's PASS carries and that fails here, since it is not listed for this release.

    Only the checks that it excuses there may fail here. Where a case does not name its checks, nothing is excused.
    """
    bad = {check for tally in failed for check in tally.bad}
    if not bad or not all(tally.bad for tally in failed):
        return None
    listed = {check: one.name for tally in before for one in tally.known for check in one.checks}
    if not bad <= listed.keys():
        return None
    names = ", ".join(dict.fromkeys(listed[check] for check in sorted(bad)))
    return f"no new failure: the known bug {names}, which is listed for the baseline's release and not for this one"


def _boards(now: Tallied, before: Tallied) -> list[str]:
    """On which boards it fails, and whether others of the class do: that explains, and excuses nothing."""
    failing = sorted({tally.boards for tally in now.tallies if tally.verdict is Verdict.FAIL})
    if failing == [""]:
        return []
    words = [f"on {' and '.join(failing)}"]
    good = [tally for tally in now.tallies if tally.verdict is Verdict.PASS and tally.boards not in failing]
    if good:
        others = ", ".join(f"{tally.boards} passed {tally.number}" for tally in good)
        words.append(f"only {' and '.join(failing)} of the class: {others}")
    elif passed := {tally.boards for tally in before.tallies if tally.verdict is Verdict.PASS} - set(failing):
        words.append(f"the baseline passed on {' and '.join(sorted(passed))}")
    return words


def _uncounted(series: Series, seen: Tallied, before: Count) -> CaseChange:
    """Why a case neither passed nor failed: the gravest of what was seen."""
    worst = max(seen.tallies, key=lambda tally: tally.verdict.severity)
    where = f" on {worst.boards}" if worst.boards and not worst.reason.startswith(worst.boards) else ""
    return CaseChange(
        series=series,
        change=Change.SKIPPED if worst.verdict is Verdict.SKIP else Change.NOT_COUNTED,
        why=f"{worst.verdict}{where}: {worst.reason} ({worst.rule}){_with_baseline(before)}",
        failure=worst.failure,
        place=worst.place,
        reason=worst.reason,
        boards=(worst.boards,) if worst.boards else (),
        has_baseline=before.total > 0,
    )


def _with_baseline(before: Count) -> str:
    return f"; {before} with the baseline" if before.total else ""


def _count(tallies: Iterable[Tally]) -> Count:
    numbers = Counter[Verdict]()
    for tally in tallies:
        numbers[tally.verdict] += tally.number
    return Count(numbers[Verdict.PASS], numbers[Verdict.FAIL])


# -- words -------------------------------------------------------------------------------------------------------


def gate_lines(found: Comparison) -> list[str]:
    """The gate's output: what blocks, what fails and does not block, what was not counted, the decision and the sum."""
    lines = [f"gate of {_named(found.new)} against {_base(found)}"]
    lines += [one.line(f"blocks: {one.change}") for one in found.of(Change.NEW_FAILURE)]
    lines += dearer.lines(found.figures, "blocks: ")
    for change in (Change.KNOWN_FINDING, Change.STILL_FAILING, Change.NEVER_PASSED, Change.FLAKY, Change.FIXED):
        lines += [one.line() for one in found.of(change)]
    lines += [one.line("not counted") for one in found.of(Change.NOT_COUNTED, Change.MISSING)]
    lines += [one.line() for one in found.of(Change.SKIPPED) if one.has_baseline]
    return [*lines, f"{found.verdict} ({summed(found)})"]


def comparison_lines(found: Comparison) -> list[str]:
    """Every case that did not just pass in both, and the sum."""
    lines = [f"{_named(found.new)} against {_base(found)}"]
    for change in Change:
        if change is Change.PASSING:
            lines += [one.line() for one in found.of(change) if one.known]
        else:
            lines += [one.line() for one in found.of(change)]
    lines += dearer.lines(found.figures)
    if found.incomplete:
        lines.append(f"incomplete: {found.incomplete}")
    return [*lines, summed(found)]


def summed(found: Comparison) -> str:
    """How many cases each change has, how many of these passed with a known finding; the same of figures."""
    numbers = Counter(one.change for one in found.cases)
    known = Counter(one.change for one in found.cases if one.known and not one.is_failure)
    words = []
    for change in Change:
        if number := numbers[change]:
            is_plain = change is Change.NEW_CASE and found.base is None  # there is nothing that it is new to
            words.append(f"{number} passed" if is_plain else change.counted(number))
            words[-1] += f" ({known[change]} with a known bug)" * bool(known[change])
    return "; ".join(filter(None, (", ".join(words) or "no cases", dearer.summed(found.figures))))


def _named(selected: Selected) -> str:
    source = selected.build.source
    return f"{selected.label} ({selected.build.title})" if source else selected.label


def _base(found: Comparison) -> str:
    if found.base is None:
        return "nothing: no earlier build of its line was accepted (`xenlab accept`), and none passed the gate"
    return f"{_named(found.base)}{_accepted(found.base.build)}"


def _accepted(build: RecordedBuild) -> str:
    return "" if build.accepted is None else f" (accepted {day(build.accepted)})"
