"""A console behind SSH: a real SSH server that asks for a password, in front of a serial line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import Recording
from free_ports import free_port
from test_console import plugged, record_fixture, texts  # noqa: F401

from lab.base.wait import wait_until
from lab.inventory import ConsoleSpec

PASSWORD = "canary-of-the-console"
Serve = Callable[[str], int]


class Line:
    """The board's end of the serial line, and the BMC in front of it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.board = plugged(stack, folder / "line")
        self.port = free_port()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host"], check=True)
        kind, key, _ = (folder / "host.pub").read_text().split()
        (folder / "xenlab").mkdir()
        (folder / "xenlab" / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        self.process: subprocess.Popen[str] | None = None

    def serve(self, word: str = "") -> None:
        """Start the BMC; ``word`` must be typed to get at the line."""
        program = [sys.executable, Path(__file__).with_name("bmc_shell.py"), str(self.port)]
        self.process = subprocess.Popen(
            [*program, self.folder / "host", os.readlink(self.folder / "line")],
            env=os.environ | {"PASSWORD": PASSWORD, "WORD": word},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self.stop)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            process.kill()
            process.communicate()

    def spec(self, entry: str = "") -> ConsoleSpec:
        return ConsoleSpec("ssh", 0, 0, host="127.0.0.1", port=self.port, credential="console", entry=entry)

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
