"""Broken things on real (virtual) boards get the right verdict."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from conftest import CommandLine, Finished
from lab.base import paths
from lab.base.wait import wait_until

BROKEN = "tests/boards/cases/testcases/broken"
SLEEPLESS = "tests/boards/cases/testcases/sleepless"
RESETTING = "tests/boards/cases/testcases/resetting"
LEAKING = "tests/boards/cases/testcases/leaking"
RECIPE = """\
description: panics at boot, since it insists on an IOMMU that it is told not to use
source:
  debian_source: {package: xen, version: 4.17.5+72-g01140da4e8-1, suite: bookworm}
fragments: [debug, pv32, shadow, perf-counters]
xen_options: iommu=off,required
"""


def test_broken_cases(lab_up: CommandLine, tmp_path: Path) -> None:
    run = lab_up.nightly(tmp_path / "run", BROKEN)
    results = run.results()
    assert run.status == 1, run.explain()

    silent = results["test_guest_that_never_comes_up"]
    assert (silent["verdict"], silent["rule"]) == ("FAIL", "product-timeout"), run.explain()
    assert any(e["title"].startswith("console of pvh64") for e in silent["evidence"]), silent["evidence"]

    died = results["test_dom0_dies"]
    assert (died["verdict"], died["rule"]) == ("FAIL", "console-crash"), run.explain()
    assert "linux-panic" in died["reason"]
    assert died["figures"]["crash_to_end_s"] < 5.0
    slices = "".join((run.folder / path).read_text(encoding="utf-8") for path in died["consoles"].values())
    assert "sysrq triggered crash" in slices

    mute = results["test_dom0_goes_silent"]
    assert (mute["verdict"], mute["rule"]) == ("FAIL", "host-lost-again"), run.explain()
    assert mute["attempt"] == 2  # once more, and no more
    assert "lost its network" in mute["reason"]
    said = {e["title"]: e["body"] for e in mute["evidence"]}
    assert "Domain-0" in said["dom0, over the console"], said
    assert "'q' pressed" in said["Xen's debug keys, over the console"], said

    assert results["test_dom0_dies_on_purpose"]["verdict"] == "PASS", run.explain()
    assert results["test_works_again_afterwards"]["verdict"] == "PASS", run.explain()


@pytest.mark.slow
def test_host_that_is_reset(lab_up: CommandLine, tmp_path: Path) -> None:
    run = lab_up.nightly(tmp_path / "run", RESETTING)
    assert run.status == 1, run.explain()
    reset = run.results()["test_host_is_reset"]
    assert (reset["verdict"], reset["rule"], reset["attempt"]) == ("FAIL", "host-lost-again", 2), run.explain()
    assert "was reset" in reset["reason"]


@pytest.mark.slow
def test_sleeps_that_fail(lab_up: CommandLine, tmp_path: Path) -> None:
    """Three ways to fail, told apart; and the board is there again after each."""
    run = lab_up.nightly(tmp_path / "run", SLEEPLESS)
    results = run.results()
    assert run.status == 1, run.explain()
    for name, why in (
        ("test_never_slept", "never slept"),
        ("test_rebooted_instead", "rebooted instead of waking"),
        ("test_never_woke", "never woke"),
    ):
        assert (results[name]["verdict"], results[name]["rule"]) == ("FAIL", "assertion"), run.explain()
        assert why in results[name]["reason"], run.explain()
    assert results["test_sleeps_again_afterwards"]["verdict"] == "PASS", run.explain()


def test_hypervisor_that_panics_at_boot(lab_up: CommandLine, tmp_path: Path) -> None:
    """FAIL with the console as evidence; the next build runs on the same boards, unaided."""
    recipe = tmp_path / "panics.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    run = lab_up.nightly(tmp_path / "run", "--build", str(recipe), "--build", "pv32-debug", "testcases/boot")
    assert run.status == 1, run.explain()
    records = [json.loads(line) for line in (run.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    broken = [record for record in records if record["build"] == "panics"]
    assert {record["verdict"] for record in broken} <= {"FAIL", "MISS"}, run.explain()
    failed = next(record for record in broken if record["verdict"] == "FAIL")
    assert failed["rule"] == "console-crash", run.explain()
    assert "xen-panic" in failed["reason"]
    assert any("Couldn't enable IOMMU" in e["body"] for e in failed["evidence"]), failed["evidence"]
    following = {record["verdict"] for record in records if record["build"] == "pv32-debug"}
    assert following == {"PASS"}, run.explain()


def notes(run: Finished) -> str:
    """What a run that had no board says of it; nothing of it is a result."""
    assert run.status == 3, run.output
    assert not (run.folder / "results.jsonl").exists() or not run.results(), run.explain()
    return "\n".join(json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["notes"])


def test_board_that_is_somebody_elses_is_never_green(
    lab_up: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = (lab_up.state / "xenlab" / "lab" / "virtual" / "env.sh").read_text(encoding="utf-8")
    assert "LG_COORDINATOR" in environment

    def client(*words: str) -> int:
        code = ("-m", "labgrid.remote.client")
        monkeypatch.setitem(lab_up.environment, "LG_COORDINATOR", "127.0.0.1:20408")
        monkeypatch.setitem(lab_up.environment, "LG_USERNAME", "somebody")
        return lab_up(*words, code=code, timeout=60).returncode

    def is_acquired(name: str) -> bool:
        return client("-p", name, "acquire") == 0

    for name in ("virt1", "virt2"):
        wait_until(partial(is_acquired, name), 60.0, f"{name}: free, after the run that had it")
    try:
        run = lab_up.nightly(tmp_path / "run", "testcases/boot")
    finally:
        for name in ("virt1", "virt2"):
            client("-p", name, "release")
    said = notes(run)
    assert "virt1, virt2: not acquired: held through labgrid-client" in said, said  # a pair is asked for whole
    assert re.search(r"no board could be acquired for the [1-9]\d* cases that are left", said), said


def test_no_lab_is_never_green(xenlab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards declared as steel that are not there: nothing answers, exit status 3."""
    text = (paths.CHECKOUT / "inventory" / "virtual.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.strip().startswith("virtual:")]
    inventory = tmp_path / "nobody.yaml"
    moved = re.sub(r"\b22(1\d\d)\b", r"32\1", "\n".join(lines))  # the ports
    moved = moved.replace("20408", "30408").replace("lab: virtual", "lab: nobody")
    inventory.write_text(moved, encoding="utf-8")
    monkeypatch.setitem(xenlab.environment, "XENLAB_CREDENTIAL_VIRTUAL_BMC", "admin:secret")
    run = xenlab.nightly(tmp_path / "run", "--inventory", str(inventory), "testcases/boot")
    said = notes(run)
    for name in ("virt1", "virt2"):
        assert re.search(rf"^{name} is quarantined: power: {name}: BMC .*: no answer", said, re.MULTILINE), said
    assert re.search(r"no board could be acquired for the [1-9]\d* cases that are left", said), said


@pytest.mark.slow
def test_what_cases_leave_is_found_and_what_is_transient_is_tried_again(lab_up: CommandLine, tmp_path: Path) -> None:
    run = lab_up.nightly(tmp_path / "run", LEAKING)
    results = run.results()

    def left(name: str) -> str:
        return "\n".join(one["body"] for one in results[name]["evidence"] if "left behind" in one["title"])

    assert results["test_nothing_left"]["verdict"] == "PASS", run.explain()
    assert results["test_nothing_left"]["figures"]["look_s"] > 0
    assert left("test_nothing_left") == ""
    for name, words in (
        ("test_guest_left", "guest: pv64-"),
        ("test_processes_left", "process: /tmp/xl 1000"),
        ("test_entry_that_comes_back", "xenstore: /vm/left"),
    ):
        assert results[name]["verdict"] == "PASS", run.explain()
        assert words in left(name)
    dead = results["test_guest_that_cannot_die"]
    assert (dead["verdict"], dead["rule"]) == ("FAIL", "leak"), run.explain()
    assert "dead domain" in dead["reason"]
    assert results["test_clean_again_afterwards"]["verdict"] == "PASS", run.explain()
    assert left("test_clean_again_afterwards") == ""
    assert results["test_nmi_says_where_xen_is"]["verdict"] == "PASS", run.explain()
    lines = (run.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    tried = [one for one in map(json.loads, lines) if one["case"].endswith("test_answers_at_the_second_attempt")]
    assert [(one["verdict"], one["rule"]) for one in tried] == [("MISS", "transient"), ("PASS", "passed")], (
        run.explain()
    )
    assert [line for line in run.output.splitlines() if line.startswith("flaky ") and "second_attempt" in line]
    assert run.status == 1, run.explain()
