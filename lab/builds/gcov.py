"""gcov for a hypervisor that counts what it executes (CONFIG_COVERAGE): the notes a build keeps, and what counters say.

gcc writes a ``.gcno`` file beside each object: which lines its counters stand for. A build keeps these notes, a copy of
the sources they name, and what gcov says of them without any counter: all lines and functions there are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from lab.base import processes
from lab.base.errors import BenchError

FOLDER = "coverage"  # of a build: notes/, source/, and two files of ours
INTERFACE = "xen/include/public"  # of a tree: the headers of the hypervisor's interface
_OBJECTS = "objects.json"  # where a counter file would be written, as the hypervisor says it -> its notes
_ALL = "all.json"  # what gcov says of the notes alone
_DATA_FILE = re.compile(rb"(/[^\0\n]+)\.gcda\0")
_TIMEOUT = 300.0


class Data(TypedDict):
    """A :class:`Source` in a file."""

    lines: list[int]
    executed: list[int]
    functions: dict[str, int]
    entered: list[str]


@dataclass
class Source:
    """One source file: its lines that code was made of, and its functions by name, with the first line of each."""

    lines: set[int] = field(default_factory=set)
    executed: set[int] = field(default_factory=set)
    functions: dict[str, int] = field(default_factory=dict)
    entered: set[str] = field(default_factory=set)

    def as_data(self) -> Data:
        """For a file."""
        return Data(
            lines=sorted(self.lines),
            executed=sorted(self.executed),
            functions=self.functions,
            entered=sorted(self.entered),
        )

    @classmethod
    def of_data(cls, data: Data) -> Source:
        """What :meth:`as_data` gave."""
        return cls(set(data["lines"]), set(data["executed"]), data["functions"], set(data["entered"]))


Sources = dict[str, Source]  # by path in the tree: xen/common/domain.c


def program_of(compiler: str) -> str | None:
    """The gcov of a compiler: of ``gcc-12`` it is ``gcov-12``. None: it is no gcc."""
    return re.sub(r"^gcc", "gcov", compiler) if re.match(r"gcc(-|$)", compiler) else None


def keep(tree: Path, symbols: Path, target: Path, program: str) -> None:
    """Keep the notes of the objects that ``symbols`` (``xen-syms``) was linked from, and the sources they name.

    :raises BenchError: notes are not there, or gcov (``program``) cannot read them.
    """
    (target / "notes").mkdir(parents=True)
    objects = {}
    for match in _DATA_FILE.finditer(symbols.read_bytes()):
        stem = match[1].decode()
        note = f"{os.path.relpath(stem, tree)}.gcno"
        kept = target / "notes" / note
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(f"{stem}.gcno", kept)
        except OSError as error:
            raise BenchError(f"{stem}.gcno: the compiler's notes for gcov: {error.strerror}") from None
        objects[f"{stem}.gcda"] = note
    if not objects:
        raise BenchError(f"{symbols}: CONFIG_COVERAGE is on, but no object in it names a file for its counters")
    (target / _OBJECTS).write_text(json.dumps(objects, indent=1, sort_keys=True), encoding="utf-8")
    found = read(program, target)
    (target / _ALL).write_text(json.dumps({name: one.as_data() for name, one in found.items()}), encoding="utf-8")
    for name in found:
        kept = target / "source" / name
        if (tree / name).is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / name, kept)
    if (headers := tree / INTERFACE).is_dir():  # they hold no code, and name what the hypervisor offers
        shutil.copytree(headers, target / "source" / INTERFACE, dirs_exist_ok=True)


def read(program: str, folder: Path, counters: Mapping[str, bytes] | None = None) -> Sources:
    """What was executed by these counters, in the objects that they are of; without them: all there is.

    ``folder`` is what :func:`keep` made. ``counters``: contents of ``.gcda`` files, by the names that Xen gives them.

    :raises BenchError: gcov cannot be run, or the counters are not of this build.
    """
    objects: dict[str, str] = json.loads((folder / _OBJECTS).read_text(encoding="utf-8"))
    if counters is not None and (strange := sorted(set(counters) - set(objects))):
        raise BenchError(f"the counters are of another build: {folder} has no notes for {strange[0]}")
    with tempfile.TemporaryDirectory(prefix="xenlab-gcov-") as scratch:
        work, words = Path(scratch), []
        for name in objects if counters is None else counters:
            note = work / objects[name]
            note.parent.mkdir(parents=True, exist_ok=True)
            note.symlink_to(folder / "notes" / objects[name])
            if counters is not None:
                note.with_suffix(".gcda").write_bytes(counters[name])
            words.append(objects[name] if counters is None else str(Path(objects[name]).with_suffix(".gcda")))
        return _parse(_run(program, words, work)) if words else {}


def everything(folder: Path) -> Sources:
    """All lines and functions of the build, none of them executed. :raises BenchError: the file is not there."""
    try:
        said = json.loads((folder / _ALL).read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{folder / _ALL}: {error.strerror}; make the build again: xenlab build") from None
    return {name: Source.of_data(one) for name, one in said.items()}


def _run(program: str, words: list[str], work: Path) -> str:
    try:
        done = subprocess.run(
            [program, "--json-format", "--stdout", *words],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env=processes.environment(),
            check=False,
        )
    except FileNotFoundError:
        raise BenchError(f"{program} is not installed: it comes with the compiler of the build") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{program}: not done after {_TIMEOUT:.0f} s") from None
    said = [line for line in done.stderr.splitlines() if "assuming not executed" not in line]
    if wrong := next((line for line in said if "mismatch" in line or "not a gcov" in line), ""):
        raise BenchError(f"the counters are not of this build: {program} says: {wrong}")
    if done.returncode:
        raise BenchError(f"{program} ended with status {done.returncode}: {' '.join(said)[-400:]}")
    return done.stdout


def _parse(text: str) -> Sources:
    """Join what gcov says of each object; a header has the lines and functions of all objects that include it."""
    found: Sources = {}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        for one in said["files"]:
            source = found.setdefault(_path(one["file"]), Source())
            for row in one["lines"]:
                source.lines.add(row["line_number"])
                if row["count"] > 0:
                    source.executed.add(row["line_number"])
            for row in one["functions"]:
                source.functions.setdefault(row["name"], row["start_line"])
                if row["execution_count"] > 0:
                    source.entered.add(row["name"])
    return found


def _path(name: str) -> str:
    """A file that the compiler was given in ``xen/``, as a path in the tree."""
    if not os.path.isabs(name):
        return os.path.normpath(os.path.join("xen", name))
    return name[name.rfind("/xen/") + 1 :] if "/xen/" in name else name
