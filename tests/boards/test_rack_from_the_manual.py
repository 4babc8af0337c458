"""Three unlike machines go from docs/rack.md, step 7 on, to `board accept`: probe, entry, doctor, check, accept.

Each machine is a virtual board, of which nothing here is told to the lab. Around it stands what a rack has: its own
BMC with SOL; a Redfish service of another make beside that SOL; a switched outlet and a serial adapter.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import CommandLine
from lab.base import paths
from lab.base.wait import wait_until
from lab.virtual import chassis, tls

sys.path.insert(0, str(Path(__file__).parents[1]))
from free_ports import free_port
from redfish_zoo import HABITS, PASSWORD, SHAPES, USER, Answer, Habits, Zoo
from test_power import Pdu
from test_steel import BLOCK, RACK

pytestmark = pytest.mark.slow  # not part of CI: six minutes each

BMC_LOGIN = "lab:canary-K8d3"
# What the racker knows of this machine and no probe can see: its console is com1, and it is slow, as emulated ones are.
XEN_OPTIONS, DOM0_OPTIONS = "spec-ctrl=no iommu=no-sharept", "mitigations=off"
KINDS = {
    "On": ("power 1",),
    "ForceOff": ("power 0",),
    "ForceRestart": ("reset 1",),
    "GracefulShutdown": ("shutdown 1",),
    "PushPowerButton": ("button 1",),
    "PowerCycle": ("power 0", "power 1"),
    "Nmi": ("nmi 1",),
    "ForceOn": ("power 1",),
}


class Machine:
    """A machine in its rack, its power off."""

    def __init__(self, folder: Path, xenlab: CommandLine) -> None:
        self._xenlab, self._folder = xenlab, folder
        self.outlet: Pdu | None = None
        tree = yaml.safe_load((paths.CHECKOUT / "inventory" / "virtual.yaml").read_text(encoding="utf-8"))
        name, host = next(iter(tree["all"]["children"]["boards"]["hosts"].items()))
        self.name, self.ssh, own = name, free_port(), host["xenlab"]
        host["ansible_port"] = self.ssh
        self.ipmi = next(port for _ in range(99) if not _taken((port := free_port(socket.SOCK_DGRAM)) + 6))
        self.serial = free_port()
        own["bmc"]["port"], own["virtual"]["serial_port"] = self.ipmi, self.serial
        own["virtual"]["link_port"] = free_port(socket.SOCK_DGRAM)
        own["console"] = {"via": "sol", "serve_port": free_port(), "lines_port": free_port()}
        del own["link"]
        own["capabilities"] = [word for word in own["capabilities"] if word != "migration-pair"]
        tree["all"]["children"]["boards"]["hosts"] = {name: host}
        tree["all"]["vars"]["xenlab"] = {"lab": "machines"}
        self._declared = folder / "machines.yaml"
        self._declared.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def start(self) -> None:
        done = self._xenlab(
            "start", str(self._folder / "boards"), str(self._declared), str(os.getpid()), code=("-c", RACK)
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        self._xenlab("stop", str(self._folder / "boards"), code=("-c", RACK))

    def ask(self, request: str) -> str:
        """Its mainboard."""
        return chassis.ask(self._folder / "boards" / self.name / "control.sock", request)

    def switch_off(self) -> None:
        """As its racker does: by its button, or by its outlet."""
        self.ask("set power 0")
        if self.outlet:
            self.outlet.on = False

    def switch_on(self) -> None:
        """The button at its front; then dom0 is waited for."""
        self.ask("set power 1")

        def has_come_up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ssh), 5.0) as link:
                link.settimeout(5.0)
                return link.recv(4) == b"SSH-"
            return False

        wait_until(has_come_up, 300.0, "dom0 answers", interval=2.0)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(name="machine")
def machine_fixture(xenlab: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for word in ("VIRTUAL_BMC", "RACK_BMC"):
        monkeypatch.setitem(xenlab.environment, f"XENLAB_CREDENTIAL_{word}", BMC_LOGIN)
    monkeypatch.setitem(xenlab.environment, "XENLAB_CREDENTIAL_MAKER_BMC", f"{USER}:{PASSWORD}")
    machine = Machine(tmp_path, xenlab)
    machine.start()
    (blocked / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")  # from here on nobody knows what it is made of
    monkeypatch.setitem(xenlab.environment, "PYTHONPATH", f"{blocked}:{paths.CHECKOUT}")
    try:
        yield machine
    finally:
        monkeypatch.setitem(xenlab.environment, "PYTHONPATH", str(paths.CHECKOUT))
        machine.stop()


@contextlib.contextmanager
def redfish_of(machine: Machine, folder: Path, shape: str) -> Iterator[Zoo]:
    """A Redfish service in a maker's shape, over TLS, whose last system is this machine."""
    tree = SHAPES[shape]()
    own = next(path for path in reversed(tree) if re.fullmatch(r"Systems/[^/]+", path))
    service = Zoo(tree, Habits(**HABITS[shape], keeps_state=True))
    for path, resource in tree.items():
        if path.startswith("Managers/"):
            resource["DateTime"] = datetime.now(UTC).isoformat()
    certificate = tls.make(folder, "bmc")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls.pair(folder))
    assert certificate == tls.pair(folder)[0]
    service._server.socket = context.wrap_socket(service._server.socket, server_side=True)

    def instead(request: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if not service._is_logged_in(request):
            return None
        if path == own:
            tree[path]["PowerState"] = "On" if machine.ask("get power") == "1" else "Off"
        if method == "POST" and path == f"{own}/Actions/ComputerSystem.Reset":
            for wire in KINDS[body["ResetType"]]:
                machine.ask(f"set {wire}")
            return 204, None, {}
        return None

    service.instead = instead
    try:
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def adapter_of(machine: Machine, folder: Path) -> Iterator[Path]:
    """A serial adapter at the machine's port."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    link = folder / "adapter"
    link.symlink_to(os.ttyname(theirs))
    line = socket.create_connection(("127.0.0.1", machine.serial))
    is_over = threading.Event()

    def carry() -> None:
        while not is_over.is_set():
            ready, _, _ = select.select([ours, line], [], [], 0.2)
            if ours in ready:
                line.sendall(os.read(ours, 4096))
            if line in ready:
                os.write(ours, line.recv(4096))

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield link
    finally:
        is_over.set()
        thread.join(5.0)
        line.close()
        for handle in (ours, theirs):
            os.close(handle)


class Racker:
    """Who has docs/rack.md, and nothing else; says what each command said."""

    def __init__(self, xenlab: CommandLine, machine: Machine, folder: Path) -> None:
        self._xenlab, self._machine = xenlab, machine
        self.file, self._log = folder / "rack.yaml", folder / "said.log"
        self.file.write_text(
            yaml.safe_dump({"all": {"vars": {"xenlab": {"lab": "rack", "coordinator": f"127.0.0.1:{free_port()}"}}}})
        )

    def call(self, *words: str, timeout: float = 1400.0) -> str:
        done = self._xenlab(*words, "--inventory", str(self.file), timeout=timeout)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ xenlab {' '.join(words)}\n{done.stdout}{done.stderr}-> {done.returncode}\n")
        assert done.returncode == 0, f"{words}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def probe(self, *words: str) -> dict[str, Any]:
        """Step 7: the entry as it is printed, put into the file and given the console's ports."""
        address = ("board", "probe", "root@127.0.0.1", "--port", str(self._machine.ssh), "--name", "new1")
        entry: dict[str, Any] = yaml.safe_load(self.call(*address, *words))["new1"]
        own = entry["xenlab"]
        own["console"] |= {"serve_port": free_port(), "lines_port": free_port()}
        own["xen_options"], own["dom0_options"] = XEN_OPTIONS, DOM0_OPTIONS
        return entry

    def enter(self, entry: dict[str, Any]) -> None:
        tree = yaml.safe_load(self.file.read_text())
        tree["all"]["hosts"] = {"new1": entry}
        self.file.write_text(yaml.safe_dump(tree, sort_keys=False))

    def accept(self) -> None:
        """Steps 7 and 8, in the order of the page."""
        assert self.call("boards").startswith("new1 ")
        assert "BAD" not in self.call("doctor")
        self.call("lab", "up")
        try:
            wait_until(lambda: "console of new1" in self.call("lab", "status"), 60.0, "the lab is up", interval=2.0)
            wait_until(lambda: "GONE" not in self.call("lab", "status"), 60.0, "the console is read", interval=2.0)
            self._machine.switch_off()  # step 8: one that is on must have spoken since the lab is up
            assert "BAD" not in self.call("board", "check", "new1", "--quick")
            assert self.call("board", "check", "new1").splitlines()[-1] == "new1 is checked"
            assert self.call("board", "accept", "new1").splitlines()[-1] == "accepted: new1"
        finally:
            self.call("lab", "down")


@pytest.fixture(name="racker")
def racker_fixture(xenlab: CommandLine, machine: Machine, tmp_path: Path) -> Racker:
    return Racker(xenlab, machine, tmp_path)


def test_ipmi_and_sol(racker: Racker, machine: Machine) -> None:
    machine.switch_on()
    entry = racker.probe("--bmc", f"127.0.0.1:{machine.ipmi}", "--credential", "rack-bmc")
    assert entry["xenlab"]["console"]["via"] == "sol" and entry["xenlab"]["bmc"]["cipher"] == 3
    racker.enter(entry)
    racker.accept()


@pytest.mark.parametrize("shape", SHAPES)
def test_power_by_redfish_and_the_console_by_sol(racker: Racker, machine: Machine, tmp_path: Path, shape: str) -> None:
    machine.switch_on()
    with redfish_of(machine, tmp_path, shape) as service:
        entry = racker.probe("--bmc", f"127.0.0.1:{service.port}", "--credential", "maker-bmc")
        own = entry["xenlab"]
        assert own["bmc"]["protocol"] == "redfish"
        assert (own["console"]["via"] == "ssh") == (shape in ("dell", "openbmc")), "as Redfish says"
        fetch = (
            f"openssl s_client -connect 127.0.0.1:{service.port} </dev/null | openssl x509 > {tmp_path}/bmc-new1.pem"
        )
        subprocess.run(["sh", "-c", fetch], check=True, capture_output=True, timeout=30)
        own["bmc"] |= {"tls": "pinned", "ca_file": "bmc-new1.pem"}
        if shape == "cray":  # of two systems
            own["bmc"]["system"] = "Node1"
        ports = {key: own["console"][key] for key in ("serve_port", "lines_port")}
        own["console"] = {"via": "sol", "ipmi": {"port": machine.ipmi, "credential": "rack-bmc"}, **ports}
        if shape in ("supermicro", "dell", "hpe", "lenovo", "openbmc"):  # these offer it
            own["capabilities"].append("bmc-nmi")
        racker.enter(entry)
        racker.accept()
        kinds = set(service.resets())
    assert {"On", "ForceOff"} <= kinds, "the lab's power went by Redfish"


def test_an_outlet_and_a_serial_adapter(racker: Racker, machine: Machine, tmp_path: Path) -> None:
    machine.switch_on()
    pdu = Pdu(lambda on: machine.ask(f"set power {int(on)}") and None)  # its firmware: power on after mains loss
    machine.outlet = pdu
    with contextlib.closing(pdu), adapter_of(machine, tmp_path) as adapter:
        entry = racker.probe()
        own = entry["xenlab"]
        assert own["bmc"] == {"protocol": "none"} and own["console"]["via"] == "device"
        own["pdu"] = {"model": pdu.spec.model, "host": pdu.spec.host, "outlet": pdu.spec.outlet}
        own["console"] |= {"device": str(adapter), "speed": 115200}
        assert "s5" not in own["capabilities"], "an outlet cannot tell"
        racker.enter(entry)
        racker.accept()
    assert False in pdu.commands and pdu.on
