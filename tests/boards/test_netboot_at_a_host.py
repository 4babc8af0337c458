"""A machine without a disk boots by network at a host: its files come from the lab machine, through SSH alone.

The machine is a virtual board of which the lab knows nothing. Its port is in a network of the host's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from test_two_hosts import TwoHosts, two_fixture  # noqa: F401

from conftest import CommandLine
from lab.base import paths
from lab.base.wait import wait_until
from lab.netboot import ENTRY_IDS

sys.path.insert(0, str(Path(__file__).parents[1]))
from free_ports import free_port

pytestmark = pytest.mark.slow  # not part of CI

SHIPPED = paths.CHECKOUT / "inventory" / "diskless.yaml"
CASE = "testcases/boot/test_build.py::test_build_under_test_runs"
LOGIN = "lab:canary-V5p8"

# The machine, as a racker leaves it: cabled, with mains, its power off.
MACHINE = """\
import asyncio, fcntl, os, struct, sys
from pathlib import Path
from lab import inventory
from lab.base import paths
from lab.virtual import boards, daemon, segment

class Port:
    def __init__(self, board, spec, folder, directory):
        self._name = spec.interface.encode()

    async def start(self):
        self.tap = os.open(segment.TUN, os.O_RDWR)
        request = struct.pack("16sH22x", self._name, segment.IFF_TAP | segment.IFF_NO_PI)
        fcntl.ioctl(self.tap, segment.TUNSETIFF, request)

    async def wait(self):
        await asyncio.Event().wait()

    async def stop(self):
        os.close(self.tap)

daemon.Segment = Port
folder, (name, *_) = Path(sys.argv[1]), (lab := inventory.load(Path(sys.argv[2]))).boards
boards.prepare(lab, folder, paths.state() / "lab" / "ssh")
sys.argv[1:] = [str(folder / name / "daemon.json")]
sys.exit(daemon.main())
"""


def started(stack: ExitStack, words: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process at the host ``left``, which ends with the test."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["ip", "netns", "exec", "xenlab-left", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


@pytest.fixture(name="rack")
def rack_fixture(two: TwoHosts, xenlab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The machine at its host, whose port is on the network it boots from; the inventory that a racker wrote."""
    monkeypatch.setitem(xenlab.environment, "XENLAB_CREDENTIAL_VIRTUAL_BMC", LOGIN)
    tree = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    head, hosts = tree["all"]["vars"]["xenlab"], tree["all"]["hosts"]
    network = head.pop("netboot")
    for words in (
        f"tuntap add dev {network['interface']} mode tap",
        f"address add {network['address']} dev {network['interface']}",
        f"link set {network['interface']} up",
    ):
        subprocess.run(["ip", "-n", "xenlab-left", *words.split()], check=True, timeout=10)
    head |= {"lab": "rack", "coordinator": f"127.0.0.1:{free_port()}"}
    head["hosts"] = {"left": {"ssh": "root@10.213.1.2", "netboot": network}}
    hosts["pxe1"] |= {"ansible_host": "10.0.2.15", "ansible_port": 22}
    own = hosts["pxe1"]["xenlab"]
    own |= {"at": "left", "firmware": own.pop("virtual").get("firmware", "bios")}
    own["console"] |= {"serve_port": free_port(), "lines_port": free_port()}
    declared = tmp_path / "rack.yaml"
    declared.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with ExitStack() as stack:
        place, log = two.folder / "machine", tmp_path / "machine.log"
        place.mkdir()
        environment = xenlab.environment | {"XDG_STATE_HOME": str(place)}
        words = [sys.executable, "-P", "-c", MACHINE, str(place / "boards"), str(SHIPPED)]
        machine = started(stack, words, log, environment)

        def is_there() -> bool:
            assert machine.poll() is None, log.read_text(errors="replace")
            return (place / "boards" / "pxe1" / "ready").exists()

        wait_until(is_there, 600, "the machine has mains")
        yield declared


def test_a_machine_boots_by_network_at_a_host(two: TwoHosts, rack: Path, xenlab: CommandLine, tmp_path: Path) -> None:
    def call(*words: str) -> str:
        done = xenlab(*words, "--inventory", str(rack), timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    log = tmp_path / "dnsmasq.log"
    call("lab", "up")
    try:
        assert "netboot at left" in (said := call("lab", "status")) and "GONE" not in said, said
        there = two.folder / "left" / "state" / "xenlab" / "at" / "rack.left" / "netboot" / "dnsmasq.conf"
        with ExitStack() as stack:
            started(
                stack,
                ["dnsmasq", "--keep-in-foreground", f"--conf-file={there}", "--log-facility=-"],
                log,
                dict(os.environ),
            )
            run = xenlab.nightly(tmp_path / "run", "--inventory", str(rack), "--select", "quick", CASE)
    finally:
        call("lab", "down")
    assert run.status == 0, run.explain()
    assert [record["verdict"] for record in run.results().values()] == ["PASS"], run.explain()
    proofs = [e["body"] for r in run.results().values() for e in r["evidence"] if e["kind"] == "provision"]
    assert any("root=http://10.0.2.2/image/root.squashfs" in said for said in proofs), proofs
    assert "DHCPACK(boards) 10.0.2.15 52:54:00:22:13:00 pxe1" in log.read_text()
    served = (paths.state() / "lab" / "rack" / "netboot-left.log").read_text()
    boots = [line.split()[-1] for line in served.splitlines() if " pxe1 boots " in line]
    assert boots[-1] == ENTRY_IDS["under-test"], boots
