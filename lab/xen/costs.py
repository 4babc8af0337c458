"""What operations of the hypervisor cost a guest, as the payload's works ``perf`` and ``ping`` measure it.

The payload counts ticks of the TSC (firmware/guests/perf.c). On a board with ``counted-clock`` two ticks are one
instruction, so the figure is a count; on any other board it is a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lab.base.errors import ProductFailure
from lab.xen.dom0 import Dom0
from lab.xen.domain import DomainConfig, numbers
from lab.xen.payloads import Heartbeat, PayloadLine

PREFIX = "cost-"
TICKS_PER_INSTRUCTION = 2  # what ``counted-clock`` promises
AGREED = 8  # stretches of one length, to one in a thousand, that prove a count undisturbed


@dataclass(frozen=True, slots=True)
class Cost:
    """One operation: ticks of a stretch of ``rounds`` operations, and how many stretches agreed with it."""

    name: str
    ticks: int
    rounds: int
    agree: int
    stretches: int
    most: int  # ticks of the longest stretch

    @property
    def is_undisturbed(self) -> bool:
        """Whether this length came again and again, so that nothing else was in it."""
        return self.agree >= AGREED

    def __str__(self) -> str:
        return f"{self.name}: {self.agree} of {self.stretches} stretches agreed, the longest took {self.most} ticks"


def with_native_tsc(config: DomainConfig) -> DomainConfig:
    """The same guest, whose RDTSC reads the processor's TSC: Xen emulates it where it holds the TSC unreliable."""
    return replace(config, more={**config.more, "tsc_mode": '"native"'})


def read(lines: Iterable[PayloadLine | Heartbeat]) -> list[Cost]:
    """The costs that a payload has reported, in its order.

    :raises ProductFailure: an operation that was measured did not succeed.
    """
    found = []
    for line in lines:
        if not isinstance(line, PayloadLine) or not line.case.startswith(PREFIX):
            continue
        if line.outcome == "FAIL":
            raise ProductFailure(f"{line.case}: {line.detail}")
        told = numbers(line.detail)
        name = line.case.removeprefix(PREFIX).replace("-", "_")
        found.append(Cost(name, told["ticks"], told["rounds"], told["agree"], told["of"], told["most"]))
    return found


def profiles(host: Dom0) -> list[dict[int, int]]:
    """Of what the figures since the board's boot are made, the oldest first: instructions by the hypervisor's address.

    Empty where nothing tells, as on steel.
    """
    profiler = host.board.profiler
    return profiler.read() if profiler else []


def is_counted(host: Dom0) -> bool:
    """Whether figures of this board are counts of instructions."""
    return host.board.spec.is_counted


def figures(host: Dom0, kind: str, costs: Iterable[Cost]) -> Mapping[str, float]:
    """Figures by name, each an average over the operations of one stretch: ``pv64_hypercall_instructions``,
    or on a board whose clock does not count ``pv64_hypercall_ns``.
    """
    if is_counted(host):
        return {_counted(kind, one): one.ticks / TICKS_PER_INSTRUCTION / one.rounds for one in costs}
    mhz = float(host.info()["cpu_mhz"])  # Xen's own measurement of the TSC (xen/arch/x86/time.c)
    return {f"{kind}_{one.name}_ns": one.ticks * 1000 / mhz / one.rounds for one in costs}


def profiled(kind: str, costs: Mapping[Cost, Mapping[int, int]]) -> Mapping[str, Mapping[int, float]]:
    """For each figure, the hypervisor's instructions in one operation, by address."""
    return {
        _counted(kind, one): {at: count / one.rounds for at, count in blocks.items()} for one, blocks in costs.items()
    }


def _counted(kind: str, cost: Cost) -> str:
    return f"{kind}_{cost.name}_instructions"
