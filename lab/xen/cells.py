"""The matrix of failed relocations: what is broken where in the protocol, and what must come of it.

The expected ending is derived by :func:`expected` from the phase of the protocol and the effect of the fault. It cites
what of Xen it rests on: files of the Xen tree as of 4.17, of which 4.20 differs in nothing that matters here. It says
what the protocol promises, and is not a record of what was seen: where Xen does something else, that is a finding.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lab.errors import UsageError
from lab.files import did_you_mean
from lab.xen.faults import FAULTS, SILENCE, THROTTLE, Effect, Fault
from lab.xen.migration import Ending
from lab.xen.proxy import FIELDS
from lab.xen.stream import Step

GUESTS = ("pv64", "pv32", "pvh64", "pvh32")
LATE = "PAGE_DATA_late"  # the first record of the second pass over memory
UNDETECTED = "libxc-migration-stream.pandoc: the format has no checksum"


class Phase(enum.Enum):
    """Where the two ends stand when a step is about to pass."""

    HANDSHAKE = "the sender has sent nothing"
    SETUP = "headers; the guest runs"
    LIVE = "pre-copy; the guest runs"
    SUSPENDED = "the guest is suspended, the receiver has not all of it"
    COMPLETE = "the receiver has all and has said so; the sender has not heard"
    GO = "the sender has given it away; the receiver has not heard"
    STARTED = "the receiver has started it and has said so; the sender has not heard"


_PHASES = {
    Phase.HANDSHAKE: (Step.BANNER,),
    Phase.SETUP: (
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
    Phase.LIVE: (Step.PAGE_DATA,),
    Phase.SUSPENDED: (
        Step.TSC_INFO,
        Step.HVM_CONTEXT,
        Step.HVM_PARAMS,
        Step.SHARED_INFO,
        Step.X86_PV_VCPU_BASIC,
        Step.X86_PV_VCPU_EXTENDED,
        Step.X86_PV_VCPU_MSRS,
        Step.LIBXC_END,
        Step.LIBXL_END,
    ),
    Phase.COMPLETE: (Step.READY,),
    Phase.GO: (Step.GO,),
    Phase.STARTED: (Step.REPORT, Step.STATUS),
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
HVM_ONLY = (Step.HVM_CONTEXT, Step.HVM_PARAMS)
TEXTS = (Step.BANNER, Step.READY, Step.GO, Step.REPORT, Step.STATUS)
MAGIC = (Step.XL_HEADER, Step.LIBXL_HEADER, Step.IMAGE_HEADER, Step.DOMAIN_HEADER)
PLACES = (*(step.value for step in PHASES), LATE)


class Where(enum.Enum):
    """Where the guest is after the ending."""

    SOURCE = "it runs at the source"
    DESTINATION = "it runs at the destination"
    NEITHER = "it is suspended at the source; an administrator may resume that copy, and only that"
    NOWHERE = "it is lost"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must come of a cell."""

    ending: Ending
    where: Where
    why: str  # what of Xen says so
    hangs: bool = False  # xl does not end by itself: no read of it has a time limit
    gives_up: float = 2.0  # seconds from the fault to the end; migration_child_report waits 2 s for the transport
    left_at_source: str = ""  # why a copy stays there
    left_at_destination: str = ""
    is_intact: bool = True  # the guest's memory


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one place in the relocation of one kind of guest, between two boards or from one to itself."""

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
        return Step.PAGE_DATA if self.place == LATE else Step(self.place)

    @property
    def phase(self) -> Phase:
        return PHASES[self.step]

    @property
    def actions(self) -> tuple[str, ...]:
        """The proxy's actions."""
        where = "PAGE_DATA:pass2" if self.place == LATE else self.place
        own = (self.fault.action.replace("@", f"@{where}", 1),) if self.fault.action else ()
        return (THROTTLE, *own) if self.place == LATE and own else own

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities of the boards: live migration needs log-dirty mode, of HAP or of shadow paging."""
        paging = ("hap",) if self.guest.startswith("pvh") else ("shadow",)
        link = "migration-pair" if self.boards == 2 else "self-ssh"
        return (link, *paging, *(("pv32",) if self.guest == "pv32" else ()))

    @property
    def needs_power(self) -> bool:
        return bool(self.fault.power)

    @property
    def is_followed(self) -> bool:
        """Whether the guest is relocated there and back afterwards: in the first cell of each guest and phase."""
        return self.id in _FOLLOWED

    @property
    def impossible(self) -> str:
        """Why there can be no such cell; empty when there can."""
        return why_not(self.guest, self.fault, self.place)


# -- what cannot be ----------------------------------------------------------------------------------------------


def why_not(guest: str, fault: Fault, place: str) -> str:
    """Why this fault cannot fall there; empty when it can."""
    step = Step.PAGE_DATA if place == LATE else Step(place)
    phase, effect = PHASES[step], fault.effect
    is_pvh = guest.startswith("pvh")
    if is_pvh and step in PV_ONLY:
        return f"the stream of a PVH guest has no {step.value} (xg_sr_save_x86_hvm.c)"
    if not is_pvh and step in HVM_ONLY:
        return f"the stream of a PV guest has no {step.value} (xg_sr_save_x86_pv.c)"
    if not fault.action and fault.name not in _PLACED:
        raise AssertionError(f"{fault.name} has no place")
    if (only := _PLACED.get(fault.name)) and place not in only:
        return f"takes effect at {', '.join(only)} only"
    field = fault.action.partition("@=")[2] if fault.action.startswith("corrupt@") else ""
    if field in FIELDS:
        if field == "magic" and step not in MAGIC:
            return f"{step.value} has no magic number"
        if field != "magic" and step in (*MAGIC, *TEXTS):
            return f"{step.value} is no record: it has no {field}"
        if field == "length" and step in (Step.LIBXC_CONTEXT, Step.LIBXL_END):
            return "libxl_stream_read.c has no limit to a record's length: it may wait, or run out of memory"
    if effect is Effect.SPOILED and not field and step not in TEXTS:
        return f"what a bit of {step.value} means is not the protocol's to say"
    if effect in (Effect.DROPPED, Effect.DOUBLED) and step not in (_DROPPED if effect is Effect.DROPPED else _DOUBLED):
        return "what comes of it depends on contents, not on the protocol"
    if fault.is_by_hand and step is Step.BANNER and effect is not Effect.SENDER_DIES:
        return "whether xl has written its header by the time the transport ends cannot be told"
    if effect is Effect.SAVER_DIES and phase not in (Phase.SETUP, Phase.LIVE):
        return "the helper has written what is left into the pipe, and has ended"
    if effect is Effect.SAVER_DIES and step in (Step.XL_HEADER, Step.LIBXL_HEADER, Step.LIBXC_CONTEXT):
        return "whether the helper has been started cannot be told"
    if effect is Effect.RESTORER_DIES and phase is Phase.SETUP:
        return "whether the helper has been started cannot be told"
    if effect is Effect.RESTORER_DIES and (phase not in (Phase.LIVE, Phase.SUSPENDED) or step is Step.LIBXL_END):
        return "the helper has ended with LIBXC_END"
    if effect is Effect.RECEIVER_STOPS and phase is Phase.SETUP:
        return "whether the domain has been created cannot be told"
    if effect is Effect.RECEIVER_STOPS and phase is Phase.STARTED:
        return "the receiver has done all it had to"
    if effect is Effect.STORE_DIES and phase not in (Phase.LIVE, Phase.SUSPENDED):
        return "how much of it libxl needs there is not the protocol's to say"
    if effect is Effect.CONSOLE_DIES and phase is not Phase.LIVE:
        return "the protocol does not speak with xenconsoled"
    return ""


_SUSPEND = (Step.TSC_INFO.value,)
_LIVE = (Step.PAGE_DATA.value, LATE)
_PLACED: dict[str, tuple[str, ...]] = {
    "no_memory": (Step.PAGE_DATA.value,),  # xg_sr_restore.c populate_pfns
    "name_incoming": (Step.LIBXL_HEADER.value,),  # xl_vmcontrol.c create_domain, when XL_HEADER was read
    "name_taken": (Step.GO.value,),  # xl_migrate.c migrate_receive: libxl_domain_rename
    "name_away": (Step.READY.value,),  # xl_migrate.c migrate_domain: libxl_domain_rename
    "noack": _SUSPEND,
    "nostop": _SUSPEND,
    "dirtier": (Step.PAGE_DATA.value,),
    "guest_crash": _LIVE,
    "guest_destroy": _LIVE,
    "second": (Step.PAGE_DATA.value, Step.TSC_INFO.value),
    "flip": (Step.PAGE_DATA.value,),
    "delay": (Step.PAGE_DATA.value, Step.TSC_INFO.value),
    "throttle": (Step.PAGE_DATA.value,),
}


# -- what must come of it ----------------------------------------------------------------------------------------

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
    Phase.HANDSHAKE: _REFUSED,
    Phase.SETUP: _RESUMED,
    Phase.LIVE: _RESUMED,
    Phase.SUSPENDED: _RESUMED,
    Phase.COMPLETE: _RESUMED,
    Phase.GO: _UNDEFINED,
    Phase.STARTED: _UNDEFINED_THERE,
}
_DROPPED = {
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
_DOUBLED = {
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
    """What must come of a cell: from its phase and the fault's effect.

    :raises UsageError: there can be no such cell.
    """
    if cell.impossible:
        raise UsageError(f"{cell.id}: {cell.impossible}")
    effect, phase, step = cell.fault.effect, cell.phase, cell.step
    if effect is Effect.DELAYED:
        return replace(_SUCCESS, why="libxl_utils.c libxl_read_exactly: no read has a time limit")
    if effect is Effect.CONSOLE_DIES:
        return replace(_SUCCESS, why="libxl_create.c: the console is a matter of xenstore, xenconsoled is not asked")
    if effect is Effect.DAMAGED:
        return replace(_SUCCESS, why=UNDETECTED, is_intact=False)
    if effect is Effect.SEVERED:
        return _heard(phase) if cell.fault.is_by_hand else _BY_PHASE[phase]
    if effect is Effect.SPOILED:
        return _GIVEN_BACK if step is Step.GO else _BY_PHASE[phase]
    if effect is Effect.DROPPED:
        dropped, hangs = _DROPPED[step]
        return replace(dropped, hangs=hangs)
    if effect is Effect.DOUBLED:
        return _DOUBLED[step]
    if effect in _WITHOUT_PHASE:
        return _WITHOUT_PHASE[effect]
    return _deaths(effect, phase)


def _heard(phase: Phase) -> Expectation:
    """A peer that dies: what it had said before is heard still, and the sender is by so much further."""
    if phase is Phase.COMPLETE:
        return _BY_PHASE[Phase.GO]
    return _SUCCESS if phase is Phase.STARTED else _BY_PHASE[phase]


def _deaths(effect: Effect, phase: Phase) -> Expectation:
    if effect is Effect.SENDER_DIES:
        return _sender_dies(phase)
    if effect is Effect.SOURCE_DIES:
        is_started = phase is Phase.STARTED
        why = "xl_migrate.c migrate_receive: without GO the copy is not unpaused"
        # Its peer's silence tells the receiver nothing: sshd has no time limit unless ClientAliveInterval is set.
        left = (
            "" if is_started else "the receiver waits for a source that is gone: sshd_config ClientAliveInterval is 0"
        )
        there = Where.DESTINATION if is_started else Where.NOWHERE
        return Expectation(Ending.LOST, there, why, left_at_destination=left)
    if effect is Effect.RECEIVER_STOPS:
        stopped = _heard(phase)
        if phase in (Phase.COMPLETE, Phase.GO):  # GO lies in its pipe: it reads it when it goes on
            stopped = _UNDEFINED_THERE
        return replace(stopped, hangs=True)
    severed = _heard(phase)
    if effect is Effect.SILENCED:
        left = "the receiver is not told: sshd_config ClientAliveInterval is 0"
        is_left = phase is not Phase.STARTED
        return replace(severed, gives_up=SILENCE + 2, left_at_destination=left if is_left else "")
    if effect is Effect.DESTINATION_DIES:
        where = Where.NOWHERE if severed.where is Where.DESTINATION else severed.where
        return replace(severed, gives_up=SILENCE + 2, where=where)
    if effect is Effect.RECEIVER_DIES:
        left = "xl migrate-receive, which would clean up, is dead"
        is_left = phase in (Phase.LIVE, Phase.SUSPENDED, Phase.COMPLETE, Phase.GO)
        return replace(severed, left_at_destination=left if is_left else "")
    if effect is Effect.STORE_DIES:
        why = "libxl_create.c domcreate_rebuild_done needs xenstore; xl_migrate.c: failed_resume"
        return replace(
            _RESUMED, why=why, gives_up=60.0, left_at_destination="nothing can be cleaned up without xenstored"
        )
    return _RESUMED  # a helper dies: its parent reports the failure, libxl_save_callout.c helper_exited


def _sender_dies(phase: Phase) -> Expectation:
    why = "xl_migrate.c: nobody is left to resume the guest, or to destroy it"
    if phase in (Phase.HANDSHAKE, Phase.SETUP, Phase.LIVE):
        return Expectation(Ending.KILLED, Where.SOURCE, why)
    is_given = phase in (Phase.GO, Phase.STARTED)  # GO is in the pipe already, and arrives
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


# -- the table ---------------------------------------------------------------------------------------------------

# selection | guests | fault | places. A fault that needs no second board is tried on one, unless `2` asks for it: each
# phase once over a real link, all else where boards work side by side.
TABLE = """
quick    | pvh64 | cut             | PAGE_DATA_late HVM_CONTEXT GO
quick    | pv64  | cut             | X86_PV_VCPU_BASIC

full   2 | pvh64 | cut             | PAGE_DATA READY REPORT
full     | pvh64 | stall           | TSC_INFO
full     | pvh64 | bad_type        | HVM_CONTEXT
full     | pvh64 | bad_length      | PAGE_DATA
full     | pvh64 | bad_bit         | GO
full     | pvh64 | destination_off | PAGE_DATA GO
full     | pvh64 | panic           | PAGE_DATA
full     | pvh64 | link_5s         | PAGE_DATA
full   2 | pvh64 | receiver_kill   | PAGE_DATA
full     | pvh64 | sender_kill     | PAGE_DATA TSC_INFO
full     | pvh64 | saver_kill      | PAGE_DATA
full     | pvh64 | name_taken      | GO
full     | pv64  | cut             | TSC_INFO
full     | pv32 pvh32 | cut        | LIBXC_END

weekly   | pvh64 | link_60s        | TSC_INFO
weekly   | pvh64 | noack           | TSC_INFO
weekly   | pvh64 | cut             | BANNER XL_HEADER LIBXL_HEADER IMAGE_HEADER DOMAIN_HEADER STATIC_DATA_END
weekly   | pvh64 | cut             | TSC_INFO HVM_PARAMS LIBXC_END LIBXL_END STATUS
weekly   | pv64  | cut             | X86_PV_INFO X86_PV_P2M_FRAMES PAGE_DATA_late SHARED_INFO X86_PV_VCPU_EXTENDED
weekly 2 | pv64  | cut             | GO
weekly   | pv32  | cut             | PAGE_DATA X86_PV_VCPU_BASIC READY GO
weekly   | pvh32 | cut             | PAGE_DATA HVM_CONTEXT READY GO
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


def _read(table: str) -> Iterator[Cell]:
    for line in table.splitlines():
        if line.strip():
            (selection, *pair), guests, faults, places = (part.split() for part in line.split("|"))
            for guest in guests:
                for fault in faults:
                    for place in places:
                        boards = 2 if pair or FAULTS[fault].needs_two else 1
                        yield Cell(guest, FAULTS[fault], place, selection, boards)


def _followed(cells: Iterable[Cell]) -> frozenset[str]:
    first: dict[tuple[str, Phase], str] = {}
    for cell in cells:
        is_lost = cell.impossible or expected(cell).where is Where.NOWHERE
        if not is_lost and not cell.fault.reboots and cell.fault.effect not in (Effect.NO_ACK, Effect.NO_STOP):
            first.setdefault((cell.guest, cell.phase), cell.id)
    return frozenset(first.values())


CELLS = {cell.id: cell for cell in _read(TABLE)}
_FOLLOWED = _followed(CELLS.values())


def find(cell_id: str) -> Cell:
    """The cell of this name, be it in the table or not.

    :raises UsageError: no such guest, fault or place.
    """
    if cell_id in CELLS:
        return CELLS[cell_id]
    guest, _, rest = cell_id.partition("-")
    fault, _, place = rest.partition("-")
    for word, known in ((guest, GUESTS), (fault, tuple(FAULTS)), (place, PLACES)):
        if word not in known:
            raise UsageError(f"{cell_id}: no {word or 'name'!r}{did_you_mean(word, known)}; cells are GUEST-FAULT-STEP")
    return Cell(guest, FAULTS[fault], place, "weekly", 2 if FAULTS[fault].needs_two else 1)


def possible(cells: Iterable[Cell] | None = None) -> list[Cell]:
    """Those that there can be."""
    return [cell for cell in (CELLS.values() if cells is None else cells) if not cell.impossible]
