"""What a pytest process knows about a board that it holds, and what was found there after a case."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab import provision
from lab.grid.board import Board
from lab.results.record import Evidence
from lab.results.verdicts import HostLoss
from lab.xen import leftovers
from lab.xen.host import Host


@dataclass
class Seat:
    """One board in this process: the live handle, and what the rig knows about it."""

    board: Board
    host: Host
    proof: provision.Proof | None = None
    boot_id: str = ""  # of the dom0 that gave the proof
    capabilities: frozenset[str] = frozenset()  # probed without the options of a case
    suspect: str | None = None  # why the next case must not trust the board as it is
    deployed: bool = False  # this process has put the build under test onto the board
    options: str = ""  # Xen's options, beyond the run's own, that the last case on the board asked for
    refused: dict[str, str] = field(default_factory=dict)  # options -> why the build does not come up with them
    mute: set[str] = field(default_factory=set)  # options with which the build once booted without a word
    is_restored: bool = False  # it goes on from a saved state, and has not booted since
    is_renewed: bool = False  # it was restored after the last case, which was lost with a mutant on
    before: leftovers.Snapshot | None = None  # what was on the board before the case
    pace: float | None = None  # after the boot (lab.xen.pace)
    must_boot: bool = False  # before its first case, whatever runs on it


@dataclass(frozen=True, slots=True)
class After:
    """What was found on a board after a case.

    ``leaks``: what Xen still owes; ``loss``: the host was lost; ``slowing``: that Xen gets slower, in words.
    """

    evidence: tuple[Evidence, ...] = ()
    leaks: tuple[str, ...] = ()
    loss: HostLoss | None = None
    slowing: str = ""
