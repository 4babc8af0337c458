"""What a case asks for, read from its file, its markers and its fixtures."""

from __future__ import annotations

import pytest

from lab.base.errors import UsageError
from lab.inventory import capabilities

SELECTIONS = ("quick", "full", "weekly")
MARKERS = (
    "needs(*capabilities): SKIP on boards that lack one of them",
    "quick: in every selection",
    "full: a night's work",
    "weekly: everything",
    "xen_options(*words): the board is booted with these options of Xen",
    "cold: the board has booted for the case, and does not go on from a saved state",
    "expects_crash(*signatures): the case crashes a board on purpose",
)


def area_of(item: pytest.Item) -> str:
    """The folder below ``testcases/`` that holds a case."""
    parts = item.path.parts
    return parts[parts.index("testcases") + 1] if "testcases" in parts else "other"


def selection_of(item: pytest.Item) -> str:
    """The smallest selection that has a case; ``full`` when no marker says otherwise."""
    return next((name for name in SELECTIONS if item.get_closest_marker(name)), "full")


def xen_options_of(item: pytest.Item) -> str:
    """The options of Xen that a case asks for."""
    return " ".join(word for marker in item.iter_markers("xen_options") for word in marker.args)


def is_cold_case(item: pytest.Item) -> bool:
    """Whether a case is about a boot, so that its board must have booted."""
    return item.get_closest_marker("cold") is not None


def is_case(item: pytest.Item) -> bool:
    return "testcases" in item.path.parts


def boards_wanted(item: pytest.Item) -> int:
    """How many boards a case needs: 2 with a destination, else 1."""
    names = getattr(item, "fixturenames", ())
    return 2 if "destination" in names else 1


def needs_of(item: pytest.Item) -> tuple[str, ...]:
    """The capabilities that a board must have for a case."""
    return tuple(word for marker in item.iter_markers("needs") for word in marker.args)


def wrong_needs(item: pytest.Item) -> list[str]:
    """What is wrong with the words of a case's ``needs``: a line for each that is no capability."""
    file, line, _ = item.location
    found = []
    for word in needs_of(item):
        try:
            capabilities.check(word, f"{file}:{(line or 0) + 1}: {getattr(item, 'originalname', item.name)}: needs")
        except UsageError as error:
            found.append(str(error))
    return found


def expected_crashes_of(item: pytest.Item) -> frozenset[str]:
    """The crash signatures that a case causes on purpose."""
    return frozenset(name for marker in item.iter_markers("expects_crash") for name in marker.args)
