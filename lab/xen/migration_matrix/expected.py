"""How each cell of the matrix must end.

:func:`expected` derives the ending from the phase of the protocol and the effect of the fault. It cites the files of
Xen 4.17 that it rests on; 4.20 differs in nothing that matters here. It says what the protocol promises, and does not
record what was seen: if Xen does something else, that is a finding.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, replace

from lab.base.errors import UsageError
from lab.on_board.stream import Step
from lab.xen.migration import Ending
from lab.xen.migration_matrix.cells import CELLS, Cell, ProtocolPhase
from lab.xen.migration_matrix.faults import SILENCE, Effect

UNDETECTED = "libxc-migration-stream.pandoc: the format has no checksum"


class Where(enum.Enum):
    """Where the guest is after the migration has ended."""

    SOURCE = "it runs at the source"
    DESTINATION = "it runs at the destination"
    NEITHER = "it is suspended at the source; an administrator may resume that copy, and only that"
    NOWHERE = "it is lost"


@dataclass(frozen=True, slots=True)
class Expectation:
    """How a cell must end."""

    ending: Ending
    where: Where
    why: str  # the part of Xen that says so
    hangs: bool = False  # xl does not end by itself, because its reads have no time limit
    gives_up: float = 2.0  # seconds from the fault to the end; migration_child_report waits 2 s for the transport
    left_at_source: str | None = None  # why something of the guest may stay there; None: nothing may
    left_at_destination: str | None = None
    is_intact: bool = True  # the guest's memory is as it was

    def sentence(self) -> str:
        """The ending for people: how xl ends, where the guest is then, and what of Xen says so."""
        last = f"its last line is `{self.ending.value}`" if self.ending.value else "it sends nothing"
        when = "after it hung and its transport was ended" if self.hangs else f"within {self.gives_up:g} s of the fault"
        memory = "with its memory as it was" if self.is_intact else "and its memory may be damaged"
        parts = [f"xl migrate must end as {self.ending.name} ({last}) {when}.", f"Then {self.where.value}, {memory}."]
        if self.left_at_source:
            parts.append(f"A copy may stay at the source: {self.left_at_source}.")
        if self.left_at_destination:
            parts.append(f"A copy may stay at the destination: {self.left_at_destination}.")
        return " ".join([*parts, f"Source: {self.why}."])


_REFUSED = Expectation(Ending.REFUSED, Where.SOURCE, "xl_migrate.c migrate_do_preamble: exits when the banner is bad")
_RESUMED = Expectation(
    Ending.RESUMED_AT_SENDER,
    Where.SOURCE,
    "xl_migrate.c migrate_domain: failed_resume, until READY was read; libxl_save_callout.c helper_exited",
)
_UNDEFINED = Expectation(
    Ending.UNDEFINED,
    Where.NEITHER,
    "xl_migrate.c migrate_domain: failed_badly, from the writing of GO on; the receiver has not read it",
    left_at_source="xl_migrate.c failed_badly leaves NAME--migratedaway to the administrator",
)
_UNDEFINED_THERE = Expectation(
    Ending.UNDEFINED,
    Where.DESTINATION,
    "xl_migrate.c migrate_domain: failed_badly; migrate_receive has unpaused before it reports",
    left_at_source="xl_migrate.c failed_badly leaves NAME--migratedaway to the administrator",
)
_SUCCESS = Expectation(Ending.SUCCESS, Where.DESTINATION, "xl_migrate.c migrate_domain, migrate_receive")
_GIVEN_BACK = Expectation(
    Ending.GIVEN_BACK, Where.SOURCE, "xl_migrate.c migrate_receive: perhaps_destroy_notify_rc, and GO sent back"
)
_BY_PHASE = {
    ProtocolPhase.HANDSHAKE: _REFUSED,
    ProtocolPhase.SETUP: _RESUMED,
    ProtocolPhase.LIVE: _RESUMED,
    ProtocolPhase.SUSPENDED: _RESUMED,
    ProtocolPhase.COMPLETE: _RESUMED,
    ProtocolPhase.GO: _UNDEFINED,
    ProtocolPhase.STARTED: _UNDEFINED_THERE,
}
DROPPED = {
    Step.BANNER: (_REFUSED, True),
    Step.STATIC_DATA_END: (_RESUMED, False),  # xg_sr_restore.c handle_page_data: "No STATIC_DATA_END seen"
    Step.HVM_CONTEXT: (_RESUMED, False),  # xg_sr_restore_x86_hvm.c x86_hvm_stream_complete: nothing to set
    Step.X86_PV_VCPU_BASIC: (_RESUMED, False),  # xg_sr_restore_x86_pv.c: "Sender didn't send vcpu0's basic state"
    Step.LIBXC_END: (_RESUMED, True),  # the next 8 zero bytes, LIBXL_END, are taken for it: libxl waits for its own
    Step.LIBXL_END: (_RESUMED, True),  # libxl_stream_read.c waits for a record, xl_migrate.c for READY
    Step.READY: (_RESUMED, True),
    Step.GO: (_UNDEFINED, True),
    Step.REPORT: (_UNDEFINED_THERE, False),  # the receiver has no more to say and ends: the sender reads an EOF
    Step.STATUS: (_UNDEFINED_THERE, False),
}
DOUBLED = {
    Step.BANNER: _RESUMED,  # read where READY should be
    Step.STATIC_DATA_END: _RESUMED,  # xg_sr_restore.c: "Multiple STATIC_DATA_END records found"
    Step.PAGE_DATA: _SUCCESS,  # xg_sr_restore.c populate_pfns skips what is populated, contents are the same
    Step.TSC_INFO: _SUCCESS,  # xg_sr_common_x86.c handle_x86_tsc_info sets the same again
    Step.HVM_CONTEXT: _SUCCESS,  # xg_sr_restore_x86_hvm.c handle_hvm_context: the later one counts
    Step.LIBXC_END: _GIVEN_BACK,  # taken for LIBXL_END; the real one then stands where GO is read
    Step.LIBXL_END: _GIVEN_BACK,  # the second one stands where GO is read
    Step.READY: _UNDEFINED_THERE,  # read where REPORT should be
    Step.GO: _SUCCESS,  # nobody reads the second
}


def expected(cell: Cell) -> Expectation:
    """How a cell must end, by its phase and its fault's effect.

    :raises UsageError: there can be no such cell; says why.
    """
    if cell.impossible:
        raise UsageError(f"{cell.id}: {cell.impossible}")
    effect, phase, step = cell.fault.effect, cell.phase, cell.step
    if effect is Effect.DELAYED:
        return replace(_SUCCESS, why="libxl_utils.c libxl_read_exactly: no read has a time limit")
    if effect is Effect.CONSOLE_DIES:
        why = (
            "libxl_create.c console_xswait_callback: fails when xenconsoled has made no tty in LIBXL_INIT_TIMEOUT, 10 s"
        )
        return replace(_RESUMED, why=why, gives_up=10.0)
    if effect is Effect.DAMAGED:
        return replace(_SUCCESS, why=UNDETECTED, is_intact=False)
    if effect is Effect.SEVERED:
        return _heard(phase) if cell.fault.is_by_hand else _BY_PHASE[phase]
    if effect is Effect.SPOILED:
        return _GIVEN_BACK if step is Step.GO else _BY_PHASE[phase]
    if effect is Effect.DROPPED:
        dropped, hangs = DROPPED[step]
        return replace(dropped, hangs=hangs)
    if effect is Effect.DOUBLED:
        return DOUBLED[step]
    if effect in _WITHOUT_PHASE:
        return _WITHOUT_PHASE[effect]
    return _deaths(effect, phase)


def _heard(phase: ProtocolPhase) -> Expectation:
    """How it ends when a peer dies: what the peer wrote before still arrives, so the sender is one step further."""
    if phase is ProtocolPhase.COMPLETE:
        return _BY_PHASE[ProtocolPhase.GO]
    return _SUCCESS if phase is ProtocolPhase.STARTED else _BY_PHASE[phase]


def _deaths(effect: Effect, phase: ProtocolPhase) -> Expectation:
    if effect is Effect.SENDER_DIES:
        return _sender_dies(phase)
    if effect is Effect.SOURCE_DIES:
        is_started = phase is ProtocolPhase.STARTED
        why = "xl_migrate.c migrate_receive: without GO the copy is not unpaused"
        # Silence tells the receiver nothing: sshd has no time limit unless ClientAliveInterval is set.
        left = (
            None if is_started else "the receiver waits for a source that is gone: sshd_config ClientAliveInterval is 0"
        )
        there = Where.DESTINATION if is_started else Where.NOWHERE
        return Expectation(Ending.LOST, there, why, left_at_destination=left)
    if effect is Effect.RECEIVER_STOPS:
        stopped = _heard(phase)
        if phase in (
            ProtocolPhase.COMPLETE,
            ProtocolPhase.GO,
        ):  # GO lies in the receiver's pipe; the receiver reads it when it goes on
            stopped = _UNDEFINED_THERE
        return replace(stopped, hangs=True)
    severed = _heard(phase)
    if effect is Effect.SILENCED:
        left = "the receiver is not told: sshd_config ClientAliveInterval is 0"
        is_left = phase is not ProtocolPhase.STARTED
        return replace(severed, gives_up=SILENCE + 4, left_at_destination=left if is_left else None)
    if effect is Effect.DESTINATION_DIES:
        where = Where.NOWHERE if severed.where is Where.DESTINATION else severed.where
        return replace(severed, gives_up=SILENCE + 4, where=where)
    if effect is Effect.RECEIVER_DIES:
        left = "xl migrate-receive, which would clean up, is dead"
        is_left = phase in (ProtocolPhase.LIVE, ProtocolPhase.SUSPENDED, ProtocolPhase.COMPLETE, ProtocolPhase.GO)
        return replace(severed, left_at_destination=left if is_left else None)
    if effect is Effect.STORE_DIES:
        why = "libxl_create.c domcreate_rebuild_done needs xenstore; xl_migrate.c: failed_resume"
        return replace(
            _RESUMED, why=why, gives_up=60.0, left_at_destination="nothing can be cleaned up without xenstored"
        )
    return _RESUMED  # a helper died, and its parent reports the failure: libxl_save_callout.c helper_exited


def _sender_dies(phase: ProtocolPhase) -> Expectation:
    why = "xl_migrate.c: nobody is left to resume the guest, or to destroy it"
    if phase in (ProtocolPhase.HANDSHAKE, ProtocolPhase.SETUP, ProtocolPhase.LIVE):
        return Expectation(Ending.KILLED, Where.SOURCE, why)
    is_given = phase in (ProtocolPhase.GO, ProtocolPhase.STARTED)  # GO is in the pipe already, and arrives
    return Expectation(Ending.KILLED, Where.DESTINATION if is_given else Where.NEITHER, why, left_at_source=why)


_TIMEOUTS = "libxl_dom_suspend.c: 60 s to acknowledge, 60 s to suspend; libxl_stream_write.c libxl__xc_domain_save_done"
_NOT_SUSPENDED = Expectation(Ending.NOT_SUSPENDED, Where.SOURCE, _TIMEOUTS, gives_up=60.0)
_GONE = "xg_sr_save.c: the domain cannot be read any more; libxl_stream_write.c libxl__xc_domain_save_done"
_WITHOUT_PHASE = {
    Effect.NO_ROOM: Expectation(Ending.RESUMED_AT_SENDER, Where.SOURCE, "xg_sr_restore.c populate_pfns"),
    Effect.INCOMING_TAKEN: Expectation(
        Ending.RESUMED_AT_SENDER, Where.SOURCE, "libxl_create.c: the name is taken; xl_migrate.c: failed_resume"
    ),
    Effect.NAME_TAKEN: Expectation(
        Ending.GIVEN_BACK, Where.SOURCE, "xl_migrate.c migrate_receive: libxl_domain_rename fails after GO"
    ),
    Effect.AWAY_TAKEN: Expectation(
        Ending.RESUMED_AT_SENDER, Where.SOURCE, "xl_migrate.c migrate_domain: libxl_domain_rename fails before GO"
    ),
    Effect.NO_ACK: _NOT_SUSPENDED,
    Effect.NO_STOP: Expectation(Ending.NOT_SUSPENDED, Where.SOURCE, _TIMEOUTS, gives_up=120.0),
    Effect.GUEST_CRASHES: Expectation(Ending.NOT_SUSPENDED, Where.NOWHERE, _TIMEOUTS, gives_up=120.0),
    Effect.GUEST_GOES: Expectation(Ending.NOT_SUSPENDED, Where.NOWHERE, _GONE, gives_up=60.0),
    Effect.SECOND: _SUCCESS,
}


def is_followed(cell: Cell) -> bool:
    """Whether the guest migrates there and back afterwards: in the first cell of each guest and phase."""
    return cell.id in _followed()


@functools.cache
def _followed() -> frozenset[str]:
    first: dict[tuple[str, ProtocolPhase], str] = {}
    for cell in CELLS.values():
        is_lost = cell.impossible or expected(cell).where is Where.NOWHERE
        if not is_lost and not cell.fault.reboots and cell.fault.effect not in (Effect.NO_ACK, Effect.NO_STOP):
            first.setdefault((cell.guest, cell.phase), cell.id)
    return frozenset(first.values())
