"""What must be true after a migration that failed, as checks with names, so that a finding can excuse exactly one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from lab.base.errors import BenchError, ProductFailure, ProductTimeout, WaitTimeout
from lab.base.wait import wait_until
from lab.results.record import Check
from lab.xen.dom0 import ARRIVED, AWAY, Dom0
from lab.xen.domain import Domain, assert_unbroken
from lab.xen.migration import SSH, Ending, Migration, start_migration
from lab.xen.migration_matrix.attempt import Outcome, clean_up, resolve
from lab.xen.migration_matrix.cells import PHASES, Cell
from lab.xen.migration_matrix.expected import Expectation, Where, expected, is_followed
from lab.xen.migration_matrix.faults import LAST, LATE, RECEIVER, RESTORER, SAVER, SENDER
from lab.xen.migration_matrix.known_findings import Known
from lab.xen.migration_matrix.strikes import Side
from lab.xen.payloads import Heartbeat, PayloadLine

GRACE = 30.0  # seconds that an emulated board may need beyond the stated limit
SETTLING = 25.0  # seconds in which processes, entries and memory of a dead copy must go
AWRY = 15.0  # seconds by which a guest's wall clock may seem to differ from dom0's: it is read through a slow console
CLOCK = 0.5  # seconds by which two hosts' clocks may differ beyond what was measured
BEATS_LIMIT = 60.0
MEMORY_SLACK_MIB = 2  # Xen keeps a few pages

FOLLOW_LIMIT = 120.0  # seconds for a migration without a fault
PROCESSES = {"source": (SENDER, SAVER, SSH), "destination": (RECEIVER, RESTORER)}

CHECKS = {
    "ending": "xl migrate ends as the protocol says",
    "gave-up-in-time": "the source ends within its stated time",
    "one-copy": "at no time can more than one copy run",
    "where": "the guest runs where the protocol says, and only there",
    "left-source": "nothing is left at the source: --migratedaway, processes, xenstore entries, dead domains",
    "left-destination": "nothing is left at the destination: --incoming, processes, xenstore entries, dead domains",
    "log-dirty-off": "the guest that stays at the source is no longer in log-dirty mode",
    "resolved": "an administrator gets the guest back, once",
    "heart-unbroken": "no heartbeat of the guest is lost or doubled",
    "time": "the guest's clocks go on: system time never back on a host, wall time as dom0's",
    "memory": "the guest's memory is intact",
    "follow-up": "the guest can be migrated afterwards, and back",
    "memory-back-source": "the source's memory is free again when the guest is gone",
    "memory-back-destination": "the destination's memory is free again when the guest is gone",
}


@dataclass(frozen=True, slots=True)
class Before:
    """Free memory of both hosts before the guest was created, in MiB."""

    source_mib: int
    destination_mib: int

    @classmethod
    def of(cls, source: Dom0, destination: Dom0) -> Before:
        return cls(source.free_memory_mib(), destination.free_memory_mib())


def examine(cell: Cell, guest: Domain, destination: Dom0, outcome: Outcome, before: Before) -> list[Check]:
    """Make all checks on both hosts, and do in between what xl leaves to the administrator.

    The guest is destroyed afterwards.

    :raises BenchError: a host does not answer.
    """
    return _Examination(cell, guest, destination, outcome, before).run()


def excused(checks: list[Check], cell: Cell, version: str, known: Known) -> list[Check]:
    """The checks, those that fail excused by what is known of this cell on this version of Xen."""
    return [
        check if check.is_good else replace(check, excuse=known.finding(version, cell.id, check.name))
        for check in checks
    ]


def record(cell: Cell, outcome: Outcome, checks: list[Check]) -> str:
    """The cell as JSON, for the report's map of endings."""
    wanted = expected(cell)
    bad = [check.name for check in checks if check.is_bad]
    known = sorted({check.excuse for check in checks if check.excuse and not check.is_good})
    return json.dumps(
        {
            "guest": cell.guest,
            "fault": cell.fault.name,
            "place": cell.place,
            "order": 3 * list(PHASES).index(cell.step) + {LATE: 1, LAST: 2}.get(cell.place, 0),
            "ending": outcome.ending.name,
            "wanted": wanted.ending.name,
            "where": wanted.where.name,
            "hung": outcome.hung,
            "unproved": outcome.unproved or "",
            "bad": bad,
            "known": known,
        }
    )


def no_longer(checks: list[Check], cell: Cell, version: str, known: Known) -> list[str]:
    """Known findings that did not show this time, as ``FINDING (CHECK)``."""
    good = {check.name for check in checks if check.is_good}
    return [f"{finding} ({check})" for check, finding in known.of(version, cell.id).items() if check in good]


class _Examination:
    def __init__(self, cell: Cell, guest: Domain, destination: Dom0, outcome: Outcome, before: Before) -> None:
        self.cell, self.outcome, self.before = cell, outcome, before
        self.source, self.destination, self.name = guest.host, destination, guest.name
        self.here, self.there = guest, guest.on(destination)
        self.wanted: Expectation = expected(cell)
        self.now = Where.NOWHERE  # the guest, after what an administrator would have done
        self.checks: list[Check] = []

    def run(self) -> list[Check]:
        self._ending()
        self._copies()
        self._where()
        self._left()
        self._log_dirty()
        self._resolved()
        self._follow_up()
        self._heart()
        self._memory_back()
        return self.checks

    def _say(self, name: str, is_good: bool, said: str) -> None:
        assert name in CHECKS, name
        self.checks.append(Check(name, is_good, said))

    def _ending(self) -> None:
        seen, wanted, hung = self.outcome.ending, self.wanted.ending, self.outcome.hung
        hangs = " after it hung and its transport was ended" if hung else ""
        should = " after hanging" if self.wanted.hangs else ""
        is_good = seen is wanted and hung == self.wanted.hangs
        self._say("ending", is_good, f"{seen.name}{hangs}, must be {wanted.name}{should} ({self.wanted.why})")
        if self.outcome.seconds is not None and wanted not in (Ending.SUCCESS, Ending.LOST) and not hung:
            took, limit = self.outcome.seconds, self.wanted.gives_up
            self._say("gave-up-in-time", took <= limit + GRACE, f"{took:.1f} s, stated {limit:.0f} s (+{GRACE:.0f} s)")

    # -- copies ------------------------------------------------------------------------------------------------

    def _able(self, host: Dom0) -> list[str]:
        """Copies of the guest that can run now, as ``NAME at HOST (STATE)``."""
        names = (self.name, self.name + ARRIVED, self.name + AWAY)
        rows = host.domains()
        return [
            f"{name} at {host.name} ({rows[name].state})"
            for name in names
            if name in rows and not set("pscd") & set(rows[name].state)
        ]

    def _copies(self) -> None:
        able = self._able(self.source) + self._able(self.destination)
        here, there = self.here.heartbeats(), self.there.heartbeats()
        skew = self.outcome.migration.skew
        overlap = here[-1].wall - (there[0].wall - skew) if here and there else -1.0
        is_good = len(able) <= 1 and overlap < CLOCK
        self._say("one-copy", is_good, f"can run: {', '.join(able) or 'none'}; both beat for {max(overlap, 0):.1f} s")

    def _where(self) -> None:
        wanted = self.wanted.where
        is_good, said = True, wanted.value
        try:
            if wanted is Where.SOURCE:
                self.here.beats(10, BEATS_LIMIT)
            elif wanted is Where.DESTINATION:
                self.there.beats(10, BEATS_LIMIT)
        except ProductFailure as error:
            is_good, said = False, str(error)
        able = self._able(self.source), self._able(self.destination)
        asked = (wanted is Where.SOURCE, wanted is Where.DESTINATION)
        if tuple(bool(one) for one in able) != asked:
            is_good, said = False, f"must be: {wanted.value}; can run: {', '.join([*able[0], *able[1]]) or 'none'}"
        self._say("where", is_good, said)

    # -- what is left ------------------------------------------------------------------------------------------

    def _left(self) -> None:
        is_there = self.wanted.where is Where.DESTINATION
        source_names = {self.name} if self.wanted.where is Where.SOURCE or self._is_crashed() else set()
        side: Side
        for side, host, allowed, reason in (
            ("source", self.source, source_names, self.wanted.left_at_source),
            ("destination", self.destination, {self.name} if is_there else set(), self.wanted.left_at_destination),
        ):
            if reason:
                self._say(f"left-{side}", True, f"not checked: {reason}")
                continue
            left = _settled(lambda side=side, host=host, allowed=allowed: leftovers(host, self.name, allowed, side))  # type: ignore[misc]
            self._say(f"left-{side}", not left, "; ".join(left) or "nothing")

    def _is_crashed(self) -> bool:
        return self.wanted.where is Where.NOWHERE and self.cell.fault.leaves_crashed

    def _log_dirty(self) -> None:
        if self.wanted.where is not Where.SOURCE or (row := self.source.domains().get(self.name)) is None:
            return
        line = paging(self.source.debug_keys("q"), row.domid)
        if line is not None:
            self._say("log-dirty-off", "log_dirty" not in line, f"paging assistance: {line}")

    # -- put right ---------------------------------------------------------------------------------------------

    def _resolved(self) -> None:
        """After the administrator's work all cells are alike: one copy runs, or no copy is left that could."""
        wanted = {Where.NEITHER: Where.SOURCE}.get(self.wanted.where, self.wanted.where)
        if self._is_crashed():
            return
        try:
            now = self.now = resolve(self.here, self.destination)
            if now is not Where.NOWHERE:
                end = self.here if now is Where.SOURCE else self.there
                wall = end.beats(5, BEATS_LIMIT).wall
                self._time(wall - end.host.clock())
            able = self._able(self.source) + self._able(self.destination)
            left = [
                *leftovers(self.source, self.name, {self.name}, "source"),
                *_settled(lambda: leftovers(self.destination, self.name, {self.name}, "destination")),
            ]
            is_good = now is wanted and len(able) == (now is not Where.NOWHERE) and not left
            self._say("resolved", is_good, f"{now.value}; can run: {', '.join(able) or 'none'}; {'; '.join(left)}")
        except (ProductFailure, BenchError) as error:
            self._say("resolved", False, str(error))

    def _time(self, awry: float) -> None:
        back = ""
        for end in (self.here, self.there):
            beats = sorted(end.heartbeats(), key=lambda beat: beat.n)
            for before, after in zip(beats, beats[1:], strict=False):
                if after.system_ns <= before.system_ns and after.n == before.n + 1:
                    back = f"; at {end.host.name} system time goes back from beat {before.n} to {after.n}"
        self._say("time", abs(awry) < AWRY and not back, f"wall clock {awry:+.1f} s of dom0's{back}")

    def _follow_up(self) -> None:
        """Migrate there and back once more, without a fault. On one board there is no way back, so it goes on twice."""
        if not is_followed(self.cell) or self.now is Where.NOWHERE:
            return
        back = self.there if self.source.board is self.destination.board else self.here
        way = [self.here, self.there, back] if self.now is Where.SOURCE else [self.there, back, self.there]
        said = []
        for end, other in itertools.pairwise(way):
            migration = start_migration(end, other.host)
            try:
                ending = migration.ending(FOLLOW_LIMIT)
            except ProductTimeout as error:
                self._say("follow-up", False, f"from {end.host.name}: {error}; {_last_steps(migration)}")
                return
            said.append(ending.name)
            if ending is not Ending.SUCCESS:
                said.append(f"{migration.output()[-300:]}; {_last_steps(migration)}")
                self._say("follow-up", False, f"from {end.host.name}: {': '.join(said[-2:])}")
                return
            try:
                other.beats(5, BEATS_LIMIT)
            except ProductFailure as error:
                self._say("follow-up", False, str(error))
                return
        self._say("follow-up", True, ", ".join(said))

    def _heart(self) -> None:
        lines = [self.here.payload_lines(), self.there.payload_lines()]
        here, there = ([line for line in of_end if isinstance(line, Heartbeat)] for of_end in lines)
        if self.outcome.ending is Ending.LOST or (self.cell.fault.reboots == "destination" and there):
            here = []  # the last lines of the console log were lost with the power
        kept = self.wanted.where is Where.DESTINATION or is_followed(self.cell)
        beats = sorted([*here, *there] if kept else here or there, key=lambda beat: beat.n)
        try:
            assert_unbroken(beats)
            self._say("heart-unbroken", True, f"{len(beats)} beats")
        except AssertionError as error:
            self._say("heart-unbroken", False, str(error))
        results = [line for line in itertools.chain(*lines) if isinstance(line, PayloadLine)]
        failed = [line for line in results if line.outcome == "FAIL"]
        said = "; ".join(f"{line.case}: {line.detail}" for line in failed[:3])
        if self.wanted.is_intact:
            self._say("memory", not failed, said or "no page differs")
        else:
            self._say("memory", True, f"not checked: {self.wanted.why}. {said}")

    def _memory_back(self) -> None:
        clean_up(self.here, self.destination)
        for name, host, wanted in (
            ("memory-back-source", self.source, self.before.source_mib),
            ("memory-back-destination", self.destination, self.before.destination_mib),
        ):
            try:
                wait_until(
                    lambda host=host, wanted=wanted: host.free_memory_mib() >= wanted - MEMORY_SLACK_MIB,  # type: ignore[misc]
                    SETTLING,
                    f"{host.name}: memory free",
                    interval=1.0,
                )
                self._say(name, True, f"{wanted} MiB")
            except WaitTimeout:
                self._say(name, False, f"{host.free_memory_mib()} MiB free, {wanted} MiB before")


def _last_steps(migration: Migration) -> str:
    """How far a migration came, for a reader who must tell one that stands still from one that is slow."""
    passes = "; ".join(
        f"pass {one.number}: {one.pages} pages in {one.end - one.start:.0f} s" for one in migration.passes()
    )
    return f"{passes or 'no pass over memory'}; last: {' | '.join(migration.text().splitlines()[-2:]) or 'nothing'}"


def _settled(look: Callable[[], list[str]]) -> list[str]:
    """What ``look`` still finds after :data:`SETTLING`; empty as soon as it finds nothing."""
    last: list[str] = []

    def is_gone() -> bool:
        last[:] = look()
        return not last

    try:
        wait_until(is_gone, SETTLING, "nothing is left", interval=1.0)
    except WaitTimeout:
        pass
    return last


def leftovers(host: Dom0, name: str, allowed: set[str], side: Side) -> list[str]:
    """What a migration left on a host and should not have. ``allowed``: names of domains that may be there.

    A dead domain, ``(null)``, is one whose pages somebody still holds, by grants or foreign mappings.
    """
    every = host.rows()
    rows = host.own(every)
    left = [f"domain {one} ({row.state})" for one, row in rows.items() if one.startswith(name) and one not in allowed]
    left += [f"dead domain {row.domid} ({row.state})" for row in every if row.name == "(null)"]
    asked = host.run(
        f"pgrep -af '{'|'.join(PROCESSES[side])}' || true; echo ---; "
        "xenstore-list /local/domain 2>/dev/null || true; echo ---; "
        "ls /var/lib/xen 2>/dev/null | grep -E '^qemu-(save|resume)' || true; echo ---; "
        "ps -eo args= | grep -oE 'qemu-system.* -xen-domid [0-9]+' | sed 's/.* //' || true"
    ).stdout
    processes, entries, files, emulators = (part.split("\n") for part in str(asked).split("---\n"))
    # After a success xl migrate-receive stays as the domain's monitor, as xl create does (xl_vmcontrol.c).
    is_monitored = name in allowed and name in rows
    left += [
        f"process {' '.join(one.split()[:6])}"
        for one in processes
        if one.strip() and not (is_monitored and "migrate-receive" in one)
    ]
    domids = {str(row.domid) for row in every}
    left += [f"xenstore /local/domain/{one}" for one in entries if one.strip().isdigit() and one.strip() not in domids]
    left += [f"device model of domain {one}" for one in emulators if one.strip() and one.strip() not in domids]
    # The files of a living guest stay (libxl_domain.c, libxl__destroy_domid).
    return left + [f"/var/lib/xen/{one}" for one in files if one.strip() and one.rpartition(".")[2] not in domids]


_DOMAIN = re.compile(r"General information for domain (\d+):")
_PAGING = re.compile(r"paging assistance:(.*)")


def paging(said: str, domid: int) -> str | None:
    """The modes that debug key q prints for a domain (xen/common/keyhandler.c, xen/arch/x86/mm/paging.c)."""
    current = -1
    for line in said.splitlines():
        if match := _DOMAIN.search(line):
            current = int(match[1])
        elif current == domid and (match := _PAGING.search(line)):
            return match[1].strip()
    return None
