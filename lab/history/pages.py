"""The pages of ``xenlab history``: one case over time, the builds and the crashes there are."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lab.history.records import COUNTED, Entry, RecordedBuild, Seen, Series, day
from lab.history.regression import WINDOW, Attempt, count, flaky_stretch
from lab.history.store import History
from lab.history.tracks import Track, bisect_command
from lab.results.record import Verdict

SHOWN = 60  # attempts in the strip
LISTED = 10  # attempts in the table below it
LEVEL_LISTED = 30  # builds of a figure
CASES_NAMED = 5  # of a crash


@dataclass(frozen=True, slots=True)
class CasePage:
    """One series of a case: its last attempts, oldest first, and by which of them it is flaky (if it is)."""

    series: Series
    entries: tuple[Entry, ...]
    flaky_by: tuple[Attempt, ...]

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt that counts failed."""
        return next((one.verdict is Verdict.FAIL for one in reversed(self.entries) if one.verdict in COUNTED), False)


def case_pages(history: History, *cases: str) -> Iterator[CasePage]:
    """What there is of cases, a page for each line of builds and class of boards; case after case."""
    for series, found in groupby(history.entries(cases, SHOWN), key=lambda entry: entry.series):
        entries = tuple(found)
        counted = sorted(
            [entry for entry in entries if entry.verdict.value in COUNTED][-WINDOW:],
            key=lambda entry: (entry.build.first_seen, entry.build.key, entry.started),
        )
        attempts = [Attempt(entry.build.key, entry.verdict is Verdict.PASS) for entry in counted]
        yield CasePage(series, entries, tuple(flaky_stretch(attempts)))


def case_lines(page: CasePage) -> list[str]:
    """A strip of verdicts by build, newest last; durations; the last attempts with their reasons."""
    lines = [f"{page.series.line} [{page.series.board_class or 'no board'}]: {status(page)}"]
    strip = []
    for build, entries in groupby(page.entries, key=lambda entry: entry.build):
        strip.append(f"{build.label.partition('@')[2]} {''.join(entry.verdict[0] for entry in entries)}")
    lines.append(f"  {'  '.join(strip)}   (P pass, F fail, E error, M miss, S skip; the newest is last)")
    if passed := [entry.seconds for entry in page.entries if entry.verdict is Verdict.PASS]:
        median, low, high = statistics.median(passed), min(passed), max(passed)
        lines.append(f"  a pass takes {median:.1f} s (median of {len(passed)}; {low:.1f} to {high:.1f} s)")
    last = page.entries[-LISTED:]
    widths = [max(len(text) for text in column) for column in zip(*(_cells(entry) for entry in last), strict=True)]
    for entry in last:
        cells = "  ".join(f"{text:<{width}}" for text, width in zip(_cells(entry), widths, strict=True))
        lines.append(f"  {cells}  {entry.reason}".rstrip())
    return lines


def _cells(entry: Entry) -> tuple[str, ...]:
    seconds = f"{entry.seconds:7.1f} s"
    return day(entry.started), entry.build.label, entry.run, entry.verdict.value, seconds, entry.boards


def status(page: CasePage) -> str:
    """``passed the last 5 of 60 attempts that count``, ``failed the last of 60 attempts...``; or that it is flaky."""
    counted = [entry.verdict for entry in page.entries if entry.verdict.value in COUNTED]
    if not counted:
        return f"neither passed nor failed in the last {len(page.entries)}"
    if page.flaky_by:
        return f"flaky, {count(page.flaky_by)}"
    same = next((index for index, verdict in enumerate(reversed(counted)) if verdict is not counted[-1]), len(counted))
    words = "passed" if counted[-1] is Verdict.PASS else "failed"
    if same == len(counted) and len(page.entries) == SHOWN:  # there may be earlier ones
        return f"{words} the last {f'{same} attempts that count' if same > 1 else 'attempt that counts'}"
    if same == len(counted):
        return f"{words} {'the only attempt' if same == 1 else f'all {same} attempts'} that count{'s' * (same == 1)}"
    return f"{words} the last{f' {same}' * (same > 1)} of {len(counted)} attempts that count"


def figure_lines(track: Track) -> list[str]:
    """A figure over builds: its level and steps, then the values of the last builds, the newest last."""
    now = track.levels[-1]
    noise = "not known, there is one value" if now.noise is None else f"{now.noise:.2%}"
    steps = track.steps
    words = f"{len(steps)} step{'s' * (len(steps) != 1)} in {len(track.points)} build{'s' * (len(track.points) != 1)}"
    lines = [f"{track.figure}, {track.where}: {now.median:.6g}, noise {noise}; {words}"]
    for step in steps:
        lines.append(f"  {step.change:+.2%} ({step.old.median:.6g} to {step.new.median:.6g})")
        lines.append(f"    first build with it: {_full(step.since.build)}")
        lines.append(f"    last build before:   {_full(step.good.build)}")
        lines += [f"    {found}"] if (found := bisect_command(track, step)) else []
    begins = {level.first for level in track.levels[1:]}
    shown = [*enumerate(track.points)][-LEVEL_LISTED:]
    width = max(len(point.build.label) for _, point in shown)
    for at, point in shown:
        values = ", ".join(f"{number:.6g}" for number in point.numbers)
        mark = "step " if at in begins else "     "
        lines.append(f"  {mark}{day(point.build.first_seen)}  {point.build.label:<{width}}  {values}")
    return lines


def figure_data(track: Track) -> dict[str, object]:
    """The same for JSON, with all its builds."""
    return {
        "figure": track.figure,
        "series": track.series,
        "boards": track.boards,
        "builds": [{"build": point.build, "values": point.numbers} for point in track.points],
        "levels": track.levels,
        "steps": [
            {"change": step.change, "first": step.since.build.label, "last_before": step.good.build.label}
            for step in track.steps
        ],
    }


def _full(build: RecordedBuild) -> str:
    """A build for commands and for readers, with its commit."""
    facts = (build.title, build.source.commit or "", build.source.subject or "")
    return f"{build.label}: {', '.join(filter(None, facts))}"


def build_lines(builds: Sequence[RecordedBuild]) -> list[str]:
    """The builds there are, as they came."""
    width = max((len(build.label) for build in builds), default=0)
    lines = []
    for build in builds:
        accepted = "" if build.accepted is None else f"  accepted {day(build.accepted)}"
        seen = f"{day(build.first_seen)} to {day(build.last_seen)}"
        lines.append(f"{build.label:<{width}}  Xen {build.version or '?':<10}  runs {seen}{accepted}")
    return lines


def crash_lines(crashes: Sequence[Seen]) -> list[str]:
    """The crashes there are, each with how often, by which builds, and in which cases."""
    lines = []
    for one in crashes:
        times = "once" if one.number == 1 else f"{one.number} times"
        over = f"first {one.first.label} ({day(one.first.first_seen)})"
        if one.builds > 1:
            over += f", last {one.last.label} ({day(one.last.first_seen)}), {one.builds} builds"
        names = [case.rpartition("::")[2] for case in one.cases[:CASES_NAMED]]
        more = f" and {len(one.cases) - len(names)} more" if len(one.cases) > len(names) else ""
        lines += [one.name, f"  {times}; {over}; in {', '.join(names)}{more}"]
    return lines
