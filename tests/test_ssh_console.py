"""A console behind SSH: a real SSH server that asks for a password, in front of a serial line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from consoles import Recording
from free_ports import free_port
from test_console import plugged, record_fixture, texts  # noqa: F401

from lab.base.paths import CHECKOUT
from lab.base.processes import port_is_taken
from lab.base.wait import wait_until
from lab.console.sources.ssh import SshSource
from lab.inventory import ConsoleSpec

PASSWORD = "canary-of-the-console"
Serve = Callable[[str], int]


class Line:
    """The board's end of the serial line, and the BMC in front of it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.board = plugged(stack, folder / "line")
        self.port = free_port()
        (folder / "xenlab").mkdir()
        self.make_key("ed25519")
        self.process: subprocess.Popen[str] | None = None

    def make_key(self, kind: str) -> None:
        """A host key, which the lab knows."""
        for file in (self.folder / "host", self.folder / "host.pub"):
            file.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", self.folder / "host"], check=True)
        kind, key, _ = (self.folder / "host.pub").read_text().split()
        known = self.folder / "xenlab" / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n[other-name]:{self.port} {kind} {key}\n")

    def serve(self, word: str = "", *, old: bool = False, taken: str = "", within: Sequence[str] = ()) -> None:
        """Start the BMC; ``word`` must be typed to get at the line, or ``taken`` is the answer.

        ``within``: a command that runs it.
        """
        self.logins = 0
        program = [*within, sys.executable, Path(__file__).with_name("bmc_shell.py"), str(self.port)]
        self.process = subprocess.Popen(
            [*program, self.folder / "host", os.readlink(self.folder / "line")],
            env=os.environ | {"PASSWORD": PASSWORD, "WORD": word, "OLD": "1" * old, "TAKEN": taken},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self.stop)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"
        self._reader = threading.Thread(target=self._count, args=(self.process.stdout,))
        self._reader.start()

    def _count(self, said: IO[str]) -> None:
        for line in said:
            self.logins += line.startswith("login ")

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            process.kill()
            self._reader.join()
            process.wait()
            assert process.stdout
            process.stdout.close()

    def spec(self, entry: str = "", host: str = "127.0.0.1", **more: Any) -> ConsoleSpec:
        return ConsoleSpec("ssh", 0, 0, host=host, port=self.port, credential="console", entry=entry, **more)

    def environment(self, password: str = PASSWORD) -> dict[str, str]:
        return {"XDG_CONFIG_HOME": str(self.folder), "XENLAB_CREDENTIAL_CONSOLE": f"lab:{password}"}


@pytest.fixture(name="line")
def line_fixture(tmp_path: Path) -> Iterator[Line]:
    with contextlib.ExitStack() as stack:
        yield Line(tmp_path, stack)


@pytest.mark.parametrize("word", ["", "console com2"])
def test_a_console_behind_ssh_is_read_and_written(line: Line, record: Callable[..., Recording], word: str) -> None:
    """Byte by byte, ssh's own escapes and a terminal's line discipline in no way of it."""
    line.serve(word)
    recording = record(line.spec(word), environment=line.environment())
    with recording.console() as console:
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)
        mark = console.mark()

        def is_through() -> bool:  # the way to the line takes a moment
            os.write(line.board, b"\xff login: \xf0\r\n")
            return any(one.text.endswith("\\xff login: \\xf0") for one in console.lines(mark))

        wait_until(is_through, 20.0, "the line is read", interval=0.5)
        wanted = b"t\xff\x00\r~.\r~?\x03"
        console.send(wanted)
        got = b""
        while len(got) < len(wanted):
            got += os.read(line.board, 100)
        assert got == wanted


def test_no_argument_log_or_file_has_the_password(line: Line, record: Callable[..., Recording]) -> None:
    line.serve()
    recording = record(line.spec(), environment=line.environment())
    with recording.console() as console:
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)
    tasks = Path(f"/proc/{recording.process.pid}/task").glob("*/children")
    (child,) = [int(child) for task in tasks for child in task.read_text().split()]
    command = Path(f"/proc/{child}/cmdline").read_bytes()
    assert command.startswith(b"ssh\0") and PASSWORD.encode() not in command
    for path in (recording.log, recording.log.with_name("recorder.json")):
        assert PASSWORD.encode() not in path.read_bytes()


def test_a_bmc_that_was_restarted_is_logged_into_again(line: Line, record: Callable[..., Recording]) -> None:
    line.serve()
    with record(line.spec(), environment=line.environment()).console() as console:
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)
        mark = console.mark()
        line.stop()
        wait_until(lambda: not console.is_connected(), 20.0, "the loss", interval=0.05)
        line.serve()
        wait_until(console.is_connected, 40.0, "the session again", interval=0.05)
        kinds = [one.kind for one in console.lines(mark)]
        assert set(kinds[:-1]) == {"gap"} and kinds[-1] == "open"


@pytest.mark.parametrize("what", ["password", "host key", "silence"])
def test_what_keeps_us_out_is_said_in_the_gap(line: Line, record: Callable[..., Recording], what: str) -> None:
    if what != "silence":
        line.serve()
    if what == "host key":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", line.folder / "other"], check=True)
        kind, key, _ = (line.folder / "other.pub").read_text().split()
        (line.folder / "xenlab" / "known_hosts").write_text(f"[127.0.0.1]:{line.port} {kind} {key}\n")
    environment = line.environment("canary-wrong" if what == "password" else PASSWORD)
    with record(line.spec(), environment=environment).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        gap = texts(console.lines(0), "gap")[0]
    said = {"password": "Permission denied", "host key": "verification failed", "silence": "Connection refused"}
    assert gap.startswith(f"ssh 127.0.0.1:{line.port}: ") and said[what] in gap
    assert "canary" not in gap


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (
            "Virtual Serial Port is currently in use by another session.",
            "Virtual Serial Port is currently in use by another session.",
        ),
        (  # SMASH CLP, DSP0214, 5.2
            "status=2\r\nstatus_tag=COMMAND PROCESSING FAILED\r\nerror_tag=COMMAND NOT RECOGNIZED",
            "COMMAND PROCESSING FAILED error_tag=COMMAND NOT RECOGNIZED",
        ),
    ],
    ids=["in use", "not known"],
)
def test_a_line_that_is_not_to_be_had_is_not_taken_for_the_console(
    line: Line, record: Callable[..., Recording], taken: str, said: str
) -> None:
    """A BMC's own prompt stands behind its refusal: what is typed there is not typed at the board."""
    line.serve("vsp", taken=taken)
    with record(line.spec("vsp"), environment=line.environment()).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        (gap, *_) = texts(console.lines(0), "gap")
    assert gap.endswith(f": vsp: {said}")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Offending RSA key in /k:3\nHost key for 192.0.2.1 has changed and you have requested strict checking.\n"
            "Host key verification failed.",
            "Host key for 192.0.2.1 has changed and you have requested strict checking. Host key verification failed.",
        ),
        (
            "Received disconnect from 192.0.2.1 port 22:11: Logged out.\nDisconnected from 192.0.2.1 port 22",
            "Received disconnect from 192.0.2.1 port 22:11: Logged out.",
        ),
        (
            "** WARNING: connection is not using a post-quantum key exchange algorithm.\n"
            "** This session may be vulnerable to later attacks.\nTimeout, server 192.0.2.1 not responding.",
            "Timeout, server 192.0.2.1 not responding.",
        ),
        (
            "Timeout, server 192.0.2.1 not responding.\n** The server may need to be upgraded.\n"
            "Connection to 192.0.2.1 closed.",
            "Timeout, server 192.0.2.1 not responding.",
        ),
        ("** The server may need to be upgraded.\nConnection to 192.0.2.1 closed.", "Connection to 192.0.2.1 closed."),
    ],
)
def test_the_reason_is_told_from_what_ssh_says_beside_it(line: Line, said: str, reason: str) -> None:
    """Words of OpenSSH 9.2 and 10.1."""
    assert str(SshSource(line.spec())._explained(said.splitlines())).partition(": ")[2] == reason


OLD = {"KexAlgorithms": "+diffie-hellman-group14-sha1", "HostKeyAlgorithms": "+ssh-rsa", "Ciphers": "+aes128-cbc"}


def gap(record: Callable[..., Recording], line: Line, spec: ConsoleSpec) -> str:
    recording = record(spec, environment=line.environment())
    with recording.console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        found = texts(console.lines(0), "gap")[0]
    recording.stop()
    recording.log.unlink()
    return found


def test_an_old_bmc_is_read_when_its_entry_allows_its_algorithms(line: Line, record: Callable[..., Recording]) -> None:
    line.make_key("rsa")
    line.serve(old=True)
    with record(line.spec(ssh_options=OLD), environment=line.environment()).console() as console:
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)
        mark = console.mark()

        def is_through() -> bool:
            os.write(line.board, b"GNU GRUB\r\n")
            return "GNU GRUB" in texts(console.lines(mark))

        wait_until(is_through, 20.0, "the line is read", interval=0.5)


@pytest.mark.parametrize(
    ("allowed", "lacking", "option"),
    [
        ((), "key exchange method", "{KexAlgorithms: +diffie-hellman-group14-sha1}"),
        (("KexAlgorithms",), "host key type", "{HostKeyAlgorithms: +ssh-rsa}"),
        (("KexAlgorithms", "HostKeyAlgorithms"), "cipher", "{Ciphers: +aes128-cbc}"),
    ],
)
def test_what_an_old_bmc_lacks_is_said_with_the_option_that_allows_it(
    line: Line, record: Callable[..., Recording], allowed: tuple[str, ...], lacking: str, option: str
) -> None:
    """Step by step, as somebody who racks one finds it out; the server is OpenSSH's own."""
    if not (sshd := shutil.which("sshd", path="/usr/sbin")):
        pytest.skip("needs openssh-server")
    line.make_key("rsa")
    config = line.folder / "sshd_config"
    config.write_text(
        f"Port {line.port}\nListenAddress 127.0.0.1\nHostKey {line.folder / 'host'}\nPidFile none\nMACs hmac-sha1\n"
        "KexAlgorithms diffie-hellman-group14-sha1\nHostKeyAlgorithms ssh-rsa\nCiphers aes128-cbc\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: port_is_taken(line.port), 10.0, "sshd listens", interval=0.05)
        said = gap(record, line, line.spec(ssh_options={name: OLD[name] for name in allowed}))
    finally:
        server.terminate()
        server.wait(10)
    assert f"no matching {lacking} found. Their offer: " in said
    assert said.endswith(f"; console.ssh_options: {option} in the inventory allows it")


def test_a_configuration_file_of_ssh_is_read_where_the_entry_names_it(
    line: Line, record: Callable[..., Recording], tmp_path: Path
) -> None:
    line.serve()
    assert "Could not resolve hostname other-name" in gap(record, line, line.spec(host="other-name"))
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    config = tmp_path / "home" / ".ssh" / "config"
    config.write_text("Host other-name\n  HostName 127.0.0.1\n  LogLevel QUIET\n  StrictHostKeyChecking no\n")
    environment = line.environment() | {"HOME": str(tmp_path / "home")}
    spec = line.spec(host="other-name", ssh_config="~/.ssh/config")
    recording = record(spec, environment=environment)
    with recording.console() as console:
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)
    recording.stop()
    recording.log.unlink()
    line.make_key("ed25519")  # what the lab knows is not what the server has: the file does not change that
    assert "verification failed" in gap(record, line, replace(spec, ssh_config=str(config)))
    missing = line.spec(ssh_config=str(tmp_path / "missing"))
    assert "No such file or directory" in gap(record, line, missing)


def test_a_host_on_the_way_is_not_told_the_consoles_password(line: Line) -> None:
    """What ssh calls for a password is asked by each ssh that a configuration file starts."""
    askpass = CHECKOUT / "lab" / "console" / "askpass"
    environment = {"XENLAB_CONSOLE_PASSWORD": PASSWORD, "XENLAB_CONSOLE_LOGIN": "lab@bmc"}
    for prompt, status, said in (
        ("lab@bmc's password: ", 0, PASSWORD),
        ("(lab@bmc) Password:", 0, PASSWORD),
        ("me@jump's password: ", 1, ""),
    ):
        done = subprocess.run([askpass, prompt], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (status, said)


def test_a_login_that_is_refused_is_not_tried_again_and_again(line: Line, record: Callable[..., Recording]) -> None:
    """BMCs lock accounts. Once the racker has put the password right it is tried at once."""
    line.serve()
    file = line.folder / "xenlab" / "credentials.yaml"
    file.write_text('console: {user: lab, password: "canary-wrong"}\n')
    file.chmod(0o600)
    with record(line.spec(), environment={"XDG_CONFIG_HOME": str(line.folder)}).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        tried = line.logins
        assert 1 <= tried <= 2, "ssh may ask by two methods in one connection"
        time.sleep(6.0)  # the longest pause between two attempts to open another source is 5 s
        assert line.logins == tried
        file.write_text(f'console: {{user: lab, password: "{PASSWORD}"}}\n')
        wait_until(console.is_connected, 20.0, "the session", interval=0.05)


def test_a_bmc_that_is_away_is_tried_again_soon(line: Line, record: Callable[..., Recording]) -> None:
    with record(line.spec(), environment=line.environment()).console() as console:
        wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        line.serve()
        wait_until(console.is_connected, 30.0, "the session", interval=0.05)
