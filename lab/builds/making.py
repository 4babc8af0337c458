"""Makes or fetches a hypervisor build, and keeps it under a key of all that went into it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.base import lock, paths, processes
from lab.base.errors import BenchError, BuildFailed, UsageError
from lab.builds import compiling, elf, gcov, kconfig, mutating, recipes, tools, trees
from lab.builds.apt import PrivateApt
from lab.builds.compiling import Paced
from lab.builds.recipes import DebianBinary, Git, Prebuilt, Recipe
from lab.builds.trees import Origin
from lab.mutation import listing
from lab.mutation.listing import Listing

log = logging.getLogger(__name__)

FORMAT = 2  # raise this when the files of a build, or the way to compile it, change
_FACTS = "build.json"


@dataclass(frozen=True, slots=True)
class Build:
    """A hypervisor, ready to go onto boards.

    ``key`` names its content: the source, the configuration, the patches, the compiler. ``build_id`` is the
    GNU build id, which the running Xen tells (``xl info``, ``build_id``); "" when the image has none.
    """

    name: str
    key: str
    directory: Path
    xen: Path  # xen.gz
    symbols: Path | None  # xen-syms, an ELF with symbols
    build_id: str
    version: str
    config: Path | None  # the resolved .config, where it is known
    log: Path
    seconds: float  # that it took to make the build, perhaps in an earlier call
    recipe: Recipe
    source: str  # names the source to the byte
    sha256: str  # of xen.gz
    tools: Path | None = None  # a folder with bin and lib; None: boards use their own toolstack
    toolstack: str = ""  # names what the tools are made of
    origin: Origin = Origin()  # describes the source to readers: a commit, or a package

    @property
    def identity(self) -> str:
        """What tells this build from others in a report, also without a build id."""
        return self.build_id or f"no build id; version {self.version or 'unknown'}, sha256 {self.sha256[:16]}"

    def facts(self) -> dict[str, object]:
        """The facts that a run folder keeps and a report shows; ``source`` is that of :meth:`Origin.facts`."""
        facts: dict[str, object] = {"version": self.version, "build id": self.identity, "key": self.key}
        facts |= {"source": self.origin.facts()} if self.origin.facts() else {}
        return facts | ({"tools": self.toolstack} if self.tools else {})

    @property
    def notes(self) -> Path | None:
        """What gcov needs (:mod:`lab.builds.gcov`); None: this hypervisor does not count what it executes."""
        return found if (found := self.directory / gcov.FOLDER).is_dir() else None

    def demand_notes(self) -> None:
        """:raises UsageError: this hypervisor does not count what it executes."""
        if self.notes is None:
            raise UsageError(
                f"build {self.name} does not count what it executes: --coverage needs a build that is compiled by gcc "
                "with the fragment `coverage`, as the build `coverage` is"
            )

    def demand_points(self) -> Listing:
        """The mutation points in this hypervisor. :raises UsageError: it has none."""
        if not (self.directory / listing.FOLDER).is_dir():
            raise UsageError(f"build {self.name} has no mutation points: its recipe names no files under `mutation`")
        return Listing.load(self.directory / listing.FOLDER)

    def tool_files(self) -> dict[str, Path]:
        """The files of the build's toolstack, by their paths in it."""
        return {str(file.relative_to(self.tools)): file for file in files_below(self.tools)} if self.tools else {}

    @property
    def tools_place(self) -> str:
        """The folder on a board in which its tools for this hypervisor belong, without a leading ``/``."""
        return tools.place(self.version)


def notes_of(key: str) -> tuple[str, Path] | None:
    """The name of gcov, and the folder of notes, of the build with this key; None: it is not in the cache, or has none.

    :raises BenchError: its facts are damaged.
    """
    directory = paths.cache() / "builds" / key
    if not key or not (directory / gcov.FOLDER).is_dir():
        return None
    try:
        facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
        program = gcov.program_of(facts["recipe"]["compiler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{directory / _FACTS}: damaged: {error}") from None
    return (program, directory / gcov.FOLDER) if program else None


def files_below(folder: Path) -> list[Path]:
    """All files in it, in order."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def make(name: str | Recipe, *, commit: str = "", progress: Callable[[str], None] | None = None) -> Build:
    """Give the build called ``name``: from the cache, or made now (about two minutes on two cores).

    :param commit: of a recipe whose source is a repository, the commit to build, and not what its branch names now.

    Several processes may call this at once: one makes the build, the others wait for it. ``progress`` is called with
    short texts, about once a second.

    :raises UsageError: there is no such build, the recipe is wrong, or Kconfig does not accept the configuration.
    :raises BuildFailed: its source does not compile, or a patch does not apply; carries the compiler's lines.
    :raises BenchError: no source to be had, a tool is missing, or the compiler or the disk fails.
    """
    recipe = recipes.recipe(name) if isinstance(name, str) else name
    wanted = kconfig.wishes(recipe.fragments)
    if commit and isinstance(recipe.source, Git):
        recipe = dataclasses.replace(recipe, source=dataclasses.replace(recipe.source, commit=commit))
    report = Paced(recipe.name, progress)
    source = trees.identify(recipe.source, functools.partial(report, now=True) if progress else log.warning)
    origin = trees.origin(recipe.source, source)
    toolstack = tools.identify(recipe)
    key = _key(recipe, source, toolstack)
    directory = paths.cache() / "builds" / key
    if build := _kept(recipe, key, directory, origin):
        return build
    lock_file = directory.with_name(f"{key}.lock")
    with lock.held(lock_file, trees.LONGEST_BUILD, f"build {recipe.name} ({key})", has_to_go=lambda: True):
        if build := _kept(recipe, key, directory, origin):  # another process has made it meanwhile
            return build
        started = time.monotonic()
        log_file = (
            paths.cache() / "builds" / f"{key}.log"
        )  # beside the build's folder, which a failed build does not leave
        log_file.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"making-{key}-") as scratch:
            work = Path(scratch) / key
            work.mkdir()
            if recipe.is_compiled:
                try:
                    version = compiling.compile_into(work, recipe, source, wanted, log_file, report)
                except BuildFailed as error:
                    error.source = origin.facts()
                    raise
            else:
                version = _take(recipe, source, work, log_file, report)
            if isinstance(recipe.tools, tuple):
                report("unpacking the tools", now=True)
                tools.unpack_into(work / "tools", recipe, version)
            _finish(recipe, key, source, toolstack, version, work, log_file, time.monotonic() - started)
            shutil.rmtree(directory, ignore_errors=True)
            work.rename(directory)
        log_file.unlink()
    build = _kept(recipe, key, directory, origin)
    assert build, f"{directory} was just made"
    log.info("%s: made in %.0f s: %s %s", recipe.name, build.seconds, build.version, build.identity)
    return build


def _key(recipe: Recipe, source: str, toolstack: str) -> str:
    """A hash of all that goes into a build. Names and places of files do not count."""
    given = [Path(one) for one in recipe.tools if one.endswith(".deb")] if isinstance(recipe.tools, tuple) else []
    parts: list[object] = [FORMAT, source, toolstack, trees.digest(*given)]
    if recipe.is_compiled:
        config = Path(recipe.config)
        parts += [
            trees.digest(config) if config.is_absolute() else recipe.config,
            [trees.digest(fragment) for fragment in recipe.fragments],
            [trees.digest(patch) for patch in recipe.patches],
            recipe.compiler,
            compiling.version_of(recipe.compiler),
        ]
    if recipe.mutation:
        parts += [recipe.mutation, mutating.FORMAT]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _kept(recipe: Recipe, key: str, directory: Path, origin: Origin) -> Build | None:
    """The build from the cache; None when it is not there, or is damaged."""
    try:
        facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        facts = {}
    xen = directory / "xen.gz"
    is_whole = (
        isinstance(facts, dict) and xen.exists() and hashlib.sha256(xen.read_bytes()).hexdigest() == facts.get("sha256")
    )
    if not is_whole or trees.digest(*files_below(directory / "tools")) != facts.get("tools_sha256"):
        log.warning("%s: damaged in the cache, made anew", directory)
        return None
    symbols, config = directory / "xen-syms", directory / "config"
    return Build(
        name=recipe.name,
        key=key,
        directory=directory,
        xen=xen,
        symbols=symbols if symbols.exists() else None,
        build_id=facts["build_id"],
        version=facts["version"],
        config=config if config.exists() else None,
        log=directory / "build.log",
        seconds=facts["seconds"],
        recipe=recipe,
        source=facts["source"],
        origin=origin,
        sha256=facts["sha256"],
        tools=directory / "tools" if facts["tools"] else None,
        toolstack=facts["tools"],
    )


def _finish(
    recipe: Recipe, key: str, source: str, toolstack: str, version: str, work: Path, log_file: Path, seconds: float
) -> None:
    try:
        build_id = elf.build_id(work / "xen.gz")
    except ValueError as error:
        raise BenchError(f"{recipe.name}: {error}") from None
    if not build_id:
        log.warning("%s: the image has no build id; version and checksum must do", recipe.name)
    shutil.copy2(log_file, work / "build.log")
    facts = {
        "name": recipe.name,
        "key": key,
        "source": source,
        "version": version,
        "build_id": build_id,
        "sha256": hashlib.sha256((work / "xen.gz").read_bytes()).hexdigest(),
        "seconds": round(seconds, 1),
        "recipe": dataclasses.asdict(recipe),
        "compiler": compiling.version_of(recipe.compiler) if recipe.is_compiled else "",
        "tools": toolstack,
        "tools_sha256": trees.digest(*files_below(work / "tools")),
    }
    (work / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True, default=str), encoding="utf-8")


# Builds that are not compiled here.


def _take(recipe: Recipe, source: str, work: Path, log_file: Path, report: Paced) -> str:
    log_file.write_text(f"{source}\n", encoding="utf-8")
    if isinstance(recipe.source, Prebuilt):
        shutil.copyfile(recipe.source.xen, work / "xen.gz")
        if recipe.source.symbols:
            shutil.copyfile(recipe.source.symbols, work / "xen-syms")
        return recipe.source.version
    assert isinstance(recipe.source, DebianBinary)
    version = source.split()[-1]
    report("fetching the package", now=True)
    with tempfile.TemporaryDirectory(dir=work.parent, prefix="package-") as scratch:
        package = PrivateApt(suite=recipe.suite).fetch_binary(recipe.source.package, version, Path(scratch))
        unpack = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)],
            capture_output=True,
            timeout=120,
            env=processes.environment(),
            check=False,
        )
        if unpack.returncode:
            raise BenchError(f"{package.name}: cannot be unpacked: {unpack.stderr.decode(errors='replace')[-400:]}")
        (Path(scratch) / "data.tar").write_bytes(unpack.stdout)
        with tarfile.open(Path(scratch) / "data.tar") as tar:
            files = {member.name: member for member in tar if member.isfile()}
            images = [name for name in files if re.fullmatch(r"\./boot/xen-[\w.-]+\.gz", name)]
            if len(images) != 1:
                raise BenchError(f"{package.name}: expected one /boot/xen-*.gz, found {images or 'none'}")
            kept = {images[0]: "xen.gz", images[0].removesuffix(".gz") + ".config": "config"}
            for name, target in kept.items():
                if (member := files.get(name)) and (content := tar.extractfile(member)):
                    (work / target).write_bytes(content.read())
    return version
