"""What is gathered about a case while it runs, and the fixture through which the case adds to it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from lab.base.errors import BoardError, HypervisorCrash, NotProved
from lab.case.counting import Counted
from lab.case.seat import Seat
from lab.console.client import ConsoleLine
from lab.console.recalled import Live
from lab.reporting.figures import relocation_svg
from lab.results.observation import StealTime
from lab.results.record import Check, Evidence, GuestConsole, Phase
from lab.results.run_folder import PROFILES
from lab.xen.domain import Domain
from lab.xen.host import Host
from lab.xen.migration import Migration

log = logging.getLogger(__name__)


@dataclass
class Running:
    """What the plugin gathers about the case that is running."""

    item: pytest.Item
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)
    seats: dict[str, Seat] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    outcome: BaseException | None = None
    skipped: str | None = None
    evidence: list[Evidence] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)  # before there were boards; the rig has the others
    checks: list[Check] = field(default_factory=list)
    guests: list[GuestConsole] = field(default_factory=list)  # those whose console is among the evidence
    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    counted: Counted = field(default_factory=Counted)  # with --coverage
    crash: HypervisorCrash | None = None
    crash_time: float = 0.0  # when the line of the crash was recorded
    crash_numbers: dict[str, set[int]] = field(
        default_factory=dict
    )  # board -> console records seen live that count as a crash
    live: dict[str, Live[ConsoleLine]] = field(default_factory=dict)  # board -> who reads its console meanwhile
    expected: frozenset[str] = frozenset()
    steal: dict[str, StealTime] = field(default_factory=dict)  # of boards that know it: until the case began

    def look_at_steal(self, name: str) -> StealTime | None:
        """What a board has had of its machine since the last look; None if there was none, or it does not know."""
        meter, before = self.seats[name].board.steal_meter, self.steal.pop(name, None)
        if meter is None:
            return None
        try:
            self.steal[name] = meter.read()
        except BoardError as error:
            log.warning("%s", error)
            return None
        return before and self.steal[name].since(before)

    def keep(self, title: str, guest: GuestConsole) -> None:
        """Keep what a guest has printed: as evidence, and for the verdict."""
        self.guests.append(guest)
        self.evidence.append(guest.as_evidence(title, time.time()))


class CaseLog:
    """The fixture ``evidence``, through which a case keeps facts, figures and drawings beside its verdict."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running, self._folder = running, folder

    def add(self, title: str, body: str, *, kind: str = "command", board: str | None = None) -> None:
        """Keep a captured fact."""
        self._running.evidence.append(Evidence(kind, title, body, time.time(), board))

    def figure(self, name: str, value: float | None) -> None:
        """Keep a number; its name ends in its unit (``downtime_s``). None (it could not be measured) is dropped."""
        if value is not None:
            self._running.figures[name] = float(value)

    def profiles(self, found: Mapping[str, Mapping[int, float]]) -> None:
        """Keep of what figures are made: by figure, instructions by the hypervisor's address."""
        self._folder.mkdir(parents=True, exist_ok=True)
        by_figure = {
            figure: {f"{at:x}": round(count, 4) for at, count in sorted(blocks.items())}
            for figure, blocks in found.items()
        }
        (self._folder / PROFILES).write_text(json.dumps(by_figure, indent=1) + "\n", encoding="utf-8")

    def checked(self, checks: Sequence[Check]) -> None:
        """Keep how named checks ended. They fail no case by themselves."""
        self._running.checks += checks
        self.add("checks", "\n".join(check.line() for check in checks), kind="note")

    def console(self, title: str, guest: Domain) -> None:
        """Keep what a guest has printed."""
        self._running.keep(title, guest.printed())

    def migration(self, migration: Migration) -> None:
        """Keep the output of ``xl migrate`` and the steps of the stream, and draw the migration's time line."""
        board = migration.source.name
        self.add("xl migrate", migration.output(), board=board)
        self.add("what passed between the hosts", migration.text(), kind="note", board=board)
        if spans := migration.spans():
            title = f"relocation of {migration.domain.name}"
            self.picture(title, relocation_svg(title, spans, migration.marks()))

    def unproved(self, why: str) -> NoReturn:
        """End the case because its precondition could not be established: verdict MISS.

        :raises NotProved: always.
        """
        raise NotProved(f"not proved: {why}")

    def file(self, title: str, host: Host, remote: str) -> None:
        """Copy a file of the board into the folder of this attempt. Its name there is among the evidence.

        :raises BenchError: it cannot be copied.
        """
        local = self._folder / f"{host.name}-{Path(remote).name}"
        local.parent.mkdir(parents=True, exist_ok=True)
        host.board.get(remote, local)
        kept = local.read_bytes()
        said = f"{local.name}: {len(kept)} bytes, SHA-256 {hashlib.sha256(kept).hexdigest()}"
        self.add(title, f"{said}; {remote} on the board", kind="note", board=host.name)

    def picture(self, title: str, svg: str) -> None:
        """Keep a drawing."""
        path = self._folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', title)}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg, encoding="utf-8")
        self._running.pictures[title] = str(path)
