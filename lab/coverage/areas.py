"""Which files of Xen each area stands for: ``testcases/areas.yaml``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from lab.base import paths
from lab.base.errors import UsageError
from lab.base.files import Strict, at, read_yaml, validate

FILE = "areas.yaml"  # of the folder that holds the areas


class _File(Strict):
    areas: dict[str, list[str]]


def load(root: Path) -> Mapping[str, tuple[str, ...]]:
    """Patterns by area, of the cases below ``root``; those of the shipped cases where it has no such file.

    :raises UsageError: the file is wrong; says file, line and key.
    """
    file = root / "testcases" / FILE
    if not file.is_file():
        file = paths.TESTCASES / FILE
    tree = read_yaml(file)
    found = validate(_File, file, tree)
    for area, patterns in found.areas.items():
        if wrong := [one for one in patterns if not PurePosixPath(one).parts]:
            raise UsageError(
                f"{at(file, tree, ('areas', area))}: {wrong[0]!r} is no pattern of files; as xen/common/*.c"
            )
    return {area: tuple(patterns) for area, patterns in found.areas.items()}


def files_of(patterns: Iterable[str], there: Iterable[str]) -> list[str]:
    """The files that a pattern matches, in order. A ``*`` stands for no ``/``."""
    wanted = tuple(patterns)
    return sorted(file for file in there if any(PurePosixPath(file).match(one) for one in wanted))


def without_files(areas: Mapping[str, Iterable[str]], there: Iterable[str]) -> list[str]:
    """``AREA: PATTERN`` of what matches no file: it was moved, or this build does not have it."""
    known = tuple(there)
    return [f"{area}: {one}" for area, patterns in areas.items() for one in patterns if not files_of([one], known)]
