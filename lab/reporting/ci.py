"""What CI is told of a run: a summary in Markdown, annotations for new failures alone, a Prometheus textfile.

Source: GitHub, "Workflow commands" and "Adding a job summary"; GitLab, "artifacts:reports:annotations"; Prometheus,
node_exporter's textfile collector.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from lab.history import gate
from lab.history.gate import Comparison, Finding
from lab.history.regression import Change
from lab.history.store import History
from lab.reporting import html
from lab.results.record import RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder, exit_status, final, missing, replace_file, visible_line

SUMMARY = "summary.md"
ANNOTATIONS = "gl-annotations.json"
METRICS = "metrics.prom"
ROWS = 100  # of a table of the summary, which GitHub cuts at 1 MiB
# The worst first. What is as it was is not told.
TOLD = (Change.NEW_FAILURE, Change.STILL_FAILING, Change.NEVER_PASSED, Change.FLAKY, Change.FIXED)


def judged(store: History, folder: RunFolder) -> list[Comparison]:
    """Each build of a run, as this run saw it, against its baseline.

    :raises BenchError: the database fails.
    """
    found = []
    for new in store.of_run(visible_line(folder.header().run_id)):
        found.append(gate.compare(store, new, gate.baseline(store, new)))
    return found


def worse(changes: Sequence[Comparison]) -> list[str]:
    """Lines for a terminal: what got worse first, then what else changed."""
    lines = [
        f"{'worse' if change is Change.NEW_FAILURE else '     '} {finding.line()}"
        for change in TOLD
        for found in changes
        for finding in found.of(change)
    ]
    return lines + [f"{found.new.build.label} against {_base(found)}: {gate.summed(found)}" for found in changes]


# -- GitHub and GitLab -----------------------------------------------------------------------------------------------


def write_summary(folder: RunFolder, changes: Sequence[Comparison]) -> Path:
    """``summary.md``, which is added to the job's page too where GitHub runs this."""
    header = folder.header()
    results = final(header, folder.results())
    status = exit_status(header, results) if header.exit_status is None else header.exit_status
    lines = [
        f"# xenlab: {html.overall(header, results, status)}",
        "",
        f"Exit status {status}: {html.STATUS_MEANING.get(status, 'ended abnormally')}.",
    ]
    for found in changes:
        lines += ["", f"## {_md(found.new.build.label)} against {_md(_base(found))}", "", f"{gate.summed(found)}"]
        lines += _table("Got worse", found.of(Change.NEW_FAILURE))
        lines += _table("Else", found.of(*TOLD[1:]))
        lines += _table(
            "Not counted: nothing is said about the hypervisor", found.of(Change.NOT_COUNTED, Change.MISSING)
        )
    areas: dict[str, Counter[Verdict]] = {area: Counter() for area in header.required_areas}
    for result in results:
        areas.setdefault(result.area, Counter())[result.verdict] += 1
    lines += ["", "## Areas", "", f"| area | {' | '.join(Verdict)} |", "| --- |" + " ---: |" * len(Verdict)]
    for area, numbers in areas.items():
        lines.append(f"| {_md(area)} | {' | '.join(str(numbers[verdict]) for verdict in Verdict)} |")
    if gone := missing(header, results):
        lines += ["", f"{len(gone)} planned without a result."]
    lines += [f"\nThe bench: {_md(note)}" for note in header.notes]
    text = "\n".join(lines) + "\n"
    path = folder.path / SUMMARY
    replace_file(path, text)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(step, "a", encoding="utf-8") as out:
            out.write(text)
    return path


def _table(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    lines = ["", f"### {title}: {len(findings)}", "", "| case | boards | change | why |", "| --- | --- | --- | --- |"]
    for one in findings[:ROWS]:
        cells = (html.short_name(one.series.case), one.series.board_class, one.change, one.why)
        lines.append(f"| {' | '.join(_md(cell) for cell in cells)} |")
    return lines + ([f"\nand {len(findings) - ROWS} more"] if len(findings) > ROWS else [])


def _md(text: str) -> str:
    """``text`` where nothing of it is markup, a link, or somebody's name."""
    return "".join(c if c.isalnum() or c in " ,;/" else f"&#{ord(c)};" for c in visible_line(text))


def github_commands(changes: Sequence[Comparison]) -> list[str]:
    """A workflow command for each new failure; it is tied to no file, since the fault is in none of this project's."""
    lines = []
    for found in changes:
        for one in found.of(Change.NEW_FAILURE):
            title = f"{one.change} with {found.new.build.line}: {html.short_name(one.series.case)}"
            title = _escaped(title).replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::error title={title}::{_escaped(f'{one.series.case}: {one.why}')}")
    return lines


def _escaped(text: str) -> str:
    return visible_line(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def write_annotations(folder: RunFolder, changes: Sequence[Comparison]) -> Path:
    """``gl-annotations.json``: for each new failure a link on GitLab's job page to the report among its artifacts."""
    job = os.environ.get("CI_JOB_URL", "")
    root = Path(os.environ.get("CI_PROJECT_DIR", folder.path.parent))
    inside = folder.path.relative_to(root) if folder.path.is_relative_to(root) else Path(folder.path.name)
    url = f"{job}/artifacts/file/{inside.as_posix()}/{html.NAME}" if job else (folder.path / html.NAME).as_uri()
    links = [
        {"external_link": {"label": f"{one.change}: {html.short_name(one.series.case)}", "url": url}}
        for found in changes
        for one in found.of(Change.NEW_FAILURE)
    ]
    path = folder.path / ANNOTATIONS
    replace_file(path, json.dumps({"new failures": links} if links else {}, indent=1))
    return path


# -- Prometheus ------------------------------------------------------------------------------------------------------


def write_metrics(folder: RunFolder, last: Mapping[str, float]) -> Path:
    """``metrics.prom``, for node_exporter's textfile collector.

    :param last: when each case passed or failed last, by its name; seconds since the epoch.
    """
    header = folder.header()
    results = final(header, folder.results())
    registry = CollectorRegistry()

    def gauge(name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"xenlab_{name}", says, labels, registry=registry)

    verdicts = gauge("run_results", "Cases of the last run by verdict.", "verdict")
    numbers = Counter(result.verdict for result in results)
    for verdict in Verdict:
        verdicts.labels(verdict.value).set(numbers[verdict])
    gauge("run_missing_results", "Planned cases of the last run without a result.").set(len(missing(header, results)))
    ended = header.finished or time.time()
    gauge("run_finished_timestamp_seconds", "When the last run ended.").set(ended)
    gauge("run_duration_seconds", "How long the last run took.").set(ended - header.started)
    status = exit_status(header, results) if header.exit_status is None else header.exit_status
    gauge("run_exit_status", "Exit status of the last run.").set(status)
    healthy = gauge(
        "board_healthy", "1: the board's last case said something of the product; 0: MISS or none.", "board"
    )
    for board in header.boards:
        healthy.labels(visible_line(board)).set(_is_healthy(board, results))
    seconds = gauge("case_duration_seconds", "How long a case took in the last run.", "case", "build")
    for result in results:
        seconds.labels(visible_line(result.case), visible_line(result.build)).set(result.seconds)
    planned = [last[case] for name in header.planned if (case := visible_line(name)) in last]
    if planned:
        gauge(
            "oldest_result_timestamp_seconds",
            "Of the planned cases, when the one that passed or failed longest ago did.",
        ).set(min(planned))
    path = folder.path / METRICS
    replace_file(path, generate_latest(registry).decode())
    return path


def _is_healthy(board: str, results: Sequence[TestResult]) -> bool:
    mine = sorted((one for one in results if board in one.boards), key=lambda one: one.started)
    return bool(mine) and mine[-1].verdict is not Verdict.MISS


def headline(header: RunHeader, results: Sequence[TestResult], changes: Sequence[Comparison]) -> str:
    """The run on one line: how many new failures; else the gravest verdict."""
    news = sum(len(found.of(Change.NEW_FAILURE)) for found in changes)
    if news:
        return f"{news} new failure{'s' if news > 1 else ''}"
    status = exit_status(header, results) if header.exit_status is None else header.exit_status
    return f"{html.overall(header, results, status)}: {html.STATUS_MEANING.get(status, 'ended abnormally')}"


def _base(found: Comparison) -> str:
    return found.base.label if found.base else "nothing before"
