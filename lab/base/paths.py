"""Where things are: what xenlab ships, in a checkout or installed, and the user's folders (XDG)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from lab.base.errors import UsageError

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
        raise UsageError(f"{what} needs a checkout of xenlab; this one is installed in {PACKAGE}")
    return CHECKOUT


def environment() -> dict[str, str]:
    """The environment for a Python that is started from here: this xenlab comes first on its path."""
    there = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(PYTHON)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PYTHON), *there])}


def cache() -> Path:
    """Things that can be made again: images, builds, payloads, the virtual environment.

    :raises UsageError: it cannot be written.
    """
    return _writable(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def state() -> Path:
    """Things that cannot: runs, console logs, lab state, keys.

    :raises UsageError: it cannot be written.
    """
    return _writable(platformdirs.user_state_path, "XDG_STATE_HOME")


def config() -> Path:
    """The user's own settings: credentials. It is only read, so it may be missing or read-only."""
    return platformdirs.user_config_path(APP)


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
