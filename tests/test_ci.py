"""What CI, dashboards and people are told of a run."""

from __future__ import annotations

import email
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from run_folders import LINE, PV32, S3, Runs, result

from lab.base import paths
from lab.history.store import SETTING, History
from lab.night import publishing
from lab.reporting import ci, ctrf, mail, notify
from lab.results.record import Check, Evidence, Verdict
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
    other = result(LIVE, Verdict.FAIL, reason="virt1: another fault")
    known = [other, result("testcases/sleep/test_s5.py::test_s5", Verdict.PASS)]
    folders.fill(History(), "aa:P")
    History().import_run(folders.write(*known, result(S3), key="aa").path)
    History().accept(History().select(f"{LINE}@aa").build)
    bad = replace(result(PV32, Verdict.FAIL), reason=reason)
    return folders.write(bad, other, result(S3, Verdict.MISS), key="bb", finished=1795400000.0)


def publish(folder: RunFolder) -> list[str]:
    """What could not be done."""
    said: list[str] = []
    assert publishing.publish(folder, said.append) is not bool(said)
    return said


def test_what_got_worse_and_the_link_are_the_last_that_is_said(
    folders: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(worse(folders)) == []
    lines = capsys.readouterr().out.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("exit status 1")) + 1
    assert lines[first].startswith(
        f"worse new failure          {PV32} [virtual]: virt1: because (assertion); failed 1 of 1"
    )
    since = "      fails since pv32-debug 4.17.5 bb (21 Nov); last good pv32-debug 4.17.5 aa (19 Nov)"
    assert lines[first + 1] == since
    assert lines[first + 2].startswith(f"      never passed         {LIVE}")
    assert lines[first + 3].startswith("pv32-debug 4.17.5 bb (21 Nov) against pv32-debug 4.17.5 aa (19 Nov): blocked (")
    assert lines[-1] == f"pages: {tmp_path}/site/index.html"
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
        < text.index("### Other failures: 1")
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
    changes = ci.judged(_imported(folder), folder.summary())
    [command] = ci.github_commands(changes)
    assert "\n" not in command and "\r" not in command and "\x1b" not in command
    assert "%250A" in command  # what was %0A already is no new line
    text = ci.write_summary(folder.summary(), changes).read_text()
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
    report = json.loads(ctrf.write(folder.summary()).read_text())
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


# what the documentation tells CI to do


DOCUMENT = paths.CHECKOUT / "docs" / "ci.md"


def snippets(kind: str) -> list[str]:
    """The blocks of docs/ci.md in a language."""
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def gitlab_job(branch: str) -> list[str]:
    job = yaml.safe_load(next(text for text in snippets("yaml") if "expose_as" in text))["hypervisor"]
    return ["\n".join(["set -e", f"CI_COMMIT_BRANCH={branch} CI_DEFAULT_BRANCH=main", *job["script"]])]


def github_job(branch: str) -> list[str]:
    job = yaml.safe_load(next(text for text in snippets("yaml") if "runs-on" in text))["jobs"]["hypervisor"]
    on_main = "github.ref_name == github.event.repository.default_branch"
    steps = [step for step in job["steps"] if "run" in step and (branch == "main" or step.get("if") != on_main)]
    return [f"set -e\n{step['run']}" for step in steps]


def jenkins_job(branch: str) -> list[str]:
    [pipeline] = snippets("groovy")
    stages = re.split(r"stage\('", pipeline)[1:]
    wanted = [stage for stage in stages if branch == "main" or "when { branch 'main' }" not in stage]
    return [f"set -e\n{step}" for stage in wanted for step in re.findall(r"sh '(.*)'", stage)]


@pytest.mark.parametrize("job", [gitlab_job, github_job, jenkins_job])
@pytest.mark.parametrize(
    ("branch", "nightly", "gate", "called"),
    [
        ("main", 0, 0, ["nightly", "gate", "accept"]),
        ("main", 1, 0, ["nightly", "gate", "accept"]),  # known failures alone
        ("main", 1, 1, ["nightly", "gate"]),
        ("main", 0, 3, ["nightly", "gate"]),  # no baseline yet
        ("other", 0, 0, ["nightly", "gate"]),
        *(("main", status, 0, ["nightly"]) for status in (2, 3, 70, 130)),
    ],
)
def test_a_job_asks_the_gate_only_of_a_run_that_came_to_its_end(
    tmp_path: Path, job: Callable[[str], list[str]], branch: str, nightly: int, gate: int, called: list[str]
) -> None:
    fake = tmp_path / "xenlab"
    fake.write_text(
        f"#!/bin/sh\necho $1 >> {tmp_path}/called\ncase $1 in nightly) exit {nightly};; gate) exit {gate};; esac\n"
    )
    fake.chmod(0o755)
    status = 0
    for step in job(branch):
        done = subprocess.run(["bash", "-c", step], cwd=tmp_path, check=False, capture_output=True, timeout=30)
        if status := done.returncode:
            break  # a step that fails ends the job
    assert (tmp_path / "called").read_text().split() == called
    assert (status == 0) is (gate == 0 and nightly < 2)


def test_a_pass_with_a_known_bug_is_told_to_each_tool(folders: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"guest": "pvh64", "fault": "cut", "place": "GO", "known": ["incoming-left-paused"], "bad": []})
    passed = result(LIVE, evidence=(Evidence("cell", "pvh64-cut-GO", body, 1.0),))
    folder = folders.write(passed, result(PV32), result(S3, Verdict.SKIP), key="aa")
    assert publish(folder) == []
    lines = capsys.readouterr().out.splitlines()
    assert f"PASS  {LIVE}: known bug incoming-left-paused" in lines
    assert "2 PASS (1 with a known bug), 1 SKIP in 1 h 0 min" in lines
    skip = next(at for at, line in enumerate(lines) if line.startswith("SKIP"))
    assert skip < lines.index(f"PASS  {LIVE}: known bug incoming-left-paused")
    text = (folder.path / "summary.md").read_text()
    assert "### PASS, known bug: 1\n\n- test_brings_it_over: incoming-left-paused\n" in text
    cases = {case.attrib["name"]: case for case in ET.parse(folder.path / "junit.xml").getroot().iter("testcase")}
    case = cases["test_brings_it_over"]
    properties = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
    assert properties["known-bug"] == "incoming-left-paused"
    assert (case.findtext("system-out") or "").startswith("PASS, known bug incoming-left-paused")
    assert "known-bug" not in {one.attrib["name"] for one in cases["test_pv32_runs[hvm]"].iter("property")}
    report = json.loads((folder.path / "ctrf.json").read_text())["results"]
    assert report["summary"]["extra"]["knownBugs"] == 1
    told = {test["name"]: test for test in report["tests"]}[LIVE]
    assert (told["status"], told["labels"]["knownBugs"]) == ("passed", ["incoming-left-paused"])
    assert told["message"] == "PASS, known bug incoming-left-paused"
    assert metrics(folder)["xenlab_run_known_bug_results",] == 1


def test_the_summary_reads_as_text_with_run_build_date_and_report(folders: Runs) -> None:
    folder = folders.write(result(PV32), result(S3, Verdict.FAIL, reason="test_s3: [x] no wake_up (1 of 2)"), key="aa")
    source = {"commit": "a" * 40, "subject": "x86: mend it", "date": "2026-11-20"}
    folder.write_builds({LINE: {**folder.builds()[LINE], "source": source}})
    publish(folder)
    text = (folder.path / "summary.md").read_text()
    assert "- run: run1, full, 2026-11-19 11:06 UTC, took 1 h 0 min\n" in text
    assert f"- build: pv32-debug 4.17.5 {'a' * 12} (x86: mend it) 2026-11-20\n" in text
    assert f"- report: {folder.path}/report.html\n" in text
    assert "| test_s3_rtc_wake | virtual | never passed | test_s3: [x] no wake_up (1 of 2)" in text
    assert "&#" not in text
    assert "1 failed; no baseline yet" in text


def test_an_interrupted_run_is_not_told_as_good(folders: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    good = folders.write(result(PV32), result(S3), key="aa")
    History().import_run(good.path)
    folder = folders.write(result(PV32), key="bb", planned=(PV32, S3), exit_status=130)
    publish(folder)
    out = capsys.readouterr().out
    assert "interrupted: 1 of 2 planned cases have a result" in out
    assert "exit status 130: the run was interrupted" in out
    text = (folder.path / "summary.md").read_text()
    assert text.startswith("# xenlab: MISS, interrupted\n")
    assert "incomplete: run run2 was interrupted, 1 of 2 planned cases did not run" in text
    assert json.loads((folder.path / "ctrf.json").read_text())["results"]["summary"]["extra"]["state"] == "interrupted"
    assert metrics(folder)["xenlab_run_complete",] == 0


def test_one_crash_of_many_cases_is_one_line_at_the_end(folders: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"testcases/boot/test_b.py::test_case_{number}" for number in range(94)]
    publish(folders.write(*map(result, names), key="aa"))
    bad = [result(name, Verdict.FAIL, fingerprint="3c9f01ab77 xen-assertion: y") for name in names]
    publish(folders.write(*bad, key="bb"))
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("worse")]
    assert line == (
        "worse new failure          94 cases: xen-assertion: y; in test_case_0, test_case_1, test_case_10 and 91 more"
    )
    assert len([line for line in out.splitlines() if line.startswith("FAIL")]) == 1


def test_a_crash_that_some_cases_always_had_is_one_fault_with_each_state(
    folders: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = {"fingerprint": "3c9f01ab77 xen-assertion: y", "rule": "console-crash"}
    old = result(LIVE, Verdict.FAIL, **crash)
    publish(folders.write(result(PV32), old, key="aa"))
    History().accept(History().select(f"{LINE}@aa").build)
    capsys.readouterr()
    folder = folders.write(result(PV32, Verdict.FAIL, **crash), old, key="bb")
    publish(folder)
    told = [line for line in capsys.readouterr().out.splitlines() if "xen-assertion: y" in line]
    names = "test_pv32_runs[hvm], test_brings_it_over"
    states = "1 new failure, 1 never passed (failed with every build tested)"
    assert told == [f"worse new failure          {states}: xen-assertion: y; in {names}"]
    summary = (folder.path / "summary.md").read_text()
    assert summary.count("xen-assertion: y") == 1 and "### Got worse: 1\n" in summary
    assert f"{states} | " in summary and "### Other failures" not in summary
    news = ci.judged(History(), folder.summary())
    text = mail.body(folder.summary(), news, None)
    assert text.count("xen-assertion: y") == 1
    assert f"{PV32} [virtual]  FAIL REGR. vs pv32-debug 4.17.5 aa (19 Nov), fault 3c9f01ab77\n" in text
    assert f"{LIVE} [virtual]  FAIL never pass, fault 3c9f01ab77\n" in text
    page = (tmp_path / "site" / "index.html").read_text()
    assert page.count("xen-assertion: y</a></h2>") == 1 and "xen-assertion: y</a></h3>" not in page
    assert "2 cases show it on virt1 (board class virtual): 1 new failure, 1 never passed." in page


def test_a_mail_of_a_night_that_the_bench_lost_does_not_say_that_all_is_well(folders: Runs) -> None:
    publish(folders.write(result(PV32), result(S3), key="aa"))
    folder = folders.write(result(PV32), result(S3, Verdict.MISS), key="bb")
    publish(folder)
    text = mail.body(folder.summary(), ci.judged(History(), folder.summary()), None)
    assert "Incomplete: 1 of 2 cases that passed or failed with the baseline did neither now." in text
    assert "All that was counted passed" not in text


def test_a_mail_names_the_reason_of_what_says_nothing_once(folders: Runs) -> None:
    silent = [result(case, Verdict.MISS, reason="virt1: no power after 30 s") for case in (PV32, S3)]
    publish(folders.write(result(PV32), result(S3), result(LIVE), key="aa"))
    folder = folders.write(*silent, result(LIVE, Verdict.ERROR, reason="KeyError: 'x'"), key="bb")
    publish(folder)
    text = mail.body(folder.summary(), ci.judged(History(), folder.summary()), None)
    report = f"   {(folder.path / 'report.html').as_uri()}\n"
    assert f" MISS 2 cases: virt1: no power after 30 s\n{report}   {PV32} [virtual]\n   {S3} [virtual]\n" in text
    assert f" ERROR 1 case: virt1: KeyError: 'x'\n{report}   {LIVE} [virtual]\n" in text


def test_a_mail_of_a_night_in_which_all_was_skipped_says_that_nothing_was_judged(folders: Runs) -> None:
    publish(folders.write(result(PV32), key="aa"))
    folder = folders.write(result(PV32, Verdict.SKIP), key="bb")
    publish(folder)
    text = mail.body(folder.summary(), ci.judged(History(), folder.summary()), None)
    assert "Nothing to judge: no case passed or failed." in text and "All that was counted passed" not in text


def test_a_mail_is_about_the_worst_build_and_its_subject_says_what_is_not_plainly_good(folders: Runs) -> None:
    def subject(folder: RunFolder) -> str:
        publish(folder)
        return mail.subject(folder.summary(), ci.judged(History(), folder.summary()))

    def night(key: str, broken: str = "") -> RunFolder:
        names = ("debug", "release", "upstream")
        found = [result(PV32, Verdict.FAIL if name == broken else Verdict.PASS, build=name) for name in names]
        return folders.write(*found, key=key, builds=names)

    excused = Check("cr2", False, "lost", "cr2-not-saved")
    assert subject(night("aa")).endswith(" and 2 more builds: PASS: all that was asked for passed; no baseline yet")
    assert subject(night("bb", "release")) == "[xenlab] release 4.17.5 bb (20 Nov) and 2 more builds: 1 new failure"
    publish(folders.write(result(PV32), key="aa"))
    told = subject(folders.write(result(PV32, checks=(excused,)), key="bb"))
    assert told.endswith(": PASS: all that was asked for passed; 1 with a known bug")


def test_a_mail_address_gets_the_whole_result_and_a_hook_a_few_lines(
    folders: Runs, hook: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = hook
    with Mailbox() as mailbox:
        address = f"mailto://127.0.0.1:{mailbox.port}?from=lab@lab.example&to=xen@lab.example&mode=insecure"
        monkeypatch.setenv(notify.SETTING, f"{url} {address}")
        assert publish(worse(folders)) == []
    assert told[0]["message"].startswith("worse new failure")
    [mail] = mailbox.mails
    assert "Regressions :-(" in mail
    assert f"{PV32} [virtual]  FAIL REGR. vs pv32-debug 4.17.5 aa (19 Nov)" in mail


class Mailbox:
    """An SMTP server on this machine that keeps what it is given: as much of RFC 5321 as a client needs."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Mailbox:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rwb") as stream:
            connection.settimeout(30)

            def say(text: str) -> None:
                stream.write(f"{text}\r\n".encode())
                stream.flush()

            say("220 lab")
            while line := stream.readline():
                word = line.split()[0].upper() if line.split() else b""
                if word == b"DATA":
                    say("354 go on")
                    lines = []
                    while (part := stream.readline()) not in (b".\r\n", b""):
                        lines.append(part)
                    self.mails.append(text_of(b"".join(lines)))
                    say("250 kept")
                elif word == b"QUIT":
                    say("221 bye")
                    return
                else:
                    say("250 lab")


def text_of(mail: bytes) -> str:
    message = email.message_from_bytes(mail)
    parts = [part for part in message.walk() if part.get_content_type() == "text/plain"]
    return "".join(bytes(part.get_payload(decode=True)).decode() for part in parts)
