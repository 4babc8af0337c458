"""Compiles a hypervisor from source, in a tree that is kept, so that unchanged files are not compiled again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from lab.base.errors import BenchError, BuildFailed
from lab.builds import blame, gcov, kconfig, tools, trees
from lab.builds.command import CommandError, run
from lab.builds.mutating import Mutating
from lab.builds.recipes import Recipe
from lab.mutation import listing

_NEEDS = {"make": "make", "bison": "bison", "flex": "flex", "python3": "python3", "ld": "binutils"}  # program: package
_CONFIGURED = ".xenlab-configured"  # what xen/.config was made of


class _Run(Protocol):
    def __call__(self, *words: str, what: str, timeout: float, on_line: Callable[[str], None] | None = None) -> str: ...


class Paced:
    """Passes texts on to ``progress``, at most one every 15 seconds unless ``now``."""

    def __init__(self, name: str, progress: Callable[[str], None] | None) -> None:
        self._name, self._progress, self._last = name, progress, 0.0

    def __call__(self, text: str, *, now: bool = False) -> None:
        if self._progress and (now or time.monotonic() - self._last >= 15.0):
            self._last = time.monotonic()
            self._progress(f"build {self._name}: {text}")


@functools.cache
def version_of(compiler: str) -> str:
    """The first line of ``COMPILER --version``.

    :raises BenchError: this machine has no such program, so that a run goes on with its other builds; or it fails.
    """
    if not shutil.which(compiler):
        raise BenchError(
            f"the recipe's key compiler: {compiler!r} is no program of this machine; use gcc, or install it"
        )
    try:
        said = run([compiler, "--version"], timeout=20)
    except CommandError as error:
        raise BenchError(f"compiler {compiler}: {error}") from None
    return said.splitlines()[0]


def compile_into(
    work: Path, recipe: Recipe, source: str, wanted: tuple[kconfig.Wish, ...], log_file: Path, report: Paced
) -> str:
    """Compile the recipe's source and keep ``xen.gz``, ``xen-syms``, ``config`` and, if asked for, ``tools``.

    They come into ``work``; of a hypervisor that counts what it executes, also what :mod:`lab.builds.gcov` needs.
    Gives the hypervisor's version.

    :raises BuildFailed: a patch does not apply, or the source does not compile.
    :raises BenchError: no source, no compiler, or the machine let it down.
    :raises UsageError: a configuration that Kconfig does not accept.
    """
    lacking = {package for program, package in _NEEDS.items() if not shutil.which(program)}
    if lacking:
        raise BenchError(f"{recipe.name}: to compile Xen, install {', '.join(sorted(lacking))}")
    with trees.checked_out(recipe, source, report) as tree:
        environment = _environment(tree)

        def run_in_tree(*words: str, what: str, timeout: float, on_line: Callable[[str], None] | None = None) -> str:
            return run(
                words,
                what=f"build {recipe.name}: {what}",
                timeout=timeout,
                log=log_file,
                cwd=tree.directory,
                environment=environment,
                keep=(tree.lock,),
                on_line=on_line,
            )

        def run_make(*words: str, what: str, timeout: float, on_line: Callable[[str], None] | None = None) -> str:
            try:
                return run_in_tree("make", *words, what=what, timeout=timeout, on_line=on_line)
            except CommandError as error:
                raise blame.of_build(error, error.what, tree.directory) from None

        make = functools.partial(run_make, "-C", "xen", *_compiler_arguments(recipe.compiler))
        config = tree.directory / "xen" / ".config"
        _configure(recipe, config, make, report)
        settings = kconfig.parse(config.read_text(encoding="utf-8"))
        kconfig.check(wanted, settings)
        count = 0

        def on_line(line: str) -> None:
            nonlocal count
            count += bool(re.match(r"(gcc|cc|clang)\b.* -c |\s+(CC|AS)\s", line))  # 4.17 prints commands
            report(f"compiling, {count} objects done (a debug build has about 450)")

        report("compiling", now=True)
        jobs = len(os.sched_getaffinity(0))
        with _mutated(tree.directory, recipe) as points:
            if points:
                points.compile(functools.partial(_all_errors, make, jobs, on_line), functools.partial(report, now=True))
            make(f"-j{jobs}", what="compiling", timeout=trees.LONGEST_BUILD, on_line=on_line)
            if points:
                points.keep(tree.directory / "xen" / "xen-syms", work / listing.FOLDER)
        version = (make("--no-print-directory", "-s", "xenversion", what="version", timeout=60).split() or [""])[-1]
        made = tree.directory / "xen"
        if not (made / "xen.gz").exists():
            raise BuildFailed(f"build {recipe.name}: make was content, but there is no xen/xen.gz", log=str(log_file))
        shutil.copy2(made / "xen.gz", work / "xen.gz")
        if (made / "xen-syms").exists():
            shutil.copy2(made / "xen-syms", work / "xen-syms")
        shutil.copy2(config, work / "config")
        if settings.get("COVERAGE") == "y" and (program := gcov.program_of(recipe.compiler)):
            report("keeping what gcov needs", now=True)
            gcov.keep(tree.directory, made / "xen-syms", work / gcov.FOLDER, program)
        if recipe.tools == "source":
            report("compiling the tools", now=True)
            tools.compile_into(
                work / "tools",
                tree.directory,
                version,
                f"build {recipe.name}",
                run_make,
                run_in_tree,
            )
    return version


@contextmanager
def _mutated(tree: Path, recipe: Recipe) -> Iterator[Mutating | None]:
    """The recipe's mutation points, which are in the tree within the block."""
    if not recipe.mutation:
        yield None
        return
    points = Mutating(tree, recipe.mutation)
    try:
        points.put()
        yield points
    finally:
        points.take_off()


def _all_errors(make: _Run, jobs: int, on_line: Callable[[str], None], keep: Callable[[str], None]) -> None:
    """Compile all that can be compiled, each object's messages together. :raises BuildFailed: there were errors."""

    def both(line: str) -> None:
        keep(line)
        on_line(line)

    words = ("-k", "--output-sync=target", f"-j{jobs}")
    make(*words, what="compiling with mutation points", timeout=trees.LONGEST_BUILD, on_line=both)


def _configure(recipe: Recipe, config: Path, make: _Run, report: Paced) -> None:
    """Resolve the configuration, unless the tree's was resolved from the same inputs."""
    whole = Path(recipe.config) if Path(recipe.config).is_absolute() else None
    xen = config.parent
    parts = [
        trees.digest(whole) if whole else recipe.config,
        [trees.digest(fragment) for fragment in recipe.fragments],
        recipe.compiler,
        version_of(recipe.compiler),
        trees.digest(*sorted(xen.rglob("Kconfig*")), *sorted((xen / "arch").glob("*/configs/*"))),
    ]
    inputs = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    stamp = xen / _CONFIGURED
    if config.exists() and stamp.exists() and stamp.read_text() == f"{inputs} {trees.digest(config)}":
        return
    report("configuring", now=True)
    stamp.unlink(missing_ok=True)
    before = (config.read_bytes(), config.stat()) if config.exists() else None
    if whole:
        shutil.copyfile(whole, config)
    else:
        make(recipe.config, what=recipe.config, timeout=120)
    with open(config, "a", encoding="utf-8") as file:
        for fragment in recipe.fragments:
            file.write(f"\n{fragment.read_text(encoding='utf-8')}\n")
    make("olddefconfig", what="olddefconfig", timeout=120)
    if before and before[0] == config.read_bytes():  # unchanged: what depends on it need not be compiled again
        os.utime(config, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    stamp.write_text(f"{inputs} {trees.digest(config)}")


def _compiler_arguments(compiler: str) -> list[str]:
    if compiler == "gcc":
        return []
    if re.match(r"clang(-|$)", compiler):
        return ["clang=y", f"CC={compiler}"]
    return [f"CC={compiler}"]


def _environment(tree: trees.Tree) -> Mapping[str, str]:
    """Values for what xen/Makefile would take from this machine's name and clock."""
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
