"""Known findings: each excuses one check of one cell on one version of Xen, and the evidence says so.

The files are ``testcases/AREA/known.yaml``; docs/findings/AREA.md describes the findings. A few cases outside the
matrix have names there too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab.base import files
from lab.base.errors import UsageError, did_you_mean
from lab.results.record import Check
from lab.xen.migration_matrix.cells import CELLS

MIGRATION = (*CELLS, "balloon-up-pvh64")  # the last one is a case of testcases/relocation/test_balloon.py


class _Entry(files.Strict):
    finding: str
    xen: list[str]  # "4.17": all of its releases
    check: str
    cells: list[str]


class _File(files.Strict):
    findings: dict[str, str]  # name -> what it is, in one sentence
    known: list[_Entry]


@dataclass(frozen=True)
class Known:
    """What a file of known findings says."""

    findings: Mapping[str, str]
    entries: Mapping[tuple[str, str, str], str]  # version, cell, check -> finding

    def finding(self, version: str, cell: str, check: str) -> str | None:
        """The finding that excuses this check; None when none does."""
        return self.of(version, cell).get(check)

    def of(self, version: str, cell: str) -> dict[str, str]:
        """The known findings of a cell on a version such as 4.17.5 or 4.23-unstable, by check."""
        return {
            check: finding
            for (release, of_cell, check), finding in self.entries.items()
            if of_cell == cell and (version == release or version.startswith((f"{release}.", f"{release}-")))
        }


class EvidenceKeeper(Protocol):
    """The fixture ``evidence`` of a case."""

    def add(self, title: str, body: str, *, kind: str) -> None: ...

    def checked(self, checks: Sequence[Check]) -> None: ...


@contextlib.contextmanager
def excusing(known: Known, evidence: EvidenceKeeper, version: str, case: str, check: str) -> Iterator[None]:
    """Make one check of a case within the block. A known finding excuses its failure; the evidence names it.

    :raises AssertionError: the check fails, and no known finding excuses it.
    """
    finding = known.finding(version, case, check)
    try:
        yield
    except AssertionError as error:
        if not finding:
            evidence.checked([Check(check, False, str(error))])
            raise
        evidence.checked([Check(check, False, str(error), finding)])
    else:
        if finding:
            evidence.add("known finding no longer shows", f"{finding} ({check})", kind="note")


def read(file: Path, cells: Collection[str], checks: Collection[str]) -> Known:
    """Read a file of known findings, which may name these cells and checks.

    :raises UsageError: an unknown cell, check or finding, or a check that is excused twice; says file and line.
    """
    tree = files.read_yaml(file)
    content = files.validate(_File, file, tree)
    entries: dict[tuple[str, str, str], str] = {}
    for index, entry in enumerate(content.known):
        _must_be(entry.finding, content.findings, file, tree, ("known", index, "finding"))
        _must_be(entry.check, checks, file, tree, ("known", index, "check"))
        for number, cell in enumerate(entry.cells):
            key = ("known", index, "cells", number)
            _must_be(cell, cells, file, tree, key)
            for version in entry.xen:
                if (version, cell, entry.check) in entries:
                    raise UsageError(
                        f"{files.at(file, tree, key)}: {cell} {entry.check} is excused twice for {version}"
                    )
                entries[version, cell, entry.check] = entry.finding
    return Known(content.findings, entries)


def _must_be(word: str, known: Collection[str], file: Path, tree: object, key: files.Key) -> None:
    if word not in known:
        hint = did_you_mean(word, tuple(known))
        raise UsageError(f"{files.at(file, tree, key)}: there is no {word}{hint}")
