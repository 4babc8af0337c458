"""Reading consoles and writing reports: what a night's data costs. CPU time, so that a busy machine does not count."""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.base import paths
from lab.base.errors import BenchError
from lab.console.patterns import classify
from lab.console.signatures import SIGNATURES
from lab.reporting import junit
from lab.results.record import Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.selfcheck.benchmarking import benchmark

SAMPLES = paths.CHECKOUT / "tests" / "data" / "console"
SCANNED = 100_000_000  # bytes
PLAIN_SHARE = 10  # plain `re` is slow: it reads this part of them, a whole number of times the samples
CASES = 10_000
ROUNDS = 3


@benchmark("console-scan", unit="", better="higher", bar={"mb_per_s": 50.0})
def console_scan() -> Mapping[str, float]:
    """Recorded consoles through classify, repeated to 100 MB; and how many times as fast that is as plain re."""
    texts = [file.read_bytes() for file in sorted(SAMPLES.glob("*.log"))]
    lines = [line for text in texts for line in text.decode(errors="replace").split("\n")]
    size = sum(len(text) for text in texts)
    if not size:
        raise BenchError(f"{SAMPLES}: no recorded consoles")
    times = -(-SCANNED // size)
    fast = times * size / _seconds(classify, lines, times) / 1e6
    plain = re.compile("|".join(f"(?:{signature.pattern})" for signature in SIGNATURES)).search
    fewer = -(-times // PLAIN_SHARE)
    slow = fewer * size / _seconds(plain, lines, fewer) / 1e6
    return {"mb_per_s": fast, "plain_re_mb_per_s": slow, "times_plain_re": fast / slow}


@benchmark("junit", unit="s", bar=2.0)
def junit_of_ten_thousand() -> float:
    """junit.xml of a run of 10,000 cases, read from its folder; the best of three."""
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        folder = _run(Path(scratch) / "run")
        best = min(_seconds(lambda run: junit.write(run.summary()), [folder], 1) for _ in range(ROUNDS))
        if (folder.path / junit.NAME).read_text(encoding="utf-8").count("<testcase ") != CASES:
            raise BenchError("junit.xml has not all cases")
    return best


def _seconds(call: Callable[[Any], object], each: Sequence[object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        for one in each:
            call(one)
    return time.process_time() - started


def _run(path: Path) -> RunFolder:
    """Most cases pass, some fail with a console, some MISS; as large as such records are."""
    chance = random.Random(1).random
    names = [f"testcases/area{n % 7}/test_{n // 100}.py::test_case[{n}]" for n in range(CASES)]
    boards = {"virt1": {"class": "virtual"}}
    folder = RunFolder.create(path, RunHeader("bench", 1.0, "full", ("b",), boards, tuple(names), (), finished=2.0))
    lines = []
    for number, name in enumerate(names):
        verdict = Verdict.FAIL if chance() < 0.05 else Verdict.MISS if chance() < 0.02 else Verdict.PASS
        evidence = [Evidence("command", "xl list", "Domain-0   0  800  1  r-----  28.2\n" * 10, 1.0, "virt1")]
        if verdict is Verdict.FAIL:
            evidence.append(Evidence("console", "xen-panic", "(XEN) Panic on CPU 0: \x1b[m <&>\n" * 60, 1.0, "virt1"))
        result = TestResult(
            *(name, name.split("/")[1], verdict, "rule", "" if verdict is Verdict.PASS else "because of <that>"),
            *(1.0 + number, 2.0, ("virt1",), "b"),
            phases=(Phase("create", 1.0, 1.0), Phase("wait", 2.0, 1.0)),
            evidence=tuple(evidence),
            figures={"downtime_s": chance()},
            consoles={"virt1": f"cases/{number}/virt1.console.log"},
        )
        lines.append(f"{result.to_json()}\n")
    with open(folder.path / "results.jsonl", "a", encoding="utf-8") as file:  # append() waits for the disk each time
        file.writelines(lines)
    return folder
