"""Where things are: what xenlab ships, in a checkout or installed, and the user's folders (XDG)."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import platformdirs

from lab.base.errors import BenchError, UsageError

APP = "xenlab"
PACKAGE = Path(__file__).resolve().parent.parent  # lab/
PYTHON = PACKAGE.parent  # what must be on sys.path
_INSTALLED = PACKAGE / "_shipped"  # a wheel has it, a checkout has not: pyproject.toml, force-include
IS_INSTALLED = _INSTALLED.is_dir()
SHIPPED = _INSTALLED if IS_INSTALLED else PYTHON  # holds the folders below, and is the root of the shipped cases

FIRMWARE = SHIPPED / "firmware"
INVENTORY = SHIPPED / "inventory"
TESTCASES = SHIPPED / "testcases"
MUTANTS = SHIPPED / "tests" / "mutants"
PYTEST_SETTINGS = SHIPPED / "tox.ini"  # pytest's settings, and the areas that a whole run must pass
CHECKOUT = PYTHON  # in a checkout: for the framework's own tests


def checkout(what: str) -> Path:
    """The checkout, for ``what`` needs files that are not installed.

    :raises UsageError: this xenlab is an installed one.
    """
    if IS_INSTALLED:
        raise UsageError(f"{what} needs a checkout of xenlab; this xenlab is installed in {PACKAGE}")
    return CHECKOUT


def environment() -> dict[str, str]:
    """This process's whole environment, with this xenlab first on Python's path.

    For a program that takes the place of this one. A child gets :func:`lab.base.processes.environment`.
    """
    there = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(PYTHON)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PYTHON), *there])}


def cache() -> Path:
    """Things that can be made again: images, builds, payloads, the virtual environment.

    :raises UsageError: it cannot be written.
    """
    return _writable(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def state() -> Path:
    """Things that cannot: runs, console logs, lab state, keys. Nobody but the user may enter it.

    :raises UsageError: it cannot be written.
    """
    folder = _writable(platformdirs.user_state_path, "XDG_STATE_HOME")
    if (found := folder.stat()).st_uid == os.getuid() and found.st_mode & 0o077:  # of an older version
        folder.chmod(0o700)
    return folder


def config() -> Path:
    """The user's own settings: credentials. It is only read, so it may be missing or read-only."""
    return platformdirs.user_config_path(APP)


def runtime() -> Path:
    """A folder of mode 0700 for sockets and what else lives no longer than a process; its path is short.

    ``xenlab`` below ``XDG_RUNTIME_DIR`` if that is the user's alone, as the XDG Base Directory Specification demands
    of it; else ``xenlab-UID`` in the folder for temporary files, where anybody may have made it first.

    :raises BenchError: somebody else made the folder, or others may enter it.
    """
    given = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    is_short = len(str(given)) <= _SOCKET_FOLDER_LIMIT
    if is_short and not _why_not_private(given):
        folder = given / APP
    else:
        folder = Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: cannot be made: {error.strerror}") from None
    if why := _why_not_private(folder):
        raise BenchError(f"{folder}: {why}; remove it, or set XDG_RUNTIME_DIR to a folder that only you can enter")
    return folder


_SOCKET_FOLDER_LIMIT = 60  # of the 107 characters that a Unix socket's path may have (unix(7))


def _why_not_private(folder: Path) -> str | None:
    """Why others could change what is in the folder, or read it; a symbolic link is not followed."""
    try:
        found = folder.lstat()
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}: others may use it"
    return None


def ssh_key() -> Path:
    """The lab's private key. Its public half is in root's authorized_keys on each board."""
    return state() / "lab" / "ssh" / "id_ed25519"


def known_hosts() -> tuple[Path, Path]:
    """SSH host keys that are trusted: the racker's own file, and the one the virtual lab writes."""
    return config() / "known_hosts", state() / "lab" / "ssh" / "known_hosts"


def _writable(find: Callable[[str], Path], setting: str) -> Path:
    folder = find(APP)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; point {setting} to a folder you can write") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write in {folder}; point {setting} to a folder you can write")
    return folder


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a file that may come from anybody. A pipe in its place would keep the reader waiting, a device has no end.

    :param limit: bytes that it may have; None: any number.
    :raises OSError: it cannot be read, is no regular file, or is longer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        code, why = errno.EISDIR, os.strerror(errno.EISDIR)
    elif not stat.S_ISREG(found.st_mode):
        code, why = errno.EINVAL, "Not a regular file"
    elif limit is not None and found.st_size > limit:
        code, why = errno.EFBIG, f"Longer than {limit >> 20} MiB"
    else:
        return open(descriptor, "rb")
    os.close(descriptor)
    raise OSError(code, why, str(path))


def read_regular(path: Path, limit: int = 64 << 20) -> bytes:
    """The content of a file as :func:`open_regular` takes it; ``limit`` is far more than any file of ours has."""
    with open_regular(path, limit) as file:
        return file.read()
