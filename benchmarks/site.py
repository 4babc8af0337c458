"""The pages: what a hundred nights cost at once, and one more after them."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lab.base.errors import BenchError
from lab.history.store import History
from lab.reporting import site
from lab.results.record import Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder, stamp
from lab.selfcheck.benchmarking import benchmark

RUNS = 100
CASES = 500
RUNS_A_BUILD = 2
LINES = {Verdict.PASS: 25, Verdict.FAIL: 300}  # of a console slice
SAID = "(XEN) d1v0 Over-allocation for domain 1: 4097 > 4096, and other things that a console says"


@benchmark("site", unit="s", bar={"full": 30.0, "one_more": 3.0})
def pages() -> Mapping[str, float]:
    """A site of 100 runs of 500 cases with consoles, from nothing; and the import and pages of one more run."""
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        history = History(f"sqlite:///{scratch}/history.sqlite")
        where, chance = Path(scratch) / "site", random.Random(1)
        folders = [_run(Path(scratch) / f"run-{number}", number, chance) for number in range(RUNS + 1)]
        started = time.monotonic()
        for folder in folders[:-1]:
            history.import_run(folder)
        imported, busy = time.monotonic(), _cpu()
        site.write(history, where)
        full, busy_full = time.monotonic(), _cpu()
        history.import_run(folders[-1])
        site.write(history, where)
        more, busy_more = time.monotonic(), _cpu()
        results = sum(page.read_text().count('<section id="r') for page in where.glob("runs/*/*.html"))
        if results != RUNS * CASES:  # the oldest run has gone
            raise BenchError(f"the site has {results} results")
    cpu = {"full_cpu": busy_full - busy, "one_more_cpu": busy_more - busy_full}
    return {"full": full - imported, "one_more": more - full, "import_all": imported - started, **cpu}


def _cpu() -> float:
    """CPU seconds of this process and those that it has waited for: what a busy machine does not change much."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _run(path: Path, number: int, chance: random.Random) -> Path:
    """Most cases pass, one in fifty fails; each has a slice of a console and some evidence."""
    names = [f"testcases/area{case % 7}/test_{case // 20}.py::test_case[{case}]" for case in range(CASES)]
    began = 1795000000.0 + number * 86400
    boards = {"virt1": {"class": "virtual"}, "virt2": {"class": "virtual"}}
    header = RunHeader(f"run-{number}", began, "full", ("b",), boards, tuple(names), (), finished=began + 3600)
    folder = RunFolder.create(path, header)
    folder.write_builds({"b": {"key": f"{number // RUNS_A_BUILD:016x}", "version": "4.17.5"}})
    lines = []
    for case, name in enumerate(names):
        verdict = Verdict.FAIL if chance.random() < 0.02 else Verdict.PASS
        time_of = stamp(began + case)
        slice = folder.path / f"{case}.console.log"
        slice.write_text(f"{time_of} {SAID}\n" * LINES[verdict])
        evidence = Evidence("command", "xl list", "Domain-0   0  800  1  r-----  28.2\n" * 10, began + case, "virt1")
        result = TestResult(
            *(name, f"area{case % 7}", verdict, "assertion", "" if verdict is Verdict.PASS else "assert 1 == 2"),
            *(began + case, 5 + chance.random(), (f"virt{case % 2 + 1}",), "b"),
            phases=(Phase("create", began + case, 1.0), Phase("wait", began + case + 1, 1.0)),
            evidence=(evidence, evidence),
            consoles={"virt1": slice.name},
        )
        lines.append(f"{result.to_json()}\n")
    with open(folder.path / "results.jsonl", "a", encoding="utf-8") as file:  # append() waits for the disk each time
        file.writelines(lines)
    return folder.path
