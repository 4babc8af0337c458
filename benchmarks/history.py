"""How the history grows: the same questions at ten thousand, a hundred thousand and a million results."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lab.base import paths
from lab.history import gate, pages, schema
from lab.history.store import History
from lab.reporting.figures import growth_svg
from lab.selfcheck.benchmarking import benchmark, note

CASES = 500
SIZES = (10_000, 100_000, 1_000_000)
RUNS_A_BUILD = 2
CHUNK = 50  # runs inserted in one transaction
ROUNDS = 3


@benchmark(
    "history",
    unit="s",
    bar={f"{what}_1e6": bar for what, bar in (("gate", 0.5), ("gate_all_fail", 0.5), ("case_page", 0.1))}
    | {"generate_1e6": 120.0},
)
def history() -> Mapping[str, float]:
    """Verdict on a run of 500 cases, and the data of a case's page, from opening the database on; SQLite."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        url = f"sqlite:///{scratch}/history.sqlite"
        made = Generated(History(url))
        for size in SIZES:
            started = time.monotonic()
            made.grow(size // CASES)
            name = f"{size:.0e}".replace("+0", "")
            found[f"generate_{name}"] = time.monotonic() - started
            for what, measure in made.questions().items():
                found[f"{what}_{name}"] = _median(measure, url)
    _draw(found)
    return found


class Generated:
    """Runs of one line on one class of boards: most cases pass, some fail always, some now and then, some MISS.

    The last run of each size fails throughout, so that no case is settled by a glance at the baseline.
    """

    def __init__(self, store: History) -> None:
        self._store = store
        self._runs = 0
        self._random = random.Random(1)
        with store._engine.begin() as connection:
            connection.execute(schema.cases.insert(), [{"name": f"t/test_{n}.py::t", "doc": ""} for n in range(CASES)])
            connection.execute(
                schema.series.insert(),
                [{"case_id": n, "line": "pv32-debug", "board_class": "virtual"} for n in range(1, CASES + 1)],
            )

    def grow(self, runs: int) -> None:
        """Add runs until there are so many."""
        while self._runs < runs:
            until = min(self._runs + CHUNK, runs)
            numbers = range(self._runs + 1, until + 1)
            with self._store._engine.begin() as connection:
                connection.execute(schema.runs.insert(), [_run(n) for n in numbers])
                new = [_build(n) for n in numbers if n % RUNS_A_BUILD == 1]
                if new:
                    connection.execute(schema.builds.insert(), new)
                rows = [row for n in numbers for row in self._results(n, fails=n == runs)]
                connection.execute(schema.results.insert(), rows)
            self._runs = until

    def _results(self, run: int, *, fails: bool) -> Iterator[dict[str, object]]:
        chance = self._random.random
        for case in range(1, CASES + 1):
            verdict, reason = "PASS", ""
            if fails or case % 100 == 0 or (case % 25 == 0 and chance() < 0.1):
                verdict, reason = "FAIL", "assert 1 == 2: a guest that was to answer did not"
            elif chance() < 0.01:
                verdict, reason = "MISS", "virt1: BMC does not answer"
            yield {
                "run_id": run,
                "ordinal": case,
                "build_id": (run - 1) // RUNS_A_BUILD + 1,
                "series_id": case,
                "attempt": 1,
                "verdict": verdict,
                "rule": "assertion" if reason else "passed",
                "reason": reason,
                "boards": f"virt{case % 2 + 1}",
                "started": run * 86400.0 + case,
                "seconds": 5 + 10 * chance(),
            }

    def questions(self) -> dict[str, Callable[[str], object]]:
        """What is asked, each of a database just opened."""
        return {
            "gate": lambda url: _gate(url, f"run-{self._runs - 1}"),
            "gate_all_fail": lambda url: _gate(url, f"run-{self._runs}"),
            "case_page": lambda url: list(pages.case_pages(History(url), "t/test_24.py::t")),
        }


def _run(number: int) -> dict[str, object]:
    started = number * 86400.0
    fixed = {"finished": started + 600, "exit_status": 0, "selection": "quick", "folder": "", "digest": ""}
    return {"name": f"run-{number}", "started": started, **fixed}


def _build(run: int) -> dict[str, object]:
    seen = {"first_seen": run * 86400.0, "last_seen": (run + RUNS_A_BUILD - 1) * 86400.0}
    return {"line": "pv32-debug", "key": f"{run:016x}", "build_id": f"{run:040x}", "version": "4.17.5", **seen}


def _gate(url: str, run: str) -> None:
    """With the search for a baseline: no build was accepted, and each has a failing case."""
    store = History(url)
    new = store.select(run)
    assert len(gate.gate_lines(gate.compare(store, new, gate.baseline(store, new)))) > 1


def _median(measure: Callable[[str], object], url: str) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        measure(url)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _draw(found: Mapping[str, float]) -> None:
    """The figures over the number of results, in the state folder."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, seconds in found.items():
        what, _, size = name.rpartition("_")
        if what != "generate":
            lines.setdefault(what.replace("_", " "), []).append((float(size), seconds))
    file = Path(paths.state() / "bench" / "history.svg")
    file.parent.mkdir(exist_ok=True)
    file.write_text(growth_svg("history: how it grows", lines, across="results", up="seconds"), encoding="utf-8")
    note(f"drawn in {file}")
