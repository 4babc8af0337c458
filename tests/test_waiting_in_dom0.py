"""Waiting that the board itself does: by its uptime, so that a slow board does not stretch the limit."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dom0 import Dom0, dom0_fixture  # noqa: F401

from lab.base.errors import ProductTimeout, WaitTimeout
from lab.grid.ssh import LATE, Job, until
from lab.xen.dom0 import Toolstack
from lab.xen.migration import Migration


def sh(command: str, **_: object) -> Any:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    return SimpleNamespace(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def test_what_is_true_already_is_not_waited_for() -> None:
    assert sh(until("echo there", 0.0) + "; echo after").stdout == "there\nafter\n"


def test_what_becomes_true_is_seen(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-c", f"sleep 0.5; touch {tmp_path}/there"]):
        assert sh(until(f"[ -e {tmp_path}/there ]", 10.0)).status == 0


def test_a_slow_condition_does_not_stretch_the_limit() -> None:
    """Fifty looks of the old kind at a condition that takes a second would have been a minute."""
    started = time.monotonic()
    assert sh(until("{ sleep 1; false; }", 2.0, interval=0.05)).status == LATE
    assert 2.0 <= time.monotonic() - started < 6.0


def test_a_job_is_waited_for_by_its_board(dom0: Dom0) -> None:
    ssh = dom0.ssh()
    assert Job.start(ssh, "sleep 0.3; exit 7").wait(10.0) == 7
    slow = Job.start(ssh, "echo half way; sleep 60")
    with pytest.raises(WaitTimeout, match="half way"):
        slow.wait(0.5)
    slow.kill()
    slow.clean()


def test_a_toolstack_that_does_not_end_has_failed_where_dom0_is_well(dom0: Dom0) -> None:
    """dom0 itself ends the command, and tells what it had printed."""
    toolstack = Toolstack("mini", dom0.ssh().run)
    with pytest.raises(ProductTimeout, match="mini: `echo parsing; sleep 60`: not within 1.0 s; last seen: parsing"):
        toolstack.toolstack("echo parsing; sleep 60", timeout=1.0)
    with pytest.raises(WaitTimeout):
        toolstack.run("sleep 60", timeout=1.0)


@pytest.mark.parametrize(("limit", "error"), [(1, ProductTimeout), (30, WaitTimeout)])
def test_a_command_that_dom0_cannot_end_is_told_from_a_way_that_swallows_it(limit: int, error: type[Exception]) -> None:
    def run(command: str, **_: object) -> Any:
        if "xl" in command:
            raise WaitTimeout("virt1: `xl list`", 60.0)
        return sh(command)

    args = f"timeout -k 0 {limit} sh -c xl"
    with subprocess.Popen(["bash", "-c", f"exec -a {args!r} sleep 60"]) as process:
        time.sleep(3.5)
        with pytest.raises(error) as raised:
            Toolstack("virt1", run).xl("list")
        process.kill()
    assert type(raised.value) is error


def migration(folder: Path) -> Migration:
    found = object.__new__(Migration)
    found.source, found.domain = SimpleNamespace(run=sh), SimpleNamespace(name="g")  # type: ignore[assignment]
    found._folder, found._job = str(folder), SimpleNamespace(output=lambda: "xl said this")  # type: ignore[assignment]
    return found


ACTION = {"t": 1.0, "action": "hold", "asked": "hold@TSC_INFO=60"}


@pytest.mark.parametrize("kind", ["", "hold", "hold@TSC_INFO"])
def test_an_action_that_was_taken_is_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "log").write_text(json.dumps(ACTION) + "\n" + json.dumps({"t": 2.0, "event": "end"}) + "\n")
    migration(tmp_path).wait_acted(5.0, kind=kind)


@pytest.mark.parametrize(("text", "kind"), [("", "hold"), (json.dumps(ACTION) + "\n", "cut")])
def test_an_action_that_never_came_is_an_error_when_the_migration_ends(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "log").write_text(text + json.dumps({"t": 2.0, "event": "end"}) + "\n")
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match="xl said this"):
        migration(tmp_path).wait_acted(20.0, kind=kind)
    assert time.monotonic() - started < 10.0
