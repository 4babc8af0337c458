"""``report.html``: one file that needs nothing else, opens from disk, and runs no script.

The template is ``report.html.j2``. Jinja2 escapes all text; drawings come in as images, where nothing in them can run.
Only the map of relocations, which is made here and links to its cases, is part of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from lab.reporting import marks, matrix, sections, shown
from lab.reporting.shown import Shown
from lab.reporting.words import seconds_text
from lab.results.failures import label_of
from lab.results.record import RunHeader, Verdict
from lab.results.run_folder import replace_file, stamp, visible
from lab.results.summary import RunSummary

if TYPE_CHECKING:  # with the history's database, which a report without known issues does without
    from lab.history.known_issues import KnownIssue, KnownIssues

NAME = "report.html"
_COLUMNS = tuple(Verdict)


def write(run: RunSummary, issues: KnownIssues | None = None) -> Path:
    """Write ``report.html`` into the run folder; its path."""
    cases = _cases(run)
    builds = list(dict.fromkeys([*run.header.builds, *(case.build for case in cases)]))
    faults = _faults(cases, issues)
    anchors = {id(case.result): f"#{case.anchor}" for case in cases}
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            header=run.header,
            builds=builds,
            verdicts=_COLUMNS,
            areas=_areas(run.header, cases),
            rows=_rows(cases, builds),
            maps=matrix.maps(run.results, builds, lambda result: anchors[id(result)]),
            cases=cases,
            faults=faults,
            alone={fault.cases[0].anchor for fault in faults if len(fault.cases) == 1},
            firsts={fault.cases[0].anchor for fault in faults},
            run_bar=shown.bar(run.header.phases),
            run_timeline=shown.timeline_of("The run", run.header.phases),
            case_bar=shown.bar([phase for result in run.everything for phase in result.phases]),
            case_seconds=sum(result.seconds for result in run.everything),
        )
    )
    path = run.path / NAME
    replace_file(path, page)
    return path


def environment() -> jinja2.Environment:
    """The templates of this folder. Whatever is put into them is escaped and made visible."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        auto_reload=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.globals |= {one.__name__: one for one in (marks.badge, marks.known_bugs, *sections.PIECES)}
    made.filters["seconds"] = seconds_text
    made.filters["stamp"] = stamp
    made.filters["clock"] = lambda when: stamp(when)[11:23]
    made.filters["failure_label"] = label_of
    return made


def _cases(run: RunSummary) -> list[Shown]:
    cases: list[Shown] = []
    for result in run.results:
        earlier = tuple(one for one in run.attempts[result.case, result.build] if one is not result)
        cases.append(shown.show(run.path, result, earlier, f"case-{len(cases)}"))
    for one in run.missing:
        cases.append(shown.show_missing(one, f"case-{len(cases)}"))
    return cases


def _areas(header: RunHeader, cases: Sequence[Shown]) -> Mapping[str, Mapping[Verdict, int]]:
    areas = {area: dict.fromkeys(_COLUMNS, 0) for area in header.required_areas}
    for case in cases:
        areas.setdefault(case.area, dict.fromkeys(_COLUMNS, 0))[case.verdict] += 1
    return areas


@dataclass(frozen=True, slots=True)
class ReportFault:
    """What went wrong once, in cases that show it, and what people said of it."""

    cases: tuple[Shown, ...]
    issues: tuple[KnownIssue, ...]

    @property
    def builds(self) -> list[str]:
        return list(dict.fromkeys(case.build for case in self.cases))


def _faults(cases: Sequence[Shown], issues: KnownIssues | None) -> list[ReportFault]:
    """What did not pass, the gravest first; cases that did not run are one entry."""
    found: dict[tuple[str, str], list[Shown]] = {}
    for case in cases:
        if case.verdict not in (Verdict.PASS, Verdict.SKIP):
            found.setdefault((case.failure, "" if case.failure else case.rule), []).append(case)

    def known(of: Sequence[Shown]) -> tuple[KnownIssue, ...]:
        if issues is None:
            return ()
        return tuple(dict.fromkeys(issue for case in of for issue in issues.of(case.failure, case.case)))

    faults = [ReportFault(tuple(of), known(of)) for of in found.values()]
    return sorted(faults, key=lambda fault: (-fault.cases[0].verdict.severity, -len(fault.cases)))


def _rows(cases: Sequence[Shown], builds: Sequence[str]) -> list[tuple[Shown, list[Shown | None]]]:
    """For each case one that names it, and that of each build."""
    cells = {(case.case, case.build): case for case in cases}
    firsts = {case.case: case for case in reversed(cases)}
    ordered = [firsts[name] for name in dict.fromkeys(case.case for case in cases)]
    areas = {area: index for index, area in enumerate(dict.fromkeys(case.area for case in cases))}
    ordered.sort(key=lambda case: areas[case.area])
    return [(case, [cells.get((case.case, build)) for build in builds]) for case in ordered]
