"""What CI, dashboards and people are told of a run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from run_folders import LINE, PV32, S3, Runs, result

from lab.base import paths
from lab.history.store import SETTING, History
from lab.night import publishing
from lab.reporting import ci, ctrf, notify
from lab.results.record import Evidence, Verdict
from lab.results.run_folder import RunFolder

LIVE = "testcases/relocation/test_live.py::test_brings_it_over"
HOSTILE = "x\n::error::owned\r | `b` <script>alert(1)</script> [a](http://x) @everyone \x1b[2J %0A"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Run folders of a lab of their own, outside of any CI."""
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "CI_JOB_URL", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.delenv(notify.SETTING, raising=False)
    return Runs(tmp_path / "runs")


def worse(folders: Runs, reason: str = "virt1: because") -> RunFolder:
    """A run in which one case got worse and another fails as before, after a good one."""
    known = [result(LIVE, Verdict.FAIL), result("testcases/sleep/test_s5.py::test_s5", Verdict.PASS)]
    folders.fill(History(), "aa:P")
    History().import_run(folders.write(*known, result(S3), key="aa").path)
    History().accept(History().select(f"{LINE}@aa").build)
    bad = replace(result(PV32, Verdict.FAIL), reason=reason)
    return folders.write(bad, result(LIVE, Verdict.FAIL), result(S3, Verdict.MISS), key="bb", finished=1795400000.0)


def publish(folder: RunFolder) -> list[str]:
    """What could not be done."""
    said: list[str] = []
    assert publishing.publish(folder, said.append) is not bool(said)
    return said


def test_what_got_worse_is_the_first_that_is_said(folders: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(worse(folders)) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"worse new failure          {PV32} [virtual]: virt1: because (assertion); failed 1 of 1"
    )
    assert lines[1].startswith(f"      never passed         {LIVE}")
    assert lines[2].startswith("pv32-debug@bb against pv32-debug@aa: 1 new failure, 1 never passed")
    assert not [line for line in lines if line.startswith("::")]


def test_github_gets_a_summary_and_annotations_of_new_failures_alone(
    folders: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    folder = worse(folders)
    assert publish(folder) == []
    text = (folder.path / "summary.md").read_text()
    assert step.read_text() == f"before\n{text}"
    assert (
        text.index("### Got worse: 1")
        < text.index("### Else: 1")
        < text.index("### Not counted")
        < text.index("## Areas")
    )
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith(
        "::error title=new failure with pv32-debug%3A test_pv32_runs[hvm]::testcases/guest32/"
    )


def test_a_console_writes_no_markup_and_no_commands(folders: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = worse(folders, HOSTILE)
    changes = ci.judged(_imported(folder), folder)
    [command] = ci.github_commands(changes)
    assert "\n" not in command and "\r" not in command and "\x1b" not in command
    assert "%250A" in command  # what was %0A already is no new line
    text = ci.write_summary(folder, changes).read_text()
    assert not {"<script", "](", "@everyone", "`b`"} & {
        word for word in ("<script", "](", "@everyone", "`b`") if word in text
    }
    [row] = [line for line in text.splitlines() if "owned" in line]
    assert row.count("|") == 5


def _imported(folder: RunFolder) -> History:
    history = History()
    history.import_run(folder.path)
    return history


def test_gitlab_gets_links_to_the_report(folders: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_JOB_URL", "https://gitlab.example/lab/-/jobs/7")
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    folder = worse(folders)
    publish(folder)
    link = {
        "label": "new failure: test_pv32_runs[hvm]",
        "url": f"https://gitlab.example/lab/-/jobs/7/artifacts/file/runs/{folder.path.name}/report.html",
    }
    assert json.loads((folder.path / "gl-annotations.json").read_text()) == {"new failures": [{"external_link": link}]}


def test_nothing_new_is_annotated_nowhere(
    folders: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for key in ("aa", "bb"):
        folder = folders.write(result(PV32), result(S3, Verdict.FAIL), key=key)
        publish(folder)
    assert "::" not in [line[:2] for line in capsys.readouterr().out.splitlines()]
    assert json.loads((folder.path / "gl-annotations.json").read_text()) == {}


def metrics(folder: RunFolder) -> dict[tuple[str, ...], float]:
    text = (folder.path / "metrics.prom").read_text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_prometheus_reads_verdicts_durations_boards_and_the_oldest_result(folders: Runs) -> None:
    old = folders.write(result(S3), key="aa")
    publish(old)
    there = [
        result(PV32, Verdict.FAIL, "virt1"),
        result(S3, Verdict.MISS, "virt2"),
        replace(result(LIVE), reason='\n"\\'),
    ]
    folder = folders.write(*there, key="bb", finished=1795400000.0, exit_status=1)
    publish(folder)
    found = metrics(folder)
    assert found["xenlab_run_results", "FAIL"] == 1
    assert found["xenlab_run_results", "MISS"] == 1
    assert found["xenlab_run_exit_status",] == 1
    assert found["xenlab_case_duration_seconds", LINE, PV32] == 2.0
    assert found["xenlab_board_healthy", "virt1"] == 1
    assert found["xenlab_board_healthy", "virt2"] == 0  # its last case was a MISS
    assert found["xenlab_board_healthy", "epyc"] == 0  # nothing came of it
    assert found["xenlab_oldest_result_timestamp_seconds",] == old.header().started  # of S3, since when nothing counts
    assert found["xenlab_run_duration_seconds",] == 1795400000.0 - folder.header().started


def test_ctrf_has_each_case_once_with_its_attempts(folders: Runs) -> None:
    told = (Evidence("exception", "call", f"Traceback {HOSTILE}", 1.0),)
    retried = [result(S3, Verdict.MISS), result(S3, attempt=2)]
    folder = folders.write(*retried, result(PV32, Verdict.FAIL, evidence=told), key="aa", planned=(S3, PV32, LIVE))
    report = json.loads(ctrf.write(folder).read_text())
    assert report["reportFormat"] == "CTRF"
    summary = report["results"]["summary"]
    assert {key: summary[key] for key in ("tests", "passed", "failed", "skipped", "pending", "other", "flaky")} == {
        "tests": 3,
        "passed": 1,
        "failed": 1,
        "skipped": 0,
        "pending": 0,
        "other": 1,
        "flaky": 1,
    }
    assert isinstance(summary["start"], int) and summary["stop"] >= summary["start"]
    tests = {test["name"]: test for test in report["results"]["tests"]}
    assert tests[S3]["retryAttempts"] == [{"attempt": 1, "status": "other", "message": "virt1: because"}]
    assert (tests[S3]["flaky"], tests[S3]["retries"], tests[S3]["duration"]) == (True, 1, 2000)
    assert (tests[PV32]["status"], tests[PV32]["suite"]) == ("failed", ["testcases/guest32/test_pv32.py"])
    assert r"\x1b[2J" in tests[PV32]["trace"]
    assert (tests[LIVE]["status"], tests[LIVE]["message"]) == ("other", "did not run")


# who is told


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A web hook on this machine: its URL for apprise, and what it was told."""
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"json://user:geheim@127.0.0.1:{server.server_port}/hook", told
        server.shutdown()
        thread.join()


def test_a_web_hook_is_told_what_got_worse(
    folders: Runs, hook: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = hook
    monkeypatch.setenv(notify.SETTING, url)
    assert publish(worse(folders)) == []
    assert [one["title"] for one in told] == ["xenlab: 1 new failure"]
    assert told[0]["message"].startswith("worse new failure")


@pytest.mark.parametrize(
    ("kind", "words"), [("json", "not all of 1 could be told"), ("nosuch", "1 of 1 URLs are of no kind")]
)
def test_who_cannot_be_told_is_said_without_secrets(
    folders: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    words: str,
) -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv(notify.SETTING, f"{kind}://user:geheim@127.0.0.1:{held.getsockname()[1]}/hook")
        said: list[str] = []
        assert publishing.publish(folders.write(result(), key="aa"), said.append)
    assert [words in line for line in said] == [True]
    captured = capsys.readouterr()
    assert "geheim" not in f"{said}{caplog.text}{captured.out}{captured.err}"


def test_a_run_that_is_not_remembered_tells_nobody(
    folders: Runs, hook: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = hook
    monkeypatch.setenv(notify.SETTING, url)
    assert publishing.publish(folders.write(result(), key="aa"), print, is_remembered=False)
    assert told == []
    assert not (tmp_path / "site").exists()
    assert History().builds() == []
