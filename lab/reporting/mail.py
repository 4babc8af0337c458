"""The results of a run as a mail in plain text, in the words of osstest's reports.

Source: osstest, sg-report-flight: ``fail REGR. vs. FLIGHT``, ``fail like FLIGHT``, ``fail never pass``, "version
targeted for testing", "baseline version".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from lab.history.gate import CaseChange, Comparison
from lab.history.news import Fault, News
from lab.history.records import RecordedBuild, day
from lab.history.regression import Change
from lab.reporting import ci, html
from lab.reporting.ci import headline
from lab.reporting.site_places import case_page, result_place
from lab.results.record import Verdict
from lab.results.run_folder import visible_line
from lab.results.summary import RunSummary

WIDTH = 76  # columns of a line; names and links may be longer

# What stands behind a case, by what became of it; {base} is the build that it was judged against.
WORDS = {
    Change.NEW_FAILURE: "FAIL REGR. vs {base}",
    Change.KNOWN_FINDING: "FAIL known bug, not listed for this release",
    Change.STILL_FAILING: "FAIL like {base}",
    Change.NEVER_PASSED: "FAIL never pass",
    Change.FLAKY: "FAIL flaky",
}
BLOCKING = (Change.NEW_FAILURE,)


def subject(run: RunSummary, news: News) -> str:
    """``[xenlab] pv32-debug 4.20 abc1234 (24 Nov): 3 new failures``"""
    worst_first = sorted(news.comparisons, key=lambda found: (not found.is_blocked, not found.exit_status))
    builds = [found.new.build.title for found in worst_first] or [*run.header.builds]
    named = ", ".join(builds) if len(builds) < 3 else f"{builds[0]} and {len(builds) - 1} more builds"
    return visible_line(f"[xenlab] {named}: {headline(run, news)}")


def body(run: RunSummary, news: News, site: Path | None) -> str:
    """The mail's text.

    :param site: the folder of the pages, to which each result is linked; else each links to the run's report.
    """

    def link(one: CaseChange) -> str:
        if site is None:
            return (run.path / html.NAME).as_uri()
        has_page = one.place is not None and one.place.ordinal >= 0 and one.failure
        page = result_place(one.place, Verdict.FAIL, one.series.case) if has_page and one.place else ""
        return f"{site.absolute().as_uri()}/{page or case_page(one.series.case)}"

    lines = [f"run {run.header.run_id}, {run.header.selection}, {day(run.header.started)} UTC"]
    lines.append((run.path / html.NAME).as_uri())
    lines += ["", _tail(run, news), run.counted() + "."]
    if run.progress:
        lines.append(f"{run.progress}.")
    for fault in news.worse:
        lines += ["", f"fault {fault.digits}: {fault.label}"]
        on = f" on {' and '.join(fault.boards)}" if fault.boards else ""
        lines.append(f"   {fault.states if len(fault.changes) > 1 else _cases(len(fault.cases))}{on}")
        lines += [f"   {line}" for line in ci.since_lines(fault)]
        lines += [f"   bug report: {one.link}" for one in fault.issues]
    for found in news.comparisons:
        lines += _of_build(found, news, link)
    if gone := run.missing:
        lines += ["", "Cases that did not run:"] + [f" {one.case}" for one in gone[: ci.ROWS]]
    for found in news.comparisons:
        lines += ["", f"version targeted for testing: {_version(found.new.build)}"]
        base = _version(found.base.build) if found.base else "none: no build was accepted or good before it"
        lines.append(f"baseline version:             {base}")
    lines += [f"\nThe bench says: {note}" for note in run.remarks]
    return "\n".join(visible_line(line) if line and "\n" not in line else line for line in lines) + "\n"


def _tail(run: RunSummary, news: News) -> str:
    if news.new_failures or news.dearer:
        return "Regressions :-("
    if any(found.base is None for found in news.comparisons) or not news.comparisons:
        return f"Nothing to judge against: {headline(run, news)}."
    incomplete = [why for found in news.comparisons if (why := found.gap)]
    if incomplete:
        return f"Incomplete: {'; '.join(incomplete)}."
    if not all(found.counted for found in news.comparisons):
        return "Nothing to judge: no case passed or failed."
    return "No regression." if any(found.failed for found in news.comparisons) else "All that was counted passed."


def _of_build(found: Comparison, news: News, link: Callable[[CaseChange], str]) -> Iterator[str]:
    blocking = found.of(*BLOCKING)
    besides = [one for one in found.cases if one.is_failure and one.change not in BLOCKING]
    excused = [one for one in found.cases if one.known and not one.is_failure]
    base = found.base.build.title if found.base else "nothing"
    told = {fault.name: fault for fault in news.worse if fault.of(found.new.build)}
    yield from _section("Tests which did not succeed and are blocking:", blocking, base, link, told)
    yield from _section("Tests which did not succeed, but are not blocking:", besides, base, link, told)
    yield from _section("Tests which passed with a known bug (docs/findings):", excused, base, link)
    yield from _silent(found, news, link)
    if found.dearer:
        yield ""
        yield "Figures which cost more and are blocking:"
        yield from (f" {one.line(f'REGR. vs {base}:')}" for one in found.dearer[: ci.ROWS])
    for one in found.of(Change.FIXED):
        yield f" {one.series.case}  PASS, FAIL in {base}"


def _silent(found: Comparison, news: News, link: Callable[[CaseChange], str]) -> Iterator[str]:
    """What was not counted, by reason, the commonest first, each with the link of one case.

    Cases that did not run have a list of their own.
    """
    reasons = [
        (fault, cases) for fault in news.uncounted if (cases := [case.finding for case in fault.of(found.new.build)])
    ]
    told = [(fault.label, cases) for fault, cases in reasons if any(c.place and c.place.ordinal >= 0 for c in cases)]
    told.sort(key=lambda one: -len(one[1]))
    if gone := found.of(Change.MISSING):
        told.append(("no attempt", gone))
    if told:
        yield ""
        yield "Tests which say nothing about Xen (the bench or the case's own code failed):"
    for label, cases in told:
        verdict = "" if cases is gone else f"{cases[0].why.partition(':')[0].partition(' ')[0]} "
        yield f" {verdict}{_cases(len(cases))}: {label}"
        yield f"   {link(cases[0])}"
        yield from (f"   {one.series.case} [{one.series.board_class or 'no board'}]" for one in cases[: ci.ROWS])
        if len(cases) > ci.ROWS:
            yield f"   and {len(cases) - ci.ROWS} more"


def _section(
    title: str,
    findings: Sequence[CaseChange],
    base: str,
    link: Callable[[CaseChange], str],
    told: Mapping[str, Fault] = MappingProxyType({}),
) -> Iterator[str]:
    """A list of cases. Those that show a fault of ``told``, by its name, have its short name."""
    if not findings:
        return
    yield ""
    yield title
    for one in findings[: ci.ROWS]:
        by = f", fault {told[one.failure].digits}" if one.failure in told else ""
        yield f" {one.series.case} [{one.series.board_class or 'no board'}]  {_word(one, base)}{by}"
        yield f"   {link(one)}"
    if len(findings) > ci.ROWS:
        yield f" and {len(findings) - ci.ROWS} more"


def _cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"


def _word(one: CaseChange, base: str) -> str:
    if one.is_failure:
        return WORDS[one.change].format(base=base)
    return f"PASS, known bug {', '.join(one.known)}"


def _version(build: RecordedBuild) -> str:
    source = build.source.text()
    return f"{build.title}{f': {source}' if source else ''}"
