"""Guest payloads: what they print on their console, and how they are built from ``firmware/guests``.

The payload kernels and the Linux initramfs report by lines ``XL CASE PASS|FAIL|INFO detail`` and heartbeats
``XL HB number system_ns wall``; firmware/guests/README.md says which work prints what.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import lock, paths, processes
from lab.base.errors import BenchError
from lab.builds.apt import PrivateApt

log = logging.getLogger(__name__)

SOURCES = paths.FIRMWARE / "guests"
KERNELS = ("pv32", "pv64", "pvh32", "pvh64", "hvm32", "hvm64")
BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
FORMAT = 2  # to be raised when the kept files, or the way they are made, change
LONGEST_BUILD = 180.0


@dataclass(frozen=True, slots=True)
class Linux:
    """A Debian kernel with the project's initramfs: payloads ``NAME-kernel`` and ``NAME-initrd``."""

    package: str  # the package that depends on the kernel's package
    architecture: str  # Debian's word; empty: this machine's, with this machine's busybox
    modules: tuple[str, ...]  # the initramfs may load these; linux/init has the same names
    programs: tuple[str, ...] = ()  # programs of linux/ that go into the initramfs
    suite: str = ""  # the release of Debian it is of; empty: this machine's


LINUXES = {
    "linux": Linux(
        "linux-image-amd64",
        "",
        ("xen-pcifront", "e1000e", "xen-netfront", "xen-netback", "bridge", "xen-blkfront", "xen-blkback"),
        ("blocks", "hugecheck", "xswrite"),
    ),
    # the last release of Debian with a 32-bit kernel
    "linux32": Linux("linux-image-686-pae", "i386", ("xen-netfront", "xen-blkfront"), suite="bookworm"),
}
# Kernels that few cases want. They are made, and brought onto a board, for the case that asks for one.
RELEASES = {
    suite: Linux("linux-image-amd64", "", ("xen-netfront", "xen-blkfront"), suite=suite)
    for suite in ("bookworm", "bookworm-backports", "trixie", "sid")
}


@dataclass(frozen=True, slots=True)
class PayloadLine:
    """One result of a payload; ``outcome`` is PASS, FAIL or INFO."""

    case: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat: its number since the guest began, Xen's system time, and seconds since 1970."""

    n: int
    system_ns: int
    wall: float


# Linux's printk or a console server may put a stamp before the line.
_STAMP = r"(?:\[[^\]]{1,40}\]\s*|<\d{1,3}>)*"
_BEAT = re.compile(_STAMP + r"XL HB ([0-9]{1,10}) ([0-9]{1,20}) ([0-9]{1,12}\.[0-9]{1,9})", re.ASCII)
_RESULT = re.compile(_STAMP + r"XL ([A-Za-z0-9][\w.:+-]*) (PASS|FAIL|INFO)(?: (.*))?", re.ASCII)


def parse_line(line: str) -> PayloadLine | Heartbeat | None:
    """What a console line says; None: it is no payload's line, or it is damaged."""
    line = line.strip()
    if beat := _BEAT.fullmatch(line):
        return Heartbeat(int(beat[1]), int(beat[2]), float(beat[3]))
    if found := _RESULT.fullmatch(line):
        return PayloadLine(found[1], found[2], (found[3] or "").strip())
    return None


def build_payloads(cache: Path, roots: Mapping[str, Path]) -> dict[str, Path]:
    """The payloads by name, from ``cache`` or built now, which takes seconds.

    These are :data:`KERNELS`, and a kernel and an initrd for each of :data:`LINUXES` that ``roots`` has. A root has
    ``boot/vmlinuz-*``, ``lib/modules``, and ``bin/busybox`` if its architecture is not this machine's. Several
    processes may call this at once.

    :raises BenchError: a payload does not compile (carries the compiler's output), or a kernel or busybox is missing.
    """
    kernels = {name: _kernel_in(root, LINUXES[name]) for name, root in roots.items()}
    key = _key(kernels)
    directory = cache / key
    if not (directory / "made").exists():
        with lock.held(cache / f"{key}.lock", LONGEST_BUILD, f"guest payloads {key}"):
            if not (directory / "made").exists():
                _make_in(directory, kernels)
    names = [*KERNELS, *(f"{name}-{part}" for name in kernels for part in ("kernel", "initrd"))]
    return {name: directory / name for name in names}


def kernel_roots() -> dict[str, Path]:
    """The folders with the kernels of :data:`LINUXES`. A kernel is fetched once; virtual boards bring their own.

    A kernel of another architecture is left out if the machine's mirrors do not have it.

    :raises BenchError: the kernel of this machine's architecture cannot be fetched.
    """
    known = sorted((paths.cache() / "images").glob("*/kernel"), key=lambda path: path.stat().st_mtime)
    roots = {}
    for name, linux in LINUXES.items():
        try:
            roots[name] = known[-1] if known and not linux.architecture else _fetched(linux)
        except BenchError as error:
            if not linux.architecture:
                raise
            log.warning("%s: cannot be fetched: %s", linux.package, error)
    return roots


def _fetched(linux: Linux) -> Path:
    root = paths.cache() / "kernels" / linux.package
    with lock.held(root.with_suffix(".lock"), 900, "Debian's kernel"):
        if not root.exists():
            apt = PrivateApt(suite=linux.suite, architecture=linux.architecture)
            with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
                _unpack(apt, linux, _kernel_package(apt, linux), Path(scratch))
                shutil.move(f"{scratch}/root", root)
    return root


def _kernel_package(apt: PrivateApt, linux: Linux) -> str:
    for name in apt.depends(linux.package):
        if name.startswith("linux-image-"):
            return name
    raise BenchError(f"{linux.package}: depends on no kernel package")


def _unpack(apt: PrivateApt, linux: Linux, kernel: str, scratch: Path) -> None:
    """Fetch a kernel, and a busybox if it needs one of its own, and unpack both to the folder ``root`` of ``scratch``.

    Debian's kernels from 7 on are in two packages on which the one of the old name depends.
    """
    parts = [name for name in apt.depends(kernel) if name.startswith(("linux-binary-", "linux-modules-"))]
    for package in (kernel, *parts, *(("busybox-static",) if linux.architecture else ())):
        (into := scratch / package).mkdir()
        archive = apt.fetch_binary(package, apt.newest(package), into)
        _run(["dpkg-deb", "-x", str(archive), f"{scratch}/root"], timeout=300)


def of_release(release: str) -> tuple[Path, Path]:
    """Kernel and initrd of a name of :data:`RELEASES`, out of the cache or made now, which takes a minute.

    Debian's newest kernel of that release is asked for once a day. Without a network the last one stands.

    :raises BenchError: the kernel cannot be fetched, and none was fetched before.
    """
    linux, cache = RELEASES[release], paths.cache() / "payloads"
    init = hashlib.sha256(f"{FORMAT} {linux}".encode() + (SOURCES / "linux" / "init").read_bytes()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with lock.held(cache / f"{release}.lock", 900, f"the kernel of {release}"):
        apt = PrivateApt(suite=linux.suite)
        try:
            package = _kernel_package(apt, linux)
            made = cache / f"{release}-{package}-{apt.newest(package)}-{init}"
        except BenchError as error:
            known = sorted(cache.glob(f"{release}-linux-image-*-{init}"), key=lambda path: path.stat().st_mtime)
            if not known:
                raise
            made = known[-1]
            log.warning("%s: taking %s, fetched before: %s", release, made.name, error)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as scratch:
                _unpack(apt, linux, package, Path(scratch))
                kernel = _kernel_in(Path(scratch) / "root", linux)
                (work := Path(scratch) / "out").mkdir()
                shutil.copyfile(kernel.image, work / "kernel")
                (work / "initrd").write_bytes(_gzip(_initramfs(kernel, linux, work)))
                work.rename(made)
    return made / "kernel", made / "initrd"


@dataclass(frozen=True, slots=True)
class _Kernel:
    image: Path
    version: str
    modules: Path
    busybox: Path


def _kernel_in(root: Path, linux: Linux) -> _Kernel:
    """What is in a folder with unpacked packages.

    Debian 13 moved the modules to /usr, and kernels from 7 on lie beside their modules.
    """
    images = sorted((root / "boot").glob("vmlinuz-*")) or sorted(root.glob("usr/lib/modules/*/vmlinuz"))
    if not images:
        raise BenchError(f"{root}: no boot/vmlinuz-* and no usr/lib/modules/*/vmlinuz")
    image = images[-1]
    version = image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")
    places = [root / folder / "modules" / version for folder in ("lib", "usr/lib")]
    modules = next((place for place in places if place.is_dir()), None)
    if modules is None:
        raise BenchError(f"{root}: no lib/modules/{version}")
    busybox = _busybox((root / "bin" / "busybox",) if linux.architecture else BUSYBOX)
    return _Kernel(image, version, modules, busybox)


def _busybox(places: Sequence[Path]) -> Path:
    """The static busybox.

    :raises BenchError: there is no busybox, or it is dynamic and would not run in an initramfs.
    """
    for path in places:
        if path.is_file():
            if b"/ld-linux" in path.read_bytes()[:4096]:
                raise BenchError(f"{path} is not static; Debian's package is busybox-static")
            return path
    raise BenchError("no busybox; Debian's package is busybox-static")


def _key(kernels: Mapping[str, _Kernel]) -> str:
    digest = hashlib.sha256(f"{FORMAT} {_compiler()}".encode())
    for file in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(f"\0{file.relative_to(SOURCES)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for name, kernel in sorted(kernels.items()):
        digest.update(f"\0{name} {LINUXES[name]} {kernel.version}\0".encode())
        for file in (kernel.image, kernel.busybox):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _compiler() -> str:
    return _run(["gcc", "--version"], timeout=20).partition("\n")[0]


def _make_in(directory: Path, kernels: Mapping[str, _Kernel]) -> None:
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"making-{directory.name}-") as scratch:
        work = Path(scratch) / "out"
        work.mkdir()
        _run(["make", "-s", "-C", str(SOURCES), f"OUT={work}", "CC=gcc"], timeout=LONGEST_BUILD - 20)
        for name, kernel in kernels.items():
            shutil.copyfile(kernel.image, work / f"{name}-kernel")
            (work / f"{name}-initrd").write_bytes(_gzip(_initramfs(kernel, LINUXES[name], work)))
        (work / "made").touch()
        shutil.rmtree(directory, ignore_errors=True)
        work.rename(directory)


def _run(command: list[str], *, timeout: float) -> str:
    environment = processes.environment() | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            check=False,
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed; `xenlab doctor` says what is missing") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise BenchError(f"guest payloads: {command[0]} ended with status {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


# -- the initramfs -------------------------------------------------------------------------------------------


def _module_files(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """The files of these modules and of their dependencies, in the order to load them."""
    files = {_module_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None:
            raise BenchError(f"{modules}: no module {name}")
        if path not in order:
            for needed in _depends(path):
                add(needed)
            order.append(path)

    for name in wanted:
        add(name)
    return order


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _depends(path: Path) -> list[str]:
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", _module_bytes(path))
    return [name for name in found[1].decode("ascii").split(",") if name] if found else []


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return zlib.decompress(data, wbits=31)
    if path.suffix == ".ko":
        return data
    raise BenchError(f"{path.name}: unknown compression")


def _initramfs(kernel: _Kernel, linux: Linux, made: Path) -> bytes:
    """A newc archive. Its bytes do not depend on when, where or by whom it was made."""
    entries: list[tuple[str, int, bytes, int]] = [
        (name, stat.S_IFDIR | 0o755, b"", 0)
        for name in ("bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "sys", "tmp")
    ]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", os.makedev(5, 1)))
    entries.append(("init", stat.S_IFREG | 0o755, (SOURCES / "linux" / "init").read_bytes(), 0))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, kernel.busybox.read_bytes(), 0))
    entries.append(("bin/sh", stat.S_IFLNK | 0o777, b"busybox", 0))
    for program in linux.programs:
        entries.append((f"bin/{program}", stat.S_IFREG | 0o755, (made / program).read_bytes(), 0))
    for module in linux.modules:
        order = []
        for path in _module_files(kernel.modules, [module]):
            name = f"lib/modules/{_module_name(path)}.ko"
            order.append(f"/{name}\n")
            if not any(entry[0] == name for entry in entries):
                entries.append((name, stat.S_IFREG | 0o644, _module_bytes(path), 0))
        entries.append((f"lib/modules/{module}.order", stat.S_IFREG | 0o644, "".join(order).encode(), 0))
    return b"".join(_newc(entries))


def _newc(entries: Iterable[tuple[str, int, bytes, int]]) -> Iterator[bytes]:
    """Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux."""
    number = 0
    for name, mode, data, device in [*entries, ("TRAILER!!!", 0, b"", 0)]:
        number += 1
        fields = (
            number,
            mode,
            0,  # uid
            0,  # gid
            2 if stat.S_ISDIR(mode) else 1,
            0,  # mtime
            len(data),
            0,
            0,
            os.major(device),
            os.minor(device),
            len(name) + 1,
            0,
        )
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + bytes(-len(header) % 4)
        yield data + bytes(-len(data) % 4)


def _gzip(data: bytes) -> bytes:
    """gzip without a file name and a time (RFC 1952)."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
