"""Boards that nobody can have at the moment, since the machine that they are cabled to is away.

Each is a file in the lab's folder, whose text is the reason. It is no finding about the board: it is there as long as
the machine is away, and no longer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FOLDER = "away"


def begin(folder: Path, boards: Iterable[str], why: str) -> None:
    """These boards are away. A disk that takes no note of it is no reason to stop."""
    place = folder / FOLDER
    for board in boards:
        try:
            place.mkdir(exist_ok=True)
            fresh = place / f".{board}.{os.getpid()}"
            fresh.write_text(why, encoding="utf-8")
            os.replace(fresh, place / board)
        except OSError:
            (place / board).touch()


def end(folder: Path, boards: Iterable[str]) -> None:
    """These boards are there."""
    for board in boards:
        (folder / FOLDER / board).unlink(missing_ok=True)


def why(folder: Path, board: str) -> str | None:
    """Why the board is away; None: it is not."""
    try:
        return (folder / FOLDER / board).read_text(encoding="utf-8", errors="replace") or "its host is away"
    except OSError:
        return None
