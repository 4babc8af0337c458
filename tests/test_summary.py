"""A run read once: how far it came, what counts as what, and what a failure is called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from run_folders import PV32, S3, Runs, result

from lab.night import progress
from lab.reporting import ctrf, html, junit, terminal
from lab.reporting.shown import slices_of
from lab.results.build_source import Source
from lab.results.failures import failure_of, known_findings, label_of
from lab.results.record import Check, Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.results.summary import State


@pytest.fixture
def folders(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "state", "progress"),
    [
        ({}, State.COMPLETE, None),
        ({"planned": (PV32, S3)}, State.INCOMPLETE, "incomplete: 1 of 2 planned cases have a result"),
        (
            {"planned": (PV32, S3), "exit_status": 130},
            State.INTERRUPTED,
            "interrupted: 1 of 2 planned cases have a result",
        ),
        ({"finished": None}, State.RUNNING, "still running: 1 of 1 planned case has a result"),
    ],
)
def test_a_run_says_how_far_it_came(
    folders: Runs, changes: dict[str, object], state: State, progress: str | None
) -> None:
    folder = folders.write(result(PV32), **changes)  # it holds the folder as a run does that goes on
    summary = folder.summary()
    assert (summary.state, summary.progress) == (state, progress)
    assert (summary.overall is Verdict.PASS) is (state is State.COMPLETE)


def test_a_run_whose_writer_died_broke_off(folders: Runs) -> None:
    path = folders.write(result(PV32), finished=None).path  # nobody holds it any more
    assert RunFolder.open(path).summary().state is State.BROKE_OFF


def test_a_run_whose_record_cannot_be_read_is_not_good_and_says_so_everywhere(
    folders: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders.write(result(PV32), exit_status=0)
    file = folder.path / "results.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"newer": 1}) + "\n")
    run = folder.summary()
    said = "a record of results.jsonl cannot be read (another version of xenlab may have written it): line 1: newer:"
    assert (run.status, run.overall) == (3, Verdict.MISS) and run.remarks[0].startswith(said)
    terminal.summary(run)
    assert said in capsys.readouterr().out
    assert said in html.write(run).read_text() and said in junit.write(run).read_text()


def test_a_noted_status_is_not_judged_again(folders: Runs) -> None:
    summary = folders.write(result(PV32), exit_status=3).summary()
    assert (summary.status, summary.overall) == (3, Verdict.MISS)


@pytest.mark.parametrize(
    ("noted", "name", "text"),
    [
        (
            {"commit": "ab" * 20, "subject": "x86: mend it", "date": "2026-11-20", "branch": "staging"},
            "abababa",
            "abababababab (x86: mend it) 2026-11-20 on staging",
        ),
        ({"package": "xen", "version": "4.17.5-1"}, "xen 4.17.5-1", "xen 4.17.5-1"),
        ({"commit": 7, "subject": ["x"]}, None, ""),
        ("a word", None, ""),
        (None, None, ""),
    ],
)
def test_the_source_of_a_build_is_read_as_far_as_it_was_noted(
    folders: Runs, noted: object, name: str | None, text: str
) -> None:
    folder = folders.write(result(PV32))
    folder.write_builds({"pv32-debug": {"key": "aa", "source": noted}})
    source = RunFolder.open(folder.path).summary().sources["pv32-debug"]
    assert (source.name, source.text()) == (name, text)
    assert bool(source) is (name is not None)
    assert folder.builds() == {"pv32-debug": {"key": "aa", **({"source": noted} if isinstance(noted, str) else {})}}


def test_no_source_is_no_source() -> None:
    assert not Source()


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("virt1: no wake within 60 s", "virt2: no wake within 75.5 s", True),
        ("virt1: 0xffff82d040252bb3 is not mapped", "virt2: 0xffff82d040999999 is not mapped", True),
        ("virt1: rebooted", "virt1: no wake", False),
    ],
)
def test_numbers_and_boards_do_not_tell_failures_apart(one: str, other: str, is_same: bool) -> None:
    names = [
        failure_of(result(case, Verdict.FAIL, board, reason=reason))
        for case, board, reason in ((PV32, "virt1", one), (S3, "virt2", other))
    ]
    assert (names[0] == names[1]) is is_same


def test_a_crash_is_named_by_its_fingerprint_and_what_is_good_by_nothing() -> None:
    fingerprint = "3c9f01ab77 xen-assertion: y / z"
    assert failure_of(result(PV32, Verdict.FAIL, fingerprint=fingerprint)) == fingerprint
    assert label_of(fingerprint) == "xen-assertion: y / z"
    assert [failure_of(result(PV32, verdict)) for verdict in (Verdict.PASS, Verdict.SKIP)] == ["", ""]
    assert failure_of(result(PV32, Verdict.MISS, rule="bench")) != failure_of(
        result(PV32, Verdict.MISS, rule="transient")
    )


def test_known_findings_are_read_from_checks_and_cells() -> None:
    checks = (
        Check("ending", True, "fine", "left-paused"),
        Check("left-destination", False, "a domain", "left-paused"),
        Check("where", False, "x", "left-paused"),
    )
    cells = (Evidence("cell", "c", '{"known": ["left-paused", "other"]}', 1.0),)
    passed = result(PV32, evidence=cells, checks=checks)
    assert [(one.name, one.checks) for one in known_findings(passed)] == [
        ("left-paused", ("left-destination", "where")),
        ("other", ()),
    ]
    assert known_findings(result(PV32, Verdict.FAIL, evidence=cells, checks=checks)) == ()
    assert known_findings(result(PV32, evidence=(Evidence("cell", "c", "[1, 2", 1.0),))) == ()


def test_a_duration_is_shown_without_provisioning(folders: Runs) -> None:
    phases = (Phase("provision", 1.0, 96.0), Phase("boot", 2.0, 40.0), Phase("create", 97.0, 2.0))
    summary = folders.write(result(PV32, seconds=104.9, phases=phases)).summary()
    page = html.write(summary).read_text(encoding="utf-8")
    assert '<span class="nowrap">8.9 s</span>' in page
    assert "1 min 36 s of provisioning beside its own 8.9 s" in page
    [case] = ET.parse(junit.write(summary)).getroot().iter("testcase")
    assert case.get("time") == "8.900"
    assert case.find(".//property[@name='provisioning_s']").get("value") == "96.000"  # type: ignore[union-attr]
    assert progress.Working("virt1", "c", 96.0, is_ready=False).line() == "virt1: c, provisioning for 1 min 36 s"
    assert progress.Working("virt1", "c", 8.9, is_ready=True).line() == "virt1: c, 8.9 s"
    [test] = json.loads(ctrf.write(summary).read_text())["results"]["tests"]
    assert test["duration"] == 8900
    assert terminal.result_line(summary.results[0]).plain.endswith(" 8.9 s  virt1 (+1 min 36 s provisioning)")


@dataclass(frozen=True)
class Line:
    time: float
    kind: str
    text: str


def test_a_board_cannot_make_a_gap_in_its_console(folders: Runs) -> None:
    folder = folders.write()
    lines = [
        Line(1.0, "line", "--- gap: I was never away ---"),
        Line(2.0, "line", "--- x ---"),
        Line(3.0, "gap", "SOL lost"),
    ]
    path = folder.write_console(folder.case_directory(PV32, 1), "virt1", lines)
    [slice] = slices_of(folder.path, result(PV32, consoles={"virt1": path}))
    assert [(line.mark, line.text) for line in slice.lines] == [
        ("", "--- gap: I was never away ---"),
        ("", "--- x ---"),
        ("gap", "--- gap: SOL lost ---"),
    ]


def test_reports_are_written_from_what_was_read(folders: Runs) -> None:
    """A result that comes later is in none of them: they agree."""
    folder = folders.write(result(PV32), planned=(PV32, S3))
    summary = folder.summary()
    folder.append(result(S3))
    assert "1 PASS" in summary.counted() and "1 MISS (1 did not run)" in summary.counted()
    assert "1 MISS (1 did not run), 1 PASS" in html.write(summary).read_text(encoding="utf-8")
    assert 'errors="1"' in junit.write(summary).read_text(encoding="utf-8")
    assert isinstance(summary.header, RunHeader) and isinstance(summary.results[0], TestResult)
