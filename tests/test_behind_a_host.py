"""What only a host reaches: BMCs, an outlet and consoles, in a network of its own behind a real sshd."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from a_host import AHost, Hosts, hosts_fixture, placed  # noqa: F401
from consoles import Wire
from ipmitool_stand_in import StandIn
from redfish_zoo import PASSWORD, USER, MakeZoo, error, zoo_fixture  # noqa: F401
from shared_lab import pytestmark  # noqa: F401
from test_console import SER2NET, plugged
from test_power import Pdu
from test_redfish_oddities import LOGIN, once
from test_ssh_console import PASSWORD as CONSOLE_PASSWORD
from test_ssh_console import Line

from lab import inventory, netboot
from lab.base import paths
from lab.base.errors import BmcUnreachable, PrivilegeRefused, SessionInactive, SessionsExhausted
from lab.base.wait import wait_until
from lab.console.client import Console
from lab.grid import mains, services
from lab.grid.host_power import HostPower
from lab.inventory import BmcSpec
from lab.virtual import simulated, tls

T = TypeVar("T")
CLONE_NEWNET = 0x40000000  # setns(2)


class Apart:
    """A network namespace with a loopback of its own: nobody outside reaches what listens there."""

    def __init__(self) -> None:
        # Programs look up addresses only if the machine has one that is not 127.0.0.1 (getaddrinfo(3), AI_ADDRCONFIG).
        addresses = "".join(f"ip address add {one}/32 dev lo && " for one in ("192.0.2.1", "192.0.2.15"))
        script = f"ip link set lo up && {addresses}echo up && exec sleep 600"
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout and self._process.stdout.readline() == "up\n"
        self._file = f"/proc/{self._process.pid}/ns/net"
        self.words = ("nsenter", f"--net={self._file}")

    def make(self, make: Callable[[], T]) -> T:
        """What is made by a thread in there; its threads are there, too."""

        def run() -> T:
            with open(self._file, "rb") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
            return make()

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(run).result()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@pytest.fixture(name="apart")
def apart_fixture() -> Iterator[Apart]:
    if os.geteuid():
        pytest.skip("needs root, for a network namespace")
    with contextlib.closing(Apart()) as apart:
        yield apart


@pytest.fixture(name="host")
def host_fixture(hosts: Hosts, apart: Apart, monkeypatch: pytest.MonkeyPatch) -> AHost:
    """A host whose xenlab has that network."""
    (host,) = hosts("h1")
    host.install(f"exec {' '.join(apart.words)} {sys.executable} -P -m lab.cli")
    monkeypatch.setenv("XENLAB_CREDENTIAL_ZOO", f"{USER}:{PASSWORD}")
    return host


def is_shown(secret: str, *folders: Path) -> bool:
    """Whether an argument of a process has it, or a file of these folders."""
    files = [*Path("/proc").glob("[0-9]*/cmdline"), *(file for one in folders for file in one.rglob("*"))]
    for file in files:
        with suppress(OSError):
            if file.is_file() and secret.encode() in file.read_bytes():
                return True
    return False


# Power


def test_a_redfish_bmc_that_only_its_host_reaches(apart: Apart, host: AHost, zoo: MakeZoo, tmp_path: Path) -> None:
    """By TLS with a pinned certificate, and by a session, which is given back."""
    service = apart.make(lambda: zoo("openbmc"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = tls.make(tmp_path, "sim1")
    context.load_cert_chain(*tls.pair(tmp_path))
    service._server.socket = context.wrap_socket(service._server.socket, server_side=True)
    spec = replace(service.spec(), tls="pinned", ca_file=str(certificate))
    with pytest.raises(BmcUnreachable, match="no answer"):
        mains.power_here("sim1", spec, None).is_powered()
    control = HostPower("sim1", host.spec(), spec, None)
    assert not control.is_powered()
    control.power_on(20.0)
    control.nmi()
    control.set_boot_device("pxe")
    assert service.resets() == ["On", "Nmi"] and control.boot_device() == "pxe" and control.is_powered()
    assert control.sensors()["cpu"].startswith("37") and "2.14.0" in control.info().values()
    assert service.sessions and not is_shown(PASSWORD, paths.state(), host.folder)
    del control
    gc.collect()
    wait_until(lambda: not service.sessions, 10.0, "the session is given back")


def test_a_busy_redfish_bmc_at_a_host_is_waited_for_and_what_it_says_names_the_host(
    apart: Apart, host: AHost, zoo: MakeZoo
) -> None:
    service = apart.make(lambda: zoo("supermicro", basic=False, busy=[(503, "1")]))
    control = HostPower("sim1", host.spec(), service.spec(), None)
    assert not control.is_powered() and not service.habits.busy
    service.sessions.clear()  # as when the BMC was restarted
    assert not control.is_powered()
    service.habits.refused["POST Systems/1/Actions/ComputerSystem.Reset"] = (403, error("Base.1.8.Oem", "Not today."))
    where = rf"127\.0\.0\.1:{service.port}"
    with pytest.raises(PrivilegeRefused, match=rf"sim1: BMC http://{where}: .*Not today.* \(at host h1\)") as refused:
        control.reset()
    assert refused.value.board == "sim1"
    full = (503, error("Base.1.8.SessionLimitExceeded", "too many sessions"), {})
    service.instead = once("POST", LOGIN, answer=full, times=99)
    control = HostPower("sim1", host.spec(), service.spec(), None)
    with pytest.raises(SessionsExhausted, match=rf"sim1: BMC http://{where} has no free session .* \(at host h1\)"):
        control.power_on(0.5)
    host.cut()
    with pytest.raises(BmcUnreachable, match=rf"sim1: BMC {where}: host h1: ssh: connect to host"):
        HostPower("sim1", host.spec(), service.spec(), None).is_powered()


def test_an_ipmi_bmc_at_a_host_without_a_session_is_asked_again_and_names_the_host(hosts: Hosts) -> None:
    (host,) = hosts("h1")
    stand_in = StandIn(host.bin)
    lost = "Error: Unable to establish IPMI v2 / RMCP+ session"
    forgot = {"rc": 1, "err": f"-v: RAKP 2 message indicates an error : inactive session ID\n{lost}"}
    is_on = {"out": "Chassis Power is on\n"}
    stand_in.plays([{"match": "chassis", "answers": [forgot, is_on]}])
    spec = BmcSpec("203.0.113.9", "simulated", cipher=3)
    assert HostPower("sim1", host.spec(), spec, None).is_powered() and len(stand_in.calls("chassis")) == 2
    full = {"rc": 1, "err": f"Error in open session response message : insufficient resources for session\n\n{lost}"}
    for answer, kind, said in ((forgot, SessionInactive, "inactive session ID"), (full, SessionsExhausted, "no free")):
        stand_in.plays([{"match": "chassis", "answers": [answer]}])
        with pytest.raises(kind, match=rf"sim1: BMC 203\.0\.113\.9:623 .*{said}.* \(at host h1\)") as caught:
            HostPower("sim1", host.spec(), spec, None).power_on(0.5)
        assert caught.value.board == "sim1"
    assert not any("secret" in word for call in stand_in.calls() for word in call), "no password in an argument"


def test_an_outlet_that_only_its_host_reaches(apart: Apart, host: AHost) -> None:
    none = BmcSpec("", "", protocol="none")
    with contextlib.closing(apart.make(Pdu)) as pdu:
        pdu.on = False
        with pytest.raises(BmcUnreachable, match="sim1: PDU rest .* outlet 3: "):
            mains.power_here("sim1", none, pdu.spec).is_powered()
        control = HostPower("sim1", host.spec(), none, pdu.spec)
        assert not control.is_powered()
        control.power_on(20.0, proof=lambda: True)
        assert pdu.on and pdu.commands == [True] and "rest" in control.info()["PDU"]
        nobody = replace(pdu.spec, host="http://127.0.0.1:9/{index}")
        with pytest.raises(BmcUnreachable, match=r"sim1: PDU rest http://127\.0\.0\.1:9/.* \(at host h1\)"):
            HostPower("sim1", host.spec(), none, nobody).is_powered()
        host.cut()
        with pytest.raises(BmcUnreachable, match=r"sim1: PDU rest http://127.* outlet 3: host h1: "):
            control.is_powered()


# Consoles


def test_consoles_behind_ssh_telnet_and_rfc_2217_that_only_their_host_reaches(
    apart: Apart, host: AHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's user knows the key of the console behind SSH; the password comes from the lab machine."""
    if not (ser2net := shutil.which("ser2net", path="/usr/sbin:/usr/bin")):
        pytest.skip("needs ser2net")
    monkeypatch.setenv("XENLAB_CREDENTIAL_CONSOLE", f"lab:{CONSOLE_PASSWORD}")
    with ExitStack() as stack:
        (tmp_path / "bmc").mkdir()
        line = Line(tmp_path / "bmc", stack)
        line.serve("console com2", within=apart.words)
        known = host.folder / ".config" / "xenlab" / "known_hosts"
        known.parent.mkdir(parents=True)
        shutil.copyfile(tmp_path / "bmc" / "xenlab" / "known_hosts", known)
        board = plugged(stack, tmp_path / "line")
        config = tmp_path / "ser2net.yaml"
        config.write_text(SER2NET.format(device=os.readlink(tmp_path / "line"), speed=115200, tcp=2001, rfc2217=2002))
        process = subprocess.Popen([*apart.words, ser2net, "-n", "-u", "-c", str(config)], stdin=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        lab = simulated.lab(tmp_path / "some.yaml", 2)
        consoles: dict[str, dict[str, Any]] = {
            "sim1": {"via": "ssh", "port": line.port, "credential": "console", "entry": "console com2"},
            "sim2": {"via": "rfc2217", "port": 2002},
        }
        tree = json.loads(lab.path.read_text())
        for name, keys in consoles.items():
            tree["all"]["hosts"][name]["xenlab"]["console"] |= keys
        lab.path.write_text(json.dumps(tree))
        lab = placed(lab, dict.fromkeys(consoles, host))
        folder = services.directory(lab)
        services.start(lab, folder, detach=False)
        stack.callback(services.stop, folder)
        for name, end in (("sim1", line.board), ("sim2", board)):
            with Console.of(lab.boards[name]) as console:
                wait_until(console.is_connected, 30.0, f"the console of {name}", interval=0.05)

                def is_through(console: Console = console, end: int = end) -> bool:  # the way takes a moment
                    os.write(end, b"\xff login: \xf0\r\n")
                    return any("\\xff login: \\xf0" in one.text for one in console.lines(0))

                wait_until(is_through, 20.0, f"{name} is read", interval=0.5)
                console.send(b"t\xff\x00\r")
                got = b""
                while len(got) < 4:
                    got += os.read(end, 100)
                assert got == b"t\xff\x00\r"
        assert not is_shown(CONSOLE_PASSWORD, paths.state(), host.folder)


# Boots


def test_a_board_that_boots_by_network_at_a_host_is_served_by_the_lab_machine(
    apart: Apart, host: AHost, tmp_path: Path
) -> None:
    """All files stay at the lab machine; the board's requests come by way of the host, in its name and in no other."""
    lab = placed(simulated.lab(tmp_path / "some.yaml", 1), {"sim1": host})
    tree = json.loads(lab.path.read_text())
    tree["all"]["vars"]["xenlab"]["hosts"]["h1"]["netboot"] = {"address": "192.0.2.1/24", "interface": "lo"}
    management = {"mac": "02:00:00:00:15:00", "address": "192.0.2.15/24"}
    own = {"boot": "network", "firmware": "uefi", "nics": {"management": management}}
    tree["all"]["hosts"]["sim1"]["xenlab"] |= own
    lab.path.write_text(json.dumps(tree))
    lab = inventory.load(lab.path)
    boot = tmp_path / "boot"
    boot.mkdir()
    for name in ("vmlinuz-6.1", "xen-4.17-amd64.gz", "initrd.network", "root.squashfs", "identity"):
        (boot / name).write_text(f"this is {name}")
    netboot.write(lab, boot=boot, root=boot / "root.squashfs", identities={"sim1": boot / "identity"})
    home, folder = netboot.home(lab, lab.boards["sim1"]), services.directory(lab)

    def get(path: str, address: str = "192.0.2.15", **headers: str) -> tuple[int, bytes]:
        def ask() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("192.0.2.1", 80, 5, (address, 0))
            with contextlib.closing(connection):
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                return answer.status, answer.read()

        return apart.make(ask)

    def default() -> bytes:
        return get("/board/grub.cfg")[1].split()[1]

    wire = apart.make(lambda: Wire(lab.boards["sim1"].console.port))
    services.start(lab, folder, detach=False)
    try:
        menu = get("/board/grub.cfg")[1]
        assert b"root=http://192.0.2.1/image/root.squashfs" in menu and b"xenlab.address=192.0.2.15/24" in menu
        netboot.choose(home, "under-test")
        assert (default(), default()) == (b"default=xenlab-under-test", b"default=known-good")
        assert get("/board/identity.tar") == (200, b"this is identity")
        assert get("/image/root.squashfs", Range="bytes=8-") == (206, b"root.squashfs")
        assert get("/board/identity.tar", "192.0.2.1")[0] == 404, "another one's identity is not given"
        there = host.supervised(lab.name) / "netboot"
        grub = netboot.folder(lab) / "tftp" / "grub.efi"
        assert (there / "tftp" / "grub.efi").read_bytes() == grub.read_bytes()
        text = (there / "dnsmasq.conf").read_text()
        test = ["dnsmasq", "--test", f"--conf-file={there / 'dnsmasq.conf'}"]
        assert subprocess.run(test, stdin=subprocess.DEVNULL, capture_output=True, timeout=20).returncode == 0
        assert "dhcp-host=02:00:00:00:15:00,192.0.2.15,sim1" in text and f"tftp-root={there / 'tftp'}" in text
        host.cut()
        with pytest.raises((OSError, http.client.HTTPException)):
            get("/board/grub.cfg")
        host.start()
        wait_until(lambda: services.status(folder).hosts[0].is_up, 60, "it is back", interval=0.1)
        assert default() == b"default=known-good"
    finally:
        services.stop(folder)
        wire.close()
