"""What a run executed, as pages in its folder: from the area to the file, to the line, to the cases that execute it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.builds.gcov import Source
from lab.coverage import tables
from lab.coverage.areas import files_of
from lab.coverage.measured import Measured
from lab.reporting import html
from lab.results.run_folder import COVERAGE_PAGE, replace_file
from lab.results.summary import RunSummary

_NOTHING = Source()


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a source. ``group``: the number of the cases that execute it; None: there is no code on it."""

    number: int
    text: str
    group: int | None


def write(measured: Measured, areas: Mapping[str, Sequence[str]], run: RunSummary) -> Path:
    """Write the pages into the run folder; those of before go. Returns the first one."""
    page = run.path / COVERAGE_PAGE
    shutil.rmtree(page.parent, ignore_errors=True)
    page.parent.mkdir()
    everything, by_cases = measured.everything, measured.by_cases()
    anchors = {
        one.case: f"../{html.NAME}#case-{number}"
        for number, one in enumerate(run.results)
        if one.build == measured.build
    }
    common = {"measured": measured, "anchors": anchors}
    figures = {file: tables.figure(everything, by_cases, [file]) for file in everything}
    kept = {file for file in everything if (measured.folder / "source" / file).is_file()}
    templates = html.environment()
    source_page = templates.get_template("coverage_file.html.j2")
    for file in sorted(kept):
        text = (measured.folder / "source" / file).read_text(encoding="utf-8", errors="replace")
        rows, groups = _rows(measured, file, text)
        values = {"file": file, "rows": rows, "groups": groups, "figure": figures[file]}
        (page.parent / page_of(file)).write_text(source_page.render(common | values), encoding="utf-8")
    parts = [
        (
            area,
            files_of(patterns, everything),
            tables.figure(everything, by_cases, files_of(patterns, everything)),
            tables.figure(everything, measured.by_cases(area), files_of(patterns, everything)),
        )
        for area, patterns in areas.items()
    ]
    in_areas = {file for _, files, _, _ in parts for file in files}
    values = {
        "whole": tables.figure(everything, by_cases, everything),
        "parts": parts,
        "others": sorted(everything.keys() - in_areas),
        "figures": figures,
        "pages": {file: page_of(file) for file in kept},
        "alone": tables.alone(measured),
    }
    replace_file(page, templates.get_template("coverage.html.j2").render(common | values))
    return page


def page_of(file: str) -> str:
    """``xen.common.domain.c.html``"""
    return f"{file.replace('/', '.')}.html"


def _rows(measured: Measured, file: str, text: str) -> tuple[list[Row], list[tuple[str, ...]]]:
    """The lines of a file, and the groups of cases that execute some of them: the largest first."""
    there = measured.everything[file]
    by_line = {line: tuple(_cases(measured, file, line)) for line in there.lines}
    groups = sorted(set(by_line.values()), key=lambda one: (-len(one), one))
    number = {group: place for place, group in enumerate(groups)}
    rows = [
        Row(line, said, number[by_line[line]] if line in by_line else None)
        for line, said in enumerate(text.splitlines(), 1)
    ]
    return rows, groups


def _cases(measured: Measured, file: str, line: int) -> Iterator[str]:
    return (one.case for one in measured.cases if line in one.sources.get(file, _NOTHING).executed)
