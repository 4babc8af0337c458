"""What a user asks of a run; :mod:`lab.cli` fills it in, :mod:`lab.night.nightly` obeys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.base import paths

Selection = Literal["quick", "full", "weekly"]
DEFAULT_BUILD = "pv32-debug"
COUNTING_BUILD = "coverage"  # the default of a run that counts what is executed
NAMED = 3  # files and cases in a heading
COUNTED_LAB = paths.INVENTORY / "counted.yaml"  # boards for figures of performance
VIRTUAL_LAB = paths.INVENTORY / "virtual.yaml"


@dataclass(frozen=True, slots=True)
class NightlyOptions:
    """The options of ``xenlab nightly``; each default is the command's own."""

    paths: tuple[str, ...] = ()  # files, folders or node ids as pytest takes them; empty: all of testcases/
    keyword: str = ""  # pytest's -k
    marker: str = ""  # pytest's -m
    inventory: Path = VIRTUAL_LAB
    boards: tuple[str, ...] = ()  # of the inventory; empty: all
    output: Path | None = None  # the run folder; None: a new one in the state folder
    run_id: str = ""  # empty: a new one
    builds: tuple[str, ...] = ()  # hypervisor builds by name; empty: the default one
    matrix: Path | None = None  # a file of builds x command lines x dom0 modes, instead of builds
    select: Selection | None = None  # None: quick on a virtual lab, full on machines
    resume: Path | None = None  # a run folder to go on with: only cases without a result there are run
    xtf: Path | None = None  # a directory of built XTF tests: each instance is a case
    deadline: float | None = None  # seconds since the epoch; None: lab.night.nightly.RUN_LIMIT after the start
    checks: bool = False  # each board is checked from within before use, which takes a boot
    repeat: int = 1  # times that each case is run
    coverage: bool = False  # what each case executes is counted; the builds must be able to
    sound: tuple[str, ...] = ()  # build ids of builds that have proved themselves: boards are deployed from them, too
    boots_first: bool = False  # each board boots before its first case, even if the build runs on it already
    is_remembered: bool = True  # the run is imported into the history when it ends

    def describe(self, select: Selection) -> str:
        """The selection in a few words, for headings: ``full``, or ``full -k s3``."""
        named = [path.removeprefix(f"{paths.SHIPPED}/") for path in self.paths]
        words = [select, *named[:NAMED]]
        words += [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
        words += [f"-k {self.keyword}"] if self.keyword else []
        words += [f"-m {self.marker}"] if self.marker else []
        words += [f"--xtf {self.xtf}"] if self.xtf else []
        words += [f"--repeat {self.repeat}"] if self.repeat > 1 else []
        words += ["--coverage"] if self.coverage else []
        return " ".join(words)
