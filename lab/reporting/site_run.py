"""The pages of one run and of its results, made in whatever process."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import markupsafe

from lab.history.known_issues import KnownIssue, KnownIssues
from lab.history.records import Run
from lab.reporting import findings, html, junit, matrix, sections, shown, site_places
from lab.reporting.marks import escaped, known_bugs
from lab.reporting.shown import Beside, Shown
from lab.reporting.site_places import INDEX, RunPages, good_page
from lab.reporting.words import area_of, seconds_text
from lab.results.failures import failure_of, shown_by, shown_label
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import COVERAGE_PAGE, RunFolder, visible_line
from lab.results.summary import RunSummary

PAGE_LIMIT = 250_000  # characters of results on one page; with its frame a page stays below 300 KB
GOOD = (Verdict.PASS, Verdict.SKIP)
FILES = {html.NAME: html.NAME, junit.NAME: junit.NAME, "cases": "raw consoles", COVERAGE_PAGE: "coverage"}


@dataclass(frozen=True, slots=True)
class Since:
    """Since when a case fails, in words and links from the top of the site (empty: there is no page)."""

    before: str  # where the fault was seen before that, ``BUILD, in CASE``; empty: nowhere
    oldest: str  # where no build was good, the words before the title
    title: str
    subject: str
    href: str
    good_title: str  # empty: no build before was good
    good_subject: str
    good_href: str
    bisect: str  # empty: the builds do not know their commits


@dataclass(frozen=True, slots=True)
class LastGood:
    """The last attempt at a case that passed."""

    title: str
    href: str
    folder: Path
    ordinal: int


@dataclass(frozen=True, slots=True)
class Task:
    """A run to be rendered, with what the history knows of it."""

    where: Path
    run: Run
    state: str  # of its folder
    titles: Mapping[str, str]  # line of builds -> its build's title
    previous: str = ""  # the run before it; empty: none
    following: str = ""
    issues: KnownIssues = KnownIssues()
    since: Mapping[int, Since] = field(default_factory=dict)  # by ordinal
    good: Mapping[int, LastGood] = field(default_factory=dict)
    consoles: Mapping[str, str] = field(default_factory=dict)  # folders of ``good`` -> their state
    told: str = ""  # digest of what the history knows of it
    pages: RunPages | None = None  # where its results are, if not all pages are to be made anew
    only_run: bool = False  # nor those of what went wrong: the page of the run alone

    @property
    def around(self) -> str:
        """What the page of the run shows beside its own: its neighbours, and which files there are."""
        return "\n".join(
            [self.previous, self.following, *(name for name in FILES if (self.run.folder / name).exists())]
        )

    @property
    def hrefs(self) -> list[str]:
        """The pages of other runs to which its pages lead."""
        return [
            *(site_places.run_page(name) for name in (self.previous, self.following) if name),
            *(link for one in self.since.values() for link in (one.href, one.good_href)),
            *(one.href for one in self.good.values()),
        ]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a run's pages turned out to be."""

    pages: RunPages
    cases: tuple[str, ...]  # of each result
    failures: tuple[str, ...]  # those in it, each once


@dataclass(frozen=True, slots=True)
class RunFault:
    """What went wrong once, in one run: its results by their pages."""

    name: str
    verdict: Verdict
    results: tuple[tuple[TestResult, str], ...]
    issues: tuple[KnownIssue, ...]
    since: Since | None  # when most of its cases began to fail
    titles: Mapping[str, str]  # line of builds -> its build's title

    @property
    def is_new(self) -> bool:
        """Whether most of its cases passed until this build, and nothing showed it before."""
        titles = {self.titles.get(one.build) for one, _ in self.results}
        return bool(self.since and self.since.good_title and not self.since.before and self.since.title in titles)

    @property
    def boards(self) -> list[str]:
        return sorted({board for result, _ in self.results for board in result.boards})

    @property
    def label(self) -> str:
        """What happened, in words, and where if the bench failed (:func:`lab.results.failures.shown_label`)."""
        bench = self.boards if self.verdict is Verdict.MISS else ()
        return visible_line(shown_label(self.name, {result.reason for result, _ in self.results}, bench))

    @property
    def where(self) -> str:
        """``1 case with 2 builds``"""
        shown = [one for one, _ in self.results]
        return shown_by({one.case for one in shown}, {one.build for one in shown}, len(shown))


def render_run(task: Task) -> Rendered:
    """The pages of a run and its results."""
    summary = _summary(task.run.folder, task.state)
    (task.where / site_places.run_folder(task.run.name)).mkdir(exist_ok=True)
    made = _Pages(task, summary)
    if task.pages is None:
        pages = made.results()
        made.remove_others()
    else:
        pages = task.pages
        if not task.only_run:
            made.wrong()
    made.index(pages)
    failures = dict.fromkeys(visible_line(key) for one in summary.everything if (key := failure_of(one)))
    return Rendered(pages, tuple(visible_line(one.case) for one in summary.everything), tuple(failures))


@lru_cache(maxsize=3)  # the last good results are mostly in the run that is rendered next
def _summary(folder: Path, state: str) -> RunSummary:
    return RunFolder.open(folder).summary()


def state_of(folder: Path) -> str:
    """Changes whenever what is shown of a run does."""
    found = []
    for name in ("run.json", "builds.json", "results.jsonl", COVERAGE_PAGE):
        try:
            state = (folder / name).stat()
            found.append(f"{state.st_mtime_ns}:{state.st_size}")
        except OSError:
            found.append("-")
    return " ".join([str(folder), *found])


class _Pages:
    def __init__(self, task: Task, summary: RunSummary) -> None:
        self._task, self._summary = task, summary
        self._folder = site_places.run_folder(task.run.name)
        self._written: set[str] = set()
        self._numbers = {id(one): number for number, one in enumerate(summary.everything)}
        self._alike: dict[str, set[str]] = defaultdict(set)  # failure -> the cases of the run that show it
        for one in summary.everything:
            self._alike[failure_of(one)].add(one.case)
        self._common = {
            "root": "../../",
            "run": task.run,
            "summary": summary,
            "issues": task.issues,
            "several": summary.has_several_builds,
            "titles": task.titles,
        }

    # -- results -----------------------------------------------------------------------------------------------

    def results(self) -> RunPages:
        """The page of each result: what went wrong on one of its own, what is good by area, in parts if it is much."""
        self.wrong()
        names: list[str] = []
        of = [-1] * len(self._summary.everything)
        for numbers in self._by_area().values():
            parts = _parts([(number, self._section(number)) for number in numbers])
            area_page = good_page(self._summary.everything[numbers[0]].case)
            for part, in_part in enumerate(parts):
                case = self._summary.everything[in_part[0][0]].case
                page = good_page(case, None if len(parts) == 1 else part + 1)
                values = {
                    "area": area_of(case),
                    "sections": markupsafe.Markup("\n").join(text for _, text in in_part),
                    "part": (part + 1, len(parts)),
                }
                self._write("good", page, {**values, "listed": [], "area_page": area_page})
                for number, _ in in_part:
                    of[number] = len(names)
                names.append(page)
            if len(parts) > 1:
                case = self._summary.everything[numbers[0]].case
                listed = [
                    (number, self._summary.everything[number], f"{names[of[number]]}#r{number}") for number in numbers
                ]
                values = {"area": area_of(case), "sections": "", "part": (0, len(parts)), "listed": listed}
                self._write("good", area_page, {**values, "area_page": area_page})
        return RunPages(tuple(names), tuple(of))

    def wrong(self) -> None:
        """The pages of what went wrong."""
        bad = [number for number, one in enumerate(self._summary.everything) if one.verdict not in GOOD]
        for at, number in enumerate(bad):
            self._bad(number, bad[at - 1] if at else None, bad[at + 1] if at + 1 < len(bad) else None)

    def remove_others(self) -> None:
        """Remove the pages of results that the run had before."""
        site_places.keep_only(self._task.where / self._folder, {*self._written, INDEX})

    def _by_area(self) -> Mapping[str, list[int]]:
        areas: dict[str, list[int]] = defaultdict(list)
        for number, one in enumerate(self._summary.everything):
            if one.verdict in GOOD:
                areas[good_page(one.case)].append(number)
        return areas

    def _show(self, number: int, beside: Beside | None = None) -> Shown:
        result = self._summary.everything[number]
        others = tuple(one for one in self._summary.attempts[result.case, result.build] if one is not result)
        return shown.show(self._summary.path, result, others, beside=beside)

    def _section(self, number: int) -> markupsafe.Markup:
        case = self._show(number)
        build = f" · {escaped(case.build)}" if self._summary.has_several_builds else ""
        boards = f'<span class="soft">{escaped(", ".join(case.boards))}</span>'
        time = f'<a href="../../{site_places.case_page(case.case)}">the case over time</a>'
        bugs = known_bugs(case.known, "../../", findings.places())
        facts = f"<p>{escaped(case.area)}{build} · {seconds_text(case.seconds or 0.0)} {boards} · {time}</p>"
        return sections.section(number, case, f"{bugs}</h2>\n{facts}", self._repeat(number))

    def _bad(self, number: int, before: int | None, after: int | None) -> None:
        values = {
            "number": number,
            "case": self._show(number, self._beside(number)),
            "since": self._task.since.get(number),
            "repeat": self._repeat(number),
            "alike": len(self._alike[failure_of(self._summary.everything[number])]),
            "before": before,
            "after": after,
        }
        self._write("result", f"{number}.html", values)

    def _repeat(self, number: int) -> str:
        """The command that runs the case again."""
        one = self._summary.everything[number]
        words = ["./xenlab", "nightly", one.case] + (["--build", one.build] if one.build else [])
        return visible_line(shlex.join(words))

    def _beside(self, number: int) -> Beside | None:
        good = self._task.good.get(number)
        if good is None or not self._summary.everything[number].consoles:
            return None
        try:
            other = _summary(good.folder, state_of(good.folder))
            result = other.everything[good.ordinal]
        except (LookupError, OSError, ValueError):
            return None
        slices = shown.slices_of(other.path, result)
        return Beside(good.title, good.href, slices) if slices else None

    # -- the run -----------------------------------------------------------------------------------------------

    def index(self, pages: RunPages) -> None:
        """The page of the run: what went wrong first, then each case in a line, a column for each build."""
        summary = self._summary
        builds = list(dict.fromkeys([*summary.header.builds, *(one.build for one in summary.results)]))
        wrong: dict[str, list[TestResult]] = defaultdict(list)
        for one in summary.results:
            if key := failure_of(one):
                wrong[visible_line(key)].append(one)
        faults = [
            RunFault(
                name,
                found[0].verdict,
                tuple((one, self._page(pages, one)) for one in found),
                tuple(dict.fromkeys(issue for one in found for issue in self._task.issues.of(name, one.case))),
                self._usual_since(found),
                self._task.titles,
            )
            for name, found in wrong.items()
        ]
        # What is new, and what nobody has said anything of, comes first.
        faults.sort(
            key=lambda fault: (-fault.verdict.severity, not fault.is_new, bool(fault.issues), -len(fault.results))
        )
        files = [(title, self._file(name)) for name, title in FILES.items() if (summary.path / name).exists()]
        values = {
            "builds": builds,
            "areas": _areas(summary),
            "cells": {(one.case, one.build): one for one in summary.results},
            "planned": {(one.case, one.build) for one in summary.missing},
            "faults": faults,
            "files": files,
            "maps": matrix.maps(summary.results, builds, lambda one: self._page(pages, one)),
            "page_of": lambda one: self._page(pages, one),
            # A reason that many cases share stands above, once.
            "is_told_once": lambda one: len(wrong.get(visible_line(failure_of(one)), ())) == 1,
            "known": summary.known,
            "previous": self._task.previous,
            "following": self._task.following,
        }
        self._write("run", INDEX, values)

    def _usual_since(self, results: Sequence[TestResult]) -> Since | None:
        """When most of them began to fail."""
        begun = [since for one in results if (since := self._task.since.get(self._numbers[id(one)]))]
        usual = Counter((one.title, one.good_title) for one in begun).most_common(1)
        return next((one for one in begun if usual and (one.title, one.good_title) == usual[0][0]), None)

    def _page(self, pages: RunPages, one: TestResult) -> str:
        return pages.page(self._numbers[id(one)])

    def _file(self, name: str) -> str:
        """The relative link to something of the run folder."""
        path = os.path.relpath(self._summary.path / name, (self._task.where / self._folder).absolute())
        return quote(path)

    def _write(self, template: str, page: str, values: Mapping[str, object]) -> None:
        self._written.add(page)
        site_places.render(self._task.where, template, f"{self._folder}{page}", {**self._common, **values})


def _parts(sections: list[tuple[int, markupsafe.Markup]]) -> list[list[tuple[int, markupsafe.Markup]]]:
    """The results of an area on as many pages as keep each within PAGE_LIMIT."""
    parts: list[list[tuple[int, markupsafe.Markup]]] = [[]]
    size = 0
    for number, text in sections:
        if parts[-1] and size + len(text) > PAGE_LIMIT:
            parts.append([])
            size = 0
        parts[-1].append((number, text))
        size += len(text)
    return parts


def _areas(summary: RunSummary) -> Mapping[str, list[str]]:
    """The cases of a run, planned or with a result, by area, those that must have a PASS first."""
    areas: dict[str, dict[str, None]] = {area: {} for area in summary.header.required_areas}
    for case in [*(one.case for one in summary.results), *(one.case for one in summary.missing)]:
        areas.setdefault(area_of(case), {})[case] = None
    return {area: list(cases) for area, cases in areas.items()}
