"""A command at a lab's machine, by a real sshd on loopback: what it is told, what comes back, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import Dom0

from lab.base import paths
from lab.cli import elsewhere


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
    there.program("xenlab", 'printf "<%s>" "$XENLAB_LEASE" "${LG_PLACE-none}" "$@"; echo of it >&2; exit 3')
    lab = f"{there.user}@127.0.0.1:{there.port}"
    found = xenlab("--lab", lab, "known", "add", "it's; $HOME", "--note", "two words")
    assert found.stdout == "<7><none><known><add><it's; $HOME><--note><two words>"
    assert (found.stderr, found.returncode) == ("of it\n", 3)
    assert xenlab(f"--lab={lab}", "who").stdout == "<7><none><who>"


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
