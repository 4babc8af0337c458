"""What goes wrong while builds are put onto a board: it is said, the board's state is known, the next run succeeds."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conftest import CommandLine
from lab import builds, inventory, provision
from lab.base import paths
from lab.base.errors import BenchError
from lab.base.wait import wait_until
from lab.grid import services, session, ssh
from lab.grid.board import Board
from lab.inventory import Lab

pytestmark = pytest.mark.slow  # not part of CI

BIG_MIB = 48  # some seconds of copying under emulation
SECOND_RUN = """\
import sys
from pathlib import Path
from lab import inventory
from lab.base.errors import BenchError
from lab.grid import services, session
lab = inventory.load(Path(sys.argv[1]))
try:
    session.acquire(lab, [sys.argv[2]], services.directory(lab), timeout=3.0)
except BenchError as error:
    sys.exit(str(error))
"""
DEPLOY = """\
import sys
from pathlib import Path
from lab import builds, inventory, provision
from lab.grid import ssh
lab = inventory.load(Path(sys.argv[1]))
wanted = provision.Wanted(builds.make("debian"), payloads={"big": Path(sys.argv[3])})
provision.deploy(lab, [lab.boards[sys.argv[2]]], wanted, Path(sys.argv[4]), ssh_words=ssh.options())
"""


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Lab:
    return inventory.load(Path(request.config.getoption("--inventory")))


@pytest.fixture(scope="module")
def board(lab_up: CommandLine, lab: Lab) -> Iterator[Board]:
    """A board that runs its known-good build; nothing here reboots it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(lab_up.state))
        name = min(lab.boards)
        with session.acquire(lab, [name], services.directory(lab)) as held:
            board = held.board(name)
            board.strategy.reboot(entry="known-good")
            yield board


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("payload") / "big"
    file.write_bytes(os.urandom(BIG_MIB << 20))
    return file


def deploy(lab: Lab, board: Board, folder: Path, payloads: Mapping[str, Path] | None = None) -> tuple[str, ...]:
    wanted = provision.Wanted(builds.make("debian"), payloads=payloads or {})
    changed = provision.deploy(lab, [board.spec], wanted, folder, ssh_words=ssh.options())[board.name]
    digest = board.run("cat /var/lib/xenlab/deployed").stdout.strip()
    assert digest == wanted.digest(board.spec)
    return changed


def is_undeployed(board: Board) -> bool:
    """Whether the board says of itself that what is on it is not to be trusted."""
    return bool(board.run("test -e /var/lib/xenlab/deployed", check=False).status == 1)


def test_second_run_changes_nothing_and_says_so(lab: Lab, board: Board, tmp_path: Path) -> None:
    assert "boot/xenlab/xen-under-test.gz" in deploy(lab, board, tmp_path)
    assert deploy(lab, board, tmp_path) == ()
    board.run("echo > /boot/grub/custom.cfg")  # somebody's hands
    assert deploy(lab, board, tmp_path) == ("boot/grub/custom.cfg",)


def test_full_disk(lab: Lab, board: Board, tmp_path: Path) -> None:
    board.run("rm /boot/xenlab/xen-under-test.gz; fallocate -l $(df --output=avail -B1 / | tail -1) /fill || true")
    board.run("cat /dev/zero > /fill2 2>/dev/null || true", timeout=120)  # what fallocate has left
    try:
        with pytest.raises(BenchError, match=r"status 11\b.*\b0 MiB are free on it"):
            deploy(lab, board, tmp_path)
        assert is_undeployed(board)
    finally:
        board.run("rm -f /fill /fill2")
    assert deploy(lab, board, tmp_path) == ("boot/xenlab/xen-under-test.gz",)


def test_host_key_that_changed(lab: Lab, board: Board, tmp_path: Path) -> None:
    """A board that is somebody else's machine now is not written to."""
    _, known = paths.known_hosts()
    text = known.read_text(encoding="utf-8")
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True, timeout=20)
    key = " ".join(other.with_suffix(".pub").read_text(encoding="utf-8").split()[:2])
    hosts = [line.split()[0] for line in text.splitlines() if line.strip()]
    known.write_text("".join(f"{host} {key}\n" for host in hosts), encoding="utf-8")
    try:
        with pytest.raises(BenchError, match="Host key verification failed"):
            deploy(lab, board, tmp_path)
    finally:
        known.write_text(text, encoding="utf-8")
    assert deploy(lab, board, tmp_path) == ()


def test_second_run_for_a_board_is_refused_with_the_holders_name(lab_up: CommandLine, lab: Lab, board: Board) -> None:
    done = lab_up(str(lab.path), board.name, code=("-c", SECOND_RUN), timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(rf"{board.name}: held by \S+/{getpass.getuser()}\n", done.stderr), done.stderr


def test_network_gone_while_copying(lab: Lab, board: Board, big: Path, tmp_path: Path) -> None:
    mac = board.spec.nics["management"].mac
    nic = board.run(f"grep -l {mac} /sys/class/net/*/address").stdout.split("/")[4]
    watch = "until ls /var/lib/xenlab/guests/.big.* >/dev/null 2>&1; do sleep 0.1; done"  # rsync is at it
    board.spawn(f"{watch}; ip link set {nic} down; sleep 40; ip link set {nic} up")
    with pytest.raises(BenchError, match=r"Copy hypervisor|unreachable|connection"):
        deploy(lab, board, tmp_path, {"big": big})
    board.reconnect(120)
    assert is_undeployed(board)
    assert "var/lib/xenlab/guests/big" in deploy(lab, board, tmp_path, {"big": big})


def test_runner_that_is_killed(lab: Lab, board: Board, big: Path, tmp_path: Path) -> None:
    """Nothing of it goes on at the board when the next run comes."""
    board.run("rm -f /var/lib/xenlab/guests/big")
    words = [str(lab.path), board.name, str(big), str(tmp_path)]
    runner = subprocess.Popen(
        [sys.executable, "-P", "-c", DEPLOY, *words], env=paths.environment(), start_new_session=True
    )
    try:
        wait_until(lambda: "rsync" in _descendants(runner.pid).values(), 60, "rsync runs")
        mine = _descendants(runner.pid)
    finally:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), 20, f"all of it has ended: {mine}")
    assert is_undeployed(board)
    started = time.monotonic()
    assert "var/lib/xenlab/guests/big" in deploy(lab, board, tmp_path, {"big": big})
    assert time.monotonic() - started < 120


def _descendants(pid: int) -> dict[int, str]:
    """The living children of a process, and theirs: pid -> name."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text(encoding="utf-8").partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        if rest[:1] != "Z":
            parents[int(folder.name)] = (int(rest.split()[1]), name)
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        for child, (parent, name) in parents.items():
            if parent == one:
                found[child] = name
                todo.append(child)
    return found
