"""A run as a report of KCIDB: the published schema takes it, and it says nothing better than it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kcidb_io.schema import LATEST, V5_0
from run_folders import LINE, PV32, S3, Runs, result
from typer.testing import CliRunner

from lab.base import paths
from lab.base.errors import UsageError
from lab.cli.main import app
from lab.history.store import SETTING, History
from lab.reporting import kcidb
from lab.results.record import CRASH, Check, Evidence, Verdict
from lab.results.run_folder import RunFolder
from lab.results.summary import DID_NOT_RUN

HOSTILE = "\x00\x1b]0;owned\x07 \ud800 \u202e ]]> {{ 7*7 }} [a.b]"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def report(folder: RunFolder, **words: str) -> dict[str, Any]:
    """What a receiver reads, which both the oldest 5.x and the newest schema take."""
    said: dict[str, Any] = json.loads(kcidb.text(folder.summary(), **words))
    V5_0.validate_exactly(said)
    LATEST.validate_exactly(said)
    return said


def statuses(said: dict[str, Any]) -> dict[str, str]:
    return {one["path"]: one["status"] for one in said["tests"]}


def test_each_verdict_keeps_its_word(runs: Runs) -> None:
    cases = {f"testcases/boot/test_{verdict}.py::test_it".lower(): verdict for verdict in Verdict}
    said = report(runs.write(*(result(case, verdict) for case, verdict in cases.items()), exit_status=1))
    assert statuses(said) == {
        "xenlab.boot.test_fail.test_it": "FAIL",
        "xenlab.boot.test_error.test_it": "ERROR",
        "xenlab.boot.test_miss.test_it": "MISS",
        "xenlab.boot.test_pass.test_it": "PASS",
        "xenlab.boot.test_skip.test_it": "SKIP",
    }
    [failed] = [one for one in said["tests"] if one["status"] == "FAIL"]
    assert failed["comment"] == "virt1: because" and failed["misc"]["rule"] == "assertion"
    assert failed["environment"] == {"comment": "virt1", "misc": {"virt1": {"class": "virtual"}}}


def test_test_names_its_build_and_that_its_checkout(runs: Runs) -> None:
    folder = runs.write(result(), key="")
    source = {"commit": COMMIT, "subject": "x86: a", "date": "2026-11-20T00:00:00+00:00", "branch": "staging"}
    folder.write_builds({LINE: {"key": "aaaaaaaa11", "version": "4.20", "build id": "b", "source": source}})
    said = report(folder, origin="our_lab")
    [checkout], [build], [test] = said["checkouts"], said["builds"], said["tests"]
    assert test["build_id"] == build["id"] == f"our_lab:{LINE}@aaaaaaaa11"
    assert build["checkout_id"] == checkout["id"] == "our_lab:aaaaaaaa11"
    assert {one["origin"] for one in (checkout, build, test)} == {"our_lab"}
    assert checkout["git_commit_hash"] == COMMIT and checkout["git_repository_branch"] == "staging"
    assert build["status"] == "PASS" and build["misc"]["version"] == "4.20"
    assert test["start_time"] == "2026-11-19T11:06:40.000+00:00" and test["duration"] == 2.0


def test_build_of_a_package_has_no_commit(runs: Runs) -> None:
    folder = runs.write(result(), key="")
    folder.write_builds({LINE: {"key": "aa", "source": {"package": "xen", "version": "4.17.5-1"}}})
    [checkout] = report(folder)["checkouts"]
    assert "git_commit_hash" not in checkout and checkout["comment"] == "xen 4.17.5-1"


def test_variants_of_one_build_share_its_checkout(runs: Runs) -> None:
    said = report(runs.write(result(build="a"), result(build="a+pvh"), builds=("a", "a+pvh")))
    assert len(said["checkouts"]) == 1 and len(said["builds"]) == 2
    assert len({one["id"] for one in said["tests"]}) == 2


def test_pass_with_a_known_finding_says_so(runs: Runs) -> None:
    checks = (Check("memory", True, "fine"), Check("clock", False, "late", excuse="xen-late-clock"))
    [test] = report(runs.write(result(checks=checks)))["tests"]
    assert test["status"] == "PASS" and test["comment"] == "PASS, known bug xen-late-clock"
    assert test["misc"]["known_findings"] == [{"name": "xen-late-clock", "checks": ["clock"]}]


def test_case_that_did_not_run_is_a_miss(runs: Runs) -> None:
    said = report(runs.write(result(), planned=(PV32, S3)))
    [gone] = [one for one in said["tests"] if one["misc"].get("case") == S3]
    assert gone["status"] == "MISS" and gone["misc"]["rule"] == DID_NOT_RUN


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"finished": None}, "broke off: 1 of 1 planned case has a result"),
        ({"exit_status": 130}, "interrupted: 1 of 1 planned case has a result"),
        ({"required_areas": ("guest32", "sleep")}, "no PASS in area sleep"),
        ({"exit_status": 3}, "exit status 3: the bench failed, or not all that was asked for ran"),
    ],
)
def test_run_that_is_not_good_is_not_green_though_all_its_cases_pass(
    runs: Runs, changes: dict[str, Any], why: str
) -> None:
    folder = RunFolder.open(runs.write(result(), **changes).path)  # nobody writes to it any longer
    tests = {one["path"]: one for one in report(folder)["tests"]}
    assert statuses({"tests": [*tests.values()]}) == {
        "xenlab.guest32.test_pv32.test_pv32_runs_hvm": "PASS",
        "xenlab.run": "MISS",
    }
    assert tests["xenlab.run"]["comment"] == why


def test_good_run_has_its_cases_alone(runs: Runs) -> None:
    said = report(runs.write(result(), exit_status=0, required_areas=("guest32",)))
    assert set(statuses(said).values()) == {"PASS"} and len(said["tests"]) == 1


def test_run_without_any_result_is_a_miss(runs: Runs) -> None:
    assert statuses(report(runs.write(builds=(), key="", exit_status=3))) == {"xenlab.run": "MISS"}


def test_failure_that_passed_when_tried_again_stays_one(runs: Runs) -> None:
    bad = result(verdict=Verdict.FAIL)
    [test] = report(runs.write(bad, result(attempt=2)))["tests"]
    assert test["status"] == "FAIL" and test["misc"]["other_attempts"] == [
        {"attempt": 2, "status": "PASS", "reason": ""}
    ]
    missed = result(verdict=Verdict.MISS)
    [test] = report(runs.write(missed, result(attempt=2)))["tests"]
    assert test["status"] == "PASS" and test["misc"]["flaky"] is True


def test_long_evidence_is_shortened_and_hostile_text_is_shown(runs: Runs) -> None:
    crash = Evidence(CRASH, HOSTILE, "Panic on CPU 0\n" + "x" * 40_000 + "\nthe end", 1.0, "virt1")
    case = f"testcases/x/test_y.py::test[{HOSTILE}]"
    bad = result(case, Verdict.FAIL, reason=HOSTILE, evidence=(crash,), build=HOSTILE, fingerprint=HOSTILE)
    bad = replace(bad, boards=(HOSTILE,), figures={HOSTILE: 1.0, "bad_s": float("inf")})
    folder = runs.write(bad, builds=(HOSTILE,), key="", run_id=HOSTILE, notes=(HOSTILE,), exit_status=3)
    folder.write_builds({HOSTILE: {HOSTILE: HOSTILE, "source": {"commit": HOSTILE, "subject": HOSTILE}}})
    said = report(folder)
    excerpt = said["tests"][0]["log_excerpt"]
    assert "Panic on CPU 0" in excerpt and excerpt.endswith("the end") and len(excerpt) < 16384
    assert not re.search(r"[\x00\x1b\ud800\u202e]", json.dumps(said, ensure_ascii=False))
    assert [*said["tests"][0]["misc"]["figures"].values()] == [1.0]


def test_origin_that_no_receiver_takes_is_refused(runs: Runs) -> None:
    with pytest.raises(UsageError, match="invalid origin 'Our Lab'; use lower-case"):
        kcidb.text(runs.write(result()).summary(), "Our Lab")


def test_command_prints_a_run_by_id_by_folder_or_the_newest(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    monkeypatch.delenv(SETTING, raising=False)
    first, last = runs.write(result()), runs.write(result(S3))
    for folder in (first, last):
        History().import_run(folder.path)

    def cases(*words: str) -> list[str]:
        done = CliRunner().invoke(app, ["export", "--kcidb", "--origin", "our_lab", *words])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        LATEST.validate(said)
        return [one["misc"]["case"] for one in said["tests"]]

    assert cases() == cases("run2") == cases(str(last.path)) == [S3]
    assert cases("run1") == [PV32]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("run1",), "export needs a format: add --kcidb"),
        (("--kcidb", "run9"), "the history has no run run9"),
        (("--kcidb",), "no run yet"),
    ],
)
def test_wrong_words_are_one_error(
    words: tuple[str, ...], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    monkeypatch.delenv(SETTING, raising=False)
    done = CliRunner().invoke(app, ["export", *words])
    assert isinstance(done.exception, UsageError) and wanted in str(done.exception)
