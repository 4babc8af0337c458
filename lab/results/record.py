"""What a run leaves: plain data, apart from how it was made and how it is shown."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lab.base import paths, shape
from lab.base.shape import Between

# Seconds since the epoch, from the year 1 to the year 9999: those that a date can be made of.
Time = Annotated[float, Between(-62135596800.0, 253402300799.0, "seconds since the epoch, of a year from 1 to 9999")]
Seconds = Annotated[float, Between(-1e9, 1e9)]  # a duration; negative if the clock was set back meanwhile
REPEATS = 10_000  # attempts at each case that can be asked for


class Verdict(enum.StrEnum):
    """KCIDB's words. Order of severity: FAIL > ERROR > MISS > PASS > SKIP."""

    FAIL = "FAIL"  # the product is wrong
    ERROR = "ERROR"  # the case's own code is wrong
    MISS = "MISS"  # the bench failed, or a precondition could not be established
    PASS = "PASS"
    SKIP = "SKIP"  # does not apply to this board; the reason names the capability

    @property
    def severity(self) -> int:
        """4 for FAIL down to 0 for SKIP."""
        return 4 - list(Verdict).index(self)


BUILD_CASE = "build::can_be_made"  # the case that fails where a build cannot be made, so that no other can run

# Rules of lab.results.verdicts by whose names more than the verdict is decided.
BENCH = "bench"  # a MISS that stays one
TRANSIENT = "transient"  # a MISS that is tried once more
HOST_LOST = "host-lost"  # a MISS that is tried once more, and FAIL if the host is lost again
STARVED = "starved"  # a MISS that is tried once more
NESTED_GUEST_CRASH = "nested-guest-crash"  # a MISS that is tried twice more, and stays one if all goes well then

PROVISION = "provision"  # the phase in which a board is brought to the build under test, whatever that takes

COVERAGE = "coverage"  # the phase in which counters are set to 0 or read

# Kinds of evidence that more than a reader looks at.
CRASH = "crash"  # a crash or hang of the hypervisor or dom0, taken apart
OUTCOME = "outcome"  # how the case itself ended, where a crash on a console outranks that
LACKING = "lacking"  # the capabilities that the inventory declares for the board, and a probe did not find


@dataclass(frozen=True, slots=True)
class Evidence:
    """One captured fact that stands beside a verdict.

    ``kind`` is one of ``console``, ``command``, ``bmc``, ``provision``, ``exception``, ``figure``, ``note``,
    :data:`CRASH`, :data:`OUTCOME`, :data:`LACKING`, and ``cell`` (JSON: a cell of the relocation matrix); ``time`` is
    seconds since the epoch (UTC); ``body`` is shown as it is, control characters and all, so whoever renders it must
    escape it.
    """

    kind: str
    title: str
    body: str
    time: Time
    board: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One of the named things that a case checks, each by itself, so that a known finding can excuse exactly one."""

    name: str
    is_good: bool
    said: str
    excuse: str | None = None  # the known finding that causes the failure

    @property
    def is_bad(self) -> bool:
        return not self.is_good and not self.excuse

    def line(self) -> str:
        """One line for the evidence."""
        word = "ok" if self.is_good else f"known: {self.excuse}" if self.excuse else "BAD"
        return f"{self.name}: {word}: {self.said}"


@dataclass(frozen=True, slots=True)
class GuestConsole:
    """What a guest had printed when its case kept that, or failed. It is evidence, and verdicts read it."""

    board: str
    guest: str
    kind: str  # pv, pvh or hvm
    system: str | None  # the Linux that it runs, a name of lab.xen.payloads.LINUXES; None: a small program
    lines: tuple[str, ...]

    def as_evidence(self, title: str, when: float) -> Evidence:
        """For the record of the case."""
        return Evidence("console", title, "\n".join(self.lines) or "nothing", when, self.board)


@dataclass(frozen=True, slots=True)
class Phase:
    """A named part of a case's time: boot, create, wait, provision, collect..."""

    name: str
    started: Time
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class TestResult:
    """One attempt at one case. ``case`` is unique in a run together with build and attempt."""

    __test__ = False  # not a pytest class

    case: str  # pytest node id, e.g. "testcases/sleep/test_s3.py::test_s3_rtc_wake"
    area: str  # "boot", "guest32", "superpages", "sleep", "passthrough", "relocation"
    verdict: Verdict
    rule: str  # the verdict rule that decided, e.g. "assertion", "console-crash"
    reason: str  # one line; empty only for PASS
    started: Time  # seconds since the epoch
    seconds: Seconds
    boards: tuple[str, ...] = ()
    build: str = ""
    attempt: Annotated[int, Between(0, 2**31 - 1)] = 1
    doc: str = ""  # the case's docstring: what it proves
    phases: tuple[Phase, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)  # name with unit suffix -> value
    consoles: Mapping[str, str] = field(default_factory=dict)  # board -> slice file, relative to run folder
    pictures: Mapping[str, str] = field(default_factory=dict)  # title -> SVG file, relative to run folder
    fingerprint: str = ""  # of the crash that decided: digits and a label; the same crash has the same one
    counters: Mapping[str, str] = field(default_factory=dict)  # board -> what it executed; relative to run folder
    not_read: Mapping[str, str] = field(default_factory=dict)  # board -> why its counters are not there
    proved: tuple[str, ...] = ()  # boards on which the build under test was proved to run, for this case
    restored: tuple[str, ...] = ()  # boards that went on from a saved state, and were not booted, for this case
    checks: tuple[Check, ...] = ()  # of a case that names what it checks

    @property
    def own_seconds(self) -> float:
        """Seconds without provisioning: another case would have had to do that, had it come first."""
        return max(0.0, self.seconds - self.provisioning_seconds)

    @property
    def provisioning_seconds(self) -> float:
        """Seconds in which boards were acquired and brought to the build under test."""
        return max(0.0, sum(one.seconds for one in self.phases if one.name == PROVISION))

    def to_json(self) -> str:
        """One line of JSON; :meth:`from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=True, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> TestResult:
        """Read what :meth:`to_json` wrote. Types and ranges of all fields are checked here, and nowhere else.

        :raises ValueError: not a record of this shape; names the field.
        """
        return shape.read(cls, line)


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What was asked of a run and on what it ran; ``run.json`` in the run folder."""

    run_id: str  # "20261123-083353-1a2b"
    started: Time
    selection: str  # quick, full, weekly, or the pytest expression used
    builds: tuple[str, ...]
    boards: Mapping[str, Mapping[str, str]]  # board -> facts worth showing (kind, build id, qemu version...)
    planned: tuple[str, ...]  # node ids that were to run
    required_areas: tuple[str, ...]
    finished: Time | None = None  # None: still running, or died
    exit_status: Annotated[int, Between(0, 255)] | None = None
    phases: tuple[Phase, ...] = ()  # of the whole run: setup, lab up, provision, cases, report
    notes: tuple[str, ...] = ()  # lab-level misses, e.g. "virt2: BMC does not answer"
    cut_short: str | None = None  # what ended it before all had run: "interrupted by SIGTERM"; None: nothing did
    import_fault: str | None = None  # why the history did not take this run; None: it did, or was not to
    repeat: Annotated[int, Between(1, REPEATS)] = 1  # attempts that were asked for at each case
    counts: bool = False  # what each case executes is kept: lab.coverage
    root: str | None = None  # folder that the node ids are relative to; None: the cases that xenlab ships

    @property
    def remarks(self) -> tuple[str, ...]:
        """What readers must know of the bench: the notes, what ended the run, and that the history lacks it."""
        said = [*self.notes]
        if self.cut_short is not None:
            said.append(f"{self.cut_short}: the rest did not run")
        if self.import_fault is not None:
            hint = "history: this run was not imported (xenlab history --import DIR does it later)"
            said.append(f"{hint}: {self.import_fault}")
        return tuple(said)

    def cases_root(self) -> Path:
        """The folder that the node ids are relative to."""
        return Path(self.root) if self.root else paths.SHIPPED

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunHeader:
        """Read what :meth:`to_json` wrote. Types and ranges of all fields are checked here, and nowhere else.

        :raises ValueError: not a run header; names the field.
        """
        return shape.read(cls, text)
