"""Faults of the bench that look like those of a hypervisor: no case fails by them. Its own cases order them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from lab.base import paths

pytestmark = pytest.mark.slow  # a fault must outlive the attempt at a known-good boot
TWINS = "tests/boards/cases/testcases/twins"


def attempts(lab_up: CommandLine, folder: Path, case: str, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    file = (paths.CHECKOUT / request.config.getoption("--inventory")).resolve()
    lab_up.environment |= {"TWINS_INVENTORY": str(file), "XENLAB_PASS_ENV": "TWINS_INVENTORY"}
    run = lab_up.nightly(folder, TWINS, "-k", case, "--inventory", str(file))
    return [json.loads(line) for line in (run.folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("test_network_is_off", [("MISS", "transient"), ("PASS", "passed")]),
        ("test_serial_cable_is_off", [("MISS", "bench")]),
        ("test_bmc_lies", [("MISS", "bench")]),
        ("test_machine_is_busy", [("PASS", "passed")]),
        ("test_machine_is_swamped", [("MISS", "starved"), ("PASS", "passed")]),
    ],
)
def test_a_fault_of_the_bench_fails_no_case(
    lab_up: CommandLine, tmp_path: Path, request: pytest.FixtureRequest, case: str, wanted: list[tuple[str, str]]
) -> None:
    records = attempts(lab_up, tmp_path / "run", case, request)
    assert [(one["verdict"], one["rule"]) for one in records] == wanted, [one["reason"] for one in records]
