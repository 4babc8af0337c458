"""``report.html``: one file that needs nothing else, opens from disk, and runs no script.

The template is ``report.html.j2``. All text is escaped by Jinja2; drawings come in as images, where nothing
in them can run. Only the map of relocations, which is made here and links to its cases, is part of the page.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import jinja2
import markupsafe

from lab.reporting import console_lines
from lab.reporting.console_lines import Line
from lab.reporting.figures import Tile, heat_map, timeline_svg
from lab.reporting.junit import shortened
from lab.results.record import Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import (
    RunFolder,
    by_case,
    exit_status,
    final,
    is_flaky,
    kinds_path,
    missing,
    replace_file,
    shortfalls,
    stamp,
    visible,
)

NAME = "report.html"
BODY_LIMIT = 64 * 1024  # characters shown of an evidence or a console slice
PASS_CONSOLE_LIMIT = 16 * 1024  # the same of a case that passed
PICTURE_LIMIT = 2 * 2**20  # bytes
FOLDED_ABOVE = 2000  # characters of a body that is folded

STATUS_MEANING = {
    0: "all that was asked for passed",
    1: "a case failed",
    2: "the run was asked for in a wrong way",
    3: "the bench failed, or not all that was asked for ran",
    130: "the run was interrupted",
}
_COLUMNS = tuple(Verdict)


def write(folder: RunFolder) -> Path:
    """Write ``report.html`` into the run folder; its path."""
    header = folder.header()
    everything = list(folder.results())
    results = final(header, everything)
    cases = _cases(folder, header, everything, results)
    builds = list(dict.fromkeys([*header.builds, *(case.build for case in cases)]))
    status = exit_status(header, results) if header.exit_status is None else header.exit_status
    is_partial = header.finished is None
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            header=header,
            status=status,
            overall=overall(header, results, status),
            meaning=STATUS_MEANING.get(status, "ended abnormally"),
            is_partial=is_partial,
            shortfalls=shortfalls(header, results),
            build_facts=folder.builds(),
            builds=builds,
            verdicts=_COLUMNS,
            counts={verdict: sum(case.verdict is verdict for case in cases) for verdict in _COLUMNS},
            areas=_areas(header, cases),
            rows=_rows(cases, builds),
            maps=_maps(cases, builds),
            cases=cases,
            wrong=sorted(
                (case for case in cases if case.verdict not in (Verdict.PASS, Verdict.SKIP)),
                key=lambda case: -case.verdict.severity,
            ),
            run_bar=_bar(header.phases),
            run_timeline=_timeline("The run", header.phases),
            case_bar=_bar([phase for result in everything for phase in result.phases]),
            case_seconds=sum(result.seconds for result in everything),
        )
    )
    path = folder.path / NAME
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
    made.filters["seconds"] = seconds_text
    made.filters["stamp"] = stamp
    made.filters["clock"] = lambda when: stamp(when)[11:23]
    return made


def overall(header: RunHeader, results: Sequence[TestResult], status: int) -> Verdict:
    """The run in one word: the gravest verdict; MISS where something is missing."""
    gravest = max((result.verdict for result in results), key=lambda v: v.severity, default=Verdict.MISS)
    if gravest.severity < Verdict.MISS.severity and (status != 0 or shortfalls(header, results)):
        return Verdict.MISS
    return gravest


def seconds_text(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# What the template is given.


@dataclass(frozen=True, slots=True)
class Fact:
    """An evidence, its body ready to be shown."""

    kind: str
    title: str
    board: str
    time: float
    body: str
    is_folded: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """What is shown of a board's console."""

    board: str
    path: str
    lines: tuple[Line, ...]
    crashes: int
    warnings: int

    @property
    def markup(self) -> markupsafe.Markup:
        """The lines as elements; there are so many that a template takes long."""
        parts = []
        for line in self.lines:
            mark = f' class="{line.mark}"' if line.mark else ""
            parts.append(f"<span{mark}><b>{markupsafe.escape(line.time)}</b> {markupsafe.escape(line.text)}</span>")
        return markupsafe.Markup("".join(parts))


@dataclass(frozen=True, slots=True)
class Segment:
    """Phases of one name, summed."""

    name: str
    seconds: float
    count: int
    share: float  # percent of all
    colour: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A case and build, with a result or without."""

    anchor: str
    case: str
    name: str
    area: str
    build: str
    verdict: Verdict
    rule: str
    reason: str
    seconds: float | None = None
    boards: tuple[str, ...] = ()
    result: TestResult | None = None
    facts: tuple[Fact, ...] = ()
    slices: tuple[Slice, ...] = ()
    together: tuple[tuple[int, Line], ...] = ()  # two consoles by time: which of them, and its line
    pictures: tuple[tuple[str, str], ...] = ()
    timeline: str = ""
    earlier: tuple[TestResult, ...] = field(default=())

    @property
    def is_flaky(self) -> bool:
        return self.result is not None and is_flaky([self.result, *self.earlier])


def _cases(
    folder: RunFolder, header: RunHeader, everything: Sequence[TestResult], results: Sequence[TestResult]
) -> list[Shown]:
    shown: list[Shown] = []
    attempts = by_case(everything)
    for result in results:
        earlier = tuple(one for one in attempts[result.case, result.build] if one is not result)
        shown.append(show(folder, result, earlier, f"case-{len(shown)}"))
    for one in missing(header, results):
        shown.append(
            Shown(
                anchor=f"case-{len(shown)}",
                case=one.case,
                name=short_name(one.case),
                area=area_of(one.case),
                build=one.build,
                verdict=Verdict.MISS,
                rule="did-not-run",
                reason="did not run",
            )
        )
    return shown


def show(folder: RunFolder, result: TestResult, earlier: tuple[TestResult, ...], anchor: str = "") -> Shown:
    """A result with all that stands beside it, read from the run folder."""
    slices = tuple(_slice(folder, result, *item) for item in sorted(result.consoles.items()))
    return Shown(
        anchor=anchor,
        case=result.case,
        name=short_name(result.case),
        area=result.area,
        build=result.build,
        verdict=result.verdict,
        rule=result.rule,
        reason=result.reason,
        seconds=result.seconds,
        boards=result.boards,
        result=result,
        facts=tuple(_fact(one) for one in result.evidence),
        slices=slices,
        together=_together(slices),
        pictures=tuple(_pictures(folder, result)),
        timeline=_timeline("Phases", result.phases),
        earlier=earlier,
    )


def _together(slices: Sequence[Slice]) -> tuple[tuple[int, Line], ...]:
    """The lines of two consoles in the order of their times; what has no time stays behind the line before it."""
    if len(slices) != 2:
        return ()
    keyed = []
    for column, slice in enumerate(slices):
        last = ""
        for number, line in enumerate(slice.lines):
            last = line.stamp or last
            keyed.append((last, column, number, line))
    return tuple((column, line) for _, column, _, line in sorted(keyed, key=lambda one: one[:3]))


def short_name(nodeid: str) -> str:
    """The case's own name."""
    return nodeid.rpartition("::")[2] or nodeid


def area_of(nodeid: str) -> str:
    """The folder below ``testcases/`` that a case is in, told from its name."""
    return nodeid.split("/")[1] if nodeid.count("/") > 1 else "other"


def _areas(header: RunHeader, cases: Sequence[Shown]) -> dict[str, dict[Verdict, int]]:
    areas = {area: dict.fromkeys(_COLUMNS, 0) for area in header.required_areas}
    for case in cases:
        areas.setdefault(case.area, dict.fromkeys(_COLUMNS, 0))[case.verdict] += 1
    return areas


def _rows(cases: Sequence[Shown], builds: Sequence[str]) -> list[tuple[Shown, list[Shown | None]]]:
    """For each case one that names it, and that of each build."""
    cells = {(case.case, case.build): case for case in cases}
    firsts = {case.case: case for case in reversed(cases)}
    ordered = [firsts[name] for name in dict.fromkeys(case.case for case in cases)]
    areas = {area: index for index, area in enumerate(dict.fromkeys(case.area for case in cases))}
    ordered.sort(key=lambda case: areas[case.area])
    return [(case, [cells.get((case.case, build)) for build in builds]) for case in ordered]


# What the tiles of the map say: the ending of xl migrate, in a word.
_ENDINGS = {
    "SUCCESS": "success",
    "RESUMED_AT_SENDER": "resumed",
    "GIVEN_BACK": "given back",
    "NOT_SUSPENDED": "no suspend",
    "UNDEFINED": "undefined",
    "REFUSED": "refused",
    "KILLED": "killed",
    "LOST": "lost",
}


def _maps(cases: Sequence[Shown], builds: Sequence[str]) -> list[markupsafe.Markup]:
    """For each build with relocations that were broken: the endings, by fault and step, a map a kind of guest."""
    maps = []
    for build in builds:
        tiles: dict[str, dict[tuple[str, str], Tile]] = {}
        orders: dict[str, int] = {}
        for case in (case for case in cases if case.build == build):
            for cell in _cells(case):
                guest, fault, place = (str(cell.get(key, "")) for key in ("guest", "fault", "place"))
                tiles.setdefault(guest, {})[fault, place] = _tile(case, cell)
                order = cell.get("order")
                orders[place] = order if isinstance(order, int) else len(orders)
        for guest, of_guest in tiles.items():
            faults = list(dict.fromkeys(fault for fault, _ in of_guest))
            places = sorted({place for _, place in of_guest}, key=lambda place: orders[place])
            title = f"Relocation of {guest}: endings by fault and step" + (f" ({build})" if len(builds) > 1 else "")
            maps.append(markupsafe.Markup(heat_map(title, faults, places, of_guest)))
    return maps


def _cells(case: Shown) -> list[Mapping[str, object]]:
    """What a case has recorded of cells of the relocation matrix."""
    found: list[Mapping[str, object]] = []
    for fact in case.result.evidence if case.result else ():
        if fact.kind == "cell":
            try:
                cell = json.loads(fact.body)
            except (ValueError, RecursionError):
                continue
            if isinstance(cell, dict):
                found.append(cell)
    return found


def _tile(case: Shown, cell: Mapping[str, object]) -> Tile:
    ending, wanted = str(cell.get("ending", "")), str(cell.get("wanted", ""))
    kind = "warn" if cell.get("known") and case.verdict is Verdict.PASS else case.verdict.value
    tip = f"{case.verdict}: {ending}, must be {wanted}"
    for word in ("unproved", "bad", "known"):
        if said := cell.get(word):
            tip += f"; {word}: {', '.join(map(str, said)) if isinstance(said, list) else said}"
    return Tile(_ENDINGS.get(ending, ending) + (" *" if cell.get("known") else ""), kind, tip, case.anchor)


def _fact(one: Evidence) -> Fact:
    body = visible(shortened(one.body, BODY_LIMIT))
    return Fact(one.kind, one.title, one.board or "", one.time, body, len(body) > FOLDED_ABOVE)


@lru_cache
def _real(path: Path) -> str:
    return os.path.realpath(path) + os.sep


def _inside(folder: RunFolder, path: str) -> Path | None:
    """The file of a record's relative path; None when it is not there or not within the run folder."""
    try:
        file = os.path.realpath(folder.path / path)
        return Path(file) if file.startswith(_real(folder.path)) and os.path.isfile(file) else None
    except (OSError, ValueError):
        return None


def _slice(folder: RunFolder, result: TestResult, board: str, path: str) -> Slice:
    file = _inside(folder, path)
    if file is None:
        return Slice(board, path, (Line("", "the slice is not in the run folder", "note"),), 0, 0)
    limit = BODY_LIMIT if result.verdict not in (Verdict.PASS, Verdict.SKIP) else PASS_CONSOLE_LIMIT
    told = console_lines.told(file, _inside(folder, str(kinds_path(Path(path)))), limit)
    return Slice(board, path, told.lines, told.crashes, told.warnings)


def _pictures(folder: RunFolder, result: TestResult) -> list[tuple[str, str]]:
    """Title and data URI; the URI is empty when there is no picture to be had."""
    found = []
    for title, path in result.pictures.items():
        file = _inside(folder, path)
        is_good = file is not None and file.stat().st_size <= PICTURE_LIMIT
        found.append((title, _data_uri(file.read_bytes()) if file and is_good else ""))
    return found


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _timeline(title: str, phases: Sequence[Phase]) -> str:
    if not phases:
        return ""
    spans = [(phase.name, phase.started, phase.started + phase.seconds, phase.name) for phase in phases]
    return _data_uri(timeline_svg(title, spans).encode())


def _bar(phases: Sequence[Phase]) -> list[Segment]:
    sums: dict[str, tuple[float, int]] = {}
    for phase in phases:
        seconds, count = sums.get(phase.name, (0.0, 0))
        sums[phase.name] = (seconds + max(phase.seconds, 0.0), count + 1)
    total = sum(seconds for seconds, _ in sums.values()) or 1.0
    ordered: list[tuple[str, tuple[float, int]]] = sorted(sums.items(), key=lambda item: -item[1][0])
    return [
        Segment(name, seconds, count, 100 * seconds / total, index % 7)
        for index, (name, (seconds, count)) in enumerate(ordered)
    ]
