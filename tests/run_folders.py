"""Run folders for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab.history.store import History
from lab.results.record import RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder

S3 = "testcases/sleep/test_s3.py::test_s3_rtc_wake"
PV32 = "testcases/guest32/test_pv32.py::test_pv32_runs[hvm]"
DAY = 86400.0
LINE = "pv32-debug"
BOARDS = {"virt1": "virtual", "virt2": "virtual", "epyc": "server", "t14": "laptop"}


def result(case: str = PV32, verdict: Verdict = Verdict.PASS, board: str = "virt1", **changes: object) -> TestResult:
    reason = "" if verdict is Verdict.PASS else f"{board}: because"
    rule = {"PASS": "passed", "FAIL": "assertion", "MISS": "bench", "ERROR": "exception", "SKIP": "skipped"}[verdict]
    boards = tuple(board.split("+")) if board else ()
    plain = TestResult(
        case, case.split("/")[1] if "/" in case else "other", verdict, rule, reason, 0.0, 2.0, boards, LINE
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class Runs:
    """Run folders, a day apart, as a run writes them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.days = 0

    def write(
        self, *results: TestResult, key: str = "aaaaaaaa11", builds: Sequence[str] = (LINE,), **changes: object
    ) -> RunFolder:
        self.days += 1
        header = RunHeader(
            run_id=f"run{self.days}",
            started=1795000000.0 + self.days * DAY,
            selection="full",
            builds=tuple(builds),
            boards={name: {"class": word} for name, word in BOARDS.items()},
            planned=tuple(dict.fromkeys(one.case for one in results)),
            required_areas=(),
            finished=1795000000.0 + self.days * DAY + 3600,
        )
        folder = RunFolder.create(self.directory / f"run{self.days}", replace(header, **changes))  # type: ignore[arg-type]
        for index, one in enumerate(results):
            folder.append(replace(one, started=header.started + index))
        if key:
            facts = {"key": key, "build id": f"{key}{'0' * 30}", "version": "4.17.5"}
            folder.write_builds(dict.fromkeys(builds, facts))
        return folder

    def fill(self, history: History, *nights: str, case: str = PV32) -> None:
        """Import runs, each ``KEY:VERDICTS``, as in ``aa:PPF``."""
        words = {verdict[0]: verdict for verdict in Verdict}
        for night in nights:
            key, verdicts = night.split(":")
            history.import_run(self.write(*(result(case, words[v]) for v in verdicts), key=key).path)
