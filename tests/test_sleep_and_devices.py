"""What a sleep that failed is called, and what the program that pokes at devices in dom0 writes where."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.base.errors import BenchError
from lab.console.client import ConsoleLine
from lab.grid.pulse import Voice
from lab.on_board import poke
from lab.xen.dom0 import BOOT_LOG, added
from lab.xen.domain import node_pages, nodes_free
from lab.xen.pci import DmaDevice, iommu_orders
from lab.xen.sleep import Sleep, _watch_asleep

GOOD = {"entered": True, "finished": True, "seen_asleep": True, "answered": True, "waited": 60.0}


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (GOOD, ""),
        ({}, "never slept: Xen did not say"),
        ({"entered": True, "seen_asleep": True, "waited": 68.0}, "never woke: Xen said nothing for 68 s"),
        ({"entered": True, "seen_asleep": True, "rebooted": True}, "rebooted instead of waking"),
        (GOOD | {"seen_asleep": False}, "never slept: Xen said so, but the board was never in S3"),
        (GOOD | {"woke_early": True, "states": ["S0"]}, "woke by itself, before anybody woke it: S0"),
        (GOOD | {"answered": False}, "woke without its dom0"),
        (GOOD | {"answered": False, "voice": Voice.XEN}, "woke without its dom0"),
        (GOOD | {"answered": False, "voice": Voice.DOM0}, "woke without its network"),
        (
            GOOD | {"lines": ["7.1 (XEN) Error bringing CPU1 up: -5"]},
            "woke with trouble: 7.1 (XEN) Error bringing CPU1",
        ),
    ],
)
def test_a_sleep_that_failed_says_how(seen: dict[str, object], said: str) -> None:
    failure = Sleep(**seen).failure() or ""  # type: ignore[arg-type]
    assert failure.startswith(said)
    assert bool(failure) == bool(said)


def watched(*states: str, asleep_for: float) -> Sleep:
    """What is noted of a BMC that answers these states, the last one again and again."""
    left = list(states)

    def sleep_state() -> str:
        if (state := left.pop(0) if len(left) > 1 else left[0]) == "silent":
            raise BenchError("the BMC does not answer")
        return state

    host: Any = SimpleNamespace(name="virt1", board=SimpleNamespace(power=SimpleNamespace(sleep_state=sleep_state)))
    seen = Sleep()
    entering = ConsoleLine("virt1", 1, time.time(), "line", "(XEN) Entering ACPI S3 state.")
    _watch_asleep(host, seen, entering, asleep_for)
    return seen


def test_a_sleep_is_watched_for_as_long_as_it_shall_last() -> None:
    started = time.monotonic()
    seen = watched("S0", "S3", asleep_for=0.6)
    assert time.monotonic() - started >= 0.6
    assert (seen.seen_asleep, seen.woke_early) == (True, False)
    assert [state.rpartition(" ")[2] for state in seen.states] == ["S0", "S3"]
    seen = watched("S3", "S3", "S0", asleep_for=60.0)
    assert (seen.seen_asleep, seen.woke_early) == (True, True)
    seen = watched("S3", "silent", asleep_for=60.0)
    assert (seen.seen_asleep, seen.woke_early) == (True, False) and seen.states[-1] == "the BMC does not answer"
    assert watched("S3", asleep_for=0.0).states[-1].endswith("S3")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device in files: the command register off, an identification, and a DMA engine that is always busy."""
    folder = tmp_path / "0000:00:05.0"
    folder.mkdir()
    (folder / "config").write_bytes(struct.pack("<HHHH", 0x1234, 0x11E8, 0, 0x10))
    (folder / "resource0").write_bytes(struct.pack("<I", 0x010000ED) + bytes(poke.PAGE - 4))
    monkeypatch.setattr(poke, "DEVICES", str(tmp_path))
    monkeypatch.setattr(poke, "DMA_LIMIT", 0.05)
    return folder


def test_dma_is_set_up_and_its_end_waited_for(device: Path) -> None:
    with pytest.raises(SystemExit, match="the DMA was not done"):
        poke.main(["dma", device.name, "to", "0x12345678"])
    assert (device / "config").read_bytes() == struct.pack("<HHHH", 0x1234, 0x11E8, 6, 0x10)
    registers = (device / "resource0").read_bytes()[poke.SOURCE :][:32]
    assert struct.unpack("<4Q", registers) == (poke.BUFFER, 0x12345678000, poke.SPAN, poke.START | poke.TO_MEMORY)


def test_a_device_that_is_another_is_let_alone(device: Path) -> None:
    (device / "resource0").write_bytes(bytes(poke.PAGE))
    with pytest.raises(SystemExit, match="identification register holds 0x0"):
        poke.main(["dma", device.name, "from", "0x1"])


def test_unknown_words_are_answered_by_what_there_is() -> None:
    with pytest.raises(SystemExit, match="acpi-sleep STATE"):
        poke.main(["dma", "0000:00:05.0", "through", "0x1"])


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of libraries on a board whose hypervisor is a 4.20."""
    for part, value in {"major": "4\n", "minor": "20\n"}.items():
        (tmp_path / part).write_text(value, encoding="ascii")
    monkeypatch.setattr(poke, "VERSION", str(tmp_path))
    monkeypatch.setattr(poke, "LIBRARIES", (f"{tmp_path}/xen-{{}}", f"{tmp_path}/*-gnu"))
    return tmp_path


def library(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).touch()
    return str(folder / name)


def test_the_library_of_the_tools_in_use_is_taken(tools: Path) -> None:
    with pytest.raises(SystemExit, match=r"no libxenctrl\.so\.4\.20 in .*/xen-4\.20, .*-gnu"):
        poke.main(["crash", "7"])
    library(tools / "x86-gnu", "libxenctrl.so.4.17")
    boards = library(tools / "x86-gnu", "libxenctrl.so.4.20")
    library(tools / "xen-4.17", "libxenctrl.so.4.20")
    assert poke.library_file("libxenctrl.so.{}") == boards
    own = library(tools / "xen-4.20", "libxenctrl.so.4.20")
    assert poke.library_file("libxenctrl.so.{}") == own


def test_tools_with_a_c_library_of_their_own_are_used_by_it(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started once more, by the loader, it opens the library, whatever comes of that."""
    library(tools / "xen-4.20", "libxenctrl.so.4.20")
    loader = Path(library(tools / "xen-4.20", poke.LOADER))
    loader.write_text("#!/bin/sh\necho $XENLAB_LOADER $*\n", encoding="ascii")
    loader.chmod(0o755)
    code = (
        "import sys; from lab.on_board import poke; sys.argv = ['poke', 'resume', '7'];"
        f"poke.VERSION, poke.LIBRARIES = {str(tools)!r}, ({f'{tools}/xen-{{}}'!r},); poke.main(sys.argv[1:])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    words = f"{loader} --library-path {loader.parent} {sys.executable} -S -m lab.on_board.poke resume 7"
    assert said.stdout == f"{words}\n", said.stderr
    monkeypatch.setenv("XENLAB_LOADER", str(loader))
    with pytest.raises(OSError, match="file too short"):
        poke.main(["resume", "7"])


@pytest.mark.parametrize(
    "line",
    [
        "(XEN) [   22.042914] [VT-D]DMAR:[DMA Write] Request device [0000:00:05.0] fault addr 2000000",
        "(XEN) AMD-Vi: IO_PAGE_FAULT: 0000:00:05.0 d3 addr 0000000002000000 flags 0x20 RW",
    ],
)
def test_a_fault_is_known_by_device_and_address(line: str) -> None:
    import re

    device = DmaDevice(None, "0000:00:05.0")  # type: ignore[arg-type]
    assert re.search(device.fault_at(0x2000), line)
    assert not re.search(device.fault_at(0x200), line)
    assert not re.search(DmaDevice(None, "0000:00:04.0").fault_at(0x2000), line)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("", "boot\nQ: d0\n", "boot\nQ: d0\n"),
        ("boot\n", "boot\nQ: d0\n", "Q: d0\n"),
        ("boot\nQ: d0\n", "boot\nQ: d0\nQ: d0\n", "Q: d0\n"),  # the same answer twice
        ("boot\nQ: d0\n", "t\nQ: d0\nQ: d1\n", "Q: d1\n"),  # the ring was full
        ("boot\n", "boot\n", ""),
        ("boot\n", "all is new\n", "all is new\n"),
    ],
)
def test_what_a_console_ring_was_given_is_told_from_what_it_had(before: str, after: str, new: str) -> None:
    assert added(before, after) == new


@pytest.mark.parametrize("size", [100, 5_000, 256_000])
def test_a_ring_of_any_size_may_have_lost_any_part(size: int) -> None:
    lines = [f"(XEN) line {number % 97}" for number in range(size // 10)]  # the same ones come again and again
    ring, told = "\n".join(lines)[:size], "\n(XEN) told of late"
    for lost in (len(told), size // 2, size - 1):
        assert added(ring, ring[lost:] + told) == told


# The virtual board `large`, Xen 4.17.5, with a guest of 64 MiB bound to node 0.
NODES = """\
(XEN) 'u' pressed -> dumping numa info (now = 39593268904)
(XEN) NODE0 start->0 size->1572864 free->853502
(XEN) NODE1 start->1572864 size->1048576 free->1006764
(XEN) CPU0 -> NODE0
(XEN) CPU1 -> NODE1
(XEN) Memory location of each domain:
(XEN) Domain 0 (total: 196608):
(XEN)     Node 0: 174281
(XEN)     Node 1: 22327
(XEN) Domain 2 (total: 16401):
(XEN)     Node 0: 16401
(XEN)     Node 1: 0
"""


@pytest.mark.parametrize("dump", [NODES, NODES.replace("Domain ", "d")], ids=["4.17", "4.20"])
def test_whose_memory_is_on_which_node(dump: str) -> None:
    assert nodes_free(dump) == {0: 853502, 1: 1006764}
    assert node_pages(dump, 0) == {0: 174281, 1: 22327}
    assert node_pages(dump, 2) == {0: 16401, 1: 0}
    with pytest.raises(BenchError, match="does not have d1"):
        node_pages(dump, 1)


IOMMU_TABLES = """\
(XEN) [VT-D] d1 table has 4 levels
(XEN)   dfn: 00138000 mfn: 00138000 rw
(XEN)   dfn: 00138400 mfn: 00138400 rw
(XEN)    dfn: 001385fe mfn: 001385fe rw
(XEN)    dfn: 001385ff mfn: 001385ff rw
(XEN)  dfn: 00140000 mfn: 00140000 rw
(XEN) [VT-D] d12 table has 3 levels
(XEN)   dfn: 0013ee00 mfn: 0013ee00 rw
(XEN) ==== PCI devices ====
"""


def test_entries_of_the_iommus_tables_are_counted_by_their_level() -> None:
    assert iommu_orders(IOMMU_TABLES, 1) == {"4KB": 2, "2MB": 2, "1GB": 1}
    assert iommu_orders(IOMMU_TABLES, 12) == {"4KB": 1, "2MB": 0, "1GB": 0}
    with pytest.raises(ValueError, match="no tables of d2"):
        iommu_orders(IOMMU_TABLES, 2)


def test_the_log_of_xens_boot_outlives_its_ring(tmp_path: Path) -> None:
    (tmp_path / "xl").write_text(f"#!/bin/sh\n[ $1 = dmesg ] && cat {tmp_path}/ring\n", encoding="ascii")
    (tmp_path / "xl").chmod(0o755)

    def boot_log(ring: str) -> str:
        (tmp_path / "ring").write_text(ring, encoding="ascii")
        script = BOOT_LOG.replace("/run/xenlab", f"{tmp_path}/run")
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout

    later = "(XEN) HVM d7 save: CPU\n"
    assert boot_log(later) == later, "it had no beginning any more: it is shown, and not kept"
    whole = "(XEN) Xen version 4.17.5\n(XEN) HVM: HAP page sizes: 4kB, 2MB\n"
    assert boot_log(whole) == boot_log(later) == whole
