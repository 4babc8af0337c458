"""``xenlab try``: a series is read, built on a tree that real make and gcc compile, and judged by what runs say."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_builds import _commit, _git, fragments, tree  # noqa: F401  # fixtures

from lab import builds, inventory
from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.builds import series
from lab.history.store import History
from lab.night import nightly, trying
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.night.trying import Asked
from lab.reporting import reply
from lab.reporting.reply import Outcome, Step
from lab.results import run_folder
from lab.results.record import BUILD_CASE, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder
from tests.run_folders import Runs, result

CASES = ("testcases/guest32/test_pv32.py::test_pv32_runs", "testcases/boot/test_boot.py::test_boots")
TIDY = "int other(void) { return 2; }\n"
BREAKS = 'const char *const said = "no 32-bit guest"; int other(void) { return 3; }\n'
STILL = 'const char *const said = "no 32-bit guest"; int other(void) { return 4; }\n'
NO_C = "int other(void) { return gone; }\n"


def run_cases(options: NightlyOptions) -> int:
    """A run whose first case looks into the hypervisor that was built, as the nightly run would into a board."""
    assert options.output and not options.is_remembered
    cases = [case for case in CASES if not options.paths or any(one.endswith(case) for one in options.paths)]
    names = [Path(one).stem for one in options.builds]
    header = RunHeader(
        options.output.name, time.time(), "quick", tuple(names), {"b1": {"class": "c"}}, tuple(cases), ()
    )
    folder = RunFolder.create(options.output, header)
    made = {name: builds.make(file) for name, file in zip(names, options.builds, strict=True)}
    folder.write_builds({name: build.facts() for name, build in made.items()})
    for name, build in made.items():
        is_broken = b"no 32-bit guest" in gzip.decompress(build.xen.read_bytes())
        for case in cases:
            verdict = Verdict.FAIL if is_broken and "pv32" in case else Verdict.PASS
            rule = "assertion" if verdict is Verdict.FAIL else "passed"
            reason = "set-timer: error=0" if verdict is Verdict.FAIL else ""
            folder.append(TestResult(case, "guest32", verdict, rule, reason, 1.0, 1.0, ("b1",), name))
    folder.write_header(replace(header, finished=time.time(), exit_status=0))
    return 0


@pytest.fixture
def repository(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """The tiny tree, its branch `main` at the base, and the test's own state folder."""
    monkeypatch.setattr(paths, "state", lambda: tree.parent / "state")
    numbers = itertools.count(1)  # a test tries several times in one process
    monkeypatch.setattr(run_folder, "new_id", lambda: f"try{next(numbers)}")
    _git(tree, "checkout", "-q", "-B", "main")
    (tree.parent / "own.yaml").write_text("source:\n  git: {path: xen.git, revision: main}\n", encoding="utf-8")
    return tree


def commits(tree: Path, *contents: str) -> None:  # noqa: F811
    """A branch `mine` of one commit for each text of other.c."""
    _git(tree, "checkout", "-q", "-B", "mine", "main")
    for number, text in enumerate(contents, 1):
        (tree / "xen" / "other.c").write_text(text, encoding="utf-8")
        _git(tree, "commit", "-q", "-a", "-m", f"x86: step {number}\n\nA reason.")


def mbox(tree: Path, *contents: str) -> Path:  # noqa: F811
    commits(tree, *contents)
    words = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b", "format-patch", "--cover-letter"]
    done = subprocess.run([*words, "--stdout", "main..mine"], capture_output=True, check=True, timeout=30)
    file = tree.parent / "series.mbox"
    file.write_bytes(done.stdout.replace(b"*** SUBJECT HERE ***", b"x86: steps"))
    return file


def tried(given: str, on: str, *, each: bool = False) -> tuple[Outcome, str]:
    said: list[str] = []
    outcome = trying.find(Asked(given, on, each=each), builds.make, run_cases, said.append)
    return outcome, "\n".join(said)


def test_the_patch_that_breaks_32_bit_guests_is_named(repository: Path) -> None:
    file = mbox(repository, TIDY, TIDY + "int b;\n", BREAKS, STILL)
    outcome, said = tried(str(file), str(repository.parent / "own.yaml"), each=True)
    assert outcome.run and (outcome.status, outcome.verdict) == (1, "1 new failure")
    assert "Subject: Re: x86: steps\n" in said and "test_pv32_runs [c]\n    set-timer: error=0 (assertion)" in said
    assert "failed 2 of 2; passed 2 of 2" in " ".join(said.split()), "each new failure is tried once more"
    again = RunFolder.open(outcome.run.path.with_name("again"))
    assert again.header().builds == ("base", "up-to-2", "up-to-3", "series"), "on the builds that it rests on"
    by_patch = said.partition("Each patch against the tree before it:\n")[2].splitlines()[2:8]
    assert [line.strip() for line in by_patch] == [
        "2/4 x86: step 2",
        "no new failure",
        "3/4 x86: step 3",
        "1 new failure: test_pv32_runs",
        "4/4 x86: step 4",
        "no new failure",
    ]


def test_a_range_is_tried_on_what_it_stands_on(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits(repository, TIDY, STILL)
    _git(repository, "checkout", "-q", "main")
    (repository / "xen" / "other.c").write_text(NO_C, encoding="utf-8")
    _commit(repository)  # the branch has moved on, and does not compile now
    monkeypatch.setattr(trying, "UPSTREAM", str(repository.parent / "own.yaml"))
    outcome, said = tried(f"{repository}:main..mine", "")
    assert outcome.verdict == "1 new failure" and "Each patch" not in said
    outcome, _ = tried(f"{repository}:mine~2..mine~1", "")
    assert (outcome.status, outcome.verdict) == (0, "no new failure in 2 cases")


@pytest.mark.parametrize("broken", [2, 4])
def test_a_patch_that_does_not_compile_is_named_with_its_line(repository: Path, broken: int) -> None:
    texts = [TIDY, TIDY + "int b;\n", STILL, NO_C, NO_C + "int c;\n"]
    commits(repository, *(texts if broken == 4 else [TIDY, NO_C, NO_C + "int c;\n"]))
    patches = repository.parent / "patches"
    _git(repository, "format-patch", "-q", "-o", str(patches), "main..mine")
    outcome, said = tried(str(patches), str(repository.parent / "own.yaml"))
    assert (outcome.status, outcome.verdict, outcome.run) == (1, f"patch {broken} does not compile", None)
    assert "other.c:1:" in said and "gone" in said


def test_a_patch_that_does_not_apply_is_named(repository: Path) -> None:
    file = mbox(repository, TIDY, BREAKS, STILL)
    middle = file.read_bytes().replace(
        b"-int other(void) { return 2", b"-int other(void) { return 77"
    )  # of the second patch's context
    file.write_bytes(middle)
    outcome, said = tried(str(file), str(repository.parent / "own.yaml"))
    assert (outcome.status, outcome.verdict, outcome.run) == (1, "patch 2 does not apply", None)
    assert "xen/other.c" in said


def test_a_base_that_does_not_compile_says_nothing_of_the_series(repository: Path) -> None:
    file = mbox(repository, TIDY)
    _git(repository, "checkout", "-q", "main")
    (repository / "xen" / "other.c").write_text(NO_C, encoding="utf-8")
    _commit(repository)
    with pytest.raises(BenchError, match="the base cannot be built"):
        tried(str(file), str(repository.parent / "own.yaml"))


def test_two_versions_of_a_series_are_not_mixed(repository: Path, tmp_path: Path) -> None:
    file = mbox(repository, TIDY, BREAKS)
    file.write_bytes(file.read_bytes() + file.read_bytes().replace(b"[PATCH ", b"[PATCH v2 "))
    with pytest.raises(UsageError, match="two patches are number 1"):
        series.read(str(file), tmp_path / "patches")


def test_a_mail_is_decoded(tmp_path: Path) -> None:
    coded = (
        b"From: a@b\nSubject: [PATCH 1/1]\n =?utf-8?q?x86:_f=C3=BCr?= all\nMIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
        b"Why.\n---\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a=3D1\n+a=3D2\n"
    )
    (tmp_path / "one.mbox").write_bytes(b"From a@b Mon Sep 17 00:00:00 2001\n" + coded)
    found = series.read(str(tmp_path / "one.mbox"), tmp_path / "patches")
    assert found.subject == "x86: f\u00fcr all"
    assert found.patches[0].file.read_text(encoding="utf-8").endswith("-a=1\n+a=2\n")


def test_a_build_whose_source_cannot_be_had_leaves_the_others_to_run(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository.parent
    (folder / "gone.yaml").write_text("source:\n  git: {url: 'file:///nowhere/xen.git'}\n", encoding="utf-8")
    monkeypatch.setattr(nightly, "prepare", lambda *_: None)  # no board is needed for this
    header = RunHeader("r", time.time(), "quick", ("gone", "own"), {}, CASES[:1], ())
    run = RunFolder.create(folder / "run", header)
    run.write_builds({name: {"recipe": str(folder / f"{name}.yaml")} for name in header.builds})
    night = nightly.Night(NightlyOptions(), inventory.load(VIRTUAL_LAB), run, [])
    night._set_up()
    [missing] = run.results()
    assert (missing.verdict, missing.build, missing.case) == (Verdict.MISS, "gone", BUILD_CASE)
    assert "nothing of it was fetched before" in missing.reason
    assert night._builds == ("own",) and run.sources()["own"].branch == "main"


def judged(tmp_path: Path, base: str, *others: str) -> Outcome:
    """What is said of runs of two cases with each build; verdicts as P(ASS), F(AIL), M(ISS), E(RROR), S(KIP)."""
    words = {one.value[0]: one for one in Verdict}
    names = ("base", *(f"up-to-{n}" for n in range(1, len(others))), "series")
    results = [
        result(case, words[letter], build=build)
        for build, letters in zip(names, (base, *others), strict=True)
        for case, letter in zip(CASES, letters, strict=True)
    ]
    folder = Runs(tmp_path).write(*results, builds=names)
    whole, single = trying._compared(History(f"sqlite:///{tmp_path / 'h.sqlite'}"), [folder.path])
    found = [single[name] for name in names[1:]]
    steps = tuple(Step(n, f"step {n}", None, one if len(found) > 1 else None) for n, one in enumerate(found, 1))
    return Outcome("x86: steps", "base", "defconfig", steps, folder.summary(), whole)


@pytest.mark.parametrize(
    ("base", "series_", "status", "verdict"),
    [
        ("PP", "PP", 0, "no new failure in 2 cases"),
        ("FP", "FP", 0, "no new failure in 2 cases"),
        (
            "PP",
            "PM",
            3,
            "no new failure in 1 case; 1 not counted; incomplete: 1 of 2 cases that passed or failed with the baseline",
        ),
        ("MM", "PP", 3, "no verdict: no case passed or failed on both base and series"),
        ("MM", "FF", 3, "no verdict: no case passed or failed on both base and series; 2 failed that neither"),
        ("SP", "FM", 3, "no verdict: no case passed or failed on both base and series; 1 failed that neither"),
        ("EP", "FP", 3, "no new failure in 1 case; 1 failed that neither passed nor failed on the base"),
        ("MP", "PP", 0, "no new failure in 1 case"),
        ("PP", "MM", 3, "no verdict: no case passed or failed on both base and series; 2 not counted"),
        ("PM", "FF", 1, "1 new failure; 1 failed that neither passed nor failed on the base"),
    ],
)
def test_only_what_counted_on_both_sides_is_judged(
    tmp_path: Path, base: str, series_: str, status: int, verdict: str
) -> None:
    outcome = judged(tmp_path, base, series_)
    assert outcome.status == status and outcome.verdict.startswith(verdict)
    is_open = "Failing, and neither passed nor failed on the base:" in reply.text(outcome)
    assert is_open == ("that neither passed nor failed" in outcome.verdict)


def test_a_failure_that_a_later_patch_hides_is_no_good_series(tmp_path: Path) -> None:
    outcome = judged(tmp_path, "PP", "FP", "PP")
    assert outcome.verdict == "patch 1 has 1 new failure that the whole series does not show; no new failure in 2 cases"
    assert outcome.status == 1
    silent = judged(tmp_path / "silent", "PP", "MM", "PP")
    assert (silent.status, silent.verdict) == (0, "no new failure in 2 cases")
    assert "step 1\n      no verdict: no case passed or failed on both" in reply.text(silent)


def test_a_series_of_which_nothing_is_built_is_not_called_good(repository: Path) -> None:
    (repository / "tools").mkdir()
    (repository / "tools" / "xl.c").write_text("int xl;\n", encoding="utf-8")
    _commit(repository)
    commits(repository, TIDY)
    (repository / "tools" / "xl.c").write_text("int xl = 1;\n", encoding="utf-8")
    _git(repository, "commit", "-q", "-a", "-m", "xl: step 2")
    own = str(repository.parent / "own.yaml")  # with Debian's tools
    outcome, said = tried(f"{repository}:mine~2..mine", own)
    assert outcome.status == 0 and "not built: what these patches touch, so it did not run: 2\n" in said
    outcome, _ = tried(f"{repository}:mine~1..mine", own)
    assert outcome.status == 3 and outcome.verdict.startswith("no verdict: nothing that the series touches was built")


def test_a_subject_is_shown_and_not_obeyed(repository: Path) -> None:
    file = mbox(repository, TIDY)
    file.write_bytes(file.read_bytes().replace(b"x86: step 1", b"=?utf-8?q?x86:_=1B]0;title=07?="))
    _, said = tried(str(file), str(repository.parent / "own.yaml"))
    assert "x86: \\x1b]0;title\\x07" in said and "\x1b" not in said


def test_what_cannot_be_read_is_a_mistake_of_the_caller(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Input/output error"):
        series.read("/proc/self/mem", tmp_path / "memory")
    with pytest.raises(UsageError, match="name too long"):
        series.read("x" * 300, tmp_path / "long")
    (tmp_path / "broken.mbox").write_bytes(
        b"From a@b Mon Sep 17 00:00:00 2001\nSubject: [PATCH] x\nContent-Type: text/plain; charset*\n\nWhy.\n"
    )
    with pytest.raises(UsageError, match="the headers of mail 1 cannot be read"):
        series.read(str(tmp_path / "broken.mbox"), tmp_path / "broken")

    def refuse(options: NightlyOptions) -> int:
        (options.output or tmp_path).mkdir()
        raise UsageError("port 6001 is taken")

    file = mbox(repository, TIDY)
    with pytest.raises(UsageError, match="port 6001"):
        trying.find(Asked(str(file), str(repository.parent / "own.yaml")), builds.make, refuse, print)
    with pytest.raises(UsageError, match="there is no build"):
        trying.find(Asked(str(file), "none"), builds.make, refuse, print)
    [kept] = (paths.state() / "tries").iterdir()
    assert (kept / "patches/0001.patch").is_file(), "what was run stays, and nothing else"


def test_a_series_that_takes_a_wanted_setting_away_is_named(repository: Path) -> None:
    def make(file: str) -> builds.Build:
        if file.endswith("series.yaml"):
            raise UsageError("debug.config:1: asked for CONFIG_DEBUG=y, resolved to n")
        return builds.make(file)

    asked = Asked(str(mbox(repository, TIDY)), str(repository.parent / "own.yaml"))
    with pytest.raises(UsageError, match="up to patch 1 cannot: debug"):
        trying.find(asked, make, run_cases, print)


def test_a_clone_may_print_patches_without_prefixes(repository: Path, tmp_path: Path) -> None:
    commits(repository, TIDY)
    _git(repository, "config", "diff.noprefix", "true")
    found = series.read(f"{repository}:main..mine", tmp_path / "patches")
    assert "--- a/xen/other.c\n+++ b/xen/other.c\n" in found.patches[0].file.read_text(encoding="utf-8")
