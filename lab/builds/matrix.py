"""The matrix of a nightly run, read from a file: builds x Xen command lines x dom0 modes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from lab.base.errors import UsageError, did_you_mean
from lab.base.files import Strict, at, read_yaml, validate
from lab.builds.recipes import name_of, recipe
from lab.inventory import Lab

PLAIN = "plain"  # name of the command line that adds nothing
DOM0_MODES = {"pv": "", "pvh": "dom0=pvh"}  # mode -> its words on Xen's command line
NEEDED = {"pv": "", "pvh": "pvh-dom0"}  # mode -> the capability that all boards must declare


@dataclass(frozen=True, slots=True)
class Variant:
    """A build with options: one column of the report, under ``name``."""

    name: str
    build: str  # a recipe, by name or file
    xen_options: str = ""  # beside the lab's, the board's and the recipe's own
    needs: str = ""  # a capability that all boards must declare
    commit: str = ""  # what the run resolved the recipe's revision to

    @classmethod
    def plain(cls, build: str) -> Variant:
        """A build without further options, under its recipe's name: a recipe file that moves keeps its history."""
        return cls(name_of(build), build)

    def facts(self) -> dict[str, str]:
        """The facts that a run folder keeps; :meth:`of_facts` reads them back."""
        facts = {"recipe": self.build} if self.build != self.name else {}
        return facts | ({"xen options": self.xen_options} if self.xen_options else {})

    @classmethod
    def of_facts(cls, name: str, facts: Mapping[str, str], commit: str | None = None) -> Variant:
        """A variant from the facts of a run folder, and the commit noted there; without facts, a plain build."""
        return cls(name, facts.get("recipe", name), facts.get("xen options", ""), commit=commit or "")


def load(file: Path) -> tuple[Variant, ...]:
    """The variants of a matrix file, in its order, each once.

    :raises UsageError: the file is wrong; says file, line, key and what would be right.
    """
    tree = read_yaml(file)
    data = validate(_MatrixFile, file, tree)
    if PLAIN in data.command_lines:
        where = at(file, tree, ("command_lines", PLAIN))
        raise UsageError(f"{where}: this name is that of no options at all; choose another one")
    lines = {PLAIN: "", **data.command_lines}
    found: dict[str, Variant] = {}
    for number, row in enumerate(data.rows):
        for index, word in enumerate(row.command_lines):
            if word not in lines:
                where = at(file, tree, ("rows", number, "command_lines", index))
                there = f"there are: {', '.join(lines)}"
                raise UsageError(f"{where}: no command line {word!r}{did_you_mean(word, list(lines))}; {there}")
        for index, build in enumerate(row.builds):
            try:
                recipe(_located(build, file))
            except UsageError as error:
                raise UsageError(f"{at(file, tree, ('rows', number, 'builds', index))}: {error}") from None
        for build, line, mode in itertools.product(row.builds, row.command_lines, row.dom0):
            words = [name_of(build)]
            words += [line] if line != PLAIN else []
            words += [f"{mode}-dom0"] if mode != "pv" else []
            options = " ".join(filter(None, (lines[line], DOM0_MODES[mode])))
            variant = Variant("+".join(words), _located(build, file), options, NEEDED[mode])
            other = found.setdefault(variant.name, variant)
            if other != variant:
                raise UsageError(f"{at(file, tree, ('rows', number))}: {variant.name} is two things: name them apart")
    return tuple(found.values())


def runnable(file: Path, lab: Lab) -> tuple[list[Variant], list[str]]:
    """The variants that all boards of ``lab`` can run, and why the others are left out.

    :raises UsageError: the file is wrong, or nothing of it can run there.
    """
    wanted, notes = [], []
    for variant in load(file):
        unable = [board.name for board in lab.boards.values() if variant.needs not in ("", *board.capabilities)]
        if unable:
            notes.append(f"{variant.name} is left out: {', '.join(unable)} does not declare {variant.needs}")
        else:
            wanted.append(variant)
    if not wanted:
        raise UsageError(f"{file}: nothing of it can run here: {'; '.join(notes)}")
    return wanted, notes


def _located(build: str, file: Path) -> str:
    """Names stay; the path of a recipe is relative to the matrix file."""
    return os.path.realpath(file.parent / os.path.expanduser(build)) if build.endswith(".yaml") else build


# What the file may hold.

_Word = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Build = Annotated[str, pydantic.StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
_Options = Annotated[str, pydantic.StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f]+$")]


class _RowFile(Strict):
    builds: Annotated[list[_Build], pydantic.Field(min_length=1)]
    command_lines: Annotated[list[_Word], pydantic.Field(min_length=1)] = [PLAIN]
    dom0: Annotated[list[Literal["pv", "pvh"]], pydantic.Field(min_length=1)] = ["pv"]


class _MatrixFile(Strict):
    rows: Annotated[list[_RowFile], pydantic.Field(min_length=1)]
    command_lines: dict[_Word, _Options] = {}
