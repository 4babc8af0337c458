"""Bisection of a real repository: each revision is compiled and run, and what that says is a run folder."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.builds.recipes import Git, recipe
from lab.night import bisection
from lab.night.bisection import Asked
from lab.night.options import VIRTUAL_LAB
from lab.results.record import RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder

CASE = "testcases/guest32/test_pv32.py::test_pv32_hypercalls"
BOARD = ("virt1",)
GOOD = "int main(void) { return 0; }"
BROKEN = "int main(void) { return 1; }  /* the compat layer forgets an argument */"
DOES_NOT_COMPILE = "int main(void) { return"
DOES_NOT_BOOT = "int main(void) { return 2; }"
FLAKY = "int main(void) { return 3; }"  # every third attempt fails

# A revision each; the subject says what a test looks for.
SERIES = [
    ("start", GOOD),
    ("tidy", GOOD),
    ("half a change", DOES_NOT_COMPILE),
    ("the other half", GOOD),
    ("compat: shorter", BROKEN),
    ("docs", BROKEN),
    ("boot: wrong", DOES_NOT_BOOT),
    ("boot: right", BROKEN),
]


def git(repository: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", str(repository), *words],
        env=os.environ | names | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def repository(where: Path, series: list[tuple[str, str]]) -> Path:
    where.mkdir()
    git(where, "init", "-q", "-b", "main")
    for subject, program in series:
        (where / "main.c").write_text(program + "\n")
        git(where, "add", "main.c")
        git(where, "commit", "-q", "--allow-empty", "-m", f"{subject}\n\nA reason.")
    return where


class Lab:
    """Compiles and runs what a recipe names, and leaves what the nightly run would."""

    def __init__(self, diary: Path, *, dies_at: int = 0, boards: Callable[[int], tuple[str, ...]] = lambda n: BOARD):
        self.diary, self.dies_at, self.boards = diary, dies_at, boards

    def __call__(self, name: str, folder: Path) -> None:
        source = recipe(name).source
        assert isinstance(source, Git)
        with open(self.diary, "a") as diary:
            diary.write(f"{git(Path(source.location), 'log', '-1', '--format=%s', source.revision)}\n")
        number = len(self.diary.read_text().splitlines())
        header = RunHeader("r", time.time(), "", ("b",), {}, (CASE,), ())
        run = RunFolder.create(folder, header)
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        program = folder / "main"
        text = git(Path(source.location), "show", f"{source.revision}:main.c")
        compiled = subprocess.run(
            ["gcc", "-x", "c", "-o", str(program), "-"], input=text, text=True, capture_output=True, timeout=60
        )
        if compiled.returncode:
            error = next(line for line in compiled.stderr.splitlines() if "error" in line)
            run.write_header(replace(header, notes=(error,)))
            return
        status = subprocess.run([program], timeout=60).returncode
        if status == 3:
            status = 1 if int(folder.name.rpartition("-")[2]) % 3 == 2 else 0
        proved = () if status == 2 else ("virt1",)
        verdict = Verdict.FAIL if status else Verdict.PASS
        reason = f"exit status {status}" if status else ""
        run.append(
            TestResult(CASE, "guest32", verdict, "assertion", reason, 1.0, 1.0, self.boards(number), proved=proved)
        )

    def times(self) -> list[str]:
        return self.diary.read_text().splitlines()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(paths, "state", lambda: tmp_path / "state")
    return Lab(tmp_path / "diary")


def asked(repository: Path, good: str = "main~7", bad: str = "main") -> Asked:
    return Asked(CASE, good, bad, source=str(repository))


def test_the_first_bad_commit_is_found_past_what_cannot_be_judged(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    said: list[str] = []
    found = bisection.find(asked(there), lab, said.append)
    wanted = git(there, "rev-parse", "main~3")
    assert found.revisions == (wanted,)
    text = "\n".join(found.lines)
    assert text.startswith(f"first bad: {wanted[:7]} compat: shorter\n")
    assert "A reason." in text and "main.c | 2 +-" in text
    assert "seen: exit status 1 (assertion)" in text
    proof = Path(re.search(r"proof: (.*)", text)[1])  # type: ignore[index]
    assert RunFolder.open(proof.parent).final_results()[0].verdict is Verdict.FAIL
    assert re.search(r"last seen good: \w+ the other half", text)
    assert lab.times()[:4] == ["boot: right"] * 3 + ["start"]  # confirmed first
    assert len(lab.times()) <= 4 + 2 * len(SERIES)
    assert git(there, "status", "--porcelain") == "" and "bisect" not in git(
        there, "for-each-ref"
    )  # theirs is untouched


def test_a_build_that_does_not_come_up_is_not_called_bad(lab: Lab, tmp_path: Path) -> None:
    series = [("start", GOOD), ("tidy", GOOD), ("boot: wrong", DOES_NOT_BOOT), ("boot: right", GOOD), ("break", BROKEN)]
    there = repository(tmp_path / "xen", series)
    said: list[str] = []
    found = bisection.find(asked(there, "main~4"), lab, said.append)
    assert found.revisions == (git(there, "rev-parse", "main"),)
    assert "fails otherwise than the bad one: the build does not come up" in "\n".join(said)


def test_a_build_that_does_not_come_up_can_be_what_is_looked_for(lab: Lab, tmp_path: Path) -> None:
    series = [("start", GOOD), ("tidy", GOOD), ("boot: wrong", DOES_NOT_BOOT), ("docs", DOES_NOT_BOOT)]
    there = repository(tmp_path / "xen", series)
    assert bisection.find(asked(there, "main~3"), lab, print).revisions == (git(there, "rev-parse", "main~1"),)


def test_where_nothing_can_be_told_all_candidates_are(lab: Lab, tmp_path: Path) -> None:
    series = [("start", GOOD), ("half", DOES_NOT_COMPILE), ("more", DOES_NOT_COMPILE), ("whole", BROKEN)]
    there = repository(tmp_path / "xen", series)
    found = bisection.find(asked(there, "main~3"), lab, print)
    assert set(found.revisions) == {git(there, "rev-parse", f"main~{n}") for n in range(3)}
    assert len([line for line in found.lines if line.startswith("skipped: ") and "error: expected" in line]) == 2


def test_a_flaky_failure_makes_good_ones_pass_often(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", [("start", GOOD), ("tidy", GOOD), ("race", FLAKY), ("docs", FLAKY)])
    said: list[str] = []
    found = bisection.find(asked(there, "main~3"), lab, said.append)
    assert found.revisions == (git(there, "rev-parse", "main~1"),)
    assert any("failed 1 of 3" in line and "8 PASS make a good one" in line for line in said)  # (2/3)**8 < 0.05
    assert lab.times().count("start") == lab.times().count("tidy") == 8


@pytest.mark.parametrize(
    ("series", "words"),
    [
        (
            [("start", BROKEN), ("tidy", GOOD), ("break", BROKEN)],
            "the good revision does not pass: .* start: failed 1 of 1",
        ),
        ([("start", GOOD), ("tidy", GOOD), ("end", GOOD)], "the bad revision does not fail: .* end: passed 3 of 3"),
        ([("start", DOES_NOT_COMPILE), ("tidy", GOOD), ("end", BROKEN)], "start cannot be judged: .*error: expected"),
    ],
)
def test_what_cannot_be_confirmed_is_not_searched(
    lab: Lab, tmp_path: Path, series: list[tuple[str, str]], words: str
) -> None:
    there = repository(tmp_path / "xen", series)
    with pytest.raises(BenchError, match=words):
        bisection.find(asked(there, "main~2"), lab, print)
    assert "tidy" not in lab.times()


def test_good_and_bad_are_seen_on_the_same_board(tmp_path: Path, lab: Lab) -> None:
    there = repository(tmp_path / "xen", SERIES)
    lab.boards = lambda number: BOARD if number <= 3 else ("virt2",)
    with pytest.raises(BenchError, match="good ran on virt2, bad on virt1"):
        bisection.find(asked(there), lab, print)


def _search(state: Path, there: Path, diary: Path, dies_at: int) -> None:
    paths.state = lambda: state  # type: ignore[assignment]
    bisection.find(asked(there), Lab(diary, dies_at=dies_at), print)


def test_one_that_was_killed_goes_on_and_repeats_nothing_that_ended(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    undisturbed = Lab(tmp_path / "undisturbed")
    whole = replace(asked(there), recipe="release")  # other words, so a folder of its own
    assert bisection.find(whole, undisturbed, print).revisions
    for dies_at in (2, 6):
        process = multiprocessing.get_context("spawn").Process(
            target=_search, args=(tmp_path / "state", there, lab.diary, dies_at)
        )
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    found = bisection.find(asked(there), lab, print)
    assert found.revisions == (git(there, "rev-parse", "main~3"),)
    assert len(lab.times()) == len(undisturbed.times()) + 2  # those that were killed in the middle
    again = bisection.find(asked(there), lab, print)
    assert again == found
    assert len(lab.times()) == len(undisturbed.times()) + 2


def test_builds_of_a_list_are_searched_by_the_same_rule(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    names = []
    for number in range(len(SERIES)):
        file = tmp_path / f"night{number}.yaml"
        revision = f"main~{len(SERIES) - 1 - number}"
        file.write_text(f"description: night {number}\nsource: {{git: {{path: '{there}', revision: '{revision}'}}}}\n")
        names.append(str(file))
    found = bisection.find(Asked(CASE, names[0], names[-1], among=tuple(names)), lab, print)
    assert found.lines[:2] == (f"first bad: {names[4]}", "    night 4")


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("main", "main~2", "main is not an ancestor of main~2"),
        ("nosuch", "main", "has no revision 'nosuch'"),
        ("--upload-pack=x", "main", "has no revision '--upload-pack=x'"),
    ],
)
def test_wrong_revisions_are_said(lab: Lab, tmp_path: Path, good: str, bad: str, words: str) -> None:
    series = [("start", BROKEN), ("tidy", GOOD), ("end", GOOD)]
    there = repository(tmp_path / "xen", series)
    with pytest.raises(UsageError, match=words):
        bisection.find(asked(there, good, bad), lab, print)


def test_a_build_without_a_repository_needs_one(lab: Lab) -> None:
    with pytest.raises(UsageError, match="build pv32-debug is not made from a repository; --source names one"):
        bisection.find(Asked(CASE, "a", "b"), lab, print)


def test_the_recipe_of_a_revision_is_the_asked_one_but_for_its_source(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    search = bisection._Revisions(tmp_path, asked(there))
    revision = search.resolve("main~3")
    made, base = recipe(search.recipe(revision)), recipe("pv32-debug")
    assert made.source == Git(str(there), revision)
    assert replace(made, source=base.source, name=base.name) == base


def test_the_command_wants_one_case(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    several = Asked("testcases/guest32/test_pv32.py", "main~7", "main", source=str(there), inventory=VIRTUAL_LAB)
    with pytest.raises(UsageError, match="cases; name one: testcases/guest32"):
        bisection.command(several, print)
