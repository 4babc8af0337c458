"""Why a figure moved: the hypervisor's functions that have more or fewer instructions in one operation than before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.builds.elf import symbolise
from lab.history.figures import Change, Compared

LEAST = 0.5  # instructions in one operation; fewer are told of no function
MOST = 8  # functions that are told of a figure
NAMELESS = "(no symbol)"

Blocks = Mapping[int, float]  # instructions in one operation, by address


@dataclass(frozen=True, slots=True)
class Function:
    """Its instructions in one operation, in A and in B."""

    name: str
    old: float
    new: float

    @property
    def change(self) -> float:
        return self.new - self.old


@dataclass(frozen=True, slots=True)
class Moved:
    """A figure that costs more or less on a board, and the functions that do, the most moved first."""

    figure: str
    board: str
    functions: tuple[Function, ...]

    def lines(self) -> list[str]:
        """A table below the table."""
        rows = [(one.name, f"{one.old:.1f}", f"{one.new:.1f}", f"{one.change:+.1f}") for one in self.functions]
        table = [("function", "A", "B", "change"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        head = f"{self.figure} on {self.board}: instructions of the hypervisor in one operation, by function"
        return [
            head,
            *(f"  {name.ljust(widths[0])}  {'  '.join(map(str.rjust, rest, widths[1:]))}" for name, *rest in table),
        ]


def why(
    compared: Iterable[Compared],
    old: Mapping[str, Blocks],
    new: Mapping[str, Blocks],
    symbols: tuple[Path | None, Path | None],
) -> list[Moved]:
    """The functions that moved, for each figure of one board that did. ``old``, ``new``: a profile of each build."""
    found = []
    for one in compared:
        if one.verdict in (Change.MORE, Change.LESS) and one.figure in old and one.figure in new:
            was, now = by_function(old[one.figure], symbols[0]), by_function(new[one.figure], symbols[1])
            functions = [Function(name, was.get(name, 0.0), now.get(name, 0.0)) for name in {*was, *now}]
            functions = [each for each in functions if abs(each.change) >= LEAST]
            functions.sort(key=lambda each: (-abs(each.change), each.name))
            found.append(Moved(one.figure, one.board, tuple(functions[:MOST])))
    return found


def by_function(blocks: Blocks, symbols: Path | None) -> dict[str, float]:
    """Instructions in one operation by function."""
    found: dict[str, float] = {}
    for at, count in blocks.items():
        place = symbolise(at, symbols) if symbols else None
        name = place[0] if place else NAMELESS
        found[name] = found.get(name, 0.0) + count
    return found
