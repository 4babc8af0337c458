"""A virtual board without a disk for tests: the real daemon, a real BMC in front of a real QEMU that runs its firmware.

Import ``make_board_fixture`` to have the fixture ``make_board``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from lab import bmc
from lab.base import processes
from lab.base.paths import CHECKOUT
from lab.base.wait import wait_until
from lab.bmc import Bmc
from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec, NicSpec, VirtualSpec
from lab.virtual import chassis, tls
from lab.virtual.spec import DaemonConfig, write_config

PASSWORD = "canary-Q7w3kP9z"


class VirtualBoard:
    """A running board daemon, its power off."""

    def __init__(self, folder: Path, protocol: str, **options: Any) -> None:
        self.folder = folder
        kind = socket.SOCK_DGRAM if protocol == "ipmi" else socket.SOCK_STREAM
        own = {"cipher": 3} if protocol == "ipmi" else {"tls": "off"}
        spec = BmcSpec("127.0.0.1", "test", protocol, port=free_port(kind), **own)  # type: ignore[arg-type]
        self.spec = BoardSpec(
            name="mini",
            ssh_host="127.0.0.1",
            ssh_port=free_port(),
            bmc=replace(spec, **options),
            console=ConsoleSpec("sol", free_port(), free_port()),
            nics={"management": NicSpec("management", "52:54:00:00:01:00")},
            virtual=VirtualSpec(memory_mib=64, serial_port=free_port(), accelerator="tcg"),
        )
        if protocol == "redfish":
            tls.make(folder, "mini")
        for name in ("disk.qcow2", "seed.tar"):
            command = ["qemu-img", "create", "-q", "-f", "qcow2" if name.endswith("2") else "raw", str(folder / name)]
            subprocess.run([*command, "1M"], check=True, timeout=60)
        kcs = free_port() if protocol == "ipmi" else 0
        write_config(folder / "daemon.json", DaemonConfig(self.spec, kcs_port=kcs, link_peer_port=0))
        owner = processes.mark(os.getpid())
        with open(folder / "daemon.log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "lab.virtual.daemon",
                    str(folder / "daemon.json"),
                    owner,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            )
        process = self.process
        wait_until(lambda: (folder / "ready").exists() or process.poll() is not None, 30.0, "ready", interval=0.05)
        assert process.poll() is None, (folder / "daemon.log").read_text()

    def ask(self, request: str) -> str:
        """The daemon itself, past its BMC."""
        return chassis.ask(self.folder / "control.sock", request)

    def uart(self) -> socket.socket:
        """The machine's end of the serial line, in place of the machine's."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(self.folder / "uart.sock"))
        return line

    def bmc(self) -> Bmc:
        """As the lab connects to it."""
        return bmc.connect("mini", self.spec.bmc)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20.0)


def need_programs() -> None:
    if not all(shutil.which(name) for name in ("qemu-system-x86_64", "qemu-img", "ipmi_sim")):
        pytest.skip("needs qemu-system-x86, qemu-utils and openipmi")


@pytest.fixture(name="make_board")
def make_board_fixture(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VirtualBoard]]:
    """``make_board("redfish", tls="verified", ...)``: keys of the BMC as in an inventory."""
    need_programs()
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", f"admin:{PASSWORD}")
    started: list[VirtualBoard] = []

    def make(protocol: str, **options: Any) -> VirtualBoard:
        started.append(VirtualBoard(tmp_path_factory.mktemp("board"), protocol, **options))
        return started[-1]

    yield make
    for board in started:
        board.stop()
