"""What CI is told of a run: a summary in Markdown, annotations for what blocks alone, a Prometheus textfile.

Source: GitHub, "Workflow commands" and "Adding a job summary"; GitLab, "artifacts:reports:annotations"; Prometheus,
node_exporter's textfile collector.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from lab.history import dearer, gate
from lab.history.gate import Comparison
from lab.history.news import Fault, News, news_of
from lab.history.records import day
from lab.history.regression import Change
from lab.history.store import History
from lab.reporting import html
from lab.reporting.words import seconds_text, short_name, some_of
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import replace_file, visible_line
from lab.results.summary import RunSummary

SUMMARY = "summary.md"
ANNOTATIONS = "gl-annotations.json"
METRICS = "metrics.prom"
ROWS = 100  # of a table of the summary, which GitHub cuts at 1 MiB


def judged(store: History, run: RunSummary) -> News:
    """Each build of a run, as this run saw it, against its baseline.

    :raises BenchError: the database fails.
    """
    return news_of(store, store.of_run(visible_line(run.header.run_id)))


def worse(news: News) -> list[str]:
    """Lines for a terminal: what got worse, with its beginning and how to find its commit; then what else changed."""
    lines = []
    for fault in news.faults:
        lines += fault_lines(fault)
    lines += [one.line(f"worse {one.change}") for _, one in news.dearer]
    for found in news.comparisons:
        fixed = found.of(Change.FIXED)
        lines += [f"      {one.line()}" for one in fixed]
    for found in news.comparisons:
        lines.append(f"{_pair(found)}: {found.verdict} ({gate.summed(found)})")
        if found.base is None and not found.new.build.accepted and not found.gap:
            lines.append(f"      `xenlab accept {found.new.build.label}` makes this build the baseline")
    return lines


def _pair(found: Comparison) -> str:
    """The build and what it was judged against."""
    return f"{found.new.build.title} against {found.base.build.title}" if found.base else found.new.build.title


def fault_lines(fault: Fault) -> list[str]:
    """A fault in one line, and below it since when, what people said of it, and the command that finds its commit."""
    word = "worse" if fault.change is Change.NEW_FAILURE else "     "
    if len(fault.cases) == 1:
        lines = [f"{word} {fault.cases[0].finding.line()}"]
    else:
        names = some_of([short_name(name) for name in fault.names])
        how_many = fault.states if len(fault.changes) > 1 else f"{len(fault.cases)} cases"
        lines = [f"{word} {fault.change:<19}  {how_many}: {fault.label}; in {names}"]
    lines += [f"      bug report: {issue.link}{f': {issue.note}' if issue.note else ''}" for issue in fault.issues]
    if fault.change is Change.NEW_FAILURE:
        lines += [f"      {line}" for line in since_lines(fault)]
    return lines


def since_lines(fault: Fault) -> list[str]:
    """Since when a fault shows, the last good build, and the command that finds the commit between them.

    A fault that was seen before its cases began to fail has no last good build; its cases have.
    """
    case = fault.telling
    if not case.onset:
        return []
    lines = []
    if before := fault.seen_before:
        lines.append(f"this fault was seen before: first with {before.first.title}, in {short_name(before.first_case)}")
    if not case.onset.good:
        lines.append(f"{case.onset.oldest} {case.onset.since.title}; the origin is not known")
        return lines
    since = f"{case.onset.since.title}{_subject(case.onset.since.source.subject)}"
    good = f"{case.onset.good.title}{_subject(case.onset.good.source.subject)}"
    if before:
        lines.append(
            f"{'this case fails' if len(fault.cases) == 1 else 'these cases fail'} since {since}; passed with {good}"
        )
    else:
        lines.append(f"fails since {since}; last good {good}")
    return lines + ([case.bisect] if case.bisect else [])


def _subject(subject: str | None) -> str:
    return f' "{subject}"' if subject else ""


# -- GitHub and GitLab -----------------------------------------------------------------------------------------------


def write_summary(run: RunSummary, news: News) -> Path:
    """``summary.md``, which is added to the job's page too where GitHub runs this."""
    header = run.header
    lines = [
        f"# xenlab: {run.overall}{f', {run.state}' if run.progress else ''}",
        "",
        f"Exit status {run.status}: {run.meaning}. {run.counted()}.",
        "",
        f"- run: {_md(header.run_id)}, {_md(header.selection)}, {day(header.started)} UTC"
        + (f", took {seconds_text(run.seconds)}" if run.seconds is not None else ""),
    ]
    if run.progress:
        lines.append(f"- {_md(run.progress)}")
    lines += [f"- build: {_md(text)}" for text in build_lines(run)]
    lines.append(f"- report: {_report_link(run)}")
    for found in news.comparisons:
        lines += ["", f"## {_md(_pair(found))}", ""]
        lines.append(_md(f"{found.verdict} ({gate.summed(found)})"))
    lines += _table(f"Got worse: {news.new_failures}", news.worse)
    lines += ["", f"### Costs more: {len(news.dearer)}", ""] * bool(news.dearer)
    lines += [f"- {_md(one.line(found.new.build.line))}" for found, one in news.dearer[:ROWS]]
    others = [fault for fault in news.faults if fault.change is not Change.NEW_FAILURE]
    lines += _table(f"Other failures: {_cases(others)}", others)
    fixed = [one for found in news.comparisons for one in found.of(Change.FIXED)]
    lines += ["", f"### Fixed: {len(fixed)}", ""] * bool(fixed)
    lines += [f"- {_md(short_name(one.series.case))}: {_md(one.why)}" for one in fixed[:ROWS]]
    title = "Not counted, since nothing is said about the hypervisor"
    lines += _table(f"{title}: {_cases(news.uncounted)}", news.uncounted)
    if run.known:
        lines += ["", f"### PASS, known bug: {len(run.known)}", ""]
        for one in run.excused[:ROWS]:
            where = f" with {', '.join(one.builds)}" if run.has_several_builds else ""
            lines.append(_md(f"- {some_of([*map(short_name, one.cases)])}{where}: {', '.join(one.findings)}"))
    lines += ["", "## Areas", "", f"| area | {' | '.join(Verdict)} |", "| --- |" + " ---: |" * len(Verdict)]
    for area, numbers in run.areas.items():
        lines.append(f"| {_md(area)} | {' | '.join(str(numbers[verdict]) for verdict in Verdict)} |")
    if run.missing:
        lines += ["", f"Planned cases without a result: {len(run.missing)}."]
    lines += [f"\nThe bench says: {_md(note)}" for note in run.remarks]
    text = "\n".join(lines) + "\n"
    path = run.path / SUMMARY
    replace_file(path, text)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(step, "a", encoding="utf-8") as out:
            out.write(text)
    return path


def build_lines(run: RunSummary) -> list[str]:
    """The builds of a run, each with its version and source."""
    lines = []
    for name in run.header.builds:
        facts, source = run.builds.get(name, {}), run.sources.get(name)
        parts = [name, facts.get("version", ""), source.text() if source else facts.get("key", "")[:8]]
        lines.append(" ".join(filter(None, parts)))
    return lines


def _report_link(run: RunSummary) -> str:
    """Where the report is: a link on GitLab's job page, else the file."""
    url = _report_url(run)
    return f"<{url}>" if url.startswith("https://") else _md(str(run.path / html.NAME))


def _report_url(run: RunSummary) -> str:
    job = os.environ.get("CI_JOB_URL", "")
    root = Path(os.environ.get("CI_PROJECT_DIR", run.path.parent))
    inside = run.path.relative_to(root) if run.path.is_relative_to(root) else Path(run.path.name)
    return f"{job}/artifacts/file/{inside.as_posix()}/{html.NAME}" if job else (run.path / html.NAME).as_uri()


def _table(title: str, faults: Sequence[Fault]) -> list[str]:
    """A row for each fault."""
    if not faults:
        return []
    lines = ["", f"### {title}", "", "| cases | boards | change | why |", "| --- | --- | --- | --- |"]
    for fault in faults[:ROWS]:
        boards = dict.fromkeys(case.finding.series.board_class for case in fault.cases)
        if len(fault.cases) == 1:
            why = fault.cases[0].finding.why
        else:
            why = f"{fault.label}; {len(fault.cases)} cases"
        if fault.change is Change.NEW_FAILURE:
            why = "; ".join([why, *since_lines(fault)])
        if fault.issues:
            why += f"; bug report {', '.join(issue.link for issue in fault.issues)}"
        cells = (
            some_of([short_name(name) for name in fault.names]),
            ", ".join(boards),
            fault.states if len(fault.changes) > 1 else fault.change,
            why,
        )
        lines.append(f"| {' | '.join(_md(cell) for cell in cells)} |")
    return lines + ([f"\nand {len(faults) - ROWS} more"] if len(faults) > ROWS else [])


def _cases(faults: Sequence[Fault]) -> int:
    return sum(len(fault.cases) for fault in faults)


# Markup, a link, or somebody's name. Other characters mean nothing within a line, and stay as they are.
_MARKUP = re.compile(r"[<>&|`*~$@\\]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[:]|(?<=:)/(?=/)|(?<=www)\.|(?<=!)\[")


def _md(text: str) -> str:
    """``text`` on one line, readable as it is, where nothing of it is markup."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", visible_line(text))


def github_commands(news: News) -> list[str]:
    """A workflow command for each thing that blocks; tied to no file, since the fault is in none of this project's."""
    lines = []
    for found in news.comparisons:
        for one in found.of(Change.NEW_FAILURE):
            title = f"{one.change} with {found.new.build.line}: {short_name(one.series.case)}"
            lines.append(_error(title, f"{one.series.case}: {one.why}"))
    for found, cost in news.dearer:
        title = f"{cost.change} with {found.new.build.line}: {cost.track.figure}"
        lines.append(_error(title, f"{cost.track.figure} on {cost.track.boards}: {cost.why}"))
    return lines


def _error(title: str, text: str) -> str:
    title = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::error title={title}::{_escaped(text)}"


def _escaped(text: str) -> str:
    return visible_line(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def write_annotations(run: RunSummary, news: News) -> Path:
    """``gl-annotations.json``: for what blocks a link on GitLab's job page to the report among its artifacts."""
    failures = [one for found in news.comparisons for one in found.of(Change.NEW_FAILURE)]
    labels = [f"{one.change}: {short_name(one.series.case)}" for one in failures]
    labels += [f"{one.change}: {one.track.figure} on {one.track.boards}" for _, one in news.dearer]
    links = [{"external_link": {"label": label, "url": _report_url(run)}} for label in labels]
    path = run.path / ANNOTATIONS
    replace_file(path, json.dumps({"new failures": links} if links else {}, indent=1))
    return path


# -- Prometheus ------------------------------------------------------------------------------------------------------


def write_metrics(run: RunSummary, last: Mapping[str, float]) -> Path:
    """``metrics.prom``, for node_exporter's textfile collector.

    :param last: when each case passed or failed last, by its name; seconds since the epoch.
    """
    header = run.header
    registry = CollectorRegistry()

    def gauge(name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"xenlab_{name}", says, labels, registry=registry)

    verdicts = gauge("run_results", "Cases of the last run by verdict.", "verdict")
    numbers = Counter(result.verdict for result in run.results)
    for verdict in Verdict:
        verdicts.labels(verdict.value).set(numbers[verdict])
    gauge("run_known_bug_results", "Cases of the last run that passed with a known bug.").set(len(run.known))
    gauge("run_missing_results", "Planned cases of the last run without a result.").set(len(run.missing))
    ended = header.finished or time.time()
    gauge("run_finished_timestamp_seconds", "When the last run ended.").set(ended)
    gauge("run_duration_seconds", "How long the last run took.").set(ended - header.started)
    gauge("run_exit_status", "Exit status of the last run.").set(run.status)
    gauge("run_complete", "1: the last run ended, and each planned case has a result.").set(run.progress is None)
    healthy = gauge(
        "board_healthy", "1: the board's last case said something of the product; 0: MISS or none.", "board"
    )
    for board in header.boards:
        healthy.labels(visible_line(board)).set(_is_healthy(board, run.results))
    seconds = gauge(
        "case_duration_seconds", "How long a case took in the last run, without provisioning.", "case", "build"
    )
    for result in run.results:
        seconds.labels(visible_line(result.case), visible_line(result.build)).set(result.own_seconds)
    planned = [last[case] for name in header.planned if (case := visible_line(name)) in last]
    if planned:
        gauge(
            "oldest_result_timestamp_seconds",
            "Of the planned cases, when the one that passed or failed longest ago did.",
        ).set(min(planned))
    path = run.path / METRICS
    replace_file(path, generate_latest(registry).decode())
    return path


def _is_healthy(board: str, results: Iterable[TestResult]) -> bool:
    mine = sorted((one for one in results if board in one.boards), key=lambda one: one.started)
    return bool(mine) and mine[-1].verdict is not Verdict.MISS


def headline(run: RunSummary, news: News) -> str:
    """The run on one line: how many new failures; else what is gravest."""
    words = [f"{news.new_failures} new failure{'s' if news.new_failures > 1 else ''}"] if news.new_failures else []
    words += [dearer.counted(len(news.dearer))] if news.dearer else []
    if words:
        return ", ".join(words)
    failed = sum(found.failed for found in news.comparisons)
    if failed and not any(found.base for found in news.comparisons):
        return f"{failed} failed; no baseline yet"
    words = [run.progress or run.meaning]
    known = sum(map(bool, run.known.values()))
    words += [f"{known} with a known bug"] if known and run.overall is Verdict.PASS else []
    words += ["no baseline yet"] if any(found.base is None for found in news.comparisons) else []
    return f"{run.overall}: {'; '.join(words)}"
