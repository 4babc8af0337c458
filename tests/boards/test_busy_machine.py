"""A night on a machine that has other work: every case passes, only later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import CommandLine

pytestmark = pytest.mark.slow  # some twenty minutes
HOGS = 5 / 2  # for each processor: with two boards of one processor each the load is 7 on two processors
LIMIT = 3600  # seconds


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """So many processes that do nothing but work, and that end with this one."""
    words = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(words) for _ in range(count)]
    try:
        yield
        assert all(one.poll() is None for one in busy), "the load was not there to the end"
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_the_quick_cases_pass_beside_other_work(xenlab: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hogs(round(HOGS * len(os.sched_getaffinity(0)))):
        done = xenlab("nightly", "--select", "quick", "--ports", "free", "--output", str(folder), timeout=LIMIT)
        load = os.getloadavg()[0]
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines]
    told = [(one["case"], one["attempt"], one["verdict"], one["rule"], one["reason"]) for one in said]
    assert done.returncode == 0, (load, told, done.stdout[-2000:])
    assert {one["verdict"] for one in said} == {"PASS"}, (load, told)
    assert load > len(os.sched_getaffinity(0)) * HOGS, load
