"""Boards known by nothing but IPMI, serial console and SSH pass the same cases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import CommandLine
from lab import inventory
from lab.base import paths

# Those that lean most on the bench: power, sleep states, consoles, a network between boards. Guests do not see how
# their board is declared: the night on the virtual lab runs their cases.
CASES = "build_under_test or s3 or s5 or nic_works or brings_the_guest"

# Any import of lab.virtual raises ImportError in the run and, by way of sitecustomize, in its workers.
BLOCK = "import sys\nsys.modules['lab.virtual'] = None\n"

# Machines that are cabled and have mains, as a racker leaves them; of this the run knows nothing.
RACK = """\
import sys
from pathlib import Path
from lab import inventory
from lab.base import paths
from lab.virtual import boards
action, folder = sys.argv[1], Path(sys.argv[2])
if action == "start":
    lab = inventory.load(Path(sys.argv[3]))
    boards.prepare(lab, folder, paths.state() / "lab" / "ssh")
    boards.start(lab, folder, owner=int(sys.argv[4]))
else:
    boards.stop(folder)
"""


@pytest.fixture
def steel(xenlab: CommandLine, tmp_path: Path) -> Iterator[Path]:
    """The virtual boards, cabled and ready, and an inventory that does not say what they are made of."""
    virtual = paths.CHECKOUT / "inventory" / "virtual.yaml"
    lines = [line for line in virtual.read_text(encoding="utf-8").splitlines() if "virtual:" not in line.split("#")[0]]
    declared = tmp_path / "steel.yaml"
    declared.write_text("\n".join(lines).replace("lab: virtual", "lab: steel"), encoding="utf-8")
    assert not inventory.load(declared).is_virtual
    folder = tmp_path / "boards"
    try:
        done = xenlab("start", str(folder), str(virtual), str(os.getpid()), code=("-c", RACK))
        assert done.returncode == 0, done.stdout + done.stderr
        yield declared
    finally:
        done = xenlab("stop", str(folder), code=("-c", RACK))
        assert done.returncode == 0, done.stdout + done.stderr


def test_steel_boards_pass_the_same_cases(
    steel: Path, xenlab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    monkeypatch.setitem(xenlab.environment, "PYTHONPATH", f"{blocked}:{paths.CHECKOUT}")
    run = xenlab.nightly(tmp_path / "run", "--inventory", str(steel), "--select", "quick", "-k", CASES)
    assert run.status == 0, run.explain()
    assert len(run.results()) >= 6, run.explain()
    passed = {record["area"] for record in run.results().values() if record["verdict"] == "PASS"}
    assert passed >= {"boot", "sleep", "passthrough", "relocation"}, run.explain()
