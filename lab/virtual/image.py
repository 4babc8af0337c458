"""The dom0 image of the virtual boards: a Debian root, boot loaders and a partition table in one disk.

Made by ``mmdebstrap`` (as root or in a user namespace), ``mke2fs -d``, ``mtools`` and ``grub-mkimage``; no loop device
and no root is needed. One disk for both kinds of firmware: GRUB's core image in the gap before the root partition for
BIOS, and an EFI system partition behind it. Kept by content of ``firmware/image`` in the XDG cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths, processes
from lab.base.errors import BenchError
from lab.builds.apt import DOM0_SUITE, PrivateApt, own_suite
from lab.inventory.xen_command_line import command_line

log = logging.getLogger(__name__)

FIRMWARE = paths.FIRMWARE / "image"
ROOT_MIB = 1600
ESP_MIB = 8
FORMAT = 3  # of the disk and of what lies beside it; counts when _make_in changes
SECTOR = 512
PARTITION_START = 2048  # sectors: 1 MiB, the gap that GRUB's core image lives in
GRUB_MODULES = (
    "part_msdos ext2 normal configfile linux multiboot2 loadenv serial terminal test echo ls cat "
    "search search_label search_fs_uuid sleep reboot halt boot minicmd gzio true regexp probe help"
).split()
# The known-good entry's command line: the lab's, and what QEMU 7.2's emulation needs of any Xen (docs/virtual-lab.md).
XEN_OPTIONS = command_line("spec-ctrl=no iommu=no-sharept")
# Firmware numbers its disks as it likes, so under UEFI the root is looked for by its label.
EFI_START = "search.fs_label xenlab-root root\nset prefix=($root)/boot/grub\n"


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A bootable disk, never written to, and what was installed in it."""

    disk: Path  # qcow2: a third of the raw one, also where holes are filled, as in the layers of a container
    root: Path  # the same root as squashfs, for boards without a disk
    kernel_root: Path  # boot/* and lib/modules/* of the dom0: for Linux payloads and for network boot
    seconds: float  # what making it took


def make(*, progress: Callable[[str], None] | None = None) -> DiskImage:
    """The image for this checkout's ``firmware/image``: from the cache, or made now (about a minute).

    :raises BenchError: mmdebstrap or a tool of it failed; carries the end of its output.
    """
    directory = paths.cache() / "images" / _key()
    if _seconds(directory) is None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with open(directory.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _seconds(directory) is None:
                if progress:
                    progress("making the dom0 image (about a minute)")
                _make_in(directory)
    return DiskImage(
        directory / "disk.qcow2", directory / "root.squashfs", directory / "kernel", _seconds(directory) or 0.0
    )


def _seconds(directory: Path) -> float | None:
    """How long the image took to make; None: there is none, or a power cut left the note without its content."""
    try:
        return float((directory / "made").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _key() -> str:
    digest = hashlib.sha256(f"{FORMAT} {DOM0_SUITE} {ROOT_MIB} {GRUB_MODULES} {EFI_START} {XEN_OPTIONS}".encode())
    for file in sorted(FIRMWARE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _make_in(directory: Path) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="making-") as name:
        work = Path(name)
        _bootstrap(work)
        core, esp = _grub_core(work), _efi_partition(work)
        raw = work / "disk.raw"
        _assemble(work / "root.ext4", core, esp, raw)
        _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(work / "disk.qcow2")], timeout=300)
        for used in (work / "root.ext4", core, esp, raw):
            used.unlink()
        for archive, where in (("boot.tar", "."), ("modules.tar", "lib")):
            target = work / "kernel" / where
            target.mkdir(parents=True, exist_ok=True)
            _run(["tar", "-x", "--no-same-owner", "-f", str(work / archive), "-C", str(target)], timeout=60)
            (work / archive).unlink()
        (work / "made").write_text(f"{time.monotonic() - started:.1f}", encoding="ascii")
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        for entry in sorted(work.iterdir(), key=lambda path: path.name == "made"):
            os.rename(entry, directory / entry.name)  # "made" comes last


def _lines(name: str) -> list[str]:
    text = (FIRMWARE / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _debian_sources(work: Path) -> list[str]:
    """Files with package sources of dom0's release: the machine's own, turned into that one's where they are not."""
    if own_suite() != DOM0_SUITE:
        found = []
        for name, text in PrivateApt(suite=DOM0_SUITE).binary_sources().items():
            (work / name).write_text(text, encoding="utf-8")
            found.append(str(work / name))
        return found
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = [
        str(file)
        for file in files
        if file.suffix in (".list", ".sources") and file.is_file() and DOM0_SUITE in file.read_text(errors="replace")
    ]
    return found  # empty: mmdebstrap's own default for the suite


def _bootstrap(work: Path) -> None:
    command = [
        *(processes.NAMESPACE if processes.is_root_without_mounts() else ()),  # a user's mmdebstrap makes its own
        "mmdebstrap",
        "--format=null",
        "--variant=minbase",
        f"--include={','.join(_lines('packages.txt'))}",
    ]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _lines("exclude.txt")]
    command += [
        '--aptopt=Acquire::Languages "none"',
        f"--customize-hook={FIRMWARE / 'finish-root'}",
        f"--customize-hook=download /root.ext4 {work / 'root.ext4'}",
        f"--customize-hook=download /root.squashfs {work / 'root.squashfs'}",
        f"--customize-hook=tar-out /boot {work / 'boot.tar'}",
        f"--customize-hook=tar-out /lib/modules {work / 'modules.tar'}",
        DOM0_SUITE,
        "-",
        *_debian_sources(work),
    ]
    environment = processes.environment(processes.NETWORK)
    environment |= {"FIRMWARE": str(FIRMWARE), "ROOT_MIB": str(ROOT_MIB), "XEN_OPTIONS": XEN_OPTIONS, "INITRD": "No"}
    _run(command, timeout=1200, environment=environment)


def _grub_core(work: Path) -> Path:
    core = work / "core.img"
    command = ["grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", str(core)]
    _run([*command, "biosdisk", *GRUB_MODULES], timeout=60)
    if core.stat().st_size > (PARTITION_START - 1) * SECTOR:
        raise BenchError(f"GRUB's core image is {core.stat().st_size} bytes: more than the gap before the partition")
    return core


def _efi_partition(work: Path) -> Path:
    """A FAT file system with GRUB where firmware without boot entries looks (UEFI 2.10, 3.5.1.1)."""
    esp, loader, start = work / "esp.fat", work / "BOOTX64.EFI", work / "start.cfg"
    start.write_text(EFI_START, encoding="ascii")
    command = ["grub-mkimage", "-O", "x86_64-efi", "-p", "/boot/grub", "-c", str(start), "-o", str(loader)]
    _run([*command, *GRUB_MODULES], timeout=60)
    _run(["mkfs.fat", "-C", "-n", "XENLAB-EFI", str(esp), str(ESP_MIB << 10)], timeout=60)
    _run(["mmd", "-i", str(esp), "::EFI", "::EFI/BOOT"], timeout=60)
    _run(["mcopy", "-i", str(esp), str(loader), "::EFI/BOOT/BOOTX64.EFI"], timeout=60)
    loader.unlink()
    start.unlink()
    return esp


def _assemble(root: Path, core: Path, esp: Path, disk: Path) -> None:
    """Boot sector, core image, the root's partition, the EFI system partition; blocks of zeroes become holes.

    ``boot.img`` expects the core image at sector 1 and ``grub-mkimage`` presets its block list to go on at
    sector 2, so nothing needs patching (grub-core/boot/i386/pc/{boot,diskboot}.S).
    """
    boot = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()[:SECTOR])
    boot[440:446] = b"xlab\0\0"
    boot[446:510] = bytes(64)
    boot[510:512] = b"\x55\xaa"
    start = PARTITION_START
    block = 1 << 20
    with open(disk, "wb") as target:
        for index, (part, active, kind) in enumerate(((root, 0x80, 0x83), (esp, 0, 0xEF))):
            sectors = part.stat().st_size // SECTOR
            entry = struct.pack("<B3sB3sII", active, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, sectors)
            boot[446 + 16 * index : 462 + 16 * index] = entry
            target.seek(start * SECTOR)
            with open(part, "rb") as source:
                while chunk := source.read(block):
                    if chunk.count(0) == len(chunk):
                        target.seek(len(chunk), os.SEEK_CUR)
                    else:
                        target.write(chunk)
            start += sectors
        target.truncate(start * SECTOR)
        target.seek(0)
        target.write(boot + core.read_bytes())


def _run(command: list[str], *, timeout: float, environment: dict[str, str] | None = None) -> None:
    log.debug("running %s", command)
    environment = environment or processes.environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed; `xenlab doctor` says what is missing") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise BenchError(f"{command[0]} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
