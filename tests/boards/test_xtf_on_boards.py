"""XTF's results on real (virtual) boards get the right verdicts, and a whole category needs no reboot."""

from __future__ import annotations

from pathlib import Path

import pytest
import xtf_tree

from conftest import CommandLine
from lab.base import paths
from lab.xen.payloads import build_payloads

pytestmark = pytest.mark.slow  # not part of CI

VERDICTS = {
    "functional-pv64-good~one": ("PASS", "passed"),
    "functional-pv64-good~two": ("PASS", "passed"),
    "functional-pv32pae-good~one": ("PASS", "passed"),
    "functional-pv32pae-good~two": ("PASS", "passed"),
    "functional-hvm64-firmware": ("PASS", "passed"),
    "functional-hvm32-firmware": ("PASS", "passed"),
    "functional-pv64-skipping": ("SKIP", "skipped"),
    "xsa-pv64-erring": ("ERROR", "exception"),
    "xsa-pv32pae-failing": ("FAIL", "assertion"),
    "xsa-pv64-crashing": ("FAIL", "assertion"),
}


def test_results_become_verdicts(lab_up: CommandLine, tmp_path: Path) -> None:
    tree = xtf_tree.make(tmp_path / "xtf", build_payloads(paths.cache() / "payloads", {}))
    run = lab_up.nightly(tmp_path / "run", "--xtf", str(tree), "--select", "full", "testcases/xtf")
    assert run.status == 1, run.explain()
    results = run.results()
    found = {name.partition("[")[2].rstrip("]"): (r["verdict"], r["rule"]) for name, r in results.items()}
    assert found == VERDICTS, run.explain()
    crashed = results["test_xtf[xsa-pv64-crashing]"]
    assert "CRASH" in crashed["reason"]
    assert any("XL trap FAIL" in e["body"] for e in crashed["evidence"]), crashed["evidence"]
    seen: set[str] = set()  # boards, whose first case brings them up
    for record in sorted(results.values(), key=lambda record: record["started"]):
        board = record["boards"][0]
        boots = [phase for phase in record["phases"] if phase["name"] == "boot"]
        assert board not in seen or not boots, f"{board} was booted again for {record['case']}"
        seen.add(board)
