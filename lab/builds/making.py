"""A hypervisor build made, or fetched, and kept by what went into it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import paths
from lab.builds import elf, kconfig, lock, trees
from lab.builds.apt import PrivateApt
from lab.builds.command import CommandError, run
from lab.builds.recipes import DebianBinary, Prebuilt, Recipe
from lab.builds.recipes import recipe as read_recipe
from lab.errors import BenchError

log = logging.getLogger(__name__)

FORMAT = 1  # counts when what is kept, or how it is compiled, changes
_FACTS = "build.json"
_TOOLS = {
    "make": "make",
    "bison": "bison",
    "flex": "flex",
    "python3": "python3",
    "ld": "binutils",
}  # program: package


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
    seconds: float  # what making it took; not what this call took
    recipe: Recipe
    source: str  # what the source was, to the byte
    sha256: str  # of xen.gz

    @property
    def identity(self) -> str:
        """How to tell it from other builds in a report, build id or not."""
        return self.build_id or f"no build id; version {self.version or 'unknown'}, sha256 {self.sha256[:16]}"


def make(name: str | Recipe, *, progress: Callable[[str], None] | None = None) -> Build:
    """The build called ``name``: from the cache, or made now (about two minutes on two cores).

    Safe to call from several processes at once: one makes it, the others wait and take it. ``progress`` is
    called with short texts, about once a second. A :class:`Recipe` (a revision of bisection) is as good.

    :raises UsageError: no such build, a wrong recipe, a configuration that Kconfig does not accept.
    :raises BenchError: no source to be had, a tool is missing, or it does not compile (last lines, log path).
    """
    recipe = read_recipe(name) if isinstance(name, str) else name
    wanted = kconfig.wishes(recipe.fragments)
    source = trees.identify(recipe.source)
    key = _key(recipe, source)
    directory = paths.cache() / "builds" / key
    if build := _kept(recipe, key, directory):
        return build
    report = _Paced(recipe.name, progress)
    with lock.held(directory.with_name(f"{key}.lock"), trees.LONGEST_BUILD, f"build {recipe.name} ({key})"):
        if build := _kept(recipe, key, directory):  # somebody else made it meanwhile
            return build
        started = time.monotonic()
        log_file = paths.cache() / "builds" / f"{key}.log"  # beside the build, so that a failed one leaves it
        log_file.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"making-{key}-") as scratch:
            work = Path(scratch) / key
            work.mkdir()
            if recipe.is_compiled:
                version = _compile(recipe, source, wanted, work, log_file, report)
            else:
                version = _take(recipe, source, work, log_file, report)
            _finish(recipe, key, source, version, work, log_file, time.monotonic() - started)
            shutil.rmtree(directory, ignore_errors=True)
            work.rename(directory)
        log_file.unlink()
    build = _kept(recipe, key, directory)
    assert build, f"{directory} was just made"
    log.info("%s: made in %.0f s: %s %s", recipe.name, build.seconds, build.version, build.identity)
    return build


def _key(recipe: Recipe, source: str) -> str:
    """What goes into a build, hashed; names and places of files do not count."""
    parts: list[Any] = [FORMAT, source]
    if recipe.is_compiled:
        config = Path(recipe.config)
        parts += [
            trees.digest(config) if config.is_absolute() else recipe.config,
            [trees.digest(fragment) for fragment in recipe.fragments],
            [trees.digest(patch) for patch in recipe.patches],
            recipe.compiler,
            _compiler_version(recipe.compiler),
        ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _compiler_version(compiler: str) -> str:
    try:
        said = run([compiler, "--version"], timeout=20)
    except CommandError as error:
        raise BenchError(f"compiler {compiler}: {error}") from None
    return said.splitlines()[0]


def _kept(recipe: Recipe, key: str, directory: Path) -> Build | None:
    """The build as it is in the cache; None when it is not there, or damaged."""
    try:
        facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        facts = {}
    xen = directory / "xen.gz"
    if not xen.exists() or hashlib.sha256(xen.read_bytes()).hexdigest() != facts.get("sha256"):
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
        sha256=facts["sha256"],
    )


def _finish(recipe: Recipe, key: str, source: str, version: str, work: Path, log_file: Path, seconds: float) -> None:
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
        "compiler": _compiler_version(recipe.compiler) if recipe.is_compiled else "",
    }
    (work / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True, default=str), encoding="utf-8")


# Compiled here.


def _compile(
    recipe: Recipe, source: str, wanted: tuple[kconfig.Wish, ...], work: Path, log_file: Path, report: _Paced
) -> str:
    lacking = {package for program, package in _TOOLS.items() if not shutil.which(program)}
    if lacking:
        raise BenchError(f"{recipe.name}: to compile Xen, install {', '.join(sorted(lacking))}")
    with trees.checked_out(recipe, source, report) as tree:
        environment = _environment(tree)
        command = ["make", "-C", "xen", *_compiler_arguments(recipe.compiler)]

        def run_make(*arguments: str, what: str, timeout: float, on_line: Callable[[str], None] | None = None) -> str:
            return run(
                [*command, *arguments],
                what=f"build {recipe.name}: {what}",
                timeout=timeout,
                log=log_file,
                cwd=tree.directory,
                environment=environment,
                keep=(tree.lock,),
                on_line=on_line,
            )

        report("configuring", now=True)
        config = tree.directory / "xen" / ".config"
        before = (config.read_bytes(), config.stat()) if config.exists() else None
        if Path(recipe.config).is_absolute():
            shutil.copyfile(recipe.config, config)
        else:
            run_make(recipe.config, what=recipe.config, timeout=120)
        with open(config, "a", encoding="utf-8") as file:
            for fragment in recipe.fragments:
                file.write(f"\n{fragment.read_text(encoding='utf-8')}\n")
        run_make("olddefconfig", what="olddefconfig", timeout=120)
        kconfig.check(wanted, kconfig.parse(config.read_text(encoding="utf-8")))
        if before and before[0] == config.read_bytes():  # unchanged: what depends on it need not be compiled again
            os.utime(config, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))

        count = 0

        def on_line(line: str) -> None:
            nonlocal count
            count += bool(re.match(r"(gcc|cc|clang)\b.* -c |\s+(CC|AS)\s", line))  # 4.17 prints commands
            report(f"compiling, {count} objects done (a debug build has about 450)")

        report("compiling", now=True)
        jobs = len(os.sched_getaffinity(0))
        run_make(f"-j{jobs}", what="compiling", timeout=trees.LONGEST_BUILD, on_line=on_line)
        version = run_make("--no-print-directory", "-s", "xenversion", what="version", timeout=60).split()
        made = tree.directory / "xen"
        if not (made / "xen.gz").exists():
            raise BenchError(f"build {recipe.name}: make was content, but there is no xen/xen.gz\nlog: {log_file}")
        shutil.copy2(made / "xen.gz", work / "xen.gz")
        if (made / "xen-syms").exists():
            shutil.copy2(made / "xen-syms", work / "xen-syms")
        shutil.copy2(config, work / "config")
    return version[-1] if version else ""


def _compiler_arguments(compiler: str) -> list[str]:
    if compiler == "gcc":
        return []
    if re.match(r"clang(-|$)", compiler):
        return ["clang=y", f"CC={compiler}"]
    return [f"CC={compiler}"]


def _environment(tree: trees.Tree) -> Mapping[str, str]:
    """What would otherwise be this machine's name and this minute (xen/Makefile)."""
    dated = datetime.fromtimestamp(tree.epoch, UTC)
    return {
        "XEN_WHOAMI": "xenlab",
        "XEN_DOMAIN": "",
        "XEN_BUILD_HOST": "xenlab",
        "XEN_BUILD_DATE": dated.strftime("%a %b %e %H:%M:%S UTC %Y"),
        "XEN_BUILD_TIME": dated.strftime("%H:%M:%S"),
        "SOURCE_DATE_EPOCH": str(tree.epoch),
        "MAKEFLAGS": "",  # of a make that may have started us
    }


# Taken as it is.


def _take(recipe: Recipe, source: str, work: Path, log_file: Path, report: _Paced) -> str:
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
        package = PrivateApt().fetch_binary(recipe.source.package, version, Path(scratch))
        unpack = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, timeout=120, check=False
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


class _Paced:
    """Hands texts on to ``progress``, at most one in 15 seconds unless ``now``."""

    def __init__(self, name: str, progress: Callable[[str], None] | None) -> None:
        self._name, self._progress, self._last = name, progress, 0.0

    def __call__(self, text: str, *, now: bool = False) -> None:
        if self._progress and (now or time.monotonic() - self._last >= 15.0):
            self._last = time.monotonic()
            self._progress(f"build {self._name}: {text}")
