"""The map of relocations that were broken: the endings by fault and step, a map for each kind of guest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import markupsafe

from lab.reporting.figures import Tile, heat_map
from lab.results.failures import cells_of
from lab.results.record import TestResult, Verdict

# What the tiles say: the ending of xl migrate, in a word.
ENDINGS = {
    "SUCCESS": "success",
    "RESUMED_AT_SENDER": "resumed",
    "GIVEN_BACK": "given back",
    "NOT_SUSPENDED": "no suspend",
    "UNDEFINED": "undefined",
    "REFUSED": "refused",
    "KILLED": "killed",
    "LOST": "lost",
}


def maps(
    results: Iterable[TestResult], builds: Sequence[str], where: Callable[[TestResult], str]
) -> list[markupsafe.Markup]:
    """The maps of each build that has such results; ``where`` is the link to a result."""
    found = list(results)
    drawn = []
    for build in builds:
        tiles: dict[str, dict[tuple[str, str], Tile]] = {}
        orders: dict[str, int] = {}
        for result in (one for one in found if one.build == build):
            for cell in cells_of(result):
                guest, fault, place = (str(cell.get(key, "")) for key in ("guest", "fault", "place"))
                tiles.setdefault(guest, {})[fault, place] = _tile(result, cell, where(result))
                order = cell.get("order")
                orders[place] = order if isinstance(order, int) else len(orders)
        for guest, of_guest in tiles.items():
            faults = list(dict.fromkeys(fault for fault, _ in of_guest))
            places = sorted({place for _, place in of_guest}, key=lambda place: orders[place])
            title = f"Relocation of {guest}: endings by fault and step" + (f" ({build})" if len(builds) > 1 else "")
            drawn.append(markupsafe.Markup(heat_map(title, faults, places, of_guest)))
    return drawn


def _tile(result: TestResult, cell: Mapping[str, object], where: str) -> Tile:
    ending, wanted = str(cell.get("ending", "")), str(cell.get("wanted", ""))
    kind = "warn" if cell.get("known") and result.verdict is Verdict.PASS else result.verdict.value
    tip = f"{result.verdict}: {ending}, must be {wanted}"
    for word in ("unproved", "bad", "known"):
        if said := cell.get(word):
            tip += f"; {word}: {', '.join(map(str, said)) if isinstance(said, list) else said}"
    return Tile(ENDINGS.get(ending, ending) + (" *" if cell.get("known") else ""), kind, tip, where)
