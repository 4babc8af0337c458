"""Boards at two hosts, each a network namespace of this machine (contrib/two-hosts), of which one is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from conftest import CommandLine
from lab.base import paths
from lab.base.wait import wait_until
from lab.grid import host_state, services
from lab.history import store
from lab.inventory import Lab, load
from lab.leases.ledger import Ledger
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1]))
from postgres import Server, binaries, serve

pytestmark = pytest.mark.slow  # not part of CI

SCRIPT = paths.CHECKOUT / "contrib" / "two-hosts"
INVENTORY = paths.CHECKOUT / "inventory" / "two-hosts.yaml"
HOSTS = {"left": "virt1", "right": "virt2"}
CASES = ("testcases/boot", "testcases/guest32/test_pv32.py", "testcases/relocation/test_live.py")
SHAPED = "testcases/sleep/test_cpus.py::test_cpu_goes_and_comes_back"  # no board of the inventory can as it is
PAIR = "test_relocation_brings_the_guest_over"


class TwoHosts:
    """Two hosts that a lab can reach, with nothing running there but their sshd."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xenlab-", dir="/var/tmp"))  # a socket's path is short
        self._words = os.environ | {"XENLAB_TWO_HOSTS": str(self.folder)}
        self.exported = dict(word.split("=") for word in self._call("up").split()[1:])

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [str(SCRIPT), *words],
            env=self._words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self, host: str) -> None:
        self._call("kill", host)

    def start(self, host: str) -> None:
        self._call("start", host)

    def close(self) -> None:
        self._call("down")
        shutil.rmtree(self.folder)

    def listening(self, host: str = "") -> set[str]:
        """``ADDRESS:PORT`` of each socket, TCP and UDP, that waits for others: of the host, or of the lab here."""
        apart = ["ip", "netns", "exec", f"xenlab-{host}"] if host else []
        command = [*apart, "ss", "--no-header", "--listening", "--tcp", "--udp", "--numeric", "--processes"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=True)
        return {line.split()[4] for line in done.stdout.splitlines() if host or self._is_ours(line)}

    def _is_ours(self, line: str) -> bool:
        """Whether one of the processes that have the socket was started for this lab."""
        for pid in re.findall(r"\bpid=(\d+)", line):
            try:
                if str(self.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    return True
            except OSError:  # it has ended
                continue
        return False


@pytest.fixture(name="two")
def two_fixture(xenlab: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoHosts]:
    if os.geteuid():
        pytest.skip("needs root: network namespaces")
    two = TwoHosts()
    for name, value in two.exported.items():
        monkeypatch.setitem(xenlab.environment, name, value)
        monkeypatch.setenv(name, value)
    try:
        yield two
    finally:
        two.close()


@pytest.fixture(name="server", scope="module")
def server_fixture() -> Iterator[Server]:
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    with serve(programs) as running:
        yield running


class Night:
    """``xenlab nightly`` over both hosts, while it runs; the lab was up before, and is up after it."""

    def __init__(self, xenlab: CommandLine, folder: Path, *words: str, history: str = "") -> None:
        self.lab: Lab = load(INVENTORY)
        self._xenlab, self._log, self._folder = xenlab, folder / "night.log", folder / "run"
        self._call("lab", "up", "--ports", "free")
        command = ["nightly", "--inventory", str(INVENTORY), "--output", str(self._folder), *words]
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lab.cli", *command],
                env=xenlab.environment | {store.SETTING: history},
                cwd=paths.CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _call(self, *words: str) -> None:
        done = self._xenlab(*words, "--inventory", str(INVENTORY), timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def home(self) -> Path:
        """The lab's folder."""
        return services.directory(self.lab)

    @property
    def run(self) -> RunFolder:
        return RunFolder(self._folder)

    def results(self, board: str, verdict: Verdict) -> list[TestResult]:
        """Of attempts at a case on this board alone."""
        return [one for one in self.run.results() if one.boards == (board,) and one.verdict is verdict]

    def is_at_work(self, boards: str) -> bool:
        """Whether these boards run a case just now."""
        return any(is_ready for names, (_, _, is_ready) in self.run.now().items() if names == boards)

    def is_reached(self, host: str) -> bool:
        found = host_state.read(self.home, host)
        return found is not None and found.is_up

    def wait(self, is_so: Callable[[], object], timeout: float, what: str) -> None:
        """As it goes on; no longer than it does."""

        def is_so_yet() -> bool:
            assert self._process.poll() is None, f"{what}: {self.said()}"
            return bool(self._folder.exists() and is_so())

        wait_until(is_so_yet, timeout, what, interval=0.2)

    def end(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._call("lab", "down")


def test_a_night_over_two_hosts_outlives_one_that_is_killed(
    two: TwoHosts, xenlab: CommandLine, server: Server, tmp_path: Path
) -> None:
    """Its current case is a MISS and passes at the other host; the pair's cases wait for it, and pass, too."""
    history = server.url()
    night = Night(xenlab, tmp_path, *CASES, history=history)
    try:
        night.wait(lambda: night.results("virt2", Verdict.PASS), 600, "a result of the host that will be killed")
        _assert_nothing_listens_beyond_loopback(two)
        night.wait(lambda: "virt2" in night.run.now(), 60, "another case there")
        two.kill("right")
        night.wait(lambda: not night.is_reached("right"), 60, "it is seen")
        night.wait(lambda: night.results("virt2", Verdict.MISS), 300, "the case is a MISS")
        (lost,) = night.results("virt2", Verdict.MISS)
        assert "host right" in lost.reason, lost
        night.wait(lambda: lost.case in {one.case for one in night.results("virt1", Verdict.PASS)}, 600, "it passes")
        two.start("right")
        night.wait(lambda: night.is_reached("right"), 120, "it is back")
        night.wait(lambda: night.is_at_work("virt1-virt2"), 600, "both boards run a case together")
        _assert_nothing_listens_beyond_loopback(two)
        assert night.end(900) == 0, night.said()
        wait_until(lambda: not Ledger(night.home).leases(), 60, "no lease is left")
        assert all(night.is_reached(host) for host in HOSTS)
    finally:
        night.close()
    run = night.run
    final, results = run.final_results(), list(run.results())
    assert not run.missing() and len(final) == len(run.header().planned)
    assert {one.verdict for one in final} == {Verdict.PASS}, night.said()
    assert [(one.case, one.verdict) for one in results if one.verdict is not Verdict.PASS] == [
        (lost.case, Verdict.MISS)
    ]
    assert {one.boards for one in final if PAIR in one.case} == {("virt1", "virt2")}
    assert _in_history(server, history) == [(one.case, one.attempt, str(one.verdict), one.boards) for one in results]
    for board in HOSTS.values():
        _assert_one_record(night.home / "console" / f"{board}.jsonl")


def test_a_board_that_has_a_shape_is_waited_for_when_its_host_is_killed(
    two: TwoHosts, xenlab: CommandLine, tmp_path: Path
) -> None:
    """The case that was tried on it passes on it, in the same shape, once the host is back."""
    night = Night(xenlab, tmp_path, "--select", "full", SHAPED)
    try:
        night.wait(lambda: night.is_at_work("virt1"), 600, "the case runs")
        two.kill("left")
        night.wait(lambda: night.results("virt1", Verdict.MISS), 300, "it is a MISS")
        two.start("left")
        assert night.end(900) == 0, night.said()
        wait_until(lambda: not Ledger(night.home).leases(), 60, "no lease is left")
    finally:
        night.close()
    first, second = night.run.results()
    assert (first.verdict, first.boards, second.verdict, second.boards) == (
        Verdict.MISS,
        ("virt1",),
        Verdict.PASS,
        ("virt1",),
    )
    assert "host left" in first.reason, first


def _assert_nothing_listens_beyond_loopback(two: TwoHosts) -> None:
    """Beside the sshd of each host. There are a BMC, a serial line and more at each host, and five ports here."""
    assert len(here := two.listening()) >= 5 and not _beyond(here), here
    for number, host in enumerate(HOSTS, 1):
        found = two.listening(host)
        assert len(found) >= 4 and _beyond(found) == {f"10.213.{number}.2:22"}, found


def _beyond(listening: set[str]) -> set[str]:
    """Those of sockets that others than this machine reach."""
    found = {one: one.rpartition(":")[0].partition("%")[0].strip("[]").removeprefix("::ffff:") for one in listening}
    return {one for one, address in found.items() if address == "*" or not ip_address(address).is_loopback}


def _in_history(server: Server, history: str) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """All results of the only run there is, in their order."""
    user = re.search(r"//(\w+):", history)
    assert user
    with server.connect() as connection:
        rows = connection.execute(
            f"SELECT c.name, r.attempt, r.verdict, r.boards FROM {user[1]}.results r "
            f"JOIN {user[1]}.series s ON s.id = r.series_id JOIN {user[1]}.cases c ON c.id = s.case_id "
            "ORDER BY r.run_id, r.ordinal"
        ).fetchall()
    return [(case, attempt, verdict, tuple(boards.split(","))) for case, attempt, verdict, boards in rows]


def _assert_one_record(path: Path) -> None:
    """Its numbers are 1, 2, 3..., and those that the records have at their host rise, whatever ended meanwhile."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [one["n"] for one in records] == list(range(1, len(records) + 1)) and len(records) > 1000
    there = [one["of"] for one in records if "of" in one]
    assert all(one < other for one, other in zip(there, there[1:], strict=False))
