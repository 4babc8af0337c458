"""The processes that run cases: their command lines, and how they are started under a lease."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.base import paths, processes
from lab.leases.ledger import LEASE


def root_of(cases: Sequence[str]) -> Path:
    """The folder that node ids of these cases are relative to: the one that holds their folder ``testcases``.

    Cases of a lab of one's own have a root of their own; all others belong to what xenlab ships.
    """
    roots = {_root(Path(case.partition("::")[0])) for case in cases}
    return roots.pop() if len(roots) == 1 else paths.SHIPPED


def _root(path: Path) -> Path:
    if not path.is_absolute() or path.is_relative_to(paths.SHIPPED):
        return paths.SHIPPED
    if (path / "testcases").is_dir():
        return path
    return next((one.parent for one in (path, *path.parents) if one.name == "testcases"), paths.SHIPPED)


def pytest_words(root: Path) -> list[str]:
    """Words for pytest about where cases are and how it is set; the same for all of them."""
    return [f"--rootdir={root}", "-c", str(paths.PYTEST_SETTINGS), "-p", "lab.case.plugin", "-p", "no:cacheprovider"]


def pytest_command(root: Path, inventory: Path, boards: Sequence[str], words: Sequence[str]) -> list[str]:
    """Run cases on these boards by pytest. ``words``: cases, and further options of the plugin or of pytest."""
    command = [sys.executable, "-m", "pytest", *pytest_words(root), f"--inventory={inventory}"]
    return [*command, f"--boards={','.join(boards)}", *words]


def spawn(command: Sequence[str], log_file: Path, lease: int, folder: Path = paths.SHIPPED) -> subprocess.Popen[bytes]:
    """Start a process of a run under a lease; its output is appended to a file. It is interrupted when this one ends.

    That holds also where this process was started with SIGINT ignored, as in a shell's background job. Otherwise it
    would go on with boards that are somebody else's by then.
    """
    with open(log_file, "ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", "env", "--default-signal=INT", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            env=processes.environment(processes.PYTHON, processes.NETWORK, processes.ANSIBLE, processes.CREDENTIALS)
            | {LEASE: str(lease)},
        )
