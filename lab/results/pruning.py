"""How long runs and caches are kept: what ``xenlab clean`` removes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError
from lab.results.run_folder import HEADER, LOCK, RunFolder

log = logging.getLogger(__name__)

RUNS_KEPT = 30
RUNS_DAYS = 14
RUNS_BYTES = 10 * 2**30
CACHE_DAYS = 30  # builds, emulators, images, payloads and saved states nobody used
DAY = 86400.0

_PRUNED_CACHES = ("builds", "emulators", "images", "payloads", "states")
_MARKERS = ("build.json", "made")  # read at each use, so their times say when that was
_DOOMED = ".going-"  # prefix of what is being removed


@dataclass(frozen=True, slots=True)
class _Run:
    path: Path
    started: float
    size: int


def prune(dry_run: bool = False) -> list[str]:
    """Remove old runs and cached things nobody used; a line for each, what it is and its size.

    Kept are the newest :data:`RUNS_KEPT` runs and those younger than :data:`RUNS_DAYS` days, up to :data:`RUNS_BYTES`
    in all; of the jobs of another CI as many; tries of patch series and comparisons of costs used within
    :data:`RUNS_DAYS` days, and what of the caches was used within :data:`CACHE_DAYS` days. The newest run, and whatever
    is in use, stays. Of Python's bytecode what was compiled of folders that are gone goes.
    """
    now = time.time()
    doomed: list[tuple[str, Path, Path | None]] = [
        (what, run.path, run.path / LOCK)
        for what, folder in (("run", "runs"), ("job", "jobs"))
        for run in _runs_to_go(paths.state() / folder, now)
    ]
    doomed += [
        (what, path, path / "run" / LOCK)  # a try of a patch series or a comparison of costs, with all that it was
        for what, folder in (("try", "tries"), ("perf", "perf"))
        for path in _entries(paths.state() / folder)
        if now - _last_use(path) >= RUNS_DAYS * DAY
    ]
    opened = _opened_files()
    for what in _PRUNED_CACHES:
        for path in _entries(paths.cache() / what):
            if path.name.endswith(".lock"):
                continue
            if now - _last_use(path) < CACHE_DAYS * DAY or any(_is_within(file, path) for file in opened):
                continue
            doomed.append((what.removesuffix("s"), path, path.with_name(f"{path.stem}.lock")))
    lines = []
    for what, path, lock in doomed:
        with _not_in_use(lock) as is_free:
            if not is_free:
                continue
            lines.append(f"{what} {path.name}  {size_text(_size(path))}")
            if not dry_run:
                _remove(path)
    for path, compiled in _compiled_of_nothing(paths.cache() / "bytecode", Path("/")):
        lines.append(f"bytecode of {path}  {size_text(_size(compiled))}")
        if not dry_run:
            _remove(compiled)
    return lines


def size_text(size: float) -> str:
    """``1.5 GiB``"""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _runs_to_go(directory: Path, now: float) -> list[_Run]:
    runs = []
    for path in _entries(directory):
        if path.name.startswith(_DOOMED):
            runs.append(_Run(path, 0.0, 0))
        elif (path / HEADER).is_file() and not path.is_symlink():
            try:
                started = RunFolder(path).header().started
            except UsageError:
                started = (path / HEADER).stat().st_mtime
            runs.append(_Run(path, started, _size(path)))
    runs.sort(key=lambda run: -run.started)
    go, total = [], 0
    for index, run in enumerate(runs):
        total += run.size
        is_young = index < RUNS_KEPT or now - run.started < RUNS_DAYS * DAY
        if index and not (is_young and total <= RUNS_BYTES) or run.path.name.startswith(_DOOMED):
            go.append(run)
    return go


def _compiled_of_nothing(cache: Path, source: Path) -> Iterator[tuple[Path, Path]]:
    """Folders that are gone, the topmost of each, and where their bytecode is.

    The cache has each under its own absolute path (PYTHONPYCACHEPREFIX): of Pythons, environments and checkouts.
    """
    for path in _entries(cache):
        if path.is_dir() and not path.is_symlink():
            origin = source / path.name
            try:
                is_folder = stat.S_ISDIR(origin.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                is_folder = False
            except OSError:  # nobody can say whether it is gone
                continue
            if is_folder:
                yield from _compiled_of_nothing(path, origin)
            else:
                yield origin, path


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _walk(path: Path) -> Iterator[os.stat_result]:
    """The state of each thing in ``path``; links are not followed, what vanishes meanwhile is passed over."""
    pending = [str(path)]
    while pending:
        name = pending.pop()
        try:
            state = os.lstat(name)
            yield state
            if (state.st_mode & 0o170000) == 0o040000:
                with os.scandir(name) as entries:
                    pending += [entry.path for entry in entries]
        except OSError:
            continue


def _size(path: Path) -> int:
    """Bytes on the disk: holes do not count, and hard links count once."""
    blocks = {(state.st_dev, state.st_ino): state.st_blocks for state in _walk(path)}
    return 512 * sum(blocks.values())


def _last_use(path: Path) -> float:
    """When the marker of a cached thing, or if it has none any file of it, was read or written last."""
    for name in _MARKERS:
        with suppress(OSError):
            state = (path / name).stat()
            return max(state.st_atime, state.st_mtime)
    times = [max(s.st_atime, s.st_mtime) for s in _walk(path) if (s.st_mode & 0o170000) == 0o100000]
    return max(times, default=path.lstat().st_mtime)


def _opened_files() -> set[str]:
    """Files that processes have open, as far as this user may know: the disk under a board that is up."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    found.add(os.readlink(descriptor.path))
    return found


def _is_within(file: str, path: Path) -> bool:
    return file == str(path) or file.startswith(f"{path}{os.sep}")


@contextmanager
def _not_in_use(lock: Path | None) -> Iterator[bool]:
    """Whether nobody holds the lock, which is then held for the block."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC) if lock else None
    except FileNotFoundError:
        descriptor = None
    except OSError:
        yield False
        return
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Out of the way first, so that half of it is never taken for the whole."""
    gone = path if path.name.startswith(_DOOMED) else path.with_name(f"{_DOOMED}{path.name}-{os.getpid()}")
    try:
        if gone != path:
            path.rename(gone)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone)
        else:
            gone.unlink()
    except OSError as error:
        log.warning("%s: cannot be removed: %s", path, error)
