"""What payloads print is understood; firmware/guests builds into kernels that Xen's domain builder takes."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.base.errors import BenchError
from lab.xen import payloads
from lab.xen.payloads import LINUXES, Heartbeat, PayloadLine, build_payloads, parse_line


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("XL mode PASS bits=32 pae=1 xen=4.17", PayloadLine("mode", "PASS", "bits=32 pae=1 xen=4.17")),
        ("XL done FAIL n=40 failed=1\r", PayloadLine("done", "FAIL", "n=40 failed=1")),
        (
            "XL hugetlb-2048 PASS KernelPageSize=2048",
            PayloadLine("hugetlb-2048", "PASS", "KernelPageSize=2048"),
        ),
        ("XL resume INFO cancelled=0\r\n", PayloadLine("resume", "INFO", "cancelled=0")),
        ("XL idle PASS", PayloadLine("idle", "PASS", "")),
        ("[    1.234567] XL done PASS n=1 failed=0", PayloadLine("done", "PASS", "n=1 failed=0")),
        ("<6>[    1.2] XL done PASS n=1 failed=0", PayloadLine("done", "PASS", "n=1 failed=0")),
        ("XL HB 12 345678901234 1763940000.250000", Heartbeat(12, 345678901234, 1763940000.25)),
        ("XL HB 1 2 3.5\r", Heartbeat(1, 2, 3.5)),
    ],
)
def test_payload_lines_are_understood(line: str, meant: PayloadLine | Heartbeat) -> None:
    assert parse_line(line) == meant


@pytest.mark.parametrize(
    "line",
    [
        "",
        "login:",
        "XL",
        "XL mode",
        "XL mode pass bits=32",
        "XL mode PASSED",
        "XL HB 12",
        "XL HB 12 34567",
        "XL HB -1 2 3.5",
        "XL HB twelve 2 3.5",
        "XL HB 12 345 1763940000.25 and more",
        "XL HB 12 345XL HB 13 346 1763940000.25",
        "nonsense XL mode PASS",
        "XL \x00 PASS",
        "XL m\u00f6de PASS",
        "\udcff\udcfe",
    ],
)
def test_anything_else_is_nothing(line: str) -> None:
    assert parse_line(line) is None


# -- what is built -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="built")
def built_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_payloads(tmp_path_factory.mktemp("payloads"), {})


def notes(kernel: Path) -> tuple[int, int, dict[int, bytes]]:
    """ELF class (32 or 64), machine, and the notes of the name Xen. Source: elf(5)."""
    data = kernel.read_bytes()
    assert data[:4] == b"\x7fELF"
    wide = data[4] == 2
    machine = struct.unpack_from("<H", data, 18)[0]
    table = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    found: dict[int, bytes] = {}
    for i in range(count):
        at = table + i * size
        if struct.unpack_from("<I", data, at)[0] != 4:  # PT_NOTE
            continue
        offset = struct.unpack_from("<Q" if wide else "<I", data, at + (8 if wide else 4))[0]
        length = struct.unpack_from("<Q" if wide else "<I", data, at + (32 if wide else 16))[0]
        end = offset + length
        while offset < end:
            name_size, value_size, kind = struct.unpack_from("<III", data, offset)
            name = data[offset + 12 : offset + 12 + name_size]
            offset += 12 + (name_size + 3) // 4 * 4
            assert name == b"Xen\0"
            found[kind] = data[offset : offset + value_size]
            offset += (value_size + 3) // 4 * 4
    return 64 if wide else 32, machine, found


def number(value: bytes) -> int:
    return int.from_bytes(value, "little")


@pytest.mark.parametrize(("name", "bits", "machine"), [("pv32", 32, 3), ("pv64", 64, 62)])
def test_pv_kernels_have_the_notes_of_a_pv_guest(built: dict[str, Path], name: str, bits: int, machine: int) -> None:
    """Loader, interface version, where it lies, its hypercall page, and that a suspend can be cancelled."""
    width, arch, found = notes(built[name])
    assert (width, arch) == (bits, machine)
    assert found[8] == b"generic\0"
    assert found[5] == b"xen-3.0\0"
    assert number(found[3]) == 0
    assert number(found[1]) >= 0x100000
    assert number(found[2]) % 4096 == 0
    assert number(found[14]) == 1
    assert found.get(9) == (b"yes\0" if bits == 32 else None)
    assert 18 not in found


@pytest.mark.parametrize(("name", "bits", "machine"), [("pvh32", 32, 3), ("pvh64", 64, 62)])
def test_pvh_kernels_have_just_the_entry(built: dict[str, Path], name: str, bits: int, machine: int) -> None:
    width, arch, found = notes(built[name])
    assert (width, arch) == (bits, machine)
    assert found.keys() == {18}
    assert number(found[18]) >= 0x100000


def test_built_once_and_then_kept(tmp_path: Path, built: dict[str, Path]) -> None:
    """Concurrent callers get the same files, made once; another cache gives the same bytes."""
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: build_payloads(tmp_path, {}), range(3)))
    assert results[0] == results[1] == results[2]
    stamps = {name: path.stat().st_mtime_ns for name, path in results[0].items()}
    assert {name: path.stat().st_mtime_ns for name, path in build_payloads(tmp_path, {}).items()} == stamps
    assert {name: path.read_bytes() for name, path in results[0].items()} == {
        name: path.read_bytes() for name, path in built.items()
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("making-")] == []


def test_a_broken_source_says_so_in_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "guests"
    sources.mkdir()
    (sources / "broken.c").write_text("int main(void) { return nowhere; }\n")
    (sources / "Makefile").write_text("all:\n\t$(CC) -c broken.c -o $(OUT)/broken.o\n")
    monkeypatch.setattr(payloads, "SOURCES", sources)
    with pytest.raises(BenchError, match="nowhere"):
        build_payloads(tmp_path / "cache", {})
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


# -- the initramfs -------------------------------------------------------------------------------------------


def module(depends: str) -> bytes:
    return f"\x7fELF...\0license=GPL\0depends={depends}\0name=x\0".encode()


@pytest.fixture(name="kernel_root")
def kernel_root_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "kernel"
    drivers = root / "lib" / "modules" / "6.1.0-test" / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / "boot" / "vmlinuz-6.1.0-test").write_bytes(b"kernel")
    (drivers / "xen-pcifront.ko").write_bytes(module("xenbus_probe,helper"))
    (drivers / "xenbus-probe.ko").write_bytes(module(""))
    (drivers / "helper.ko").write_bytes(module("xenbus_probe"))
    (drivers / "e1000e.ko.xz").write_bytes(lzma.compress(module("ptp")))
    (drivers / "ptp.ko").write_bytes(module(""))
    for name in set(LINUXES["linux"].modules) - {"xen-pcifront", "e1000e"}:
        (drivers / f"{name}.ko").write_bytes(module(""))
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF static")
    monkeypatch.setattr(payloads, "BUSYBOX", (busybox,))
    return root


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, Path]) -> None:
    """The sources are such as need no compiler: only what is put around the programs is made."""
    sources = tmp_path / "guests"
    (sources / "linux").mkdir(parents=True)
    shutil.copyfile(payloads.SOURCES / "linux" / "init", sources / "linux" / "init")
    (made,) = {path.parent for path in built.values()}
    (sources / "Makefile").write_text(f"all:\n\tcp {made}/* $(OUT)\n")
    monkeypatch.setattr(payloads, "SOURCES", sources)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name of a newc archive."""
    found = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[at : at + fields[6]])
        at += (fields[6] + 3) // 4 * 4


@pytest.mark.usefixtures("compiled")
def test_initramfs_brings_modules_in_loading_order(tmp_path: Path, kernel_root: Path) -> None:
    """Compressed modules are unpacked, dependencies come first, and two builds give the same bytes."""
    first = build_payloads(tmp_path / "one", {"linux": kernel_root})
    second = build_payloads(tmp_path / "two", {"linux": kernel_root})
    assert first["linux-kernel"].read_bytes() == b"kernel"
    assert first["linux-initrd"].read_bytes() == second["linux-initrd"].read_bytes()
    files = unpacked(gzip.decompress(first["linux-initrd"].read_bytes()))
    assert files["init"][0] == 0o100755
    for program in LINUXES["linux"].programs:
        assert files[f"bin/{program}"][1].startswith(b"\x7fELF")
    assert files["lib/modules/e1000e.ko"][1] == module("ptp")
    assert files["lib/modules/e1000e.order"][1] == b"/lib/modules/ptp.ko\n/lib/modules/e1000e.ko\n"
    assert files["lib/modules/xen-pcifront.order"][1].split() == [
        b"/lib/modules/xenbus_probe.ko",
        b"/lib/modules/helper.ko",
        b"/lib/modules/xen_pcifront.ko",
    ]


@pytest.mark.usefixtures("compiled")
def test_the_kernel_of_32_bit_has_a_busybox_of_its_own(tmp_path: Path, kernel_root: Path) -> None:
    roots = {"linux": kernel_root, "linux32": kernel_root}
    with pytest.raises(BenchError, match="no busybox"):
        build_payloads(tmp_path / "cache", roots)
    (kernel_root / "bin").mkdir()
    (kernel_root / "bin" / "busybox").write_bytes(b"\x7fELF of 32 bit")
    made = build_payloads(tmp_path / "cache", roots)
    files = unpacked(gzip.decompress(made["linux32-initrd"].read_bytes()))
    assert files["bin/busybox"][1] == b"\x7fELF of 32 bit"
    assert "lib/modules/xen-netfront.order" in files and "bin/hugecheck" not in files
    assert unpacked(gzip.decompress(made["linux-initrd"].read_bytes()))["bin/busybox"][1] == b"\x7fELF static"


@pytest.mark.usefixtures("compiled")
def test_the_kernels_of_newer_releases_lie_elsewhere(tmp_path: Path, kernel_root: Path) -> None:
    """Debian 13 has its modules in /usr; from 7 on the kernel lies beside them."""
    first = build_payloads(tmp_path / "one", {"linux": kernel_root})
    (kernel_root / "usr").mkdir()
    (kernel_root / "lib").rename(kernel_root / "usr" / "lib")
    second = build_payloads(tmp_path / "two", {"linux": kernel_root})
    (kernel_root / "boot" / "vmlinuz-6.1.0-test").rename(kernel_root / "usr/lib/modules/6.1.0-test/vmlinuz")
    third = build_payloads(tmp_path / "three", {"linux": kernel_root})
    for part in ("linux-kernel", "linux-initrd"):
        assert len({made[part].read_bytes() for made in (first, second, third)}) == 1


def test_a_dynamic_busybox_is_refused(tmp_path: Path, kernel_root: Path) -> None:
    payloads.BUSYBOX[0].write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(BenchError, match="busybox-static"):
        build_payloads(tmp_path / "cache", {"linux": kernel_root})


def test_a_kernel_root_without_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="vmlinuz"):
        build_payloads(tmp_path / "cache", {"linux": tmp_path})
