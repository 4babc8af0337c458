"""What can go wrong in a relocation, and how it is made to: by the proxy in the stream, by a command, or by power.

A fault that is made by hand falls while the proxy holds the stream before the step, so it cannot race. What an end
had written before it died is delivered when the hold is released, as a network would deliver it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from lab.on_board.poke import POKE
from lab.xen.migration import PATIENCE, SSH

Side = Literal["", "source", "destination"]

HOLD = 300  # seconds: the lab releases it long before
SILENCE = 6.0  # seconds after which ssh gives up a peer that has gone silent by the fault
PACE = 4_000_000  # bytes a second: on any link there is time to dirty pages for a second pass
SLOW = 2_000_000  # the link that a dirtying guest is faster than


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
    SAVER_DIES = "the sender's libxl-save-helper dies, or gives up"
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


_OF_ONE_END = (Effect.CONSOLE_DIES, Effect.NAME_TAKEN)


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. In ``action`` stands ``@`` for the step; a ``command`` is run in dom0 of ``side``."""

    name: str
    effect: Effect
    does: str
    action: str = f"hold@={HOLD}"
    side: Side = ""
    command: str = ""
    cure: str = ""  # what brings the side back, once the ending is known
    power: Side = ""  # whose power is cut through its BMC
    reboots: Side = ""  # who must be booted anew afterwards
    crashes: tuple[str, ...] = ()  # console signatures that belong to it
    work: str = "memory,heartbeat"  # what the guest does
    dirty_kib: int = 64  # that much memory it writes each 0.1 s
    wait: float = 0.0  # seconds it takes by itself, beside the relocation
    link_down: int = 0  # seconds; where the side's link has a switch, its port is switched instead of the command

    @property
    def is_by_hand(self) -> bool:
        """Whether the lab must act while the stream is held."""
        return self.action.startswith("hold@") and bool(self.command or self.power or self.effect is Effect.SECOND)

    @property
    def patience(self) -> float:
        """Seconds after which the transport gives a silent peer up: few where that is what is waited for."""
        return SILENCE if self.effect in (Effect.SILENCED, Effect.DESTINATION_DIES) else PATIENCE

    @property
    def needs_two(self) -> bool:
        """Whether it takes two boards: something of one end must fail, or be there, alone."""
        return bool(self.power or self.reboots) or self.name.startswith("link_") or self.effect in _OF_ONE_END


# The commands know: $GUEST its name, $MAC that of the lab link's port. The patterns match neither the shell that pkill
# is called from, nor each other's processes where both ends are on one board. xl has a path if a wrapper has called it.
DEV = 'for d in /sys/class/net/*; do [ -e $d/device ] && [ "$(cat $d/address)" = $MAC ] && DEV=${d##*/}; done; '
LINK = (
    DEV + "NET=$(ip -4 route show dev $DEV proto kernel | cut -d' ' -f1); "
    # Without it what is meant for the peer would leave by the default route, and a stranger would answer.
    "ip route add blackhole $NET metric 9999; "
    '{ setsid sh -c "ip link set $DEV down; sleep %s; ip link set $DEV up; ip route del blackhole $NET metric 9999" '
    "> /dev/null 2>&1 < /dev/null & }; sleep 0.5"
)
LINK_UP = (
    DEV
    + "ip link set $DEV up; ip route del blackhole $(ip -4 route show type blackhole | cut -d' ' -f2) metric 9999; true"
)
RECEIVER = "^(/[^ ]+/)?xl migrate-receive"
RESTORER = "[l]ibxl-save-helper --restore-domain"
SAVER = "[l]ibxl-save-helper --save-domain"
SENDER = "^(/[^ ]+/)?xl -v migrate "
SSHD = (
    f"p=$(pgrep -of '{RECEIVER}'); "
    'while [ -n "$p" ] && [ "$p" -gt 1 ] && ! grep -q sshd /proc/$p/comm; do p=$(ps -o ppid= -p $p | tr -d " "); done; '
    "kill -KILL $p"
)
CRASH = f'test "$({POKE} crash "$(xl domid "$GUEST")")" = done'
XENCONSOLED = "tr '\\0' ' ' < /proc/$(pidof xenconsoled)/cmdline > /run/xenlab/xenconsoled; pkill -KILL -x xenconsoled"
PANIC = "{ sh -c 'sleep 0.3; echo c > /proc/sysrq-trigger' > /dev/null 2>&1 < /dev/null & }"
THROTTLE = f"throttle@PAGE_DATA={PACE}"

_ALL = (
    Fault("stall", Effect.DELAYED, "the stream stands still for 10 s", "hold@=10", wait=10),
    Fault("delay", Effect.DELAYED, "each piece from there comes 0.05 s later", "delay@=0.05", wait=60),
    Fault("throttle", Effect.DELAYED, "from there 1 MB/s pass", "throttle@=1000000", wait=60),
    Fault("cut", Effect.SEVERED, "the transport is killed before the step passes", "cut@"),
    Fault("truncate", Effect.SEVERED, "half of the step passes, then the transport is killed", "truncate@"),
    Fault("bad_magic", Effect.SPOILED, "its magic number is wrong", "corrupt@=magic"),
    Fault("bad_type", Effect.SPOILED, "its type becomes one that nobody knows", "corrupt@=type"),
    Fault("bad_length", Effect.SPOILED, "its length becomes more than 2 GiB", "corrupt@=length"),
    Fault("bad_bit", Effect.SPOILED, "a bit of its first byte is turned over", "corrupt@=0.0"),
    Fault("flip", Effect.DAMAGED, "a bit of the last page in the record is turned over", "corrupt@=-9.0"),
    Fault("drop", Effect.DROPPED, "it is swallowed", "drop@"),
    Fault("duplicate", Effect.DOUBLED, "it is sent twice", "duplicate@"),
    Fault(
        "link_5s",
        Effect.DELAYED,
        "the lab link is down for 5 s",
        side="destination",
        command=LINK % 5,
        cure=LINK_UP,
        link_down=5,
        wait=10,
    ),
    Fault(
        "link_60s",
        Effect.SILENCED,
        "the lab link is down for 60 s",
        side="destination",
        command=LINK % 60,
        cure=LINK_UP,
        link_down=60,
        wait=60,
    ),
    Fault(
        "link_off",
        Effect.SILENCED,
        "the lab link goes down for good (until the guest was looked after at the source)",
        side="destination",
        command=LINK % 900,
        cure=LINK_UP,
        link_down=900,
        wait=30,
    ),
    Fault(
        "ssh_source",
        Effect.SEVERED,
        "ssh is killed at the source",
        side="source",
        command=f"pkill -KILL -f '{SSH}'",
    ),
    Fault("ssh_destination", Effect.SEVERED, "its sshd is killed", side="destination", command=SSHD),
    Fault(
        "sender_int", Effect.SENDER_DIES, "xl migrate gets SIGINT", side="source", command=f"pkill -INT -f '{SENDER}'"
    ),
    Fault(
        "sender_kill",
        Effect.SENDER_DIES,
        "xl migrate gets SIGKILL",
        side="source",
        command=f"pkill -KILL -f '{SENDER}'",
    ),
    Fault(
        "saver_kill",
        Effect.SAVER_DIES,
        "the helper that saves is killed",
        side="source",
        command=f"pkill -KILL -f '{SAVER}'",
    ),
    Fault(
        "saver_term",
        Effect.SAVER_DIES,
        "the helper that saves gets SIGTERM, and gives up with an error",
        side="source",
        command=f"pkill -TERM -f '{SAVER}'",
    ),
    Fault(
        "saver_term_evtchn",
        Effect.SAVER_DIES,
        "the helper that saves gets SIGTERM, and gives up; the guest is asked to suspend by an event channel",
        side="source",
        command=f"pkill -TERM -f '{SAVER}'",
        work="memory,evtchn,heartbeat",
    ),
    Fault(
        "receiver_kill",
        Effect.RECEIVER_DIES,
        "xl migrate-receive is killed",
        side="destination",
        command=f"pkill -KILL -f '{RECEIVER}'",
    ),
    Fault(
        "receiver_stop",
        Effect.RECEIVER_STOPS,
        "xl migrate-receive and its helper are stopped for good",
        side="destination",
        command=f"pkill -STOP -f '{RECEIVER}|{RESTORER}'",
        cure=f"pkill -CONT -f '{RECEIVER}|{RESTORER}'",
        wait=30,
    ),
    Fault(
        "receiver_cont",
        Effect.DELAYED,
        "xl migrate-receive and its helper are stopped, and go on after 15 s",
        side="destination",
        command=f"pkill -STOP -f '{RECEIVER}|{RESTORER}'; "
        f"{{ setsid sh -c \"sleep 15; pkill -CONT -f '{RECEIVER}|{RESTORER}'\" > /dev/null 2>&1 < /dev/null & }}",
        wait=15,
    ),
    Fault(
        "restorer_kill",
        Effect.RESTORER_DIES,
        "the helper that restores is killed",
        side="destination",
        command=f"pkill -KILL -f '{RESTORER}'",
    ),
    Fault(
        "source_off",
        Effect.SOURCE_DIES,
        "the source's power is cut",
        power="source",
        reboots="source",
        wait=60,
    ),
    Fault(
        "destination_off",
        Effect.DESTINATION_DIES,
        "the destination's power is cut",
        power="destination",
        reboots="destination",
        wait=60,
    ),
    Fault(
        "panic",
        Effect.DESTINATION_DIES,
        "the destination's dom0 panics (sysrq c), and Xen reboots",
        side="destination",
        command=PANIC,
        reboots="destination",
        crashes=("linux-panic", "dom0-crash"),
        wait=60,
    ),
    Fault(
        "xenstored_gone",
        Effect.STORE_DIES,
        "xenstored is killed",
        side="destination",
        command="pkill -KILL -x '(o|)xenstored'",
        reboots="destination",
        wait=60,
    ),
    Fault(
        "xenconsoled_gone",
        Effect.CONSOLE_DIES,
        "xenconsoled is killed, and started again after the relocation",
        side="destination",
        command=XENCONSOLED,
        cure="sh /run/xenlab/xenconsoled",
    ),
    Fault("no_memory", Effect.NO_ROOM, "another guest has taken the memory", ""),
    Fault("name_incoming", Effect.INCOMING_TAKEN, "a domain NAME--incoming is at the destination", ""),
    Fault("name_taken", Effect.NAME_TAKEN, "a domain NAME is at the destination", ""),
    Fault("name_away", Effect.AWAY_TAKEN, "a domain NAME--migratedaway is at the source", ""),
    Fault("dirtier", Effect.DELAYED, "the guest dirties faster than 2 MB/s pass", f"throttle@={SLOW}", dirty_kib=1024),
    Fault("noack", Effect.NO_ACK, "the guest ignores control/shutdown", "", work="memory,noack,heartbeat", wait=60),
    Fault("nostop", Effect.NO_STOP, "the guest acknowledges and goes on", "", work="memory,nostop,heartbeat", wait=60),
    Fault("guest_crash", Effect.GUEST_CRASHES, "the guest crashes", side="source", command=CRASH, wait=60),
    Fault("guest_destroy", Effect.GUEST_GOES, "xl destroy", side="source", command="xl destroy $GUEST"),
    Fault("second", Effect.SECOND, "a second xl migrate of the guest is started", wait=60),
)
FAULTS = {fault.name: fault for fault in _ALL}
