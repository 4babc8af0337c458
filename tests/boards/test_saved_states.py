"""A board that goes on from a saved state: a case passes on it, and the record says so; a damaged state is a boot."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from lab.base import paths

pytestmark = pytest.mark.slow  # a run for each test
CASE = "testcases/guest32/test_pv32.py"
NAME = "test_pv32_hypercalls"


@pytest.fixture(scope="module")
def lab_file(xenlab: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab whose first board has states; each run brings it up and down."""
    file = tmp_path_factory.mktemp("lab") / "lab.yaml"
    text = (paths.INVENTORY / "virtual.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("link_port: 22115}", "link_port: 22115, saved_states: true}"), encoding="utf-8")
    started = time.time()
    yield file
    for state in states(started):
        shutil.rmtree(state)


def states(since: float) -> list[Path]:
    return [one for one in (paths.cache() / "states").glob("virt1-*") if one.stat().st_mtime >= since]


def run(xenlab: CommandLine, lab_file: Path, folder: Path) -> dict[str, Any]:
    done = xenlab.nightly(folder, CASE, "-k", NAME, "--ports", "free", "--inventory", str(lab_file))
    record = done.results()[NAME]
    assert (record["verdict"], record["boards"]) == ("PASS", ["virt1"]), done.explain()
    return record


def test_a_case_passes_from_a_saved_state_and_a_damaged_state_is_a_boot(
    xenlab: CommandLine, lab_file: Path, tmp_path: Path
) -> None:
    started = time.time()
    first = run(xenlab, lab_file, tmp_path / "first")
    assert (first["restored"], [one["name"] for one in first["phases"]].count("save")) == ([], 1)
    [state] = states(started)

    second = run(xenlab, lab_file, tmp_path / "second")
    assert second["restored"] == ["virt1"]
    phases = [one["name"] for one in second["phases"]]
    assert "restore" in phases and "proof" in phases and "boot" not in phases
    titles = [one["title"] for one in second["evidence"]]
    assert "virt1: as wanted" in titles and "virt1: restored, and as it was when it was saved" in titles
    assert "virt1: goes on from a saved state: it was not booted for this case" in titles

    with open(state / "machine", "r+b") as machine:
        machine.seek(-(2**20), os.SEEK_END)
        machine.write(b"damaged")
    third = run(xenlab, lab_file, tmp_path / "third")
    assert third["restored"] == [] and "boot" in [one["name"] for one in third["phases"]]
    [said] = [one["body"] for one in third["evidence"] if one["title"].endswith("not sound; the board boots")]
    assert "machine is damaged" in said
    assert states(started) == [state]  # saved anew after its boot
