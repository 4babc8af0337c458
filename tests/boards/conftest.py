"""A virtual lab of the tests' own: its state is kept apart, the caches are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.base import paths

collect_ignore = ["cases"]  # they are run by the tests, on boards


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what takes many minutes too")
    parser.addoption("--xen-tree", default="", metavar="PATH", help="Xen, for tests/boards/test_xens_own_ci.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow and not config.getoption("--slow"):
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@dataclass
class Finished:
    """A run of the command line that ended."""

    status: int
    output: str
    folder: Path

    def results(self) -> dict[str, dict[str, Any]]:
        """Records by the case's own name."""
        lines = (self.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return {(record := json.loads(line))["case"].rpartition("::")[2]: record for line in lines}

    def explain(self) -> str:
        """For assertions."""
        found = [(name, r["verdict"], r["rule"], r["reason"]) for name, r in self.results().items()]
        return f"status {self.status}: {found}\n{self.output[-2000:]}"


class CommandLine:
    """``xenlab`` with a state folder of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = os.environ | {"XDG_STATE_HOME": str(state), "PYTHONPATH": str(paths.CHECKOUT)}

    def __call__(
        self, *words: str, timeout: float = 1400, code: Sequence[str] = ("-m", "lab.cli")
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", *code, *words],
            env=self.environment,
            cwd=paths.CHECKOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def nightly(self, folder: Path, *words: str, code: Sequence[str] = ("-m", "lab.cli")) -> Finished:
        done = self("nightly", "--output", str(folder), *words, code=code)
        return Finished(done.returncode, done.stdout + done.stderr, folder)


@pytest.fixture(scope="session")
def xenlab(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def lab_up(xenlab: CommandLine, request: pytest.FixtureRequest) -> Iterator[CommandLine]:
    """The embedded lab (or that of ``--inventory``), up for one file of tests."""
    words = ["--inventory", str(Path(request.config.getoption("--inventory")).resolve())]
    done = xenlab("lab", "up", *words, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    yield xenlab
    done = xenlab("lab", "down", *words, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
