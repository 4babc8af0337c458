"""Live relocation (migration) of a domain, watched and broken at an exact point by :mod:`lab.on_board.proxy`."""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.base.errors import BenchError, ProductTimeout, WaitTimeout
from lab.on_board.proxy import Action
from lab.on_board.stream import Step
from lab.xen.domain import Domain
from lab.xen.host import Host

# A silent cut would hang xl for ever: it has no timeout on any read. It is ssh that notices a lost peer.
# Its default key exchange takes an emulated board most of a second longer: the other one is preferred, not demanded.
TRANSPORT = (
    "ssh -o ServerAliveInterval=%d -o ServerAliveCountMax=3 -o BatchMode=yes -o ConnectTimeout=30"
    " -o KexAlgorithms=^curve25519-sha256"
)
PATIENCE = 60.0  # seconds after which it does: an emulated board may be slow to answer
SSH = "^ssh .*xl migrate-receive"  # what pkill and pgrep find it by
PROXY = "env PYTHONPATH=/usr/lib/xenlab/python python3 -S -m lab.on_board.proxy"


class Ending(enum.Enum):
    """How ``xl migrate`` ended, by its last words (tools/xl/xl_migrate.c)."""

    SUCCESS = "Migration successful."
    RESUMED_AT_SENDER = "Migration failed, resuming at sender."
    GIVEN_BACK = "Migration failed due to problems at target."  # it was the target's, and was given back and resumed
    NOT_SUSPENDED = "Migration failed, failed to suspend at sender."
    UNDEFINED = "** Migration failed during final handshake **"  # may be suspended here and there; nothing resumed
    REFUSED = ""  # failed before anything was sent
    KILLED = "killed"
    LOST = "the source is gone"  # and xl with it: nobody has seen its end


@dataclass(frozen=True, slots=True)
class Passed:
    """A step of the protocol that went through the proxy, or some records. ``time`` by the source dom0's clock."""

    time: float
    step: Step
    n: int
    length: int
    records: int = 1


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over memory, as :class:`lab.on_board.stream.Scanner` tells them apart. Times are seconds since
    the start.
    """

    number: int
    start: float
    end: float
    pages: int  # whose contents were sent


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
    """The command that migrates ``name`` to ``peer`` with the proxy in between; its log is ``FOLDER/log``.

    ``patience`` is the seconds after which the transport gives a silent peer up.

    A shell that starts a job in the background has it ignore SIGINT; xl shall die of it as at a terminal.
    """
    proxy = f"{PROXY} --log {folder}/log --control {folder} "
    proxy += " ".join(f"--action {shlex.quote(action)}" for action in actions)
    rune = f"{TRANSPORT % round(patience / 3)} {shlex.quote(peer)} xl migrate-receive"
    rune = f"{proxy} -- {rune}" if is_proxied else f"exec {rune}"
    return ["env", "--default-signal=INT", "xl", "-v", "migrate", *options, "-s", "", name, rune]


class Migration:
    """One ``xl migrate`` that is under way, or over."""

    _numbers = itertools.count(1)

    def __init__(
        self,
        domain: Domain,
        destination: Host,
        actions: Sequence[str],
        options: Sequence[str],
        is_proxied: bool,
        patience: float,
    ) -> None:
        self.domain, self.source, self.destination = domain, domain.host, destination
        for action in actions:
            Action.parse(action)  # a mistake is found here, not on the board
        self._folder = f"/run/xenlab/migration-{next(self._numbers)}-{int(time.time()) % 100000}"
        peer = destination.link_name
        command = words(domain.name, peer, self._folder, actions, options, is_proxied=is_proxied, patience=patience)
        self.actions_asked = tuple(actions)
        ahead = self.source.lag()
        self.skew = destination.lag() - ahead  # seconds the destination's clock is ahead of the source's
        self.started = time.time() + ahead  # by the source's
        self._job: Any = self.source.board.spawn(f"mkdir -p {self._folder}; exec {shlex.join(command)}")
        self._status: int | None = None
        self._log: list[dict[str, Any]] = []  # once it is whole

    def ending(self, timeout: float = 120.0) -> Ending:
        """Wait for the end.

        :raises ProductTimeout: ``xl migrate`` still runs, and is killed.
        """
        try:
            self._status = self._job.wait(timeout)
        except WaitTimeout as error:
            self._job.kill()
            raise ProductTimeout(f"xl migrate of {self.domain.name} ends", timeout, error.last) from None
        output = self.output()
        if self._status == 0 and Ending.SUCCESS.value in output:
            return Ending.SUCCESS
        if self._status is not None and self._status > 128:
            return Ending.KILLED
        for ending in (Ending.UNDEFINED, Ending.GIVEN_BACK, Ending.NOT_SUSPENDED, Ending.RESUMED_AT_SENDER):
            if ending.value in output:
                return ending
        return Ending.REFUSED

    def is_over(self) -> bool:
        return self._job.poll() is not None

    def ends_within(self, timeout: float) -> bool:
        """Wait; whether it came to an end. It goes on if not."""
        with contextlib.suppress(WaitTimeout):
            self._job.wait(timeout)
            return True
        return False

    def break_off(self) -> None:
        """End the transport, as an administrator does who has waited long enough."""
        self.source.run(f"pkill -KILL -f '{SSH}'", check=False)

    def release(self) -> None:
        """Let go of what a ``hold`` action holds."""
        self.source.run(f"touch {self._folder}/release")

    def phase(self) -> str:
        """Where it stands, by the stream, the domain's state and xl: ``set-up``, ``pre-copy N`` (the pass),
        ``stop-and-copy``, ``handshake: STEP`` (the last that has passed or is held) or ``over``.
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
        """When the guest stood still by the stream, as seconds since the start: from the pass that follows its suspend
        to the report that it goes on. None: it did not come to that.
        """
        first = {step.step: step.time - self.started for step in reversed(self.passed())}
        passes = self.passes()
        if Step.REPORT not in first or not passes:
            return None
        return passes[-1].start, first[Step.REPORT]

    def output(self) -> str:
        """All that xl and the receiver have said."""
        return str(self._job.output())

    def kill(self) -> None:
        """Kill ``xl migrate`` and all it has started."""
        with contextlib.suppress(WaitTimeout):
            self._job.kill()

    # -- what passed -------------------------------------------------------------------------------------------

    def log(self) -> list[dict[str, Any]]:
        """The proxy's log, in the order of time: a line that is added up is written late."""
        if self._log:
            return self._log
        text = self.source.run(f"cat {self._folder}/log 2>/dev/null || true").stdout
        found = []
        for line in str(text).splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        found.sort(key=lambda line: line["t"])
        if any(line.get("event") == "end" for line in found):  # the proxy's last word
            self._log = found
        return found

    def passed(self) -> list[Passed]:
        """The steps that were passed on, in order."""
        return [_passed(line) for line in self.log() if "step" in line and "action" not in line]

    def acted(self) -> list[tuple[str, Step]]:
        """The actions that were taken, and where: the proof that a fault fell where a case says."""
        return [(line["action"], Step(line["step"])) for line in self.log() if "action" in line]

    def actions(self) -> list[tuple[float, str]]:
        """The actions that were taken: seconds since the start, and what was asked for."""
        return [(line["t"] - self.started, line["asked"]) for line in self.log() if "action" in line]

    def not_taken(self) -> list[str]:
        """The actions that were asked for and did not come to pass."""
        taken = [asked for _, asked in self.actions()]
        return [action for action in self.actions_asked if action not in taken]

    def wait_acted(self, timeout: float = 60.0, *, kind: str = "") -> None:
        """Wait until an action was taken: any, one of a ``kind`` (``hold``), or one that begins so (``hold@TSC_INFO``).

        :raises WaitTimeout: it did not come to it, in time or before the end.
        """
        pattern = shlex.quote(f'"action": "[a-z]*", "asked": "{kind}')
        script = (
            f"i=0; until grep -q {pattern} {self._folder}/log 2>/dev/null; do i=$((i+1)); "
            f"[ $i -lt {int(timeout * 10)} ] || exit 9; "
            # Both may have come since the first look: the last step's action and the end are close together.
            f'grep -q \'"event": "end"\' {self._folder}/log 2>/dev/null && '
            f"{{ grep -q {pattern} {self._folder}/log && exit 0; exit 8; }}; sleep 0.1; done"
        )
        if self.source.run(script, timeout=timeout * 2 + 30, check=False).status:
            raise WaitTimeout(f"{self.domain.name}: the migration comes to the step", timeout, self.output()[-300:])

    def passes(self) -> list[Pass]:
        """The passes over memory; the last one goes out when the guest is suspended, if it has sent any pages."""
        found: dict[int, Pass] = {}
        for line in self.log():
            if "pass" in line and "action" not in line:
                start, end, number = line["t"] - self.started, line["until"] - self.started, line["pass"]
                before = found.get(number, Pass(number, start, end, 0))
                found[number] = Pass(number, before.start, end, before.pages + line["data"])
        return list(found.values())

    def text(self) -> str:
        """What passed, for the evidence: one line a step, runs of PAGE_DATA in one."""
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
        """Phases for a timeline: name, start and end in seconds since ``xl migrate`` was called."""
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
        """Instants for a timeline: what each side said, and what the proxy did."""
        said = {Step.BANNER: "receiver", Step.READY: "receiver", Step.GO: "sender", Step.STATUS: "receiver"}
        marks = [
            (one.time - self.started, f"{said[one.step]}: {one.step.value}")
            for one in self.passed()
            if one.step in said
        ]
        return sorted([*marks, *self.actions()])

    def silence(self) -> tuple[float, float] | None:
        """The longest time without a heartbeat, on whatever side, as seconds since the start by the source's clock."""
        beats: list[float] = []
        for host, skew in ((self.source, 0.0), (self.destination, self.skew)):
            with contextlib.suppress(BenchError):  # a board may be off
                beats += [beat.wall - skew - self.started for beat in self.domain.on(host).heartbeats()]
        beats = sorted(beat for beat in beats if beat > -1.0)
        return max(zip(beats, beats[1:], strict=False), key=lambda pair: pair[1] - pair[0], default=None)


def _passed(line: dict[str, Any]) -> Passed:
    return Passed(line["t"], Step(line["step"]), line["n"], line["length"], line.get("records", 1))


def start_migration(
    domain: Domain,
    destination: Host,
    *,
    actions: Sequence[str] = (),
    options: Sequence[str] = (),
    is_proxied: bool = True,
    patience: float = PATIENCE,
) -> Migration:
    """Start ``xl migrate`` of a domain to another host. ``actions`` are the proxy's (``cut@TSC_INFO``)."""
    return Migration(domain, destination, actions, options, is_proxied, patience)


def downtime(migration: Migration, interval: float) -> float | None:
    """Seconds for which the guest's heart stood still beyond one ``interval``, by the two hosts' wall clocks.

    The clocks' difference is measured before the migration and taken out; what is left of it is below 0.1 s.
    """
    before = migration.domain.heartbeats()
    after = migration.domain.on(migration.destination).heartbeats()
    if not before or not after:
        return None
    return float(after[0].wall - migration.skew - before[-1].wall - interval)
