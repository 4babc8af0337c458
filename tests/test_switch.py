"""The port of a managed switch, by a real SNMP agent (net-snmp) that switches a real network interface.

Agent and interfaces live in a network namespace of their own, and so do those that ask: no root is needed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.base import paths
from lab.base.wait import wait_until

PASSWORD = "canary-of-the-switch"
CONFIG = f"""\
agentaddress udp:127.0.0.1:1161
rocommunity readers-only
rwcommunity {PASSWORD}
createUser lab SHA {PASSWORD} AES {PASSWORD}
createUser newer SHA-256 {PASSWORD} AES {PASSWORD}
rwuser lab priv
rwuser newer priv
"""
# sw0 has a carrier as long as somebody holds its tap open; sw1 has nobody at its other end.
SCENE = """
import fcntl, struct, subprocess, sys
ip = lambda *words: subprocess.run(["ip", *words], check=True)
ip("link", "set", "lo", "up")
held = []
for name in ("sw0", "sw1"):
    tap = open("/dev/net/tun", "r+b", buffering=0)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", name.encode(), 0x1002))
    ip("link", "set", name, "up")
    held.append(tap)
agent = subprocess.Popen(["/usr/sbin/snmpd", "-f", "-C", "-c", sys.argv[1], "-Lf", sys.argv[2], "-p", sys.argv[3]])
print("ready", flush=True)
sys.stdin.read()
agent.kill()
"""
ASK = """
import dataclasses, json, sys
from lab.base.errors import LabError
from lab.grid.switch import SwitchPort
from lab.inventory import SwitchSpec
def port(**other):
    spec = {"host": "127.0.0.1", "port": "sw0", "credential": "switch", "udp_port": 1161}
    return SwitchPort("pair-a", SwitchSpec(**spec | other))
def say(what):
    print(json.dumps(what), flush=True)
"""
Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module", name="ask")
def ask_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs a script beside the agent; what it says."""
    tmp_path = tmp_path_factory.mktemp("switch")
    config = tmp_path / "snmpd.conf"
    config.write_text(CONFIG)
    command = ["unshare", "-rn", sys.executable, "-c", SCENE, config, tmp_path / "agent.log", tmp_path / "agent.pid"]
    environment = os.environ | {"SNMP_PERSISTENT_DIR": str(tmp_path), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as scene:
        assert scene.stdout and scene.stdin and scene.stdout.readline() == "ready\n"

        def run(script: str, user: str = "lab", password: str = PASSWORD) -> list[Any]:
            inside = ["nsenter", "-t", str(scene.pid), "-U", "-n", "--preserve-credentials"]
            said = subprocess.run(
                [*inside, sys.executable, "-W", "error", "-P", "-c", ASK + textwrap.dedent(script)],
                env=paths.environment() | {"XENLAB_CREDENTIAL_SWITCH": f"{user}:{password}"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert said.returncode == 0, said.stderr
            assert password not in said.stdout + said.stderr
            return [json.loads(line) for line in said.stdout.splitlines()]

        try:
            log = tmp_path / "agent.log"
            wait_until(lambda: log.exists() and "NET-SNMP version" in log.read_text(), 20, "the agent answers")
            yield run
        finally:
            scene.stdin.close()
            try:
                scene.wait(10)
            except subprocess.TimeoutExpired:
                scene.send_signal(signal.SIGKILL)


SWITCHED = """
one = port({keys})
say([one.is_up(), one.has_carrier()])
one.down()
say([one.is_up(), one.has_carrier()])
one.up()
say([one.is_up(), one.has_carrier()])
"""


@pytest.mark.parametrize(
    ("user", "keys"), [("lab", ""), ("newer", "auth='sha256'"), ("", "snmp='2c'")], ids=["sha", "sha256", "2c"]
)
def test_a_port_is_switched_off_and_on(ask: Ask, user: str, keys: str) -> None:
    said = ask(SWITCHED.format(keys=keys), user or "nobody")
    assert said == [[True, True], [False, False], [True, True]]


def test_a_cut_ends_by_itself_or_earlier_when_asked(ask: Ask) -> None:
    said = ask(
        """
        import time
        one = port()
        one.cut(2.0)
        say(one.is_up())
        started = time.monotonic()
        while not one.has_carrier() and time.monotonic() < started + 20:
            time.sleep(0.1)
        say(time.monotonic() - started)
        one.restore()
        one.cut(600)
        say(one.is_up())
        one.restore()
        say(one.has_carrier())
        """
    )
    assert said[0] is False
    assert 1.0 < said[1] < 15
    assert said[2:] == [False, True]


@pytest.mark.parametrize(
    ("script", "user", "password", "why"),
    [
        ("port(port='sw7').is_up()", "lab", PASSWORD, "no port 'sw7'; it has: lo, sw0, sw1"),
        ("port(udp_port=1162).is_up()", "lab", PASSWORD, "No SNMP response received"),
        ("port().is_up()", "lab", "not-its-password", "Wrong SNMP PDU digest"),
        ("port().is_up()", "stranger", PASSWORD, "Unknown USM user"),
        ("port(snmp='2c').down()", "nobody", "readers-only", "noAccess"),
    ],
    ids=["port", "silent", "password", "user", "read only"],
)
def test_what_goes_wrong_is_said(ask: Ask, script: str, user: str, password: str, why: str) -> None:
    code = f"try:\n    {script}\nexcept LabError as error:\n    say([type(error).__name__, str(error)])\n"
    ((kind, said),) = ask(code, user, password)
    assert kind == "SwitchFailed"
    assert why in said and "pair-a: switch 127.0.0.1" in said


def test_a_port_that_gets_no_carrier_is_said(ask: Ask) -> None:
    """The board's end is out: the switch does what it is told, and the link does not come back."""
    said = ask(
        """
        import os
        import lab.grid.switch
        lab.grid.switch.TRAINED = 2.0
        os.system("ip link set sw1 down; ip tuntap del dev sw1 mode tap 2>/dev/null; ip link set sw1 carrier off")
        one = port(port="sw1")
        try:
            one.cut(600)
            one.restore()
        except LabError as error:
            say(str(error))
        """
    )
    assert said and "port sw1 has a carrier: not within 2.0 s" in said[0]
