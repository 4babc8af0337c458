"""A disk that fills up, for real: what is finished stays, and the exit status says that the bench failed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_disk
from test_builds import _make, fragments, tree  # noqa: F401

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError
from lab.builds import elf
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


def test_a_cache_that_is_full_fails_no_build_and_leaves_none_half_made(
    tree: Path,  # noqa: F811
    fragments: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Whatever step the disk is full at: that is the bench's fault, and the build is made when there is room again."""
    steps = set()
    with small_disk.mounted(tmp_path / "cache", "size=16k") as cache:
        for kib in range(16, 600, 16):
            _resize(cache, f"{kib}k")
            try:
                made = _make(tree, fragments)
                break
            except (BenchError, OSError) as error:
                assert "no space left" in str(error).lower()  # noqa: PT017
                steps.add(next((word for word in ("clone", "check out", "compiling") if word in str(error)), ""))
            assert not [one for one in cache.glob("xenlab/builds/*") if one.is_dir()]
        assert elf.build_id(made.xen) == made.build_id
    assert len(steps) > 2, "the disk was full at several steps"


def _resize(folder: Path, size: str) -> None:
    words = ["mount", "-o", f"remount,size={size}", str(folder)]
    subprocess.run(words, check=True, capture_output=True, timeout=20)
