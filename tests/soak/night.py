"""``python night.py INVENTORY RUN-FOLDER CASES [SECONDS [TIMES [BUILDS]]]``: ``xenlab nightly`` without builds to make.

Called again with the same folder it goes on as ``--resume`` does. ``SECONDS`` is the deadline, from now;
``TIMES`` has each case run that often; ``BUILDS``: how many, two if not given.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lab import inventory
from lab.base import processes
from lab.night import nightly, planning
from lab.night.options import NightlyOptions
from lab.results.record import RunHeader
from lab.results.run_folder import RunFolder

HERE = Path(__file__).resolve().parent


class Night(nightly.Night):
    """Its cases run against no hypervisor."""

    def _set_up(self) -> None:
        pass


def main() -> int:
    file, path, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    lab = inventory.load(file)
    deadline = time.time() + float(sys.argv[4]) if len(sys.argv) > 4 else None
    # No more cases are collected, time and again, than there is use for.
    os.environ |= {"SOAK_CASES": str(count), processes.PASS_ENV: f"{os.environ.get(processes.PASS_ENV, '')} SOAK_CASES"}
    options = NightlyOptions(paths=(str(HERE / "testcases"),), inventory=file, is_remembered=False, deadline=deadline)
    every = len(cases := planning.collect(options, "weekly")) // count
    cases = cases[::every][:count]  # of both kinds
    if (path / "run.json").exists():
        folder = RunFolder.open(path)
    else:
        planned = tuple(case.nodeid for case in cases)
        times = int(sys.argv[5]) if len(sys.argv) > 5 else 1
        builds = ("one", "two")[: int(sys.argv[6]) if len(sys.argv) > 6 else 2]
        header = RunHeader("soak", time.time(), "soak", builds, {}, planned, (), repeat=times)
        folder = RunFolder.create(path, header)
    return Night(options, lab, folder, cases).run()


if __name__ == "__main__":
    sys.exit(main())
