"""The pages: one static site for all runs that the history knows and whose folders are there.

It opens from disk, runs no script and loads nothing from elsewhere. What a run's folder says is rendered again only
when the folder changed; the overview each time, a case's page when a run with it came or went.

::

    index.html                 what got worse with the newest build of each line; builds x areas
    runs/RUN/index.html        a run: case x board x build
    runs/RUN/N.html            the N-th result of its results.jsonl, with all evidence
    runs/RUN/good-AREA.html    those that passed or were skipped, each at #rN: files cost more than what is in them
    cases/SLUG.html            a case over time
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from lab.base import paths
from lab.base.errors import UsageError
from lab.history import gate, pages
from lab.history.regression import Change
from lab.history.store import Build, Entry, History, Run, Selected
from lab.reporting import figures, html
from lab.results.record import RunHeader, TestResult, Verdict
from lab.results.run_folder import (
    RunFolder,
    by_case,
    exit_status,
    file_name,
    final,
    is_flaky,
    missing,
    replace_file,
    shortfalls,
    slug,
    visible_line,
)

log = logging.getLogger(__name__)

RUNS_SHOWN = 100
BUILDS_SHOWN = 40  # rows of the overview
LINES_JUDGED = 8  # lines of builds whose newest is judged on the overview
ATTEMPTS_LISTED = 30  # in the table of a case's page
MANY = 5  # runs to be rendered; fewer are not worth a process
INDEX = "index.html"

# The overview's groups, the worst first: what became of cases, and what to make of it.
GROUPS = (
    ("Got worse", "they passed with the baseline, and fail beyond chance: these block", (Change.NEW_FAILURE,)),
    ("Fails as before", "no news: the baseline fails, too", (Change.STILL_FAILING, Change.NEVER_PASSED)),
    ("Flaky", "passes and fails with the same build: within chance", (Change.FLAKY,)),
    ("Fixed", "failed with the baseline", (Change.FIXED,)),
    (
        "Not counted",
        "the bench or the case's own code failed, or it did not run: nothing is said about the hypervisor",
        (Change.NOT_COUNTED, Change.MISSING),
    ),
)


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
    with _held(where):
        return _Site(store, where).write()


@contextmanager
def _held(where: Path) -> Iterator[None]:
    """One writer at a time; the folder made."""
    if where.exists() and not (where / _State.NAME).exists() and (not where.is_dir() or any(where.iterdir())):
        raise UsageError(f"{where}: there is something else already; a new folder is wanted, or one of this site's")
    for folder in (where / "runs", where / "cases"):
        folder.mkdir(parents=True, exist_ok=True)
    with open(where / _State.NAME, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _State:
    """What is in the site: the run folders' state when they were rendered, and how many results each had."""

    NAME = ".site.json"

    def __init__(self, where: Path) -> None:
        self._file = where / self.NAME
        self.runs: dict[str, tuple[str, int]] = {}
        try:
            read = json.loads(self._file.read_text(encoding="utf-8"))
            if read["version"] == _version():
                self.runs = {str(name): (str(key), int(number)) for name, (key, number) in read["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # all is rendered anew

    def save(self) -> None:
        # In place: the file is the lock, too. One cut short is none, and all is rendered anew.
        self._file.write_text(json.dumps({"version": _version(), "runs": self.runs}), encoding="utf-8")


def _version() -> str:
    """Of what the pages are made with; another one renders them all anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.*")):
        if file.suffix in (".py", ".j2", ".css"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Row:
    """A build on the overview: its runs, newest first; for each area the verdicts in them, and the newest with it."""

    build: Build
    runs: tuple[Run, ...]
    areas: Mapping[str, Counter[Verdict]]
    newest: Mapping[str, Run]


@dataclass(frozen=True, slots=True)
class Told:
    """A finding of the gate, with the page of its proof (empty: there is none)."""

    finding: gate.Finding
    proof: str


@dataclass(frozen=True, slots=True)
class Judged:
    """The newest build of a line against its baseline."""

    found: gate.Comparison
    groups: tuple[tuple[str, str, tuple[Told, ...]], ...]


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
        self._state = _State(where)
        self._runs = [run for run in store.runs(RUNS_SHOWN) if _is_there(run)]

    def write(self) -> Path:
        touched = self._bring_up_to_date()
        rows = self._rows()
        judged = [self._judged(row.build) for row in _newest(rows)[:LINES_JUDGED]]
        for one in judged:  # what is missing now may be of no run shown
            touched |= {found.series.case for found in one.found.findings if not self._has_page(found.series.case)}
        style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
        (self._where / "style.css").write_text(style, encoding="utf-8")
        self._write_cases(sorted(touched))
        areas = sorted({area for row in rows for area in row.areas})
        _render(self._where, "overview", INDEX, root="", rows=rows, areas=areas, judged=judged, now=time.time())
        self._state.save()
        return self._where / INDEX

    def _has_page(self, case: str) -> bool:
        return (self._where / _case_page(case)).exists()

    # -- runs and results --------------------------------------------------------------------------------------

    def _bring_up_to_date(self) -> set[str]:
        """Render the runs that changed, remove those that went; the cases whose pages that touches."""
        touched: set[str] = set()
        there = {file_name(run.name): run for run in self._runs}
        gone = {path.name for path in (self._where / "runs").iterdir()} - there.keys()
        for name in gone:
            shutil.rmtree(self._where / "runs" / name, ignore_errors=True)
        if gone:  # their links are to go
            touched |= {case for _, _, case, _, _ in self._store.counts([run.id for run in self._runs])}
        self._state.runs = {name: known for name, known in self._state.runs.items() if name in there}
        keys = {name: _state_of(run.folder) for name, run in there.items()}  # before they are read
        changed = [name for name, key in keys.items() if self._state.runs.get(name, ("", 0))[0] != key]
        for name, cases in zip(changed, self._render_runs([there[name] for name in changed]), strict=True):
            self._state.runs[name] = keys[name], len(cases)
            touched |= set(cases)
        return touched

    def _render_runs(self, changed: Sequence[Run]) -> Iterator[list[str]]:
        """For each run the cases of its results, in their order. Many are shared out among the processors."""
        render = partial(_render_run, self._where)
        if len(changed) < MANY:
            yield from map(render, changed)
            return
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:  # no fork: there may be threads
            yield from pool.map(render, changed)

    # -- cases -------------------------------------------------------------------------------------------------

    def _write_cases(self, cases: Sequence[str]) -> None:
        for case, found in groupby(pages.case_pages(self._store, *cases), key=lambda page: page.series.case):
            shown = []
            for page in found:
                crashes = Counter(entry.fingerprint for entry in page.entries if entry.fingerprint)
                latest = {entry.fingerprint: entry for entry in page.entries if entry.fingerprint}
                chart = figures.durations_svg(
                    f"seconds of the last {len(page.entries)} attempts",
                    [
                        (entry.seconds, entry.verdict.value, f"{entry.build.label} {entry.run}")
                        for entry in page.entries
                    ],
                )
                strip = [(build, list(of)) for build, of in groupby(page.entries, key=lambda entry: entry.build)]
                listed = list(reversed(page.entries[-ATTEMPTS_LISTED:]))
                shown.append((page, strip, markupsafe.Markup(chart), crashes, latest, listed))
            _render(
                self._where,
                "case",
                _case_page(case),
                root="../",
                case=case,
                shown=shown,
                proof=self._proof,
                status=pages.status,
            )

    def _proof(self, entry: Entry) -> str:
        """The page of an attempt; empty when its run is not in the site."""
        number = self._state.runs.get(file_name(entry.run), ("", 0))[1]
        if not 0 <= entry.ordinal < number:
            return ""
        page = _result_page(entry.ordinal, entry.verdict, entry.series.case)
        return f"{_run_page(entry.run).removesuffix(INDEX)}{page}"

    # -- the overview ------------------------------------------------------------------------------------------

    def _rows(self) -> list[Row]:
        """The newest builds of the runs shown, newest run first."""
        known = {build.id: build for build in self._store.builds()}
        runs = {run.id: run for run in self._runs}
        areas: dict[int, dict[str, Counter[Verdict]]] = defaultdict(lambda: defaultdict(Counter))
        of: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for run_id, build_id, case, verdict, number in self._store.counts(list(runs)):
            area = html.area_of(case)
            areas[build_id][area][verdict] += number
            of[build_id][area].add(run_id)
        rows = []
        for id, by_area in of.items():
            ran = tuple(run for run in self._runs if any(run.id in ids for ids in by_area.values()))
            newest = {area: next(run for run in ran if run.id in ids) for area, ids in by_area.items()}
            rows.append(Row(known[id], ran, {**areas[id]}, newest))
        rows.sort(key=lambda row: (row.runs[0].started, row.build.id), reverse=True)
        return rows[:BUILDS_SHOWN]

    def _judged(self, build: Build) -> Judged:
        new = Selected(build)
        found = gate.compare(self._store, new, gate.baseline(self._store, new))
        wanted = {finding.series for _, _, changes in GROUPS for finding in found.of(*changes)}
        proofs: dict[int, str] = {}
        for entry in self._store.entries(sorted({series.case for series in wanted}), pages.SHOWN):
            if entry.build.id == build.id and (page := self._proof(entry)):
                if entry.verdict not in (Verdict.PASS, Verdict.SKIP) or entry.series.id not in proofs:
                    proofs[entry.series.id] = page
        groups = []
        for title, meaning, changes in GROUPS:
            told = tuple(Told(one, proofs.get(one.series.id, "")) for one in found.of(*changes))
            if told:
                groups.append((title, meaning, told))
        return Judged(found, tuple(groups))


def _newest(rows: Iterable[Row]) -> list[Row]:
    """The newest of each line."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.build.line, row)
    return list(found.values())


def _by_area(header: RunHeader, results: Sequence[TestResult]) -> dict[str, list[str]]:
    """The cases of a run that have a result, by area, those that must have a PASS first."""
    areas: dict[str, dict[str, None]] = {area: {} for area in header.required_areas}
    for result in results:
        areas.setdefault(html.area_of(result.case), {})[result.case] = None
    return {area: list(cases) for area, cases in areas.items()}


def _state_of(folder: Path) -> str:
    """Changes whenever what is shown of a run does."""
    found = []
    for name in ("run.json", "builds.json", "results.jsonl"):
        try:
            state = (folder / name).stat()
            found.append(f"{state.st_mtime_ns}:{state.st_size}")
        except OSError:
            found.append("-")
    return " ".join([str(folder), *found])


def _case_page(case: str) -> str:
    return f"cases/{slug(visible_line(case))}.html"


def _result_page(number: int, verdict: Verdict, case: str) -> str:
    """In the folder of its run."""
    if verdict in (Verdict.PASS, Verdict.SKIP):
        return f"good-{file_name(visible_line(html.area_of(case)))}.html#r{number}"
    return f"{number}.html"


def _run_page(run: str) -> str:
    return f"runs/{file_name(run)}/{INDEX}"


# -- a run, in whatever process ------------------------------------------------------------------------------------


def _render_run(where: Path, run: Run) -> list[str]:
    """The pages of a run and its results; of each of these its case."""
    folder = RunFolder.open(run.folder)
    header, everything = folder.header(), list(folder.results())
    (where / "runs" / file_name(run.name)).mkdir(exist_ok=True)
    pages_of = {id(one): _result_page(n, one.verdict, one.case) for n, one in enumerate(everything)}
    attempts = by_case(everything)
    shared: dict[str, list[tuple[int, html.Shown]]] = defaultdict(list)
    for number, result in enumerate(everything):
        others = tuple(one for one in attempts[result.case, result.build] if one is not result)
        page = pages_of[id(result)].partition("#")[0]
        shared[page].append((number, html.show(folder, result, others)))
    for page, shown in shared.items():
        file = f"{_run_page(run.name).removesuffix(INDEX)}{page}"
        _render(where, "result", file, root="../../", run=run, shown=shown, several=len(header.builds) > 1)
    results = final(header, everything)
    columns = sorted({(one.build, one.boards) for one in results})
    cells = {(one.case, one.build, one.boards): one for one in results}
    _render(
        where,
        "run",
        _run_page(run.name),
        root="../../",
        run=run,
        header=header,
        status=(status := exit_status(header, results) if header.exit_status is None else header.exit_status),
        meaning=html.STATUS_MEANING.get(status, "ended abnormally"),
        overall=html.overall(header, results, status),
        shortfalls=shortfalls(header, results),
        builds=folder.builds(),
        counts=Counter(one.verdict for one in results),
        columns=columns,
        areas=_by_area(header, results),
        cells=cells,
        missing=missing(header, results),
        attempts=attempts,
        page_of=lambda result: pages_of[id(result)],
    )
    return [visible_line(result.case) for result in everything]


@cache
def _environment() -> jinja2.Environment:
    made = html.environment()
    made.globals |= {
        "Verdict": Verdict,
        "summed": gate.summed,
        "is_flaky": is_flaky,
        "case_page": _case_page,
        "run_page": _run_page,
    }
    made.filters |= {"day": gate.day, "name": html.short_name, "area": html.area_of}
    return made


def _render(where: Path, template: str, file: str, **values: Any) -> None:
    text = _environment().get_template(f"{template}.html.j2").render(**values)
    if file == INDEX:  # may be looked at right now
        replace_file(where / file, text)
        return
    with open(where / file, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
        out.write(text)
