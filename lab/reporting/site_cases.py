"""The pages of cases over time, of faults, and the lists of all cases and boards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import markupsafe
import sqlalchemy as sa
from markupsafe import escape

from lab.history import index, onsets, pages
from lab.history.index import BoardRow, CaseRow
from lab.history.known_issues import KnownIssues
from lab.history.onsets import Onset, bisect_command
from lab.history.pages import CasePage
from lab.history.records import Entry, Place, RecordedBuild, Series, day, place_of
from lab.history.schema import results
from lab.history.store import RECORDED, History
from lab.reporting import figures, findings, mutants, site_places
from lab.reporting.marks import badge, escaped, known_bugs
from lab.reporting.words import seconds_text
from lab.results.failures import label_of
from lab.results.record import Verdict

ATTEMPTS_LISTED = 30  # in the table of a case's page
BUILDS_DRAWN = 20  # of a figure
SHOWN = 400  # results on the page of a fault
ONSETS_COUNTED = 50  # series that are asked since when they fail

Proof = Callable[[Place], str]


@dataclass(frozen=True, slots=True)
class OfSeries:
    """What the page of a case shows of one of its series."""

    page: CasePage
    status: str
    strip: markupsafe.Markup
    durations: markupsafe.Markup
    figures: tuple[tuple[str, markupsafe.Markup], ...]  # by name
    failures: tuple[tuple[str, int, Entry], ...]  # name, how often, the last of them
    listed: int  # of these
    attempts: markupsafe.Markup  # newest first


class CasePages:
    """Writes them."""

    def __init__(self, store: History, where: Path, issues: KnownIssues, proof: Proof, drawn: Container[str]) -> None:
        """``drawn``: the figures that have a page."""
        self._store, self._where, self._issues, self._proof = store, where, issues, proof
        self._drawn = drawn

    def write(self, wanted: Sequence[str]) -> None:
        """The pages of these cases."""
        docs = index.docs(self._store, wanted)
        for case, found in groupby(pages.case_pages(self._store, *wanted), key=lambda page: page.series.case):
            values = {
                "case": case,
                "doc": docs.get(case, ""),
                "mutants": mutants.of(case),
                "drawn": self._drawn,
                "shown": [_of_series(page, self._proof, "../") for page in found],
            }
            self._render("case", site_places.case_page(case), "../", values)

    def write_index(self, of_cases: Sequence[CaseRow], of_boards: Sequence[BoardRow]) -> None:
        """The lists of all cases and boards."""
        rows = [(case, list(of)) for case, of in groupby(of_cases, key=lambda row: row.series.case)]
        self._render("cases", "cases.html", "", {"rows": rows})
        self._render("boards", "boards.html", "", {"rows": of_boards})

    def _render(self, template: str, page: str, root: str, values: Mapping[str, object]) -> None:
        common = {"root": root, "proof": self._proof, "issues": self._issues, "label_of": label_of}
        site_places.render(self._where, template, page, {**common, **values})


def _of_series(page: CasePage, proof: Proof, root: str) -> OfSeries:
    entries = page.entries
    often = Counter(entry.failure for entry in entries if entry.failure)
    last = {entry.failure: entry for entry in entries if entry.failure}
    linked = [(entry, f"{root}{where}" if (where := proof(entry.place)) else "") for entry in entries]
    strip = [[*found] for _, found in groupby(linked, key=lambda pair: pair[0].build.id)]
    durations = figures.durations_svg(
        f"seconds of {len(entries)} attempts",
        [(entry.seconds, entry.verdict.value, f"{entry.build.title} {entry.run}") for entry in entries],
    )
    listed = linked[: -ATTEMPTS_LISTED - 1 : -1]
    return OfSeries(
        page=page,
        status=pages.status(page),
        strip=markupsafe.Markup("".join(map(_marks, strip))),
        durations=markupsafe.Markup(durations),
        figures=tuple(_drawn(strip)),
        failures=tuple((name, number, last[name]) for name, number in often.most_common()),
        listed=len(listed),
        attempts=markupsafe.Markup("\n".join(_attempt(entry, href, root) for entry, href in listed)),
    )


def _marks(attempts: Sequence[tuple[Entry, str]]) -> str:
    """The attempts with a build: a letter each, and a link where it leads somewhere."""
    build = attempts[0][0].build
    title = f"{build.title}: {build.source.subject}" if build.source.subject else build.title
    name = build.source.name or build.label.partition("@")[2]
    parts = [f'<span class="of soft" title="{escaped(title)}">{escaped(name)}</span>']
    for entry, href in attempts:
        verdict, when = entry.verdict.value, day(entry.started)
        title, letter = f"{verdict} {when} {escaped(entry.boards)}", verdict[0] + "*" * bool(entry.known)
        if href:
            leads = f'href="{escape(href)}" title="{title}" aria-label="{verdict} {when}"'
            parts.append(f'<a class="v {verdict}" {leads}>{letter}</a>')
        else:
            parts.append(f'<i class="v {verdict}" title="{title}">{letter}</i>')
    return "".join(parts)


def _attempt(entry: Entry, href: str, root: str) -> str:
    """An attempt in the list."""
    verdict = f'<a href="{escape(href)}">{badge(entry.verdict)}</a>' if href else badge(entry.verdict)
    bugs = known_bugs([one.name for one in entry.known], root, findings.places()) if entry.known else ""
    facts = f"{escaped(entry.build.title)} · {escaped(entry.boards or 'no board')} · {seconds_text(entry.seconds)}"
    why = f'{escaped(entry.reason)} <span class="soft">({escaped(entry.rule)})</span>'
    reason = f'<br><span class="reason">{why}</span>' if entry.reason else ""
    when = f'<span class="nowrap">{day(entry.started)}</span>'
    return f'<li>{verdict}{bugs} {when} <span class="soft">{facts}</span>{reason}</li>'


def _drawn(strip: Sequence[Sequence[tuple[Entry, str]]]) -> Iterator[tuple[str, markupsafe.Markup]]:
    """Each figure of a case over the last builds, with its spread."""
    names = dict.fromkeys(name for attempts in strip for entry, _ in attempts for name in entry.figures)
    for name in names:
        groups = []
        for attempts in strip:
            build = attempts[0][0].build
            values = [entry.figures[name] for entry, _ in attempts if name in entry.figures]
            if values:
                groups.append((build.source.name or build.key[:8], values))
        yield name, markupsafe.Markup(figures.spread_svg(name, groups[-BUILDS_DRAWN:]))


@dataclass(frozen=True, slots=True)
class OfFault:
    """A result that shows a fault."""

    series: Series
    build: RecordedBuild
    verdict: Verdict
    started: float
    boards: str
    reason: str
    place: Place


def failure_pages(
    store: History, names: Sequence[str], run_ids: Sequence[int], issues: KnownIssues, proof: Proof
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """For each fault what its page shows."""
    seen = store.failures(names)
    for name in names:
        found = _of_fault(store, name, run_ids)
        if not found or name not in seen:
            continue
        newest = found[0]
        told, onset = _usual_onset(store, found)
        of_cases: dict[str, list[OfFault]] = {}
        for one in found:
            of_cases.setdefault(one.series.case, []).append(one)
        yield (
            name,
            {
                "name": name,
                "seen": seen[name],
                "newest": newest,
                "cases": of_cases,
                "known": [issue for issue in issues.all if issue.failure == name],
                "told": told,
                "onset": onset if newest.verdict is Verdict.FAIL else None,
                "bisect": _bisect(told, onset),
                "proof": proof,
                "boards": sorted({board for one in found for board in one.boards.split(",") if board}),
                "shown_builds": list({one.build.id: one.build for one in found}.values()),
                "is_cut": len(found) == SHOWN,
            },
        )


def _usual_onset(store: History, found: Sequence[OfFault]) -> tuple[str, Onset | None]:
    """Since when most cases fail that show the fault with the newest build, and one of these cases."""
    newest = found[0]
    ids = {one.series.id: one.series.case for one in found if one.build.id == newest.build.id}
    begun = onsets.onsets(store, list(ids)[:ONSETS_COUNTED], newest.build)

    def beginning(onset: Onset) -> tuple[int, int]:
        return onset.since.id, onset.good.id if onset.good else 0

    usual = Counter(map(beginning, begun.values())).most_common(1)
    for id, onset in begun.items():
        if beginning(onset) == usual[0][0]:
            return ids[id], onset
    return newest.series.case, None


def _bisect(case: str, onset: Onset | None) -> str:
    return (bisect_command(case, onset) if onset else None) or ""


def _of_fault(store: History, name: str, run_ids: Sequence[int]) -> list[OfFault]:
    """The results that show a fault, newest first."""
    wanted = (
        RECORDED.where(results.c.failure == name, sa.text("failure <> ''"), results.c.run_id.in_(run_ids))
        .order_by(results.c.started.desc(), results.c.id.desc())
        .limit(SHOWN)
    )
    with store.transaction(writes=False) as connection:
        rows = connection.execute(wanted).mappings().all()
    return [
        OfFault(
            series=Series.of(row),
            build=RecordedBuild.of(row),
            verdict=Verdict(row["results_verdict"]),
            started=row["results_started"],
            boards=row["results_boards"],
            reason=row["results_reason"],
            place=place_of(row),
        )
        for row in rows
    ]
