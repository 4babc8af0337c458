"""The mutants: ``tests/mutants/AREA.yaml`` and ``tests/mutants/AREA/NAME.patch``, read and validated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from lab.base import paths
from lab.base.errors import UsageError, did_you_mean
from lab.base.files import Strict, at, read_yaml, validate
from lab.builds.recipes import name_of
from lab.night.options import DEFAULT_BUILD

Outcome = Literal["caught", "missed", "left alone", "turned red", "not judged"]


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


@dataclass(frozen=True, slots=True)
class Slower:
    """A build that is right and costs more. ``figures``: those that must show it on each board, without their units;
    ``may``: a regular expression of others that cost more by right."""

    area: str
    name: str
    why: str
    figures: tuple[str, ...]
    may: str
    build: str
    patch: Path

    @property
    def label(self) -> str:
        return f"{self.area}/{self.name}"


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
        patch = _patch(file, tree, "mutants", name)
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
    patches = {path.name.partition(".")[0] for path in (directory / area).glob("*.patch")}
    if stray := patches - data.mutants.keys() - data.slower.keys():
        raise UsageError(f"{at(file, tree, ('mutants',))}: no entry for {', '.join(sorted(stray))}.patch")
    return found


def moved(mutant: Mutant, build: str) -> Mutant:
    """The mutant as a change of another build: with ``NAME.BUILD.patch``, if that stands beside its own patch."""
    there = mutant.patch.with_name(f"{mutant.name}.{name_of(build)}.patch")
    return replace(mutant, build=build, patch=there if there.is_file() else mutant.patch)


def _patch(file: Path, tree: object, key: str, name: str) -> Path:
    """:raises UsageError: it is not there."""
    patch = file.with_suffix("") / f"{name}.patch"
    if not patch.is_file():
        raise UsageError(f"{at(file, tree, (key, name))}: its patch is not there ({patch})")
    return patch


def slower(area: str, directory: Path = paths.MUTANTS) -> list[Slower]:
    """The slower builds of an area, in the order of its file. :raises UsageError: the file is wrong."""
    file = directory / f"{area}.yaml"
    tree = read_yaml(file)
    data = validate(_File, file, tree)
    found = []
    for name, entry in data.slower.items():
        try:
            re.compile(entry.may)
        except re.error as error:
            raise UsageError(f"{at(file, tree, ('slower', name, 'may'))}: not a regular expression: {error}") from None
        patch = _patch(file, tree, "slower", name)
        build = entry.build or data.build
        found.append(Slower(area, name, entry.why, tuple(entry.figures), entry.may, build, patch))
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
        slow = {build.name: build for build in slower(area, directory)}
        if one and one not in by_name and one not in slow:
            known = [*by_name, *slow]
            raise UsageError(f"{area} has no mutant {one!r}{did_you_mean(one, known)}; mutants: {', '.join(known)}")
        found = wanted.setdefault(area, [])
        asked = [by_name[one]] if one in by_name else of_area if not one else []
        found += [mutant for mutant in asked if mutant not in found]
    return list(wanted.values())


def chosen_slower(names: Sequence[str], directory: Path = paths.MUTANTS) -> list[Slower]:
    """The slower builds of these areas, or those named ``AREA/NAME``. :raises UsageError: a file is wrong."""
    found: dict[str, Slower] = {}
    for name in names or areas(directory):
        area, _, one = name.partition("/")
        found |= {build.label: build for build in slower(area, directory) if one in ("", build.name)}
    return list(found.values())


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


_Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9-]+$")]


class _Slower(Strict):
    why: Annotated[str, pydantic.StringConstraints(min_length=10, pattern=r"^[^\n]+$")]
    figures: Annotated[list[Annotated[str, pydantic.StringConstraints(min_length=3)]], pydantic.Field(min_length=1)]
    may: str = r"(?!)"  # none
    build: str = ""


class _File(Strict):
    build: str = DEFAULT_BUILD
    mutants: dict[_Name, _Entry]
    slower: dict[_Name, _Slower] = {}
    unproved: dict[_Case, Annotated[str, pydantic.StringConstraints(min_length=10)]] = {}
