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
    """``xenlab nightly`` over both hosts, while it runs."""

    def __init__(self, xenlab: CommandLine, folder: Path, *words: str, history: str = "") -> None:
        self.lab: Lab = load(INVENTORY)
        self.folder, self._log = folder / "run", folder / "night.log"
        command = ["nightly", "--ports", "free", "--inventory", str(INVENTORY), "--output", str(self.folder), *words]
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lab.cli", *command],
                env=xenlab.environment | {store.SETTING: history},
                cwd=paths.CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    def results(self, board: str, verdict: Verdict) -> list[TestResult]:
        """Of attempts at a case on this board alone."""
        return [one for one in self.run.results() if one.boards == (board,) and one.verdict is verdict]

    def state(self, host: str) -> host_state.HostState:
        found = host_state.read(services.directory(self.lab), host)
        assert found
        return found

    def wait(self, is_so: Callable[[], object], timeout: float, what: str) -> None:
        """As it goes on; no longer than it does."""

        def is_so_yet() -> bool:
            assert self._process.poll() is None, f"{what}: {self.said()}"
            return bool(self.folder.exists() and is_so())

        wait_until(is_so_yet, timeout, what, interval=0.1)

    def end(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]

    def close(self) -> None:
        """It takes the lab down."""
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def test_a_night_over_two_hosts_outlives_one_that_is_killed(
    two: TwoHosts, xenlab: CommandLine, server: Server, tmp_path: Path
) -> None:
    """Its current case is a MISS and passes at the other host; the pair's case waits for it, and passes, too."""
    history = server.url()
    night = Night(xenlab, tmp_path, *CASES, history=history)
    try:
        night.wait(lambda: night.results("virt2", Verdict.PASS), 600, "a result of the host that will be killed")
        night.wait(lambda: "virt2" in night.run.now(), 60, "a case that runs there")
        _assert_nothing_listens_beyond_loopback(two)
        current = night.run.now()["virt2"][0]
        two.kill("right")
        night.wait(lambda: not night.state("right").is_up, 60, "it is seen")
        night.wait(
            lambda: current in {one.case for one in night.results("virt1", Verdict.PASS)}, 600, "it passes there"
        )
        (lost,) = night.results("virt2", Verdict.MISS)
        assert lost.case == current and "right" in lost.reason, lost
        two.start("right")
        night.wait(lambda: night.state("right").is_up, 120, "it is back")
        night.wait(lambda: "virt1-virt2" in night.run.now(), 300, "the pair")
        _assert_nothing_listens_beyond_loopback(two)
        assert night.end(900) == 0, night.said()
    finally:
        night.close()
    run = RunFolder.open(night.folder)
    final, results = run.final_results(), list(run.results())
    assert not run.missing() and len(final) == len(run.header().planned)
    assert {one.verdict for one in final} == {Verdict.PASS}, night.said()
    assert [one.case for one in results if one.verdict is not Verdict.PASS] == [current]
    assert {one.boards for one in final if PAIR in one.case} == {("virt1", "virt2")}
    assert Ledger(services.directory(night.lab)).leases() == []
    assert _in_history(server, history) == [(one.case, one.attempt, str(one.verdict), one.boards) for one in results]
    for board in HOSTS.values():
        _assert_one_record(services.directory(night.lab) / "console" / f"{board}.jsonl")


def test_a_board_that_has_a_shape_is_waited_for_when_its_host_is_killed(
    two: TwoHosts, xenlab: CommandLine, tmp_path: Path
) -> None:
    """The case that was tried on it passes on it, in the same shape, once the host is back."""
    night = Night(xenlab, tmp_path, "--select", "full", SHAPED)
    try:
        night.wait(lambda: night.run.now().get("virt1", ("", 0.0, False))[2], 600, "the case runs")
        two.kill("left")
        night.wait(lambda: night.results("virt1", Verdict.MISS), 300, "it is a MISS")
        two.start("left")
        assert night.end(900) == 0, night.said()
    finally:
        night.close()
    results = list(RunFolder.open(night.folder).results())
    assert [(one.verdict, one.boards) for one in results] == [(Verdict.MISS, ("virt1",)), (Verdict.PASS, ("virt1",))]
    assert "left" in results[0].reason, results[0]
    assert Ledger(services.directory(night.lab)).leases() == []


def _assert_nothing_listens_beyond_loopback(two: TwoHosts) -> None:
    """Beside the sshd of each host. At work there are BMCs, consoles, QEMU and the lab's services."""
    assert len(here := two.listening()) >= 5 and not _beyond(here), here
    for number, host in enumerate(HOSTS, 1):
        found = two.listening(host)
        assert len(found) >= 5 and _beyond(found) == {f"10.213.{number}.2:22"}, found


def _beyond(listening: set[str]) -> set[str]:
    return {one for one in listening if not one.startswith(("127.", "[::1]:"))}


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
