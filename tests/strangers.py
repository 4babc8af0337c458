"""Processes of another user of this machine, for tests of what such a user may not do."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

NOBODY = 65534  # uid and gid; the group is called nogroup on Debian
NEEDS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")

TALKER = """\
import socket, sys
port, word = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
got = b""
try:
    link = socket.create_connection(("127.0.0.1", port), 5.0)
    link.settimeout(float(sys.argv[3]))
    link.sendall(word)
    while data := link.recv(65536):
        got += data
except (TimeoutError, ConnectionError):
    pass
sys.stdout.buffer.write(got)
"""
# Sends and is gone at once: the kernel then holds a socket that no process has.
LEAVER = """\
import socket, sys
try:
    link = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5.0)
    link.sendall(bytes.fromhex(sys.argv[2]))
    link.close()
except ConnectionResetError:
    pass  # refused before a byte passed
"""
SQUATTER = """\
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
sys.stdout.write("ready\\n")
sys.stdout.flush()
got, end = b"", time.monotonic() + float(sys.argv[2])
server.settimeout(0.2)
while time.monotonic() < end:
    try:
        link, _ = server.accept()
        link.settimeout(0.5)
        while data := link.recv(65536):
            got += data
            link.sendall(b'{"next": 1000, "open": true}\\n')
        link.close()
    except (TimeoutError, ConnectionError):
        pass
sys.stdout.write(got.hex() + "\\n")
"""


def run(code: str, *words: object) -> bytes:
    """What a program of nobody's printed."""
    done = subprocess.run(
        _command(code, words), user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, timeout=30, cwd="/"
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def talk(port: int, word: bytes, timeout: float = 1.0) -> bytes:
    """What a port answers nobody, who sends ``word`` and waits for so many seconds."""
    return run(TALKER, port, word.hex(), timeout)


def leave(port: int, word: bytes) -> None:
    """Nobody sends ``word``, and closes at once."""
    run(LEAVER, port, word.hex())


@contextlib.contextmanager
def squatting(port: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Nobody listens on a port; read its last line for what it was sent, in hex."""
    process = subprocess.Popen(
        _command(SQUATTER, (port, seconds)),
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _command(code: str, words: tuple[object, ...]) -> list[str]:
    python = shutil.which(
        "python3", path="/usr/bin:/usr/local/bin"
    )  # an environment in root's home is closed to nobody
    if not python:
        pytest.skip("needs a python3 that every user may run")
    return [python, "-I", "-c", code, *map(str, words)]
