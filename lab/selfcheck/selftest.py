"""``xenlab selftest``: the environments of tox.ini one after the other, and one summary.

The cheap ones all run, so that one start shows all that is wrong; boards are only taken when those are good.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestSuite
from junitparser.junitparser import JUnitXmlError

from lab.base import paths
from lab.base.errors import UsageError
from lab.leases.records import seconds_of

KEPT = 5  # report folders of earlier self-tests
GRACE = 110.0  # seconds for an interrupted step to give its boards back
TOX_INI = paths.CHECKOUT / "tox.ini"


@dataclass(frozen=True, slots=True)
class SelftestStep:
    """An environment of tox.ini, and how long it may take in seconds."""

    name: str
    limit: float
    is_cheap: bool = True


STEPS = (
    SelftestStep("lint", 300),
    SelftestStep("types", 900),
    SelftestStep("imports", 300),
    SelftestStep("unit", 1800),
    SelftestStep("boards", 2400, is_cheap=False),
    SelftestStep("broken", 2400, is_cheap=False),
    SelftestStep("mutants", 1800, is_cheap=False),
    SelftestStep("container", 3600, is_cheap=False),
)
# Steps that run only when they are named, for as long as they are given; the variable of tox.ini that says how long,
# and how much longer they may take at most (seconds, times): for the last chances, and for what a soak still awaits.
TIMED = {"fuzz": ("XENLAB_FUZZ", 600.0, 1.0), "soak": ("XENLAB_SOAK", 900.0, 2.0)}


def run(
    names: Sequence[str] = (),
    *,
    time_for: str = "1h",
    steps: Sequence[SelftestStep] = STEPS,
    tox_ini: Path = TOX_INI,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run these steps, or all but those of :data:`TIMED`.

    The last line is a summary as pytest writes it. A step that was named, and of which nothing could run, is bad.

    ``time_for`` is how long each of those takes: ``90m``, ``1h``.

    Exit status: 0, or 1; 3 when each bad step says that the bench is to blame, or could not run.

    :raises UsageError: no such step.
    """
    say = say or partial(print, flush=True)
    seconds = seconds_of(time_for)
    timed = [SelftestStep(name, seconds * times + more) for name, (_, more, times) in TIMED.items()]
    there = (*steps, *timed)
    if unknown := [name for name in names if name not in {step.name for step in there}]:
        raise UsageError(f"no step {', '.join(unknown)}; there are: {', '.join(step.name for step in there)}")
    chosen = [step for step in there if step.name in names] if names else list(steps)
    reports = _reports()
    started = time.monotonic()
    counts: Counter[str] = Counter()
    bad: dict[str, int] = {}
    for step in chosen:
        say(f"----- {step.name} -----")
        if bad and not step.is_cheap:
            say(f"{step.name}: not run, since {', '.join(bad)} failed")
            continue
        clock = time.monotonic()
        status = _tox(step, tox_ini, reports, {variable: time_for for variable, _, _ in TIMED.values()})
        counts += (found := _count(reports / step.name, status))
        is_empty = not status and not found["passed"]
        if status or (is_empty and names):
            bad[step.name] = status or 3
        word = f"failed with status {status}" if status else "nothing of it can run here" if is_empty else "passed"
        say(f"{step.name}: {word} in {time.monotonic() - clock:.0f} s")
    say(f"reports: {reports}")
    say(summary(counts, time.monotonic() - started))
    if set(bad.values()) == {3}:
        return 3
    return 1 if bad else 0


def summary(counts: Counter[str], seconds: float) -> str:
    """``===== 1 failed, 20 passed, 2 skipped in 63.20s (0:01:03) =====``"""
    order = ("failed", "passed", "skipped", "error")
    parts = [f"{counts[word]} {word}" for word in order if counts[word] or word == "passed"]
    whole = int(seconds)
    clock = f" ({whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02})" if seconds >= 60 else ""
    return f"===== {', '.join(parts)} in {seconds:.2f}s{clock} ====="


def _reports() -> Path:
    root = paths.state() / "selftest"
    root.mkdir(exist_ok=True)
    for old in sorted(path for path in root.iterdir() if path.is_dir())[: -KEPT + 1]:
        shutil.rmtree(old, ignore_errors=True)
    reports = root / (time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{os.getpid():x}")
    reports.mkdir()
    return reports


def _tox(step: SelftestStep, tox_ini: Path, reports: Path, more: Mapping[str, str]) -> int:
    """Run the environment in a process group of its own, so that all of it can be interrupted."""
    (reports / step.name).mkdir()
    command = [sys.executable, "-m", "tox", "run", "-q", "-c", str(tox_ini), "-e", step.name]
    environment = os.environ | {"XENLAB_PYTHON": sys.executable, "XENLAB_REPORTS": str(reports / step.name)}
    environment |= more
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, cwd=tox_ini.parent, env=environment, start_new_session=True
    )
    try:
        return process.wait(step.limit)
    except subprocess.TimeoutExpired:
        print(f"{step.name}: not done after {step.limit:.0f} s, ended", flush=True)
        return 124  # as timeout(1)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:  # a second interrupt ends the wait
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # tox itself, or what it left: a worker of xdist
        process.wait()


def _count(reports: Path, status: int) -> Counter[str]:
    """Results by pytest's words: from the step's JUnit files, else the step itself counts as one."""
    counts: Counter[str] = Counter()
    for file in sorted(reports.rglob("*.xml")):
        try:
            content: JUnitXml | TestSuite = JUnitXml.fromfile(str(file))  # or one suite
        except (JUnitXmlError, SyntaxError):  # a writer that was killed; xml's ParseError is a SyntaxError
            continue
        for suite in [content] if isinstance(content, TestSuite) else content:
            for case in suite:
                kinds = {type(result) for result in case.result}
                word = "failed" if Failure in kinds else "error" if Error in kinds else "passed"
                counts["skipped" if word == "passed" and Skipped in kinds else word] += 1
    if status and not counts["failed"] and not counts["error"]:
        counts["failed"] += 1
    elif not counts:
        counts["passed"] += 1
    return counts
