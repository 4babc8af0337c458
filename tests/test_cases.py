"""The plugin that runs cases, tried by cases that need no board: each runs in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lab.base import paths
from lab.base.errors import UsageError
from lab.night import planning
from lab.night.options import NightlyOptions
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder


class Ran:
    """What came of a file of cases."""

    def __init__(self, done: subprocess.CompletedProcess[str], results: list[TestResult]) -> None:
        self.status, self.said, self.results = done.returncode, done.stdout + done.stderr, results


def run(folder: Path, source: str, *words: str) -> Ran:
    """Run ``source`` as the only file of the area ``tried``."""
    file = folder / "testcases" / "tried" / "test_tried.py"
    file.parent.mkdir(parents=True)
    file.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--rootdir={folder}", "-c", str(paths.PYTEST_SETTINGS), "-q"]
        + ["-p", "lab.case.plugin", "-p", "no:cacheprovider", *words, str(file)],
        cwd=folder,
        env=paths.environment() | {"XDG_STATE_HOME": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    folders = list((folder / "state").glob("xenlab/runs/*"))
    return Ran(done, [result for one in folders for result in RunFolder(one).results()])


def test_a_case_that_does_not_end_is_ended_and_shows_where_it_hung(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import time, pytest

        @pytest.mark.timeout(0.5, func_only=True)
        def test_hangs():
            time.sleep(60)
        """,
    )
    (result,) = ran.results
    assert (result.verdict, result.rule) == (Verdict.ERROR, "case-timeout"), ran.said
    assert any("time.sleep(60)" in one.body for one in result.evidence)


def test_a_case_has_a_time_limit_without_asking_for_one(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import signal

        def test_limit():
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            assert 500 < left <= 600
        """,
    )
    assert [result.verdict for result in ran.results] == [Verdict.PASS], ran.said


NEEDS = """
    import pytest

    @pytest.mark.needs("hap", "happ")
    @pytest.mark.parametrize("number", [1, 2])
    def test_something(number):
        pass
    """


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--build", "relese"), "there is no build 'relese' (did you mean release?)"),
        (("--boards", "vrit1"), "no board vrit1 (did you mean virt1?); there are: virt1, virt2"),
        (("--run-folder", "/nope"), "/nope: not a run folder: run.json: No such file or directory"),
        (("--inventory", "/nope"), "/nope: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    ran = run(tmp_path, "def test_it(host): pass", *words)
    assert ran.status == 4 and f"ERROR: {said}" in ran.said and "Traceback" not in ran.said, ran.said
    assert not (tmp_path / "state" / "xenlab" / "runs").exists()


def test_a_capability_that_does_not_exist_is_a_usage_error_when_cases_are_collected(tmp_path: Path) -> None:
    ran = run(tmp_path, NEEDS, "--collect-only")
    assert ran.status == pytest.ExitCode.USAGE_ERROR
    said = [line for line in ran.said.splitlines() if line.startswith("ERROR: ")]
    assert len(said) == 1, ran.said  # not one for each variant
    assert "testcases/tried/test_tried.py:4: test_something: needs: unknown capability 'happ'" in said[0]
    assert "hap" in said[0].partition("'happ'")[2]


def test_planning_refuses_a_capability_that_does_not_exist(tmp_path: Path) -> None:
    run(tmp_path, NEEDS, "--collect-only")
    with pytest.raises(UsageError, match=r"test_tried.py:4: .* unknown capability 'happ'"):
        planning.collect(NightlyOptions(paths=(str(tmp_path / "testcases"),)), "weekly")


KEEPS = """
    import pytest
    from lab.night import collecting  # a module, whose functions are found by attribute

    @pytest.fixture
    def guest(evidence):
        evidence.add("the fixture's", "")

    def judge(log, title, guest, unit="s"):
        for who in ("one", "two"):
            log.figure(f"{who}_of_{guest.name}_{unit}", 1.0)
        log.console(title, guest)
        judge(log, title, guest)

    @pytest.mark.parametrize("cycles", [3])
    def test_keeps(evidence, guest, cycles):
        evidence.add("a" + "b", "not a literal")
        evidence.add("a literal, twice", "")
        evidence.add("a literal, twice", "")
        text = 'evidence.add("only a text", "")'
        judge(evidence, "the guest" if cycles else "no guest", guest)
        evidence.add(f"cycle {cycles}", text)
        evidence.migration(None)
        evidence.console(guest.name, guest)

    def test_keeps_nothing(cycles=1):
        pass
    """


def test_what_a_case_keeps_is_read_from_its_source_and_its_helpers(tmp_path: Path) -> None:
    run(tmp_path, KEEPS, "--collect-only")
    keeps, nothing = planning.collect(NightlyOptions(paths=(str(tmp_path / "testcases"),)), "weekly")
    assert list(keeps.evidence) == [
        "the fixture's",
        "a literal, twice",
        "one of <guest> s",
        "two of <guest> s",
        "the guest",
        "no guest",
        "cycle <cycles>",
        "xl migrate",
        "what passed between the hosts",
        "<guest>",
    ]
    assert nothing.evidence == ()
