"""What the QEMU of a lab's virtual boards cannot do: capabilities that they lack, and all other boards have.

`xenlab lab up` finds it out and keeps it in the lab's state folder; every command with that state folder heeds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lab.base import paths
from lab.inventory import capabilities
from lab.inventory.specs import Lab


def keep(lab: Lab, lacks: Iterable[str]) -> None:
    """Keep what the lab's virtual boards lack from now on."""
    file = _file(lab)
    if words := sorted(lacks):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{word}\n" for word in words), encoding="ascii")
    else:
        file.unlink(missing_ok=True)


def applied(lab: Lab) -> Lab:
    """The lab with its virtual boards' capabilities without those that its state folder names.

    :raises UsageError: the file names a word that is none.
    """
    try:
        lacks = _file(lab).read_text(encoding="ascii").split()
    except FileNotFoundError:
        return lab
    for word in lacks:
        capabilities.check(word, str(_file(lab)))
    boards = {
        name: replace(board, capabilities=board.capabilities.difference(lacks))
        if board.virtual and not board.at
        else board
        for name, board in lab.boards.items()
    }
    return replace(lab, boards=boards)


def _file(lab: Lab) -> Path:
    return paths.state() / "lab" / lab.name / "lacks"
