"""What became of a figure from one build to another, on plain data. All figures judged here are costs: more is worse.

Counts are exact, so builds that differ by more than two measurements of one build do are told apart by few. Times are
not: whether a difference may be chance is asked of a permutation test. docs/performance.md states both rules.
"""

from __future__ import annotations

import enum
import itertools
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COUNT, TIME = "_instructions", "_ns"
UNITS = (COUNT, TIME)  # how the names of figures end that are costs
LEAST_COUNT = 0.01  # a change of a count that is told
LEAST_TIME = 0.03  # the same of a time
ALPHA = 0.01  # a difference of times that chance makes less often than this is taken for one of the builds
EXACT = 20_000  # divisions of the values that are all tried; of more, as many by chance


class Change(enum.StrEnum):
    """What became of a figure."""

    MORE = "costs more"
    LESS = "costs less"
    SAME = "no change"
    UNDECIDED = "undecided"  # a change that is large enough to be told may be chance, or be hidden by the noise
    MISSING = "not measured"


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of one board under two builds. Shares such as ``change`` are of A's value: 0.01 is 1 %."""

    figure: str
    board: str
    old: tuple[float, ...]  # A's values, as measured one after the other
    new: tuple[float, ...]
    verdict: Change
    change: float = 0.0  # of the medians
    noise: float = 0.0  # the largest difference between two values of one build, or what earlier builds have
    p: float | None = None  # of times: how often chance alone makes as large a difference


def stem(figure: str) -> str:
    """A figure's name without its unit."""
    return next((figure.removesuffix(unit) for unit in UNITS if figure.endswith(unit)), figure)


def is_cost(value: float) -> bool:
    """Whether an operation can cost as much."""
    return 0 < value < math.inf


def compare(
    figure: str, board: str, old: Sequence[float], new: Sequence[float], *, is_count: bool, known: float | None = None
) -> Compared:
    """Judge one figure; with fewer than two values of a build, or one that can be no cost, it is not measured.

    :param known: the noise that earlier builds have. With it, one value of a build is enough for a count to change,
        and for a time to be called unchanged.
    """
    values = tuple(old), tuple(new)
    fewest = min(len(old), len(new))
    if fewest < (2 if known is None else 1) or not all(is_cost(value) for side in values for value in side):
        return Compared(figure, board, *values, Change.MISSING)
    change = statistics.median(new) / statistics.median(old) - 1
    spreads = [(max(side) - min(side)) / min(side) for side in values]
    noise = max(spreads) if known is None else max(known, spreads[1])
    p = None if is_count or fewest < 2 else chance(old, new)
    is_sure = abs(change) > noise if is_count else p is not None and p < ALPHA
    if abs(change) < (LEAST_COUNT if is_count else LEAST_TIME):
        verdict = Change.UNDECIDED if is_count and noise >= LEAST_COUNT else Change.SAME
    elif not is_sure:
        verdict = Change.UNDECIDED
    else:
        verdict = Change.MORE if change > 0 else Change.LESS
    return Compared(figure, board, *values, verdict, change, noise, p)


def chance(old: Sequence[float], new: Sequence[float]) -> float:
    """How often a division of all values by chance has means at least as far apart: a two-sided permutation test.

    All divisions are tried, or :data:`EXACT` of them; which ones depends on nothing but the number of values.
    """
    pooled = [*old, *new]
    total, count = sum(pooled), len(old)

    def distance(side: Iterable[float]) -> float:
        mine = sum(side)
        return abs(mine / count - (total - mine) / len(new))

    seen = distance(old) * (1 - 1e-9)  # values that are equal but for rounding count as equal
    if math.comb(len(pooled), count) <= EXACT:
        divisions = [distance(side) for side in itertools.combinations(pooled, count)]
        return sum(one >= seen for one in divisions) / len(divisions)
    source = random.Random(len(pooled))
    as_far = sum(distance(source.sample(pooled, count)) >= seen for _ in range(EXACT))
    return (as_far + 1) / (EXACT + 1)


def table(found: Sequence[Compared]) -> list[str]:
    """Plain text to be pasted into a mail."""
    head = ("figure", "board", "A", "B", "change", "noise", "")
    rows = [
        (
            one.figure,
            one.board,
            _median(one.old),
            _median(one.new),
            "" if one.verdict is Change.MISSING else f"{one.change:+.2%}",
            "" if one.verdict is Change.MISSING else f"{one.noise:.2%}",
            one.verdict.value + ("" if one.p is None else f" (p={one.p:.3f})"),
        )
        for one in found
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    left = (0, 1, len(head) - 1)
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}" if values else "-"


def summary(found: Sequence[Compared]) -> list[str]:
    """A line for each board: what it loses and gains; and one if a board loses while another gains."""
    by_board: dict[str, list[Compared]] = {}
    for one in found:
        by_board.setdefault(one.board, []).append(one)
    hurt = {board: [one for one in of_it if one.verdict is Change.MORE] for board, of_it in by_board.items()}
    gains = {board: [one for one in of_it if one.verdict is Change.LESS] for board, of_it in by_board.items()}
    lines = []
    for board, of_it in by_board.items():
        counted = [f"{len(hurt[board])} of {len(of_it)} figures cost more", f"{len(gains[board])} less"]
        for word in (Change.UNDECIDED, Change.MISSING):
            if number := sum(one.verdict is word for one in of_it):
                counted.append(f"{number} {word.value}")
        lines.append(f"{board}: {', '.join(counted)}")
    losers = [board for board in by_board if hurt[board]]
    if winners := [board for board in by_board if gains[board] and losers and board not in losers]:
        lines.append(f"B hurts {', '.join(losers)} while {', '.join(winners)} gains")
    return lines
