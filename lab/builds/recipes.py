"""Reads and validates build recipes: ``firmware/builds/NAME.yaml``, and the Kconfig fragments that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit

import pydantic
from ruamel.yaml import YAML

from lab.base import paths
from lab.base.errors import UsageError, did_you_mean
from lab.base.files import Strict, at, like, read_yaml, validate

RECIPES = paths.FIRMWARE / "builds"
FRAGMENTS = paths.FIRMWARE / "kconfig"


@dataclass(frozen=True, slots=True)
class DebianSource:
    """A Debian source package at one version; compiled here. ``suite``: a release other than the machine's."""

    package: str
    version: str
    suite: str = ""


@dataclass(frozen=True, slots=True)
class Git:
    """A commit of a Xen repository, by URL or by the path of a clone; compiled here."""

    location: str  # what git can clone
    revision: str
    commit: str = ""  # the one that a run resolved ``revision`` to: it stays with that while the branch moves on
    place: str = field(default="", compare=False)  # FILE:LINE of the recipe that says so, for messages


@dataclass(frozen=True, slots=True)
class Tarball:
    """An archive of a Xen source tree; compiled here."""

    path: Path


@dataclass(frozen=True, slots=True)
class DebianBinary:
    """Debian's own hypervisor package, taken as it is."""

    package: str
    version: str  # "" = the newest that the package sources offer
    suite: str = ""  # a release of Debian other than the machine's


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """A ``xen.gz`` that was made elsewhere."""

    xen: Path
    symbols: Path | None
    version: str


Source = DebianSource | Git | Tarball | DebianBinary | Prebuilt


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one build."""

    name: str
    source: Source
    description: str = ""
    config: str = "defconfig"  # a make target, or the path of a whole .config
    fragments: tuple[Path, ...] = ()  # in the order in which they are appended
    patches: tuple[Path, ...] = ()
    compiler: str = "gcc"
    # The toolstack: what Debian has on the board; compiled with the hypervisor; or Debian packages, which need not fit
    # the board's release (names, of the source's suite; or paths of .deb files).
    tools: Literal["debian", "source"] | tuple[str, ...] = "debian"
    mutation: tuple[str, ...] = ()  # files of the tree that get mutation points, as patterns: xen/common/*.c
    xen_options: str = ""  # further words on this build's command line, after the lab's and the board's

    @property
    def is_compiled(self) -> bool:
        """Whether the build is compiled here; a package or a given binary is only copied."""
        return isinstance(self.source, DebianSource | Git | Tarball)

    @property
    def suite(self) -> str:
        """The release of Debian that packages come from; "" is the machine's own."""
        return self.source.suite if isinstance(self.source, DebianSource | DebianBinary) else ""


def names(directory: Path = RECIPES) -> tuple[str, ...]:
    """The names of all builds."""
    return tuple(sorted(file.stem for file in directory.glob("*.yaml")))


def name_of(build: str) -> str:
    """The name of a build that is given by name, or by the path of a recipe file."""
    return Path(build).stem if build.endswith(".yaml") else build


def recipe(name: str, directory: Path = RECIPES, fragments: Path = FRAGMENTS) -> Recipe:
    """Read the recipe called ``name``, or the recipe file at the path ``name`` (it ends in ``.yaml``).

    Paths in it are relative to the recipe's own folder; fragments are names of files in ``fragments``.

    :raises UsageError: no such build, or the file is wrong; says file, line, key and what would be right.
    """
    file = directory / f"{name}.yaml"
    if name.endswith(".yaml"):
        file = Path(os.path.realpath(os.path.expanduser(name)))
        directory, name = file.parent, file.stem
    elif name not in names(directory):
        hint = did_you_mean(name, names(directory))
        raise UsageError(f"there is no build {name!r}{hint}; builds: {', '.join(names(directory)) or 'none'}")
    tree = read_yaml(file)
    data = validate(_RecipeFile, file, tree)

    def place(key: Sequence[str | int], text: str, what: str) -> Path:
        path = Path(os.path.realpath(directory / os.path.expanduser(text)))
        if not os.path.exists(path):  # False, and no error, for a name that is too long
            raise UsageError(f"{at(file, tree, key)}: {what} {text!r} is not there ({path})")
        return path

    def fragment(index: int, text: str) -> Path:
        path = fragments / f"{text}.config"
        if not os.path.isfile(path):
            known = ", ".join(sorted(found.stem for found in fragments.glob("*.config")))
            raise UsageError(f"{at(file, tree, ('fragments', index))}: no fragment {text!r}; there are: {known}")
        return path

    def tools() -> Literal["debian", "source"] | tuple[str, ...]:
        if isinstance(data.tools, list):
            return tuple(
                str(place(("tools", index), text, "package")) if text.endswith(".deb") else text
                for index, text in enumerate(data.tools)
            )
        return data.tools

    config = data.config
    if not re.fullmatch(r"\w*config", config):  # a file, not a target of Xen's Makefile
        config = str(place(("config",), config, "configuration"))
    found = Recipe(
        name=name,
        source=_source(data.source, place, at(file, tree, ("source", "git", "revision"))),
        description=data.description,
        config=config,
        fragments=tuple(fragment(index, text) for index, text in enumerate(data.fragments)),
        patches=tuple(place(("patches", index), text, "patch") for index, text in enumerate(data.patches)),
        compiler=data.compiler,
        tools=tools(),
        mutation=tuple(data.mutation),
        xen_options=data.xen_options,
    )
    for key, given in (("fragments", found.fragments), ("patches", found.patches), ("mutation", found.mutation)):
        if given and not found.is_compiled:
            raise UsageError(f"{at(file, tree, (key,))}: only a build from source can have {key}")
    if found.tools == "source" and not found.is_compiled:
        raise UsageError(f"{at(file, tree, ('tools',))}: only a build from source can have its tools from there")
    return found


def write(recipe: Recipe, file: Path) -> None:
    """Write a recipe as a file that :func:`recipe` reads back, all paths in it whole."""
    data: dict[str, object] = {"source": _named(recipe.source), "description": recipe.description}
    data |= {"config": recipe.config, "compiler": recipe.compiler, "xen_options": recipe.xen_options}
    data |= {"fragments": [one.stem for one in recipe.fragments], "patches": [str(one) for one in recipe.patches]}
    data["mutation"] = list(recipe.mutation)
    data["tools"] = recipe.tools if isinstance(recipe.tools, str) else list(recipe.tools)
    with open(file, "w", encoding="utf-8") as out:
        YAML().dump(data, out)


def _named(source: Source) -> dict[str, object]:
    match source:
        case Git(location, revision, commit):
            return {"git": {"url" if "://" in location else "path": location, "revision": commit or revision}}
        case Tarball(path):
            return {"tarball": str(path)}
        case DebianSource() | DebianBinary():
            key = "debian_source" if isinstance(source, DebianSource) else "debian_binary"
            return {key: {"package": source.package, "version": source.version, "suite": source.suite}}
        case Prebuilt(xen, symbols, version):
            given = {"xen": str(xen), "version": version}
            return {"prebuilt": given | ({"symbols": str(symbols)} if symbols else {})}


class _Place(Protocol):
    """Finds a path that a recipe names, relative to the recipe."""

    def __call__(self, key: Sequence[str | int], text: str, what: str) -> Path: ...


def _source(data: _SourceFile, place: _Place, revision: str) -> Source:
    """The source; ``revision`` is where in the recipe a revision of git stands."""
    if data.debian_source:
        return DebianSource(data.debian_source.package, data.debian_source.version, data.debian_source.suite)
    if data.git:
        git = data.git
        location = git.url or str(place(("source", "git", "path"), git.path or "", "repository"))
        return Git(location, git.revision, place=revision)
    if data.tarball:
        return Tarball(place(("source", "tarball"), data.tarball, "archive"))
    if data.debian_binary:
        return DebianBinary(data.debian_binary.package, data.debian_binary.version, data.debian_binary.suite)
    assert data.prebuilt  # exactly one is there: _SourceFile
    given = data.prebuilt
    symbols = place(("source", "prebuilt", "symbols"), given.symbols, "symbol file") if given.symbols else None
    return Prebuilt(place(("source", "prebuilt", "xen"), given.xen, "hypervisor"), symbols, given.version)


# What the file may hold.

_Word = Annotated[str, like(r"^[A-Za-z0-9][A-Za-z0-9.+~:_-]*$", "one word of letters, digits and .+~:_-")]
_Suite = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z]*$")]
# Never an option to git, never a second argument.
_Revision = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/~^{}@+-]*$")]
_Url = Annotated[
    str, like(r"^(https?|ssh|git|file)://\S+$", "a URL, such as https://HOST/xen.git or ssh://git@HOST/xen.git")
]
_Text = Annotated[str, pydantic.StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
_CFile = Annotated[str, pydantic.StringConstraints(pattern=r"^xen/[A-Za-z0-9_*/-]+\.c$")]
_Line = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f]*$")]


def _known_tools(given: object) -> object:
    if given in ("debian", "source") or (
        isinstance(given, list) and given and all(isinstance(one, str) for one in given)
    ):
        return given
    raise ValueError("must be debian, source, or a list of Debian packages (names, or paths of .deb files)")


_Tools = Annotated[Literal["debian", "source"] | list[str], pydantic.BeforeValidator(_known_tools)]


class _DebianSourceFile(Strict):
    package: _Word
    version: _Word
    suite: _Suite = ""


class _GitFile(Strict):
    url: _Url | None = None
    path: _Text | None = None
    revision: _Revision = "HEAD"

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> _GitFile:
        if (self.url is None) == (self.path is None):
            raise ValueError("give either url or path")
        parts = urlsplit(self.url or "")
        if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
            # It would be in argv, in build logs and in what a run keeps.
            raise ValueError("url must not hold a login: give it to git, by a credential helper")
        return self


class _DebianBinaryFile(Strict):
    package: _Word
    version: str = pydantic.Field(default="", pattern=r"^[A-Za-z0-9.+~:_-]*$")
    suite: _Suite = ""


class _PrebuiltFile(Strict):
    xen: _Text
    symbols: _Text | None = None
    version: str = ""


class _SourceFile(Strict):
    debian_source: _DebianSourceFile | None = None
    git: _GitFile | None = None
    tarball: _Text | None = None
    debian_binary: _DebianBinaryFile | None = None
    prebuilt: _PrebuiltFile | None = None

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> _SourceFile:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        return self


class _RecipeFile(Strict):
    source: _SourceFile
    description: _Line = ""
    config: _Text = "defconfig"
    fragments: list[_Word] = []
    patches: list[_Text] = []
    compiler: _Word = "gcc"
    tools: _Tools = "debian"
    mutation: list[_CFile] = []
    xen_options: _Line = ""
