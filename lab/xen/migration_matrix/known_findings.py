"""Findings that are known: per version of Xen, cell and check. Each excuses just that, and visibly.

Beside the cells of the matrix a few other cases have names there. The files are ``testcases/AREA/known.yaml``;
docs/findings/AREA.md tells the findings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base import files
from lab.base.errors import UsageError
from lab.xen.migration_matrix.cells import CELLS

RELOCATION = (*CELLS, "balloon-up-pvh64")  # the latter is of testcases/relocation/test_balloon.py


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
    """The file's content."""

    findings: Mapping[str, str]
    entries: Mapping[tuple[str, str, str], str]  # version, cell, check -> finding

    def finding(self, version: str, cell: str, check: str) -> str:
        """The finding that excuses this check; empty when none does."""
        return self.of(version, cell).get(check, "")

    def of(self, version: str, cell: str) -> dict[str, str]:
        """Check -> finding, of what is known of a cell on a version such as 4.17.5."""
        return {
            check: finding
            for (release, of_cell, check), finding in self.entries.items()
            if of_cell == cell and (version == release or version.startswith(f"{release}."))
        }


@contextlib.contextmanager
def excusing(known: Known, evidence: Any, version: str, case: str, check: str) -> Iterator[None]:
    """Within, one check of a case is made: a known finding excuses its failure, and is named in the evidence.

    :raises AssertionError: it fails, and nothing is known of it.
    """
    finding = known.finding(version, case, check)
    try:
        yield
    except AssertionError as error:
        if not finding:
            raise
        evidence.add("checks", f"{check}: known: {finding}: {error}", kind="note")
    else:
        if finding:
            evidence.add("known finding no longer shows", f"{finding} ({check})", kind="note")


def read(file: Path, cells: Collection[str], checks: Collection[str]) -> Known:
    """Read the file, which may name these cells and checks.

    :raises UsageError: file and line of what is wrong: an unknown cell, check or finding, something twice.
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
        hint = files.did_you_mean(word, tuple(known))
        raise UsageError(f"{files.at(file, tree, key)}: there is no {word}{hint}")
