"""One cell of the matrix tried out on two boards: the guest started, the fault made, the ending waited for."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lab.base.errors import BenchError, LabError, ProductTimeout, WaitTimeout
from lab.base.wait import wait_until
from lab.on_board.poke import POKE
from lab.xen.domain import Domain, DomainConfig
from lab.xen.guests import payload
from lab.xen.host import ARRIVED, Host
from lab.xen.migration import Ending, Migration, start_migration
from lab.xen.migration_matrix.cells import LAST, Cell, Phase
from lab.xen.migration_matrix.expected import Where, expected
from lab.xen.migration_matrix.faults import RECEIVER, RESTORER, SAVER, SENDER, Effect

MEMORY_MIB = 16  # of the guest
BEAT = 0.1  # seconds between two heartbeats
STEP_LIMIT = 180.0  # seconds in which even an emulated board comes to the last step
END_LIMIT = 180.0  # seconds from the fault to the end, beyond what the cell says
PATIENCE = 25.0  # seconds of standing still after which xl counts as hanging


@dataclass
class Outcome:
    """What was seen of a trial while it went on; :mod:`lab.xen.migration_matrix.checks` looks at what is left."""

    migration: Migration
    ending: Ending
    hung: bool = False
    unproved: str = ""  # why the fault may not have fallen where the cell says
    seconds: float | None = None  # from the fault to the end
    said: dict[str, str] = field(default_factory=dict)  # title -> text, for the evidence


def config(cell: Cell, source: Host) -> DomainConfig:
    """The cell's guest."""
    fault = cell.fault
    return payload(
        source, cell.guest, fault.work, memory_mib=MEMORY_MIB, hb_ms=round(BEAT * 1000), dirty_kib=cell.dirty_kib
    )


def attempt(cell: Cell, guest: Domain, destination: Host) -> Outcome:
    """Relocate the guest with the cell's fault. All that the fault has broken of the boards is whole again afterwards.

    :raises BenchError: the boards are to blame.
    """
    with _prepared(cell, guest, destination) as unproved:
        outcome = _attempt(cell, guest, destination)
        outcome.unproved = outcome.unproved or unproved
        _cure(cell, guest, destination)
    return outcome


def _attempt(cell: Cell, guest: Domain, destination: Host) -> Outcome:
    fault = cell.fault
    migration = start_migration(guest, destination, actions=cell.actions, patience=fault.patience)
    outcome = Outcome(migration, Ending.LOST)
    struck: float | None = None
    if cell.actions:
        kind = cell.actions[-1].partition("@")[0]
        try:
            migration.wait_acted(STEP_LIMIT, kind=kind)
        except WaitTimeout as error:
            outcome.unproved = str(error)
        struck = time.monotonic()
        outcome.unproved = outcome.unproved or ", ".join(f"{one} was not come to" for one in migration.not_taken())
    if fault.is_by_hand and not outcome.unproved:
        if fault.power == "source":
            outcome.said["what passed before the power was cut"] = migration.text()
        _strike(cell, guest, destination, outcome)
        struck = time.monotonic()
        if fault.power != "source":
            migration.release()
    if fault.power == "source" and not outcome.unproved:
        return outcome
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
    outcome.unproved = outcome.unproved or _proof(cell, migration, guest)
    return outcome


def _strike(cell: Cell, guest: Domain, destination: Host, outcome: Outcome) -> None:
    """Make the fault, while the stream is held."""
    fault, source = cell.fault, guest.host
    if fault.effect is Effect.SECOND:
        second = start_migration(guest, destination)
        if not second.ends_within(END_LIMIT):
            second.kill()
            outcome.unproved = "the second migration did not end"
        outcome.said["the second xl migrate"] = second.output()
    elif fault.power:
        board = (source if fault.power == "source" else destination).board
        board.power.power_off()
    elif fault.link_down and (port := _switch_port(source, destination)):
        port.cut(fault.link_down)
        outcome.said[f"{fault.name} at the switch"] = f"{port.name}: down, for {fault.link_down} s"
    else:
        host = source if fault.side == "source" else destination
        done = host.run(script(cell, guest.name, host), check=False)
        outcome.said[f"{fault.name} on {host.name}"] = f"status {done.status}\n{done.stdout}{done.stderr}"
        if done.status:
            outcome.unproved = f"the command of {fault.name} ended with status {done.status}: {done.stderr.strip()}"
    if fault.effect is Effect.DESTINATION_DIES:
        wait_until(lambda: not destination.board.is_reachable(2.0), 30, f"{destination.name} is gone")


def _switch_port(*ends: Host) -> Any:
    """Where the link between the two is cut outside of both; None: only a dom0 can take its own port down."""
    return next((port for end in reversed(ends) if (port := end.board.switch_port)), None)


def script(cell: Cell, name: str, host: Host) -> str:
    """The fault's command as it is run on its side."""
    return f"{_variables(name, host)}{cell.fault.command}"


def _variables(name: str, host: Host) -> str:
    nic = host.board.spec.nics.get("lab")
    mac = nic.mac.lower() if nic else ""
    return f"GUEST={shlex.quote(name)}; MAC={mac}; "


def _cure(cell: Cell, guest: Domain, destination: Host) -> None:
    fault, source = cell.fault, guest.host
    if fault.name == "link_off" and expected(cell).where is Where.SOURCE:
        guest.beats(5, 60)  # for good: until the source's guest was seen to live without it
    if fault.link_down and (port := _switch_port(source, destination)):
        port.restore()
    elif fault.cure:
        host = source if fault.side == "source" else destination
        host.run(_variables(guest.name, host) + fault.cure, check=False)
    if fault.reboots:
        board = (source if fault.reboots == "source" else destination).board
        board.strategy.reboot(entry="under-test")
        board.reconnect()


def _proof(cell: Cell, migration: Migration, guest: Domain) -> str:
    """Why it is not proved that the fault took effect; empty when it is. Actions of the proxy were looked at before."""
    effect, said, wanted = cell.fault.effect, migration.output(), expected(cell)
    if cell.fault.name == "dirtier" and len(migration.passes()) < 6:
        return f"the guest did not dirty faster than the link: {len(migration.passes())} passes over memory"
    console = "\n".join(guest.console())
    was_asked = "XL suspend INFO requested" in console
    if effect is Effect.NO_ACK and "XL suspend INFO ignored" not in console:
        return "the guest was not asked to suspend"
    if (effect is Effect.NO_STOP or cell.place == LAST) and not was_asked:
        return "the guest was not asked to suspend before the fault came"
    is_live = cell.phase in (Phase.SETUP, Phase.LIVE) and cell.actions and wanted.where is Where.SOURCE
    # These the receiver needs when it has all memory: until then the stream goes on.
    if is_live and was_asked and effect not in (Effect.STORE_DIES, Effect.CONSOLE_DIES):
        return "the guest was asked to suspend before the fault came"
    signs = {
        Effect.NO_ROOM: ("Failed to populate", "failed to free memory", "Could not allocate", "Cannot allocate memory"),
        Effect.INCOMING_TAKEN: (ARRIVED,),
        Effect.NAME_TAKEN: ("Got permission",),
        Effect.AWAY_TAKEN: ("Target has acknowledged transfer",),
    }
    if effect in signs and not any(sign in said for sign in signs[effect]):
        return f"xl says none of: {', '.join(signs[effect])}"
    return ""


# -- what must be there before ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _prepared(cell: Cell, guest: Domain, destination: Host) -> Iterator[str]:
    """What stands in the guest's way, and is gone afterwards. Yields why it may not."""
    effect = cell.fault.effect
    places = {
        Effect.INCOMING_TAKEN: (destination, f"{guest.name}{ARRIVED}"),
        Effect.NAME_TAKEN: (destination, guest.name),
        Effect.AWAY_TAKEN: (guest.host, f"{guest.name}--migratedaway"),
    }
    if effect is Effect.NO_ROOM:
        room = destination.free_memory_mib()
        hog = payload(destination, "pvh64", "idle", memory_mib=max(room - MEMORY_MIB - 4, 8))
        with destination.domain(hog, paused=True):
            left = destination.free_memory_mib()
            yield "" if left < MEMORY_MIB else f"{left} MiB are free at the destination still"
    elif effect in places:
        host, name = places[effect]
        with host.domain(replace(payload(host, "pvh64", "idle", memory_mib=8), name=name), paused=True):
            yield ""
    else:
        yield ""


# -- afterwards ---------------------------------------------------------------------------------------------------


def clean_up(guest: Domain, destination: Host) -> None:
    """Have nothing of the guest left on either side, whatever happened."""
    names = (guest.name, f"{guest.name}{ARRIVED}", f"{guest.name}--migratedaway")
    stop = f"pkill -KILL -f '{'|'.join((SENDER, SAVER, RECEIVER, RESTORER))}'"
    destroy = "; ".join(f'echo "$all" | grep -q "^{name} " && xl destroy {name} 2>/dev/null' for name in names)
    for host in [guest.host] if guest.host.board is destination.board else [guest.host, destination]:
        with contextlib.suppress(LabError):
            host.run(f"{stop}; all=$(xl list); {destroy}; true", timeout=90)


def resume(host: Host, name: str) -> None:
    """Let a suspended domain go on, as an administrator would. xl has a command for it since 4.20.

    :raises BenchError: it cannot be resumed.
    """
    quoted = shlex.quote(name)
    done: Any = host.run(
        f"xl resume {quoted} 2>/dev/null || {POKE} resume $(xl domid {quoted})", check=False, timeout=60
    )
    if done.status or "refused" in done.stdout:
        raise BenchError(
            f"{host.name}: {name} cannot be resumed: {' '.join((done.stderr or done.stdout).splitlines()[-1:])}"
        )


def resolve(guest: Domain, destination: Host) -> Where:
    """Do what xl leaves to the administrator: at most one copy goes on, under its own name; where it is then.

    The destination's copy may go on if it was unpaused; else it goes first, and then the source's is resumed.
    """
    source, name = guest.host, guest.name
    here, there = source.domains(), destination.domains()
    if name in there and not there[name].is_paused and not there[name].is_suspended:
        source.run(f"xl destroy {shlex.quote(name)}--migratedaway 2>/dev/null; true")
        if name in here:
            guest.destroy()
        return Where.DESTINATION
    destination.run(f"pkill -KILL -f '{RECEIVER}|{RESTORER}'; true")
    there = destination.domains()
    copies = [shlex.quote(one) for one in (f"{name}{ARRIVED}", name) if one in there]
    destination.run("; ".join([*(f"xl destroy {one} 2>/dev/null" for one in copies), "true"]), timeout=90)
    copy = next((one for one in (name, f"{name}--migratedaway") if one in here), None)
    if copy is None:
        return Where.NOWHERE
    if copy != name:
        source.xl("rename", copy, name)
    if here[copy].is_suspended:
        resume(source, name)
    return Where.SOURCE
