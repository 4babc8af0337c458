"""What came of a patch series, as a text to paste into the reply to its mail."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.base.errors import BuildFailed
from lab.builds import blame
from lab.history.gate import UNCOUNTED, CaseChange, Comparison
from lab.history.regression import Change
from lab.reporting.words import short_name, some_of
from lab.results.record import Verdict
from lab.results.run_folder import visible_line
from lab.results.summary import RunSummary

WIDTH = 76  # columns of a line; names may be longer
ROWS = 50  # cases in a section


@dataclass(frozen=True, slots=True)
class Step:
    """One patch, and what came of the tree with it and all patches before it.

    ``found`` compares it with the tree before it; None where it was not run by itself.
    """

    number: int
    subject: str
    failure: BuildFailed | None = None
    found: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is known of a series. Without ``found`` nothing was run."""

    subject: str
    base: str  # what the patches were applied to, in words
    settings: str  # how it was built
    steps: tuple[Step, ...]
    run: RunSummary | None = None
    found: Comparison | None = None  # the whole series against the base

    @property
    def status(self) -> int:
        """Exit status: 1 a new failure or a patch that cannot be built, 3 nothing that can be judged, else 0."""
        if any(step.failure for step in self.steps):
            return 1
        return self.found.exit_status if self.found else 3

    @property
    def verdict(self) -> str:
        """One line."""
        broken = [f"patch {one.number} {_how(one.failure)}" for one in self.steps if one.failure]
        if self.found is None:
            return "; ".join(broken)
        new = len(self.found.of(Change.NEW_FAILURE))
        counted = sum(one.change not in UNCOUNTED for one in self.found.cases)
        words = [f"{new} new failure{'s' * (new > 1)}" if new else f"no new failure in {counted} cases"]
        if not counted:
            words = ["no verdict: no case passed or failed"]
        if self.found.incomplete:
            words.append(f"incomplete: {self.found.incomplete}")
        return "; ".join([*broken, *words])


def text(outcome: Outcome) -> str:
    """The reply: the verdict, what was tested on what, what changed, and results by patch where there are any."""
    return "\n".join(visible_line(line) for line in _lines(outcome)) + "\n"


def _lines(outcome: Outcome) -> Iterator[str]:
    yield f"Subject: Re: {outcome.subject}"
    yield ""
    yield f"I ran this series through xenlab: {outcome.verdict}."
    yield ""
    number = len(outcome.steps)
    yield from _field("series", f'{number} patch{"es" * (number > 1)}, the last one "{outcome.steps[-1].subject}"')
    yield from _field("base", outcome.base)
    yield from _field("built as", outcome.settings)
    if run := outcome.run:
        boards = [f"{name} ({facts.get('class', 'no class')})" for name, facts in run.header.boards.items()]
        yield from _field("boards", ", ".join(boards))
        yield from _field("cases", run.header.selection)
        for build, name in ((run.header.builds[0], "base"), (run.header.builds[-1], "series")):
            yield from _field(f"on {name}", _counted(run, build))
    for step in outcome.steps:
        if step.failure:
            yield ""
            yield f'Patch {step.number} ("{step.subject}") {_how(step.failure)}:'
            yield from (f"  {line}" for line in step.failure.lines[-ROWS:])
    if outcome.found:
        yield from _changes(outcome.found)
    if any(step.found for step in outcome.steps):
        yield ""
        yield "Each patch against the tree before it:"
        for step in outcome.steps:
            yield f"  {step.number}/{len(outcome.steps)} {step.subject}"
            yield f"      {_of_step(step)}"


def _field(name: str, value: str) -> list[str]:
    return textwrap.wrap(
        value,
        WIDTH,
        initial_indent=f"  {name + ':':<11}",
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counted(run: RunSummary, build: str) -> str:
    numbers = Counter(one.verdict for one in run.results if one.build == build)
    return ", ".join(f"{numbers[verdict]} {verdict}" for verdict in Verdict if numbers[verdict]) or "no result"


def compiles_not(failure: BuildFailed) -> bool:
    """Whether the compiler refused the source; else patch(1) refused a patch."""
    return not failure.what.endswith(blame.DOES_NOT_APPLY)


def _how(failure: BuildFailed) -> str:
    return "does not compile" if compiles_not(failure) else blame.DOES_NOT_APPLY


def _of_step(step: Step) -> str:
    if step.failure:
        return _how(step.failure)
    if step.found is None:
        return "not run by itself"
    new, fixed = (step.found.of(change) for change in (Change.NEW_FAILURE, Change.FIXED))
    words = [f"{len(new)} new failure{'s' * (len(new) > 1)}: {_names(new)}" if new else "no new failure"]
    words += [f"{len(fixed)} fixed: {_names(fixed)}"] if fixed else []
    words += [f"incomplete: {step.found.incomplete}"] if step.found.incomplete else []
    return "; ".join(words)


def _names(findings: Sequence[CaseChange]) -> str:
    return some_of([short_name(one.series.case) for one in findings], 5)


def _changes(found: Comparison) -> Iterator[str]:
    def failing(one: CaseChange) -> bool:
        return one.is_failure and one.change is not Change.NEW_FAILURE

    def silent(one: CaseChange) -> bool:
        return one.change in (Change.NOT_COUNTED, Change.MISSING)

    yield from _section("New failures:", found, lambda one: one.change is Change.NEW_FAILURE)
    yield from _section("Fixed by the series:", found, lambda one: one.change is Change.FIXED)
    yield from _section("Failing, and not by this series:", found, failing)
    yield from _section("Saying nothing (the bench, or the case's own code):", found, silent)


def _section(title: str, found: Comparison, belongs: Callable[[CaseChange], bool]) -> Iterator[str]:
    findings = [one for one in found.cases if belongs(one)]
    if not findings:
        return
    yield ""
    yield title
    for one in findings[:ROWS]:
        yield f"  {one.series.case} [{one.series.board_class or 'no board'}]"
        yield from textwrap.wrap(
            one.why, WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False
        )
    if len(findings) > ROWS:
        yield f"  and {len(findings) - ROWS} more"
