"""What is had of a board that writes a dump when it crashes: from a real dom0 over SSH, which is this machine."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dom0 import Dom0, dom0_fixture  # noqa: F401

from lab.grid import rescue
from lab.grid.ssh import Ssh

AGES = 10 * 365 * 86400.0


def board(dom0: Dom0, kdump: float) -> Any:
    ssh = Ssh("pair-a", "127.0.0.1", dom0.port, dom0.user)
    return SimpleNamespace(
        name="pair-a", spec=SimpleNamespace(kdump=kdump), run=ssh.run, is_reachable=ssh.is_reachable, close=ssh.close
    )


def test_a_dump_is_listed_with_the_end_of_its_kernel_log(dom0: Dom0, tmp_path: Path) -> None:
    for name in ("202611230101", "202611240212"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"dump.{name}").write_bytes(bytes(1000))
        (tmp_path / name / f"dmesg.{name}").write_text(f"sysrq: Trigger a crash\nlast words of {name}\n")
    there = board(dom0, 30.0)
    found = rescue.dump(there, since=time.time() - AGES, directory=str(tmp_path))  # it has been up for a shorter time
    there.close()
    assert "dump.202611240212" in found.body and found.body.endswith("last words of 202611240212")
    assert found.title.startswith("kdump, ") and found.board == "pair-a"


def test_a_board_without_a_new_dump_says_so(dom0: Dom0, tmp_path: Path) -> None:
    there = board(dom0, 30.0)
    found = rescue.dump(there, since=time.time() - AGES, directory=str(tmp_path))
    there.close()
    assert found.body == f"nothing new in {tmp_path}"


def test_a_board_that_does_not_come_back_is_not_waited_for_any_longer(dom0: Dom0, tmp_path: Path) -> None:
    """It answers, but has been up since before the crash: that is not the boot that follows a dump."""
    there, started = board(dom0, 3.0), time.monotonic()
    found = rescue.dump(there, since=time.time(), directory=str(tmp_path))
    there.close()
    assert "is back from its kdump kernel: not within 3.0 s" in found.body
    assert time.monotonic() - started < 15
