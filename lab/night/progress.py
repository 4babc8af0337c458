"""What the run that goes on in a lab is doing: noted by the run, shown by ``xenlab status``."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import processes, shape
from lab.base.errors import UsageError
from lab.grid import services
from lab.inventory import Lab
from lab.night import planning
from lab.reporting import html
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
    """Note that this process is in that phase of the run in the folder ``run``."""
    content = _Running(str(run), processes.mark(os.getpid()), phase, time.time())
    folder = services.directory(lab)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / RUNNING, json.dumps(asdict(content)))


def progress(lab: Lab) -> list[str]:
    """What the run that goes on in this lab is doing; empty when none does."""
    try:
        noted = shape.read(_Running, (services.directory(lab) / RUNNING).read_bytes())
        folder = RunFolder.open(Path(noted.folder))
    except (OSError, ValueError, UsageError):
        return []
    if not processes.is_alive(noted.process):
        return []
    now, header, results = time.time(), folder.header(), folder.final_results()
    due = folder.due()
    counts = Counter(result.verdict for result in results)
    known, working = planning.durations(), folder.now()
    left = sum(known.get(one.case, planning.GUESSED_SECONDS) for one in due) / max(1, len(working))
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    lines = [
        f"run {header.run_id}, {header.selection}, {', '.join(header.builds)}: {folder.path}",
        f"{noted.phase} for {html.seconds_text(now - noted.since)}; {len(results)} done ({said or 'none'}), "
        f"{len(due)} to go, about {html.seconds_text(left)}",
    ]
    lines += [f"{boards}: {case}, {html.seconds_text(now - since)}" for boards, (case, since) in working.items()]
    return lines
