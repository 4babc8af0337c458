"""One fault, one name: by what failures are told apart, and which known findings a result carries."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lab.results.record import TestResult, Verdict

LABEL_LIMIT = 160  # characters of a failure's label

_HEX = re.compile(r"\b(?:0x[0-9a-fA-F]+|[0-9a-fA-F]{8,})\b")
_NUMBER = re.compile(r"[0-9]+(?:[.,:][0-9]+)*")
_KEY = re.compile(r"[0-9a-f]{10} ")


def failure_key(verdict: Verdict, rule: str, reason: str, boards: Collection[str], fingerprint: str) -> str:
    """The name of a failure: ten hexadecimal digits and a label. Empty for PASS and SKIP.

    A crash has its fingerprint. Any other failure is named by its rule and its reason, with numbers and the names of
    its boards taken out, so that one fault has one name on all boards, with all builds and in all cases.
    """
    if verdict in (Verdict.PASS, Verdict.SKIP):
        return ""
    if fingerprint:
        return fingerprint
    text = reason
    for board in sorted(boards, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(board)}(?![\w-])", "BOARD", text)
    text = _NUMBER.sub("#", _HEX.sub("#", text))
    text = re.sub(r"^(?:BOARD: )+", "", " ".join(text.split()))
    digits = hashlib.sha256(f"{verdict} {rule} {text}".encode("utf-8", "backslashreplace")).hexdigest()[:10]
    return f"{digits} {(text or rule)[:LABEL_LIMIT]}"


def failure_of(result: TestResult) -> str:
    """See :func:`failure_key`."""
    return failure_key(result.verdict, result.rule, result.reason, result.boards, result.fingerprint)


def label_of(key: str) -> str:
    """A failure's name without its digits."""
    return key[11:] if _KEY.match(key) else key


def digits_of(key: str) -> str:
    """A failure's digits, by which users name it."""
    return key[:10] if _KEY.match(key) else key


def shown_label(key: str, reasons: Collection[str], bench: Collection[str] = ()) -> str:
    """A failure's label as readers see it: with its numbers where all its results have the same.

    ``bench`` has the boards of a failure of the bench. It is about these boards, so they are named.
    """
    label, one = label_of(key), set(reasons)
    if len(one) == 1 and ("#" in label or bench):
        label = one.pop()
    gone = [name for name in sorted(bench) if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", label)]
    return f"{', '.join(gone)}: {label}" if gone else label


def shown_by(cases: Collection[str], builds: Collection[object], results: int) -> str:
    """``40 cases``; ``1 case with 2 builds`` where there are more results than cases."""
    said = f"{len(cases)} case{'' if len(cases) == 1 else 's'}"
    if results <= len(cases):
        return said
    return f"{said} with {len(builds)} builds" if len(builds) > 1 else f"{said}, {results} results"


@dataclass(frozen=True, slots=True)
class KnownFinding:
    """A finding of ``testcases/AREA/known.yaml`` that showed, and the checks whose failure it excused."""

    name: str
    checks: tuple[str, ...] = ()


def known_findings(result: TestResult) -> tuple[KnownFinding, ...]:
    """The findings that were excused in a case, so that it could pass; empty for other verdicts.

    They are those of its checks, and of the cells of the relocation matrix that it recorded.
    """
    if result.verdict is not Verdict.PASS:
        return ()
    found: dict[str, list[str]] = {}
    for check in result.checks:
        if check.excuse and not check.is_good:
            found.setdefault(check.excuse, []).append(check.name)
    for cell in cells_of(result):
        for name in _words(cell, "known"):
            found.setdefault(name, [])
    return tuple(KnownFinding(name, tuple(checks)) for name, checks in found.items())


def bad_checks(result: TestResult) -> tuple[str, ...]:
    """The checks that failed in a case, as far as it lists its checks."""
    bad = [check.name for check in result.checks if check.is_bad]
    bad += [word for cell in cells_of(result) for word in _words(cell, "bad")]
    return tuple(dict.fromkeys(bad))


def cells_of(result: TestResult) -> list[Mapping[str, object]]:
    """What a case has recorded of cells of the relocation matrix."""
    found: list[Mapping[str, object]] = []
    for one in result.evidence:
        if one.kind == "cell":
            try:
                cell = json.loads(one.body)
            except (ValueError, RecursionError):
                continue
            if isinstance(cell, dict):
                found.append(cell)
    return found


def _words(cell: Mapping[str, object], key: str) -> list[str]:
    said = cell.get(key)
    return [str(word) for word in said] if isinstance(said, list) else []
