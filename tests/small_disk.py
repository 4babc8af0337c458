"""A file system that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def can_be_had() -> bool:
    """Whether this process may mount: in a namespace of its own, so that nothing is left if it may."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return not os.geteuid() and not subprocess.run(words, check=False, capture_output=True, timeout=20).returncode


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs with these options on ``folder``; the test is skipped where nothing can be mounted."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True, timeout=20).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)  # a process that ends may be in it
