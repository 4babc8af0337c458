"""What a run executed, as numbers: text for the terminal, and data for ``--json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lab.builds.gcov import Source, Sources
from lab.coverage.areas import files_of, without_files
from lab.coverage.measured import CaseCoverage, Measured, joined

Areas = Mapping[str, Sequence[str]]  # patterns of files
_NOTHING = Source()


@dataclass(frozen=True, slots=True)
class Figure:
    """How much there is, and how much of it was executed."""

    lines: int
    executed: int
    functions: int
    entered: int

    def __str__(self) -> str:
        lines = f"{self.executed:6} of {self.lines:6} {_percent(self.executed, self.lines)}"
        return f"{lines}  {self.entered:5} of {self.functions:5} {_percent(self.entered, self.functions)}"


HEAD = f"{'lines':>16}{'':9}{'functions':>16}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:5.1f} %" if whole else "    - %"


def figure(everything: Sources, executed: Sources, files: Iterable[str]) -> Figure:
    """Count over these files."""
    lines = done = functions = entered = 0
    for file in files:
        there, found = everything[file], executed.get(file, _NOTHING)
        lines += len(there.lines)
        done += len(there.lines & found.executed)
        functions += len(there.functions)
        entered += len(there.functions.keys() & found.entered)
    return Figure(lines, done, functions, entered)


def overview(measured: Measured, areas: Areas, area: str = "") -> Iterator[str]:
    """The run in numbers; of one area also its files."""
    everything, by_cases = measured.everything, measured.by_cases()
    whole = figure(everything, by_cases, everything)
    with_boots = figure(everything, joined([by_cases, measured.boots]), everything)
    yield f"run {measured.run}  build {measured.build}  Xen {measured.version}  key {measured.key}"
    yield f"cases that were read: {len(measured.cases)}"
    if measured.not_read:
        yield "not read, so nothing is known of what they executed:"
        for missed in measured.not_read:
            yield f"  {missed.case}  {missed.board + ': ' if missed.board else ''}{missed.why}"
    yield ""
    yield f"{'':26}{HEAD}"
    yield f"{'all of Xen, by the cases':26}{whole}"
    if measured.boots:
        yield f"{'and by boots before them':26}{with_boots}"
    yield ""
    yield f"{'files of the area':26}{HEAD}   lines by its own cases"
    for name in [area] if area else areas:
        files = files_of(areas[name], everything)
        own = figure(everything, measured.by_cases(name), files)
        said = f"{own.executed:6} {_percent(own.executed, own.lines)}"
        yield f"{name:26}{figure(everything, by_cases, files)}   {said}"
    for pattern in without_files(areas, everything):
        yield f"  no file of this build: {pattern}"
    if area:
        yield ""
        yield f"{'file':42}{HEAD}"
        for file in files_of(areas[area], everything):
            yield f"{file:42}{figure(everything, by_cases, [file])}"
    yield ""
    yield f"{'lines':>7} {'only it':>8}  case"
    only = alone(measured)
    for one in sorted(measured.cases, key=lambda case: (case.area, case.case)):
        if not area or one.area == area:
            counted = figure(everything, one.sources, everything)
            yield f"{counted.executed:7} {only[one.case]:8}  {one.verdict:5} {one.case}"


def alone(measured: Measured) -> Counter[str]:
    """How many lines each case executes that no other case does."""
    first: dict[tuple[str, int], str | None] = {}
    for case in measured.cases:
        for file, source in case.sources.items():
            for line in source.executed:
                first[file, line] = None if (file, line) in first else case.case
    return Counter(case for case in first.values() if case)


def of_line(measured: Measured, file: str, line: int) -> list[str]:
    """The cases that execute a line."""
    source = measured.everything[file]
    if line not in source.lines:
        return [f"{file}:{line}: no code was made of this line; the next one with code is {_next(source, line)}"]
    found = [case for case in measured.cases if case.executes(file, line)]
    said = [f"{file}:{line}: {len(found)} of {len(measured.cases)} cases execute it"]
    said += [f"  {case.verdict:5} {case.case}" for case in found]
    if line in measured.boots.get(file, _NOTHING).executed:
        said.append("  (a boot executes it before the first case)")
    return [*said, *_unknown(measured)]


def _unknown(measured: Measured) -> list[str]:
    """A warning where something was not read: what that executes looks like what nothing executes."""
    return [f"  ({len(measured.not_read)} cases or boards were not read)"] if measured.not_read else []


def _next(source: Source, line: int) -> str:
    return str(min((one for one in source.lines if one > line), default="none"))


def of_file(measured: Measured, file: str) -> Iterator[str]:
    """A file: its functions with the number of cases that enter each, and the lines that no case executes."""
    there = measured.everything[file]
    yield f"{file:42}{HEAD}"
    yield f"{'by the cases':42}{figure(measured.everything, measured.by_cases(), [file])}"
    yield ""
    yield f"{'cases':>6}  function"
    for name, line in sorted(there.functions.items(), key=lambda one: one[1]):
        count = sum(name in case.sources.get(file, _NOTHING).entered for case in measured.cases)
        yield f"{count:6}  {name} ({file}:{line})"
    yield ""
    yield "lines that no case executes: " + (", ".join(_ranges(_left(measured, file))) or "none")
    yield from _unknown(measured)


def never(measured: Measured, areas: Areas, area: str = "") -> Iterator[str]:
    """The functions of the areas' files that no case enters, and how many lines of each file none executes."""
    by_cases = measured.by_cases()
    yield from _unknown(measured)
    for name in [area] if area else areas:
        yield f"{name}:"
        for file in files_of(areas[name], measured.everything):
            source, found = measured.everything[file], by_cases.get(file, _NOTHING)
            missed = sorted((line, one) for one, line in source.functions.items() if one not in found.entered)
            if left := len(source.lines - found.executed):
                yield f"  {file}: {left} of {len(source.lines)} lines"
            for line, one in missed:
                boot = " (a boot does)" if one in measured.boots.get(file, _NOTHING).entered else ""
                yield f"    {one}:{line}{boot}"


def _left(measured: Measured, file: str) -> list[int]:
    return sorted(measured.everything[file].lines - measured.by_cases().get(file, _NOTHING).executed)


def _ranges(lines: Sequence[int]) -> Iterator[str]:
    for _, group in groupby(enumerate(lines), lambda pair: pair[1] - pair[0]):
        run = [line for _, line in group]
        yield f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}"


def as_data(measured: Measured, areas: Areas) -> dict[str, object]:
    """All of it, for programs."""
    everything, by_cases = measured.everything, measured.by_cases()
    only = alone(measured)

    def of_case(case: CaseCoverage) -> dict[str, object]:
        plain = {"case": case.case, "area": case.area, "verdict": case.verdict, "seconds": round(case.seconds, 2)}
        return plain | {"figure": figure(everything, case.sources, everything), "only_it": only[case.case]}

    return {
        "run": measured.run,
        "build": {"name": measured.build, "key": measured.key, "version": measured.version},
        "figure": figure(everything, by_cases, everything),
        "with_boots": figure(everything, joined([by_cases, measured.boots]), everything),
        "areas": {
            area: {
                "files": files_of(patterns, everything),
                "figure": figure(everything, by_cases, files_of(patterns, everything)),
                "own": figure(everything, measured.by_cases(area), files_of(patterns, everything)),
            }
            for area, patterns in areas.items()
        },
        "patterns_without_files": without_files(areas, everything),
        "files": {file: figure(everything, by_cases, [file]) for file in sorted(everything)},
        "cases": [of_case(case) for case in measured.cases],
        "not_read": list(measured.not_read),
    }


def line_as_data(measured: Measured, file: str, line: int) -> dict[str, object]:
    """The same as :func:`of_line`."""
    return {
        "file": file,
        "line": line,
        "has_code": line in measured.everything[file].lines,
        "cases": [case.case for case in measured.cases if case.executes(file, line)],
        "boot": line in measured.boots.get(file, _NOTHING).executed,
        "not_read": list(measured.not_read),
    }


def file_as_data(measured: Measured, file: str) -> dict[str, object]:
    """The same as :func:`of_file`."""
    there = measured.everything[file]
    enter = {
        name: [case.case for case in measured.cases if name in case.sources.get(file, _NOTHING).entered]
        for name in there.functions
    }
    return {
        "file": file,
        "figure": figure(measured.everything, measured.by_cases(), [file]),
        "functions": {name: {"line": line, "cases": enter[name]} for name, line in there.functions.items()},
        "never": _left(measured, file),
    }
