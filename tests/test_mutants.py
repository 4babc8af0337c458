"""Mutants: their manifests are read, their verdicts judged and kept; a patched source tree is used again."""

from __future__ import annotations

import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from lab import inventory
from lab.base import paths
from lab.base.errors import BuildFailed, UsageError
from lab.builds import trees
from lab.builds.recipes import Recipe, Tarball
from lab.night.options import VIRTUAL_LAB
from lab.night.planning import Case
from lab.results.record import OUTCOME, Evidence, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.selfcheck import mutant_manifest, mutants
from lab.selfcheck.mutant_manifest import Mutant
from lab.selfcheck.mutants import KeptResults, Trial, TrialResult

CASE = "testcases/guest32/test_pv32.py::test_pv32_hypercalls"
TWIN = "testcases/guest32/test_pv32.py::test_pv32_answers_as_pv64"
SLEEP = "testcases/sleep/test_s3.py::test_s3_with_a_guest_running"


@pytest.mark.parametrize("area", mutant_manifest.areas())
def test_the_manifests_are_sound(area: str) -> None:
    """Each mutant names a case file of its own area, and its patch is one."""
    found, slower = mutant_manifest.load(area), mutant_manifest.slower(area)
    assert found or slower
    for one in slower:
        assert re.match(r"--- a/xen/", one.patch.read_text(encoding="utf-8")), one.label
    for mutant in found:
        assert mutant.cases[0].startswith(f"testcases/{area}/"), mutant.label
        for case in mutant.cases:
            assert (paths.CHECKOUT / case.partition("::")[0]).is_file(), f"{mutant.label}: {case}"
        assert re.match(r"--- a/(xen|tools)/", mutant.patch.read_text(encoding="utf-8")), mutant.label


def manifest(tmp_path: Path, text: str, *patches: str) -> Path:
    (tmp_path / "area.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "area").mkdir()
    for name in patches:
        (tmp_path / "area" / f"{name}.patch").write_text("--- a/xen/x\n", encoding="utf-8")
    return tmp_path


ENTRY = f"    why: something is lost\n    case: {CASE}\n    says: lost\n"


@pytest.mark.parametrize(
    ("text", "patches", "said"),
    [
        (f"mutants:\n  one:\n{ENTRY}", (), r"area\.yaml:2: mutants\.one: its patch is not there"),
        (f"mutants:\n  one:\n{ENTRY}", ("one", "two"), r"no entry for two\.patch"),
        (f"mutants:\n  one:\n{ENTRY}    because: x\n", ("one",), r"area\.yaml:6: .*unknown key.*known here: why"),
        (f"mutants:\n  one:\n{ENTRY[:-5]}'(ab'\n", ("one",), r"area\.yaml:5: .*not a regular expression"),
        (f"mutants:\n  one:\n{ENTRY.replace('testcases', 'tests')}", ("one",), r"area\.yaml:4: "),
        (f"mutants:\n  one:\n{ENTRY}    also:\n      {TWIN}: '(ab'\n", ("one",), r"area\.yaml:7: .*not a regular"),
        (f"mutants:\n  one:\n{ENTRY}    may:\n      sleep: '(ab'\n", ("one",), r"area\.yaml:7: .*not a regular"),
    ],
)
def test_a_wrong_manifest_is_refused_by_line(tmp_path: Path, text: str, patches: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mutant_manifest.load("area", manifest(tmp_path, text, *patches))


def test_an_unknown_area_is_refused(tmp_path: Path) -> None:
    manifest(tmp_path, f"mutants:\n  one:\n{ENTRY}", "one")
    with pytest.raises(UsageError, match=r"did you mean area\?.*areas: area"):
        mutant_manifest.load("arae", tmp_path)


def test_one_mutant_can_be_chosen_by_its_name(tmp_path: Path) -> None:
    manifest(tmp_path, f"mutants:\n  one:\n{ENTRY}  two:\n{ENTRY}", "one", "two")

    def labels(*names: str) -> list[list[str]]:
        return [[mutant.label for mutant in of_area] for of_area in mutant_manifest.chosen(names, tmp_path)]

    assert labels() == labels("area") == [["area/one", "area/two"]]
    assert labels("area/two") == [["area/two"]]
    assert labels("area/two", "area") == [["area/two", "area/one"]]
    with pytest.raises(UsageError, match=r"area has no mutant 'tow' \(did you mean two\?\); mutants: one, two"):
        mutant_manifest.chosen(["area/tow"], tmp_path)


@pytest.fixture(name="mutant")
def mutant_fixture(tmp_path: Path) -> Mutant:
    patch = tmp_path / "one.patch"
    patch.write_text("--- a/xen/x\n", encoding="utf-8")
    return Mutant("guest32", "one", "why it is broken", {CASE: "timer.*lost"}, "pv32-debug", patch)


def own(mutant: Mutant) -> Trial:
    return Trial(mutant, mutant.area, mutant.cases)


def run_folder(path: Path, *results: TestResult) -> RunFolder:
    folder = RunFolder.create(path, RunHeader("run", 0.0, "weekly", ("mutant",), {}, (CASE,), ()))
    for one in results:
        folder.append(one)
    return folder


def result(verdict: Verdict, reason: str) -> TestResult:
    return TestResult(
        case=CASE,
        area="guest32",
        verdict=verdict,
        rule="assertion",
        reason=reason,
        started=0.0,
        seconds=1.0,
        boards=("virt1",),
        build="mutant",
    )


@pytest.mark.parametrize(
    ("verdict", "reason", "outcome"),
    [
        (Verdict.FAIL, "set-timer: 5 ms lost", "caught"),
        (Verdict.FAIL, "xen-panic: something else", "missed"),
        (Verdict.PASS, "", "missed"),
        (Verdict.SKIP, "virt1 lacks pv32", "missed"),
        (Verdict.MISS, "set-timer: 5 ms lost", "not judged"),
        (Verdict.ERROR, "set-timer: 5 ms lost", "not judged"),
    ],
)
def test_only_a_fail_for_the_foretold_reason_catches(
    tmp_path: Path, mutant: Mutant, verdict: Verdict, reason: str, outcome: str
) -> None:
    assert mutants.judge(own(mutant), run_folder(tmp_path / "run", result(verdict, reason)))[0] == outcome


def test_what_the_case_found_catches_too_where_a_crash_outranks_it(tmp_path: Path, mutant: Mutant) -> None:
    crash = result(Verdict.FAIL, "linux-rcu-stall: rcu_preempt self-detected stall")
    found = Evidence(OUTCOME, "how the case itself ended", "AssertionError: set-timer: 5 ms lost\nand more", 0.0)
    judged = mutants.judge(own(mutant), run_folder(tmp_path / "a", replace(crash, evidence=(found,))))
    assert judged == ("caught", "AssertionError: set-timer: 5 ms lost")
    passed = replace(crash, verdict=Verdict.PASS, evidence=(found,))
    assert mutants.judge(own(mutant), run_folder(tmp_path / "b", passed))[0] == "missed"
    other = replace(found, kind="note")
    assert mutants.judge(own(mutant), run_folder(tmp_path / "c", replace(crash, evidence=(other,))))[0] == "missed"


def test_a_mutant_is_caught_by_all_of_its_cases(tmp_path: Path, mutant: Mutant) -> None:
    both = replace(mutant, says={**mutant.says, TWIN: "differ in: set-timer"})
    timer = result(Verdict.FAIL, "set-timer: 5 ms lost")
    twin = replace(timer, case=TWIN, reason="32 and 64 bit differ in: set-timer")
    assert mutants.judge(own(both), run_folder(tmp_path / "a", timer, twin))[0] == "caught"
    passed = replace(twin, verdict=Verdict.PASS, reason="")
    missed = mutants.judge(own(both), run_folder(tmp_path / "b", timer, passed))
    assert missed == ("missed", "test_pv32_answers_as_pv64: PASS")
    assert mutants.judge(own(both), run_folder(tmp_path / "c", timer))[0] == "not judged"
    assert mutants.key(own(both)) != mutants.key(own(mutant))


def test_other_areas_quick_cases_are_to_be_left_alone(mutant: Mutant) -> None:
    """Of its own area, of two boards, of another selection and foretold are none of these."""
    cases = [
        Case(CASE, "guest32", 1, (), selection="quick"),
        Case(SLEEP, "sleep", 1, (), selection="quick"),
        Case("pair", "relocation", 2, (), selection="quick"),
        Case("late", "sleep", 1, (), selection="full"),
        Case("foretold", "superpages", 1, (), selection="quick"),
    ]
    broad = replace(mutant, says={**mutant.says, "foretold": "lost"})
    assert list(mutants._trials(broad, cases)) == [own(broad), Trial(broad, "sleep", (SLEEP,))]


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.PASS, "left alone"),
        (Verdict.SKIP, "left alone"),
        (Verdict.FAIL, "turned red"),
        (Verdict.MISS, "not judged"),
        (Verdict.ERROR, "not judged"),
    ],
)
def test_another_areas_case_that_fails_is_told(tmp_path: Path, mutant: Mutant, verdict: Verdict, outcome: str) -> None:
    other = Trial(mutant, "sleep", (SLEEP,))
    found = mutants.judge(other, run_folder(tmp_path / "run", replace(result(verdict, "it is late"), case=SLEEP)))
    assert found[0] == outcome
    if outcome == "turned red":
        assert found[1] == "test_s3_with_a_guest_running: FAIL it is late; if it must or may, foretell it (also:, may:)"
    assert mutants.judge(other, run_folder(tmp_path / "none"))[0] == "not judged"


def test_another_areas_case_may_fail_for_the_reason_foretold(tmp_path: Path, mutant: Mutant) -> None:
    may = replace(mutant, may={"sleep": "^it is late"})
    trial = Trial(may, "sleep", (SLEEP,))
    by_right = replace(result(Verdict.FAIL, "it is late"), case=SLEEP)
    found = mutants.judge(trial, run_folder(tmp_path / "late", by_right))
    assert found == ("left alone", "by right test_s3_with_a_guest_running: FAIL it is late")
    assert (
        mutants.judge(trial, run_folder(tmp_path / "dead", replace(by_right, reason="it is dead")))[0] == "turned red"
    )
    assert (
        mutants.judge(trial, run_folder(tmp_path / "good", replace(by_right, verdict=Verdict.PASS)))[0] == "left alone"
    )
    assert mutants.key(trial) != mutants.key(replace(trial, mutant=mutant))
    assert mutants.key(own(may)) == mutants.key(own(mutant))


def test_a_mutant_of_another_build_has_its_patch_for_that(tmp_path: Path, mutant: Mutant) -> None:
    there = tmp_path / "one.stable-4.22.patch"
    there.write_text("--- a/xen/y\n", encoding="utf-8")
    moved = mutant_manifest.moved(mutant, "stable-4.22")
    assert (moved.patch, moved.build) == (there, "stable-4.22")
    assert mutant_manifest.moved(mutant, "upstream").patch == mutant.patch
    now = Trial(moved, moved.area, moved.cases, "git 1111")
    assert mutants.key(now) != mutants.key(replace(now, source="git 2222"))


def test_a_case_that_did_not_run_judges_nothing(tmp_path: Path, mutant: Mutant) -> None:
    assert mutants.judge(own(mutant), run_folder(tmp_path / "run"))[0] == "not judged"


def test_boards_work_side_by_side_on_cases_of_one_board() -> None:
    boards = list(inventory.load(VIRTUAL_LAB).boards.values())
    single, pair = Case("a", "guest32", 1, ("hvm",)), Case("b", "relocation", 2, ())
    shaped = Case("c", "superpages", 1, ("numa",))
    assert list(mutants._seat(boards, [single], is_all_free=True)) == boards[:1]
    assert list(mutants._seat(boards[1:], [single], is_all_free=False)) == boards[1:]
    for alone in (pair, shaped):
        for cases in ([alone], [single, alone]):
            assert list(mutants._seat(boards, cases, is_all_free=True)) == boards
            assert not mutants._seat(boards[1:], cases, is_all_free=False)


def test_judgements_are_kept_until_what_they_depend_on_changes(tmp_path: Path, mutant: Mutant) -> None:
    file = tmp_path / "mutants.jsonl"
    trials = [own(mutant), Trial(mutant, "sleep", (SLEEP,))]
    judged = [
        TrialResult(*trials[0].name, mutants.key(trials[0]), "caught", "lost", 1.0),
        TrialResult(*trials[1].name, mutants.key(trials[1]), "left alone", "", 1.0),
    ]
    for one in judged:
        KeptResults(file).append(one)
    with open(file, "a", encoding="utf-8") as opened:
        opened.write('{"label": "guest32/one", "ke')  # killed here
    assert [KeptResults(file).find(trial) for trial in trials] == judged
    assert KeptResults(file).find(replace(trials[1], cases=(SLEEP, TWIN))) is None
    mutant.patch.write_text("--- a/xen/y\n", encoding="utf-8")
    assert [KeptResults(file).find(trial) for trial in trials] == [None, None]


@pytest.mark.parametrize("outcome", ["missed", "turned red", "not judged"])
def test_what_did_not_go_as_it_must_is_tried_again(tmp_path: Path, mutant: Mutant, outcome: mutants.Outcome) -> None:
    KeptResults(tmp_path / "l").append(TrialResult(*own(mutant).name, mutants.key(own(mutant)), outcome, "", 1.0))
    assert KeptResults(tmp_path / "l").find(own(mutant)) is None


def test_areas_that_were_left_alone_or_not_tried_share_a_line(mutant: Mutant) -> None:
    areas = ("sleep", "boot", "superpages", "relocation", "passthrough")
    trials = [own(mutant), *(Trial(mutant, area, (SLEEP,)) for area in areas)]
    ended: tuple[tuple[mutants.Outcome, str], ...] = (
        ("caught", "S3: FAIL"),
        ("left alone", ""),
        ("turned red", "S3: FAIL"),
        ("left alone", ""),
        ("left alone", "by right S3: FAIL"),
    )
    judged = {
        trial.name: TrialResult(*trial.name, "0f", outcome, reason, 1.0)
        for trial, (outcome, reason) in zip(trials, ended, strict=False)
    }
    assert list(mutants._table(trials, judged))[:5] == [
        "caught      guest32/one: S3: FAIL",
        "turned red  guest32/one: boot: S3: FAIL",
        "left alone  guest32/one: relocation: by right S3: FAIL",
        "left alone  guest32/one: sleep, superpages",
        "not judged  guest32/one: passthrough not run",
    ]


# -- the tree they are compiled in -------------------------------------------------------------------------------------

PATCH = """\
--- a/xen/one.c
+++ b/xen/one.c
@@ -1 +1 @@
-int one = 1;
+int one = {};
"""


@pytest.fixture(name="archive")
def archive_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "source" / "xen"
    root.mkdir(parents=True)
    for name, text in {"Makefile": "all:\n", "one.c": "int one = 1;\n", "two.c": "int two = 2;\n"}.items():
        (root / name).write_text(text)
    with tarfile.open(tmp_path / "xen.tar", "w") as tar:
        tar.add(tmp_path / "source", "xen-4.17")
    return tmp_path / "xen.tar"


def check_out(archive: Path, *patches: Path) -> Path:
    recipe = Recipe("mutant", Tarball(archive), patches=patches)
    with trees.checked_out(recipe, trees.identify(recipe.source), lambda text: None) as tree:
        return tree.directory / "xen"


def test_patches_come_and_go_in_one_tree(archive: Path, tmp_path: Path) -> None:
    """Only what a patch touches changes its time, so only that is compiled again."""
    patches = [tmp_path / f"{number}.patch" for number in (7, 8)]
    for patch in patches:
        patch.write_text(PATCH.format(patch.stem))
    tree = check_out(archive)
    stamp = (tree / "two.c").stat().st_mtime_ns
    for wanted, text in (((patches[0],), "7"), ((patches[1],), "8"), ((), "1")):
        assert check_out(archive, *wanted) == tree
        assert (tree / "one.c").read_text() == f"int one = {text};\n"
    assert (tree / "two.c").stat().st_mtime_ns == stamp
    touched = (tree / "one.c").stat().st_mtime_ns
    check_out(archive)
    assert (tree / "one.c").stat().st_mtime_ns == touched


def test_a_patch_that_does_not_apply_leaves_a_clean_tree(archive: Path, tmp_path: Path) -> None:
    patch = tmp_path / "wrong.patch"
    patch.write_text(PATCH.format("7") + PATCH.format("9").replace("one.c", "two.c"))
    with pytest.raises(BuildFailed, match="does not apply"):
        check_out(archive, patch)
    assert (check_out(archive) / "one.c").read_text() == "int one = 1;\n"


def test_a_tree_that_was_tampered_with_is_made_anew(archive: Path, tmp_path: Path) -> None:
    """A patch that does not come off any more must not stay on."""
    patch = tmp_path / "7.patch"
    patch.write_text(PATCH.format("7"))
    (check_out(archive, patch) / "one.c").write_text("int one = 3;\n")
    assert (check_out(archive) / "one.c").read_text() == "int one = 1;\n"


def test_a_case_that_no_mutant_must_fail_is_said_to_be_not_proved() -> None:
    refused = "testcases/sleep/test_refusals.py::test_dom0_refuses_standby"
    new = "testcases/sleep/test_s3.py::test_new"
    cases = [CASE, SLEEP, f"{new}[1]", f"{new}[2]", refused]
    assert list(mutants._not_proved(["sleep"], cases)) == [
        f"not proved: {refused}: dom0's kernel refuses before Xen is asked",
        f"not proved: {new}: no mutant must fail it",
    ]
    assert not list(mutants._not_proved(["guest32"], cases))
