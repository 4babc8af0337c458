"""Boards of QEMU in other shapes: which cases get one, and that the board takes it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from a_host import XENLAB, AHost, Hosts, hosts_fixture  # noqa: F401

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.inventory import BoardSpec, Lab
from lab.night.planning import Case, Share, plan_shaped
from lab.virtual import boards, qemu
from lab.virtual.compiled import compiled
from lab.virtual.daemon import Daemon
from lab.virtual.spec import DaemonConfig, read_config, write_config

VIRTUAL = paths.CHECKOUT / "inventory" / "virtual.yaml"


@pytest.fixture
def lab() -> Lab:
    return inventory.load(VIRTUAL)


def case(name: str, *needs: str) -> Case:
    return Case(name, "superpages", 1, needs)


def steel(board: BoardSpec, *more: str) -> BoardSpec:
    return replace(board, name="steel", virtual=None, capabilities=board.capabilities | set(more))


def test_a_case_gets_the_shape_that_declares_what_no_board_has(lab: Lab) -> None:
    cases = [
        case("small", "hap"),
        case("nodes", "hap", "numa"),
        case("big", "memory-8g"),
        case("four", "hap", "numa-4"),
        case("radio", "cstate", "numa"),
    ]
    shares = plan_shaped(cases, list(lab.boards.values()), "build")
    assert shares == [
        Share(("virt1",), "build", ("nodes", "big"), shape="large"),
        Share(("virt1",), "build", ("four",), shape="four-nodes"),
    ]


def test_a_board_of_steel_that_can_is_taken_as_it_is(lab: Lab) -> None:
    boards_there = [*lab.boards.values(), steel(lab.boards["virt1"], "numa")]
    assert plan_shaped([case("nodes", "numa")], boards_there, "build") == []
    assert plan_shaped([case("nodes", "numa")], [steel(lab.boards["virt1"])], "build") == []


def test_a_shape_changes_processors_and_memory_alone(lab: Lab) -> None:
    board = lab.boards["virt1"]
    assert board.virtual
    wiring = qemu.Wiring(Path("/d"), Path("/v"), Path("/s"), Path("/u"), Path("/q"), Path("/p"), 4001, 4002)
    own = qemu.arguments(board, board.virtual.shaped(""), wiring)
    large = qemu.arguments(board, board.virtual.shaped("large"), wiring)
    assert own[own.index("-smp") + 1] == "1"
    assert large[large.index("-smp") + 1] == "2"
    assert large[large.index("-m") + 1] == "8192"
    changed = {"-numa", "-object", "-smp", "-m"}
    rest = [[w for i, w in enumerate(argv) if not {w, argv[i - 1]} & changed] for argv in (own, large)]
    assert rest[0] == rest[1]
    sleepless = qemu.arguments(board, board.virtual.shaped("sleepless"), wiring)
    assert [word for word in sleepless if word not in own] == ["-global", "ICH9-LPC.disable_s3=1"]
    assert any(word.startswith("edu,") for word in own), "the DMA device that is declared is not there"


def test_a_shape_has_the_distances_that_the_inventory_gives_it(lab: Lab) -> None:
    board = lab.boards["virt1"]
    assert board.virtual
    wiring = qemu.Wiring(Path("/d"), Path("/v"), Path("/s"), Path("/u"), Path("/q"), Path("/p"), 4001, 4002)
    words = qemu.arguments(board, board.virtual.shaped("four-nodes"), wiring)
    told = {word for word in words if word.startswith("dist,")}
    assert len(told) == 16 and {"dist,src=0,dst=3,val=31", "dist,src=3,dst=0,val=32"} <= told
    assert not [word for word in qemu.arguments(board, board.virtual.shaped("large"), wiring) if "dist," in word]


def test_a_shape_with_power_states_has_their_registers_and_a_table_for_each_processor(lab: Lab) -> None:
    board = lab.boards["virt1"]
    assert board.virtual
    wiring = qemu.Wiring(Path("/d"), Path("/v"), Path("/s"), Path("/u"), Path("/q"), Path("/p"), 4001, 4002)
    emulator = qemu.Emulator(tables="/tables")
    shape = board.virtual.shaped("power-states")
    words = qemu.arguments(board, shape, wiring, emulator=emulator)
    tables = [words[at + 1] for at, word in enumerate(words) if word == "-acpitable"]
    assert tables == ["file=/tables/power.aml", "file=/tables/cpu-0.aml", "file=/tables/cpu-1.aml"]
    assert "pc-testdev" in words
    cpu = words[words.index("-cpu") + 1].split(",")
    assert {"vendor=GenuineIntel", "+svm", "+est", "+invtsc", "x-force-features=on"} <= set(cpu)
    stopping = qemu.arguments(board, board.virtual.shaped("stopping-tsc"), wiring, emulator=emulator)
    assert set(words) - set(stopping) == {",".join(cpu)}
    assert "+invtsc" not in stopping[stopping.index("-cpu") + 1]
    assert qemu.arguments(board, replace(shape, accelerator="kvm"), wiring, emulator=emulator) == words, "KVM has none"
    own = qemu.arguments(board, board.virtual.shaped(""), wiring, emulator=emulator)
    assert not {"-acpitable", "pc-testdev"} & set(own)
    assert own[own.index("-cpu") + 1] == qemu.CPU


def test_more_processors_than_have_registers_are_refused(tmp_path: Path) -> None:
    text = VIRTUAL.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("stopping-tsc: {vcpus: 2", "stopping-tsc: {vcpus: 4"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"power_states has registers for 3 processors \(vcpus\)"):
        inventory.load(wrong)


def test_the_tables_of_power_states_compile() -> None:
    """QEMU takes a table as it is, so that a wrong one shows in dom0 alone."""
    folder = compiled(paths.FIRMWARE / "acpi", "power.aml").parent
    for name, words in (
        ("power", [b"LIMI", b"STAT", b"IDLE"]),
        ("cpu-2", [b"C002", b"_PCT", b"_PSS", b"_PPC", b"_CST"]),
    ):
        table = (folder / f"{name}.aml").read_bytes()
        assert table[:4] == b"SSDT" and int.from_bytes(table[4:8], "little") == len(table)
        assert table[10:16] == b"XENLAB" and sum(table) % 256 == 0
        assert all(word in table for word in words)


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ("[[10, 14], [15, 10]]", "numa_distances needs a row for each of the 4 nodes"),
        ("[[10, 14, 22, 31], [15, 10, 33, 24], [23, 34, 10, 16], [32, 25, 17]]", "numa_distances needs a row"),
        (
            "[[10, 10, 22, 31], [15, 10, 33, 24], [23, 34, 10, 16], [32, 25, 17, 10]]",
            "10 for a node to itself, and more",
        ),
        (
            "[[10, 14, 22, 31], [15, 11, 33, 24], [23, 34, 10, 16], [32, 25, 17, 10]]",
            "10 for a node to itself, and more",
        ),
        ("[[10, 14, 22, 255], [15, 10, 33, 24], [23, 34, 10, 16], [32, 25, 17, 10]]", "less than or equal to 254"),
    ],
)
def test_wrong_distances_are_said(tmp_path: Path, distances: str, said: str) -> None:
    text = VIRTUAL.read_text(encoding="utf-8")
    right = "[[10, 14, 22, 31], [15, 10, 33, 24], [23, 34, 10, 16], [32, 25, 17, 10]]"
    assert right in text
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace(right, distances), encoding="utf-8")
    with pytest.raises(UsageError, match=said) as caught:
        inventory.load(wrong)
    assert "shapes.four-nodes" in str(caught.value)


def test_wrong_shapes_are_said_with_line_and_key(tmp_path: Path) -> None:
    text = VIRTUAL.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.yaml"
    for old, new, said in (
        ("[cpu-offline, numa", "[cpu-ofline, numa", "unknown capability 'cpu-ofline' (did you mean cpu-offline?)"),
        ("large: {vcpus: 2", "large: {cpus: 2", "unknown key (did you mean vcpus?)"),
    ):
        assert old in text
        wrong.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            inventory.load(wrong)
        assert said in str(caught.value)
        assert "wrong.yaml:" in str(caught.value)
        assert "shapes.large" in str(caught.value)


def test_unknown_board_or_shape_is_the_users_mistake(lab: Lab, tmp_path: Path) -> None:
    known = "large, four-nodes, sleepless, power-states, stopping-tsc"
    with pytest.raises(UsageError, match=f"virt1 has no shape huge in .*; there are: {known}"):
        boards.reshape(lab, tmp_path, "virt1", "huge")
    with pytest.raises(UsageError, match="virt9 is not a virtual board of .*; there are: virt1, virt2"):
        boards.reshape(lab, tmp_path, "virt9", "large")
    with pytest.raises(BenchError, match="virt1: the board daemon does not answer"):
        boards.reshape(lab, tmp_path, "virt1", "large")


def test_daemons_take_the_shape_and_the_other_board_its_own(lab: Lab, tmp_path: Path) -> None:
    """Two real daemons' control sockets; nothing is powered on."""

    async def scenario() -> dict[str, str]:
        found, servers = {}, []
        for name, board in lab.boards.items():
            (tmp_path / name).mkdir()
            write_config(tmp_path / name / "daemon.json", DaemonConfig(board, kcs_port=7, link_peer_port=0))
            daemon = Daemon(tmp_path / name / "daemon.json")
            daemon._machine.shape = "large" if name == "virt2" else ""
            servers.append(await asyncio.start_unix_server(daemon._control, str(tmp_path / name / "control.sock")))
            found[name] = daemon
        await asyncio.to_thread(boards.reshape, lab, tmp_path, "virt1", "large")
        for server in servers:
            server.close()
        return {name: daemon._machine.shape for name, daemon in found.items()}

    assert asyncio.run(scenario()) == {"virt1": "large", "virt2": ""}
    assert read_config(tmp_path / "virt1" / "daemon.json").board == lab.boards["virt1"]


# A board at a host


@pytest.fixture(name="there")
def there_fixture(hosts: Hosts, tmp_path: Path) -> Iterator[tuple[Lab, AHost]]:
    """The first board of the virtual lab at a host, which has a short path: that of a socket is in it."""
    (host,) = hosts("h1")
    tree = yaml.safe_load(VIRTUAL.read_text(encoding="utf-8"))
    tree["all"]["vars"]["xenlab"]["hosts"] = {"h1": {"ssh": host.ssh}}
    tree["all"]["children"]["boards"]["hosts"]["virt1"]["xenlab"]["at"] = "h1"
    (tmp_path / "apart.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        host.state = Path(short)
        host.install(XENLAB)
        yield inventory.load(tmp_path / "apart.yaml"), host


def test_a_board_at_a_host_takes_a_shape_and_a_fault(there: tuple[Lab, AHost], tmp_path: Path) -> None:
    """A real daemon's control socket, behind a real sshd. The board at the lab machine is not told anything."""
    lab, host = there
    home = host.supervised(lab.name) / "boards" / "virt1"
    home.mkdir(parents=True)
    with pytest.raises(BenchError, match="host h1: xenlab: virt1: the board daemon does not answer"):
        boards.reshape(lab, tmp_path, "virt1", "large")
    board = replace(lab.boards["virt1"], at=None)
    write_config(home / "daemon.json", DaemonConfig(board, kcs_port=7, link_peer_port=0))
    daemon = Daemon(home / "daemon.json")

    def fault(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-P", "-m", "lab.cli", "lab", "fault", "virt1", *words, "--inventory", lab.path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    async def scenario() -> None:
        async with await asyncio.start_unix_server(daemon._control, str(home / "control.sock")):
            await asyncio.to_thread(boards.reshape, lab, tmp_path, "virt1", "large")
            assert await asyncio.to_thread(fault, "refuse-sol", "30") == (0, "")

    asyncio.run(scenario())
    assert daemon._machine.shape == "large" and daemon._faults.is_on("refuse-sol")
    host.cut()
    status, said = fault("refuse-sol")
    assert status == 3 and said.startswith("xenlab: host h1: ssh: connect to host 127.0.0.1")
