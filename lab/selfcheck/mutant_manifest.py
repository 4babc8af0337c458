"""The mutants: ``tests/mutants/AREA.yaml`` and ``tests/mutants/AREA/NAME.patch``, read and validated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from lab.base import paths
from lab.base.errors import UsageError
from lab.base.files import Strict, at, did_you_mean, read_yaml, validate
from lab.night.options import DEFAULT_BUILD


@dataclass(frozen=True, slots=True)
class Mutant:
    """A build broken on purpose. ``says``: its cases, and what is searched for in the reason of each one's FAIL, or in
    what the case itself found where a crash outranks it; ``may``: other areas of which some case may turn red by right,
    and what its reason must have then."""

    area: str
    name: str
    why: str
    says: Mapping[str, str]
    build: str
    patch: Path
    may: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.area}/{self.name}"

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(self.says)


def areas(directory: Path = paths.MUTANTS) -> tuple[str, ...]:
    """The areas that have mutants."""
    return tuple(sorted(file.stem for file in directory.glob("*.yaml")))


def load(area: str, directory: Path = paths.MUTANTS) -> list[Mutant]:
    """The mutants of an area, in the order of its file.

    :raises UsageError: no such area, or the file is wrong; says file, line, key and what would be right.
    """
    if area not in areas(directory):
        known = ", ".join(areas(directory)) or "none"
        raise UsageError(f"no area {area!r} has mutants{did_you_mean(area, areas(directory))}; areas: {known}")
    file = directory / f"{area}.yaml"
    tree = read_yaml(file)
    data = validate(_File, file, tree)
    found = []
    for name, entry in data.mutants.items():
        patch = directory / area / f"{name}.patch"
        if not patch.is_file():
            raise UsageError(f"{at(file, tree, ('mutants', name))}: its patch is not there ({patch})")
        says = {entry.case: entry.says, **entry.also}
        foretold: dict[tuple[str, ...], str] = {("says",): entry.says}
        foretold |= {("also", case): expression for case, expression in entry.also.items()}
        foretold |= {("may", other): expression for other, expression in entry.may.items()}
        for where, expression in foretold.items():
            try:
                re.compile(expression)
            except re.error as error:
                raise UsageError(
                    f"{at(file, tree, ('mutants', name, *where))}: not a regular expression: {error}"
                ) from None
        found.append(Mutant(area, name, entry.why, says, entry.build or data.build, patch, entry.may))
    if stray := {path.stem for path in (directory / area).glob("*.patch")} - data.mutants.keys():
        raise UsageError(f"{at(file, tree, ('mutants',))}: no entry for {', '.join(sorted(stray))}.patch")
    return found


def chosen(names: Sequence[str], directory: Path = paths.MUTANTS) -> list[list[Mutant]]:
    """The mutants of these areas, in lists; of ``AREA/NAME`` that one. Of all areas where nothing is named.

    :raises UsageError: no such area or mutant, or a file is wrong.
    """
    wanted: dict[str, list[Mutant]] = {}
    for name in names or areas(directory):
        area, _, one = name.partition("/")
        of_area = load(area, directory)
        by_name = {mutant.name: mutant for mutant in of_area}
        if one and one not in by_name:
            raise UsageError(
                f"{area} has no mutant {one!r}{did_you_mean(one, list(by_name))}; mutants: {', '.join(by_name)}"
            )
        found = wanted.setdefault(area, [])
        found += [mutant for mutant in ([by_name[one]] if one else of_area) if mutant not in found]
    return list(wanted.values())


def unproved(area: str, directory: Path = paths.MUTANTS) -> dict[str, str]:
    """The cases of an area that no mutant can fail, variants aside, and why. :raises UsageError: a wrong file."""
    file = directory / f"{area}.yaml"
    return dict(validate(_File, file, read_yaml(file)).unproved)


_Case = Annotated[str, pydantic.StringConstraints(pattern=r"^testcases/\S+\.py::\S+$")]
_Says = Annotated[str, pydantic.StringConstraints(min_length=3)]


class _Entry(Strict):
    why: Annotated[str, pydantic.StringConstraints(min_length=10, pattern=r"^[^\n]+$")]
    case: _Case
    says: _Says
    also: dict[_Case, _Says] = {}
    may: dict[str, _Says] = {}
    build: str = ""


class _File(Strict):
    build: str = DEFAULT_BUILD
    mutants: dict[Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9-]+$")], _Entry]
    unproved: dict[_Case, Annotated[str, pydantic.StringConstraints(min_length=10)]] = {}
