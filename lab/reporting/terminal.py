"""A run on the terminal: live while it goes on, and in sum at its end."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lab.reporting import html, junit
from lab.reporting.words import seconds_text, short_name, some_of
from lab.results.failures import failure_of, known_findings
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import visible_line
from lab.results.summary import RunSummary, is_flaky

STYLES = {
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold magenta",
    Verdict.MISS: "bold yellow",
    Verdict.PASS: "green",
    Verdict.SKIP: "dim",
}
SHOWN = 8  # last results in the live display
NAME_WIDTH = 44


class Progress:
    """What a run is doing: a live display on a terminal, else a line for each thing that happens."""

    def __init__(self, planned: int, *, file: TextIO | None = None) -> None:
        self._planned = planned
        self._file = file
        self._console: Console | None = None
        self._live: Live | None = None
        self._phase, self._since = "", time.monotonic()
        self._counts: Counter[Verdict] = Counter()
        self._ended: set[tuple[str, str]] = set()  # case and build, however often they were tried
        self._last: deque[Text] = deque(maxlen=SHOWN)

    def __enter__(self) -> Progress:
        self._console = _console(self._file)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def phase(self, name: str) -> None:
        """A new phase begins."""
        self._phase, self._since = visible_line(name), time.monotonic()
        self._say(Text(f"-- {self._phase}", "bold"))

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._say(Text(f"   {visible_line(text)}"))

    def result(self, result: TestResult) -> None:
        """A case ended."""
        self._counts[result.verdict] += 1
        self._ended.add((result.case, result.build))
        line = result_line(result)
        self._last.append(line)
        if not self._live:
            line = Text(f"{len(self._ended):>{len(str(self._planned))}} of {self._planned}  ", "dim").append_text(line)
        if not self._live or result.verdict not in (Verdict.PASS, Verdict.SKIP):
            self._say(line)

    def _say(self, line: Text) -> None:
        console = self._console or _console(self._file)
        stamped = Text(time.strftime("%H:%M:%S ", time.gmtime()), "dim").append_text(line)
        _print(console, stamped)

    def _render(self) -> RenderableType:
        done = sum(self._counts.values())
        head = Text(f"{self._phase or 'starting'}  {seconds_text(time.monotonic() - self._since)}", "bold")
        head.append(f"   {done} of {self._planned} cases  ", "not bold")
        for verdict in Verdict:
            if self._counts[verdict]:
                head.append(f"{self._counts[verdict]} {verdict}  ", STYLES[verdict])
        lines = [line.copy() for line in list(self._last)]  # the display draws in a thread of its own
        for line in [head, *lines]:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines, head)


def result_line(result: TestResult) -> Text:
    """``PASS  guest32  test_pv32_runs  12.3 s  virt1  [reason]``"""
    name = visible_line(result.case.rpartition("::")[2] or result.case)
    if len(name) > NAME_WIDTH:  # what tells cases apart stands in their brackets
        end = name[-(NAME_WIDTH // 2) :]
        kept = name[name.index("[") :] if "[" in name else ""
        end = kept if 0 < len(kept) < NAME_WIDTH - 8 else end
        name = name[: NAME_WIDTH - 1 - len(end)] + "…" + end
    line = Text(f"{result.verdict:<5}", STYLES[result.verdict])
    boards = ",".join(result.boards)
    line.append(visible_line(f" {result.area:<12} {name:<{NAME_WIDTH}} {result.own_seconds:7.1f} s  {boards}"), "none")
    if result.provisioning_seconds >= 0.1:
        line.append(f" (+{seconds_text(result.provisioning_seconds)} provisioning)", "none")
    if result.reason and result.verdict is not Verdict.PASS:
        line.append(f"  [{visible_line(result.reason)}]", "none")
    elif known := known_findings(result):
        line.append(visible_line(f"  [known bug {', '.join(one.name for one in known)}]"), "none")
    return line


def summary(
    run: RunSummary, *, changes: Sequence[str] = (), site: Path | None = None, file: TextIO | None = None
) -> None:
    """Print how the run ended; the last that a reader sees is what got worse and where to look.

    :param changes: lines of what became of cases since the baseline, the worst first.
    :param site: the first of the pages.
    """
    console = _console(file)
    _print(console, Text())
    _print_skips(console, run)
    _print_areas(console, run)
    _print_wrong(console, run)
    for note in run.remarks:
        _print(console, Text(f"the bench says: {visible_line(note)}"))
    took = f" in {seconds_text(run.seconds)}" if run.seconds is not None else ""
    often = f", each {run.header.repeat} times" if run.header.repeat > 1 else ""
    _print(console, Text(f"\n{run.counted()}{often}{took}"))
    if run.progress:
        _print(console, Text(visible_line(run.progress), STYLES[Verdict.MISS]))
    short = run.shortfalls if run.status == 3 else ()
    why = f" ({'; '.join(visible_line(text) for text in short)})" if short else ""
    _print(console, Text(f"exit status {run.status}: {run.meaning}{why}"))
    for change in changes:
        _print(console, Text(visible_line(change), STYLES[Verdict.FAIL] if change.startswith("worse") else ""))
    for name in (junit.NAME, html.NAME):
        if (run.path / name).exists():
            _print(console, Text(f"{name.partition('.')[0]}: {visible_line(str(run.path / name))}"))
    if site:
        _print(console, Text(f"pages: {visible_line(str(site))}"))


def _print_skips(console: Console, run: RunSummary) -> None:
    """What does not apply to the boards: a line for each reason."""
    reasons: dict[str, list[TestResult]] = {}
    for result in run.results:
        if result.verdict is Verdict.SKIP:
            reasons.setdefault(f"{result.reason} ({result.rule})", []).append(result)
    for reason, skipped in reasons.items():
        line = Text(f"{Verdict.SKIP:<5}", STYLES[Verdict.SKIP])
        said = f" {_cases([one.case for one in skipped])}{_with(run, [one.build for one in skipped])}: {reason}"
        _print(console, line.append(visible_line(said), "none"))


def _print_areas(console: Console, run: RunSummary) -> None:
    table = Table("area", box=None, pad_edge=False)
    for verdict in Verdict:
        table.add_column(verdict.value, justify="right", style=STYLES[verdict])
    for area, counts in run.areas.items():
        table.add_row(Text(visible_line(area)), *(str(counts[verdict] or "-") for verdict in Verdict))
    _print(console, Text())
    console.print(table)
    _print(console, Text())


def _print_wrong(console: Console, run: RunSummary) -> None:
    """What is not good, and why: known bugs, flaky cases, then failures, the gravest last. One fault is one line."""
    for excused in run.excused:
        line = Text(f"{Verdict.PASS:<5}", STYLES[Verdict.MISS])
        said = f" {_cases(excused.cases)}{_with(run, excused.builds)}: known bug {', '.join(excused.findings)}"
        _print(console, line.append(visible_line(said), "none"))
    for tried in run.attempts.values():
        if is_flaky(tried):
            other = next(one for one in tried if one.verdict is not Verdict.PASS)
            said = f"{other.verdict} at attempt {other.attempt} of {len(tried)}: {other.reason}"
            line = Text("flaky", STYLES[Verdict.MISS])
            _print(console, line.append(visible_line(f" {tried[0].case}: {said}"), "none"))
    gone: dict[str, list[str]] = {}
    for one in run.missing:
        gone.setdefault(one.build, []).append(one.case)
    for build, cases in gone.items():
        line = Text(f"{Verdict.MISS:<5}", STYLES[Verdict.MISS])
        _print(console, line.append(visible_line(f" {_cases(cases)}{_with(run, [build])}: did not run"), "none"))
    faults: dict[str, list[TestResult]] = {}
    for result in run.results:
        if key := failure_of(result):
            faults.setdefault(key, []).append(result)
    for found in sorted(faults.values(), key=lambda found: found[0].verdict.severity):
        first = found[0]
        boards = sorted({board for one in found for board in one.boards})
        where = _with(run, [one.build for one in found]) + (f" on {','.join(boards)}" if boards else "")
        line = Text(f"{first.verdict:<5}", STYLES[first.verdict])
        case = _cases([one.case for one in found])
        _print(console, line.append(visible_line(f" {case}{where}: {first.reason} ({first.rule})"), "none"))


def _cases(cases: Sequence[str]) -> str:
    """The id of one case, or how many there are and what some are called."""
    names = list(dict.fromkeys(map(short_name, cases)))
    return cases[0] if len(cases) == 1 else f"{len(cases)} cases, {some_of(names)}"


def _with(run: RunSummary, builds: Sequence[str]) -> str:
    """`` with A, B``; nothing in a run of one build."""
    return f" with {', '.join(dict.fromkeys(builds))}" if run.has_several_builds else ""


def _console(file: TextIO | None) -> Console:
    return Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)


def _print(console: Console, line: Text) -> None:
    """One line, however long, in what the terminal can encode."""
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    plain = line.plain.encode(encoding, "backslashreplace").decode(encoding)
    if plain != line.plain:
        line = Text(plain)
    console.print(line, soft_wrap=True)
