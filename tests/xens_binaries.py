"""The folder ``binaries`` that the jobs of Xen's own hardware CI take their files from, made of what the lab has.

Xen's CI has a kernel with its drivers built in, and Alpine. Here it is the kernel of the virtual boards with modules,
and a root of this machine's programs. The toolstack is that of a build of the lab. Its scripts in dom0 are Xen's own,
from the tree that is tested.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.builds import Build

PROGRAMS = ("bash", "ip", "lspci", "flock", "prlimit")  # as Xen's scripts want them, and not busybox's
PACKAGES = {"busybox": "busybox-static", "cpio": "cpio", "lspci": "pciutils", "expect": "expect"}
MODULES = (  # of dom0 and of a guest: what Xen's CI has built in. Those of LATER are Xen's script's to load
    "e1000e bridge xenfs xen-privcmd xen-evtchn xen-gntdev xen-gntalloc xen-netfront xen-pcifront"
).split()
LATER = ("xen-netback", "xen-pciback")
BACKENDS = "xen-evtchn xen-gntdev xen-gntalloc xen-netback xen-pciback"

INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; mount -t tmpfs run /run
exec </dev/console >/dev/console 2>&1
modprobe -a MODULES 2>/dev/null # some are of dom0 alone, or of a guest
ip link set lo up
echo 60 >/proc/sys/kernel/watchdog_thresh # an emulated board on a busy machine may stand still for 22 s
exec init
"""
INITTAB = """\
::wait:/etc/local
::respawn:/sbin/getty 115200 hvc0
"""
LOCAL = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
for one in /etc/local.d/*.start; do $one; done
"""
# The lab's spare port has a DHCP server and no router. What then answers Xen's ping is the server.
UDHCPC = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "${router:-$serverid}"
"""


def make(folder: Path, tree: Path, build: Build, kernel_root: Path) -> None:
    """Fill ``folder``: for a checkout ``tree`` of Xen, a build with tools, and the boot/ and lib/ of a dom0."""
    folder.mkdir()
    (folder / "xen").write_bytes(gzip.decompress(build.xen.read_bytes()))
    kernel = sorted(kernel_root.glob("boot/vmlinuz-*"))[-1]
    (folder / "bzImage").write_bytes(_repacked(kernel.read_bytes()))
    (folder / "ucode.cpio").write_bytes(_cpio(_made(folder / "ucode")))
    root = _made(folder / "root")
    _programs(root)
    _modules(root, kernel_root / "lib" / "modules" / kernel.name.removeprefix("vmlinuz-"))
    _system(root)
    (folder / "rootfs.cpio.gz").write_bytes(gzip.compress(_cpio(root), 6))
    tools = _made(folder / "tools")
    _toolstack(tools, tree / "tools" / "hotplug" / "Linux", build)
    (folder / "xen-tools.cpio.gz").write_bytes(gzip.compress(_cpio(tools), 6))
    for one in ("ucode", "root", "tools"):
        shutil.rmtree(folder / one)


def _repacked(image: bytes) -> bytes:
    """A bzImage whose kernel is packed by gzip and not by xz, which an emulated board takes minutes to unpack.

    It is for Xen and its tools, which read the setup header and unpack the kernel themselves; nothing in it runs.
    Offsets are those of the boot protocol, version 2.08 (Linux, Documentation/arch/x86/boot.rst).
    """
    head = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[head + offset : head + offset + length]
    assert packed[:6] == b"\xfd7zXZ\0", packed[:6]
    kernel = gzip.compress(lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed), 6)
    made = bytearray(image[: head + offset] + kernel)
    struct.pack_into("<I", made, 0x24C, len(kernel))
    struct.pack_into("<I", made, 0x1F4, (len(made) - head + 15) // 16)  # syssize
    return bytes(made) + bytes(-len(made) % 16)


def _programs(root: Path) -> None:
    busybox = _there("busybox")
    for name in ("bin", "usr/bin", "usr/sbin", "sbin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(busybox, root / "bin" / "busybox")
    for name in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "sbin" / "getty").symlink_to("/bin/busybox")
    (root / "sbin" / "modprobe").symlink_to("/bin/busybox")  # where the kernel calls it
    (root / "bin" / "init").unlink()
    (root / "sbin" / "init").symlink_to("/bin/busybox")
    given = [Path(_there(name)) for name in PROGRAMS]
    for program in given:
        (root / "bin" / program.name).unlink(missing_ok=True)
        shutil.copy2(program, root / "bin" / program.name)
    for library in _libraries(given):
        target = root / str(library).removeprefix("/usr").lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)


def _there(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed (Debian package {PACKAGES.get(name, name)})"
    return found


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the loader takes for them on this machine, and the loader, by the paths at which they are looked for."""
    found: set[Path] = set()
    for program in programs:
        said = subprocess.run(["ldd", str(program)], check=False, capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}
    # The C library loads it when a thread is cancelled, which xl does.
    return found | {path.with_name("libgcc_s.so.1") for path in found if path.name == "libc.so.6"}


def _modules(root: Path, source: Path) -> None:
    """The modules, with those that they need."""
    needs: dict[str, list[str]] = {}
    for line in (source / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {re.sub(r"\.ko.*", "", Path(path).name).replace("-", "_"): path for path in needs}
    for name in (*MODULES, *LATER):
        path = by_name.get(name.replace("-", "_"))
        for one in (path, *needs[path]) if path else ():  # else it is built in
            target = root / "lib" / "modules" / source.name / one
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / one, target)
    for name in ("modules.dep", "modules.alias", "modules.builtin"):
        shutil.copyfile(source / name, root / "lib" / "modules" / source.name / name)


def _system(root: Path) -> None:
    files = {
        "init": INIT.replace("MODULES", " ".join(MODULES)),
        "etc/inittab": INITTAB,
        "etc/local": LOCAL,
        "etc/udhcpc/default.script": UDHCPC,
        "etc/issue": "Welcome to Alpine Linux\n\n",
        "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
    }
    for name in ("proc", "sys", "dev", "run", "root", "tmp", "var/log", "etc/local.d", "usr/share/udhcpc"):
        (root / name).mkdir(parents=True)
    (root / "var" / "run").symlink_to("/run")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
        (root / name).chmod(0o755)
    (root / "usr/share/udhcpc/default.script").symlink_to("/etc/udhcpc/default.script")


def _toolstack(root: Path, scripts: Path, build: Build) -> None:
    """As ``make dist`` installs it, but for the place of the programs."""
    assert build.tools, f"the build {build.name} has no tools of its own"
    place = f"/{build.tools_place}"
    shutil.copytree(build.tools, root / place.lstrip("/"))
    programs = sorted((build.tools / "bin").iterdir())
    (root / "usr" / "sbin").mkdir(parents=True)
    for program in programs:
        (root / "usr" / "sbin" / program.name).symlink_to(f"{place}/bin/{program.name}")
    kept = {file.name for file in (build.tools / "lib").iterdir()}
    for library in _libraries([*programs, *(build.tools / "lib").iterdir()]):
        if library.name not in kept:
            target = root / str(library).removeprefix("/usr").lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    where = {
        "sbindir": f"{place}/bin",
        "bindir": f"{place}/bin",
        "libdir": f"{place}/lib",
        "LIBEXEC": place,
        "LIBEXEC_BIN": f"{place}/bin",
        "XEN_SCRIPT_DIR": "/etc/xen/scripts",
        "XEN_RUN_DIR": "/var/run/xen",
        "XEN_LOG_DIR": "/var/log/xen",
        "XEN_LOCK_DIR": "/var/lock",
        "XEN_LIB_DIR": "/var/lib/xen",
    }
    words = where | {
        "CONFIG_DIR": "/etc",
        "CONFIG_LEAF_DIR": "default",
        "LINUX_BACKEND_MODULES": BACKENDS,
        "XENSTORED": f"{place}/bin/xenstored",
        "qemu_xen_path": "/bin/false",
    }
    for name in ("etc/xen/scripts", "etc/init.d", "var/lib/xen", "var/log/xen", "var/lock"):
        (root / name).mkdir(parents=True)
    (root / "etc/xen/scripts/hotplugpath.sh").write_text("".join(f'{k}="{v}"\n' for k, v in where.items()))
    for script in [*scripts.iterdir(), scripts / "init.d" / "xencommons.in"]:
        if not script.is_file() or script.name == "Makefile":
            continue
        text = re.sub(r"@(\w+)@", lambda found: words[found[1]], script.read_text(encoding="utf-8"))
        target = root / "etc" / ("init.d" if script.parent != scripts else "xen/scripts") / script.name
        target = target.with_name(target.name.removesuffix(".in"))
        target.write_text(text, encoding="utf-8")
        target.chmod(0o755)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _cpio(root: Path) -> bytes:
    names = b"\n".join(str(path.relative_to(root)).encode() for path in sorted(root.rglob("*"))) + b"\n"
    command = ["cpio", "--quiet", "-R", "0:0", "-H", "newc", "-o"]
    return subprocess.run(command, cwd=root, input=names, check=True, capture_output=True).stdout
