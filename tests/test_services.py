"""The services of a lab: one supervisor a lab, whatever happens to its files, its disk and its services."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import small_disk
from shared_lab import pytestmark  # noqa: F401

from lab import inventory
from lab.base import paths, processes
from lab.base.errors import UsageError
from lab.base.wait import wait_until
from lab.grid import coordinator, service, services, session, supervisor
from lab.grid.service import Service
from lab.inventory import Lab
from lab.virtual import simulated

START = """\
import sys
from pathlib import Path
from lab import inventory
from lab.grid import services
services.start(inventory.load(Path(sys.argv[1])), Path(sys.argv[2]), detach=True)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XENLAB_CREDENTIAL_SIMULATED", "admin:secret")
    lab = simulated.lab(tmp_path / "some.yaml", 1)
    yield lab
    services.stop(services.directory(lab))


def test_of_two_who_bring_a_lab_up_at_once_one_does_and_the_other_says_so(lab: Lab) -> None:
    folder = services.directory(lab)
    words = [sys.executable, "-P", "-c", START, str(lab.path), str(folder)]
    both = [subprocess.Popen(words, env=paths.environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=90)[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 1]
    loser = said[both.index(next(one for one in both if one.returncode))]
    assert "is up already" in loser or "is being brought up by another process" in loser or "port in use" in loser
    status = services.status(folder)
    assert status.is_up, str(status)
    services.stop(folder)
    assert [pid for pid in status.processes.values() if Path(f"/proc/{pid}").exists()] == []
    assert str(services.status(folder)) == "not up"


def test_a_second_supervisor_touches_nothing(lab: Lab) -> None:
    folder = services.directory(lab)
    services.start(lab, folder, detach=False)
    before = services.status(folder)
    words = [sys.executable, "-P", "-m", "lab.grid.supervisor", str(folder)]
    done = subprocess.run(words, env=paths.environment(), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "is up already" in done.stdout) == (2, True)
    with pytest.raises(UsageError, match="is up already"):
        services.start(lab, folder, detach=False)
    assert services.status(folder) == before
    assert before.is_up


@pytest.mark.parametrize("stale", ["supervisor.pid", supervisor.LOCK, "services.json"])
def test_a_stale_note_ends_no_process(tmp_path: Path, stale: str) -> None:
    """Its number is now that of another lab's supervisor, whose folder's name begins as this one's does."""
    for name in ("a", "ab"):
        (tmp_path / name).mkdir()
    words = [sys.executable, "-c", "import time; time.sleep(60)", "lab.grid.supervisor", str(tmp_path / "ab")]
    with subprocess.Popen(words) as other:
        text = f'{{"coordinator": "", "processes": {{"x": {other.pid}}}, "marks": {{"x": "boot:{other.pid}:1"}}}}'
        (tmp_path / "a" / stale).write_text(text if stale.endswith("json") else str(other.pid), encoding="ascii")
        services.stop(tmp_path / "a", timeout=1)
        assert other.poll() is None
        assert services.status(tmp_path / "a").processes == {}
        other.kill()


def test_a_supervisor_that_hangs_is_ended_with_its_services(lab: Lab) -> None:
    folder = services.directory(lab)
    services.start(lab, folder, detach=False)
    there = services.status(folder).processes
    for name in ("supervisor", "coordinator"):
        os.kill(there[name], signal.SIGSTOP)
    services.stop(folder, timeout=1.0)
    wait_until(lambda: not [p for p in there.values() if _runs(p)], 10, "all of it has ended")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _steady(folder: Path) -> services.LabStatus | None:
    """The services, if all are there and none was started anew for 3 s."""
    seen = services.status(folder)
    time.sleep(3)
    now = services.status(folder)
    return now if now.is_up and now.processes == seen.processes else None


@pytest.mark.parametrize("names", [("coordinator",), ("exporter", "reaper")])
def test_a_service_that_hangs_is_started_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Its process is there and takes no notice of anything: nothing but a sign of life tells.

    A reaper in a call to a coordinator that hangs gives no sign until the call's time is over.
    """
    folder = services.directory(lab)
    silence = 15.0 if "coordinator" not in names else coordinator.TIMEOUT + 10  # a busy machine is no hang
    with _supervising(lab, silence):
        before = wait_until(lambda: _steady(folder), 60, "the services stay")  # each has given a sign
        old = {name: before.processes[name] for name in names}
        for pid in old.values():
            os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(services, "SILENCE_SHOWN", 3.0)

        def is_said() -> bool:
            said = str(services.status(folder))
            return all(f"{pid}, no sign of life for" in said for pid in old.values())

        def are_new() -> bool:
            now = services.status(folder).processes
            return all(now.get(name, pid) != pid for name, pid in old.items())

        wait_until(is_said, 20, "said")
        wait_until(are_new, 60, f"another {names}")
        log = (folder / "supervisor.out").read_text()
        assert all(f"{name} hangs: no sign of life" in log for name in names)
        others = {k: v for k, v in services.status(folder).processes.items() if k not in (*names, "exporter")}
        assert others == {k: v for k, v in before.processes.items() if k in others}


class _supervising:
    """A supervisor of the real services that is less patient."""

    def __init__(self, lab: Lab, silence: float) -> None:
        self._lab, self._silence, self._folder = lab, silence, services.directory(lab)

    def __enter__(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        services.write_files(self._lab, self._folder)
        code = "import sys; from lab.grid import service, supervisor; "
        code += f"service.SILENCE = {self._silence}; supervisor.main()"
        words = [sys.executable, "-P", "-c", code, str(self._folder)]
        output = open(self._folder / "supervisor.out", "wb")
        with output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output, env=paths.environment())
        wait_until(lambda: (self._folder / "ready").exists(), 40, "the services are up")

    def __exit__(self, *_: object) -> None:
        services.stop(self._folder)
        self._process.wait(10)


SLEEPER = """\
import time
from lab.base import processes
for _ in range({signs}):
    processes.give_sign_of_life()
    time.sleep(0.2)
time.sleep(60)
"""


def _sleeper(folder: Path, signs: int) -> Service:
    (folder / service.SIGNS).mkdir(exist_ok=True)
    words = [sys.executable, "-P", "-c", SLEEPER.format(signs=signs)]
    return Service("sleeper", words, folder, supervisor.OURS)


def _kept(one: Service, seconds: float) -> set[int]:
    """The processes that it had while it was kept for so long."""
    seen, end = set[int](), time.monotonic() + seconds
    while time.monotonic() < end:
        one.keep()
        seen |= {one.process.pid} if one.process else set()
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(("starting", "is_killed"), [(300.0, False), (2.0, True)])
def test_a_service_that_has_not_given_a_sign_yet_has_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starting: float, is_killed: bool
) -> None:
    monkeypatch.setattr(service, "SILENCE", 1.0)
    monkeypatch.setattr(service, "STARTING", starting)
    one = _sleeper(tmp_path, signs=0)
    try:
        assert (len(_kept(one, 4.0)) > 1) == is_killed
    finally:
        assert one.process
        one.process.kill()
        one.end()


def test_signs_that_cannot_be_given_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of signs has gone, or the disk takes no change: that is no reason to kill a service."""
    monkeypatch.setattr(service, "SILENCE", 1.0)
    one = _sleeper(tmp_path, signs=8)
    try:
        _kept(one, 2.0)
        shutil.rmtree(tmp_path / service.SIGNS)
        assert len(_kept(one, 2.5)) == 1
    finally:
        assert one.process
        one.process.kill()
        one.end()


def test_a_program_that_is_not_there_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    one = Service("none", ["none"], tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not one.keep()
        assert not one.keep()
    assert "none cannot be started: No such file or directory; again in" in caplog.text
    assert not one.is_failing


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with small_disk.mounted(tmp_path / "small", "size=4m,nr_inodes=4k") as folder:
        yield folder


def test_a_full_disk_ends_no_service_and_what_ends_is_started_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(small))
    monkeypatch.setenv("XENLAB_CREDENTIAL_SIMULATED", "admin:secret")
    lab = simulated.lab(tmp_path / "full.yaml", 1)
    folder = services.directory(lab)
    services.start(lab, folder, detach=False)
    try:
        before = services.status(folder).processes
        _fill(small / "fill", 4096)
        for log in folder.glob("*.log"):
            log.unlink()  # so that each must be made anew, where nothing can be
        _fill(small / "fill2", 512)
        ended = ("recorder-sim1", "exporter", "coordinator", "reaper")
        for name in ended:
            os.kill(before[name], signal.SIGKILL)

        def all_run() -> bool:
            words = [_words(pid) for pid in _children(before["supervisor"])]
            modules = ("lab.console.recorder", "coordinator", "exporter", "lab.grid.reaper")
            return all(any(module in line for line in words) for module in modules)

        wait_until(all_run, 20, "all services run again")
        time.sleep(3)
        assert services.holder(folder) == before["supervisor"]
        wait_until(all_run, 20, "all services run on")  # an exporter ends with its coordinator, and is started again
        for name in ("fill", "fill2"):
            (small / name).unlink()
        wait_until(lambda: services.status(folder).is_up, 20, "the notes are written")
        after = services.status(folder).processes
        assert not {after[name] for name in ended} & set(before.values())
    finally:
        services.stop(folder)
    assert str(services.status(folder)) == "not up"


def _fill(file: Path, block: int) -> None:
    """Write until there is no room for another block."""
    with open(file, "wb", buffering=0) as fill:
        with suppress(OSError):
            while fill.write(bytes(block)) == block:
                pass
    assert os.statvfs(file).f_bavail * os.statvfs(file).f_frsize < 4096


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_the_lock_is_the_holders_until_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert processes.holder_of(file) is None
    code = "import sys; from pathlib import Path; from lab.base import processes; "
    code += f"print(processes.hold_for_life(Path({str(file)!r})), flush=True); sys.stdin.read(1)"
    words = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env=paths.environment()) as one:
        assert one.stdout and one.stdin
        assert one.stdout.readline() == "True\n"
        assert processes.holder_of(file) == one.pid
        with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env=paths.environment()) as two:
            assert two.communicate("\n", timeout=20)[0] == "False\n"
        assert processes.holder_of(file) == one.pid
        one.kill()
    assert processes.holder_of(file) is None


@pytest.mark.parametrize(
    "text",
    ["", "1", "x", "1:2", "a:b:c", "a:٣:c", "::", pytest.param(f"{os.getpid()}", id="number alone"), "x" * 9999],
)
def test_what_is_no_mark_is_no_process(text: str) -> None:
    assert not processes.is_alive(text)


def test_the_state_folder_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "xenlab").mkdir(mode=0o755)
    assert paths.state().stat().st_mode & 0o777 == 0o700
    (tmp_path / "xenlab").rmdir()
    assert paths.state().stat().st_mode & 0o777 == 0o700


def test_every_board_with_a_disk_boots_known_good_with_the_options_it_is_tested_with() -> None:
    from lab.virtual import image

    for name in ("virtual.yaml", "uefi.yaml"):
        for board in inventory.load(paths.CHECKOUT / "inventory" / name).boards.values():
            assert board.xen_command_line() == image.XEN_OPTIONS


def test_what_an_exporter_that_went_away_has_offered_is_kept_and_not_taken_for_offered() -> None:
    """labgrid's manager of remote places asks for the arguments of each resource whenever a driver is activated."""
    client = object.__new__(session._HolderSession)
    client.resources, client.monitor, client.places = {}, False, {}
    path = ("desk", "virt1", "NetworkService")
    there = {"cls": "NetworkService", "params": {"address": "127.0.0.1"}, "acquired": "virt1", "avail": True}
    asyncio.run(client.on_resource_changed(*path, there))
    asyncio.run(client.on_resource_changed(*path, {}))
    entry = client.resources["desk"]["virt1"]["NetworkService"]
    assert entry.args == {"address": "127.0.0.1"}
    client.places["virt1"] = cast(Any, SimpleNamespace(acquired="desk/alice"))
    lab = inventory.load(paths.INVENTORY / "virtual.yaml")
    one = cast(Any, SimpleNamespace(_client=client, lease=SimpleNamespace(holder="desk/alice"), _lab=lab))
    assert "NetworkService" in str(session.Session._problem(one, "virt1"))
    asyncio.run(client.on_resource_changed(*path, there))
    assert "NetworkService" not in str(session.Session._problem(one, "virt1"))


def test_ports_of_boards_that_are_not_there_are_none_that_linux_gives_to_connections() -> None:
    """Between the look and the listener, such a one goes to whoever connects to anything."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    ports = [simulated.free_ports(40) for _ in range(3)]
    assert all(port < first for some in ports for port in some)
    assert len({port for some in ports for port in some}) == 120
