"""What came of a patch series, as a text to paste into the reply to its mail."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.base.errors import BuildFailed
from lab.builds import blame
from lab.history import dearer
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

    ``found`` compares it with the tree before it; None where it was not run by itself. ``is_built``: something that it
    touches is in what is built.
    """

    number: int
    subject: str
    failure: BuildFailed | None = None
    found: Comparison | None = None
    is_built: bool = True


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
        """Exit status: 1 a new failure or a patch that cannot be built, 3 something that cannot be judged, else 0."""
        if any(step.failure for step in self.steps) or self.hidden:
            return 1
        if self.found is None:
            return 3
        is_open = (
            self.unjudged
            or not self.counted
            or not self.is_built
            or any(one.found and one.found.incomplete for one in self.steps)
        )
        return self.found.exit_status or (3 if is_open else 0)

    @property
    def is_built(self) -> bool:
        """Whether anything of the series is in what ran: a change of tools/ is not, where the tools are Debian's."""
        return any(step.is_built for step in self.steps)

    @property
    def counted(self) -> int:
        """How many cases passed or failed both on the base and with the series: no other can be judged."""
        return len(_counted_on_both(self.found)) if self.found else 0

    @property
    def unjudged(self) -> list[CaseChange]:
        """What fails with the series, while the base neither passed nor failed."""
        return [one for one in self.found.cases if one.is_failure and not one.has_baseline] if self.found else []

    @property
    def hidden(self) -> dict[int, int]:
        """By number of the patch, how many cases fail anew with it and not with the whole series."""
        whole = {_key(one) for one in self.found.of(Change.NEW_FAILURE)} if self.found else set()
        new = {one.number: one.found.of(Change.NEW_FAILURE) for one in self.steps if one.found}
        by_patch = {number: sum(_key(one) not in whole for one in found) for number, found in new.items()}
        return {number: count for number, count in by_patch.items() if count}

    @property
    def verdict(self) -> str:
        """One line."""
        broken = [f"patch {one.number} {_how(one.failure)}" for one in self.steps if one.failure]
        if self.found is None:
            return "; ".join(broken)
        broken += [
            f"patch {number} has {_new(count)} that the whole series does not show"
            for number, count in self.hidden.items()
        ]
        if self.found.is_blocked:
            new, more = len(self.found.of(Change.NEW_FAILURE)), len(self.found.dearer)
            words = [*([_new(new)] if new else []), *([dearer.counted(more)] if more else [])]
        elif not self.is_built:
            words = ["no verdict: nothing that the series touches was built, so none of it ran"]
        elif self.counted:
            words = [f"no new failure in {self.counted} case{'s' * (self.counted > 1)}"]
        else:
            words = ["no verdict: no case passed or failed on both base and series"]
        if self.unjudged:
            words.append(f"{len(self.unjudged)} failed that neither passed nor failed on the base")
        if self.found.uncounted:
            words.append(f"{self.found.uncounted} not counted")
        if why := self.found.gap:
            words.append(f"incomplete: {why}")
        return "; ".join([*broken, *words])


def _key(one: CaseChange) -> tuple[str, str]:
    return one.series.case, one.series.board_class


def _counted_on_both(found: Comparison) -> list[CaseChange]:
    return [one for one in found.cases if one.change not in UNCOUNTED and one.has_baseline]


def _new(count: int) -> str:
    return f"{count} new failure{'s' * (count > 1)}"


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
    if unbuilt := [str(step.number) for step in outcome.steps if not step.is_built]:
        yield from _field("not built", f"what these patches touch, so it did not run: {', '.join(unbuilt)}")
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
    nothing = "no new failure" if _counted_on_both(step.found) else "no verdict: no case passed or failed on both"
    words = [f"{_new(len(new))}: {_names(new)}" if new else nothing]
    words += [f"{len(fixed)} fixed: {_names(fixed)}"] if fixed else []
    words += [f"incomplete: {step.found.incomplete}"] if step.found.incomplete else []
    return "; ".join(words)


def _names(findings: Sequence[CaseChange]) -> str:
    return some_of([short_name(one.series.case) for one in findings], 5)


def _changes(found: Comparison) -> Iterator[str]:
    def failing(one: CaseChange) -> bool:
        return one.is_failure and one.has_baseline and one.change is not Change.NEW_FAILURE

    def open_(one: CaseChange) -> bool:
        return one.is_failure and not one.has_baseline and one.change is not Change.NEW_FAILURE

    def silent(one: CaseChange) -> bool:
        return one.change in (Change.NOT_COUNTED, Change.MISSING)

    yield from _section("New failures:", found, lambda one: one.change is Change.NEW_FAILURE)
    if found.dearer:
        yield ""
        yield "Costs more:"
        yield from (f"  {one.line(one.track.series.line)}" for one in found.dearer[:ROWS])
    yield from _section("Fixed by the series:", found, lambda one: one.change is Change.FIXED)
    yield from _section("Failing, and neither passed nor failed on the base:", found, open_)
    yield from _section("Failing, but not because of this series:", found, failing)
    yield from _section("Not judged (the bench or the case's own code failed):", found, silent)


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
