"""What the cases of one run executed, read from its folder with the notes of its build."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.base.errors import BenchError, UsageError
from lab.builds import gcov, making
from lab.builds.gcov import Source, Sources
from lab.coverage import counters
from lab.results.record import COVERAGE, TestResult, Verdict
from lab.results.run_folder import slug
from lab.results.summary import RunSummary


@dataclass(frozen=True)
class CaseCoverage:
    """What one case executed, in all its attempts and on all its boards; ``seconds`` is what counting cost."""

    case: str
    area: str
    verdict: Verdict  # of its last attempt
    sources: Sources
    seconds: float

    def executes(self, file: str, line: int) -> bool:
        source = self.sources.get(file)
        return source is not None and line in source.executed


@dataclass(frozen=True)
class NotRead:
    """A case whose counters are not there on a board: nothing is known of what it executed there."""

    case: str
    board: str  # empty: on none
    why: str


@dataclass(frozen=True)
class Measured:
    """A run with one build. ``everything`` has all lines and functions of the build."""

    run: str
    build: str
    key: str
    version: str
    folder: Path  # of the build's notes and sources
    everything: Sources
    cases: tuple[CaseCoverage, ...]
    not_read: tuple[NotRead, ...]
    boots: Sources = field(default_factory=dict)  # what was executed before the first case of each boot

    def by_cases(self, area: str = "") -> Sources:
        """What the cases, or those of an area, executed together."""
        return joined(one.sources for one in self.cases if not area or one.area == area)


def joined(many: Iterable[Sources]) -> Sources:
    """What was executed in any of them."""
    found: Sources = {}
    for sources in many:
        for file, one in sources.items():
            source = found.setdefault(file, Source())
            source.executed |= one.executed
            source.entered |= one.entered
    return found


def of_run(run: RunSummary, build: str = "") -> Measured:
    """Read all counters of a run, about a second for each case. What gcov said is kept beside them for the next time.

    ``build``: one of the run's; needed where several were counted.

    A file of counters that is damaged costs its case, which is then one of :attr:`Measured.not_read`.

    :raises UsageError: the run did not count, or the notes of its build are gone.
    :raises BenchError: no counters could be read.
    """
    name = _build_of(run, build)
    facts = run.builds.get(name, {})
    key = facts.get("key", "")
    if not (notes := making.notes_of(key)):
        again = f"make it again: xenlab build {name}" if key else "the run did not get as far as its build"
        raise UsageError(f"the notes of build {name} (key {key or 'unknown'}) are not in the cache: {again}")
    program, folder = notes
    results = [one for one in run.everything if one.build == name]
    not_read = list(_not_read(run, name, results))
    if not any(one.counters for one in results):
        why = f": {not_read[0].why}" if not_read else ""
        raise BenchError(f"{run.path}: no counters were read with build {name}, so nothing is known{why}")
    kept = sorted({run.path / file for one in results for file in one.counters.values()})
    boots = sorted((run.path / "cases").glob(f"**/*{counters.BOOT}"))
    if len(run.header.builds) > 1:
        boots = [path for path in boots if slug(name) in path.parts]
    with ThreadPoolExecutor() as pool:  # gcov is a process of its own
        asked = {path: pool.submit(_read, path, key, program, folder) for path in (*kept, *boots)}
        read: dict[Path, Sources] = {}
        damaged: dict[Path, str] = {}
        for path, answer in asked.items():
            try:
                read[path] = answer.result()
            except BenchError as error:
                damaged[path] = str(error)
    for one in results:
        files = {board: run.path / file for board, file in one.counters.items()}
        not_read += [NotRead(one.case, board, damaged[file]) for board, file in files.items() if file in damaged]
    not_read += [NotRead(f"boot: {path.name}", "", damaged[path]) for path in boots if path in damaged]
    if not read:
        raise BenchError(f"{run.path}: no counters can be read: {not_read[-1].why}")
    return Measured(
        run=run.header.run_id,
        build=name,
        key=key,
        version=facts.get("version", ""),
        folder=folder,
        everything=gcov.everything(folder),
        cases=tuple(_cases(run.path, results, read)),
        not_read=tuple(not_read),
        boots=joined(read[path] for path in boots if path in read),
    )


def _build_of(run: RunSummary, wanted: str) -> str:
    if not run.header.counts:
        raise UsageError(f"{run.path}: this run did not count what was executed; xenlab nightly --coverage does")
    names = run.header.builds
    if wanted and wanted not in names:
        raise UsageError(f"--build {wanted}: the run has {', '.join(names)}")
    if not wanted and len(names) > 1:
        raise UsageError(f"the run has several builds; choose one by --build: {', '.join(names)}")
    return wanted or names[0]


def _read(path: Path, key: str, program: str, folder: Path) -> Sources:
    """What gcov says of a file of counters; from a file beside it, if this was asked before."""
    known = path.with_name(path.name.removesuffix(counters.SUFFIX) + ".lines.json.gz")
    with suppress(OSError, ValueError, KeyError, TypeError, EOFError):
        said = json.loads(gzip.decompress(known.read_bytes()))
        if said["key"] == key:
            return {name: Source.of_data(one) for name, one in said["sources"].items()}
    found = gcov.read(program, folder, counters.load(path))
    executed = {
        name: Source(executed=one.executed, entered=one.entered)
        for name, one in found.items()
        if one.executed or one.entered
    }
    with suppress(OSError):  # a folder that may only be read
        text = json.dumps({"key": key, "sources": {name: one.as_data() for name, one in executed.items()}})
        known.write_bytes(gzip.compress(text.encode()))
    return executed


def _cases(run: Path, results: Sequence[TestResult], read: Mapping[Path, Sources]) -> Iterable[CaseCoverage]:
    attempts: dict[str, list[TestResult]] = {}
    for one in results:
        attempts.setdefault(one.case, []).append(one)
    for case, tried in attempts.items():
        files = [file for one in tried for name in one.counters.values() if (file := run / name) in read]
        if files:
            seconds = sum(phase.seconds for one in tried for phase in one.phases if phase.name == COVERAGE)
            sources = joined(read[file] for file in files)
            yield CaseCoverage(case, tried[-1].area, tried[-1].verdict, sources, seconds)


def _not_read(run: RunSummary, build: str, results: Sequence[TestResult]) -> Iterable[NotRead]:
    seen = set()
    for one in results:
        seen.add(one.case)
        for board, why in one.not_read.items():
            yield NotRead(one.case, board, why)
        if not one.counters and not one.not_read:
            yield NotRead(one.case, "", f"{one.verdict}: {one.reason}" if one.reason else "it used no board")
    for case in run.header.planned:
        if case not in seen:
            yield NotRead(case, "", "it did not run")


def check_file(measured: Measured, text: str) -> str:
    """The file of Xen that ``text`` names, whole or by its end.

    :raises UsageError: no file of the build, or several.
    """
    found = [file for file in measured.everything if file == text or file.endswith(f"/{text}")]
    if text in found:
        return text
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{text} is one of {', '.join(sorted(found))}: name one")
    raise UsageError(f"{text}: no file of this build with code in it; as xen/common/domain.c")
