"""A board of ours under a script of another CI: real sshd, forced command and services, a simulated board."""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from consoles import Recording, Wire
from dom0 import Sshd
from free_ports import free_port
from ipmi_sim import Simulator
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401
from test_console import record_fixture  # noqa: F401

from lab import netboot
from lab.base import paths
from lab.base.errors import BenchError, MissingCapability, PowerTimeout, UsageError
from lab.base.wait import wait_until
from lab.bmc.ipmi import IpmiBmc
from lab.console.catching_up import catch_up
from lab.console.client import Console
from lab.inventory import ConsoleSpec
from lab.night import controller, job
from lab.night.controller import word_of
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder, new_id

BOARD = "sim1"
JOBS = itertools.count()
BANNER = b"(XEN) Xen version 4.22-unstable (root@) (gcc)\r\n(XEN) Latest ChangeSet: Mon Nov 2 git:0123456789ab\r\n"
DEATH = (
    b"(XEN) ----[ Xen-4.22-unstable  x86_64  debug=y  Not tainted ]----\r\n(XEN) CPU:    0\r\n"
    b"(XEN) \r\n(XEN) ****************************************\r\n(XEN) Panic on CPU 0:\r\n"
    b"(XEN) Assertion 'x' failed at common/y.c:7\r\n"
    b"(XEN) ****************************************\r\n(XEN) \r\n(XEN) Reboot in five seconds...\r\n"
)
# As Xen's script does: power on, a trap that powers off, the console until a word, and `wake` when the board sleeps.
# A shell reads, and not expect, which few machines have; as that does, it kills ssh when it has its word.
SCRIPT = r"""
set -e
ssh $CONTROLLER gitlabci poweron
trap 'ssh $CONTROLLER poweroff' EXIT
mkfifo console; ssh $CONTROLLER console >console </dev/null & reader=$!
exec 3<console
while IFS= read -r -t 20 line <&3; do
    printf '%s\n' "$line" >>serial
    case $line in
        *"started, suspending"*) ssh $CONTROLLER wake ;;
        *"test passed"*) kill $reader; exit 0 ;;
    esac
done
status=0; wait $reader || status=$?
echo "ERROR-EOF, ssh ended with $status"; exit 1
"""


class Gate:
    """An sshd whose one key can do nothing but the words for a board."""

    def __init__(self, shared: Shared, folder: Path, options: str = "") -> None:
        self.shared, self.folder = shared, folder
        for name in ("host_key", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
        self.allow(options)
        self._sshd = Sshd(folder)
        self.port = self._sshd.port
        host = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host}\n")
        (folder / "ssh_config").write_text(
            f"Host controller\n RequestTTY no\n HostName 127.0.0.1\n Port {self.port}\n User {getpass.getuser()}\n"
            f" IdentityFile {folder}/key\n IdentitiesOnly yes\n BatchMode yes\n"
            f" UserKnownHostsFile {folder}/known_hosts\n"
        )
        (folder / "bin").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)

    def allow(self, options: str) -> None:
        """The key's line, as docs/ci.md has it."""
        names = ("XDG_STATE_HOME", "XENLAB_CREDENTIAL_SIMULATED", "PATH", "LC_ALL", "PYTHONPYCACHEPREFIX")
        words = {name: os.environ[name] for name in names if name in os.environ}
        words |= {"PYTHONPATH": str(paths.CHECKOUT), "LG_HOSTNAME": "desk", "LG_USERNAME": "ci"}
        given = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in words.items())
        login = self.folder / "login"  # a file: on a command line the password would be for all to see
        login.write_text(
            f"{given}exec {sys.executable} -P -m lab.cli controller {BOARD} {options} --inventory {self.shared.file}\n"
        )
        key = (self.folder / "key.pub").read_text()
        (self.folder / "authorized_keys").write_text(f'restrict,command="exec sh {login}" {key}')

    def ssh(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bin" / "ssh"), "controller", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def do(self, word: controller.Word) -> None:
        """What a login does, in this process: where the login itself is not what is looked at."""
        one = controller.Controller(self.shared.lab, BOARD, self.shared.ledger, controller.Wishes())
        assert one.answer(word) == 0

    def start(self, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.folder / "bin" / "ssh"), "controller", *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def script(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", SCRIPT],
            cwd=self.folder,
            env=os.environ | {"CONTROLLER": "controller", "PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def serial(self) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / "serial").read_text()
        return ""

    def stop(self) -> None:
        self._sshd.stop()


@pytest.fixture
def gate(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setenv("LG_HOSTNAME", "desk")
    monkeypatch.setenv("LG_USERNAME", "ci")
    monkeypatch.setattr(job, "new_id", lambda: f"{new_id()}-{next(JOBS)}")  # of one process there may be many a second
    if not os.access("/usr/sbin/sshd", os.X_OK):
        pytest.skip("needs openssh-server")
    shared.chassis[BOARD].set(power=0, ignores=0, boot="none")
    shared.consoles[BOARD].say(b"\r\n")  # ends what another test left unfinished
    one = Gate(shared, tmp_path)
    yield one
    if note(shared).exists():
        one.ssh("poweroff")
    one.stop()


def note(shared: Shared) -> Path:
    return shared.folder / "controller" / f"{BOARD}.json"


def newest() -> RunFolder:
    return RunFolder.open(max((paths.state() / "jobs").iterdir(), key=lambda path: path.stat().st_mtime_ns))


def run_of(shared: Shared) -> RunFolder:
    """The run folder of the job that runs."""
    return RunFolder.open(Path(json.loads(note(shared).read_text())["run"]))


def junit(folder: RunFolder) -> ET.Element:
    case = ET.parse(folder.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    return case


def wait_power(shared: Shared, value: int) -> None:
    wait_until(lambda: shared.chassis[BOARD].get("power") == value, 60.0, f"power {value}", interval=0.05)


def over(shared: Shared, number: int) -> bool:
    return shared.ledger.lease(number).state in ("ending", "ended")


# -- what a key can do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "word"),
    [("gitlabci poweron", "poweron"), ("poweron", "poweron"), ("console", "console"), ("wake", "wake")]
    + [("poweroff", "poweroff"), ("gitlabci  poweroff ", "poweroff")],
)
def test_the_words_of_xens_script_are_taken(said: str, word: str) -> None:
    assert word_of(said) == word


@pytest.mark.parametrize(
    "said",
    ["sh", "console; sh", "console\nsh", "poweron sim2", "gitlabci", "", None, "--help", "gitlabci gitlabci console"]
    + ["Console", "$(reboot)", "x" * 9000],
)
def test_nothing_else_is(said: str | None) -> None:
    with pytest.raises(
        UsageError, match=r"^refused: .{1,140}; this key can do nothing but: poweron, console, wake, pow"
    ):
        word_of(said)


def test_a_login_that_wants_more_is_refused(gate: Gate) -> None:
    for words in (("console", "&&", "id"), ()):
        done = gate.ssh(*words)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("xenlab: refused: ") and len(done.stderr.splitlines()) == 1
    assert gate.shared.ledger.leases() == []


# -- a job ---------------------------------------------------------------------------------------------------------


def test_a_script_as_xens_gets_its_board_and_leaves_a_junit(gate: Gate) -> None:
    shared, wire = gate.shared, gate.shared.consoles[BOARD]
    script = gate.script()
    wait_power(shared, 1)
    wire.say(BANNER)  # perhaps before the script reads the console: it gets that all the same
    wait_until(lambda: "Latest ChangeSet" in gate.serial(), 30.0, "the banner")
    (lease,) = shared.ledger.leases("held")
    assert lease.boards == (BOARD,) and lease.holder == "desk/ci"
    assert junit(run_of(shared)).find("error") is not None  # nothing is known yet
    before = len(shared.chassis[BOARD].calls())
    wire.say(b"started, suspending\r\n")
    wait_until(lambda: ["power", "1"] in calls_since(shared, before), 30.0, "the board is woken")
    wire.say(b"(domU) [    0.0] Xen version 4.17.\r\n")
    wire.say(b"(domU) Kernel panic - not syncing: a guest's own affair\r\nsuspend test passed\r\n")
    said, _ = script.communicate(timeout=60.0)
    assert script.returncode == 0, said
    assert shared.chassis[BOARD].get("power") == 0 and over(shared, lease.id) and not note(shared).exists()
    noted = [event.detail for event in shared.ledger.audit() if event.what == "power" and event.lease == lease.id]
    assert noted == [f"{what}, by a job" for what in ("off", "on", "button", "off")]
    folder = newest()
    (result,) = folder.summary().results
    assert result.verdict is Verdict.PASS and folder.header().exit_status == 0
    assert junit(folder).find("error") is None and junit(folder).find("failure") is None
    assert "suspend test passed" in (folder.path / result.consoles[BOARD]).read_text()
    assert folder.builds()[job.BUILD]["version"] == "4.22-unstable"
    assert gate.serial().count("Latest ChangeSet") == 1


def calls_since(shared: Shared, before: int) -> list[list[str]]:
    return [words[:2] for words in shared.chassis[BOARD].calls()[before:]]


def test_a_panic_ends_the_console_at_once(gate: Gate) -> None:
    shared, wire = gate.shared, gate.shared.consoles[BOARD]
    script = gate.script()
    wait_power(shared, 1)
    wire.say(BANNER)
    wait_until(lambda: "Latest ChangeSet" in gate.serial(), 30.0, "the banner")
    began = time.monotonic()
    wire.say(DEATH)
    wait_until(lambda: "xenlab: " in gate.serial(), 10.0, "the end of the console", interval=0.02)
    assert time.monotonic() - began < 5.0
    said, _ = script.communicate(timeout=60.0)
    assert script.returncode == 1 and "ssh ended with 1" in said
    (line,) = [line for line in gate.serial().splitlines() if line.startswith("xenlab: ")]
    assert line.startswith(f"xenlab: FAIL: {BOARD}: ") and "Assertion 'x' failed at common/y.c" in line
    assert "Reboot in five seconds" in gate.serial()  # the dump is whole
    (result,) = newest().summary().results
    assert result.verdict is Verdict.FAIL and result.fingerprint
    assert junit(newest()).find("failure") is not None
    assert shared.chassis[BOARD].get("power") == 0


def test_a_panic_before_the_console_is_read_is_told_all_the_same(gate: Gate) -> None:
    gate.do("poweron")
    gate.shared.consoles[BOARD].say(BANNER + DEATH)
    wait_until(lambda: heard(gate.shared, "Reboot in five"), 10.0, "the recorder has it")
    done = gate.ssh("console")
    assert done.returncode == 1 and done.stdout.splitlines()[0].endswith("4.22-unstable (root@) (gcc)")
    assert done.stdout.splitlines()[-1].startswith(f"xenlab: FAIL: {BOARD}: xen-panic: ")
    gate.do("poweroff")  # which changes nothing of the result
    assert [one.verdict for one in newest().results()] == [Verdict.FAIL] and newest().header().exit_status == 1


def test_a_job_has_its_time_and_no_more(gate: Gate) -> None:
    gate.allow("--for 5s")
    assert gate.ssh("poweron").returncode == 0
    done = gate.ssh("console")
    assert done.returncode == 3 and done.stderr == f"xenlab: {BOARD}: the job has had its 5.0 s\n"
    assert newest().summary().results[0].verdict is Verdict.MISS


def test_a_job_without_its_word_is_a_miss(gate: Gate) -> None:
    gate.do("poweron")
    gate.shared.consoles[BOARD].say(BANNER + b"login: \r\n")
    gate.do("poweroff")
    (result,) = newest().summary().results
    assert result.verdict is Verdict.MISS and result.reason == (
        f"{BOARD}: the job powered the board off, and no line had said /test passed/; its last line: login:"
    )
    assert newest().header().exit_status == 3


def test_a_lost_connection_leaves_a_result(gate: Gate) -> None:
    """The script's machine died: nobody will power the board off."""
    assert gate.ssh("gitlabci", "poweron").returncode == 0
    lease = gate.shared.ledger.lease_of(BOARD)
    assert lease and lease.until and lease.until < time.time() + controller.GRACE + 1
    reader = gate.start("console")
    gate.shared.consoles[BOARD].say(BANNER)
    assert reader.stdout and reader.stdout.readline() == BANNER.splitlines(keepends=True)[0]
    reader.kill()
    reader.communicate()
    folder = run_of(gate.shared)
    wait_until(lambda: folder.header().finished, 20.0, "the end is noted")
    (result,) = folder.summary().results
    assert result.verdict is Verdict.MISS and "the job left the console" in result.reason
    assert junit(folder).find("error") is not None
    # The next job begins with the board's power cycled.
    before = len(gate.shared.chassis[BOARD].calls())
    assert gate.ssh("poweron").returncode == 0
    assert [words for words in calls_since(gate.shared, before) if words[0] == "power"] == [
        ["power", "0"],
        ["power", "1"],
    ]
    assert run_of(gate.shared).path != folder.path
    assert "another job began" in " ".join(folder.header().notes)


def test_a_crash_after_the_word_fails_the_job_all_the_same(gate: Gate) -> None:
    """The script left when it had its word; the board crashed before it was powered off."""
    gate.do("poweron")
    reader = gate.start("console")
    gate.shared.consoles[BOARD].say(b"ping test passed\r\n")
    assert reader.stdout and reader.stdout.readline() == b"ping test passed\r\n"
    reader.kill()
    reader.communicate()
    folder = run_of(gate.shared)
    wait_until(lambda: folder.header().finished, 20.0, "the end is noted")
    gate.shared.consoles[BOARD].say(BANNER + DEATH)
    wait_until(lambda: heard(gate.shared, "Reboot in five"), 10.0, "the recorder has it")
    gate.do("poweroff")
    assert [(one.verdict, one.attempt) for one in folder.results()] == [(Verdict.PASS, 1), (Verdict.FAIL, 2)]
    assert folder.header().exit_status == 1 and junit(folder).find("failure") is not None


def test_a_console_that_is_read_again_takes_no_pass_away(gate: Gate) -> None:
    gate.do("poweron")
    gate.shared.consoles[BOARD].say(b"ping test passed\r\n")
    for _ in range(2):
        reader = gate.start("console")
        gate.shared.consoles[BOARD].say(b"here\r\n")
        assert reader.stdout and reader.stdout.readline()
        reader.kill()
        reader.communicate()
        wait_until(lambda: run_of(gate.shared).header().finished, 20.0, "the end is noted")
    gate.do("poweroff")
    assert [one.verdict for one in newest().results()] == [Verdict.PASS]


def test_a_guest_may_say_the_word_by_which_a_job_passes(gate: Gate) -> None:
    """In Xen's jobs with PCI devices only the guest says it; and their script takes it from whoever says it."""
    gate.do("poweron")
    gate.shared.consoles[BOARD].say(b"(domU) pci test passed\r\n")
    wait_until(lambda: heard(gate.shared, "pci test passed"), 10.0, "the recorder has it")
    gate.do("poweroff")
    assert [one.verdict for one in newest().results()] == [Verdict.PASS]


def test_a_board_with_a_folder_of_jobs_boots_from_it_once(gate: Gate, tmp_path: Path) -> None:
    shared = gate.shared
    board = replace(shared.lab.boards[BOARD], boot="network", jobs=str(tmp_path))
    lab = replace(shared.lab, boards=shared.lab.boards | {BOARD: board})
    own = netboot.home(lab, board)
    one = controller.Controller(lab, BOARD, shared.ledger, controller.Wishes())
    with pytest.raises(BenchError, match=r"job\.cfg is not there: `xenlab lab down` and `xenlab lab up` write it"):
        one.answer("poweron")
    assert not note(shared).exists() and shared.chassis[BOARD].get("power") == 0
    own.mkdir(parents=True)
    (own / "job.cfg").write_text("source /gitlab-ci/grub.cfg\n")
    (own / "menu.cfg").write_text("the known-good entry\n")
    try:
        assert one.answer("poweron") == 0
        assert shared.chassis[BOARD].get("boot") == "pxe"
        assert netboot.menu(own) == "set default=job\nset timeout=0\nsource /gitlab-ci/grub.cfg\n"
        assert netboot.menu(own) == "set default=known-good\nset timeout=2\nthe known-good entry\n"
        netboot.choose(own, "job")  # a board that never asked
        assert one.answer("poweroff") == 0
        assert netboot.menu(own).startswith("set default=known-good\n")
    finally:
        shutil.rmtree(own)


def test_a_board_that_cannot_do_what_a_job_needs_is_a_miss(gate: Gate) -> None:
    """And no SKIP, which would be green in JUnit."""
    board = gate.shared.lab.boards[BOARD]
    begun = job.Job(str(job.begin(board).path), 0, False, 0, time.time(), time.time() + 60)
    watch = job.Watch(gate.folder / "faults.json", controller.PASSED)
    _, result = job.record(begun, board, watch, "it was not powered on", MissingCapability(BOARD, "boot device"))
    assert result and result.verdict is Verdict.MISS


def test_a_console_is_read_when_the_board_is_powered_on_and_not_before(gate: Gate) -> None:
    gate.do("poweron")
    noted = job.Job.read(note(gate.shared))
    assert noted
    replace(noted, since=0).write(note(gate.shared))
    done = gate.ssh("console")
    assert done.returncode == 2 and "`poweron` of this job has not ended" in done.stderr


def test_what_a_script_types_goes_to_the_board(gate: Gate) -> None:
    gate.do("poweron")
    reader = gate.start("console", stdin=subprocess.PIPE)
    assert reader.stdin and reader.stdout
    gate.shared.consoles[BOARD].say(b"=>")
    assert reader.stdout.read(2) == b"=>"  # a prompt without a newline
    reader.stdin.write(b"boot\r")
    reader.stdin.flush()
    wait_until(lambda: b"boot\r" in gate.shared.consoles[BOARD].received, 10.0, "it is typed")
    gate.do("poweroff")
    assert reader.wait(10.0) == 0  # the job is over, and its console with it
    reader.communicate()


def test_bytes_come_as_they_are(gate: Gate) -> None:
    gate.do("poweron")
    reader = gate.start("console")
    assert reader.stdout
    gate.shared.consoles[BOARD].say(b"a\r\n")
    assert reader.stdout.read(3) == b"a\r\n"
    wanted = bytes(range(256)) * 40
    gate.shared.consoles[BOARD].say(wanted)
    assert reader.stdout.read(len(wanted)) == wanted
    gate.do("poweroff")
    assert reader.wait(10.0) == 0
    reader.communicate()


# -- leases and power ----------------------------------------------------------------------------------------------


def test_a_board_of_somebody_else_is_not_touched(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.shared.have(BOARD, user="bob")
    monkeypatch.setattr(controller, "PATIENCE", 1.0)
    one = controller.Controller(gate.shared.lab, BOARD, gate.shared.ledger, controller.Wishes())
    before = len(gate.shared.chassis[BOARD].calls())
    with pytest.raises(Exception, match=f"{BOARD}: held by desk/bob; waited 1 s"):
        one.answer("poweron")
    assert calls_since(gate.shared, before) == []
    assert [one.holder for one in gate.shared.ledger.leases()] == ["desk/bob"] and not note(gate.shared).exists()
    (result,) = newest().summary().results
    assert result.verdict is Verdict.MISS and "held by desk/bob" in result.reason
    for word in ("console", "wake", "poweroff"):
        done = gate.ssh(word)
        assert done.returncode == 2 and "no job runs, so nothing is done" in done.stderr


def test_the_callers_own_lease_is_used_and_kept(gate: Gate) -> None:
    number = gate.shared.have(BOARD, user="ci")
    gate.do("poweron")
    gate.do("poweroff")
    assert [one.id for one in gate.shared.ledger.leases()] == [number]


def test_a_second_job_is_refused_while_the_console_is_read(gate: Gate) -> None:
    gate.do("poweron")
    reader = gate.start("console")
    gate.shared.consoles[BOARD].say(b"here\r\n")
    assert reader.stdout and reader.stdout.readline() == b"here\r\n"
    done = gate.ssh("poweron")
    assert done.returncode == 3 and re.search(r"a job runs already: process \d+ reads its console", done.stderr)
    done = gate.ssh("console")
    assert done.returncode == 3 and "the console of this job is read already" in done.stderr
    gate.do("poweroff")
    assert reader.wait(10.0) == 0
    reader.communicate()


def test_a_lease_that_is_taken_away_ends_the_console(gate: Gate) -> None:
    gate.do("poweron")
    reader = gate.start("console")
    gate.shared.consoles[BOARD].say(b"here\r\n")
    assert reader.stdout and reader.stdout.readline() == b"here\r\n"
    (lease,) = gate.shared.ledger.leases("held")
    gate.shared.ledger.end(lease.id, "somebody needed it")
    said, _ = reader.communicate(timeout=60.0)
    assert reader.returncode == 3 and b"lease" in said and b"is over: somebody needed it" in said
    before = len(gate.shared.chassis[BOARD].calls())
    done = gate.ssh("poweroff")
    assert done.returncode == 3 and "is over: somebody needed it" in done.stderr
    assert calls_since(gate.shared, before) == [] and not note(gate.shared).exists()


def test_a_job_is_not_judged_by_what_the_next_holder_does(gate: Gate) -> None:
    gate.do("poweron")
    folder = run_of(gate.shared)
    (lease,) = gate.shared.ledger.leases("held")
    gate.shared.ledger.end(lease.id, "its time is over")
    gate.shared.consoles[BOARD].say(BANNER + DEATH)
    wait_until(lambda: heard(gate.shared, "Reboot in five"), 10.0, "the recorder has it")
    assert gate.ssh("poweroff").returncode == 3
    (result,) = folder.results()
    assert result.verdict is Verdict.MISS and "is over: its time is over" in result.reason
    assert not result.fingerprint


def test_power_that_does_not_switch_is_a_miss_with_a_junit(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IpmiBmc.power_on, "__defaults__", (3.0,))  # seconds
    one = controller.Controller(gate.shared.lab, BOARD, gate.shared.ledger, controller.Wishes())
    gate.shared.chassis[BOARD].set(ignores=1000)
    with pytest.raises(PowerTimeout, match=f"^{BOARD}: chassis power not on") as raised:
        one.answer("poweron")
    gate.shared.chassis[BOARD].set(ignores=0)
    (result,) = newest().summary().results
    assert result.verdict is Verdict.MISS and junit(newest()).find("error") is not None
    assert not note(gate.shared).exists() and gate.shared.ledger.board(BOARD).quarantine == "power on failed"
    assert Simulator.password not in (newest().path / "junit.xml").read_text() + str(raised.value)


def test_a_job_boots_from_where_it_was_told(gate: Gate) -> None:
    gate.allow("--boot pxe --passed 'all is well'")
    assert gate.ssh("poweron").returncode == 0
    assert gate.shared.chassis[BOARD].get("boot") == "pxe"
    gate.shared.consoles[BOARD].say(b"all is well\r\n")
    wait_until(lambda: heard(gate.shared, "all is well"), 10.0, "the recorder has it")
    assert gate.ssh("poweroff").returncode == 0
    assert newest().summary().results[0].verdict is Verdict.PASS


def heard(shared: Shared, text: str) -> bool:
    with Console.of(shared.lab.boards[BOARD]) as console:
        return any(text in one.text for one in console.lines(console.mark() - 5))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [("--passed '['", "invalid pattern '['"), ("--boot floppy", "floppy"), ("--for 7am", "invalid duration '7am'")],
)
def test_wrong_options_are_said_before_anything_happens(gate: Gate, options: str, wanted: str) -> None:
    gate.allow(options)
    done = gate.ssh("poweron")
    assert done.returncode == 2 and wanted in done.stderr and len(done.stderr.splitlines()) == 1
    assert gate.shared.ledger.leases() == []


# -- the past and the present of a console -------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.6])
def test_past_and_present_of_a_console_join(record: Callable[..., Recording], pause: float) -> None:
    """Whoever begins to read in the middle of a line gets each line whole, and once, while the console says more."""
    with closing(Wire()) as wire:
        spec = ConsoleSpec("tcp", free_port(), free_port(), host="127.0.0.1", port=wire.port)
        with record(spec).console() as console:
            since, stop, said = console.mark(), threading.Event(), bytearray()

            def speak() -> None:
                for number in itertools.count():
                    for part in (b"line %d " % number, b"ends\r\n"):
                        wire.say(part)
                        said.extend(part)
                        if stop.wait(pause):
                            return

            speaker = threading.Thread(target=speak)
            speaker.start()
            try:
                for _ in range(5 if pause else 2):  # without a pause it is a flood, and each time all of it is read
                    time.sleep(0.2 + pause / 2)
                    with console.attach() as line:
                        got = catch_up(console, line, since)
                        size, line_end = len(got), time.monotonic() + 0.3
                        line.settimeout(5.0)
                        while time.monotonic() < line_end or len(got) == size:
                            got += line.recv(65536)
                    assert bytes(said[: len(got)]) == got[: len(said)]
            finally:
                stop.set()
                speaker.join()
