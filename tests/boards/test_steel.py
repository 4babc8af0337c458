"""Boards known by nothing but IPMI, serial console and SSH pass the same cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import CommandLine
from lab import inventory, paths
from lab.virtual import boards

# Any import of lab.virtual raises ImportError in the run and, by way of sitecustomize, in its workers.
BLOCK = "import sys\nsys.modules['lab.virtual'] = None\n"


@pytest.fixture
def steel(xenlab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The virtual boards, cabled and ready, and an inventory that does not say what they are made of."""
    monkeypatch.setenv("XDG_STATE_HOME", str(xenlab.state))
    text = (paths.CHECKOUT / "inventory" / "virtual.yaml").read_text(encoding="utf-8")
    virtual = tmp_path / "virtual.yaml"
    virtual.write_text(text, encoding="utf-8")
    lab = inventory.load(virtual)
    folder = tmp_path / "boards"
    boards.prepare(lab, folder, paths.state() / "lab" / "ssh")
    boards.start(lab, folder)
    lines = [line for line in text.splitlines() if not line.strip().startswith("virtual:")]
    declared = tmp_path / "steel.yaml"
    declared.write_text("\n".join(lines).replace("lab: virtual", "lab: steel"), encoding="utf-8")
    assert not inventory.load(declared).is_virtual
    yield declared
    boards.stop(folder)


def test_steel_boards_pass_the_same_cases(steel: Path, xenlab: CommandLine, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    xenlab.environment["PYTHONPATH"] = f"{blocked}:{paths.CHECKOUT}"
    run = xenlab.nightly(tmp_path / "run", "--inventory", str(steel), "--select", "quick")
    assert run.status == 0, run.explain()
    passed = {record["area"] for record in run.results().values() if record["verdict"] == "PASS"}
    assert passed >= {"boot", "guest32", "superpages", "sleep", "passthrough", "relocation"}, run.explain()
