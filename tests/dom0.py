"""A host to log in to for tests: a real sshd on loopback, with the lab's key, a pinned host key, programs of its own.

Import ``dom0_fixture`` to have the fixture ``dom0``.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port

from lab.base import paths
from lab.base.processes import port_is_taken
from lab.base.wait import wait_until
from lab.grid.ssh import Ssh

CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv PATH={folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


class Sshd:
    """An sshd on a free port of loopback: ``host_key`` and ``authorized_keys`` are in its folder."""

    def __init__(self, folder: Path, port: int | None = None, setting: str = "") -> None:
        self.port = port or free_port()
        (folder / "sshd_config").write_text(CONFIG.format(folder=folder, port=self.port) + f"{setting}\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself in before a login
        self._log = open(folder / "sshd.log", "wb")
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid
        wait_until(lambda: port_is_taken(self.port), 10.0, "sshd listens", interval=0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10.0)
        self._log.close()


class Dom0:
    """A running sshd; programs in ``bin`` are found before the machine's own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user = folder, getpass.getuser()
        self.bin = folder / "bin"
        self.bin.mkdir()
        key = paths.ssh_key()
        key.parent.mkdir(parents=True, exist_ok=True)
        for file in (key, folder / "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
            subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
        shutil.copyfile(key.with_suffix(".pub"), folder / "authorized_keys")
        self._sshd = Sshd(folder)
        self.port = self._sshd.port
        kind, public, *_ = (folder / "host_key.pub").read_text().split()
        paths.config().mkdir(parents=True, exist_ok=True)
        (paths.config() / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")

    def program(self, name: str, script: str) -> None:
        """A shell script that is found under this name."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def ssh(self) -> Ssh:
        return Ssh("mini", "127.0.0.1", self.port, self.user)

    def stop(self) -> None:
        self._sshd.stop()


@pytest.fixture(name="dom0")
def dom0_fixture(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dom0]:
    if not shutil.which("/usr/sbin/sshd"):
        pytest.skip("needs openssh-server")
    folder = tmp_path_factory.mktemp("dom0")
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))
    dom0 = Dom0(folder)
    yield dom0
    dom0.stop()
