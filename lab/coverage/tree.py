"""The sources with what was executed beside each line, as pages: lcov's genhtml makes them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.base.errors import UsageError
from lab.builds.command import run
from lab.builds.gcov import Source, Sources
from lab.coverage.measured import Measured
from lab.results.run_folder import COVERAGE_PAGE

_TIMEOUT = 600.0
_NOTHING = Source()


def write(measured: Measured, run_folder: Path) -> Path:
    """Write the pages into the run folder. Returns the first one.

    :raises UsageError: genhtml is not installed.
    :raises BenchError: it fails.
    """
    if not shutil.which("genhtml"):
        raise UsageError("--html needs genhtml; as root: apt-get install -y --no-install-recommends lcov")
    sources = measured.folder / "source"
    target = (run_folder / COVERAGE_PAGE).parent
    with tempfile.TemporaryDirectory(prefix="xenlab-lcov-") as scratch:
        info, described = Path(scratch) / "run.info", Path(scratch) / "cases"
        with open(info, "w", encoding="utf-8") as file, open(described, "w", encoding="utf-8") as names:
            file.writelines(_of("", measured.everything, {}, sources))
            for number, case in enumerate(sorted(measured.cases, key=lambda one: one.case), 1):
                name = f"{number:03}_{re.sub(r'[^A-Za-z0-9]+', '_', case.case.rpartition('::')[2])}"
                names.write(f"TN: {name}\nTD: {case.case}\n")
                file.writelines(_of(name, measured.everything, case.sources, sources))
        run(
            [
                "genhtml",
                *("--quiet", "--show-details", "--function-coverage", "--num-spaces", "8", "--keep-descriptions"),
                *("--prefix", str(sources), "--description-file", str(described)),
                *("--title", f"{measured.build}, run {measured.run}", "--output-directory", str(target), str(info)),
            ],
            timeout=_TIMEOUT,
            what="genhtml",
        )
    return run_folder / COVERAGE_PAGE


def _of(name: str, everything: Sources, executed: Sources, where: Path) -> Iterator[str]:
    """lcov's trace format (geninfo(1)). Every case names all files with code: a line without a count would be no line.

    Counts are 1 and 0: whether a case executes a line, not how often, so that a sum is the number of cases.
    """
    for file, there in everything.items():
        found = executed.get(file, _NOTHING)
        if (name and not found.executed) or not (where / file).is_file():
            continue
        yield f"TN:{name}\nSF:{where / file}\n"
        for function, line in there.functions.items():
            yield f"FN:{line},{function}\nFNDA:{int(function in found.entered)},{function}\n"
        for line in sorted(there.lines):
            yield f"DA:{line},{int(line in found.executed)}\n"
        yield f"LF:{len(there.lines)}\nLH:{len(found.executed)}\nend_of_record\n"
