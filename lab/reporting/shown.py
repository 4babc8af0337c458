"""A result with all that stands beside it, read from its run folder and ready for a page."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import markupsafe

from lab.console.patterns import DUMP_BEGINS
from lab.reporting import console_lines
from lab.reporting.console_lines import AROUND, Line
from lab.reporting.figures import timeline_svg
from lab.reporting.words import area_of, short_name, shortened
from lab.results.failures import failure_of, known_findings
from lab.results.record import Evidence, Phase, TestResult, Verdict
from lab.results.run_folder import kinds_path, visible, visible_line
from lab.results.summary import DID_NOT_RUN, Missing, is_flaky

BODY_LIMIT = 64 * 1024  # characters shown of an evidence or a console slice
PASS_CONSOLE_LIMIT = 16 * 1024  # the same of the console of a case that passed
PASS_BODY_LIMIT = 8 * 1024  # and of its evidence
PICTURE_LIMIT = 2 * 2**20  # bytes
DUMP_LINES = 60  # before a crash in which the head of its register dump is looked for
TELLING_CRASHES, TELLING_CALLERS = 2, 3  # lines that are shown ahead of a console
_WHERE, _TRACE = re.compile(r"\b[RE]IP:"), re.compile(r"\b[Cc]all [Tt]race\b")
FOLDED_ABOVE = 2000  # characters of a body that is folded


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

    def linked(self, prefix: str) -> markupsafe.Markup:
        """The lines as elements, each with a link to itself."""
        return _linked(self.lines, prefix)

    @property
    def _opening(self) -> int:
        crash = next((at for at, line in enumerate(self.lines) if line.mark == "crash"), 0)
        above = range(crash - 1, max(crash - DUMP_LINES, 0) - 1, -1)
        dump = next((at for at in above if DUMP_BEGINS in self.lines[at].text), crash)
        return max(min(crash - AROUND, dump - 1), 0)

    @property
    def telling(self) -> tuple[Line, ...]:
        """The few lines that tell of a crash: which it is, where it struck, who called; none where there is none."""
        crashes = [at for at, line in enumerate(self.lines) if line.mark == "crash"]
        if not crashes:
            return ()
        near = range(self._opening, min(crashes[0] + DUMP_LINES, len(self.lines)))
        where = [at for at in near if _WHERE.search(self.lines[at].text)][:1]
        trace = next((at for at in near if _TRACE.search(self.lines[at].text)), near.stop)
        callers = range(trace, min(trace + 1 + TELLING_CALLERS, near.stop))
        wanted = sorted({*crashes[:TELLING_CRASHES], *where, *callers})
        return tuple(self.lines[at] for at in wanted if self.lines[at].number)

    def told(self, prefix: str) -> markupsafe.Markup:
        """These, each with a link to where it stands."""
        texts = [(markupsafe.escape(f"{prefix}-{line.number}"), markupsafe.escape(line.text)) for line in self.telling]
        return markupsafe.Markup("\n".join(f'<a href="#{name}">{text}</a>' for name, text in texts))

    @property
    def hidden(self) -> int:
        """How many lines stand before those that are seen first: from a few before the first crash, or its dump, on."""
        return self._opening

    def before(self, prefix: str) -> markupsafe.Markup:
        """The lines before these."""
        return _linked(self.lines[: self._opening], prefix)

    def after(self, prefix: str) -> markupsafe.Markup:
        """The lines from there on."""
        return _linked(self.lines[self._opening :], prefix)


def _linked(lines: Iterable[Line], prefix: str) -> markupsafe.Markup:
    lines = list(lines)  # none has a newline in it, so all are escaped at once
    times = str(markupsafe.escape("\n".join(line.time or "·" for line in lines))).split("\n")
    texts = str(markupsafe.escape("\n".join(line.text for line in lines))).split("\n")
    parts = []
    for line, time, text in zip(lines, times, texts, strict=False):
        words = f"{line.mark} other".strip() if line.is_other else line.mark
        mark = f' class="{words}"' if words else ""
        if line.number and prefix:
            name = f"{prefix}-{line.number}"
            parts.append(f'<span id="{name}"{mark}><a href="#{name}">{time}</a> {text}</span>')
        else:
            parts.append(f"<span{mark}><b>{time}</b> {text}</span>")
    return markupsafe.Markup("".join(parts))


@dataclass(frozen=True, slots=True)
class BarPart:
    """Phases of one name, summed."""

    name: str
    seconds: float
    count: int
    share: float  # percent of all
    colour: int


@dataclass(frozen=True, slots=True)
class Beside:
    """The consoles of the last good attempt at a case."""

    title: str  # which attempt it was
    href: str  # its page; empty: there is none
    slices: tuple[Slice, ...]

    def of(self, board: str, at: int) -> Slice | None:
        """The console of the same board; of another board at the same place where the case ran elsewhere."""
        same = next((one for one in self.slices if one.board == board), None)
        return same or (self.slices[at] if at < len(self.slices) else None)


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
    failure: str = ""
    known: tuple[str, ...] = ()  # findings without which it would not have passed
    seconds: float | None = None
    provisioning: float = 0.0  # seconds in which its boards were brought to the build, beside its own
    boards: tuple[str, ...] = ()
    result: TestResult | None = None
    facts: tuple[Fact, ...] = ()
    slices: tuple[Slice, ...] = ()
    together: tuple[tuple[int, Line], ...] = ()  # two consoles by time: which of them, and its line
    pictures: tuple[tuple[str, str], ...] = ()
    timeline: str = ""
    earlier: tuple[TestResult, ...] = field(default=())
    beside: Beside | None = None

    @property
    def is_flaky(self) -> bool:
        return self.result is not None and is_flaky([self.result, *self.earlier])


def show(
    folder: Path, result: TestResult, earlier: tuple[TestResult, ...], anchor: str = "", beside: Beside | None = None
) -> Shown:
    """A result with all that stands beside it, read from the run folder."""
    slices = slices_of(folder, result)
    if beside:
        slices, beside = _compared(slices, beside)
    is_good = result.verdict in (Verdict.PASS, Verdict.SKIP)
    return Shown(
        anchor=anchor,
        case=result.case,
        name=short_name(result.case),
        area=result.area,
        build=result.build,
        verdict=result.verdict,
        rule=result.rule,
        reason=result.reason,
        failure=visible_line(failure_of(result)),
        known=tuple(one.name for one in known_findings(result)),
        seconds=result.own_seconds,
        provisioning=result.provisioning_seconds,
        boards=result.boards,
        result=result,
        facts=tuple(_fact(one, PASS_BODY_LIMIT if is_good else BODY_LIMIT) for one in result.evidence),
        slices=slices,
        together=_together(slices),
        pictures=tuple(_pictures(folder, result)),
        timeline=timeline_of("Phases", result.phases),
        earlier=earlier,
        beside=beside,
    )


def show_missing(one: Missing, anchor: str) -> Shown:
    """A planned case without a result."""
    return Shown(
        anchor=anchor,
        case=one.case,
        name=short_name(one.case),
        area=area_of(one.case),
        build=one.build,
        verdict=Verdict.MISS,
        rule=DID_NOT_RUN,
        reason="did not run",
    )


def slices_of(folder: Path, result: TestResult) -> tuple[Slice, ...]:
    """The consoles of a result's boards."""
    return tuple(_slice(folder, result, *item) for item in sorted(result.consoles.items()))


def _compared(slices: tuple[Slice, ...], beside: Beside) -> tuple[tuple[Slice, ...], Beside]:
    """The consoles and those of the last good attempt, with the lines marked that the other does not have."""
    here, there = list(slices), list(beside.slices)
    for at, slice in enumerate(here):
        other = beside.of(slice.board, at)
        if other is None:
            continue
        index = there.index(other)
        ours, theirs = _plain(slice), _plain(other)
        here[at] = _marked(slice, ours, set(theirs))
        there[index] = _marked(other, theirs, set(ours))
        beside = replace(beside, slices=tuple(there))
    return tuple(here), beside


def _marked(slice: Slice, plain: Sequence[str], known: set[str]) -> Slice:
    lines = tuple(
        line._replace(is_other=bool(line.number) and text not in known)
        for line, text in zip(slice.lines, plain, strict=True)
    )
    return replace(slice, lines=lines)


def _plain(slice: Slice) -> list[str]:
    """Console lines without their numbers, which differ from boot to boot."""
    if not slice.lines:
        return []
    text = "\n".join(line.text for line in slice.lines)  # none has a newline in it
    return re.sub(r"[0-9a-fA-F]*\d[0-9a-fA-F]*", "#", text).split("\n")


def _together(slices: Sequence[Slice]) -> tuple[tuple[int, Line], ...]:
    """The lines of two consoles in the order of their times; a line without a time stays behind the one before it."""
    if len(slices) != 2:
        return ()
    keyed = []
    for column, slice in enumerate(slices):
        last = ""
        for number, line in enumerate(slice.lines):
            last = line.stamp or last
            keyed.append((last, column, number, line))
    return tuple((column, line) for _, column, _, line in sorted(keyed, key=lambda one: one[:3]))


def _fact(one: Evidence, limit: int) -> Fact:
    body = visible(shortened(one.body, limit))
    return Fact(one.kind, one.title, one.board or "", one.time, body, len(body) > FOLDED_ABOVE)


@lru_cache
def _real(folder: str) -> str:
    return os.path.realpath(folder) + os.sep


def inside(folder: Path, path: str) -> Path | None:
    """The file of a record's relative path; None when it is not there or not within the run folder."""
    try:
        parent, name = os.path.split(path)
        file = _real(os.path.join(folder, parent)) + name
        state = os.lstat(file)
        if name in ("", ".", "..") or stat.S_ISLNK(state.st_mode):
            file = os.path.realpath(folder / path)
            state = os.stat(file)
        return Path(file) if file.startswith(_real(str(folder))) and stat.S_ISREG(state.st_mode) else None
    except (OSError, ValueError):
        return None


def _slice(folder: Path, result: TestResult, board: str, path: str) -> Slice:
    file = inside(folder, path)
    if file is None:
        return Slice(board, path, (Line("", "the slice is not in the run folder", "note"),), 0, 0)
    limit = BODY_LIMIT if result.verdict not in (Verdict.PASS, Verdict.SKIP) else PASS_CONSOLE_LIMIT
    told = console_lines.told(file, inside(folder, str(kinds_path(Path(path)))), limit)
    return Slice(board, path, told.lines, told.crashes, told.warnings)


def _pictures(folder: Path, result: TestResult) -> list[tuple[str, str]]:
    """Title and data URI; the URI is empty when the picture cannot be shown."""
    found = []
    for title, path in result.pictures.items():
        file = inside(folder, path)
        is_good = file is not None and file.stat().st_size <= PICTURE_LIMIT
        found.append((title, data_uri(file.read_bytes()) if file and is_good else ""))
    return found


def data_uri(svg: bytes) -> str:
    """A drawing that needs no file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def timeline_of(title: str, phases: Sequence[Phase]) -> str:
    """Phases as a drawing; empty when there are none."""
    if not phases:
        return ""
    spans = [(phase.name, phase.started, phase.started + phase.seconds, phase.name) for phase in phases]
    return data_uri(timeline_svg(title, spans).encode())


def bar(phases: Sequence[Phase]) -> list[BarPart]:
    """Phases summed by name, the longest first."""
    sums: dict[str, tuple[float, int]] = {}
    for phase in phases:
        seconds, count = sums.get(phase.name, (0.0, 0))
        sums[phase.name] = (seconds + max(phase.seconds, 0.0), count + 1)
    total = sum(seconds for seconds, _ in sums.values()) or 1.0
    ordered: list[tuple[str, tuple[float, int]]] = sorted(sums.items(), key=lambda item: -item[1][0])
    return [
        BarPart(name, seconds, count, 100 * seconds / total, index % 7)
        for index, (name, (seconds, count)) in enumerate(ordered)
    ]
