"""Where things live outside the checkout (XDG), and where the checkout is."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP = "xenlab"
CHECKOUT = Path(__file__).resolve().parent.parent.parent


def environment() -> dict[str, str]:
    """What a Python of ours that is started from here needs: this checkout first on its path."""
    there = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(CHECKOUT)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *there])}


def cache() -> Path:
    """Things that can be made again: images, builds, payloads, the virtual environment."""
    return platformdirs.user_cache_path(APP, ensure_exists=True)


def state() -> Path:
    """Things that cannot: runs, console logs, lab state, keys."""
    return platformdirs.user_state_path(APP, ensure_exists=True)


def config() -> Path:
    """The user's own settings: credentials."""
    return platformdirs.user_config_path(APP, ensure_exists=True)


def known_hosts() -> tuple[Path, Path]:
    """SSH host keys that are trusted: the racker's own file, and the one the virtual lab writes."""
    return config() / "known_hosts", state() / "lab" / "ssh" / "known_hosts"
