"""Deliberately broken builds: FAIL with the right lines, and the next build runs on the same board, unaided.

The tree is Debian's with ``data/breakable.patch``: it breaks where its command line says. Each takes some minutes, so
they run only with ``--broken-builds``; tests/boards/test_verdicts_on_boards.py has one of the kind for every day.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import CommandLine
from lab import builds

PATCH = Path(__file__).with_name("data") / "breakable.patch"
TREE = f"""\
source:
  debian_source: {{package: xen, version: 4.17.5+72-g01140da4e8-1}}
fragments: [debug, pv32, shadow, perf-counters]
patches: [{PATCH}]
"""
OTHER_VERSION = """\
description: starts, and dom0 has no toolstack of its version
source:
  debian_binary: {package: xen-hypervisor-4.20-amd64, suite: trixie}
"""

pytestmark = pytest.mark.broken_builds


@pytest.fixture
def inventory(request: pytest.FixtureRequest) -> list[str]:
    """``--inventory`` of this pytest run, as words for ``xenlab``."""
    file = request.config.getoption("--inventory")
    return ["--inventory", str(Path(file).resolve())]


def _run(xenlab: CommandLine, tmp_path: Path, inventory: list[str], name: str, recipe: str) -> list[dict[str, str]]:
    """The broken build and a good one after it; the broken one's records, when the good one passed."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(recipe, encoding="utf-8")
    builds.make(str(file))
    words = ["--build", str(file), "--build", "pv32-debug", "testcases/boot", *inventory]
    run = xenlab.nightly(tmp_path / "run", *words)
    records = [json.loads(line) for line in (run.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert run.status == 1, run.explain()
    after = {record["verdict"] for record in records if record["build"] == "pv32-debug"}
    assert after == {"PASS"}, run.explain()
    broken = [record for record in records if record["build"] == str(file)]
    assert {record["verdict"] for record in broken} <= {"FAIL", "MISS"}, run.explain()
    return broken


@pytest.mark.parametrize(
    ("where", "rule", "said"),
    [
        ("bug", "console-crash", "Xen BUG at setup.c"),  # before most of start_xen
        ("hang", "product-timeout", "Command line:"),  # the last words of a start_xen that hangs
        ("dom0", "console-crash", "Could not construct domain 0"),  # its kernel is cut to 16 bytes
        ("mute", "product", "the build reset the board before dom0 was up"),  # panics before the console is there
    ],
)
def test_broken_tree(
    xenlab: CommandLine, tmp_path: Path, inventory: list[str], where: str, rule: str, said: str
) -> None:
    recipe = f"description: breaks ({where})\n{TREE}xen_options: xenlab_break={where}\n"
    failed = [one for one in _run(xenlab, tmp_path, inventory, where, recipe) if one["verdict"] == "FAIL"]
    assert failed
    for record in failed:
        assert record["rule"] == rule
        assert said in json.dumps([record["reason"], record["evidence"]])


def test_build_without_a_matching_toolstack(xenlab: CommandLine, tmp_path: Path, inventory: list[str]) -> None:
    failed = [one for one in _run(xenlab, tmp_path, inventory, "toolless", OTHER_VERSION) if one["verdict"] == "FAIL"]
    assert failed
    for record in failed:
        assert record["rule"] == "product"
        assert "Can't find version 4.20 of xen utils" in record["reason"]
        assert "xl info" in record["reason"]
