"""A BMC's password is looked for in everything that others see while a board is used: it is a canary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_lines import command_lines
from free_ports import free_port
from small_lab import SmallLab, lab_up_fixture, ports  # noqa: F401
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture  # noqa: F401

from lab.base.wait import wait_until


@pytest.mark.parametrize("protocol", ["ipmi", "redfish"])
def test_password_is_in_no_command_line_log_parameter_or_artefact(
    make_board: Callable[..., VirtualBoard],
    lab_up: Callable[[dict[str, Any]], SmallLab],
    tmp_path: Path,
    protocol: str,
) -> None:
    board = make_board(protocol)
    assert board.spec.virtual
    own = {"cipher": 3} if protocol == "ipmi" else {"tls": "off"}
    bmc = {"protocol": protocol, "host": "127.0.0.1", "port": board.spec.bmc.port, "credential": "test", **own}
    serial = {"serve_port": free_port(), "lines_port": free_port()}
    console = {"via": "sol", **serial} if protocol == "ipmi" else ports(board.spec.virtual.serial_port)
    with command_lines() as seen:
        lab = lab_up({"bmc": bmc, "console": console})
        records = lab.folder / "console" / "mini.jsonl"
        wait_until(lambda: records.exists() and '"open"' in records.read_text(), 30.0, "the console")
        said = [lab.xenlab("-vv", "board", "check", "mini", "--quick")]
        said += [lab.client(*words) for words in (["acquire"], ["power", "cycle"], ["show"], ["-d", "release"])]
        said += [lab.client("-v", "resources"), lab.client("-v", "places"), lab.xenlab("lab", "status")]
    if protocol == "ipmi":
        assert [line for line in seen if b"ipmitool\0" in line and b"activate" in line], "nothing was watched"
    assert not [line for line in seen if PASSWORD.encode() in line]
    assert "power" in said[0] and not [text for text in said if PASSWORD in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"exporter.yaml", "env.yaml", "mini.jsonl", "supervisor.log", "exporter.log"} <= {
        file.name for file in files
    }
    assert not [str(file) for file in files if PASSWORD.encode() in file.read_bytes()]
