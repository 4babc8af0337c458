"""What is known of a board in the moment in which its state is saved, and the proof that it is so again later.

dom0 keeps these facts in memory, so that they are part of the state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from dataclasses import asdict, dataclass

from lab.base import shape
from lab.base.errors import BenchError, BoardError
from lab.base.release import release
from lab.boards import health
from lab.grid.board import Board
from lab.inventory import BoardSpec
from lab.provision import Wanted
from lab.xen import leftovers

log = logging.getLogger(__name__)

FILE = "/run/xenlab/saved.json"
CLOCK_TOLERANCE = 1.0  # seconds; after a boot dom0 has its clock from a chip that counts whole ones


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared; that the build runs is proved as after a boot."""

    boot_id: str
    capabilities: frozenset[str]
    before: leftovers.Snapshot
    pace: float | None  # of this boot (:mod:`lab.xen.pace`); it is not what may differ, and is not measured again

    def write(self, board: Board) -> None:
        """Have dom0 keep them. :raises BenchError: it does not answer."""
        text = json.dumps(asdict(self), default=sorted)
        board.run(f"printf %s {shlex.quote(text)} > {FILE}")


def boot_id(board: Board) -> str:
    """The id that Linux in dom0 gives to this boot alone. :raises BenchError: dom0 does not answer."""
    return str(board.run("cat /proc/sys/kernel/random/boot_id", timeout=20).stdout).strip()


def keep(board: Board, key: str, facts: Facts) -> None:
    """Save the board, unless it has this state already. A board that does not save goes on all the same.

    :raises BenchError: dom0 does not answer.
    """
    try:
        if board.states is None or board.states.has(key):
            return
        facts.write(board)
        board.states.save(key)
    except BenchError as error:  # the next run boots the board, as this one has
        log.warning("%s: its state is not saved: %s", board.name, error)
    board.strategy.set_clock()  # it stood still


def key(wanted: Wanted, board: BoardSpec) -> str:
    """What a state of this board with all of this is called. Another xenlab would take other facts."""
    return hashlib.sha256(f"{release()} {wanted.digest(board)}".encode()).hexdigest()[:24]


def read(board: Board) -> Facts:
    """What a restored board was. :raises BenchError: it does not say."""
    try:
        return shape.read(Facts, str(board.run(f"cat {FILE}").stdout))
    except ValueError as error:
        raise BoardError(board.name, f"what the state says of itself cannot be read: {error}") from error


def check(board: Board, found: Facts, was: Facts) -> str:
    """Hold a restored board against what it was, and look at it as after a boot. In words, what was looked at.

    :raises BenchError: it is not as it was; says what differs.
    """
    wrong = []
    if found.boot_id != was.boot_id:
        wrong.append("it runs another boot")
    if found.capabilities != was.capabilities:
        wrong.append(f"its capabilities differ by {', '.join(sorted(found.capabilities ^ was.capabilities))}")
    wrong += leftovers.left_behind(found.before, was.before)
    wrong += leftovers.not_given_back(found.before, was.before)
    if not board.power.is_powered():
        wrong.append("its BMC says that its power is off")
    if not (console := health.echo(board)).is_good:
        wrong.append(str(console))
    there = str(board.run("cat /sys/class/net/*/address").stdout).split()
    wrong += [f"dom0 has no port {role}" for role, nic in board.spec.nics.items() if nic.mac not in there]
    if abs(late := board.strategy.clock_offset()) > CLOCK_TOLERANCE:
        wrong.append(f"dom0's clock is {late:+.1f} s off")
    if wrong:
        raise BoardError(board.name, "; ".join(wrong))
    return f"boot {was.boot_id}, {len(was.capabilities)} capabilities, {was.before.free_mib} MiB free, as saved"
