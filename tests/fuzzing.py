"""Tests by chance: the same few seeds each time, or as many as there is time for (``--fuzz=1h``)."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

from lab.leases.records import seconds_of

COUNT = "chances"  # the property of a test's report that says how many it tried
Body = Callable[[random.Random], None]


class Chances:
    """Seeds for one test. ``seconds``: how long new ones are tried; None: as many as the test asks for."""

    def __init__(self, seconds: float | None, first: int) -> None:
        self._seconds, self._first = seconds, first
        self.tried = 0

    def each(self, number: int, body: Body) -> None:
        """Call ``body`` with the dice of one seed after the other; a failure names its seed."""
        for seed in self._seeds(number):
            try:
                body(random.Random(seed))
            except Exception as error:
                # What was made by chance may hold lone surrogates, and a worker of pytest-xdist cannot tell those.
                said = "".join(traceback.format_exception(error)).encode("ascii", "backslashreplace").decode()
                raise AssertionError(f"by chance, with --fuzz-seed={seed}:\n{said}") from None
            except BaseException as error:
                error.add_note(f"by chance, with --fuzz-seed={seed}")
                raise

    def _seeds(self, number: int) -> Iterator[int]:
        seed, end = self._first, time.monotonic() + (self._seconds or 0.0)
        while seed < self._first + number or (self._seconds is not None and time.monotonic() < end):
            yield seed
            seed += 1
            self.tried += 1


@pytest.fixture
def chances(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Chances]:
    """Each test of the session that asks for it gets an equal share of ``--fuzz``."""
    text = request.config.getoption("--fuzz")
    sharing = sum("chances" in getattr(item, "fixturenames", ()) for item in request.session.items)
    chances = Chances(seconds_of(text) / sharing if text else None, request.config.getoption("--fuzz-seed"))
    yield chances
    record_property(COUNT, chances.tried)
