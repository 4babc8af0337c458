"""Machines beside the lab machine, for tests: a real sshd on loopback each, and xenlab there with a state of its own.

Import ``hosts_fixture`` to have the fixture ``hosts``: ``hosts("h1", "h2")``.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dom0 import Sshd

from lab import inventory
from lab.base import paths
from lab.grid import services
from lab.inventory import HostSpec, Lab

XENLAB = f"exec {shlex.quote(sys.executable)} -P -m lab.cli"


class AHost:
    """An sshd whose logins find a xenlab."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder, self.user = name, folder, getpass.getuser()
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")]
        subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
        shutil.copyfile(paths.ssh_key().with_suffix(".pub"), folder / "authorized_keys")
        self.state = folder / "state"
        self.install(XENLAB)
        self.start()
        kind, public, *_ = (folder / "host_key.pub").read_text().split()
        self.key = f"[127.0.0.1]:{self.port} {kind} {public}\n"

    def install(self, script: str) -> None:
        """What is called xenlab there."""
        words = {"XDG_STATE_HOME": self.state, "XDG_RUNTIME_DIR": "", "PYTHONPATH": paths.CHECKOUT}
        words |= {"HOME": self.folder, "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX", "")}
        exported = "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in words.items())
        (self.bin / "xenlab").write_text(f'#!/bin/sh\n{exported}{script} "$@"\n')
        (self.bin / "xenlab").chmod(0o755)

    def start(self, setting: str = "") -> None:
        """``setting``: a line more for its configuration."""
        self._sshd = Sshd(self.folder, getattr(self, "port", None), setting)
        self.port = self._sshd.port

    def cut(self) -> None:
        """The network is gone: what runs there runs on."""
        left = _below(self._sshd.pid)
        self._sshd.stop()
        for pid in left:
            if _name(pid) == "sshd":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def end(self, lab: str) -> None:
        """Nothing of it is left."""
        with suppress(ProcessLookupError):
            self.cut()
        services.stop(self.supervised(lab))

    def supervised(self, lab: str) -> Path:
        """The folder of what runs there for a lab."""
        return self.state / "xenlab" / "at" / f"{lab}.{self.name}"

    @property
    def ssh(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    def spec(self, lab: str = "some") -> HostSpec:
        return HostSpec(self.name, lab, self.user, "127.0.0.1", self.port)


Hosts = Callable[..., list[AHost]]


@pytest.fixture(name="hosts")
def hosts_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    if not shutil.which("/usr/sbin/sshd"):
        pytest.skip("needs openssh-server")
    for variable in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable.lower()))
    monkeypatch.setenv("XENLAB_CREDENTIAL_SIMULATED", "admin:secret")
    key = paths.ssh_key()
    key.parent.mkdir(parents=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
    made: list[AHost] = []

    def make(*names: str) -> list[AHost]:
        found = [AHost(tmp_path / name, name) for name in names]
        made.extend(found)
        paths.config().mkdir(parents=True, exist_ok=True)
        (paths.config() / "known_hosts").write_text("".join(one.key for one in made))
        return found

    yield make
    for one in made:
        one.end("some")


def placed(lab: Lab, at: dict[str, AHost]) -> Lab:
    """The lab with boards at these hosts, written anew."""
    tree = json.loads(lab.path.read_text())
    tree["all"]["vars"]["xenlab"]["hosts"] = {one.name: {"ssh": one.ssh} for one in at.values()}
    for index, (board, host) in enumerate(at.items()):
        tree["all"]["hosts"][board] |= {"ansible_port": 22000 + index}
        tree["all"]["hosts"][board]["xenlab"]["at"] = host.name
    lab.path.write_text(json.dumps(tree, indent=1))
    return inventory.load(lab.path)


def _below(pid: int) -> list[int]:
    """All processes that this one has started, and those have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_below(child)]
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
