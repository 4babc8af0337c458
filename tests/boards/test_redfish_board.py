"""A board whose BMC speaks nothing but Redfish is booted, shut down and powered on again by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import CommandLine
from lab.base import credentials, paths

pytestmark = pytest.mark.slow  # not part of CI


def redfish_inventory(folder: Path, shipped: Path) -> Path:
    """The last virtual board of an inventory, alone, its BMC exchanged for one that speaks Redfish over TLS."""
    tree = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    tree["all"]["vars"]["xenlab"]["lab"] = "redfish"
    hosts = tree["all"]["children"]["boards"]["hosts"]
    name, host = list(hosts.items())[-1]
    board = host["xenlab"]
    port, serial = board["bmc"]["port"], board["virtual"]["serial_port"]
    board["bmc"] = {
        "protocol": "redfish",
        "host": "127.0.0.1",
        "port": port,
        "ca_file": "bmc.pem",
        "credential": "redfish-bmc",
    }
    board["console"] |= {"via": "tcp", "host": "127.0.0.1", "port": serial}
    board.pop("link", None)
    board["capabilities"] = [word for word in board["capabilities"] if word not in ("migration-pair", "s3")]
    tree["all"]["children"]["boards"]["hosts"] = {name: host}
    path = folder / "redfish.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_board_with_a_redfish_bmc_boots_and_comes_back_from_soft_off(xenlab: CommandLine, tmp_path: Path) -> None:
    inventory = redfish_inventory(tmp_path, paths.CHECKOUT / "inventory" / "virtual.yaml")
    run = xenlab.nightly(
        tmp_path / "run", "--inventory", str(inventory), "testcases/boot", "testcases/sleep/test_s5.py"
    )
    assert run.status == 0, run.explain()
    assert run.results()["test_s5_and_power_on"]["verdict"] == "PASS", run.explain()
    (facts,) = json.loads((run.folder / "run.json").read_text())["boards"].values()
    assert facts["bmc"] == "redfish"
    password = credentials.load(xenlab.state / "xenlab" / "lab" / "credentials.yaml")["redfish-bmc"].password.encode()
    files = [file for folder in (run.folder, xenlab.state) for file in folder.rglob("*") if file.is_file()]
    assert [file.name for file in files if password in file.read_bytes()] == ["credentials.yaml"]
