"""What boards that boot by network are served, and by whom: the real dnsmasq, GRUB's image maker, the lab's server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import select
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port

from lab import inventory, netboot
from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.base.wait import wait_until
from lab.grid import services, supervisor
from lab.netboot import server
from lab.virtual import boards
from lab.virtual.segment import TUN, Segment

MAC = "52:54:00:22:13:00"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> inventory.Lab:
    """The shipped lab with a board that boots by network, served from a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return inventory.load(paths.CHECKOUT / "inventory" / "diskless.yaml")


@pytest.fixture
def board(lab: inventory.Lab) -> inventory.BoardSpec:
    (board,) = lab.network_booted()
    return board


@pytest.fixture
def own(lab: inventory.Lab, board: inventory.BoardSpec, tmp_path: Path) -> Path:
    """The board's own folder, after all of it was written."""
    boot = tmp_path / "boot"
    boot.mkdir()
    for name in ("vmlinuz-6.1", "xen-4.17-amd64.gz", "initrd.network", "root.squashfs", "identity"):
        (boot / name).write_text(f"this is {name}", encoding="ascii")
    netboot.write(lab, boot=boot, root=boot / "root.squashfs", identities={board.name: boot / "identity"})
    return netboot.home(lab, board)


def publish(
    lab: inventory.Lab, board: inventory.BoardSpec, tmp_path: Path, *, xen: bytes = b"a build", digest: str = "d1"
) -> bool:
    (tmp_path / "xen.gz").write_bytes(xen)
    files = {"boot/xenlab/xen-under-test.gz": tmp_path / "xen.gz"}
    options = "com1=115200 console=com1 sync_console"
    return netboot.publish(lab, board, files, title="mine", options=options, digest=digest)


def entries(menu: str) -> Mapping[str, str]:
    return {found[1]: found[2] for found in re.finditer(r"--id (\S+) [^{]*\{\n(.*?)\n\}", menu, re.DOTALL)}


# -- the menu ----------------------------------------------------------------------------------------------------


def test_the_entry_under_test_is_the_default_of_one_boot(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    publish(lab, board, tmp_path)
    assert netboot.menu(own).startswith("set default=known-good\n")
    netboot.choose(own, "under-test")
    assert netboot.menu(own).startswith("set default=xenlab-under-test\nset timeout=0\n")
    assert netboot.menu(own).startswith("set default=known-good\n"), "asked for once, booted twice"
    netboot.choose(own, "under-test")
    netboot.choose(own, "known-good")
    assert netboot.menu(own).startswith("set default=known-good\n"), "taken back, and booted"


def test_a_job_is_what_one_boot_does(lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"job\.cfg is not there"):
        netboot.choose(own, "job")
    board = replace(board, jobs="/scratch/gitlab-runner/tftp")
    lab = replace(lab, boards={board.name: board})
    boot = tmp_path / "boot"
    netboot.write(lab, boot=boot, root=boot / "root.squashfs", identities={board.name: boot / "identity"})
    assert os.readlink(own / "gitlab-ci") == "/scratch/gitlab-runner/tftp"
    netboot.choose(own, "under-test")
    netboot.choose(own, "job")
    publish(lab, board, tmp_path)
    menu = netboot.menu(own)
    assert menu.startswith("set default=job\nset timeout=0\nserial --unit=0 --speed=115200\n")
    assert "\nsource /gitlab-ci/grub.cfg\nboot\n" in menu and entries(menu) == {}
    assert list(entries(netboot.menu(own))) == ["known-good", "xenlab-under-test"]


def test_entries_have_the_boards_options_and_root(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    assert list(entries(netboot.menu(own))) == ["known-good"]
    publish(lab, board, tmp_path)
    good, tested = entries(netboot.menu(own)).values()
    assert f"multiboot2 /image/xen.gz {inventory.XEN_OPTIONS} {board.xen_options}\n" in good
    assert "multiboot2 /board/under-test/xen.gz com1=115200 console=com1 sync_console\n" in tested
    for entry in (good, tested):
        for word in ("root=http://10.0.2.2/image/root.squashfs", f"xenlab.mac={MAC}", "xenlab.address=10.0.2.15/24"):
            assert word in entry.split(), entry
        assert "xenlab.overlay=http://10.0.2.2/board/identity.tar" in entry.split()
    assert "xenlab.entry=under-test" in tested.split() and "xenlab.entry=under-test" not in good.split()


def test_grub_uses_the_port_of_xens_console(lab: inventory.Lab, board: inventory.BoardSpec) -> None:
    second = replace(board, xen_options="com2=57600,8n1 console=com2", console=replace(board.console, speed=57600))
    assert netboot._head(board).startswith("serial --unit=0 --speed=115200\n")
    assert netboot._head(second).startswith("serial --unit=1 --speed=57600\n")


def test_a_build_goes_to_the_board_whole(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    assert publish(lab, board, tmp_path, xen=b"first")
    assert publish(lab, board, tmp_path, xen=b"second", digest="d2")
    assert (own / "under-test" / "xen.gz").read_bytes() == b"second"
    with tarfile.open(own / "under-test" / "files.tar") as tar:
        found = {member.name: (tar.extractfile(member).read(), member.uid) for member in tar}  # type: ignore[union-attr]
    assert found == {"boot/xenlab/xen-under-test.gz": (b"second", 0), "var/lib/xenlab/deployed": (b"d2\n", 0)}


def test_what_is_offered_already_is_left_alone(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    publish(lab, board, tmp_path)
    before = (own / "under-test" / "files.tar").stat()
    assert not publish(lab, board, tmp_path)
    assert (own / "under-test" / "files.tar").stat() == before


def test_nothing_is_offered_to_a_board_of_a_lab_that_is_not_up(
    lab: inventory.Lab, board: inventory.BoardSpec, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="is the lab up"):
        publish(lab, board, tmp_path)


# -- HTTP --------------------------------------------------------------------------------------------------------


class Client:
    """Somebody on the boards' network: of this address."""

    def __init__(self, port: int, address: str) -> None:
        self._port, self._address = port, address

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, 5, (self._address, 0))
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture
def serving(lab: inventory.Lab, board: inventory.BoardSpec, own: Path) -> Iterator[int]:
    """A server whose board has the address 127.0.0.5; its port."""
    (netboot.folder(lab) / "addresses" / "127.0.0.5").symlink_to(Path("..", "boards", board.name))
    http_server = server.listen(netboot.folder(lab), "127.0.0.1", 0)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.05,))
    thread.start()
    yield http_server.server_address[1]
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def test_a_board_is_served_its_own_and_nobody_else_is(serving: int, own: Path) -> None:
    board, stranger = Client(serving, "127.0.0.5"), Client(serving, "127.0.0.6")
    assert board.get("/board/identity.tar") == (200, b"this is identity")
    assert board.get("/image/vmlinuz") == (200, b"this is vmlinuz-6.1")
    assert stranger.get("/image/vmlinuz")[0] == 200
    for path in ("/board/identity.tar", "/board/grub.cfg", "/boards/pxe1/identity.tar"):
        assert stranger.get(path)[0] == 404, path


def test_fetching_the_menu_uses_up_what_was_asked_for(serving: int, own: Path) -> None:
    board = Client(serving, "127.0.0.5")
    netboot.choose(own, "under-test")
    assert Client(serving, "127.0.0.6").get("/board/grub.cfg")[0] == 404
    defaults = [board.get("/board/grub.cfg")[1].split()[1] for _ in range(2)]
    assert defaults == [b"default=xenlab-under-test", b"default=known-good"]


def test_a_file_is_had_from_an_offset_on(serving: int) -> None:
    board = Client(serving, "127.0.0.5")
    assert board.get("/image/vmlinuz", Range="bytes=8-") == (206, b"vmlinuz-6.1")
    assert board.get("/image/vmlinuz", Range="bytes=0-")[1] == b"this is vmlinuz-6.1"
    assert board.get("/image/vmlinuz", Range="bytes=4000-")[0] == 416


def test_a_board_gets_the_files_of_its_job_and_nobody_else_does(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, serving: int, tmp_path: Path
) -> None:
    jobs, secret = tmp_path / "tftp", tmp_path / "secret"
    jobs.mkdir()
    (own / "gitlab-ci").symlink_to(jobs)
    (jobs / "xen").write_bytes(b"their build")
    (jobs / "link").symlink_to(secret)
    secret.write_bytes(b"what only the lab may read")
    (jobs / "folder").mkdir()
    (jobs / "folder" / "xen").touch()
    os.mkfifo(jobs / "pipe")
    mine, stranger = Client(serving, "127.0.0.5"), Client(serving, "127.0.0.6")
    assert mine.get("/gitlab-ci/xen") == (200, b"their build")
    assert mine.get("/gitlab-ci/xen", Range="bytes=6-") == (206, b"build")
    for name in ("link", "folder", "folder/xen", "pipe", "none", "../secret", ".."):
        assert mine.get(f"/gitlab-ci/{name}")[0] == 404, name
    assert mine.get("/board/gitlab-ci/link")[0] == 404
    assert stranger.get("/gitlab-ci/xen")[0] == 404


def test_the_kernel_remembers_no_connection_that_was_served(serving: int) -> None:
    """A board that is reset asks from the same ports as before: GRUB counts them from 21550."""
    with socket.create_connection(("127.0.0.1", serving), 5, ("127.0.0.5", 0)) as connection:
        connection.sendall(b"GET /image/vmlinuz HTTP/1.1\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while read := connection.recv(4096):
                answer += read
    assert answer.endswith(b"this is vmlinuz-6.1")
    table = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    far_ends = [line.split()[2] for line in table if line.split()[1].endswith(f":{serving:04X}")]
    assert far_ends == ["00000000:0000"], "more than the listener itself"


def test_a_slow_board_gets_all_of_a_file(
    lab: inventory.Lab, serving: int, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent lies in this machine's kernel for longer than a board may be silent."""
    monkeypatch.setattr(server, "UNANSWERED", 0.5)
    (own / "xen.gz").write_bytes(bytes(1 << 20))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        connection.bind(("127.0.0.5", 0))
        connection.connect(("127.0.0.1", serving))
        connection.sendall(b"GET /board/xen.gz HTTP/1.1\r\n\r\n")
        began, got = time.monotonic(), 0
        with contextlib.suppress(ConnectionResetError):
            while read := connection.recv(1 << 15):
                got += len(read)
                time.sleep(0.05)
    assert got > 1 << 20 and time.monotonic() - began > 1.0


@pytest.mark.parametrize(
    "path",
    ["/", "/image", "/image/", "/image/none", "/image/../boards/pxe1/identity.tar", "/board/under-test", "/board//x"],
)
def test_nothing_else_is_served(serving: int, path: str) -> None:
    assert Client(serving, "127.0.0.5").get(path)[0] == 404


# -- DHCP, TFTP --------------------------------------------------------------------------------------------------


def discover(tap: int, mac: str, architecture: int, timeout: float = 3.0) -> dict[str, str] | None:
    """Ask as a boot ROM does (RFC 2131, RFC 4578), on the wire; what was offered."""
    hardware, number = bytes.fromhex(mac.replace(":", "")), os.urandom(4)
    options = (
        b"\x35\x01\x01" + b"\x3c\x09PXEClient" + struct.pack(">BBH", 93, 2, architecture) + b"\x37\x02\x42\x43\xff"
    )
    bootp = struct.pack(">BBBB4sHH16s16s", 1, 1, 6, 0, number, 0, 0x8000, b"", hardware) + bytes(192)
    payload = bootp + b"\x63\x82\x53\x63" + options
    udp = struct.pack(">HHHH", 68, 67, 8 + len(payload), 0) + payload
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack(">10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack(">H", checksum) + head[12:]
    os.write(tap, b"\xff" * 6 + hardware + b"\x08\x00" + head + udp)
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0 and select.select([tap], [], [], left)[0]:
        frame = os.read(tap, 2048)
        answer = frame[42:]
        if frame[12:14] == b"\x08\x00" and frame[23] == 17 and answer[4:8] == number:
            name = re.search(rb"grub\.[a-z]+", answer)
            found = {"address": socket.inet_ntoa(answer[16:20]), "server": socket.inet_ntoa(answer[20:24])}
            return found | {"file": name[0].decode() if name else ""}
    return None


def test_the_network_answers_its_board_and_no_other(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    """The real dnsmasq and the lab's server in the network namespace, asked through the board's end of the cable."""
    if not os.access(TUN, os.R_OK | os.W_OK):
        pytest.skip(f"{TUN} may not be opened")
    assert lab.netboot
    board = replace(board, ssh_port=free_port())
    segment = Segment(board, lab.netboot, netboot.folder(lab), tmp_path)

    async def scenario() -> list[dict[str, str] | None]:
        await segment.start()
        try:
            return [discover(segment.tap, *asking) for asking in ((MAC, 0), (MAC, 7), ("52:54:00:99:99:99", 0))]
        finally:
            await segment.stop()

    bios, uefi, stranger = asyncio.run(scenario())
    assert bios == {"address": "10.0.2.15", "server": "10.0.2.2", "file": "grub.pc"}
    assert uefi == {"address": "10.0.2.15", "server": "10.0.2.2", "file": "grub.efi"}
    assert stranger is None
    assert "serving" in (tmp_path / "segment.log").read_text(encoding="utf-8")


def test_a_network_that_does_not_come_up_says_why(
    lab: inventory.Lab, board: inventory.BoardSpec, own: Path, tmp_path: Path
) -> None:
    conf = netboot.folder(lab) / "dnsmasq.conf"
    conf.write_text(conf.read_text(encoding="utf-8") + "no-such-option=1\n", encoding="utf-8")
    board = replace(board, ssh_port=free_port())
    assert lab.netboot
    segment = Segment(board, lab.netboot, netboot.folder(lab), tmp_path)

    async def scenario() -> None:
        try:
            await segment.start()
        finally:
            await segment.stop()

    with pytest.raises(BenchError, match="bad option"):
        asyncio.run(scenario())


def test_grub_is_made_for_both_kinds_of_firmware(lab: inventory.Lab, own: Path) -> None:
    tftp = netboot.folder(lab) / "tftp"
    assert (tftp / "grub.efi").read_bytes()[:2] == b"MZ"
    start = Path("/usr/lib/grub/i386-pc/pxeboot.img").read_bytes()
    assert (tftp / "grub.pc").read_bytes()[: len(start)] == start


def test_dnsmasq_takes_the_configuration(lab: inventory.Lab, own: Path) -> None:
    command = ["dnsmasq", "--test", f"--conf-file={netboot.folder(lab) / 'dnsmasq.conf'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


# -- machines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def machines(lab: inventory.Lab, own: Path, monkeypatch: pytest.MonkeyPatch) -> inventory.Lab:
    """A lab of one machine without a disk, on free ports; the network that it boots from is loopback."""
    monkeypatch.setenv("XENLAB_CREDENTIAL_VIRTUAL_BMC", "admin:secret")
    monkeypatch.setattr(netboot, "PORT", free_port())
    (board,) = lab.network_booted()
    console = replace(board.console, serve_port=free_port(), lines_port=free_port())
    nics = {"management": replace(board.nics["management"], address="127.0.0.1/8")}
    machine = replace(board, virtual=None, console=console, nics=nics)
    (netboot.folder(lab) / "addresses" / "127.0.0.1").symlink_to(Path("..", "boards", board.name))
    spec = inventory.NetbootSpec("127.0.0.1/8", "lo")
    return replace(lab, boards={board.name: machine}, coordinator=f"127.0.0.1:{free_port()}", netboot=spec)


def supervised(folder: Path) -> subprocess.Popen[str]:
    """The real services of that folder, up or given up."""
    command = [sys.executable, "-P", "-m", "lab.grid.supervisor", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=paths.environment())
    wait_until(lambda: (folder / "ready").exists() or process.poll() is not None, 60, "services")
    return process


def test_a_lab_of_machines_serves_them_itself(machines: inventory.Lab, tmp_path: Path) -> None:
    services.write_files(machines, tmp_path)
    with supervised(tmp_path) as process:
        try:
            assert services.status(tmp_path).is_up
            assert Client(netboot.PORT, "127.0.0.1").get("/board/grub.cfg")[1].startswith(b"set default=known-good")
        finally:
            process.terminate()


def test_a_lab_that_cannot_serve_its_machines_does_not_come_up(machines: inventory.Lab, tmp_path: Path) -> None:
    services.write_files(machines, tmp_path)
    with socket.create_server(("127.0.0.1", netboot.PORT)), supervised(tmp_path) as process:
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "netboot does not start" in said and "Address already in use (netboot.address in the inventory)" in said


def test_a_missing_tool_is_named_with_its_package(
    lab: inventory.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.access(TUN, os.R_OK | os.W_OK):
        pytest.skip(f"{TUN} may not be opened")
    for tool in ("qemu-system-x86_64", "qemu-img", "ipmi_sim", "ip"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="dnsmasq is not installed .Debian package dnsmasq-base"):
        boards.prepare(lab, tmp_path / "boards", tmp_path / "keys")


def test_a_virtual_board_has_a_server_of_its_own(lab: inventory.Lab, tmp_path: Path) -> None:
    services.write_files(lab, tmp_path)
    assert "netboot" not in [service.name for service in supervisor.services(tmp_path)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("      netboot: {address: 10.0.2.2/24, interface: boards}\n", "", "pxe1 boots by network: lacks netboot"),
        ("address: 10.0.2.2/24", "address: 10.0.3.2/24", "must be in the network that it boots from"),
        ("address: 10.0.2.2/24", "address: 10.0.2.256/24", "256"),
        ("boot: network", "boot: net", "'disk' or 'network'"),
        (
            '"52:54:00:22:13:00", address: 10.0.2.15/24',
            '"52:54:00:22:13:00"',
            "needs nics.management with mac and address",
        ),
        ("link_port: 22135", "link_port: 22135, firmware: efi", "'bios' or 'uefi'"),
        ("boot: network #", "jobs: /srv/jobs #", "jobs needs boot: network"),
        ("boot: network #", "boot: network\n        jobs: srv/jobs #", "must match pattern"),
    ],
)
def test_mistakes_in_the_inventory_are_told_by_their_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (paths.CHECKOUT / "inventory" / "diskless.yaml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "wrong.yaml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"wrong\.yaml:\d+: .*{re.escape(said)}"):
        inventory.load(file)
