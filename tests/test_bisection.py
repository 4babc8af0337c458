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
from run_folders import Runs, result

from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.builds.recipes import Git, recipe
from lab.history.store import History
from lab.night import bisection
from lab.night.bisection import Asked
from lab.night.options import VIRTUAL_LAB
from lab.night.revisions import Revisions
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
    search = Revisions(tmp_path, asked(there).recipe, str(there))
    revision = search.resolve("main~3")
    made, base = recipe(search.recipe(revision)), recipe("pv32-debug")
    assert made.source == Git(str(there), revision)
    assert replace(made, source=base.source, name=base.name) == base


def test_the_command_wants_one_case(lab: Lab, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", SERIES)
    several = Asked("testcases/guest32/test_pv32.py", "main~7", "main", source=str(there), inventory=VIRTUAL_LAB)
    with pytest.raises(UsageError, match="cases; name one: testcases/guest32"):
        bisection.command(several, print)


FIGURE = "pv64_hypercall_instructions"


class Measuring(Lab):
    """A revision's program is its figure; what is no number does not compile. ``noise`` is added by attempt."""

    noise: tuple[float, ...] = (0.0,)
    figure = FIGURE

    def __call__(self, name: str, folder: Path) -> None:
        source = recipe(name).source
        assert isinstance(source, Git)
        with open(self.diary, "a") as diary:
            diary.write(f"{git(Path(source.location), 'log', '-1', '--format=%s', source.revision)}\n")
        number = len(self.times())
        run = RunFolder.create(folder, RunHeader("r", time.time(), "", ("b",), {}, (CASE,), ()))
        text = git(Path(source.location), "show", f"{source.revision}:main.c")
        figures = {}
        if text[0].isdigit():
            figures = {self.figure: float(text) * (1 + self.noise[number % len(self.noise)])}
        verdict = Verdict.PASS if text != "crash" else Verdict.FAIL
        said = "" if figures else f"the guest says {text}"
        boards = self.boards(number)
        run.append(TestResult(CASE, "performance", verdict, "passed", said, 1.0, 1.0, boards, figures=figures))


COSTS = [
    ("start", "271.1"),
    ("tidy", "271.0"),
    ("does not boot", "crash"),
    ("another lock", "274.3"),  # 1.2 %
    ("docs", "274.2"),
    ("nothing measured", "nothing"),
    ("end", "274.4"),
]


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measuring:
    monkeypatch.setattr(paths, "state", lambda: tmp_path / "state")
    return Measuring(tmp_path / "diary")


def of_figure(there: Path, **changes: object) -> Asked:
    return replace(asked(there, "main~6"), **{"figure": FIGURE, **changes})  # type: ignore[arg-type]


def test_the_commit_that_moved_a_figure_is_found_past_what_does_not_measure(
    measuring: Measuring, tmp_path: Path
) -> None:
    there = repository(tmp_path / "xen", COSTS)
    said: list[str] = []
    found = bisection.find(of_figure(there), measuring, said.append)
    assert set(found.revisions) == {git(there, "rev-parse", f"main~{n}") for n in (3, 4)}, "one of two was not measured"
    text = "\n".join([*said, *found.lines])
    assert "good has 271.1, bad 274.4: pv64_hypercall_instructions +1.22%, noise 0.00%; on virt1 as the bad one" in text
    assert f"skipped: {git(there, 'log', '-1', '--format=%h %s', 'main~4')}: {FIGURE} was not measured" in text
    assert "last seen good: " in text and "tidy" in text


def test_a_cheaper_figure_and_a_small_step_beside_noise_are_found(measuring: Measuring, tmp_path: Path) -> None:
    steps = [("start", "300.0"), ("tidy", "300.9"), ("docs", "299.2"), ("fewer exits", "290.0"), ("end", "290.9")]
    there = repository(tmp_path / "xen", steps)
    measuring.noise = (0.0, 0.001, -0.001)
    found = bisection.find(of_figure(there, good="main~4"), measuring, print)
    assert found.revisions == (git(there, "rev-parse", "main~1"),)
    tried = measuring.times()
    assert bisection.find(of_figure(there, good="main~4"), measuring, print) == found
    assert measuring.times() == tried, "what was measured is kept"
    assert any(re.match(rf"seen: {FIGURE} 289.71 is nearer to 290.9 than to 300", line) for line in found.lines)


@pytest.mark.parametrize(
    ("end", "noise", "words"),
    [
        ("272.0", (0.0,), r"not apart: .*\+0.37%, noise 0.00%: no change"),
        ("276.0", (0.0, 0.03, 0.0), r"not apart: .*noise 3.00%: undecided"),
        ("nothing", (0.0,), "end cannot be judged: pv64_hypercall_instructions was not measured"),
    ],
)
def test_a_figure_that_is_not_apart_is_not_searched(
    measuring: Measuring, tmp_path: Path, end: str, noise: tuple[float, ...], words: str
) -> None:
    there = repository(tmp_path / "xen", [("start", "271.0"), ("tidy", "271.0"), ("end", end)])
    measuring.noise = noise
    with pytest.raises(BenchError, match=words):
        bisection.find(of_figure(there, good="main~2"), measuring, print)
    assert "tidy" not in measuring.times()


def test_a_figure_of_another_board_is_no_answer(measuring: Measuring, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", COSTS)
    measuring.boards = lambda number: BOARD if number <= 6 else ("virt2",)
    found = bisection.find(of_figure(there), measuring, print)
    assert len(found.revisions) > 2 and any("ran on virt2, the bad one on virt1" in line for line in found.lines)


def test_a_time_is_measured_as_often_as_times_need(measuring: Measuring, tmp_path: Path) -> None:
    there = repository(tmp_path / "xen", [("start", "1000"), ("tidy", "1000"), ("lock", "1200"), ("end", "1200")])
    measuring.noise, measuring.figure = (0.0, 0.02, -0.02, 0.01, -0.01), "pv64_hypercall_ns"
    found = bisection.find(of_figure(there, good="main~3", figure=measuring.figure), measuring, print)
    assert found.revisions == (git(there, "rev-parse", "main~1"),)
    assert measuring.times().count("tidy") == 5


def test_the_case_of_a_figure_is_known_from_the_history(lab: Lab, tmp_path: Path) -> None:
    asked_for = Asked("", "a", "b", figure=FIGURE)
    (tmp_path / "state").mkdir()
    with pytest.raises(UsageError, match=f"history has no figure '{FIGURE}': no run measured a cost"):
        bisection.command(asked_for, print)
    with pytest.raises(UsageError, match="ends in _instructions or _ns"):
        bisection.command(replace(asked_for, figure="pv64_hypercall"), print)
    History().import_run(Runs(tmp_path / "runs").write(result(CASE, figures={FIGURE: 271.0})).path)
    assert bisection._with_case(asked_for).case == CASE
