"""Cases are listed with all that planning asks of them, spread over boards, and described in a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import PV32, S3, Runs, result

from lab import inventory
from lab.base import paths
from lab.base.errors import UsageError
from lab.night import planning
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.night.planning import Case, Share
from lab.results import reference
from lab.results.record import Phase, TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.selfcheck import case_table, mutant_manifest


def shares(*cases: Case) -> list[Share]:
    stages = planning.plan(cases, [tuple(inventory.load(VIRTUAL_LAB).boards.values())], "build", {})
    return [share for of_unit in stages.values() for stage in of_unit for share in stage]


def test_cases_of_the_same_xen_options_share_a_board_and_come_last() -> None:
    """Each change of options costs a reboot, so there is one for all of the same."""
    plain = [Case(f"a.py::plain{n}", "a", 1, ()) for n in range(8)]
    off = [Case(f"a.py::off{n}", "a", 1, (), xen_options="pv=no-32") for n in range(3)]
    planned = shares(*plain, *off)
    with_options = [share for share in planned if any("off" in case for case in share.cases)]
    assert len(planned) == 2
    assert len(with_options) == 1
    assert with_options[0].cases[-3:] == tuple(case.nodeid for case in off)
    assert sorted(case for share in planned for case in share.cases) == sorted(case.nodeid for case in [*plain, *off])


def test_collecting_puts_cases_with_xen_options_behind_the_others() -> None:
    cases = planning.collect(NightlyOptions(paths=("testcases/guest32", "testcases/superpages")), "weekly")
    options = [case.xen_options for case in cases]
    assert options == sorted(options)
    assert "pv=no-32" in options
    switched_off = next(case for case in cases if "switched_off" in case.nodeid)
    assert (switched_off.needs, switched_off.selection) == (("pv32",), "full")
    assert "xl create" not in switched_off.doc
    assert switched_off.doc.startswith("With `pv=no-32`")


def test_the_table_of_cases_is_current() -> None:
    assert case_table.text() == case_table.FILE.read_text(encoding="utf-8"), "run `./xenlab cases --write`"


@pytest.fixture(scope="module")
def every() -> list[Case]:
    return case_table.every()


@pytest.mark.parametrize("area", ["boot", "guest32", "passthrough", "performance", "sleep", "superpages"])
def test_each_case_is_proved_to_bite_or_says_why_not(area: str, every: list[Case]) -> None:
    functions = {case.nodeid.partition("[")[0] for case in every if case.area == area}
    proved = {
        case.partition("[")[0]
        for one in mutant_manifest.areas()
        for mutant in mutant_manifest.load(one)
        for case in mutant.cases
    }
    assert mutant_manifest.unproved(area).keys() == functions - proved


def test_variants_are_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    narrow = Case("t.py::test_a[pv32]", "x", 1, ("hap", "pv32"), doc="It\n  holds.\n\nMore.", evidence=("log",))
    wide = Case("t.py::test_a[pv64]", "x", 1, ("hap",), selection="quick", doc="It holds.")
    monkeypatch.setattr(planning, "collect", lambda options, select: [narrow, wide])
    monkeypatch.setattr(mutant_manifest, "areas", lambda: ())
    monkeypatch.setattr(reference, "FILE", tmp_path / "reference.yaml")
    row = "| `test_a` (2 variants) | It holds. | hap, (pv32) | full/quick | log |  | not seen |"
    assert case_table.text().splitlines()[-1] == row


# -- how they have ended -------------------------------------------------------------------------------------------


class Virtual(Runs):
    """Runs of virtual boards."""

    def write(self, *results: TestResult, **changes: Any) -> RunFolder:
        return super().write(*results, **{"boards": {"virt1": {"class": "virtual"}}, **changes})


def test_endings_are_counted_as_long_as_they_stay_the_same(tmp_path: Path) -> None:
    made = Virtual(tmp_path)
    folders = [made.write(result(S3)).path, made.write(result(S3), result(PV32, Verdict.SKIP)).path]
    rows = reference.added({}, folders)
    assert (rows[S3].verdict, rows[S3].in_a_row, rows[S3].why) == (Verdict.PASS, 2, "")
    assert (rows[PV32].verdict, rows[PV32].in_a_row, rows[PV32].why) == (Verdict.SKIP, 1, "virt1: because")
    assert reference.added(rows, folders) == rows, "a run counts once"
    rows = reference.added(rows, [made.write(result(S3, Verdict.FAIL), result(PV32)).path])
    assert (rows[S3].verdict, rows[S3].in_a_row) == (Verdict.FAIL, 1)
    assert (rows[PV32].verdict, rows[PV32].in_a_row) == (Verdict.PASS, 1), "a verdict counts more than a SKIP"
    assert reference.added(rows, [made.write(result(PV32, Verdict.SKIP)).path]) == rows


def test_what_passes_at_the_second_attempt_begins_anew(tmp_path: Path) -> None:
    made = Virtual(tmp_path)
    rows = reference.added({}, [made.write(result(S3)).path])
    rows = reference.added(rows, [made.write(result(S3, Verdict.MISS), result(S3, attempt=2)).path])
    assert (rows[S3].verdict, rows[S3].in_a_row, rows[S3].why) == (Verdict.PASS, 0, "MISS: virt1: because; then PASS: ")
    assert reference.added(rows, [made.write(result(S3)).path])[S3].in_a_row == 1


def test_repeats_of_one_run_are_counted_each(tmp_path: Path) -> None:
    made = Virtual(tmp_path)
    rows = reference.added({}, [made.write(*[result(S3, attempt=n, started=float(n)) for n in range(1, 6)]).path])
    assert rows[S3].in_a_row == 5
    rows = reference.added(rows, [made.write(result(S3), result(S3, Verdict.FAIL, attempt=2)).path])
    assert (rows[S3].verdict, rows[S3].in_a_row) == (Verdict.FAIL, 0)


def test_a_case_that_never_passed_here_takes_as_long_as_it_did_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    made = Virtual(tmp_path)
    rows = reference.added({}, [made.write(result(S3, seconds=41.04), result(PV32, seconds=7.0)).path])
    rows = reference.added(rows, [made.write(result(S3, Verdict.FAIL, seconds=300.0)).path])
    assert (rows[S3].verdict, rows[S3].seconds) == (Verdict.FAIL, 41.0), "how long a failure takes says nothing"
    monkeypatch.setattr(reference, "read", lambda: rows)
    assert planning.durations() == {S3: 41.0, PV32: 7.0}
    planning.note_durations([result(PV32, seconds=12.0)])
    assert planning.durations() == {S3: 41.0, PV32: 12.0}


def test_endings_are_kept_of_cases_that_there_are(tmp_path: Path) -> None:
    file = tmp_path / "reference.yaml"
    rows = reference.added({}, [Virtual(tmp_path).write(result(S3), result(PV32, Verdict.FAIL, reason='"a": {b')).path])
    reference.write(rows, [PV32], file)
    assert reference.read(file) == {PV32: rows[PV32]}
    reference.write({}, [PV32], file)
    assert reference.read(file) == {}
    file.write_text("cases:\n  a: {verdict: PASSED, in_a_row: 1, last: ''}\n")
    with pytest.raises(UsageError, match=r"reference\.yaml:2: .*verdict"):
        reference.read(file)


def test_endings_on_other_boards_do_not_count(tmp_path: Path) -> None:
    run = Virtual(tmp_path).write(result(S3), boards={"virt1": {"class": "virtual"}, "epyc": {"class": "server"}})
    with pytest.raises(UsageError, match=r"run1: not of virtual boards alone: epyc"):
        reference.added({}, [run.path])


def test_variants_that_ended_differently_are_told_apart(tmp_path: Path) -> None:
    rows = reference.added({}, [Virtual(tmp_path).write(result("t/x/a"), result("t/x/b", Verdict.SKIP)).path])
    assert reference.text(rows, ["t/x/a"]) == "PASS 1x"
    assert reference.text(rows, ["t/x/a", "t/x/b", "t/x/c"]) == "PASS 1x (1 of 3), SKIP 1x (1 of 3), not seen (1 of 3)"


def test_what_a_case_takes_does_not_include_bringing_its_board_up() -> None:
    phases = (Phase("provision", 1.0, 96.0), Phase("boot", 2.0, 60.0), Phase("wait", 97.0, 3.0))
    first = replace(result(S3), seconds=104.9, phases=phases)
    assert planning.took([first]) == {S3: 8.9}
    assert planning.took([replace(result(S3), seconds=8.9)]) == {S3: 8.9}
