"""How each case has ended on the virtual boards so far: what whoever tries it there should see, and how long it takes.

Kept in ``testcases/reference.yaml``, with how often in a row it has ended so; runs are added to it one by one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pydantic

from lab.base import files, paths
from lab.base.errors import UsageError
from lab.results import run_folder, summary
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder

FILE = paths.TESTCASES / "reference.yaml"
HEAD = """\
# How each case has ended on the virtual boards, and how often in a row (0: in one run it ended in more than one way).
# The last verdict counts; a SKIP only where there is no other. Written by `xenlab cases --write --seen RUN-FOLDER`,
# never by hand.
"""
CLASS = "virtual"  # of boards


class Row(files.Strict):
    """The endings of one case."""

    verdict: Annotated[Verdict, pydantic.Field(strict=False)]
    in_a_row: int  # 0: attempts of one run ended differently
    last: str  # when that attempt began: "2026-11-27T20:55:41Z"
    seconds: float = 0.0  # that it took when it last passed, without provisioning; 0: not known
    why: str = ""  # the reason, where it is no PASS


class _File(files.Strict):
    cases: dict[str, Row]  # by pytest node id


def read(file: Path = FILE) -> dict[str, Row]:
    """The rows by node id; none when there is no such file.

    :raises UsageError: file and line of what is wrong.
    """
    if not file.exists():
        return {}
    return dict(files.validate(_File, file, files.read_yaml(file)).cases)


def write(rows: Mapping[str, Row], cases: Collection[str], file: Path = FILE) -> None:
    """Write the rows of those ``cases`` that there are still."""
    lines = [HEAD, "cases:\n" if any(case in rows for case in cases) else "cases: {}\n"]
    for case in sorted(set(cases) & set(rows)):
        # JSON of one line is YAML as well, whatever a reason says.
        lines.append(f"  {json.dumps(case)}: {json.dumps(rows[case].model_dump(mode='json', exclude_defaults=True))}\n")
    run_folder.replace_file(file, "".join(lines))


def added(rows: Mapping[str, Row], folders: Iterable[Path]) -> dict[str, Row]:
    """The rows with what these runs have seen. A run that was added before adds nothing.

    :raises UsageError: not a run folder, or a run of other boards.
    """
    found = dict(rows)
    opened = [RunFolder.open(folder) for folder in folders]
    for run in sorted(opened, key=lambda run: run.header().started):
        if others := [name for name, facts in run.header().boards.items() if facts.get("class") != CLASS]:
            raise UsageError(f"{run.path}: not of virtual boards alone: {', '.join(sorted(others))}")
        for (case, _), tried in sorted(summary.by_case(run.results()).items(), key=lambda item: item[1][-1].started):
            if (row := _after(found.get(case), tried)) is not None:
                found[case] = row
    return found


def _after(row: Row | None, tried: Sequence[TestResult]) -> Row | None:
    """What a row becomes by the attempts of one run at its case; None: it stays."""
    decided = summary.deciding(tried)
    last = datetime.fromtimestamp(tried[-1].started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if row is not None and (last <= row.last or (decided.verdict is Verdict.SKIP and row.verdict is not Verdict.SKIP)):
        return None
    is_clean = all(one.verdict is decided.verdict for one in tried)
    before = row.in_a_row if row is not None and row.verdict is decided.verdict else 0
    why = decided.reason if is_clean else "; then ".join(f"{one.verdict}: {one.reason}" for one in tried)
    passed = [round(one.own_seconds, 1) for one in tried if one.verdict is Verdict.PASS]
    seconds = passed[-1] if passed else row.seconds if row else 0.0
    often = before + len(tried) if is_clean else 0
    return Row(verdict=decided.verdict, in_a_row=often, last=last, seconds=seconds, why=why)


def text(rows: Mapping[str, Row], cases: Sequence[str]) -> str:
    """How variants of a case have ended: ``PASS 12x``; ``PASS 3x (17 of 18), not seen (1 of 18)``."""
    groups: dict[str, list[int]] = {}
    for case in cases:
        row = rows.get(case)
        groups.setdefault(row.verdict if row else "not seen", []).append(row.in_a_row if row else 0)
    words = []
    for verdict in [*Verdict, "not seen"]:
        if counts := groups.get(verdict):
            often = f" {min(counts)}x" if min(counts) else ""
            words.append(f"{verdict}{often}" + (f" ({len(counts)} of {len(cases)})" if len(groups) > 1 else ""))
    return ", ".join(words)
