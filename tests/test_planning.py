"""Cases are listed with all that planning asks of them, spread over boards, and described in a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import casetable, inventory, planning
from lab.options import VIRTUAL_LAB, NightlyOptions
from lab.planning import Case, Share


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
    assert switched_off.doc.startswith("Booted with")


def test_the_table_of_cases_is_current() -> None:
    assert casetable.text() == casetable.FILE.read_text(encoding="utf-8"), "run `./xenlab cases --write`"


def test_variants_are_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    narrow = Case("t.py::test_a[pv32]", "x", 1, ("hap", "pv32"), doc="It\n  holds.\n\nMore.", evidence=("log",))
    wide = Case("t.py::test_a[pv64]", "x", 1, ("hap",), selection="quick", doc="It holds.")
    monkeypatch.setattr(planning, "collect", lambda options, select: [narrow, wide])
    monkeypatch.setattr(casetable.mutants, "areas", lambda: ())
    assert (
        casetable.text().splitlines()[-1] == "| `test_a` (2 variants) | It holds. | hap, (pv32) | full/quick | log |  |"
    )
