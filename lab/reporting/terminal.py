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
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder, by_case, exit_status, final, is_flaky, shortfalls, visible_line

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
        head = Text(f"{self._phase or 'starting'}  {html.seconds_text(time.monotonic() - self._since)}", "bold")
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
    line.append(visible_line(f" {result.area:<12} {name:<{NAME_WIDTH}} {result.seconds:7.1f} s  {boards}"), "none")
    if result.reason and result.verdict is not Verdict.PASS:
        line.append(f"  [{visible_line(result.reason)}]", "none")
    return line


def summary(
    folder: RunFolder, *, changes: Sequence[str] = (), site: Path | None = None, file: TextIO | None = None
) -> None:
    """Print what changed, the areas, what did not pass and why, where the reports are, and what the status means.

    :param changes: lines of what became of cases since the baseline, the worst first.
    :param site: the first of the pages.
    """
    console = _console(file)
    header = folder.header()
    results = final(header, folder.results())
    missing = folder.missing()
    status = exit_status(header, results) if header.exit_status is None else header.exit_status

    areas: dict[str, Counter[Verdict]] = {area: Counter() for area in header.required_areas}
    for result in results:
        areas.setdefault(result.area, Counter())[result.verdict] += 1
    table = Table("area", box=None, pad_edge=False)
    for verdict in Verdict:
        table.add_column(verdict.value, justify="right", style=STYLES[verdict])
    for area, counts in areas.items():
        table.add_row(Text(visible_line(area)), *(str(counts[verdict] or "-") for verdict in Verdict))
    for change in changes:
        _print(console, Text(visible_line(change), STYLES[Verdict.FAIL] if change.startswith("worse") else ""))
    _print(console, Text())
    console.print(table)
    _print(console, Text())

    wrong = [result for result in results if result.verdict is not Verdict.PASS]
    for result in sorted(wrong, key=lambda result: -result.verdict.severity):
        where = f" on {','.join(result.boards)}" if result.boards else ""
        build = f" with {result.build}" if len(header.builds) > 1 else ""
        line = Text(f"{result.verdict:<5}", STYLES[result.verdict])
        line.append(visible_line(f" {result.case}{build}{where}: {result.reason} ({result.rule})"), "none")
        _print(console, line)
    for tried in by_case(folder.results()).values():
        if is_flaky(tried):
            other = next(one for one in tried if one.verdict is not Verdict.PASS)
            line = Text("flaky", STYLES[Verdict.MISS])
            said = f"{other.verdict} at attempt {other.attempt} of {len(tried)}: {other.reason}"
            _print(console, line.append(visible_line(f" {tried[0].case}: {said}"), "none"))
    for one in missing:
        build = f" with {one.build}" if len(header.builds) > 1 else ""
        line = Text(f"{Verdict.MISS:<5}", STYLES[Verdict.MISS])
        _print(console, line.append(visible_line(f" {one.case}{build}: did not run"), "none"))
    for note in header.notes:
        _print(console, Text(f"bench {visible_line(note)}"))

    counts = Counter(result.verdict for result in results)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    took = f" in {html.seconds_text(header.finished - header.started)}" if header.finished else ""
    often = f", each {header.repeat} times" if header.repeat > 1 else ""
    _print(console, Text(f"\n{said or 'no results'}{often}{took}"))
    for name in (html.NAME, junit.NAME):
        if (folder.path / name).exists():
            _print(console, Text(f"{name.partition('.')[0]}: {visible_line(str(folder.path / name))}"))
    if site:
        _print(console, Text(f"pages: {visible_line(str(site))}"))
    meaning = html.STATUS_MEANING.get(status, "ended abnormally")
    short = shortfalls(header, results) if status == 3 else []
    why = f" ({'; '.join(visible_line(text) for text in short)})" if short else ""
    _print(console, Text(f"exit status {status}: {meaning}{why}"))


def _console(file: TextIO | None) -> Console:
    return Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)


def _print(console: Console, line: Text) -> None:
    """One line, however long, in what the terminal can encode."""
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    plain = line.plain.encode(encoding, "backslashreplace").decode(encoding)
    if plain != line.plain:
        line = Text(plain)
    console.print(line, soft_wrap=True)
