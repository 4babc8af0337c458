"""A run folder on disk.

::

    run.json                             RunHeader, replaced as a whole
    builds.json                          what each build is: build id, version, key, source
    results.jsonl                        one TestResult a line, appended by all workers of the run
    cases/<slug>/[<build>/]<attempt>/    what a case leaves: console slices, pictures
    cases/.../profiles.json              of what figures are made, if the board tells: by figure and address
    coverage/                            the sources with what was executed, if `xenlab coverage --html` was asked
    lock                                 held (shared) by whoever writes to the run

A result is on the disk when :meth:`RunFolder.append` returns. Readers need no lock, and pass over a line that
a killed writer left unfinished.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

from lab.base import paths, processes, shape
from lab.base.errors import UsageError, WaitTimeout
from lab.base.wait import wait_until
from lab.results.build_source import Source
from lab.results.record import RunHeader, TestResult, Time
from lab.results.summary import Missing, RunSummary, due, final, missing

log = logging.getLogger(__name__)

HEADER, LOCK = "run.json", "lock"
COVERAGE_PAGE = "coverage/index.html"  # the sources, each line with the number of cases that execute it; if asked for
PROFILES = "profiles.json"  # in the folder of an attempt
_RESULTS, _BUILDS = "results.jsonl", "builds.json"
_WRITING = 2.0  # seconds that writing a line may take
_LINE_LIMIT = 64 << 20  # bytes of one result: far more than any has
_PASSED_LIMIT, _PIECE = 256 << 20, 1 << 20  # bytes that are read to find the end of a longer one, and at a time


class LineOfConsole(Protocol):
    """A console line, as far as it is written here."""

    @property
    def time(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...


# -- text ----------------------------------------------------------------------------------------------------

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, without tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    "\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]"  # and what XML and UTF-8 cannot carry
)


def visible(text: str) -> str:
    r"""``text`` with control characters shown (``\x1b``) instead of obeyed; tab and newline stay."""
    if text.isprintable() or text.replace("\n", "").isprintable():  # the fast way for most
        return text
    text = text.replace("\r\n", "\n")

    def shown(match: re.Match[str]) -> str:
        number = ord(match[0])
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

    return _UNSEEN.sub(shown, text)


def visible_line(text: str) -> str:
    """The same on one line."""
    return text if text.isprintable() else visible(text).replace("\n", "\\n").replace("\t", " ")


def stamp(when: float) -> str:
    """``2026-11-23T08:33:53.123Z``"""
    thousandths = int(when * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(thousandths // 1000)) + f".{thousandths % 1000:03d}Z"


# -- the folder ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Now:
    """What :meth:`RunFolder.note_now` writes."""

    case: str
    since: Time
    process: str
    is_ready: bool = False


def new_id() -> str:
    """A run's name, which sorts by time and is no other's on this machine."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{os.getpid():x}"


class RunFolder:
    """A run on disk; any number of processes may write to it."""

    def __init__(self, path: Path) -> None:
        """For :meth:`create` and :meth:`open`."""
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, header: RunHeader) -> RunFolder:
        """Make the folder, and hold it as in use for as long as the returned object lives.

        :raises UsageError: it is there and not empty, or cannot be made.
        """
        path = path.absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UsageError(f"{path}: the run folder must be new or empty")
            folder = cls(path)
            folder._hold()
            (path / _RESULTS).touch()
            folder.write_header(header)
        except OSError as error:
            raise UsageError(f"{path}: the run folder cannot be made: {error.strerror or error}") from None
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run folder that is there.

        :raises UsageError: it is none.
        """
        folder = cls(path.absolute())
        folder.header()
        if file := folder._open_results():
            file.close()
        return folder

    def __del__(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _hold(self) -> None:
        """Keep ``xenlab clean`` away while this process writes here."""
        if self._lock is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock = os.open(self.path / LOCK, flags, 0o644)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def header(self) -> RunHeader:
        """What was asked of the run.

        :raises UsageError: not there, or not a header.
        """
        try:
            return RunHeader.from_json(paths.read_regular(self.path / HEADER).decode())
        except OSError as error:
            said = error.strerror or error
            raise UsageError(f"{self.path}: not a run folder: {HEADER}: {said}") from None
        except ValueError as error:
            raise UsageError(f"{self.path / HEADER}: {error}") from None

    def write_header(self, header: RunHeader) -> None:
        """Replace ``run.json``; a reader sees the old one or the new one."""
        replace_file(self.path / HEADER, header.to_json())

    def builds(self) -> Mapping[str, Mapping[str, str]]:
        """Facts of each build, as far as they were noted; empty when none were. See :meth:`sources` for its source."""
        plain = (str, int, float)
        return {
            name: {str(key): str(value) for key, value in facts.items() if isinstance(value, plain)}
            for name, facts in self._noted_builds().items()
        }

    def sources(self) -> Mapping[str, Source]:
        """From which source each build was made; an empty one where that was not noted."""
        return {name: Source.read(facts.get("source")) for name, facts in self._noted_builds().items()}

    def _noted_builds(self) -> Mapping[str, Mapping[str, object]]:
        try:
            read = json.loads(paths.read_regular(self.path / _BUILDS))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(read, dict):
            return {}
        return {str(name): facts for name, facts in read.items() if isinstance(facts, dict)}

    def write_builds(self, facts: Mapping[str, Mapping[str, object]]) -> None:
        """Note what each build is: build id, version, key, source."""
        replace_file(self.path / _BUILDS, json.dumps(facts, indent=1, sort_keys=True))

    # Results

    def append(self, result: TestResult) -> None:
        """Add a result; it is on the disk when this returns.

        :raises OSError: the disk is full or broken. Nothing of this result is left then, and all others are.
        """
        self._hold()
        line = result.to_json().encode() + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path / _RESULTS, flags, 0o644)
        try:
            with suppress(OSError):  # without locks, one write() a line has to do
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":  # of a writer killed in the middle of a line
                line = b"\n" + line
            try:
                _write_whole(descriptor, line)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def results(self) -> Iterator[TestResult]:
        """All results in the order they were written, every attempt of every case.

        :raises UsageError: they cannot be read. None is no error: there may be none yet.
        """
        for one in self._records():
            if isinstance(one, TestResult):
                yield one
            else:
                log.warning("%s:%s: passed over: %s", self.path / _RESULTS, *one)

    def _records(self) -> Iterator[TestResult | tuple[int, str]]:
        """The same; of a line that is no result its number, and why."""
        file = self._open_results()
        if file is None:
            return
        with file:
            for number, line in enumerate(_lines(file, self.path / _RESULTS), 1):
                if not line.strip():
                    continue
                try:
                    yield TestResult.from_json(line.decode("utf-8"))
                except ValueError as error:
                    yield number, visible_line(str(error))

    def _open_results(self) -> BinaryIO | None:
        try:
            return paths.open_regular(self.path / _RESULTS)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self.path / _RESULTS}: {error.strerror}") from None

    def summary(self) -> RunSummary:
        """All that the folder says of the run, read once.

        :raises UsageError: its header is not there, or not one.
        """
        header, builds, sources = self.header(), self.builds(), self.sources()
        is_held = header.finished is None and self.is_held()
        records = list(self._records())
        results = tuple(one for one in records if isinstance(one, TestResult))
        unread = tuple(f"line {one[0]}: {one[1]}" for one in records if not isinstance(one, TestResult))
        return RunSummary(self.path, header, builds, sources, results, is_held, unread)

    def is_held(self) -> bool:
        """Whether some process writes to the folder; false where the file system has no locks."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    def final_results(self) -> list[TestResult]:
        """The attempt that decides for each case and build, in the order of the plan."""
        return final(self.header(), self.results())

    def missing(self) -> list[Missing]:
        """What was planned and has no result."""
        return missing(self.header(), self.results())

    def due(self) -> list[Missing]:
        """See :func:`due`."""
        return due(self.header(), self.results())

    def note_now(self, boards: Sequence[str], case: str, *, is_ready: bool = False) -> None:
        """Note which case has these boards; none: no more.

        :param is_ready: the boards run the build under test, and from now on the time is the case's own.
        """
        path = self.path / f"now-{'-'.join(boards)}.json"
        if not case:
            path.unlink(missing_ok=True)
            return
        noted = _Now(case, time.time(), processes.mark(os.getpid()), is_ready)
        replace_file(path, json.dumps(asdict(noted)))

    def now(self) -> dict[str, tuple[str, float, bool]]:
        """The cases that run: boards, the case, since when, and whether its boards were ready then."""
        found = {}
        for path in sorted(self.path.glob("now-*.json")):
            with suppress(OSError, ValueError):
                said = shape.read(_Now, paths.read_regular(path))
                if processes.is_alive(said.process):
                    found[path.stem.removeprefix("now-")] = (said.case, said.since, said.is_ready)
        return found

    # What cases leave

    def case_directory(self, nodeid: str, attempt: int, build: str = "") -> Path:
        """The folder of one attempt at a case, made if need be; one a build in runs of several builds."""
        self._hold()
        parts = [slug(build)] if build else []
        directory = self.path.joinpath("cases", slug(nodeid), *parts, str(int(attempt)))
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def profiles(self) -> dict[str, dict[int, float]]:
        """Of what the figures are made: the hypervisor's instructions in one operation, by figure and address.

        Of a case that was tried again, the last attempt's. A file that cannot be read is as none.
        """
        found: dict[str, dict[int, float]] = {}
        for file in sorted(self.path.glob(f"cases/**/{PROFILES}")):
            with suppress(OSError, ValueError, AttributeError):
                read = json.loads(file.read_text(encoding="utf-8"))
                found |= {
                    name: {int(at, 16): float(count) for at, count in blocks.items()} for name, blocks in read.items()
                }
        return found

    def write_console(self, directory: Path, board: str, lines: Iterable[LineOfConsole]) -> str:
        """Write a slice of a console, one line each with its time; the path, relative to the run folder.

        Control characters are shown, so that it can be read with ``cat``; the recorder keeps the bytes.
        """
        path = directory / f"{file_name(board)}.console.log"
        write_lines(path, lines)
        return os.path.relpath(path, self.path)


def write_lines(path: Path, lines: Iterable[LineOfConsole]) -> None:
    """Write records of a console with their times, one a line, to be read by people.

    What kind of record a line is cannot be told from its text, since a board may print anything. The kinds are in the
    file :func:`kinds_path`: a row ``{"line": NUMBER, "kind": KIND}`` for each record that is no finished line of the
    board, the first line of the slice being number 1.
    """
    with (
        open(path, "w", encoding="utf-8", newline="\n") as file,
        open(kinds_path(path), "w", encoding="utf-8", newline="\n") as kinds,
    ):
        for number, line in enumerate(lines, 1):
            text = visible_line(line.text)
            if line.kind in ("gap", "open"):
                text = f"--- {line.kind}: {text} ---"
            file.write(f"{stamp(line.time)} {text}\n")
            if line.kind != "line":
                kinds.write(json.dumps({"line": number, "kind": line.kind}) + "\n")


def kinds_path(slice_path: Path) -> Path:
    """Where the kinds of a console slice's records are: ``NAME.console.kinds.jsonl`` beside ``NAME.console.log``."""
    return slice_path.with_suffix(".kinds.jsonl")


@lru_cache(maxsize=1024)
def file_name(text: str) -> str:
    """``text`` where it is a harmless file name, else its :func:`slug`."""
    return text if re.fullmatch(r"[\w][\w.-]{0,80}", text, re.ASCII) else slug(text)


def slug(text: str) -> str:
    """Readable and safe in a file name; the hash makes it unique."""
    words = text.removeprefix("testcases/").replace(".py::", "-")
    words = re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{words[:80]}-{digest}".lstrip("-")


def _write_whole(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)  # whole but for a full disk: then the next one says why
    while written < len(data):
        more = os.write(descriptor, data[written:])
        if not more:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += more


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Line by line; one that is too long for a result comes without its end."""
    while line := file.readline(_LINE_LIMIT):
        if not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
            line += _rest(file, _LINE_LIMIT - len(line))
        yield line
        if not line.endswith(b"\n") and not _is_passed(file):
            log.warning("%s: what follows a line of more than %d MiB is not read", path, _PASSED_LIMIT >> 20)
            return


def _rest(file: BinaryIO, limit: int) -> bytes:
    """What a writer in the middle of the last line adds to it; nothing where there is none, or it stands still."""

    def is_written() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        return True

    with suppress(OSError, WaitTimeout):  # without locks there is no telling
        wait_until(is_written, _WRITING, "the line", interval=0.01)
    return file.readline(limit)


def _is_passed(file: BinaryIO) -> bool:
    """Go to the end of a line; false: it is too far. What a power cut left of zeros may be gigabytes, mostly holes."""
    passed = 0
    while piece := file.read(_PIECE):
        end = piece.find(b"\n")
        if end >= 0:
            file.seek(end + 1 - len(piece), os.SEEK_CUR)
            return True
        passed += len(piece)
        if passed > _PASSED_LIMIT:
            return False
        if not piece.strip(b"\0"):
            with suppress(OSError):  # there is no more data
                file.seek(os.lseek(file.fileno(), file.tell(), os.SEEK_DATA))
    return True


def replace_file(path: Path, text: str) -> None:
    """Write a file whole, or leave the one that is there."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
