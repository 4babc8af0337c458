"""How many mutants a board tries in an hour."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lab.base.errors import BenchError
from lab.night import mutation
from lab.selfcheck.benchmarking import benchmark, note

AREA = "guest32"
SECONDS = 1800.0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextmanager
def _new_state() -> Iterator[None]:
    """Within the block nothing was tried before."""
    before = os.environ.get("XDG_STATE_HOME")
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        os.environ["XDG_STATE_HOME"] = scratch
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = before


@benchmark("mutation-rate", unit="/h", bar={"mutants_an_hour_and_board": 60.0}, better="higher")
def mutation_rate() -> Mapping[str, float]:
    """Half an hour of mutants in the files of guest32 on the virtual boards, with all boots that they cost."""
    coverage = mutation.newest_counted()  # of this user, before all is new
    if not coverage:
        raise BenchError("no run of `xenlab nightly --coverage` is known: it says which cases a mutant is tried with")
    with _new_state():
        found = mutation.run(mutation.Asked(area=AREA, seconds=SECONDS, coverage=coverage), _say)
    tally = found.score.tally(found.files)
    note(f"{dict(tally.parts)}")
    return {"mutants_an_hour_and_board": found.rate, "tried": float(found.tried)}
