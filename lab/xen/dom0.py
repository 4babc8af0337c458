"""dom0 of a board: its shell, its ``xl``, what Xen says there, and what a running case is told of it.

:class:`Toolstack` needs nothing but a shell; :class:`Dom0` has the whole board. :class:`lab.xen.host.Host` adds the
creation of guests.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lab.base.errors import BenchError, CommandOverdue, ProductTimeout, SilentConsole, ToolstackFailed, WaitTimeout
from lab.base.wait import wait_until
from lab.console.client import ConsoleLine
from lab.grid import pulse
from lab.grid.board import Board, CommandResult
from lab.results.observation import StealTime
from lab.results.record import GuestConsole

T = TypeVar("T")

ARRIVED = "--incoming"  # xl migrate-receive adds this to a domain's name until the domain is handed over (xl_migrate.c)
AWAY = "--migratedaway"  # xl migrate adds this to the source's copy before it hands the domain over (xl_migrate.c)

_HEAD = 200  # characters of the second reading that are searched for in the first one
_CUT = "== and then"  # separates two readings of Xen's console ring
# Prints Xen's console ring as it was at the first call in this boot, if the ring still had its beginning then.
BOOT_LOG = (
    'f=/run/xenlab/xen-boot.log; [ -s $f ] || { mkdir -p ${f%/*}; log=$(xl dmesg); case $log in *"Xen version"*) '
    'printf "%s\\n" "$log" > $f.new && mv $f.new $f;; esac; } 2>/dev/null; cat $f 2>/dev/null || printf "%s\\n" "$log"'
)
# Work for one CPU, and how long it takes in dom0 of a virtual board of an idle machine, where the limits of the cases
# were found. A real board does it in a twentieth of that.
_WORK = "sh -c 'i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done'"
_WORK_SECONDS = 1.5
_SLOWEST = 4.0  # no limit is stretched by more than this
_ROW = re.compile(r"^(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([a-z-]{6})\s+([\d.]+)$")


@dataclass(frozen=True, slots=True)
class DomainRow:
    """A line of ``xl list``. ``state`` is xl's six letters: r b p s c d (tools/xl/xl_list.c)."""

    name: str
    domid: int
    memory_mib: int
    vcpus: int
    state: str
    cpu_seconds: float

    @property
    def is_suspended(self) -> bool:
        return "s" in self.state

    @property
    def is_paused(self) -> bool:
        return "p" in self.state


class Runner(Protocol):
    """Runs one shell command in dom0, as :meth:`lab.grid.board.Board.run` and :meth:`lab.grid.ssh.Ssh.run` do."""

    def __call__(self, command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult: ...


class Notes(Protocol):
    """Where a host leaves what belongs to the running case."""

    def keep(self, title: str, guest: GuestConsole) -> None:
        """Keep what a guest has printed as evidence."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Time a block: ``create`` (a domain is being built), ``wait`` (for a guest or the board) or ``sleep``."""

    def left(self) -> float:
        """Seconds that the case may still take; infinite where it has no limit."""


class NoNotes:
    """For a host that no case uses: nothing is kept, nothing is timed."""

    def keep(self, title: str, guest: GuestConsole) -> None:
        """Drop it."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def left(self) -> float:
        return math.inf


# Whether a command is there whose time was over long ago (lab.grid.ssh.Ssh.run has timeout(1) end it).
IMMORTAL = """ps -eo etimes=,args= | awk '$2 == "timeout" && $3 == "-k" && $1 > $4 + $5 + 1 { n++ } END { exit !n }'"""


class Toolstack:
    """The shell of a dom0 and its ``xl``. All methods raise what ``run`` raises besides what they name."""

    def __init__(self, name: str, run: Runner) -> None:
        self.name = name
        self._run = run

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def run(self, command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult:
        """Run one shell command in dom0.

        :raises CommandFailed: its status is not 0, and ``check``.
        :raises BoardUnreachable: dom0 does not answer over SSH.
        :raises WaitTimeout: it did not end within ``timeout`` seconds.
        """
        return self._run(command, timeout=timeout, check=check)

    def toolstack(self, command: str, *, timeout: float = 60.0, what: str = "") -> CommandResult:
        """Run a shell command that ends with one of ``xl``, whatever its status is. ``what``: how a message calls it.

        :raises ProductTimeout: it did not end within ``timeout`` seconds, and dom0 is well: xl hangs, or what it waits
            for. libxl itself gives up after at most 60 s (``LIBXL_DEVICE_MODEL_START_TIMEOUT``), and says for what.
        """
        try:
            return self.run(command, timeout=timeout, check=False)
        except WaitTimeout as late:
            if isinstance(late, CommandOverdue) or self._has_immortal():
                said = f"{self.name}: {what}" if what else late.what
                raise ProductTimeout(said, late.timeout, late.last, board=late.board) from late
            raise

    def _has_immortal(self) -> bool:
        """Whether dom0 answers, and could not end a command even by SIGKILL: a hypercall never returns."""
        try:
            return not self.run(IMMORTAL, timeout=10, check=False).status
        except BenchError:
            return False

    def xl(self, *words: str, timeout: float = 60.0, check: bool = True) -> CommandResult:
        """Run one ``xl`` command.

        :raises ToolstackFailed: its status is not 0, and ``check``.
        :raises ProductTimeout: as :meth:`toolstack`.
        """
        result = self.toolstack(shlex.join(["xl", *words]), timeout=timeout)
        if check and result.status:
            raise ToolstackFailed(self.name, f"xl {' '.join(words)}", result.status, result.stderr or result.stdout)
        return result

    def info(self) -> Mapping[str, str]:
        """``xl info`` as a mapping."""
        found: dict[str, str] = {}
        for line in self.xl("info").stdout.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
        return found

    def free_memory_mib(self) -> int:
        """Memory that Xen can give to guests, in MiB (``xl info``: free_memory)."""
        return int(self.info()["free_memory"])

    def wait_scrubbed(self, timeout: float = 120.0) -> None:
        """Wait until Xen has scrubbed all free memory, which it does when idle.

        Until then a guest may get pages of the wrong NUMA node or below 4 GiB: Xen prefers clean pages to pages in the
        right place (xen/common/page_alloc.c, alloc_heap_pages: only a second search takes dirty pages).

        :raises WaitTimeout: memory is still being scrubbed after ``timeout`` seconds.
        """
        what = f"{self.name}: free memory is scrubbed"
        wait_until(lambda: "unscrubbed" not in self.debug_keys("H"), timeout, what, interval=1.0)

    def clock(self) -> float:
        """dom0's wall clock in seconds since the epoch, at the return of this call (half a round trip is added)."""
        before = time.monotonic()
        said = float(self.run("date +%s.%N").stdout)
        return said + (time.monotonic() - before) / 2

    def lag(self) -> float:
        """Seconds by which dom0's wall clock is ahead of this machine's."""
        return self.clock() - time.time()

    def rows(self) -> list[DomainRow]:
        """All lines of ``xl list``, dom0's and those of dead domains included."""
        rows = []
        for line in self.xl("list").stdout.splitlines():
            if match := _ROW.match(line.strip()):
                name, domid, memory, vcpus, state, seconds = match.groups()
                rows.append(DomainRow(name, int(domid), int(memory), int(vcpus), state, float(seconds)))
        return rows

    def debug_keys(self, keys: str) -> str:
        """Press Xen's debug keys and return what they add to Xen's console ring. The ring is not emptied.

        :raises ToolstackFailed: ``xl debug-keys`` or ``xl dmesg`` failed.
        """
        script = f"xl dmesg && echo {_CUT} && xl debug-keys {shlex.quote(keys)} && xl dmesg"
        result = self.run(script, check=False)
        if result.status:
            raise ToolstackFailed(self.name, f"xl debug-keys {keys}", result.status, result.stderr or result.stdout)
        before, _, after = result.stdout.partition(f"{_CUT}\n")
        return added(before, after)

    def boot_log(self) -> str:
        """What Xen had printed when this was first asked for in this boot; the ring itself forgets its beginning."""
        return self.run(BOOT_LOG).stdout

    def grave(self) -> list[str]:
        """Lines of Xen's ring about a bug, a warning or a guest that Xen crashed; ``xl dmesg -c`` empties the ring."""
        lines = self.xl("dmesg").stdout.splitlines()
        return [line for line in lines if "BUG" in line or "WARN at" in line or "domain_crash" in line]

    def pci_of(self, mac: str) -> str:
        """PCI address (``0000:00:04.0``) of the network port with this MAC, whatever its name in dom0.

        :raises BenchError: no port has it.
        """
        script = 'for d in /sys/class/net/*; do [ "$(cat $d/address)" = %s ] && '
        script += "basename $(readlink -f $d/device); done; true"
        found = self.run(script % shlex.quote(mac.lower())).stdout.split()
        if not found:
            raise BenchError(f"{self.name}: no network port has the MAC {mac}")
        return found[0]


class Dom0(Toolstack):
    """dom0 of a board whose hypervisor is up, and the names and rows of the guests on it."""

    _numbers = itertools.count(1)

    def __init__(self, board: Board, notes: Notes | None = None, *, lacking: frozenset[str] = frozenset()) -> None:
        """``lacking``: capabilities that the board's inventory entry declares and a probe did not find."""
        super().__init__(board.name, board.run)
        self.board, self.notes, self.lacking = board, notes or NoNotes(), lacking

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Time a block as :meth:`Notes.phase` says."""
        return self.notes.phase(name)

    # -- which guests are here -------------------------------------------------------------------------------

    def domains(self) -> dict[str, DomainRow]:
        """The guests of this host by name, without dom0."""
        return self.own(self.rows())

    def own(self, rows: Iterable[DomainRow]) -> dict[str, DomainRow]:
        """The rows that :meth:`domains` returns, by name."""
        return {row.name: row for row in rows if row.domid and self.owns(row.domid)}

    def owns(self, domid: int) -> bool:
        """Whether a domain belongs to this end of a migration: always, unless one board is both ends.

        See :mod:`lab.xen.migration_matrix.one_board`.
        """
        return True

    def log_names(self, name: str) -> tuple[str, ...]:
        """Names that xenconsoled may use for a guest's log here: a guest that migrated in keeps its arrival name."""
        return (name + ARRIVED, name)

    @property
    def link_name(self) -> str:
        """The name by which the source of a migration reaches this host."""
        return self.board.spec.link_name

    def unique(self, stem: str) -> str:
        """A domain name that was never used on this board, so that no log of an older domain is taken for its own."""
        return f"{stem}-{int(time.time()) % 100000}-{next(self._numbers)}"

    # -- waiting and power -----------------------------------------------------------------------------------

    def slowness(self) -> float:
        """How many times slower dom0 works now than where the limits of the cases were found: 1 to 4.

        1 for a dom0 that does not answer: then it is not known.
        """
        try:
            began = time.monotonic()
            self.run("true", timeout=30)
            answered = time.monotonic()
            self.run(_WORK, timeout=_WORK_SECONDS * _SLOWEST + 30)
            seconds = (time.monotonic() - answered) - (answered - began)
        except BenchError:
            return 1.0
        return min(max(seconds / _WORK_SECONDS, 1.0), _SLOWEST)

    def limits(self, timeout: float) -> Iterator[float]:
        """Seconds to wait for what the product owes; and, where dom0 is slow, seconds to wait on, as often as need be.

        A guest that a busy machine emulates, or a slow board, is late, and nothing is wrong with it. So dom0's speed is
        measured when the time is up, and what is left of ``timeout`` times :meth:`slowness` is waited, too. A board
        that knows its steal time is waited for as many times longer as that says. But never for more than half of what
        the case may still take: a hang must be told as one before the case's own limit ends it.
        """
        before = self._steal()
        yield timeout
        waited = timeout
        while (more := timeout * max(self.slowness(), self._denied(before)) - waited) > 0.1 * timeout:
            most = self.notes.left() / 2
            yield min(more, most)
            if most < more:
                return
            waited += more

    def _steal(self) -> StealTime | None:
        """The board's steal time until now; None: it knows none, or does not answer."""
        with contextlib.suppress(BenchError):
            return self.board.steal_meter.read() if self.board.steal_meter else None
        return None

    def _denied(self, before: StealTime | None) -> float:
        """How many times longer the board's work has taken since then than on an idle machine: 1, or 2 to 4."""
        now = self._steal() if before else None
        share = now.since(before).share if now and before else 1.0
        return 1.0 if share > 0.5 else min(1 / max(share, 0.01), _SLOWEST)

    def owed(self, wait: Callable[[float], T], timeout: float) -> T:
        """What ``wait(seconds)`` returns. :raises ProductTimeout: it timed out, all :meth:`limits` long."""
        waited = 0.0
        for seconds in self.limits(timeout):
            waited += seconds
            try:
                return wait(seconds)
            except WaitTimeout as error:
                late = error
        raise ProductTimeout(late.what, waited, late.last, board=late.board) from late

    def expect_console(self, pattern: str, timeout: float, *, since: int) -> ConsoleLine:
        """Wait for a line on the serial console that matches, from record ``since`` (``board.console.mark()``) on.

        :raises ProductTimeout: no line matched within ``timeout`` seconds, or more on a slow board (:meth:`limits`).
        :raises SilentConsole: that may be the console's fault: dom0 answers over SSH, and nobody on the console.
        """
        with self.phase("wait"):
            try:
                return self.owed(lambda seconds: self.board.console.wait_for(pattern, seconds, since=since), timeout)
            except ProductTimeout as late:
                if self.board.is_reachable() and pulse.listen(self.board.console) not in pulse.HEARD:
                    raise SilentConsole(self.name) from late
                raise

    def expect(self, predicate: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until the product has done what it must.

        :raises ProductTimeout: ``predicate`` is still false after ``timeout`` seconds, or more on a slow board
            (:meth:`limits`).
        """
        with self.phase("wait"):
            self.owed(lambda seconds: wait_until(predicate, seconds, f"{self.name}: {what}"), timeout)

    def shutdown(self) -> None:
        """Ask dom0 to power the machine off (ACPI S5) and return at once."""
        self.run("(sleep 0.3; poweroff) >/dev/null 2>&1 &")


def added(before: str, after: str) -> str:
    """The text that a ring got between two readings. A full ring loses as much at its beginning as it gets."""
    start = before.find(head := after[:_HEAD])
    while start >= 0 and not after.startswith(before[start:]):
        start = before.find(head, start + 1)
    if start < 0:  # less than that was kept
        ends = range(max(len(before) - _HEAD, 0), len(before))
        start = next((end for end in ends if after.startswith(before[end:])), len(before))
    return after[len(before) - start :]
