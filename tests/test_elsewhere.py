"""A command at a lab's machine, by a real sshd on loopback: what it is told, what comes back, and what goes wrong."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from consoles import Wire
from dom0 import Dom0
from ipmi_sim import Chassis, Simulator

from lab.base import paths
from lab.base.wait import wait_until
from lab.cli import elsewhere
from lab.grid import services
from lab.inventory import Lab
from lab.virtual import simulated


@pytest.fixture(name="there")
def there_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dom0]:
    for variable in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable.lower()))
    folder = tmp_path / "machine"
    folder.mkdir()
    machine = Dom0(folder)
    known = paths.config() / "known_hosts"
    options = f"BatchMode yes\nIdentityFile {paths.ssh_key()}\nIdentitiesOnly yes\nUserKnownHostsFile {known}\n"
    (tmp_path / "ssh_config").write_text(f"{options}GlobalKnownHostsFile /dev/null\nLogLevel ERROR\n")
    monkeypatch.setenv(elsewhere.SSH, f"ssh -F {tmp_path}/ssh_config")
    yield machine
    machine.stop()


def xenlab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "lab.cli", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=paths.CHECKOUT
    )


def test_a_command_runs_at_the_labs_machine(there: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENLAB_LEASE", "7")
    there.program(
        "xenlab", 'printf "<%s>" "$XENLAB_LEASE" "$XENLAB_REACHED_AS" "${LG_PLACE-none}" "$@"; echo of it >&2; exit 3'
    )
    lab = f"{there.user}@127.0.0.1:{there.port}"
    found = xenlab("--lab", lab, "known", "add", "it's; $HOME", "--note", "two words")
    assert found.stdout == f"<7><{there.user}@127.0.0.1><none><known><add><it's; $HOME><--note><two words>"
    assert (found.stderr, found.returncode) == ("of it\n", 3)
    assert xenlab(f"--lab={lab}", "who").stdout == f"<7><{there.user}@127.0.0.1><none><who>"


def test_a_machine_without_xenlab_or_that_is_not_reached_is_said(there: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = f"{there.user}@127.0.0.1:{there.port}"
    monkeypatch.setenv(elsewhere.PROGRAM, "~/nowhere/xenlab")
    found = xenlab("--lab", lab, "who")
    assert found.returncode == 2
    assert found.stderr.endswith(
        f"xenlab: {lab}: there is no `~/nowhere/xenlab` there; XENLAB_THERE says where it is\n"
    )
    there.stop()
    found = xenlab("--lab", lab, "who")
    assert found.returncode == 3
    assert "Connection refused" in found.stderr and "not reached over SSH" in found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lab", "-oProxyCommand=x", "who"], "must be HOST, USER@HOST or USER@HOST:PORT"),
        (["--lab"], "must be HOST"),
        (["--lab", "alice@lab"], "a command must follow, such as `xenlab --lab alice@lab who`"),
        (["-v", "--lab", "alice@lab", "who"], "--lab must be the first word"),
    ],
)
def test_a_wrong_use_is_said(words: list[str], said: str) -> None:
    found = xenlab(*words)
    assert found.returncode == 2 and said in found.stderr
    assert "Traceback" not in found.stderr


# -- labgrid's own client, by LG_PROXY ------------------------------------------------------------------------------

SHARING_MD = (paths.CHECKOUT / "docs" / "sharing.md").read_text(encoding="utf-8")


class Somebody:
    """A person's machine: their ssh knows the lab's, and xenlab and labgrid-client are on the path."""

    def __init__(self, folder: Path, there: Dom0, lab: Lab) -> None:
        self.home, self._login = folder / "alice", f"{there.user}@lab.example"
        programs = self.home / "bin"
        programs.mkdir(parents=True)
        config = self.home / "ssh_config"
        address = f"Host lab.example\nHostName 127.0.0.1\nPort {there.port}\nHost *\n"
        config.write_text(address + (folder / "ssh_config").read_text())
        for name, script in {
            "ssh": f'exec /usr/bin/ssh -F {config} "$@"',  # as if it were ~/.ssh/config, which ssh looks for elsewhere
            "xenlab": f'PYTHONPATH={paths.CHECKOUT} exec {sys.executable} -P -m lab.cli "$@"',
            "labgrid-client": f'exec {Path(sys.executable).with_name("labgrid-client")} "$@"',
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        folders = f"XDG_STATE_HOME={paths.state().parent} XDG_CONFIG_HOME={paths.config().parent}"
        command = f'PYTHONPATH={paths.CHECKOUT} exec {sys.executable} -P -m lab.cli "$@" --inventory {lab.path}'
        there.program("xenlab", f"{folders} {command}")
        nowhere = {"LG_COORDINATOR": "127.0.0.1:9"}  # or a mistake here would be another lab's matter
        self._environment = nowhere | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.home)}

    def read(self, text: str) -> str:
        """The manual's text for this lab and this machine."""
        places = {"alice@lab.example": self._login, "/home/alice/xenlab": str(paths.CHECKOUT)}
        for name, own in (places | {"virt1": "sim1", "virt2": "sim2"}).items():
            assert name in SHARING_MD
            text = text.replace(name, own)
        return text

    def start(self, script: str, screen: int) -> subprocess.Popen[bytes]:
        command = ["bash", "-e", "-c", script]
        streams = {"stdin": screen, "stdout": screen, "stderr": screen}
        return subprocess.Popen(command, env=self._environment, cwd=self.home, start_new_session=True, **streams)


def _block(kind: str, beginning: str) -> str:
    """The block of the manual that begins so."""
    found = [
        text for text in re.findall(rf"```{kind}\n(.*?)```", SHARING_MD, re.S) if beginning in text.splitlines()[0]
    ]
    assert len(found) == 1
    return textwrap.dedent(str(found[0]))


@pytest.fixture(name="lab")
def lab_fixture(there: Dom0, tmp_path: Path) -> Iterator[tuple[Lab, Chassis]]:
    """Two boards at the lab's machine, the first of them with a BMC that answers."""
    if not shutil.which("ipmi_sim"):
        pytest.skip("needs openipmi")
    logins = paths.config() / "credentials.yaml"
    logins.touch(0o600)
    logins.write_text(f"simulated: {{user: {Simulator.user}, password: {Simulator.password}}}\n")
    chassis = Chassis(tmp_path)
    bmc = Simulator(tmp_path, chassis, None)
    bmc.start()
    lab = simulated.lab(tmp_path / "some.yaml", 2, bmcs={"sim1": bmc.spec.port})
    services.start(lab, services.directory(lab), detach=False)
    try:
        yield lab, chassis
    finally:
        services.stop(services.directory(lab))
        bmc.stop()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_labgrids_client_elsewhere_does_what_the_manual_says(
    lab: tuple[Lab, Chassis], there: Dom0, tmp_path: Path
) -> None:
    """Each line of docs/sharing.md as it is typed there; the console is a board's, and its power is switched."""
    (spec, chassis), wire = lab, Wire(lab[0].boards["sim1"].console.port)
    somebody = Somebody(tmp_path, there, spec)
    (somebody.home / "sim1.yaml").write_text(somebody.read(_block("yaml", "targets: {virt1")))
    ours, theirs = os.openpty()
    process = somebody.start(somebody.read("set -x\n" + _block("sh", "eval ")), theirs)
    os.close(theirs)
    said = ""

    def read() -> str:
        nonlocal said
        with suppress(OSError):  # EIO: nobody has the other end any more
            while select.select([ours], [], [], 0.0)[0]:
                said += os.read(ours, 4096).decode()
        return said

    try:
        wait_until(lambda: "Escape character" in read(), 60, "the console", interval=0.1)
        wire.say(b"hello from sim1\r\n")
        wait_until(lambda: "hello from sim1" in read(), 20, "what the board says", interval=0.1)
        os.write(ours, b"typed")
        wait_until(lambda: b"typed" in wire.received, 20, "what is typed", interval=0.1)
        os.write(ours, b"\x1c")
        wait_until(lambda: "Enter command" in read(), 20, "its prompt", interval=0.1)
        os.write(ours, b"quit\n")
        wait_until(lambda: read() and process.poll() is not None, 60, "the rest", interval=0.1)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        wire.close()
    lines = said.replace("\r", "").splitlines()
    assert process.returncode == 0, said
    assert any(line.startswith("lease 1: sim1 until ") for line in lines)
    assert {"sim1", "sim2"} <= {line.split()[0] for line in lines if line.endswith("simulated of some.yaml")}
    assert "Place 'sim1':" in lines and f"  acquired: {socket.gethostname()}/{there.user}" in lines
    assert lines.index("acquired place sim2") < lines.index("released place sim2")
    assert chassis.get("power") == 1
    assert "lease 1: sim1: given back" in lines
