"""Whether a board can be used: looked at from outside, or brought up in its known-good build and looked at from within.

A check tells the board from the build: nothing under test runs while it looks. What it finds goes into the ledger,
where it lifts a quarantine or begins one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from lab.base.errors import BenchError, BmcUnreachable, LabError, MissingCapability, NoSessionNow, UsageError
from lab.bmc import Bmc
from lab.grid import consoles
from lab.grid.board import Board, switch_port
from lab.grid.mains import power_of
from lab.inventory import BoardSpec
from lab.leases.ledger import Ledger
from lab.xen.dom0 import Dom0

if TYPE_CHECKING:
    from lab.grid.switch import SwitchPort

CLOCK_TOLERANCE = 24 * 3600.0  # seconds; some BMCs keep local time
SCRATCH_MIB = 16
ROOM_MIB = 100  # what a build, its symbols and the payloads need on the board's disk
ECHO_TIMEOUT = 10.0
# ipmitool's words for critical and non-recoverable (with l or u: at the lower or upper end), and Redfish's.
_CRITICAL = re.compile(r"\[(?:[lu]?(?:cr|nr)|Critical)\]$")
UNREAD_SHOWN = 3  # sensors that could not be read, in one line


@dataclass(frozen=True, slots=True)
class HealthFact:
    """One thing that was looked at."""

    subject: str
    is_good: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok ' if self.is_good else 'BAD'} {self.subject}: {self.detail}"


def look(spec: BoardSpec, *, boots_next: bool = False) -> list[HealthFact]:
    """From outside, in seconds: the BMC answers, its clock and sensors are sound, console and link are there.

    A console that was never read is no good. One that is read and never gave a byte is no good either when the board
    is on, unless the board ``boots_next``: then the boot will show it.

    :raises UsageError: no such credential.
    """
    control, port = power_of(spec), switch_port(spec)
    is_on = False
    dead: BmcUnreachable | None = None

    def power() -> str:
        nonlocal is_on, dead
        try:
            is_on = control.is_powered()
        except BmcUnreachable as error:
            dead = error if spec.bmc.protocol != "none" and not isinstance(error, NoSessionNow) else None
            raise
        return "; ".join(("on" if is_on else "off", *control.remarks))

    def of_bmc(ask: Callable[[], str]) -> str:
        """A BMC that is dead is not asked again: it takes a quarter of a minute each time."""
        if dead is not None:
            raise dead
        return ask()

    return [
        _finding("power", power),
        _finding("BMC clock", lambda: of_bmc(lambda: _clock(control))),
        _finding("BMC sensors", lambda: of_bmc(lambda: sensors(spec.name, control, spec.accepted_faults))),
        _finding("console", lambda: consoles.look(spec, must_have_spoken=is_on and not boots_next)),
        *([_finding("switch port", partial(_switch_port, port))] if port else ()),
    ]


def examine(board: Board) -> list[HealthFact]:
    """All of it, in the minutes of a boot: the same, then a power cycle into the known-good build, and from within."""
    findings = look(board.spec, boots_next=True)
    if not all(one.is_good for one in findings):
        return findings  # a boot would only say it again, and later
    findings.append(_finding("known-good boot", lambda: _boot(board)))
    if findings[-1].is_good:
        findings += [echo(board), _finding("disk", lambda: _disk(board))]
        for role, nic in board.spec.nics.items():
            findings.append(_finding(f"port {role}", partial(Dom0(board).pci_of, nic.mac)))
    return findings


def echo(board: Board) -> HealthFact:
    """Whether the console's line goes both ways, once dom0 answers."""
    return _finding("console echo", lambda: _echo(board))


def conclude(ledger: Ledger, board: str, findings: list[HealthFact], *, is_whole: bool) -> bool:
    """Write into the ledger what came of it; whether the board can be used.

    A quarantine is only lifted by a check that was whole.
    """
    text = "\n".join(map(str, findings))
    if bad := [one for one in findings if not one.is_good]:
        ledger.quarantine(board, f"{bad[0].subject}: {bad[0].detail}", text)
        return False
    if is_whole:
        ledger.clear(board, f"{len(findings)} things looked at", checked=True)
    return True


def _finding(subject: str, ask: Callable[[], str]) -> HealthFact:
    try:
        return HealthFact(subject, True, ask())
    except UsageError:
        raise
    except MissingCapability:
        return HealthFact(subject, True, "the board has none")
    except LabError as error:
        return HealthFact(subject, False, " ".join(str(error).split()))


def _clock(control: Bmc) -> str:
    told = control.clock()
    told = told if told.tzinfo else told.replace(tzinfo=UTC)
    off = (told - datetime.now(UTC)).total_seconds()
    if abs(off) > CLOCK_TOLERANCE:
        raise BenchError(f"{off:+.0f} s off: its event log would mislead")
    return f"{off:+.0f} s"


def sensors(board: str, control: Bmc, accepted: Mapping[str, str]) -> str:
    """What is to be said of the readings. ``accepted``: sensors that are known to be bad, and why.

    :raises BenchError: a sensor that nobody accepted is critical, or none could be read.
    :raises MissingCapability: the board has no sensors.
    """
    readings = control.sensors()
    if not readings and not readings.unread:
        raise MissingCapability(board, "bmc-sensors")
    unread = f"not read: {'; '.join(readings.unread[:UNREAD_SHOWN])}" if readings.unread else ""
    if len(readings.unread) > UNREAD_SHOWN:
        unread += f"; and {len(readings.unread) - UNREAD_SHOWN} more"
    bad = {name: value for name, value in readings.items() if _CRITICAL.search(value)}
    if new := [f"{name} {value}" for name, value in bad.items() if name not in accepted]:
        raise BenchError("; ".join(filter(None, ("critical: " + ", ".join(new), unread))))
    if not readings:
        raise BenchError(unread)
    known = [f"{name} {bad[name]} ({why})" for name, why in accepted.items() if name in bad]
    over = [name for name in accepted if name not in bad]
    words = (
        f"{len(readings)} readings",
        "accepted: " + ", ".join(known) if known else "",
        "accepted in the inventory, but not bad: " + ", ".join(over) if over else "",
        unread,
    )
    return "; ".join(filter(None, words))


def _switch_port(port: SwitchPort) -> str:
    if not port.is_up():
        raise BenchError(f"{port.name} is switched off: the lab link is cut")
    return f"{port.name} is on"


def _boot(board: Board) -> str:
    started = time.monotonic()
    board.strategy.reboot(entry="known-good")
    return f"dom0 answers after {time.monotonic() - started:.0f} s"


def _echo(board: Board) -> str:
    """What is typed comes back: both directions of the line, and a terminal at its far end."""
    word = "xenlab-echo"
    mark = board.console.mark()
    board.console.send(f"{word}\r".encode())
    board.console.wait_for(word, ECHO_TIMEOUT, since=mark)
    board.console.send(b"\r")  # a login prompt took it for a name, and waits for a password
    return "both ways"


def _disk(board: Board) -> str:
    """Written through to the disk, read back past the cache, compared; and room for a build."""
    script = (
        "set -e; cd /var/lib; f=.xenlab-check; trap 'rm -f $f' EXIT; "
        f"dd if=/dev/urandom of=$f bs=1M count={SCRATCH_MIB} conv=fsync 2>/dev/null; a=$(sha256sum < $f); "
        "dd if=$f iflag=nocache count=0 2>/dev/null; "
        'test "$a" = "$(sha256sum < $f)"; df -m --output=avail . | tail -n 1'
    )
    free = int(str(board.run(script, timeout=120).stdout).strip())
    if free < ROOM_MIB:
        raise BenchError(f"{free} MiB free, and a build needs {ROOM_MIB}")
    return f"{SCRATCH_MIB} MiB written and read back, {free} MiB free"
