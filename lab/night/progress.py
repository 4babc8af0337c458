"""What a lab's current run is doing: the run notes it, and ``xenlab status`` shows it."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import processes, shape
from lab.base.errors import UsageError
from lab.grid import services
from lab.inventory import Lab
from lab.night import planning
from lab.reporting.words import seconds_text
from lab.results.record import Time, Verdict
from lab.results.run_folder import RunFolder, replace_file

RUNNING = "night.json"  # in the lab's folder: which run is going on


@dataclass(frozen=True, slots=True)
class _Running:
    """What that file holds."""

    folder: str
    process: str  # processes.mark of the run
    phase: str
    since: Time


def note(lab: Lab, run: Path, phase: str) -> None:
    """Note the phase of this process's run, whose folder is ``run``."""
    content = _Running(str(run), processes.mark(os.getpid()), phase, time.time())
    folder = services.directory(lab)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / RUNNING, json.dumps(asdict(content)))


@dataclass(frozen=True, slots=True)
class Working:
    """A case that runs now, on which boards (``virt1+virt2``), and for how long: without provisioning.

    Until its boards are ready, it is the time that they are being provisioned.
    """

    boards: str
    case: str
    seconds: float
    is_ready: bool

    def line(self) -> str:
        """``virt1: CASE, 12 s``, or ``virt1: CASE, provisioning for 12 s``"""
        return f"{self.boards}: {self.case}, {'' if self.is_ready else 'provisioning for '}{seconds_text(self.seconds)}"


@dataclass(frozen=True, slots=True)
class GoingOn:
    """What a lab's current run is doing."""

    run: str
    folder: Path
    selection: str
    builds: tuple[str, ...]
    phase: str
    phase_seconds: float
    verdicts: Mapping[Verdict, int]  # of the cases that have ended
    to_go: int
    seconds_left: float  # guessed
    working: tuple[Working, ...]

    def lines(self) -> list[str]:
        """For a terminal: the run, what it has done, and a line for each case that runs."""
        said = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in Verdict if verdict in self.verdicts)
        done = f"{sum(self.verdicts.values())} done ({said or 'none'})"
        return [
            f"run {self.run}, {self.selection}, {', '.join(self.builds)}: {self.folder}",
            f"{self.phase} for {seconds_text(self.phase_seconds)}; {done}, "
            f"{self.to_go} to go, about {seconds_text(self.seconds_left)}",
            *(one.line() for one in self.working),
        ]


def going_on(lab: Lab) -> GoingOn | None:
    """What the lab's current run is doing; None when there is no run."""
    try:
        noted = shape.read(_Running, (services.directory(lab) / RUNNING).read_bytes())
        folder = RunFolder.open(Path(noted.folder))
    except (OSError, ValueError, UsageError):
        return None
    if not processes.is_alive(noted.process):
        return None
    now, header, due = time.time(), folder.header(), folder.due()
    known, working = planning.durations(), folder.now()
    left = sum(known.get(one.case, planning.GUESSED_SECONDS) for one in due) / max(1, len(working))
    return GoingOn(
        run=header.run_id,
        folder=folder.path,
        selection=header.selection,
        builds=header.builds,
        phase=noted.phase,
        phase_seconds=now - noted.since,
        verdicts=dict(Counter(result.verdict for result in folder.final_results())),
        to_go=len(due),
        seconds_left=left,
        working=tuple(Working(boards, case, now - since, ready) for boards, (case, since, ready) in working.items()),
    )
