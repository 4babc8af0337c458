"""Small things of ``firmware`` that are compiled on the machine they serve, and kept by content."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.base import paths, processes
from lab.base.errors import BenchError


def compiled(sources: Path, product: str, package: str = "", headers: Iterable[Path] = ()) -> Path:
    """What ``make`` in the folder ``sources`` makes and calls ``product``: from the cache, or made now.

    ``headers`` of other people's are part of the content. ``package`` is Debian's, of what is not everywhere.

    :raises BenchError: it does not compile; carries the compiler's words.
    """
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (*sorted(sources.iterdir()), *sorted(headers))))
    directory = paths.cache() / sources.name / digest.hexdigest()[:16]
    made = directory / product
    if not made.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["make", "-s", "-C", str(sources), f"OUT={directory}"],
                capture_output=True,
                text=True,
                timeout=120,
                env=processes.environment(),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"firmware/{sources.name} cannot be made: {error}") from None
        if done.returncode:
            hint = f" (Debian package {package}?)" if package else ""
            raise BenchError(f"firmware/{sources.name} does not build{hint}:\n{done.stderr[-1500:]}")
    return made
