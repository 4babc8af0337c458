"""The pages: one static site for all runs that the history knows and whose folders are there.

It opens from disk and loads nothing from elsewhere. The only script is a filter, and its pages are whole without it.
A page is made anew when what it shows may have changed: of a run its folder, or what the history says of it; of a case
its attempts, or a run that its page leads to. So the site is always the one that would be written from nothing; only
the feed keeps what it had.

::

    index.html                 what broke, since when, and the proof; builds x areas
    feed.xml                   what got worse, for feed readers
    cases.html, boards.html    all of them, with a filter
    mutation.html              the mutation score of each build, if something was tried; the survivors of the newest
    failures/DIGITS.html       one fault: its cases, builds and results
    findings/AREA.html         known findings, as docs/findings tells them
    runs/RUN/index.html        a run: its faults, then case x build
    runs/RUN/N.html            the N-th result of its results.jsonl, with all evidence
    runs/RUN/good-AREA.html    those that passed or were skipped, each at #rN; if they are many, a list of
                               good-AREA-K.html
    cases/SLUG.html            a case over time
    figures/NAME.html          a figure that is a cost over builds, with its levels and steps
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import math
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError
from lab.history import dearer, index, known_issues, news, onsets, tracks
from lab.history.known_issues import KnownIssue
from lab.history.news import News
from lab.history.onsets import Onset, bisect_command
from lab.history.records import Place, RecordedBuild, Run, Seen, Selected
from lab.history.regression import Change
from lab.history.store import History
from lab.history.tracks import Track
from lab.reporting import findings, mutation, site_cases, site_figures, site_places, site_run
from lab.reporting import site_overview as overview
from lab.reporting.feed import Feed
from lab.reporting.site_run import LastGood, Rendered, Since, Task
from lab.reporting.site_state import KnownRun, SiteState, version
from lab.reporting.words import area_of, short_name
from lab.results.record import BUILD_CASE, Verdict
from lab.results.run_folder import RunFolder, file_name
from lab.results.summary import INTERRUPTED

log = logging.getLogger(__name__)

RUNS_SHOWN = 100
BUILDS_SHOWN = 40  # rows of the overview
LINES_JUDGED = 8  # lines of builds whose newest is judged on the overview
MUTATION = "mutation.html"
MANY = 5  # runs to be rendered; fewer are not worth a process


def default() -> Path:
    """Where the site of the lab's state is."""
    return paths.state() / "site"


def take_over(store: History) -> None:
    """Let the history know the run folders in the state folder, as they are now."""
    for header in sorted((paths.state() / "runs").glob("*/run.json")):
        try:
            store.import_run(header.parent)
        except UsageError as error:  # one that is broken hides no other
            log.warning("%s", error)


def write(store: History, where: Path) -> Path:
    """Bring the site in ``where`` up to date; its first page.

    :raises UsageError: ``where`` is a folder of something else.
    :raises OSError: it cannot be written.
    """
    with _held(where), _uncollected():
        return _Site(store, where).write()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without a search for cycles: among very many objects there are next to none, and it takes an eighth of all."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _held(where: Path) -> Iterator[None]:
    """One writer at a time; the folder made."""
    if where.exists() and not (where / SiteState.NAME).exists() and (not where.is_dir() or any(where.iterdir())):
        raise UsageError(f"{where}: the folder holds something else; name a new folder, or one that has the pages")
    for name in ("runs", "cases", "failures", "findings", "figures"):
        (where / name).mkdir(parents=True, exist_ok=True)
    with open(where / SiteState.NAME, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class Row:
    """A build on the overview: its runs, newest first; for each area the verdicts in them, and the newest with it."""

    build: RecordedBuild
    runs: tuple[Run, ...]
    areas: Mapping[str, Counter[Verdict]]
    newest: Mapping[str, Run]

    @property
    def state(self) -> str:
        """Why its newest run is not complete; empty when it is."""
        run = self.runs[0]
        if run.finished is None:
            return "still running" if RunFolder(run.folder).is_held() else "broke off"
        return "interrupted" if run.exit_status == INTERRUPTED else ""


def _is_there(run: Run) -> bool:
    """Whether the run's folder can be shown; one that is broken is said, and hides no other."""
    if not (run.folder / "run.json").is_file():
        return False
    try:
        RunFolder.open(run.folder)
    except UsageError as error:
        log.warning("not shown: %s", error)
        return False
    return True


class _Site:
    def __init__(self, store: History, where: Path) -> None:
        self._store, self._where = store, where
        self._state = SiteState.read(where, version())
        self._digests = store.digests()  # before the rest: what changes meanwhile is seen the next time
        self._runs = [run for run in store.runs(RUNS_SHOWN) if _is_there(run)]
        self._issues = known_issues.read(store)
        self._builds = {build.id: build for build in store.builds()}
        self._names = {run.name for run in self._runs}
        self._counts = store.counts([run.id for run in self._runs])
        there = {path.name for path in (where / "runs").iterdir()} | self._state.runs.keys()
        self._gone = there - {file_name(name) for name in self._names}
        self._changed_failures: set[str] = set()

    @cached_property
    def _tracks(self) -> list[Track]:
        """The costs that the runs shown measured."""
        return tracks.of_runs(self._store, [run.id for run in self._runs])

    @cached_property
    def _issue_lines(self) -> tuple[str, ...]:
        return tuple(one.line() for one in self._issues.all)

    @cached_property
    def _build_lines(self) -> tuple[str, ...]:
        """What pages show of builds."""
        return tuple(repr(replace(one, last_seen=0.0, accepted=None)) for one in self._builds.values())

    @cached_property
    def _is_grown(self) -> bool:
        """Whether the history has all that it had, unchanged, and no more than further runs and builds."""
        known = self._state
        return (
            not known.is_new
            and known.digests.items() <= self._digests.items()
            and set(known.builds) <= set(self._build_lines)
            and known.issues == self._issue_lines
        )

    @cached_property
    def _new(self) -> list[str]:
        """The runs that are new in the history, or were not shown."""
        known = {run.name for run in self._runs if file_name(run.name) in self._state.runs}
        return [*(self._digests.keys() - self._state.digests.keys()), *(self._names - known)]

    @cached_property
    def _unsettled(self) -> set[str]:
        """The runs shown of which the history may say other things than it did: not those before anything new."""
        if not self._is_grown:
            return self._names
        spans = self._store.spans([*self._new, *self._names])
        first = min((spans[name][0] for name in self._new if name in spans), default=math.inf)
        return {name for name in self._names & spans.keys() if spans[name][1] >= first}

    def write(self) -> Path:
        touched = self._bring_up_to_date()
        there = {case for _, _, case, _, _ in self._counts}
        touched |= self._store.contents(self._new)[0]
        rows = self._rows()
        told = news.news_of(self._store, [Selected(row.build) for row in _newest(rows)[:LINES_JUDGED]])
        for found in told.comparisons:  # what is missing now may be of no run shown
            there |= {one.series.case for one in found.cases}
        files = {site_places.case_page(case): case for case in there}
        if self._is_grown and not self._gone:
            touched |= {case for file, case in files.items() if not (self._where / file).exists()}
        else:  # what was shown may be gone, and the links to it are to go
            touched = there
        site_places.keep_only(self._where / "cases", {Path(file).name for file in files})
        style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
        site_places.write_changed(self._where / "style.css", style)
        for page in findings.pages() if self._state.is_new else ():
            self._render("findings", f"findings/{page.name}", {"root": "../", "page": page})
        site_places.keep_only(self._where / "findings", {page.name for page in findings.pages()})
        ids = [run.id for run in self._runs]
        drawn = site_figures.write(self._where, self._tracks, self._proof)
        pages = site_cases.CasePages(self._store, self._where, self._issues, self._proof, drawn)
        pages.write(sorted(touched & there))
        pages.write_index(index.case_rows(self._store, ids), index.board_rows(self._store, ids))
        self._write_failures()
        if scores := mutation.every():
            self._render("mutation", MUTATION, {"root": "", "scores": scores, "parts": mutation.PARTS})
        else:
            (self._where / MUTATION).unlink(missing_ok=True)
        feed = Feed(self._state.feed)
        feed.add(told)
        (self._where / "feed.xml").write_text(feed.text(), encoding="utf-8")
        self._state.feed = feed.entries
        self._overview(rows, told)
        self._state.issues, self._state.builds = self._issue_lines, self._build_lines
        self._state.digests = self._digests
        self._state.save()
        return self._where / site_places.INDEX

    def _render(self, template: str, page: str, values: Mapping[str, object]) -> None:
        site_places.render(self._where, template, page, {"issues": self._issues, **values})

    # -- runs and results --------------------------------------------------------------------------------------

    def _bring_up_to_date(self) -> set[str]:
        """Render the runs that changed, remove those that went; the cases whose pages that touches."""
        touched: set[str] = set()
        there = {file_name(run.name): run for run in self._runs}
        for name in self._gone:
            shutil.rmtree(self._where / "runs" / name, ignore_errors=True)
            self._changed_failures |= set(self._state.runs[name].failures if name in self._state.runs else ())
        self._changed_failures |= self._store.contents(self._new)[1]
        self._state.runs = {name: known for name, known in self._state.runs.items() if name in there}
        states = {name: site_run.state_of(run.folder) for name, run in there.items()}  # before they are read
        tasks = [task for name, run in there.items() if (task := self._task(name, run, states[name]))]
        for task, made in zip(tasks, self._render_runs(tasks), strict=True):
            name = file_name(task.run.name)
            links = {part.split("/")[1] for part in task.hrefs if part.startswith("runs/")} - {name}
            self._state.runs[name] = KnownRun(
                state=task.state,
                told=task.told,
                around=task.around,
                pages=made.pages,
                failures=made.failures,
                links=tuple(sorted(links)),
                consoles=task.consoles,
            )
            if task.pages is None:
                touched |= set(made.cases)
            self._changed_failures |= set(made.failures)
        for name in self._unsettled:
            self._changed_failures |= set(self._state.runs[file_name(name)].failures)
        return touched

    def _task(self, name: str, run: Run, state: str) -> Task | None:
        """What is to be made anew of a run; None: nothing."""
        at = self._runs.index(run)
        following = self._runs[at - 1].name if at else ""
        previous = self._runs[at + 1].name if at + 1 < len(self._runs) else ""
        if run.finished is None and RunFolder(run.folder).is_held():
            state += " held"
        task = Task(self._where, run, state, {}, previous, following, self._issues)
        known = self._state.runs.get(name)
        is_same = known is not None and known.state == state
        is_settled = run.name not in self._unsettled and not (known and self._gone & set(known.links))
        if known and is_same and is_settled and known.around == task.around and _are_there(known.consoles):
            return None
        titles = {selected.build.line: selected.build.title for selected in self._store.of_run(run.name)}
        since, good, issues = self._history_of(run)
        consoles = {str(one.folder): site_run.state_of(one.folder) for one in good.values()}
        told = hashlib.sha256(repr((titles, since, good, consoles, issues)).encode()).hexdigest()[:16]
        task = replace(task, titles=titles, since=since, good=good, consoles=consoles, told=told)
        if not known or not is_same:
            return task
        if known.told != told:
            return replace(task, pages=known.pages)
        return replace(task, pages=known.pages, only_run=True) if known.around != task.around else None

    def _history_of(self, run: Run) -> tuple[dict[int, Since], dict[int, LastGood], list[KnownIssue]]:
        """For what went wrong in a run: since when it fails, the last time that it passed, and what is known of it."""
        failed = onsets.failed_in(self._store, run.id)
        begun: dict[tuple[int, int], Onset] = {}
        for build_id in {one.build.id for one in failed if one.is_failure}:
            wanted = [one.series_id for one in failed if one.is_failure and one.build.id == build_id]
            of_build = onsets.onsets(self._store, wanted, self._builds[build_id])
            begun |= {(build_id, series_id): onset for series_id, onset in of_build.items()}
        since, good = {}, {}
        seen = self._store.failures([one.failure for one in failed if one.is_failure])
        for one in failed:
            if (onset := begun.get((one.build.id, one.series_id))) and one.is_failure:
                since[one.place.ordinal] = self._since(one.case, onset, seen.get(one.failure))
            if one.good and one.good_at and one.good_folder:
                title = f"{one.good.title}, run {one.good_at.run}"
                href = self._place(one.good_at, Verdict.PASS, one.case)
                good[one.place.ordinal] = LastGood(title, href, Path(one.good_folder), one.good_at.ordinal)
        failures, cases = {one.failure for one in failed}, {one.case for one in failed}
        issues = [one for one in self._issues.all if one.failure in failures or one.case in cases]
        return since, good, issues

    def _since(self, case: str, onset: Onset, seen: Seen | None) -> Since:
        good = onset.good
        is_older = seen is not None and onset.is_after(seen.first)
        return Since(
            before=f"{seen.first.title}, in {short_name(seen.first_case)}" if seen and is_older else "",
            oldest="" if good else onset.oldest,
            title=onset.since.title,
            subject=onset.since.source.subject or "",
            href=self._place(onset.since_at, Verdict.FAIL, case),
            good_title=good.title if good else "",
            good_subject=(good.source.subject or "") if good else "",
            good_href=self._good_place(onset, case),
            bisect=bisect_command(case, onset) or "",
        )

    def _good_place(self, onset: Onset, case: str) -> str:
        """Where what was good last is shown: of a build that could be made the run, since no result says so."""
        if case == BUILD_CASE and onset.good_at:
            return site_places.run_page(onset.good_at.run) if onset.good_at.run in self._names else ""
        return self._place(onset.good_at, Verdict.PASS, case)

    def _place(self, place: Place | None, verdict: Verdict, case: str) -> str:
        """A result, from the top; empty when its run is not in the site."""
        if place is None or place.ordinal < 0 or place.run not in self._names:
            return ""
        return site_places.result_place(place, verdict, case)

    def _proof(self, place: Place) -> str:
        """The page of a result as it was rendered, from the top; empty when its run is not in the site."""
        known = self._state.runs.get(file_name(place.run))
        page = known.pages.page(place.ordinal) if known else ""
        return f"{site_places.run_folder(place.run)}{page}" if page else ""

    def _render_runs(self, tasks: Sequence[Task]) -> Iterator[Rendered]:
        """Many are shared out among the processors, neighbours to the same one: they show each other's consoles."""
        if len(tasks) < MANY:
            yield from map(site_run.render_run, tasks)
            return
        processors = os.cpu_count() or 1
        with ProcessPoolExecutor(processors, get_context("spawn"), gc.disable) as pool:  # no fork: there may be threads
            yield from pool.map(site_run.render_run, tasks, chunksize=max(1, len(tasks) // (4 * processors)))

    # -- faults ------------------------------------------------------------------------------------------------

    def _write_failures(self) -> None:
        """A page for each fault of the runs shown; those without a run go."""
        there = {failure for known in self._state.runs.values() for failure in known.failures}
        wanted = sorted(there & self._changed_failures)
        shown = [run.id for run in self._runs]
        for failure, of in site_cases.failure_pages(self._store, wanted, shown, self._issues, self._proof):
            self._render("failure", site_places.failure_page(failure), {"root": "../", **of})
        pages = {Path(site_places.failure_page(failure)).name for failure in there}
        site_places.keep_only(self._where / "failures", pages)

    # -- the overview ------------------------------------------------------------------------------------------

    def _overview(self, rows: Sequence[Row], told: News) -> None:
        groups = {change: [fault for fault in told.faults if fault.change is change] for change in news.WORST_FIRST}
        values = {
            "root": "",
            "rows": rows,
            "areas": sorted({area for row in rows for area in row.areas}),
            "news": told,
            "worse": groups[Change.NEW_FAILURE],
            "groups": [
                (title, overview.meaning(said, faults), faults)
                for title, said, changes in overview.GROUPS
                if (faults := [fault for change in changes for fault in groups[change]])
            ],
            "dearer": dearer.counted,
            "silent": [(found, one) for found in told.comparisons for one in found.open_figures],
            "steps": [(track, step) for track in self._tracks if (step := track.fresh)],
            "fixed": [(found, one) for found in told.comparisons for one in found.of(Change.FIXED)],
            "skipped": [(found, one) for found in told.comparisons for one in found.of(Change.SKIPPED)],
            "missing": [(found, one) for found in told.comparisons for one in found.of(Change.MISSING)],
            "excused": [
                (found, one) for found in told.comparisons for one in found.cases if one.known and not one.is_failure
            ],
            "drawn": {track.figure for track in self._tracks},
            "headline": overview.headline(told),
            "state": overview.state,
            "decision": overview.decision,
            "sums": lambda found: overview.sums(found, told),
            "causes": lambda found: overview.causes(found, told),
            "newest": {row.build.id: row.runs[0] for row in rows},
            "ended": overview.ended,
            "bench_says": overview.bench_says,
            "silence": lambda missing: overview.silence(told, missing),
            "believe": lambda fault: overview.believe(self._store, fault, told.comparisons),
            "proof": self._proof,
            "has_page": lambda fault: (self._where / site_places.failure_page(fault.name)).exists(),
            "mutation": MUTATION if (self._where / MUTATION).exists() else "",
            "now": time.time(),
        }
        self._render("overview", site_places.INDEX, values)

    def _rows(self) -> list[Row]:
        """The newest builds of the runs shown, newest run first."""
        areas: dict[int, dict[str, Counter[Verdict]]] = defaultdict(lambda: defaultdict(Counter))
        of: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for run_id, build_id, case, verdict, number in self._counts:
            area = area_of(case)
            areas[build_id][area][verdict] += number
            of[build_id][area].add(run_id)
        rows = []
        for id, by_area in of.items():
            ran = tuple(run for run in self._runs if any(run.id in ids for ids in by_area.values()))
            newest = {area: next(run for run in ran if run.id in ids) for area, ids in by_area.items()}
            rows.append(Row(self._builds[id], ran, {**areas[id]}, newest))
        rows.sort(key=lambda row: (row.runs[0].started, row.build.id), reverse=True)
        return rows[:BUILDS_SHOWN]


def _are_there(consoles: Mapping[str, str]) -> bool:
    """Whether folders are still as they were."""
    return all(site_run.state_of(Path(folder)) == state for folder, state in consoles.items())


def _newest(rows: Iterable[Row]) -> list[Row]:
    """The newest of each line."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.build.line, row)
    return list(found.values())
