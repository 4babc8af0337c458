"""Virtual boards: their parts, without booting anything (the boards' cases do that)."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port

from lab.base import paths, processes
from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec, Lab, NicSpec, VirtualSpec
from lab.virtual import boards, chassis, daemon, identity, image, qemu
from lab.virtual.cable import SerialCable
from lab.virtual.spec import DaemonConfig, read_config, write_config


def board(name: str = "alpha", number: int = 1) -> BoardSpec:
    return BoardSpec(
        name=name,
        ssh_host="127.0.0.1",
        ssh_port=free_port(),
        bmc=BmcSpec("127.0.0.1", "virtual-bmc", port=free_port(socket.SOCK_DGRAM), cipher=3),
        console=ConsoleSpec("sol", free_port(), free_port()),
        nics={
            "management": NicSpec("management", f"52:54:00:00:0{number}:00", "10.0.2.15/24"),
            "lab": NicSpec("lab", f"52:54:00:00:0{number}:01", f"192.168.9.{number}/24"),
            "spare": NicSpec("spare", f"52:54:00:00:0{number}:02"),
        },
        capabilities=frozenset({"pv32", "s3"}),
        link="wire",
        virtual=VirtualSpec(serial_port=free_port(), link_port=free_port(socket.SOCK_DGRAM)),
    )


@pytest.fixture
def pair() -> Lab:
    ends = [board("alpha", 1), board("beta", 2)]
    return Lab("test", Path("test.yaml"), {end.name: end for end in ends})


def wiring(**changes: object) -> qemu.Wiring:
    names = ("disk", "variables", "seed", "uart", "qmp", "profile")
    plain = qemu.Wiring(*(Path("/d", name) for name in names), kcs_port=4001, link_peer_port=4002)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_is_taken_once_somebody_has_it(kind: socket.SocketKind, address: str) -> None:
    port = free_port(kind)
    assert not processes.port_is_taken(port, kind)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as owner:
        owner.bind((address, port))
        if kind is socket.SOCK_STREAM:
            owner.listen()
        assert processes.port_is_taken(port, kind)
    assert not processes.port_is_taken(port, kind)


def test_who_waits_for_a_port_never_takes_it() -> None:
    kind = socket.SOCK_DGRAM
    port = free_port(kind)
    waits = (
        "import socket\nfrom lab.base.processes import port_is_taken\nprint('waits', flush=True)\n"
        f"while True: port_is_taken({port}, socket.SOCK_DGRAM)"
    )
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE, cwd=paths.CHECKOUT) as waiting:
        assert waiting.stdout and waiting.stdout.readline() == b"waits\n"
        try:
            for _ in range(20000):  # a BMC that starts; EADDRINUSE ends the test
                with socket.socket(socket.AF_INET, kind) as owner:
                    owner.bind(("127.0.0.1", port))
        finally:
            waiting.kill()


def test_qemu_binds_nothing_but_loopback() -> None:
    spec = board()
    assert spec.virtual
    argv = qemu.arguments(spec, spec.virtual, wiring())
    words = " ".join(argv).replace(",", " ").split()
    addresses = [word for word in words if "host" in word and word != "clock=host"]  # the RTC's, of `-rtc`
    assert addresses, "no network ends at all"
    assert all("127.0.0.1" in word for word in addresses if "=" in word and not word.startswith("-")), addresses


def test_qemu_numa_splits_memory_and_cpus() -> None:
    spec = board()
    shape = VirtualSpec(vcpus=2, memory_mib=4096, numa_nodes=2)
    text = " ".join(qemu.arguments(spec, shape, wiring()))
    assert text.count("size=2048M") == 2
    assert "nodeid=0,memdev=mem0,cpus=0" in text
    assert "nodeid=1,memdev=mem1,cpus=1" in text


def test_more_processors_than_cores_share_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for vcpus, said in ((2, "tcg,thread=multi"), (4, "tcg,thread=single")):
        argv = qemu.arguments(board(), VirtualSpec(vcpus=vcpus), wiring())
        assert argv[argv.index("-accel") + 1] == said


def test_qemu_accepts_the_command_line(tmp_path: Path) -> None:
    """QEMU itself parses it: it goes on to fail at the missing disk, not at an option."""
    spec = board()
    assert spec.virtual
    ends = wiring(disk=tmp_path / "none", seed=tmp_path / "none", uart=tmp_path / "uart", qmp=tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as uart, socket.socket(socket.AF_UNIX) as qmp:
        for end, path in ((uart, ends.uart), (qmp, ends.qmp)):
            end.bind(str(path))
            end.listen()
        argv = qemu.arguments(spec, spec.virtual, ends)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Could not open" in done.stderr, done.stderr


def test_boot_flags_are_over_after_a_minute_unless_they_are_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPMI v2.0 table 28-14, parameter 3."""
    now = [1000.0]
    monkeypatch.setattr(daemon.time, "monotonic", lambda: now[0])
    choice = daemon.BootChoice()
    choice.choose("pxe")
    now[0] += 59.0
    choice.note_control()
    now[0] += 59.0
    assert choice.device == "pxe", "a Chassis Control begins the time again"
    now[0] += 2.0
    assert choice.device == "none" and choice.take() == "none"
    choice.clearing = daemon.KEEP_FLAGS
    choice.choose("pxe")
    now[0] += 3600.0
    assert choice.take() == "pxe" and choice.device == "none", "for once"
    redfish = daemon.BootChoice(has_timer=False)
    redfish.choose("cdrom")
    now[0] += 3600.0
    assert redfish.device == "cdrom"


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
@pytest.mark.parametrize("is_efi", [False, True])
def test_firmware_obeys_a_choice_of_its_own_kind_alone(firmware: str, is_efi: bool) -> None:
    choice = daemon.BootChoice(firmware, is_efi=is_efi)
    choice.choose("pxe")
    assert choice.take() == ("pxe" if is_efi == (firmware == "uefi") else "none")


def test_pxe_is_the_first_boot_device_when_the_bmc_says_so() -> None:
    spec = board()
    assert spec.virtual
    for device, ports in (("pxe", 1), ("default", 0)):
        argv = qemu.arguments(spec, spec.virtual, wiring(), boot_device=device)
        assert len([word for word in argv if "netdev=management" in word and "bootindex=1" in word]) == ports
        assert "ide-hd,drive=disk,bus=ide.0,bootindex=2" in argv


def test_daemon_configuration_survives_writing(tmp_path: Path) -> None:
    config = DaemonConfig(board(), kcs_port=7, link_peer_port=8)
    write_config(tmp_path / "c.json", config)
    assert read_config(tmp_path / "c.json") == config


def test_seed_gives_a_board_its_identity_and_its_peers(pair: Lab, tmp_path: Path) -> None:
    identity.write_seed(tmp_path / "seed.tar", pair, pair.boards["alpha"], tmp_path / "keys")
    assert (tmp_path / "seed.tar").stat().st_size % 512 == 0
    with tarfile.open(tmp_path / "seed.tar") as tar:
        files = {member.name: tar.extractfile(member).read().decode() for member in tar}  # type: ignore[union-attr]
        modes = {member.name: member.mode for member in tar}
    assert files["etc/hostname"] == "alpha\n"
    assert "192.168.9.2 beta" in files["etc/hosts"]
    assert "52:54:00:00:01:01 192.168.9.1/24" in files["etc/xenlab/nics"]
    assert "beta ssh-ed25519" in files["root/.ssh/known_hosts"]
    assert len(files["root/.ssh/authorized_keys"].splitlines()) == 2
    assert modes["etc/ssh/ssh_host_ed25519_key"] == 0o600


def test_known_hosts_pins_each_board_at_its_port(pair: Lab, tmp_path: Path) -> None:
    lines = identity.known_hosts(pair, tmp_path).splitlines()
    ports = [f"[127.0.0.1]:{spec.ssh_port} ssh-ed25519" for spec in pair.boards.values()]
    assert [line.rsplit(" ", 1)[0] for line in lines] == ports


def test_a_taken_port_is_named_with_what_it_is_for(pair: Lab) -> None:
    spec = pair.boards["beta"]
    assert spec.virtual
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", spec.virtual.serial_port))
        holder.listen()
        assert boards.ports_in_use(pair) == [f"{spec.virtual.serial_port} (beta serial)"]
    assert boards.ports_in_use(pair) == []


def test_a_taken_bmc_port_is_seen_though_its_holder_would_share_it(pair: Lab) -> None:
    """ipmi_sim sets SO_REUSEADDR, with which datagram sockets share a port."""
    spec = pair.boards["alpha"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", spec.bmc.port))
        assert boards.ports_in_use(pair) == [f"{spec.bmc.port} (alpha bmc)"]


def test_disk_has_a_boot_sector_a_core_image_and_two_partitions(tmp_path: Path) -> None:
    root, core, esp, disk = (tmp_path / name for name in ("root", "core", "esp", "disk"))
    root.write_bytes(b"\0" * (3 << 20) + b"end!" + b"\0" * 508)
    esp.write_bytes(b"\0" * 512 + b"FAT!" + b"\0" * (1 << 20) + b"\0" * 508)
    core.write_bytes(b"CORE" * 200)
    image._assemble(root, core, esp, disk)
    data = disk.read_bytes()
    assert data[510:512] == b"\x55\xaa"
    assert data[512:516] == b"CORE"
    parts = [struct.unpack("<B3sB3sII", data[at : at + 16]) for at in (446, 462)]
    assert [(active, kind) for active, _, kind, *_ in parts] == [(0x80, 0x83), (0, 0xEF)]
    for (*_, start, sectors), content in zip(parts, (root, esp), strict=True):
        assert data[start * 512 : (start + sectors) * 512] == content.read_bytes()
    assert parts[0][4] == 2048 and parts[1][4] == 2048 + parts[0][5], (
        "the root is the first partition, the ESP the next"
    )
    assert len(data) == (parts[1][4] + parts[1][5]) * 512
    assert disk.stat().st_blocks * 512 < len(data) // 2, "zeroes are not holes"


def test_serial_cable_outlives_the_machine_and_serves_several(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        cable = SerialCable(tmp_path / "uart", port)
        await cable.start()
        try:
            first, second = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for boot in (b"boot one\n", b"boot two\n"):
                machine = await asyncio.open_unix_connection(str(tmp_path / "uart"))
                machine[1].write(boot)
                for reader, _ in (first, second):
                    assert await asyncio.wait_for(reader.readline(), 5) == boot
                first[1].write(b"x")
                assert await asyncio.wait_for(machine[0].read(1), 5) == b"x"
                machine[1].close()
                await machine[1].wait_closed()
            for _, writer in (first, second):
                writer.close()
                await writer.wait_closed()
        finally:
            await cable.stop()

    asyncio.run(scenario())


def test_chassis_program_asks_the_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> list[str]:
        heard: list[str] = []

        async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                heard.append(line.decode().strip())
                writer.write(b"1\n" if line.startswith(b"get") else b"ok\n")
            writer.close()

        server = await asyncio.start_unix_server(daemon, str(tmp_path / "control"))
        program = str(Path(chassis.__file__))
        for words in (["get", "power", "boot"], ["set", "boot", "pxe", "persistent", "1"]):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                program,
                str(tmp_path / "control"),
                *words,
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await asyncio.wait_for(process.communicate(), 20)
            if words[0] == "get":
                assert output == b"power:1\nboot:1\n"
        server.close()
        return heard

    assert asyncio.run(scenario()) == ["get power", "get boot", "set boot pxe", "set persistent 1"]
