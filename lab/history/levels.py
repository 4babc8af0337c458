"""The levels of a figure over builds: where it moved, and stayed. On plain data; docs/performance.md states both rules.

Counts are exact, so two values in a row say that a level is left. Times are not: they are divided as E-divisive
divides them, by means and with a permutation test. Source: Matteson and James, "A Nonparametric Approach for Multiple
Change Point Analysis of Multivariate Data", 2014, sections 2 and 3, with the exponent 2.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from lab.history.figures import LEAST_TIME

STAYS = 2  # values (of times: builds) on each side of a step
LEAST_STEP = 0.009  # of a count: 1 %, of which noise may take a tenth
ALPHA = 0.001  # of a step in times; each night looks again
SHUFFLES = 1999  # by chance, of the order of the builds
ENOUGH = 4  # differences of which the two largest ones say nothing of the noise


@dataclass(frozen=True, slots=True)
class Level:
    """Builds from ``first`` to before ``end``, by their places, with one cost."""

    first: int
    end: int
    median: float
    noise: float | None  # a share, as 0.01; None where one value alone is known


def levels(builds: Sequence[Sequence[float]], *, is_count: bool) -> list[Level]:
    """The levels of a figure, the oldest first. ``builds`` has the values of each build in their order, all above 0."""
    if not builds:
        return []
    begins = _of_counts(builds) if is_count else _of_times([statistics.median(values) for values in builds])
    found = []
    for first, end in pairwise([*begins, len(builds)]):
        values = [*chain.from_iterable(builds[first:end])]
        found.append(Level(first, end, statistics.median(values), noise(values)))
    return found


def noise(values: Sequence[float]) -> float | None:
    """The largest difference between a value of a level and the one before it, so that a slow drift is no noise.

    The two largest ones are left out of many: a value that one interrupt disturbed makes as many.
    """
    steps = sorted(abs(new - old) / min(old, new) for old, new in pairwise(values))
    return (steps[:-2] if len(steps) >= ENOUGH else steps)[-1] if steps else None


def _of_counts(builds: Sequence[Sequence[float]]) -> list[int]:
    """Where the next values leave the level before, on one side, by more than :data:`LEAST_STEP` and its noise."""
    begins = [0]
    for at in range(1, len(builds)):
        before = [*chain.from_iterable(builds[begins[-1] : at])]
        after = [*chain.from_iterable(builds[at : at + STAYS])][:STAYS]
        if min(len(before), len(after)) < STAYS:
            continue
        middle = statistics.median(before)
        moved = [value / middle - 1 for value in after]
        least = max(min(moved), -max(moved))  # of both, on one side
        if least >= LEAST_STEP and least > (noise(before) or 0.0):
            begins.append(at)
    return begins


def _of_times(values: Sequence[float]) -> list[int]:
    """The divisions that chance does not make, but for those whose levels differ by less than a change that is told."""
    begins = [0, *_divided(values, 0)]
    while len(begins) > 1:
        middles = [statistics.median(values[first:end]) for first, end in pairwise([*begins, len(values)])]
        changes = [abs(new / old - 1) for old, new in pairwise(middles)]
        least = changes.index(min(changes))
        if changes[least] >= LEAST_TIME:
            break
        del begins[least + 1]
    return begins


def _divided(values: Sequence[float], first: int) -> list[int]:
    if len(values) < 2 * STAYS:
        return []
    at, seen = division(values)
    if seen <= 0 or not _is_rare(values, seen):
        return []
    return [*_divided(values[:at], first), first + at, *_divided(values[at:], first + at)]


def division(values: Sequence[float]) -> tuple[int, float]:
    """Where the means before and after are farthest apart, and how far: ``nm/(n+m) (mean - mean)^2``."""
    count = len(values)
    middle = sum(values) / count
    sums = [*accumulate(value - middle for value in values)]
    far = [sums[at - 1] ** 2 * count / (at * (count - at)) for at in range(STAYS, count - STAYS + 1)]
    best = max(range(len(far)), key=far.__getitem__)
    return best + STAYS, far[best]


def _is_rare(values: Sequence[float], seen: float) -> bool:
    """Whether fewer than :data:`ALPHA` of the orders by chance divide as well; the number of values fixes these."""
    source, shuffled = random.Random(len(values)), [*values]
    seen *= 1 - 1e-9  # values that are equal but for rounding count as equal
    allowed = int(ALPHA * (SHUFFLES + 1)) - 1  # with (as many + 1) / (SHUFFLES + 1) for p
    for _ in range(SHUFFLES):
        source.shuffle(shuffled)
        allowed -= division(shuffled)[1] >= seen
        if allowed < 0:
            return False
    return True
