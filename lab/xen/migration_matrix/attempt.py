"""Try out one cell of the matrix on two hosts: start the guest, make the fault, wait for the ending."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass, field

from lab.base.errors import BenchError, LabError, ProductTimeout, WaitTimeout
from lab.on_board.poke import POKE
from lab.xen.dom0 import ARRIVED, AWAY, Dom0
from lab.xen.domain import Domain, DomainConfig
from lab.xen.guests import payload
from lab.xen.host import Host
from lab.xen.migration import Ending, Migration, start_migration
from lab.xen.migration_matrix.cells import Cell, ProtocolPhase
from lab.xen.migration_matrix.expected import Where, expected
from lab.xen.migration_matrix.faults import ASKED, LAST, RECEIVER, RESTORER, SAVER, SENDER, Effect
from lab.xen.migration_matrix.strikes import END_LIMIT, MEMORY_MIB, Ends, LinkDown, wait_gone

BEAT = 0.1  # seconds between two heartbeats of the guest
STEP_LIMIT = 180.0  # seconds in which even an emulated board gets to the last step
PATIENCE = 25.0  # seconds of standing still after which xl counts as hanging


@dataclass
class Outcome:
    """What was seen while the cell was tried; :mod:`lab.xen.migration_matrix.checks` looks at both hosts afterwards."""

    migration: Migration
    ending: Ending
    hung: bool = False
    unproved: str | None = None  # why the fault may not have fallen where the cell says
    seconds: float | None = None  # from the fault to the end
    said: dict[str, str] = field(default_factory=dict)  # title -> text, for the evidence


def config(cell: Cell, source: Host) -> DomainConfig:
    """The cell's guest."""
    work, beat_ms = cell.fault.work, round(BEAT * 1000)
    return payload(source, cell.guest, work, memory_mib=MEMORY_MIB, hb_ms=beat_ms, dirty_kib=cell.dirty_kib)


def attempt(cell: Cell, ends: Ends) -> Outcome:
    """Migrate the guest with the cell's fault. Whatever the fault broke of the boards is whole again afterwards.

    :raises BenchError: the boards are to blame.
    :raises ProductTimeout: ``xl migrate`` goes on even without its transport.
    """
    obstacle = cell.fault.obstacle
    with obstacle.standing(ends) if obstacle else contextlib.nullcontext() as not_in_the_way:
        outcome = _attempt(cell, ends)
        outcome.unproved = outcome.unproved or not_in_the_way
        cure(cell, ends)
    return outcome


def _attempt(cell: Cell, ends: Ends) -> Outcome:
    fault = cell.fault
    migration = start_migration(ends.guest, ends.destination, actions=cell.actions, patience=fault.patience)
    outcome = Outcome(migration, Ending.LOST)
    struck: float | None = None
    if cell.actions:
        kind = cell.actions[-1].partition("@")[0]
        try:
            migration.wait_acted(STEP_LIMIT, kind=kind)
        except WaitTimeout as error:
            outcome.unproved = str(error)
        struck = time.monotonic()
        if missed := migration.not_taken():
            outcome.unproved = outcome.unproved or "; ".join(f"the stream never reached {one}" for one in missed)
    if fault.is_by_hand and not outcome.unproved:
        if fault.cuts_the_source:
            outcome.said["what passed before the power was cut"] = migration.text()
        strike(cell, ends, outcome)
        struck = time.monotonic()
        if fault.cuts_the_source:
            if not outcome.unproved:
                return outcome
        else:
            migration.release()
    wanted = expected(cell)
    limit = PATIENCE if wanted.hangs else wanted.gives_up + fault.wait + END_LIMIT
    if not migration.ends_within(limit):
        outcome.hung = True
        migration.break_off()
        if not migration.ends_within(END_LIMIT):
            migration.kill()
            raise ProductTimeout(f"{cell.id}: xl migrate ends, its transport gone", END_LIMIT, migration.output())
    elif struck is not None:
        outcome.seconds = time.monotonic() - struck
    outcome.ending = migration.ending()
    outcome.unproved = outcome.unproved or _doubt(cell, migration, ends.guest)
    return outcome


def strike(cell: Cell, ends: Ends, outcome: Outcome) -> None:
    """Make a fault that is made by hand, while the stream is held."""
    fault = cell.fault
    if fault.strike:
        outcome.unproved = outcome.unproved or fault.strike.make(ends, fault.name, outcome.said)
    if fault.effect is Effect.DESTINATION_DIES:
        wait_gone(ends.destination)


def cure(cell: Cell, ends: Ends) -> None:
    """Make whole what the fault broke of the boards.

    :raises BenchError: a board does not come up again.
    """
    fault = cell.fault
    if isinstance(fault.strike, LinkDown) and fault.strike.is_for_good and expected(cell).where is Where.SOURCE:
        ends.guest.beats(5, 60)
    if fault.strike:
        fault.strike.undo(ends)
    if fault.reboots:
        board = ends.host(fault.reboots).board
        board.strategy.reboot(entry="under-test")
        board.reconnect()


def _doubt(cell: Cell, migration: Migration, guest: Domain) -> str | None:
    """Why the fault may not have taken effect; None when it did. The proxy's actions were looked at before."""
    fault, said, console = cell.fault, migration.output(), "\n".join(guest.console())
    if fault.passes and len(migration.passes()) < fault.passes:
        return f"the guest did not dirty its memory faster than the link: {len(migration.passes())} passes over memory"
    if fault.guest_sign and fault.guest_sign not in console:
        return f"the guest's console does not have: {fault.guest_sign}"
    was_asked = ASKED in console
    if cell.place == LAST and not was_asked:
        return "the guest was not asked to suspend before the fault came"
    is_early = cell.phase in (ProtocolPhase.SETUP, ProtocolPhase.LIVE) and expected(cell).where is Where.SOURCE
    if is_early and cell.actions and was_asked and not fault.is_noticed_late:
        return "the guest was asked to suspend before the fault came"
    if fault.signs and not any(sign in said for sign in fault.signs):
        return f"xl says none of: {', '.join(fault.signs)}"
    return None


# -- afterwards ---------------------------------------------------------------------------------------------------


def clean_up(guest: Domain, destination: Dom0) -> None:
    """Remove every copy and every process of the migration on both hosts, whatever happened."""
    names = (guest.name, guest.name + ARRIVED, guest.name + AWAY)
    stop = f"pkill -KILL -f '{'|'.join((SENDER, SAVER, RECEIVER, RESTORER))}'"
    destroy = "; ".join(f'echo "$all" | grep -q "^{name} " && xl destroy {name} 2>/dev/null' for name in names)
    for host in [guest.host] if guest.host.board is destination.board else [guest.host, destination]:
        with contextlib.suppress(LabError):
            host.run(f"{stop}; all=$(xl list); {destroy}; true", timeout=90)


def resume(host: Dom0, name: str) -> None:
    """Let a suspended domain go on, as an administrator would. xl has a command for that since 4.20.

    :raises BenchError: the domain cannot be resumed.
    """
    quoted = shlex.quote(name)
    done = host.run(f"xl resume {quoted} 2>/dev/null || {POKE} resume $(xl domid {quoted})", check=False, timeout=60)
    if done.status or "refused" in done.stdout:
        raise BenchError(
            f"{host.name}: {name} cannot be resumed: {' '.join((done.stderr or done.stdout).splitlines()[-1:])}"
        )


def resolve(guest: Domain, destination: Dom0) -> Where:
    """Do what xl leaves to the administrator, so that at most one copy goes on, under its own name; where it is then.

    The destination's copy may go on if it was unpaused. If not, it is destroyed, and then the source's is resumed.
    """
    source, name = guest.host, guest.name
    here, there = source.domains(), destination.domains()
    if name in there and not there[name].is_paused and not there[name].is_suspended:
        source.run(f"xl destroy {shlex.quote(name)}{AWAY} 2>/dev/null; true")
        if name in here:
            guest.destroy()
        return Where.DESTINATION
    destination.run(f"pkill -KILL -f '{RECEIVER}|{RESTORER}'; true")
    there = destination.domains()
    copies = [shlex.quote(one) for one in (name + ARRIVED, name) if one in there]
    destination.run("; ".join([*(f"xl destroy {one} 2>/dev/null" for one in copies), "true"]), timeout=90)
    copy = next((one for one in (name, name + AWAY) if one in here), None)
    if copy is None:
        return Where.NOWHERE
    if copy != name:
        source.xl("rename", copy, name)
    if here[copy].is_suspended:
        resume(source, name)
    return Where.SOURCE
