"""A lab of a board or a few: its real services, brought up by the command line, and labgrid's client in front of them.

Import ``lab_up_fixture`` to have the fixture ``lab_up``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port

from lab import inventory
from lab.base.paths import CHECKOUT
from lab.base.wait import wait_until
from lab.grid.coordinator import Coordinator


class SmallLab:
    """A lab of a board called mini and perhaps others, up, and labgrid's client in front of it."""

    def __init__(self, folder: Path, keys: dict[str, dict[str, Any]]) -> None:
        self._environment = os.environ | {"XDG_STATE_HOME": str(folder), "PYTHONPATH": str(CHECKOUT)}
        self._inventory = folder / "unit.yaml"
        head = {"lab": "unit", "coordinator": f"127.0.0.1:{free_port()}"}
        hosts = {name: {"ansible_host": "127.0.0.1", "xenlab": own} for name, own in keys.items()}
        self._inventory.write_text(yaml.safe_dump({"all": {"vars": {"xenlab": head}, "hosts": hosts}}))
        self.folder = folder / "xenlab" / "lab" / "unit"
        self._coordinator = head["coordinator"]

    def up(self) -> None:
        self.xenlab("lab", "up")

        boards = inventory.load(self._inventory).boards.values()

        def is_exported() -> bool:
            with closing(Coordinator(self._coordinator)) as one, one.acting_as("test/looks") as holder:
                return not any(holder.lacks(board) for board in boards)

        wait_until(is_exported, 30.0, "exporter", interval=0.1)

    def xenlab(self, *words: str) -> str:
        return self._run(sys.executable, "-P", "-m", "lab.cli", *words, "--inventory", str(self._inventory))

    def services(self) -> dict[str, int]:
        """Process ids by name."""
        found: dict[str, int] = json.loads((self.folder / "services.json").read_text())["processes"]
        return found

    def client(self, *words: str, board: str = "mini") -> str:
        """What ``labgrid-client -p BOARD WORDS`` says."""
        own = ("-x", self._coordinator, "-c", str(self.folder / "env.yaml"), "-p", board)
        return self._run("labgrid-client", *own, *words)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """A shell of somebody's, who has read the lab's env.sh; both streams in one."""
        return subprocess.run(
            ["sh", "-c", f". {self.folder / 'env.sh'}; {script}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
            env={key: value for key, value in self._environment.items() if key != "PYTHONPATH"},
        )

    def _run(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).parent / program), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env=self._environment,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(name="lab_up")
def lab_up_fixture(tmp_path: Path) -> Iterator[Callable[..., SmallLab]]:
    """``lab_up(KEYS)``, or ``lab_up(KEYS, NAME=KEYS...)`` for boards beside mini."""
    started: list[SmallLab] = []

    def lab_up(keys: dict[str, Any], **others: dict[str, Any]) -> SmallLab:
        started.append(SmallLab(tmp_path, {"mini": keys, **others}))
        started[-1].up()
        return started[-1]

    yield lab_up
    for lab in started:
        lab.xenlab("lab", "down")


def ports(source: int) -> dict[str, Any]:
    """A console at a terminal server."""
    recorded = {"serve_port": free_port(), "lines_port": free_port()}
    return {"via": "tcp", "host": "127.0.0.1", "port": source, **recorded}
