"""Saved states of a virtual board: a real daemon with a real QEMU that runs its firmware, and what the key is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from virtual_board import VirtualBoard, make_board_fixture  # noqa: F401

from lab.base.wait import wait_until
from lab.virtual import states


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xenlab" / "states"


def powered(make_board: Callable[..., VirtualBoard]) -> VirtualBoard:
    board = make_board("redfish", tls="off")
    assert board.ask("set power 1") == "ok"
    return board


def test_a_board_goes_on_from_a_saved_state(make_board: Callable[..., VirtualBoard], cache: Path) -> None:
    board = powered(make_board)
    assert (board.ask("state has k1"), board.ask("state current")) == ("no", "none")
    assert board.ask("state save k1") == "ok", (board.folder / "daemon.log").read_text()
    assert board.ask("state current") == "none"  # it goes on from no state: it only was saved
    (board.folder / "disk.qcow2").write_bytes(b"what a case has written")
    assert board.ask("state restore k1") == "ok", (board.folder / "daemon.log").read_text()
    assert (board.ask("get power"), board.ask("state current")) == ("1", "k1")
    assert (board.folder / "disk.qcow2").read_bytes()[:3] == b"QFI"
    board.ask("set reset 1")
    wait_until(lambda: board.ask("state current") == "none", 10.0, "a reset board goes on from no state")
