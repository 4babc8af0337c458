"""A disk that fills up, for real: what is finished stays, and the exit status says that the bench failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_disk

from lab import inventory
from lab.base import paths
from lab.night import nightly
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.results.record import Evidence, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    with small_disk.mounted(tmp_path / "small", "size=200k") as folder:
        yield folder


def fill(folder: RunFolder, cases: tuple[str, ...]) -> None:
    evidence = (Evidence("note", "long", "x" * 3000, time.time()),)
    for case in cases:
        folder.append(TestResult(case, "boot", Verdict.PASS, "passed", "", time.time(), 1.0, evidence=evidence))


def test_what_is_finished_stays(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    planned = tuple(f"testcases/boot/test_x.py::test_{number}" for number in range(100))
    header = RunHeader("full", time.time(), "quick", ("b",), {"virt1": {}}, planned, ("boot",))
    folder = RunFolder.create(small / "run", header)
    with pytest.raises(OSError, match="No space left"):
        fill(folder, planned)
    written = len(list(folder.results()))
    assert 40 < written < 100
    night = nightly.Night(NightlyOptions(), inventory.load(VIRTUAL_LAB), folder, [])
    assert night._finish(None) == 3
    assert len(list(folder.results())) == written
    said = capsys.readouterr().out
    assert "report.html is not written: No space left on device" in said
    assert f"{written} PASS" in said
