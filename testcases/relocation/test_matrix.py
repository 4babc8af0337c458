"""Live migrations that fail: each cell of the matrix of faults, steps of the protocol and kinds of guest."""

from pathlib import Path

import pytest

from lab.xen.migration_matrix import attempt, cells, checks, known_findings
from lab.xen.migration_matrix.expected import expected
from lab.xen.migration_matrix.one_board import on_one_board
from lab.xen.migration_matrix.strikes import Ends

KNOWN = known_findings.read(Path(__file__).with_name("known.yaml"), known_findings.MIGRATION, checks.CHECKS)


def case(cell):
    marks = [getattr(pytest.mark, cell.selection), pytest.mark.needs(*cell.needs)]
    if cell.fault.crashes:
        marks.append(pytest.mark.expects_crash(*cell.fault.crashes))
    return pytest.param(cell, id=cell.id, marks=marks)


def those_on(boards):
    return pytest.mark.parametrize("cell", [case(cell) for cell in cells.possible() if cell.boards == boards])


@those_on(2)
def test_relocation_fails_well(cell, source, destination, evidence):
    """Exactly one intact guest survives a broken migration, on the side the protocol names; nothing is left behind."""
    judge(cell, source, destination, evidence)


@those_on(1)
def test_relocation_fails_well_on_one_board(cell, host, evidence):
    """Exactly one intact guest survives a broken migration from a board to itself; nothing is left behind.

    This is for faults that need no second board, so that any number of boards work side by side.
    """
    judge(cell, *on_one_board(host), evidence)


def judge(cell, source, destination, evidence):
    wanted = expected(cell)
    evidence.add("how it must end", f"{cell.fault.does}, {cell.place}.\n{wanted.sentence()}", kind="note")
    before = checks.Before.of(source, destination)
    with source.domain(attempt.config(cell, source)) as guest:
        try:
            guest.beats(10, 60)
            outcome = attempt.attempt(cell, Ends(guest, source, destination))
            evidence.migration(outcome.migration)
            for title, text in outcome.said.items():
                evidence.add(title, text)
            if outcome.unproved:
                evidence.add(cell.id, checks.record(cell, outcome, []), kind="cell")
                evidence.unproved(outcome.unproved)
            version = source.info()["xen_version"]
            found = checks.examine(cell, guest, destination, outcome, before)
            found = checks.excused(found, cell, version, KNOWN)
            evidence.checked(found)
            evidence.add(cell.id, checks.record(cell, outcome, found), kind="cell")
            for finding in checks.no_longer(found, cell, version, KNOWN):
                evidence.add("known finding no longer shows", finding, kind="note")
            for side, there in (("source", guest), ("destination", guest.on(destination))):
                evidence.console(f"guest at the {side}", there)
            bad = [f"{check.name}: {check.said}" for check in found if check.is_bad]
            assert not bad, "; ".join(bad)
        finally:
            attempt.clean_up(guest, destination)
