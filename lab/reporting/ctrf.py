"""``ctrf.json``: the run in the Common Test Report Format, for tools that read that.

Source: schema/ctrf.schema.json of github.com/ctrf-io/ctrf; times are milliseconds.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from lab.results.failures import known_findings
from lab.results.record import CRASH, TestResult, Verdict
from lab.results.run_folder import replace_file, visible, visible_line
from lab.results.summary import RunSummary, is_flaky

NAME = "ctrf.json"
Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None
SPEC = "0.0.0"  # the version that reporters in use name
# What says nothing of the product is neither passed nor failed.
STATUS = {
    Verdict.FAIL: "failed",
    Verdict.ERROR: "other",
    Verdict.MISS: "other",
    Verdict.PASS: "passed",
    Verdict.SKIP: "skipped",
}


def write(run: RunSummary) -> Path:
    """Write ``ctrf.json`` into the run folder; its path."""
    header = run.header
    tests = [_test(result, run.attempts[result.case, result.build]) for result in run.results]
    tests += [_missing(one.case, one.build) for one in run.missing]
    numbers = Counter(str(test["status"]) for test in tests)
    ended = header.finished or max((one.started + one.seconds for one in run.everything), default=header.started)
    report: Json = {
        "reportFormat": "CTRF",
        "specVersion": SPEC,
        "generatedBy": "xenlab",
        "results": {
            "tool": {"name": "xenlab"},
            "summary": {
                "tests": len(tests),
                **{status: numbers[status] for status in ("passed", "failed", "skipped", "pending", "other")},
                "flaky": sum(bool(test.get("flaky")) for test in tests),
                "start": _ms(header.started),
                "stop": _ms(ended),
                "extra": {
                    "run": visible_line(header.run_id),
                    "exitStatus": header.exit_status,
                    "state": run.state.value,
                    "knownBugs": len(run.known),
                },
            },
            "tests": [*tests],
        },
    }
    path = run.path / NAME
    replace_file(path, json.dumps(report, indent=1))
    return path


def _test(result: TestResult, attempts: list[TestResult]) -> dict[str, Json]:
    earlier = [one for one in attempts if one is not result]
    labels: dict[str, Json] = {
        "area": visible_line(result.area),
        "build": visible_line(result.build),
        "boards": [visible_line(board) for board in result.boards] or ["none"],
        "rule": visible_line(result.rule),
    }
    if known := [visible_line(one.name) for one in known_findings(result)]:
        labels["knownBugs"] = [*known]
    if result.fingerprint:
        labels["fingerprint"] = visible_line(result.fingerprint)
    test: dict[str, Json] = {
        **_names(result.case),
        "status": STATUS[result.verdict],
        "rawStatus": result.verdict.value,
        "duration": _ms(result.own_seconds),
        "start": _ms(result.started),
        "stop": _ms(result.started + result.seconds),
        "retries": len(earlier),
        "flaky": is_flaky(attempts),
        "labels": labels,
    }
    if result.reason:
        test["message"] = visible_line(result.reason)
    elif known:
        test["message"] = f"PASS, known bug {', '.join(known)}"
    if trace := [one.body for one in result.evidence if one.kind in ("exception", CRASH)]:
        test["trace"] = visible("\n\n".join(trace))
    if earlier:
        test["retryAttempts"] = [
            {"attempt": max(one.attempt, 1), "status": STATUS[one.verdict], "message": visible_line(one.reason)}
            for one in earlier
        ]
    return test


def _missing(case: str, build: str) -> dict[str, Json]:
    said: dict[str, Json] = {
        "status": "other",
        "rawStatus": Verdict.MISS.value,
        "duration": 0,
        "message": "did not run",
    }
    return {**_names(case), **said, "labels": {"build": visible_line(build)}}


def _names(case: str) -> dict[str, Json]:
    file, *inner = visible_line(case).split("::")
    return {"name": visible_line(case) or "?", "suite": [file, *inner[:-1]], "filePath": file}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
