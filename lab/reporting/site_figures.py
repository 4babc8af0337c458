"""The pages of figures that are costs: each over the builds of a line, board by board, with its levels and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import markupsafe

from lab.history import tracks
from lab.history.records import Place, RecordedBuild
from lab.history.tracks import Point, Step, Track
from lab.reporting import figures, site_places
from lab.reporting.figures import Band

Proof = Callable[[Place], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page of a figure shows of one of its tracks; what is listed has the newest first."""

    track: Track
    drawing: markupsafe.Markup
    steps: tuple[tuple[Step, str], ...]  # with the command that finds the commit
    points: tuple[Point, ...]


def write(where: Path, found: Sequence[Track], proof: Proof) -> set[str]:
    """A page for each figure; the names of those that have one. Pages of others go."""
    made = {}
    for figure, of in groupby(sorted(found, key=lambda track: track.figure), key=lambda track: track.figure):
        page = site_places.figure_page(figure)
        values = {"root": "../", "figure": figure, "shown": [*map(_shown, of)], "proof": proof, "issues": ()}
        site_places.render(where, "figure", page, values)
        made[figure] = Path(page).name
    site_places.keep_only(where / "figures", {*made.values()})
    return {*made}


def _short(build: RecordedBuild) -> str:
    return f"{build.source.name or build.key[:8]} ({build.date})"


def _shown(track: Track) -> Shown:
    named = [(_short(point.build), point.numbers) for point in track.points]
    bands = [Band(level.first, level.end, level.median, level.noise or 0.0) for level in track.levels]
    return Shown(
        track,
        markupsafe.Markup(figures.level_svg(f"{track.figure}, {track.where}", named, bands)),
        tuple((step, tracks.bisect_command(track, step)) for step in reversed(track.steps)),
        track.points[::-1],
    )
