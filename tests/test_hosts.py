"""Boards at other machines: real sshds on loopback, the lab's own services here and there, simulated boards."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from a_host import AHost, Hosts, hosts_fixture, placed  # noqa: F401
from consoles import Recording, Wire
from free_ports import free_port
from ipmi_sim import Chassis, Simulator
from shared_lab import pytestmark  # noqa: F401
from test_console import NO_BMC

from lab.base import paths
from lab.base.errors import BmcUnreachable, BoardUnreachable, LoginRefused, MissingCapability
from lab.base.processes import port_is_taken
from lab.base.release import release
from lab.base.wait import wait_until
from lab.console.client import Console, ConsoleLine
from lab.console.config import RecorderConfig
from lab.grid import host_link, host_state, mains, services, wire
from lab.grid.coordinator import Coordinator
from lab.grid.host_power import HostPower
from lab.grid.host_state import HostState, Link
from lab.grid.ssh import Ssh
from lab.inventory import ConsoleSpec, Lab
from lab.leases.ledger import Ledger
from lab.leases.records import Request
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder
from lab.virtual import simulated

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # as the kernel's tables have it, of IPv4 and of IPv6
NIGHT = Path(__file__).parent / "soak" / "night.py"


class TwoHosts:
    """A lab of two joined boards, each at a host of its own."""

    def __init__(self, folder: Path, h1: AHost, h2: AHost) -> None:
        self.hosts = {"sim1": h1, "sim2": h2}
        self.chassis = {name: Chassis(host.folder) for name, host in self.hosts.items()}
        self.bmcs = [Simulator(one.folder, one, None) for one in self.chassis.values()]
        for bmc in self.bmcs:
            bmc.start()
        ports = dict(zip(self.hosts, (bmc.spec.port for bmc in self.bmcs), strict=True))
        lab = simulated.lab(folder / "some.yaml", 2, bmcs=ports, nightly_yields="always")
        self.lab: Lab = placed(lab, self.hosts)
        self.wires = {name: Wire(board.console.port) for name, board in self.lab.boards.items()}
        self.folder = services.directory(self.lab)
        services.start(self.lab, self.folder, detach=False)
        self.ledger = Ledger(self.folder)

    def close(self) -> None:
        services.stop(self.folder)
        for bmc in self.bmcs:
            bmc.stop()
        for one in self.wires.values():
            one.close()

    def state(self, host: str) -> HostState:
        found = host_state.read(self.folder, host)
        assert found
        return found

    def console(self, board: str) -> Console:
        return Console.of(self.lab.boards[board])

    def acquired(self) -> dict[str, str | None]:
        with closing(Coordinator(self.lab.coordinator)) as one:
            return {name: place.acquired for name, place in one.places().items()}

    def lacks(self, board: str) -> str:
        with closing(Coordinator(self.lab.coordinator)) as one, one.acting_as("test/looks") as holder:
            return holder.lacks(self.lab.boards[board])


@pytest.fixture
def two(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoHosts]:
    monkeypatch.setenv("XENLAB_CREDENTIAL_SIMULATED", f"{Simulator.user}:{Simulator.password}")
    made = TwoHosts(tmp_path, *hosts("h1", "h2"))
    yield made
    made.close()


def _said(lines: list[ConsoleLine], kind: str = "line") -> list[str]:
    return [one.text for one in lines if one.kind == kind]


def test_two_boards_at_two_hosts_and_one_of_these_goes_and_comes_back(two: TwoHosts) -> None:
    """One lab, as nearly all of it takes part in each of these things, and brings its services up once."""
    assert {host.name for host in services.status(two.folder).hosts if host.is_up} == {"h1", "h2"}
    status = str(services.status(two.folder))
    assert re.search(r"^recorder-sim1 at h1 +\d+$", status, re.M) and re.search(r"^exporter at h2 +\d+$", status, re.M)
    wait_until(lambda: not two.lacks("sim1") and not two.lacks("sim2"), 30, "both exporters offer their boards")
    for board in ("sim1", "sim2"):  # what is recorded there is read here, and what is typed here is typed there
        with two.console(board) as console:
            wait_until(console.is_connected, 20, "the console", interval=0.05)
            two.wires[board].say(b"hello from " + board.encode() + b"\r\n")
            console.wait_for(f"hello from {board}", 10, since=0)
            console.send(b"typed")
            wait_until(lambda board=board: two.wires[board].received == b"typed", 10, "input", interval=0.02)
    # Power, by the BMC that only the host need reach.
    control = mains.power_of(two.lab.boards["sim1"])
    assert not control.is_powered()
    control.power_on(10.0)
    assert control.is_powered() and two.chassis["sim1"].get("power") == 1
    assert control.sensors()
    with pytest.raises(MissingCapability, match="bmc-clock"):  # an error there is the same error here
        control.clock()
    _no_secret_is_shown(two)
    _nothing_listens_beyond_loopback(two)
    # One booking of both boards.
    number = two.ledger.ask(Request("person", "desk/alice", 600.0, ("sim1", "sim2")))
    wait_until(lambda: two.ledger.lease(number).boards == ("sim1", "sim2"), 60, "the lease", interval=0.1)
    # Its host goes: no lease is lost, and nobody else gets the board.
    two.wires["sim2"].say(b"last words\r\n")
    with two.console("sim2") as console:
        console.wait_for("last words", 10, since=0)
        two.hosts["sim2"].cut()
        wait_until(lambda: not two.state("h2").is_up, 30, "it is seen", interval=0.05)
        assert "is away" in two.ledger.board("sim2").health and two.ledger.board("sim1").health == "not checked"
        two.ledger.quarantine("sim2", "a power command failed")  # as a night does that was at it
        wait_until(lambda: not console.is_connected(), 20, "the gap", interval=0.05)
        wait_until(lambda: two.lacks("sim2"), 30, "its exporter is missed")
        assert services.status(two.folder).is_up
        with pytest.raises(BmcUnreachable, match=r"sim2: BMC 127\.0\.0\.1:\d+: host h2: ssh: connect to host"):
            mains.power_of(two.lab.boards["sim2"]).is_powered()
        # What the board says meanwhile is recorded there, and here when it is back.
        two.wires["sim2"].say(b"while nobody heard\r\n")
        two.wires["sim1"].say(b"the other goes on\r\n")
        with two.console("sim1") as other:
            other.wait_for("the other goes on", 10, since=0)
        before = time.time()
        two.hosts["sim2"].start()
        wait_until(lambda: two.state("h2").is_up, 60, "it is back", interval=0.1)
        late = console.wait_for("while nobody heard", 20, since=0)
        assert late.time < before
        wait_until(console.is_connected, 10, "the console again", interval=0.05)
        lines = console.lines(0)
    assert _said(lines) == ["hello from sim2", "last words", "while nobody heard"]
    assert any("host h2" in text for text in _said(lines, "gap"))
    assert two.ledger.board("sim2").health == "not checked"
    assert two.ledger.lease(number).state == "held"
    wait_until(lambda: not two.lacks("sim2"), 60, "its exporter is back")
    assert two.acquired() == {"sim1": "desk/alice", "sim2": "desk/alice"}
    # The lab goes down, and so does what it had there.
    running = [services.holder(host.supervised("some")) for host in two.hosts.values()]
    assert all(running)
    services.stop(two.folder)
    ended = [host.supervised("some") for host in two.hosts.values()]
    wait_until(lambda: not any(services.holder(folder) for folder in ended), 30, "what ran there has ended")


@pytest.mark.timeout(600)
def test_a_night_over_two_hosts_outlives_one_of_them(two: TwoHosts, tmp_path: Path) -> None:
    """Its cases are tried elsewhere, those of a pair when it is back; no case fails for it, and no lease is left."""
    run, log = tmp_path / "run", tmp_path / "night.log"
    words = [str(two.lab.path), str(run), "8", "600", "1", "1"]
    with open(log, "wb") as output:
        night = subprocess.Popen(
            [sys.executable, "-P", str(NIGHT), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=paths.environment(),
        )
    try:
        wait_until(lambda: run.exists() and list(RunFolder(run).results()), 240, "a result")
        two.hosts["sim2"].cut()
        wait_until(lambda: not two.state("h2").is_up, 30, "it is seen", interval=0.05)
        wait_until(lambda: len(_passed(run, "test_one")) == 4, 120, "the other board does all that one board can do")
        assert not _passed(run, "test_pair")
        two.hosts["sim2"].start()
        assert night.wait(400) == 0, log.read_text()
    finally:
        night.kill()
        night.wait()
    folder = RunFolder.open(run)
    final = folder.final_results()
    assert len(final) == 8 and {one.verdict for one in final} == {Verdict.PASS}
    assert {one.verdict for one in folder.results()} <= {Verdict.PASS, Verdict.MISS}
    assert {one.boards for one in final if "test_pair" in one.case} == {("sim1", "sim2")}
    assert "sim2 is away: its host is away: host h2" in "\n".join(folder.header().notes)
    assert two.ledger.board("sim2").health == "not checked"
    wait_until(lambda: not two.ledger.leases(), 30, "the boards are given back")


def _passed(run: Path, name: str) -> set[str]:
    """The cases of this name that have passed."""
    return {one.case for one in RunFolder(run).results() if name in one.case and one.verdict is Verdict.PASS}


def _no_secret_is_shown(two: TwoHosts) -> None:
    """In no argument of a process, and in no file of the lab's, here or there."""
    password = Simulator.password.encode()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert password not in file.read_bytes(), file
    for folder in (paths.state(), *(host.state for host in two.hosts.values())):
        for file in folder.rglob("*"):
            if file.is_file():
                assert password not in file.read_bytes(), file


def _nothing_listens_beyond_loopback(two: TwoHosts) -> None:
    pids = list(services.status(two.folder).processes.values())
    for host in two.hosts.values():
        pids += services.status(host.supervised("some")).processes.values()
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    listening = {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
    assert listening and listening <= LOOPBACK


class Linked:
    """A lab's connection to a host, in a thread: no lab is needed to see what becomes of it."""

    def __init__(self, folder: Path, host: AHost) -> None:
        self.folder, self._ending = folder / "lab", threading.Event()
        (self.folder / host_state.FOLDER).mkdir(parents=True)
        lab = placed(simulated.lab(folder / "some.yaml", 1), {"sim1": host})
        services._write_links(lab, self.folder)
        self.ledger = Ledger(self.folder)
        link = host_link.HostLink(self.folder, Link.read(self.folder, host.name), self._ending)
        self._thread = threading.Thread(target=link.run)
        self._thread.start()

    def why(self) -> str:
        """Why the host is away, once that is known."""
        found = wait_until(lambda: host_state.read(self.folder, "h1"), 60, "the link says something", interval=0.05)
        assert not found.is_up
        return found.why

    def close(self) -> None:
        self._ending.set()
        self._thread.join(30)


AWAY = {
    "nobody listens": "host h1: ssh: connect to host 127.0.0.1 port [0-9]+: Connection refused",
    "unknown key": "host h1: its SSH host key is not known, or another one: .* compare `ssh-keyscan -p [0-9]+ 127",
    "another key": "host h1: its SSH host key is not known, or another one: Host key for .* has changed",
    "key not taken": r"host h1: .*Permission denied \(publickey",
    "no xenlab": r"host h1: it has no xenlab: install xenlab there, or say in hosts\.h1\.xenlab where it is",
    "another release": r"host h1 has xenlab 0\.0\.9\+00000000, and the lab machine has {release}: install the same",
    "something else": r"host h1: xenlab there is no xenlab of this release \({release}\): it says 'Welcome!'",
    "a fault there": "host h1: the fault of it",
    "no forwarding": "host h1: its sshd does not forward Unix sockets",
}


@pytest.mark.parametrize(("what", "said"), AWAY.items(), ids=AWAY.keys())
def test_a_host_that_cannot_be_used_says_why_and_its_boards_are_given_to_nobody(
    hosts: Hosts, tmp_path: Path, what: str, said: str
) -> None:
    (host,) = hosts("h1")
    known = paths.config() / "known_hosts"
    if what == "nobody listens":
        host.cut()
    elif what == "unknown key":
        known.write_text("")
    elif what == "another key":
        known.write_text(f"[127.0.0.1]:{host.port} {paths.ssh_key().with_suffix('.pub').read_text()}")
    elif what == "key not taken":
        (host.folder / "authorized_keys").write_text("")
    elif what == "no xenlab":
        (host.bin / "xenlab").unlink()
    elif what == "another release":
        host.install("""echo '{"release": "0.0.9+00000000", "clock": 0}'; cat; #""")
    elif what == "something else":
        host.install("echo 'Welcome!'; cat; #")
    elif what == "a fault there":
        host.install("echo 'the fault of it' >&2; exit 70; #")
    else:
        host.cut()
        host.start("AllowStreamLocalForwarding no")
    linked = Linked(tmp_path, host)
    try:
        assert re.search(said.replace("{release}", re.escape(release())), linked.why())
        assert linked.ledger.board("sim1").health.startswith("away: its host is away: host h1")
    finally:
        linked.close()
    assert linked.ledger.board("sim1").health == "not checked"


def test_dom0_is_reached_by_way_of_its_host(hosts: Hosts, tmp_path: Path) -> None:
    """By a host whose own key is another one than the board's. Here the board is a second sshd."""
    host, board = hosts("h1", "h2")
    reach = Ssh("sim1", "127.0.0.1", board.port, board.user, host.spec())
    done = reach.run("echo $SSH_CONNECTION; cat", input=b"through")
    assert done.stdout.endswith("through")
    (tmp_path / "there").write_text("a file")
    reach.put(tmp_path / "there", str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_text() == "a file"
    reach.close()
    host.cut()
    assert not reach.is_reachable(2.0)
    with pytest.raises(BoardUnreachable, match=r"sim1: dom0 does not answer over SSH at .* \(its host h1 is away\)"):
        reach.run("true")


def test_a_bmc_at_a_host_refuses_in_its_own_words(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host,) = hosts("h1")
    chassis = Chassis(tmp_path)
    bmc = Simulator(tmp_path, chassis, None)
    bmc.start()
    try:
        monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", f"{Simulator.user}:not-the-password")
        control = HostPower("sim1", host.spec(), bmc.spec, None)
        with pytest.raises(LoginRefused, match="sim1: BMC .* refused the login") as caught:
            control.is_powered()
        assert caught.value.board == "sim1" and "check user and password" in caught.value.reason
        monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", f"{Simulator.user}:{Simulator.password}")
        control = HostPower("sim1", host.spec(), bmc.spec, None)
        asked = [0]

        def proof() -> bool:
            asked[0] += 1
            return True

        chassis.set(acts_after=0.5)
        control.power_on(20.0, proof=proof)
        assert asked[0] and control.is_powered()
        assert control.info() and control.boot_device() == "none"
    finally:
        bmc.stop()


def test_a_copy_of_a_record_has_each_record_once_whatever_ends(tmp_path: Path) -> None:
    """The recorder at the host and its copy here are both killed, and more is said than a connection takes at once."""
    wire, there, here = Wire(), tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    spec = ConsoleSpec("tcp", 0, 0, host="127.0.0.1", port=wire.port)
    original = Recording(RecorderConfig("sim1", spec, NO_BMC, there, served_in=tmp_path))
    ports = replace(spec, serve_port=free_port(), lines_port=free_port())
    copy = Recording(RecorderConfig("sim1", ports, NO_BMC, here, host="h1", reached_in=tmp_path), module="mirror")
    original.start()
    copy.start()
    try:
        with copy.console() as console:
            wait_until(console.is_connected, 20, "the copy", interval=0.05)
            wire.say(b"one\r\n")
            console.wait_for("one", 10, since=0)
            mark = console.mark()
            assert not _said(console.lines(mark))
            copy.stop(signal.SIGKILL)
            wire.say(b"".join(b"line %d\r\n" % number for number in range(20_000)))
            copy.start()
            console.wait_for("line 19999", 30, since=0)
            original.stop(signal.SIGKILL)
            wait_until(lambda: not console.is_connected(), 20, "the gap", interval=0.05)
            original.start()
            wait_until(console.is_connected, 20, "the copy again", interval=0.05)
            wire.say(b"two\r\n")
            console.wait_for("two", 20, since=0)
            lines = console.lines(0)
        assert _said(lines) == ["one", *(f"line {number}" for number in range(20_000)), "two"]
        gaps = _said(lines, "gap")
        assert any("the lab's copy was started anew" in text for text in gaps)
        assert any(text.startswith("host h1: ") for text in gaps)
        assert "the recorder was started anew" in gaps  # as the host says of its own
    finally:
        copy.stop()
        original.stop()
        wire.close()


def test_boards_at_two_machines_are_joined_by_a_wire(hosts: Hosts, tmp_path: Path) -> None:
    """One board is at a host, the other at the lab machine; frames pass both ways, however many."""
    (host,) = hosts("h1")
    boards = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    peers = [free_port(socket.SOCK_DGRAM) for _ in range(2)]
    for board in boards:
        board.bind(("127.0.0.1", 0))
        board.settimeout(20)
    own = [board.getsockname()[1] for board in boards]
    ends = (wire.End(own[0], peers[0], host.spec()), wire.End(own[1], peers[1], None))
    ending = threading.Event()
    joined = threading.Thread(target=wire._join, args=(wire.Wire("cable", ends), ending))
    joined.start()
    try:
        wait_until(lambda: all(port_is_taken(port, socket.SOCK_DGRAM) for port in peers), 30, "both ends")
        for source, target, port in ((0, 1, peers[0]), (1, 0, peers[1])):
            frames = [bytes([number]) * (60 + 50 * number) for number in range(30)]
            for frame in frames:
                boards[source].sendto(frame, ("127.0.0.1", port))
            assert [boards[target].recv(4096) for _ in frames] == frames
    finally:
        ending.set()
        joined.join(20)
        for board in boards:
            board.close()
