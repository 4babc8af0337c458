"""Which QEMU runs the virtual boards: the machine's is asked, and Debian 12's takes the place of one that fails."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.builds import tools
from lab.builds.apt import DOM0_SUITE, PrivateApt, own_suite
from lab.inventory import emulated
from lab.selfcheck import doctor
from lab.virtual import emulator, qemu
from lab.virtual.compiled import compiled


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    monkeypatch.delenv(emulator.GIVEN, raising=False)


def stand_in(folder: Path, status: int) -> Path:
    """A program that calls itself QEMU, ends each machine with this status, and counts them in ``machines``."""
    folder.mkdir()
    program = folder / qemu.BINARY
    program.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exec echo 'QEMU emulator version 99.{status}'\n"
        f"echo machine >>{folder}/machines\necho no such machine >&2\nexit {status}\n"
    )
    program.chmod(0o755)
    return program


def test_this_machines_qemu_is_probed() -> None:
    if (binary := shutil.which(qemu.BINARY)) is None:
        pytest.skip("needs qemu-system-x86")
    lacks = emulator.lacking(binary)
    if emulator.version(binary).startswith("QEMU emulator version 7.2."):
        assert lacks == ()
        assert emulator.choose() == qemu.Emulator(binary)
    else:
        assert set(lacks) <= {"guest-cr2"}


def test_a_qemu_that_fails_the_probe_gives_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(stand_in(tmp_path / "bin", 35).parent), prepend=":")
    other, said = qemu.Emulator("/other/qemu"), list[str]()
    monkeypatch.setattr(emulator, "of_debian_12", lambda why, say: say(why) or other)
    assert emulator.choose(said.append) is other
    assert said == ["QEMU emulator version 99.35 lacks guest-cr2, so boards run on Debian 12's QEMU"]


def test_a_qemu_that_is_named_is_used_and_what_it_lacks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, said = stand_in(tmp_path / "bin", 35), list[str]()
    monkeypatch.setenv(emulator.GIVEN, str(program))
    for _ in range(2):
        assert emulator.choose(said.append) == qemu.Emulator(str(program), lacks=("guest-cr2",))
    assert said == ["QEMU emulator version 99.35 (XENLAB_QEMU) lacks guest-cr2, so do its boards"] * 2
    assert (program.parent / "machines").read_text().splitlines() == ["machine"], "the answer is kept"


def test_a_qemu_that_runs_no_probe_is_no_machine_for_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulator.GIVEN, str(stand_in(tmp_path / "bin", 1)))
    with pytest.raises(BenchError, match="ended with status 1: no such machine"):
        emulator.choose()
    monkeypatch.setenv(emulator.GIVEN, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"XENLAB_QEMU=.*/nowhere: there is no such program"):
        emulator.choose()


def test_debian_12s_qemu_runs_with_the_libraries_it_came_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are one with `cat` for QEMU, and this machine's loader and C library."""
    content, fetched = tmp_path / "package", list[Sequence[str]]()
    libraries = content / "lib" / "x86_64-linux-gnu"
    for source, target in (
        (shutil.which("cat"), content / "usr" / "bin" / qemu.BINARY),
        ("/lib64/ld-linux-x86-64.so.2", libraries / "ld-linux-x86-64.so.2"),
        ("/lib/x86_64-linux-gnu/libc.so.6", libraries / "libc.so.6"),
    ):
        assert source
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    modules = content / "usr" / "lib" / "x86_64-linux-gnu" / "qemu"
    modules.mkdir(parents=True)
    for name in ("accel-tcg-x86_64.so", "ui-opengl.so"):
        (modules / name).touch()
    (content / "DEBIAN").mkdir()
    about = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (content / "DEBIAN" / "control").write_text(about)

    def fetch(self: PrivateApt, packages: Sequence[str], into: Path) -> list[Path]:
        fetched.append(packages)
        built = ["dpkg-deb", "--build", "--root-owner-group", str(content), str(into / "x.deb")]
        subprocess.run(built, check=True, capture_output=True, timeout=60)
        return [into / "x.deb"]

    monkeypatch.setattr(PrivateApt, "libraries", lambda self, *packages: (*packages, "libone"))
    monkeypatch.setattr(PrivateApt, "fetch_newest", fetch)
    said = list[str]()
    found = emulator.of_debian_12("why", said.append)
    assert emulator.of_debian_12("why", said.append) == found and len(fetched) == 1 and len(said) == 1
    assert {"qemu-system-x86", "libone", "seabios", "ipxe-qemu", "ovmf"} <= set(fetched[0])
    there = {file.name for file in (Path(found.binary).parents[1] / "lib" / "x86_64-linux-gnu" / "qemu").iterdir()}
    assert there == {"accel-tcg-x86_64.so"}, "other modules need libraries that are not there"
    folder = str(paths.cache() / "emulators")
    maps = subprocess.run([found.binary, "/proc/self/maps"], check=True, capture_output=True, text=True, timeout=60)
    files = {line.split()[-1] for line in maps.stdout.splitlines() if " r-xp " in line and "/" in line.split()[-1]}
    assert len(files) == 3 and all(file.startswith(folder) for file in files), files
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "moved"))
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert emulator.of_debian_12("why") != found and len(fetched) == 2, "the program knows where its loader was"


def test_boards_lack_what_their_qemu_lacks(tmp_path: Path) -> None:
    text = (paths.INVENTORY / "virtual.yaml").read_text(encoding="utf-8")
    head, second, rest = text.partition("        virt2:\n")
    steel = rest.replace(
        "            virtual: {vcpus: 1, memory_mib: 3072, serial_port: 22124, link_port: 22125}\n", ""
    )
    file = tmp_path / "lab.yaml"
    file.write_text(head + second + steel, encoding="utf-8")
    lab = inventory.load(file)
    assert [board.virtual is None for board in lab.boards.values()] == [False, True]
    assert all("guest-cr2" in board.capabilities for board in lab.boards.values()), "nobody has to declare it"
    emulated.keep(lab, ("guest-cr2",))
    lacking = {name for name, board in inventory.load(file).boards.items() if "guest-cr2" not in board.capabilities}
    assert lacking == {"virt1"}
    emulated.keep(lab, ())
    assert inventory.load(file) == lab


def test_what_is_compiled_is_another_one_with_other_headers(tmp_path: Path) -> None:
    header = tmp_path / "interface.h"
    header.write_text("one")
    first = compiled(emulator.PROBE, "cr2", headers=[header])
    assert compiled(emulator.PROBE, "cr2", headers=[header]) == first and first.exists()
    header.write_text("two")
    assert compiled(emulator.PROBE, "cr2", headers=[header]) != first


def test_packages_of_the_machines_own_release_are_the_machines() -> None:
    assert PrivateApt(suite=own_suite()).directory == PrivateApt().directory
    assert PrivateApt(suite="sid").directory != PrivateApt().directory


def test_another_apt_is_told_of_binary_packages_alone(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.invalid/debian trixie main\n")
    text = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\n"
    (tmp_path / "sources.list.d" / "more.sources").write_text(text)
    assert PrivateApt(tmp_path / "apt", tmp_path).binary_sources() == {
        "sources.list": "deb http://mirror.invalid/debian trixie main\n",
        "more.sources": text,
    }


def test_tools_compiled_on_another_release_than_the_boards_bring_their_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "xen"
    (source / "tools" / "xl").mkdir(parents=True)
    (source / "tools" / "xl" / "Makefile").touch()
    (source / tools.CONFIGURED).touch()

    def make(*words: str, what: str, timeout: float) -> str:
        folder = Path(words[-1].removeprefix("DESTDIR=")) / "usr" / "sbin"
        folder.mkdir(parents=True)
        shutil.copy(shutil.which("cat") or "", folder / "xl")
        return ""

    def made_on(suite: str) -> tuple[set[str], str]:
        monkeypatch.setattr(tools, "own_suite", lambda: suite)
        tools.compile_into(tmp_path / suite, source, "4.17.5", "x", make, make)
        seen = ["readelf", "-l", "-d", str(tmp_path / suite / "bin" / "xl")]
        said = subprocess.run(seen, check=True, capture_output=True, text=True, timeout=60).stdout
        return {file.name for file in (tmp_path / suite / "lib").iterdir()}, said

    assert made_on(DOM0_SUITE)[0] == set()
    libraries, said = made_on("trixie")
    assert libraries == {"libc.so.6", "ld-linux-x86-64.so.2"}
    assert "interpreter: /usr/lib/xen-4.17/lib/ld-linux-x86-64.so.2]" in said
    assert "Library rpath: [/usr/lib/xen-4.17/lib]" in said


def test_doctor_says_whether_the_system_is_a_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, about, is_good in (
        ("Debian GNU/Linux 13 (trixie)", {"ID": "debian", "VERSION_ID": "13"}, True),
        ("Debian GNU/Linux 11 (bullseye)", {"ID": "debian", "VERSION_ID": "11"}, False),
        ("Ubuntu 24.04.1 LTS", {"ID": "ubuntu", "VERSION_ID": "24.04"}, False),
    ):
        release = about | {"PRETTY_NAME": name}
        monkeypatch.setattr(platform, "freedesktop_os_release", lambda release=release: release)
        [found] = [one for one in doctor.examine() if one.subject == "system"]
        assert found.is_good is is_good and name in found.detail
