"""Live migration of a domain, watched and broken at an exact point by :mod:`lab.on_board.proxy`.

``xl migrate`` is Xen's live migration. The area of its cases is called relocation.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from lab.base.errors import BenchError, ProductTimeout, WaitTimeout
from lab.grid.ssh import LATE, until
from lab.on_board import RUN
from lab.on_board.proxy import Action
from lab.on_board.stream import Step
from lab.xen.dom0 import Dom0
from lab.xen.domain import Domain

# xl has no timeout on any read, so a silent cut would hang it for ever; ssh notices a lost peer. ssh's default key
# exchange takes an emulated board most of a second longer, so another one is preferred, but not required.
TRANSPORT = (
    "ssh -o ServerAliveInterval=%d -o ServerAliveCountMax=3 -o BatchMode=yes -o ConnectTimeout=30"
    " -o KexAlgorithms=^curve25519-sha256"
)
PATIENCE = 60.0  # seconds after which ssh gives up a lost peer: an emulated board may be slow to answer
SSH = "^ssh .*xl migrate-receive"  # the pattern by which pkill and pgrep find the transport
PROXY = f"{RUN} lab.on_board.proxy"


class Ending(enum.Enum):
    """How ``xl migrate`` ended, by the last line it printed (tools/xl/xl_migrate.c)."""

    SUCCESS = "Migration successful."
    RESUMED_AT_SENDER = "Migration failed, resuming at sender."
    GIVEN_BACK = "Migration failed due to problems at target."  # the target had it, gave it back, and it was resumed
    NOT_SUSPENDED = "Migration failed, failed to suspend at sender."
    UNDEFINED = "** Migration failed during final handshake **"  # it may be suspended on both sides; nothing resumed
    REFUSED = ""  # failed before anything was sent
    KILLED = "killed"
    LOST = "the source is gone"  # and xl with it, so nobody saw its end


@dataclass(frozen=True, slots=True)
class Passed:
    """A step of the protocol that passed the proxy, or several records. ``time`` is by the source dom0's clock."""

    time: float
    step: Step
    n: int
    length: int
    records: int = 1


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over memory, as :class:`lab.on_board.stream.Scanner` finds it. Times are seconds since the start."""

    number: int
    start: float
    end: float
    pages: int  # pages whose contents were sent


# One line of the proxy's log; its module says which line has which keys.
LogLine = TypedDict(
    "LogLine",
    {
        "t": float,
        "way": str,
        "step": str,
        "n": int,
        "length": int,
        "records": int,
        "pass": int,
        "data": int,
        "until": float,
        "action": str,
        "asked": str,
        "event": str,
    },
    total=False,
)


def words(
    name: str,
    peer: str,
    folder: str,
    actions: Sequence[str],
    options: Sequence[str] = (),
    *,
    is_proxied: bool = True,
    patience: float = PATIENCE,
) -> list[str]:
    """The command that migrates ``name`` to ``peer`` with the proxy in between; the proxy's log is ``FOLDER/log``.

    A shell makes its background jobs ignore SIGINT; ``env`` undoes that, so that xl dies of it as at a terminal.

    :param patience: seconds after which the transport gives up a silent peer.
    """
    proxy = f"{PROXY} --log {folder}/log --control {folder} "
    proxy += " ".join(f"--action {shlex.quote(action)}" for action in actions)
    rune = f"{TRANSPORT % round(patience / 3)} {shlex.quote(peer)} xl migrate-receive"
    rune = f"{proxy} -- {rune}" if is_proxied else f"exec {rune}"
    return ["env", "--default-signal=INT", "xl", "-v", "migrate", *options, "-s", "", name, rune]


class Migration:
    """One ``xl migrate``, while it runs and afterwards."""

    _numbers = itertools.count(1)

    def __init__(
        self,
        domain: Domain,
        destination: Dom0,
        actions: Sequence[str],
        options: Sequence[str],
        is_proxied: bool,
        patience: float,
    ) -> None:
        self.domain, self.source, self.destination = domain, domain.host, destination
        for action in actions:
            Action.parse(action)  # raises for a mistake here, and not on the board
        self._folder = f"/run/xenlab/migration-{next(self._numbers)}-{int(time.time()) % 100000}"
        peer = destination.link_name
        command = words(domain.name, peer, self._folder, actions, options, is_proxied=is_proxied, patience=patience)
        self.actions_asked = tuple(actions)
        ahead = self.source.lag()
        self.skew = destination.lag() - ahead  # seconds the destination's clock is ahead of the source's
        self.started = time.time() + ahead  # seconds since the epoch, by the source's clock
        self._job = self.source.board.spawn(f"mkdir -p {self._folder}; exec {shlex.join(command)}")
        self._log: list[LogLine] = []  # filled once the log is whole

    def ending(self, timeout: float = 120.0) -> Ending:
        """Wait until ``xl migrate`` has ended; how it ended.

        :raises ProductTimeout: it still runs after ``timeout`` seconds, or more on a slow board; it is killed then.
        """
        try:
            status = self.source.owed(self._job.wait, timeout)
        except ProductTimeout as error:
            self._job.kill()
            raise ProductTimeout(f"xl migrate of {self.domain.name} ends", error.timeout, error.last) from None
        output = self.output()
        if status == 0 and Ending.SUCCESS.value in output:
            return Ending.SUCCESS
        if status > 128:
            return Ending.KILLED
        for ending in (Ending.UNDEFINED, Ending.GIVEN_BACK, Ending.NOT_SUSPENDED, Ending.RESUMED_AT_SENDER):
            if ending.value in output:
                return ending
        return Ending.REFUSED

    def is_over(self) -> bool:
        return self._job.poll() is not None

    def ends_within(self, timeout: float) -> bool:
        """Wait at most so many seconds; whether ``xl migrate`` ended. It goes on if not."""
        with contextlib.suppress(WaitTimeout):
            self._job.wait(timeout)
            return True
        return False

    def break_off(self) -> None:
        """Kill the transport, as an administrator does who has waited long enough."""
        self.source.run(f"pkill -KILL -f '{SSH}'", check=False)

    def release(self) -> None:
        """Release what a ``hold`` action of the proxy holds."""
        self.source.run(f"touch {self._folder}/release")

    def phase(self) -> str:
        """The phase it is in, by the stream, the domain's state and xl.

        ``set-up``, ``pre-copy N`` (the pass), ``stop-and-copy``, ``handshake: STEP`` (the last one that passed or is
        held) or ``over``.
        """
        if self.is_over():
            return "over"
        steps = [Step(line["step"]) for line in self.log() if "step" in line]
        for step in (Step.STATUS, Step.REPORT, Step.GO, Step.READY):
            if step in steps:
                return f"handshake: {step.value}"
        row = self.source.domains().get(self.domain.name)
        if row is None or row.is_suspended:
            return "stop-and-copy"
        turns = [line["pass"] for line in self.log() if "pass" in line]
        return f"pre-copy {max(turns)}" if turns else "set-up"

    def stopped(self) -> tuple[float, float] | None:
        """When the guest stood still according to the stream, as two times in seconds since the start.

        From the beginning of the pass that follows the suspend to the report that the guest goes on. None: the stream
        never got that far.
        """
        first = {step.step: step.time - self.started for step in reversed(self.passed())}
        passes = self.passes()
        if Step.REPORT not in first or not passes:
            return None
        return passes[-1].start, first[Step.REPORT]

    def output(self) -> str:
        """All that xl and the receiver have printed."""
        return self._job.output()

    def kill(self) -> None:
        """Kill ``xl migrate`` and every process it started."""
        with contextlib.suppress(WaitTimeout):
            self._job.kill()

    # -- what passed -------------------------------------------------------------------------------------------

    def log(self) -> list[LogLine]:
        """The proxy's log in the order of time; the proxy writes a line that adds up records late."""
        if self._log:
            return self._log
        text = self.source.run(f"cat {self._folder}/log 2>/dev/null || true").stdout
        found: list[LogLine] = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        found.sort(key=lambda line: line["t"])
        if any(line.get("event") == "end" for line in found):  # the proxy's last word
            self._log = found
        return found

    def passed(self) -> list[Passed]:
        """The steps that the proxy passed on, in order."""
        return [_passed(line) for line in self.log() if "step" in line and "action" not in line]

    def acted(self) -> list[tuple[str, Step]]:
        """The actions that were taken, and at which step: the proof that a fault fell where a case says."""
        return [(line["action"], Step(line["step"])) for line in self.log() if "action" in line]

    def actions(self) -> list[tuple[float, str]]:
        """The actions that were taken: the time in seconds since the start, and the action as it was asked for."""
        return [(line["t"] - self.started, line["asked"]) for line in self.log() if "action" in line]

    def not_taken(self) -> list[str]:
        """The actions that were asked for and were not taken."""
        taken = [asked for _, asked in self.actions()]
        return [action for action in self.actions_asked if action not in taken]

    def wait_acted(self, timeout: float = 60.0, *, kind: str = "") -> None:
        """Wait until an action was taken: any, one of a ``kind`` (``hold``), or one that begins so (``hold@TSC_INFO``).

        :raises WaitTimeout: none was taken within ``timeout`` seconds, or before the migration ended.
        """
        log = f"{self._folder}/log"
        pattern = f'"action": "[a-z]*", "asked": "{kind}'
        acted = f"grep -q {shlex.quote(pattern)} {log} 2>/dev/null"
        # The last step's action and the end are close together: both may have come since the first look.
        is_over = f'grep -q \'"event": "end"\' {log} 2>/dev/null'
        condition = f"{{ {acted} || {{ {is_over} && {{ {acted} && exit 0; exit {LATE}; }}; }}; }}"
        if self.source.run(until(condition, timeout, interval=0.1), timeout=timeout + 30, check=False).status:
            raise WaitTimeout(f"{self.domain.name}: the migration comes to the step", timeout, self.output()[-300:])

    def passes(self) -> list[Pass]:
        """The passes over memory. The last one went out while the guest was suspended, if it sent any pages."""
        found: dict[int, Pass] = {}
        for line in self.log():
            if "pass" in line and "action" not in line:
                start, end, number = line["t"] - self.started, line["until"] - self.started, line["pass"]
                before = found.get(number, Pass(number, start, end, 0))
                found[number] = Pass(number, before.start, end, before.pages + line["data"])
        return list(found.values())

    def text(self) -> str:
        """What passed, for the evidence: a line for each step, and one for a run of PAGE_DATA."""
        rows: list[str] = []
        run: list[Passed] = []

        def flush() -> None:
            if run:
                size = sum(one.length for one in run)
                times = f"+{run[0].time - self.started:7.3f} s"
                records = sum(one.records for one in run)
                count = f" x {records}" if records > 1 else ""
                rows.append(f"{times}  {run[0].step.value}{count}  {size} bytes")
                run.clear()

        for line in self.log():
            if "step" in line and "action" not in line:
                one = _passed(line)
                if run and run[-1].step is not one.step:
                    flush()
                run.append(one)
            else:
                flush()
                rest = {key: value for key, value in line.items() if key != "t" and value != ""}
                rows.append(f"+{line['t'] - self.started:7.3f} s  -- " + " ".join(f"{k}={v}" for k, v in rest.items()))
        flush()
        return "\n".join(rows)

    def spans(self) -> list[tuple[str, float, float]]:
        """Phases for a timeline: name, and start and end in seconds since ``xl migrate`` was called."""
        first: dict[Step, float] = {}
        for step in self.passed():
            first.setdefault(step.step, step.time - self.started)
        passes = self.passes()
        spans: list[tuple[str, float, float]] = []

        def span(name: str, start: float | None, end: float | None) -> None:
            if start is not None and end is not None:
                spans.append((name, start, end))

        span("connect", 0.0, first.get(Step.BANNER))
        span("set up", first.get(Step.BANNER), first.get(Step.PAGE_DATA))
        for one, after in itertools.zip_longest(passes, passes[1:]):
            until = after.start if after else first.get(Step.TSC_INFO, one.end)
            span(f"pass {one.number}: {one.pages} pages", one.start, until)
        span("state", first.get(Step.TSC_INFO), first.get(Step.LIBXL_END))
        span("hand over", first.get(Step.LIBXL_END), first.get(Step.STATUS))
        if silence := self.silence():
            span("guest silent", *silence)
        return spans

    def marks(self) -> list[tuple[float, str]]:
        """Instants for a timeline: what each side said, and what the proxy did, in seconds since the start."""
        said = {Step.BANNER: "receiver", Step.READY: "receiver", Step.GO: "sender", Step.STATUS: "receiver"}
        marks = [
            (one.time - self.started, f"{said[one.step]}: {one.step.value}")
            for one in self.passed()
            if one.step in said
        ]
        return sorted([*marks, *self.actions()])

    def silence(self) -> tuple[float, float] | None:
        """The longest time without a heartbeat on either side, from when to when in seconds since the start."""
        beats: list[float] = []
        for host, skew in ((self.source, 0.0), (self.destination, self.skew)):
            with contextlib.suppress(BenchError):  # the board may be off
                beats += [beat.wall - skew - self.started for beat in self.domain.on(host).heartbeats()]
        beats = sorted(beat for beat in beats if beat > -1.0)
        return max(zip(beats, beats[1:], strict=False), key=lambda pair: pair[1] - pair[0], default=None)


def _passed(line: LogLine) -> Passed:
    return Passed(line["t"], Step(line["step"]), line["n"], line["length"], line.get("records", 1))


def start_migration(
    domain: Domain,
    destination: Dom0,
    *,
    actions: Sequence[str] = (),
    options: Sequence[str] = (),
    is_proxied: bool = True,
    patience: float = PATIENCE,
) -> Migration:
    """Start ``xl migrate`` of a domain to another host. ``actions`` are the proxy's, as ``cut@TSC_INFO``."""
    return Migration(domain, destination, actions, options, is_proxied, patience)


@contextlib.contextmanager
def relocated(
    domain: Domain, destination: Dom0, note: Callable[[Migration], None]
) -> Iterator[tuple[Domain, Migration]]:
    """A domain as it runs at the destination of a whole migration, and destroyed there; and that migration.

    ``note`` gets the migration as soon as it has ended, for instance ``evidence.migration``.

    :raises AssertionError: `xl` ended otherwise than with success.
    """
    migration = start_migration(domain, destination)
    there = domain.on(destination)
    try:
        ending = migration.ending()
        note(migration)
        assert ending is Ending.SUCCESS, f"xl ended with {ending.name}"
        yield there, migration
    finally:
        there.destroy()


def downtime(migration: Migration, interval: float) -> float | None:
    """Seconds between the last heartbeat at the source and the first one at the destination, beyond one ``interval``.

    The two hosts' wall clocks are compared before the migration, and their difference is taken out; the error that is
    left is below 0.1 s. None: one of the hosts has no heartbeat.
    """
    before = migration.domain.heartbeats()
    after = migration.domain.on(migration.destination).heartbeats()
    if not before or not after:
        return None
    return after[0].wall - migration.skew - before[-1].wall - interval
