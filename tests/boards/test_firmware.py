"""A board with UEFI and one without a disk pass the cases, and boot as it is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_verdicts_on_boards import RECIPE as PANICS_AT_BOOT

from conftest import CommandLine, Finished
from lab import inventory
from lab.base import paths
from lab.netboot import ENTRY_IDS

pytestmark = pytest.mark.slow  # not part of CI

INVENTORY = paths.CHECKOUT / "inventory"


def verdicts(run: Finished) -> set[str]:
    return {record["verdict"] for record in run.results().values()}


def test_a_board_with_uefi_boots_both_entries_of_its_disk(xenlab: CommandLine, tmp_path: Path) -> None:
    run = xenlab.nightly(tmp_path / "run", "--inventory", str(INVENTORY / "uefi.yaml"), "testcases/boot")
    assert run.status == 0 and verdicts(run) == {"PASS"}, run.explain()
    records = (xenlab.state / "xenlab" / "lab" / "uefi" / "console" / "uefi1.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(record)["text"] for record in records.splitlines()]
    assert any("BdsDxe: starting" in line and "HARDDISK" in line for line in lines), "the firmware does not say UEFI's"
    assert sum("(XEN) EFI memory map" in line for line in lines) == 2, "Xen was started twice, by UEFI each time"


@pytest.fixture
def diskless(xenlab: CommandLine) -> Iterator[Path]:
    """The board without a disk, up; the log of what it was served."""
    file = INVENTORY / "diskless.yaml"
    done = xenlab("lab", "up", "--inventory", str(file), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    yield xenlab.state / "xenlab" / "lab" / inventory.load(file).name / "boards" / "pxe1" / "segment.log"
    done = xenlab("lab", "down", "--inventory", str(file), timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_board_without_a_disk_is_good_again_after_a_build_that_panics(
    diskless: Path, xenlab: CommandLine, tmp_path: Path
) -> None:
    recipe = tmp_path / "panics.yaml"
    recipe.write_text(PANICS_AT_BOOT, encoding="utf-8")
    words = ("--inventory", str(INVENTORY / "diskless.yaml"), "testcases/boot", "testcases/guest32")
    broken = xenlab.nightly(tmp_path / "broken", "--build", str(recipe), *words[:-1])
    assert broken.status == 1, broken.explain()
    failed = [record for record in broken.results().values() if record["verdict"] == "FAIL"]
    assert [record["rule"] for record in failed] == ["console-crash"] and "PASS" not in verdicts(broken), (
        broken.explain()
    )

    run = xenlab.nightly(tmp_path / "run", *words)
    assert run.status == 0 and verdicts(run) == {"PASS"}, run.explain()
    proofs = [e["body"] for r in run.results().values() for e in r["evidence"] if e["kind"] == "provision"]
    assert any("root=http://10.0.2.2/image/root.squashfs" in said for said in proofs), proofs

    served = diskless.read_text(encoding="utf-8")
    assert "DHCPACK(boards) 10.0.2.15 52:54:00:22:13:00 pxe1" in served
    boots = [line.split()[-1] for line in served.splitlines() if " pxe1 boots " in line]
    good, tested = ENTRY_IDS["known-good"], ENTRY_IDS["under-test"]
    assert boots[0] == good and boots[-1] == tested and boots.count(tested) == 2, boots
    assert all(earlier == good for earlier, later in zip(boots, boots[1:], strict=False) if later == tested), boots
