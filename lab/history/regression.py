"""The regression rule, on plain data: what became of one case on one class of boards, against a baseline.

Only PASS and FAIL are counted. MISS, ERROR and SKIP say nothing of the product, so they are neither.
docs/history.md states the rule for readers.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

ALPHA = 0.05  # what is less probable than this is not taken for chance
WINDOW = 50  # attempts looked back upon


class Change(enum.StrEnum):
    """What became of a case."""

    NEW_FAILURE = "new failure"  # the one that blocks
    STILL_FAILING = "still failing"
    NEVER_PASSED = "never passed"
    KNOWN_FINDING = "known bug"  # excused in the baseline's release, and not listed for this one
    FLAKY = "flaky"
    FIXED = "fixed"
    NEW_CASE = "new case"
    PASSING = "passing"
    MISSING = "missing case"  # the baseline has it, the build does not
    NOT_COUNTED = "not counted"  # the bench or the case's own code failed, or it did not run
    SKIPPED = "skipped"  # it does not apply to the boards

    def counted(self, number: int) -> str:
        """``1 new failure``, ``2 new failures``, ``2 still failing``, ``2 new cases passed``"""
        is_noun = self in (Change.NEW_FAILURE, Change.KNOWN_FINDING, Change.NEW_CASE, Change.MISSING)
        passed = " passed" if self is Change.NEW_CASE else ""
        return f"{number} {self}{'s' if is_noun and number != 1 else ''}{passed}"


@dataclass(frozen=True, slots=True)
class Count:
    """Attempts that were counted."""

    passes: int = 0
    fails: int = 0

    @property
    def total(self) -> int:
        return self.passes + self.fails

    def __add__(self, other: Count) -> Count:
        return Count(self.passes + other.passes, self.fails + other.fails)

    def __str__(self) -> str:
        """``passed 3 of 3``, ``failed 1 of 4``"""
        return f"failed {self.fails} of {self.total}" if self.fails else f"passed {self.passes} of {self.total}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A counted attempt. ``build`` is any name that tells builds apart."""

    build: str
    is_pass: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """``why`` has the figures that led to ``change``."""

    change: Change
    why: str


def count(attempts: Iterable[Attempt]) -> Count:
    """The attempts, counted."""
    verdicts = [attempt.is_pass for attempt in attempts]
    return Count(sum(verdicts), len(verdicts) - sum(verdicts))


def classify(
    now: Count, before: Count, earlier: Sequence[Attempt], *, ever_passed: bool, reference: str = "the baseline"
) -> Judgement:
    """Judge a case that was counted with the build.

    ``now`` are its attempts with the build; ``before`` those with ``reference``: the baseline, or if that has none,
    the newest build before it that has. ``earlier`` are the last :data:`WINDOW` attempts, oldest first, with
    builds not newer than the baseline; ``ever_passed`` says whether any of all of those passed.

    - no ``before``: NEVER_PASSED if it only fails, FLAKY if it passes and fails, else NEW_CASE
    - it fails: if no attempt ever passed before, NEVER_PASSED or FLAKY in the same way; FLAKY if
      :func:`flaky_stretch` finds it so and it does not fail significantly more often now (Fisher, one-sided,
      p >= ALPHA); STILL_FAILING if ``before`` has no pass; else NEW_FAILURE. One FAIL among many PASS is a failure:
      repeating until it passes excuses nothing.
    - it passes: PASSING if ``before`` has no fail; FLAKY if it is and does not fail significantly less often;
      else FIXED
    """
    assert now.total
    first_failing = Change.FLAKY if now.passes else Change.NEVER_PASSED
    if not before.total:
        return Judgement(first_failing if now.fails else Change.NEW_CASE, f"{now}; no earlier attempt counts")
    if now.fails and not ever_passed:
        return Judgement(first_failing, f"{now}; {before} with {reference}, and no earlier attempt passed")
    if not now.fails and not before.fails:
        return Judgement(Change.PASSING, f"{now}; {before} with {reference}")
    seen = ""
    if stretch := flaky_stretch(earlier):
        usual = count(stretch)
        p = fisher(now, usual, "more" if now.fails else "less")
        if p >= ALPHA:
            return Judgement(Change.FLAKY, f"{now}; flaky before, {usual}: within chance (p={p:.2g})")
        seen = f"; flaky before, {usual}: beyond chance (p={p:.2g})"
    if not now.fails:
        return Judgement(Change.FIXED, f"{now}; {before} with {reference}{seen}")
    change = Change.NEW_FAILURE if before.passes else Change.STILL_FAILING
    return Judgement(change, f"{now}; {before} with {reference}{seen}")


def flaky_stretch(earlier: Sequence[Attempt]) -> Sequence[Attempt]:
    """The attempts by which a case is flaky, oldest first; empty when it is not.

    Flaky is what, within the unchanged stretch, both passed and failed with one same build, or failed and then
    passed again twice or more. The stretch reaches back to the newest change of builds at which the attempts
    before and those after it differ significantly (Fisher, two-sided, p < ALPHA): what was repaired since does
    not count.
    """
    if not _is_unsteady(earlier):
        return ()
    for at in range(len(earlier) - 1, 0, -1):
        if earlier[at - 1].build == earlier[at].build:
            continue
        if fisher(count(earlier[at:]), count(earlier[:at]), "both") < ALPHA:
            return earlier[at:] if _is_unsteady(earlier[at:]) else ()
    return earlier


def _is_unsteady(attempts: Sequence[Attempt]) -> bool:
    if len({(attempt.build, attempt.is_pass) for attempt in attempts}) > len({attempt.build for attempt in attempts}):
        return True
    pairs = zip(attempts, attempts[1:], strict=False)
    return sum(not one.is_pass and other.is_pass for one, other in pairs) >= 2


def fisher(now: Count, before: Count, side: Literal["more", "less", "both"]) -> float:
    """Fisher's exact test: the probability, if nothing changed, of what ``now`` shows or something more extreme.

    ``more``: at least as many fails; ``less``: at most as many; ``both``: whatever is no more probable.
    """
    total, fails, drawn = now.total + before.total, now.fails + before.fails, now.total
    weights = {
        k: math.comb(fails, k) * math.comb(total - fails, drawn - k)
        for k in range(max(0, drawn - (total - fails)), min(fails, drawn) + 1)
    }
    if side == "both":
        kept = sum(weight for weight in weights.values() if weight <= weights[now.fails])
    else:
        kept = sum(w for k, w in weights.items() if (k >= now.fails if side == "more" else k <= now.fails))
    return kept / math.comb(total, drawn)
