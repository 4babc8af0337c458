"""The kinds of fault in a migration: what each does to the two ends, how it is made, and what proves that it fell.

``xl migrate`` is Xen's live migration; the area of its cases is called relocation. A fault is made by the proxy in the
stream, by a strike of the lab while the proxy holds the stream, or by an obstacle that is there beforehand
(:mod:`lab.xen.migration_matrix.strikes`). A new kind is one row of :data:`FAULTS`, and a line of
:data:`lab.xen.migration_matrix.cells.TABLE` for the cells that try it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lab.on_board.poke import POKE
from lab.on_board.proxy import FIELDS
from lab.on_board.stream import Step
from lab.xen.dom0 import ARRIVED, AWAY
from lab.xen.migration import PATIENCE, SSH
from lab.xen.migration_matrix.strikes import (
    Command,
    LinkDown,
    NameTaken,
    NoMemory,
    Obstacle,
    PowerCut,
    SecondMigration,
    Side,
    Strike,
)

LATE = "PAGE_DATA_late"  # a place: the first record of the second pass over memory
LAST = "PAGE_DATA_last"  # a place: the first record of the pass that goes out while the guest is suspended

ASKED = "XL suspend INFO requested"  # the guest's console has this when it is asked to suspend
HOLD = 300  # seconds; the lab releases a hold long before
SILENCE = 6.0  # seconds after which ssh gives up a peer that the fault has silenced
PACE = 4_000_000  # bytes a second: on any link a guest has time to dirty pages for a second pass
SLOW = 2_000_000  # bytes a second: a guest dirties its memory faster than that


class Effect(enum.Enum):
    """What a fault does to the two ends. The expected ending follows from this and the protocol's phase alone."""

    DELAYED = "everything arrives, later"
    SEVERED = "both ends see the transport end"
    SILENCED = "nothing passes any more; the source's ssh notices, the receiver is not told"
    SPOILED = "what arrives at the step is not what was sent"
    DAMAGED = "a bit of a page's contents is turned over"
    DROPPED = "the step never arrives"
    DOUBLED = "the step arrives twice"
    SENDER_DIES = "xl migrate dies"
    SAVER_DIES = "the sender's libxl-save-helper dies, or ends with an error"
    RECEIVER_DIES = "xl migrate-receive dies"
    RECEIVER_STOPS = "xl migrate-receive and its helper stand still"
    RESTORER_DIES = "the receiver's libxl-save-helper dies"
    SOURCE_DIES = "the source loses power"
    DESTINATION_DIES = "the destination loses power, or its dom0 panics"
    STORE_DIES = "the destination's xenstored is gone"
    CONSOLE_DIES = "the destination's xenconsoled is gone"
    NO_ROOM = "the destination has less memory than the guest needs"
    INCOMING_TAKEN = "the destination has a domain NAME--incoming"
    NAME_TAKEN = "the destination has a domain NAME"
    AWAY_TAKEN = "the source has a domain NAME--migratedaway"
    NO_ACK = "the guest does not acknowledge the suspend"
    NO_STOP = "the guest acknowledges the suspend, and goes on"
    GUEST_CRASHES = "the guest crashes"
    GUEST_GOES = "the guest is destroyed"
    SECOND = "the same guest is migrated a second time, at once"


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. In ``in_stream``, the action of the proxy, the place goes in behind ``@``."""

    name: str
    effect: Effect
    does: str
    in_stream: str | None = None  # None: the proxy holds the stream for the strike, if there is one
    strike: Strike | None = None
    obstacle: Obstacle | None = None
    places: tuple[str, ...] = ()  # the only places where it takes effect; none named: any
    field: str | None = None  # of a step's header, that it corrupts: one of lab.on_board.proxy.FIELDS
    reboots: Side | None = None  # the board that must be booted anew afterwards
    crashes: tuple[str, ...] = ()  # console signatures that belong to it
    work: str = "memory,heartbeat"  # what the guest does
    dirty_kib: int = 64  # KiB of its memory that the guest writes each 0.1 s
    wait: float = 0.0  # seconds that the fault itself adds to the migration
    signs: tuple[str, ...] = ()  # proof that it took effect: xl says one of these
    guest_sign: str | None = None  # proof: the guest's console has this
    passes: int = 0  # proof: at least that many passes over memory
    is_noticed_late: bool = False  # the receiver fails only when it has all memory: until then the stream goes on
    is_of_one_end: bool = False  # it breaks a daemon or takes a name that two ends on one board would share
    leaves_crashed: bool = False  # the guest stays at the source, crashed

    def __post_init__(self) -> None:
        assert self.action or self.places, f"{self.name}: nothing says where it falls"

    @property
    def is_by_hand(self) -> bool:
        """Whether the lab must act while the stream is held."""
        return self.strike is not None

    @property
    def action(self) -> str | None:
        """The proxy's action, without a place; None: the proxy has nothing to do."""
        return f"hold@={HOLD}" if self.strike else self.in_stream

    @property
    def patience(self) -> float:
        """Seconds after which the transport gives up a silent peer: few where the cell waits for that."""
        return SILENCE if self.effect in (Effect.SILENCED, Effect.DESTINATION_DIES) else PATIENCE

    @property
    def needs_two(self) -> bool:
        """Whether it takes two boards: something of one end must fail, or be there, at that end alone."""
        return bool(self.reboots or self.is_of_one_end or (self.strike and self.strike.needs_two))

    @property
    def cuts_the_source(self) -> bool:
        """Whether ``xl migrate`` dies with its board, so that nobody sees its end."""
        return self.effect is Effect.SOURCE_DIES


def _corrupts(name: str, effect: Effect, does: str, what: str, places: tuple[str, ...] = ()) -> Fault:
    """A fault that turns over bits of a step: those of a header's field, or one at an offset."""
    return Fault(
        name, effect, does, in_stream=f"corrupt@={what}", field=what if what in FIELDS else None, places=places
    )


# The patterns match neither the shell that pkill is called from, nor each other's processes where one board is both
# ends. xl has a path where a wrapper started it.
RECEIVER = "^(/[^ ]+/)?xl migrate-receive"
RESTORER = "[l]ibxl-save-helper --restore-domain"
SAVER = "[l]ibxl-save-helper --save-domain"
SENDER = "^(/[^ ]+/)?xl -v migrate "
_SSHD = (
    f"p=$(pgrep -of '{RECEIVER}'); "
    'while [ -n "$p" ] && [ "$p" -gt 1 ] && ! grep -q sshd /proc/$p/comm; do p=$(ps -o ppid= -p $p | tr -d " "); done; '
    "kill -KILL $p"
)
_CRASH = f'test "$({POKE} crash "$(xl domid "$GUEST")")" = done'
_XENCONSOLED = "tr '\\0' ' ' < /proc/$(pidof xenconsoled)/cmdline > /run/xenlab/xenconsoled; pkill -KILL -x xenconsoled"
_PANIC = "{ sh -c 'sleep 0.3; echo c > /proc/sysrq-trigger' > /dev/null 2>&1 < /dev/null & }"
THROTTLE = f"throttle@PAGE_DATA={PACE}"

_FIRST_PAGES, _SUSPENDED = (Step.PAGE_DATA.value,), (Step.TSC_INFO.value,)
_LIVE = (Step.PAGE_DATA.value, LATE)
_FIRST_PAGES_OR_SUSPENDED = _FIRST_PAGES + _SUSPENDED


def _kill(side: Side, signal: str, pattern: str) -> Command:
    return Command(side, f"pkill -{signal} -f '{pattern}'")


_ALL = (
    Fault("stall", Effect.DELAYED, "the stream stands still for 10 s", in_stream="hold@=10", wait=10),
    Fault(
        "delay",
        Effect.DELAYED,
        "from there on each piece comes 0.05 s later",
        in_stream="delay@=0.05",
        places=_FIRST_PAGES_OR_SUSPENDED,
        wait=60,
    ),
    Fault(
        "throttle",
        Effect.DELAYED,
        "from there on 1 MB/s pass",
        in_stream="throttle@=1000000",
        places=_FIRST_PAGES,
        wait=60,
    ),
    Fault("cut", Effect.SEVERED, "the transport is killed before the step passes", in_stream="cut@"),
    Fault("truncate", Effect.SEVERED, "half of the step passes, then the transport is killed", in_stream="truncate@"),
    _corrupts("bad_magic", Effect.SPOILED, "the step's magic number is wrong", "magic"),
    _corrupts("bad_type", Effect.SPOILED, "the step's type becomes one that nobody knows", "type"),
    _corrupts("bad_length", Effect.SPOILED, "the step's length becomes more than 2 GiB", "length"),
    _corrupts("bad_bit", Effect.SPOILED, "a bit of the step's first byte is turned over", "0.0"),
    _corrupts("flip", Effect.DAMAGED, "a bit of the record's last page is turned over", "-9.0", _FIRST_PAGES),
    Fault("drop", Effect.DROPPED, "the step is swallowed", in_stream="drop@"),
    Fault("duplicate", Effect.DOUBLED, "the step is sent twice", in_stream="duplicate@"),
    Fault("link_5s", Effect.DELAYED, "the lab link is down for 5 s", strike=LinkDown(5), wait=10),
    Fault("link_60s", Effect.SILENCED, "the lab link is down for 60 s", strike=LinkDown(60), wait=60),
    Fault(
        "link_off",
        Effect.SILENCED,
        "the lab link goes down for good (until the guest was seen to live at the source)",
        strike=LinkDown(900, is_for_good=True),
        wait=30,
    ),
    Fault("ssh_source", Effect.SEVERED, "ssh is killed at the source", strike=_kill("source", "KILL", SSH)),
    Fault(
        "ssh_destination",
        Effect.SEVERED,
        "the migration's sshd is killed at the destination",
        strike=Command("destination", _SSHD),
    ),
    Fault("sender_int", Effect.SENDER_DIES, "xl migrate gets SIGINT", strike=_kill("source", "INT", SENDER)),
    Fault("sender_kill", Effect.SENDER_DIES, "xl migrate gets SIGKILL", strike=_kill("source", "KILL", SENDER)),
    Fault("saver_kill", Effect.SAVER_DIES, "the helper that saves is killed", strike=_kill("source", "KILL", SAVER)),
    Fault(
        "saver_term",
        Effect.SAVER_DIES,
        "the helper that saves gets SIGTERM and ends with an error",
        strike=_kill("source", "TERM", SAVER),
        places=(LAST,),  # at earlier places libxl takes any failure for a guest that does not answer
    ),
    Fault(
        "saver_term_evtchn",
        Effect.SAVER_DIES,
        "the helper that saves gets SIGTERM and ends with an error; the guest suspends by an event channel",
        strike=_kill("source", "TERM", SAVER),
        places=(LAST,),
        work="memory,evtchn,heartbeat",
    ),
    Fault(
        "receiver_kill",
        Effect.RECEIVER_DIES,
        "xl migrate-receive is killed",
        strike=_kill("destination", "KILL", RECEIVER),
    ),
    Fault(
        "receiver_stop",
        Effect.RECEIVER_STOPS,
        "xl migrate-receive and its helper are stopped for good",
        strike=Command(
            "destination",
            f"pkill -STOP -f '{RECEIVER}|{RESTORER}'",
            f"pkill -CONT -f '{RECEIVER}|{RESTORER}'",
        ),
        wait=30,
    ),
    Fault(
        "receiver_cont",
        Effect.DELAYED,
        "xl migrate-receive and its helper are stopped, and go on after 15 s",
        strike=Command(
            "destination",
            f"pkill -STOP -f '{RECEIVER}|{RESTORER}'; "
            f"{{ setsid sh -c \"sleep 15; pkill -CONT -f '{RECEIVER}|{RESTORER}'\" > /dev/null 2>&1 < /dev/null & }}",
        ),
        wait=15,
    ),
    Fault(
        "restorer_kill",
        Effect.RESTORER_DIES,
        "the helper that restores is killed",
        strike=_kill("destination", "KILL", RESTORER),
    ),
    Fault(
        "source_off",
        Effect.SOURCE_DIES,
        "the source's power is cut",
        strike=PowerCut("source"),
        reboots="source",
        wait=60,
    ),
    Fault(
        "destination_off",
        Effect.DESTINATION_DIES,
        "the destination's power is cut",
        strike=PowerCut("destination"),
        reboots="destination",
        wait=60,
    ),
    Fault(
        "panic",
        Effect.DESTINATION_DIES,
        "the destination's dom0 panics (sysrq c), and Xen reboots",
        strike=Command("destination", _PANIC),
        reboots="destination",
        crashes=("linux-panic", "dom0-crash"),
        wait=60,
    ),
    Fault(
        "xenstored_gone",
        Effect.STORE_DIES,
        "the destination's xenstored is killed",
        strike=Command("destination", "pkill -KILL -x '(o|)xenstored'"),
        reboots="destination",
        wait=60,
        is_noticed_late=True,
    ),
    Fault(
        "xenconsoled_gone",
        Effect.CONSOLE_DIES,
        "the destination's xenconsoled is killed, and started again after the migration",
        strike=Command("destination", _XENCONSOLED, "sh /run/xenlab/xenconsoled"),
        is_noticed_late=True,
        is_of_one_end=True,
    ),
    Fault(
        "no_memory",
        Effect.NO_ROOM,
        "another guest has taken the destination's memory",
        obstacle=NoMemory(),
        places=_FIRST_PAGES,  # xg_sr_restore.c populate_pfns
        signs=("Failed to populate", "failed to free memory", "Could not allocate", "Cannot allocate memory"),
    ),
    Fault(
        "name_incoming",
        Effect.INCOMING_TAKEN,
        "a domain NAME--incoming is at the destination",
        obstacle=NameTaken("destination", ARRIVED),
        places=(Step.LIBXL_HEADER.value,),  # xl_vmcontrol.c create_domain, when XL_HEADER was read
        signs=(ARRIVED,),
    ),
    Fault(
        "name_taken",
        Effect.NAME_TAKEN,
        "a domain NAME is at the destination",
        obstacle=NameTaken("destination"),
        places=(Step.GO.value,),  # xl_migrate.c migrate_receive: libxl_domain_rename
        signs=("Got permission",),
        is_of_one_end=True,
    ),
    Fault(
        "name_away",
        Effect.AWAY_TAKEN,
        "a domain NAME--migratedaway is at the source",
        obstacle=NameTaken("source", AWAY),
        places=(Step.READY.value,),  # xl_migrate.c migrate_domain: libxl_domain_rename
        signs=("Target has acknowledged transfer",),
    ),
    Fault(
        "dirtier",
        Effect.DELAYED,
        "the guest dirties its memory faster than the 2 MB/s that pass",
        in_stream=f"throttle@={SLOW}",
        places=_FIRST_PAGES,
        dirty_kib=1024,
        passes=6,
    ),
    Fault(
        "noack",
        Effect.NO_ACK,
        "the guest ignores control/shutdown",
        places=_SUSPENDED,
        work="memory,noack,heartbeat",
        wait=60,
        guest_sign="XL suspend INFO ignored",
    ),
    Fault(
        "nostop",
        Effect.NO_STOP,
        "the guest acknowledges the suspend, and goes on",
        places=_SUSPENDED,
        work="memory,nostop,heartbeat",
        wait=60,
        guest_sign=ASKED,
    ),
    Fault(
        "guest_crash",
        Effect.GUEST_CRASHES,
        "the guest crashes",
        strike=Command("source", _CRASH),
        places=_LIVE,
        wait=60,
        leaves_crashed=True,
    ),
    Fault(
        "guest_destroy",
        Effect.GUEST_GOES,
        "the guest is destroyed (xl destroy)",
        strike=Command("source", "xl destroy $GUEST"),
        places=_LIVE,
    ),
    Fault(
        "second",
        Effect.SECOND,
        "a second xl migrate of the guest is started",
        strike=SecondMigration(),
        places=_FIRST_PAGES_OR_SUSPENDED,
        wait=60,
    ),
)
FAULTS = {fault.name: fault for fault in _ALL}
