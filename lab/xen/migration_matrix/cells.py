"""The matrix of migrations that fail: which fault falls at which place in the protocol, for which kind of guest.

:mod:`lab.xen.migration_matrix.expected` says how each cell must end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lab.base.errors import UsageError, did_you_mean
from lab.on_board.stream import Step
from lab.xen.migration_matrix.faults import FAULTS, LAST, LATE, THROTTLE, Effect, Fault
from lab.xen.payloads import KERNELS

# The pass that begins at each of these places. A guest that dirties its memory faster than PACE makes xl stop after
# five passes (xg_sr_save.c, SPP_MAX_ITERATIONS), so that nearly all of its memory is sent in the sixth.
_PASSES = {LATE: "PAGE_DATA:pass2", LAST: "PAGE_DATA:pass6"}
LAST_DIRTY_KIB = 1024


class ProtocolPhase(enum.Enum):
    """Where the two ends stand when a step is about to pass."""

    HANDSHAKE = "the sender has sent nothing"
    SETUP = "headers; the guest runs"
    LIVE = "pre-copy; the guest runs"
    SUSPENDED = "the guest is suspended, the receiver has not all of it"
    COMPLETE = "the receiver has all and has said so; the sender has not heard"
    GO = "the sender has given it away; the receiver has not heard"
    STARTED = "the receiver has started it and has said so; the sender has not heard"


_PHASES = {
    ProtocolPhase.HANDSHAKE: (Step.BANNER,),
    ProtocolPhase.SETUP: (
        Step.XL_HEADER,
        Step.LIBXL_HEADER,
        Step.LIBXC_CONTEXT,
        Step.IMAGE_HEADER,
        Step.DOMAIN_HEADER,
        Step.X86_PV_INFO,
        Step.X86_CPUID_POLICY,
        Step.X86_MSR_POLICY,
        Step.STATIC_DATA_END,
        Step.X86_PV_P2M_FRAMES,
    ),
    ProtocolPhase.LIVE: (Step.PAGE_DATA,),
    ProtocolPhase.SUSPENDED: (
        Step.TSC_INFO,
        Step.HVM_CONTEXT,
        Step.HVM_PARAMS,
        Step.SHARED_INFO,
        Step.X86_PV_VCPU_BASIC,
        Step.X86_PV_VCPU_EXTENDED,
        Step.X86_PV_VCPU_MSRS,
        Step.LIBXC_END,
        Step.EMULATOR_XENSTORE_DATA,
        Step.EMULATOR_CONTEXT,
        Step.LIBXL_END,
    ),
    ProtocolPhase.COMPLETE: (Step.READY,),
    ProtocolPhase.GO: (Step.GO,),
    ProtocolPhase.STARTED: (Step.REPORT, Step.STATUS),
}
PHASES = {step: phase for phase, steps in _PHASES.items() for step in steps}
PV_ONLY = (
    Step.X86_PV_INFO,
    Step.X86_PV_P2M_FRAMES,
    Step.SHARED_INFO,
    Step.X86_PV_VCPU_BASIC,
    Step.X86_PV_VCPU_EXTENDED,
    Step.X86_PV_VCPU_MSRS,
)
HVM_ONLY = (Step.HVM_CONTEXT, Step.HVM_PARAMS)  # libxc treats a PVH guest as an HVM guest
EMULATED_ONLY = (Step.EMULATOR_XENSTORE_DATA, Step.EMULATOR_CONTEXT)  # they come from the device model
# The steps for which the protocol says how a migration ends without them, or with them twice: see expected.py.
DROPPABLE = (
    Step.BANNER,
    Step.STATIC_DATA_END,
    Step.HVM_CONTEXT,
    Step.X86_PV_VCPU_BASIC,
    Step.LIBXC_END,
    Step.LIBXL_END,
    Step.READY,
    Step.GO,
    Step.REPORT,
    Step.STATUS,
)
DOUBLABLE = (
    Step.BANNER,
    Step.STATIC_DATA_END,
    Step.PAGE_DATA,
    Step.TSC_INFO,
    Step.HVM_CONTEXT,
    Step.LIBXC_END,
    Step.LIBXL_END,
    Step.READY,
    Step.GO,
)
TEXTS = (Step.BANNER, Step.READY, Step.GO, Step.REPORT, Step.STATUS)
MAGIC = (Step.XL_HEADER, Step.LIBXL_HEADER, Step.IMAGE_HEADER, Step.DOMAIN_HEADER)
PLACES = (*(step.value for step in PHASES), LATE, LAST)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one place in the migration of one kind of guest, between two boards or from one board to itself."""

    guest: str
    fault: Fault
    place: str
    selection: str
    boards: int = 2

    @property
    def id(self) -> str:
        """``pvh64-cut-TSC_INFO``"""
        return f"{self.guest}-{self.fault.name}-{self.place}"

    @property
    def step(self) -> Step:
        return step_of(self.place)

    @property
    def phase(self) -> ProtocolPhase:
        return phase_of(self.place)

    @property
    def actions(self) -> tuple[str, ...]:
        """The proxy's actions."""
        where = _PASSES.get(self.place, self.place)
        own = (action.replace("@", f"@{where}", 1),) if (action := self.fault.action) else ()
        return (THROTTLE, *own) if self.place in _PASSES and own else own

    @property
    def dirty_kib(self) -> int:
        """KiB of its memory that the guest writes between two heartbeats."""
        return LAST_DIRTY_KIB if self.place == LAST else self.fault.dirty_kib

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities that the boards need: pre-copy needs log-dirty mode, which HAP and shadow paging have."""
        paging = ("shadow",) if _is_pv(self.guest) else ("hap",)
        emulated = ("qemu",) if self.guest.startswith("hvm") else ()
        link = "migration-pair" if self.boards == 2 else "self-ssh"
        return (link, *paging, *emulated, *(("pv32",) if self.guest == "pv32" else ()))

    @property
    def impossible(self) -> str | None:
        """Why there can be no such cell; None when there can."""
        return why_not(self.guest, self.fault, self.place)


# -- what cannot be ----------------------------------------------------------------------------------------------


def _is_pv(guest: str) -> bool:
    return guest in ("pv64", "pv32")


def step_of(place: str) -> Step:
    """The step of the stream that a place is at."""
    return Step.PAGE_DATA if place in _PASSES else Step(place)


def phase_of(place: str) -> ProtocolPhase:
    """The phase of the protocol that a place is in."""
    return ProtocolPhase.SUSPENDED if place == LAST else PHASES[step_of(place)]


def why_not(guest: str, fault: Fault, place: str) -> str | None:
    """Why this fault cannot fall at this place; None when it can."""
    step = step_of(place)
    return (
        _no_such_step(guest, step)
        or (f"takes effect at {', '.join(fault.places)} only" if fault.places and place not in fault.places else None)
        or _no_such_field(fault, step)
        or _no_ending(fault, step, phase_of(place), place)
    )


def _no_such_step(guest: str, step: Step) -> str | None:
    """Why the stream of this kind of guest does not have the step."""
    if not _is_pv(guest) and step in PV_ONLY:
        return f"the stream of a {guest[:3].upper()} guest has no {step.value} (xg_sr_save_x86_hvm.c)"
    if _is_pv(guest) and step in HVM_ONLY:
        return f"the stream of a PV guest has no {step.value} (xg_sr_save_x86_pv.c)"
    if not guest.startswith("hvm") and step in EMULATED_ONLY:
        return f"a guest without a device model has no {step.value} (libxl_stream_write.c)"
    if step is Step.EMULATOR_XENSTORE_DATA:
        return "QEMU (7.2) notes nothing in xenstore, and libxl_stream_write.c writes no empty record"
    return None


def _no_such_field(fault: Fault, step: Step) -> str | None:
    """Why the step does not have the field that the fault corrupts, or what a corrupt field means is open."""
    field = fault.field
    if field is None:
        return None
    if field == "magic" and step not in MAGIC:
        return f"{step.value} has no magic number"
    if field != "magic" and step in (*MAGIC, *TEXTS):
        return f"{step.value} is no record: it has no {field}"
    if field == "length" and step in (Step.LIBXC_CONTEXT, Step.LIBXL_END):
        return "libxl_stream_read.c has no limit to a record's length: it may wait, or run out of memory"
    return None


def _no_ending(fault: Fault, step: Step, phase: ProtocolPhase, place: str) -> str | None:
    """Why the protocol does not say how the migration ends, or why the fault finds nothing to break."""
    effect = fault.effect
    if effect is Effect.SPOILED and fault.field is None and step not in TEXTS:
        return f"the protocol does not say what a bit of {step.value} means"
    if effect is Effect.DROPPED and step not in DROPPABLE or effect is Effect.DOUBLED and step not in DOUBLABLE:
        return "the end depends on contents, not on the protocol"
    if fault.is_by_hand and step is Step.BANNER and effect is not Effect.SENDER_DIES:
        return "nobody can tell whether xl has written its header by the time the transport ends"
    if effect is Effect.SAVER_DIES and phase not in (ProtocolPhase.SETUP, ProtocolPhase.LIVE) and place != LAST:
        return "the helper has written the rest into the pipe, and has ended"
    if effect is Effect.SAVER_DIES and step in (Step.XL_HEADER, Step.LIBXL_HEADER, Step.LIBXC_CONTEXT):
        return "nobody can tell whether the helper has been started"
    if effect is Effect.RESTORER_DIES and phase is ProtocolPhase.SETUP:
        return "nobody can tell whether the helper has been started"
    is_restoring = phase in (ProtocolPhase.LIVE, ProtocolPhase.SUSPENDED)
    if effect is Effect.RESTORER_DIES and (not is_restoring or step is Step.LIBXL_END):
        return "the helper has ended with LIBXC_END"
    if effect is Effect.RECEIVER_STOPS and phase is ProtocolPhase.SETUP:
        return "nobody can tell whether the domain has been created"
    if effect is Effect.RECEIVER_STOPS and phase is ProtocolPhase.STARTED:
        return "the receiver has done all it had to"
    if effect is Effect.STORE_DIES and not is_restoring:
        return "the protocol does not say how much of xenstore libxl needs there"
    if effect is Effect.CONSOLE_DIES and phase is not ProtocolPhase.LIVE:
        return "the protocol does not speak with xenconsoled"
    return None


# -- the table ---------------------------------------------------------------------------------------------------

# selection | guests | fault | places. `2` asks for two boards, so that each phase is tried over a real link. A fault
# that needs no second board is otherwise tried on one, where any number of boards work side by side.
TABLE = """
quick    | pvh64 | bad_length      | PAGE_DATA
quick    | pvh64 | saver_kill      | PAGE_DATA
quick  2 | pvh64 | receiver_kill   | PAGE_DATA

full     | pvh64 | bad_bit         | GO
full     | pvh64 | cut             | PAGE_DATA_late HVM_CONTEXT GO
full     | pv64  | cut             | X86_PV_VCPU_BASIC

full   2 | pvh64 | cut             | PAGE_DATA READY REPORT
full     | pvh64 | cut             | PAGE_DATA_last
full     | pvh64 | stall           | TSC_INFO
full     | pvh64 | bad_type        | HVM_CONTEXT
full     | pvh64 | destination_off | PAGE_DATA GO
full     | pvh64 | panic           | PAGE_DATA
full     | pvh64 | link_5s         | PAGE_DATA
full     | pvh64 | sender_kill     | PAGE_DATA TSC_INFO
full     | pvh64 | name_taken      | GO
full     | pv64  | cut             | TSC_INFO
full     | pv32 pvh32 | cut        | LIBXC_END
full     | hvm64 | cut             | EMULATOR_CONTEXT

weekly   | pvh64 | link_60s        | TSC_INFO
weekly   | pvh64 | noack           | TSC_INFO
weekly   | pvh64 | cut             | BANNER XL_HEADER LIBXL_HEADER IMAGE_HEADER DOMAIN_HEADER STATIC_DATA_END
weekly   | pvh64 | cut             | TSC_INFO HVM_PARAMS LIBXC_END LIBXL_END STATUS
weekly   | pv64  | cut             | X86_PV_INFO X86_PV_P2M_FRAMES PAGE_DATA_late SHARED_INFO X86_PV_VCPU_EXTENDED
weekly 2 | pv64  | cut             | GO
weekly   | pv32  | cut             | PAGE_DATA X86_PV_VCPU_BASIC READY GO
weekly   | pvh32 | cut             | PAGE_DATA HVM_CONTEXT READY GO
weekly   | hvm64 | cut             | PAGE_DATA HVM_CONTEXT LIBXL_END READY GO
weekly   | hvm64 | stall           | EMULATOR_CONTEXT
weekly 2 | hvm64 | cut             | REPORT
weekly   | hvm64 | receiver_kill sender_kill | TSC_INFO
weekly   | hvm32 | cut             | EMULATOR_CONTEXT
weekly   | pvh64 | truncate        | PAGE_DATA HVM_CONTEXT GO REPORT
weekly   | pv64  | truncate        | X86_PV_VCPU_BASIC
weekly   | pvh64 | stall           | BANNER PAGE_DATA READY GO REPORT
weekly   | pv64  | stall           | PAGE_DATA TSC_INFO
weekly   | pvh64 | delay throttle  | PAGE_DATA
weekly   | pvh64 | bad_magic       | XL_HEADER LIBXL_HEADER IMAGE_HEADER DOMAIN_HEADER
weekly   | pvh64 | bad_type        | STATIC_DATA_END PAGE_DATA TSC_INFO LIBXC_END LIBXL_END
weekly   | pv64  | bad_type        | X86_PV_P2M_FRAMES X86_PV_VCPU_BASIC
weekly   | pvh64 | bad_length      | TSC_INFO HVM_CONTEXT
weekly   | pvh64 | bad_bit         | BANNER READY REPORT STATUS
weekly   | pvh64 | flip            | PAGE_DATA
weekly   | pvh64 | drop            | HVM_CONTEXT LIBXC_END LIBXL_END READY GO REPORT
weekly   | pv64  | drop            | X86_PV_VCPU_BASIC
weekly   | pvh64 | duplicate       | PAGE_DATA HVM_CONTEXT LIBXC_END READY
weekly   | pvh64 | destination_off | TSC_INFO REPORT
weekly   | pv64  | destination_off | PAGE_DATA
weekly   | pvh64 | source_off      | PAGE_DATA TSC_INFO GO REPORT
weekly   | pvh64 | link_off        | PAGE_DATA GO
weekly   | pv64  | link_60s        | PAGE_DATA
weekly   | pvh64 | receiver_kill   | TSC_INFO GO
weekly   | pvh64 | receiver_stop   | PAGE_DATA GO
weekly   | pvh64 | receiver_cont   | PAGE_DATA
weekly   | pvh64 | restorer_kill   | PAGE_DATA TSC_INFO
weekly   | pvh64 | saver_term saver_term_evtchn saver_kill | PAGE_DATA_last
weekly   | pv64  | cut saver_term_evtchn | PAGE_DATA_last
weekly   | pvh64 | ssh_source ssh_destination | PAGE_DATA GO
weekly   | pvh64 | sender_int      | PAGE_DATA TSC_INFO
weekly   | pvh64 | sender_kill     | BANNER READY GO
weekly   | pv64  | sender_kill     | TSC_INFO
weekly   | pvh64 | panic           | TSC_INFO
weekly   | pvh64 | xenstored_gone xenconsoled_gone | PAGE_DATA
weekly 2 | pvh64 | no_memory       | PAGE_DATA
weekly   | pv64  | no_memory       | PAGE_DATA
weekly   | pvh64 | name_incoming   | LIBXL_HEADER
weekly   | pvh64 | name_away       | READY
weekly   | pvh64 pv64 | dirtier    | PAGE_DATA
weekly   | pvh64 | nostop          | TSC_INFO
weekly   | pv64  | noack           | TSC_INFO
weekly   | pvh64 | guest_crash guest_destroy | PAGE_DATA
weekly   | pvh64 | second          | PAGE_DATA TSC_INFO

weekly   | pvh64 | cut             | X86_PV_VCPU_BASIC
weekly   | pv64  | cut             | HVM_CONTEXT
weekly   | pvh64 | saver_kill      | TSC_INFO
weekly   | pvh64 | restorer_kill   | READY
weekly   | pvh64 | bad_magic       | PAGE_DATA
weekly   | pvh64 | link_off        | BANNER
weekly   | pvh64 | drop            | PAGE_DATA
"""


def read(table: str) -> Iterator[Cell]:
    """The cells of a text in the form of :data:`TABLE`."""
    for line in table.splitlines():
        if line.strip():
            (selection, *pair), guests, faults, places = (part.split() for part in line.split("|"))
            for guest in guests:
                for fault in faults:
                    for place in places:
                        boards = 2 if pair or FAULTS[fault].needs_two else 1
                        yield Cell(guest, FAULTS[fault], place, selection, boards)


CELLS = {cell.id: cell for cell in read(TABLE)}


def find(cell_id: str) -> Cell:
    """The cell of this name, whether the table has it or not.

    :raises UsageError: there is no such guest, fault or place.
    """
    if cell_id in CELLS:
        return CELLS[cell_id]
    guest, _, rest = cell_id.partition("-")
    fault, _, place = rest.partition("-")
    for what, word, known in (("guest", guest, KERNELS), ("fault", fault, tuple(FAULTS)), ("step", place, PLACES)):
        if word not in known:
            wrong = f"no {what} {word!r}{did_you_mean(word, known)}; there are: {', '.join(known)}"
            raise UsageError(f"no cell {cell_id!r}: a cell is GUEST-FAULT-STEP, as pvh64-cut-GO; {wrong}")
    return Cell(guest, FAULTS[fault], place, "weekly", 2 if FAULTS[fault].needs_two else 1)


def possible(cells: Iterable[Cell] | None = None) -> list[Cell]:
    """The cells that can be tried; default: of :data:`CELLS`."""
    return [cell for cell in (CELLS.values() if cells is None else cells) if not cell.impossible]
