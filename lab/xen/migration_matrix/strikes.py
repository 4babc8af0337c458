"""What the lab itself does for a fault: a strike while the proxy holds the stream, and an obstacle from before it.

A strike that falls while the stream is held cannot race with the stream. What an end wrote before it died is delivered
when the hold is released, as a network would deliver it. Each strike and each obstacle says the same as shell commands
for people, which :mod:`lab.xen.migration_matrix.reproduce` prints.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from lab.base.wait import wait_until
from lab.on_board import GUESTS
from lab.xen.domain import Domain
from lab.xen.guests import payload
from lab.xen.host import Host
from lab.xen.migration import start_migration

if TYPE_CHECKING:
    from lab.grid.switch import SwitchPort
    from lab.xen.dom0 import Dom0

Side = Literal["source", "destination"]

MEMORY_MIB = 16  # of the guest that migrates
END_LIMIT = 180.0  # seconds from the fault to the end of xl migrate, beyond what the cell states
LEFT_MIB = 4  # of the destination's memory stay free where the guest must not fit


@dataclass(frozen=True, slots=True)
class Ends:
    """A guest that migrates, and the hosts it leaves and goes to."""

    guest: Domain
    source: Host
    destination: Host

    def host(self, side: Side) -> Host:
        return self.source if side == "source" else self.destination


class Strike(Protocol):
    """Done by the lab while the stream is held."""

    @property
    def needs_two(self) -> bool:
        """Whether it takes two boards, because one end must fail alone."""

    def make(self, ends: Ends, fault: str, said: dict[str, str]) -> str | None:
        """Do it, and add what was said to ``said`` by title; the reason why it may not have happened, or None."""

    def undo(self, ends: Ends) -> None:
        """Make whole what it broke, once the ending is known. A board without power is not booted by this."""

    def commands(self, name: str, peer: str, mac: str) -> list[str]:
        """The same for people. ``name`` is the guest's, ``mac`` that of the destination's port on the lab link."""

    def cure_commands(self, name: str, mac: str) -> list[str]:
        """:meth:`undo` for people."""


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command in the dom0 of one side. It knows ``$GUEST``, and ``$MAC`` of the port on the lab link."""

    side: Side
    script: str
    cure: str | None = None
    needs_two: ClassVar[bool] = False

    def make(self, ends: Ends, fault: str, said: dict[str, str]) -> str | None:
        host = ends.host(self.side)
        done = host.run(variables(ends.guest.name, host) + self.script, check=False)
        said[f"{fault} on {host.name}"] = f"status {done.status}\n{done.stdout}{done.stderr}"
        if done.status:
            return f"the command of {fault} ended with status {done.status}: {done.stderr.strip()}"
        return None

    def undo(self, ends: Ends) -> None:
        if self.cure:
            host = ends.host(self.side)
            host.run(variables(ends.guest.name, host) + self.cure, check=False)

    def commands(self, name: str, peer: str, mac: str) -> list[str]:
        return [f"# --- {self.side}", f"GUEST={name}; MAC={mac}; {self.script}"]

    def cure_commands(self, name: str, mac: str) -> list[str]:
        return [f"# --- {self.side}: put right", f"GUEST={name}; MAC={mac}; {self.cure}"] if self.cure else []


_DEVICE = 'for d in /sys/class/net/*; do [ -e $d/device ] && [ "$(cat $d/address)" = $MAC ] && DEV=${d##*/}; done; '
_LINK_DOWN = (
    _DEVICE + "NET=$(ip -4 route show dev $DEV proto kernel | cut -d' ' -f1); "
    # Without this route, packets for the peer would leave by the default route, and a stranger would answer.
    "ip route add blackhole $NET metric 9999; "
    '{ setsid sh -c "ip link set $DEV down; sleep %d; ip link set $DEV up; ip route del blackhole $NET metric 9999" '
    "> /dev/null 2>&1 < /dev/null & }; sleep 0.5"
)
_LINK_UP = (
    _DEVICE
    + "ip link set $DEV up; ip route del blackhole $(ip -4 route show type blackhole | cut -d' ' -f2) metric 9999; true"
)


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The lab link is down for some seconds: at its switch, where it has one, else by the destination's dom0.

    ``is_for_good``: it stays down until the ending is known and the guest was seen to live on without it.
    """

    seconds: int
    is_for_good: bool = False
    needs_two: ClassVar[bool] = True

    @property
    def by_dom0(self) -> Command:
        """How the destination's dom0 does it."""
        return Command("destination", _LINK_DOWN % self.seconds, _LINK_UP)

    def make(self, ends: Ends, fault: str, said: dict[str, str]) -> str | None:
        port = switch_port(ends.source, ends.destination)
        if port is None:
            return self.by_dom0.make(ends, fault, said)
        port.cut(self.seconds)
        said[f"{fault} at the switch"] = f"{port.name}: down, for {self.seconds} s"
        return None

    def undo(self, ends: Ends) -> None:
        if port := switch_port(ends.source, ends.destination):
            port.restore()
        else:
            self.by_dom0.undo(ends)

    def commands(self, name: str, peer: str, mac: str) -> list[str]:
        return self.by_dom0.commands(name, peer, mac)

    def cure_commands(self, name: str, mac: str) -> list[str]:
        return self.by_dom0.cure_commands(name, mac)


@dataclass(frozen=True, slots=True)
class PowerCut:
    """The BMC of one side cuts its power."""

    side: Side
    needs_two: ClassVar[bool] = True

    def make(self, ends: Ends, fault: str, said: dict[str, str]) -> str | None:
        ends.host(self.side).board.power.power_off()
        return None

    def undo(self, ends: Ends) -> None:
        """Nothing: whoever reboots the board gives it power."""

    def commands(self, name: str, peer: str, mac: str) -> list[str]:
        return [f"# --- anywhere: the {self.side}'s BMC", "ipmitool -I lanplus -H BMC -U USER -E chassis power off"]

    def cure_commands(self, name: str, mac: str) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class SecondMigration:
    """The same guest is migrated a second time, at once."""

    needs_two: ClassVar[bool] = False

    def make(self, ends: Ends, fault: str, said: dict[str, str]) -> str | None:
        second = start_migration(ends.guest, ends.destination)
        is_over = second.ends_within(END_LIMIT)
        if not is_over:
            second.kill()
        said["the second xl migrate"] = second.output()
        return None if is_over else "the second migration did not end"

    def undo(self, ends: Ends) -> None:
        """Nothing is broken."""

    def commands(self, name: str, peer: str, mac: str) -> list[str]:
        return ["# --- source", f"xl migrate {name} {shlex.quote(peer)}"]

    def cure_commands(self, name: str, mac: str) -> list[str]:
        return []


class Obstacle(Protocol):
    """Stands in the guest's way from before the migration until after its end."""

    def standing(self, ends: Ends) -> contextlib.AbstractContextManager[str | None]:
        """Within the block it is there. Yields why it may not be in the way, or None."""

    def commands(self, name: str) -> list[str]:
        """The same for people; ``name`` is the guest's."""


_SMALL_GUEST = f"xl create -p /dev/null 'kernel=\"{GUESTS}/pvh64\"' 'type=\"pvh\"'"


@dataclass(frozen=True, slots=True)
class NoMemory:
    """Another guest leaves less memory at the destination than the guest needs."""

    @contextlib.contextmanager
    def standing(self, ends: Ends) -> Iterator[str | None]:
        room = ends.destination.free_memory_mib()
        hog = payload(ends.destination, "pvh64", "idle", memory_mib=max(room - MEMORY_MIB - LEFT_MIB, 8))
        with ends.destination.domain(hog, paused=True):
            left = ends.destination.free_memory_mib()
            yield None if left < MEMORY_MIB else f"{left} MiB are still free at the destination"

    def commands(self, name: str) -> list[str]:
        return [
            "# --- destination: leave less than the guest needs",
            f'M=$(($(xl info free_memory) - {MEMORY_MIB + LEFT_MIB})); {_SMALL_GUEST} \'name="hog"\' "memory=$M"',
        ]


@dataclass(frozen=True, slots=True)
class NameTaken:
    """A domain of one side has the guest's name, with a suffix that xl gives to one of the copies."""

    side: Side
    suffix: str = ""

    @contextlib.contextmanager
    def standing(self, ends: Ends) -> Iterator[str | None]:
        host = ends.host(self.side)
        config = replace(payload(host, "pvh64", "idle", memory_mib=8), name=ends.guest.name + self.suffix)
        with host.domain(config, paused=True):
            yield None

    def commands(self, name: str) -> list[str]:
        return [f"# --- {self.side}", f"{_SMALL_GUEST} 'name=\"{name}{self.suffix}\"' memory=8"]


def switch_port(*hosts: Dom0) -> SwitchPort | None:
    """The port at which a switch cuts the link between these hosts; None: only a dom0 can take its own port down."""
    return next((port for host in reversed(hosts) if (port := host.board.switch_port)), None)


def variables(name: str, host: Dom0) -> str:
    """The variables that a :class:`Command` may use, as shell assignments."""
    nic = host.board.spec.nics.get("lab")
    return f"GUEST={shlex.quote(name)}; MAC={nic.mac.lower() if nic else ''}; "


def wait_gone(host: Dom0) -> None:
    """Wait until dom0 does not answer any more. :raises WaitTimeout: it still answers after 30 s."""
    wait_until(lambda: not host.board.is_reachable(2.0), 30, f"{host.name} is gone")
