"""Benchmarks of the lab itself: a figure, the bar it is held against, ``ok`` or ``short``.

A benchmark is a function in ``benchmarks/*.py``::

    @benchmark("crash-reaction", bar=2.0, unit="s")
    def crash_reaction() -> float: ...

It returns its figure, or several by name; then ``bar`` may be a mapping too, and a name without a bar is
shown and not judged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lab.base import paths
from lab.base.errors import BenchError, UsageError

Measure = Callable[[], float | Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A function that measures, and what is asked of it."""

    name: str
    bar: float | Mapping[str, float] | None
    unit: str
    better: Literal["lower", "higher"]
    measure: Measure
    source: str  # file:line

    @property
    def doc(self) -> str:
        """The first line of the function's docstring."""
        return (self.measure.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. ``is_short`` is ``None`` where no bar is set."""

    name: str
    value: float
    unit: str
    bar: float | None
    better: str
    is_short: bool | None

    def line(self) -> str:
        """``crash-reaction  0.41 s  (bar: at most 2 s)  ok``"""
        if self.bar is None:
            return f"{self.name}  {self.value:.4g} {self.unit}"
        word = "at most" if self.better == "lower" else "at least"
        verdict = "short" if self.is_short else "ok"
        return f"{self.name}  {self.value:.4g} {self.unit}  (bar: {word} {self.bar:.4g} {self.unit})  {verdict}"


_loading: dict[str, Benchmark] = {}
_notes: list[str] = []


def note(text: str) -> None:
    """Have a line said after the figures of the benchmark that runs: where its drawing is, for one."""
    _notes.append(text)


def benchmark(
    name: str,
    *,
    unit: str,
    bar: float | Mapping[str, float] | None = None,
    better: Literal["lower", "higher"] = "lower",
) -> Callable[[Measure], Measure]:
    """Register the decorated function under ``name``.

    :raises UsageError: the name is taken.
    """

    def register(function: Measure) -> Measure:
        source = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
        if name in _loading:
            raise UsageError(f"{source}: benchmark {name!r} is already defined at {_loading[name].source}")
        _loading[name] = Benchmark(name, bar, unit, better, function, source)
        return function

    return register


def load(directory: Path | None = None) -> dict[str, Benchmark]:
    """Every benchmark in the folder's modules, by name.

    :raises UsageError: two of one name, or an installed xenlab, which has no benchmarks.
    """
    _loading.clear()
    directory = directory or paths.checkout("bench") / "benchmarks"
    for file in sorted(directory.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"xenlab_benchmarks_{file.stem}", file)
        assert spec
        assert spec.loader
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return dict(sorted(_loading.items()))


def run(
    names: Sequence[str],
    json_file: Path | None = None,
    *,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Run these (``all`` for all), a line for each figure; without names, list what there is.

    Exit status: 0, 1 when a figure is short of its bar, 3 when one could not be measured.

    :raises UsageError: no such benchmark; the message lists those there are.
    """
    known = load(directory)
    if not names:
        for one in known.values():
            say(f"{one.name}  {one.doc}")
        return 0
    if unknown := [name for name in names if name not in known and name != "all"]:
        there = ", ".join(known) or "none"
        raise UsageError(f"no benchmark {', '.join(unknown)}; there are: {there}")
    if json_file and not json_file.absolute().parent.is_dir():
        raise UsageError(f"{json_file}: no such folder")
    started = time.time()
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    for one in known.values() if "all" in names else [known[name] for name in dict.fromkeys(names)]:
        try:
            measured = _figures(one, one.measure())
        except BenchError as error:
            failed[one.name] = str(error)
            say(f"{one.name}  not measured: {error}")
            continue
        for figure in measured:
            say(figure.line())
        figures += measured
        for text in _notes:
            say(f"{one.name}: {text}")
        _notes.clear()
    if json_file:
        _write(json_file, started, figures, failed)
    if failed:
        return 3
    return 1 if any(figure.is_short for figure in figures) else 0


def _figures(one: Benchmark, measured: float | Mapping[str, float]) -> list[Figure]:
    if isinstance(measured, Mapping):
        values = {f"{one.name}/{key}": (key, float(value)) for key, value in measured.items()}
        if isinstance(one.bar, Mapping) and (lost := set(one.bar) - set(measured)):
            raise BenchError(f"{one.source}: has a bar for {', '.join(sorted(lost))}, and no figure")
    else:
        values = {one.name: ("", float(measured))}
    found = []
    for name, (key, value) in values.items():
        bar = one.bar.get(key) if isinstance(one.bar, Mapping) else one.bar
        is_short = None if bar is None else not (value <= bar if one.better == "lower" else value >= bar)
        found.append(Figure(name, value, one.unit, bar, one.better, is_short))  # NaN is short
    return found


def _write(file: Path, started: float, figures: Sequence[Figure], failed: Mapping[str, str]) -> None:
    content = {
        "started": started,
        "seconds": time.time() - started,
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "figures": [asdict(figure) for figure in figures],
        "not_measured": failed,
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
