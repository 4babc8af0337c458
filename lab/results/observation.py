"""What is known of a case that ended, and what a rule of :mod:`lab.results.verdicts` makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.base.errors import HypervisorCrash, LabError, NotProved
from lab.console.xen_dump import has_interrupts_off
from lab.results.record import BENCH, TRANSIENT, Evidence, Verdict


@dataclass(frozen=True, slots=True)
class HostLoss:
    """A host that was lost although the bench works: it had been up, its power is on, the recorder has its console."""

    board: str
    how: str  # "fell silent: no answer on console and network"; after "the host"
    after_nmi: tuple[str, ...] = ()  # what its console showed after an NMI from the BMC
    comes_back: bool = False  # a power cycle brought it into the known-good build, which answers on console and network

    @property
    def is_hang(self) -> bool:
        """Whether the NMI found the hypervisor itself with interrupts off: a live one, however slow, has them on."""
        return has_interrupts_off(self.after_nmi)


@dataclass(frozen=True, slots=True)
class StealTime:
    """What a board's processors got of the machine that runs them. Seconds of processor time, which only ever grow."""

    ran: float
    stolen: float  # they were ready to run, and the machine did other work than the board's

    def since(self, before: StealTime) -> StealTime:
        """What came since an earlier look."""
        return StealTime(self.ran - before.ran, self.stolen - before.stolen)

    @property
    def share(self) -> float:
        """The part that the board got of what it could have had: 1.0 where nothing was stolen."""
        wanted = self.ran + self.stolen
        return self.ran / wanted if wanted > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a case that ended."""

    outcome: BaseException | None = None  # what it raised; None: it came to its end, or was skipped
    skipped: str | None = None  # pytest.skip's reason
    crashes: tuple[HypervisorCrash, ...] = ()  # crashes on consoles that the case did not declare
    expected_crashes: frozenset[str] = frozenset()  # signatures the case declared
    seen_crashes: frozenset[str] = frozenset()  # all crash signatures on the consoles
    losses: tuple[HostLoss, ...] = ()
    lost_before: bool = False  # a host was lost at an earlier attempt, too
    guest_crash: str | None = None  # on nested emulation: a Linux guest that died without any sign from Xen
    crashed_before: bool = False  # that was seen at an earlier attempt, too
    lease_over: str | None = None  # why the lease on its boards was over before it ended
    leaks: tuple[str, ...] = ()  # "virt1: 64 MiB not given back": what Xen owes after all guests are gone
    slowings: tuple[str, ...] = ()  # "virt1: Xen takes 3.1 times as long to answer dom0 as after a boot"
    console_gaps: tuple[str, ...] = ()  # "virt1: 3.2 s": times when a crash could not have been seen
    steal: Mapping[str, StealTime] = field(default_factory=dict)  # of boards that know it, while the case ran
    symbols: Path | None = None  # the hypervisor's ELF with symbols
    at: float = field(default_factory=time.time)  # when; seconds since the epoch


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, the name of the rule that decided, and why, on one line."""

    verdict: Verdict
    rule: str
    reason: str
    evidence: tuple[Evidence, ...] = ()
    fingerprint: str = ""  # of the crash that decided
    outcome: BaseException | None = None  # the one exception that was judged, also out of a group

    @property
    def failed_boards(self) -> frozenset[str] | None:
        """The boards that the bench failed with; None where it did not fail, empty where no single board is named."""
        if self.rule not in (BENCH, TRANSIENT) or isinstance(self.outcome, NotProved):
            return None
        named = self.outcome.board if isinstance(self.outcome, LabError) else None
        return frozenset({named} if named else ())


@dataclass(frozen=True, slots=True)
class Rule:
    """``why`` gives the reason when the rule applies, else None; ``when`` says the same to readers."""

    name: str
    verdict: Verdict
    when: str
    why: Callable[[Observation], str | None]
    evidence: Callable[[Observation], tuple[Evidence, ...]] = lambda observation: ()
    fingerprint: Callable[[Observation], str] = lambda observation: ""
