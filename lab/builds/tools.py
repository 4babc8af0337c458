"""The toolstack of a build: programs and libraries that fit its hypervisor, kept apart from the board's own.

They make a folder that takes the place of Debian's ``/usr/lib/xen-X.Y`` while the build runs
(``firmware/provision/tools-init``): Debian's own ``xl`` is a wrapper that runs what it finds there for the running
hypervisor's X.Y. Nothing of the board's own toolstack is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.base.errors import BenchError, UsageError
from lab.builds.apt import DOM0_SUITE, PrivateApt, own_suite
from lab.builds.command import run
from lab.builds.recipes import Recipe

# Of Xen's tools/: what brings up a dom0 and runs guests. A folder that a version does not have is passed over.
PARTS = ("include", "libs", "xenstore", "xenstored", "xs-clients", "helpers", "console", "xl", "misc")
LONGEST = 1800.0  # seconds
CONFIGURED = ".xenlab-tools-configured"  # in the tree, once ./configure ended well: a failed one leaves files, too
NEEDS = {  # program or header: Debian package. Without the last two, compressed guest kernels are refused.
    "autoconf": "autoconf",
    "iasl": "acpica-tools",
    "pkg-config": "pkg-config",
    "/usr/share/misc/config.guess": "autotools-dev",
    "/usr/include/yajl/yajl_version.h": "libyajl-dev",
    "/usr/include/uuid/uuid.h": "uuid-dev",
    "/usr/include/ncurses.h": "libncurses-dev",
    "/usr/include/zlib.h": "zlib1g-dev",
    "/usr/include/lzma.h": "liblzma-dev",
    "/usr/include/zstd.h": "libzstd-dev",
}
_LEFT_OUT = ("oxenstored", "flask-", "test-")  # beginnings of names: what no board of the lab runs
_LOADER = "ld-linux-x86-64.so.2"
_SYSTEM = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


def identify(recipe: Recipe) -> str:
    """What the tools are made of, beside the hypervisor's own source; "" when the build brings none."""
    if recipe.tools == "debian":
        return ""
    if recipe.tools == "source":
        return "source"
    apt = PrivateApt(suite=recipe.suite)
    names = (Path(one).name if one.endswith(".deb") else f"{one}={apt.newest(one)}" for one in recipe.tools)
    return " ".join(names)


def place(version: str) -> str:
    """The folder on a board in which the tools of hypervisor ``version`` are looked for; no leading ``/``.

    :raises BenchError: no X.Y in it.
    """
    if not (found := re.match(r"\d+\.\d+", version)):
        raise BenchError(f"hypervisor version {version!r} has no X.Y, so its tools have no place")
    return f"usr/lib/xen-{found[0]}"


def compile_into(
    target: Path, source: Path, version: str, what: str, make: Callable[..., str], configure: Callable[..., str]
) -> None:
    """Compile the tools of the tree ``source`` and keep what a board needs in ``target``.

    On a machine of another release of Debian than the boards' that is also this machine's libraries, C library and all.

    ``make`` and ``configure`` run ``make ARGUMENTS`` and any other command in the tree, logged.

    :raises BenchError: something to compile with is missing, or it does not compile.
    """
    lacking = sorted({package for thing, package in NEEDS.items() if not (shutil.which(thing) or Path(thing).exists())})
    if lacking:
        raise BenchError(f"{what}: to compile Xen's tools, install {', '.join(lacking)}")
    where = place(version)
    made = source / CONFIGURED
    by = [source / "tools" / name for name in ("configure", "configure.ac")]
    if not made.exists() or any(one.exists() and one.stat().st_mtime > made.stat().st_mtime for one in by):
        for name in ("config.sub", "config.guess"):  # Debian's source comes without, and without ./configure
            if not (source / name).exists():
                shutil.copy2(Path("/usr/share/misc") / name, source / name)
        if not (source / "configure").exists():
            configure("sh", "autogen.sh", what="autogen.sh", timeout=300)
        off = "stubdom docs golang ocamltools xsmpolicy seabios rombios qemu-traditional ipxe pvshim systemd werror"
        configure(
            "./configure",
            "--prefix=/usr",
            f"--libdir=/{where}/lib",
            f"--with-libexec-leaf-dir={Path(where).name}",
            "--sysconfdir=/etc",
            "--localstatedir=/var",
            "--enable-rpath",
            "--with-system-qemu=/usr/libexec/xen-qemu-system-i386",
            *(f"--disable-{name}" for name in off.split()),
            what="configure",
            timeout=300,
        )
        made.touch()
    with tempfile.TemporaryDirectory(prefix="xenlab-tools-") as scratch:
        jobs = len(os.sched_getaffinity(0))
        for part in PARTS:
            if (source / "tools" / part / "Makefile").exists():
                words = ("-C", f"tools/{part}", f"-j{jobs}", "install", f"DESTDIR={scratch}")
                make(*words, what=f"tools/{part}", timeout=LONGEST)
        root = Path(scratch)
        system = [Path("/") / one for one in _SYSTEM] if own_suite() != DOM0_SUITE else []
        programs = (root / "usr/sbin", root / "usr/bin", root / where / "bin")
        _keep(target, programs, [*system, root / where / "lib"])  # the later one of a name counts
        if system:
            _bind(target, where)


def unpack_into(target: Path, recipe: Recipe, version: str) -> None:
    """Unpack the recipe's tool packages; those asked for by name with all libraries, the C library too.

    Programs then run with these libraries alone, so that the packages may be of another Debian release.

    :raises BenchError: a package cannot be had.
    :raises UsageError: the packages hold no tools for this hypervisor.
    """
    assert not isinstance(recipe.tools, str)
    where = place(version)
    apt = PrivateApt(suite=recipe.suite)
    with tempfile.TemporaryDirectory(prefix="xenlab-tools-") as scratch:
        root = Path(scratch) / "root"
        given = [Path(one) for one in recipe.tools if one.endswith(".deb")]
        names = dict.fromkeys(name for one in recipe.tools if not one.endswith(".deb") for name in apt.libraries(one))
        for name in names:
            folder = Path(scratch) / name
            folder.mkdir()
            given.append(apt.fetch_binary(name, apt.newest(name), folder))
        for package in given:
            run(["dpkg-deb", "-x", str(package), str(root)], timeout=120, what=f"unpacking {package.name}")
        libraries = [
            folder
            for top in (*(root / one for one in _SYSTEM), root / where / "lib")
            for folder in (top, top / "x86_64-linux-gnu")
        ]
        if not (root / where / "bin" / "xl").exists():
            raise UsageError(
                f"{recipe.name}: the tools packages hold no {where}/bin/xl, but the hypervisor is {version}"
            )
        _keep(target, (root / where / "bin",), libraries)
        boot = root / where / "boot" / "hvmloader"
        if boot.exists():
            (target / "boot").mkdir()
            shutil.copy2(boot, target / "boot" / "hvmloader")
        _bind(target, where)


def _bind(target: Path, where: str) -> None:
    """Have the programs run with the libraries in ``lib`` alone, once ``target`` is the folder ``where`` of a board."""
    own = f"/{where}/lib"
    has_loader = (target / "lib" / _LOADER).exists()
    for program in sorted((target / "bin").iterdir()):
        words = ["--set-interpreter", f"{own}/{_LOADER}"] if has_loader else []
        # DT_RPATH and not DT_RUNPATH: it holds for the libraries' own needs too (ld.so(8)).
        run(["patchelf", *words, "--force-rpath", "--set-rpath", own, str(program)], timeout=30)


def _keep(target: Path, programs: tuple[Path, ...], libraries: list[Path]) -> None:
    """Copy ELF programs to ``bin``, and the libraries that these and each other need to ``lib``, without symlinks."""
    for name in ("bin", "lib"):
        (target / name).mkdir(parents=True)
    there = {file.name: file for folder in libraries if folder.is_dir() for file in folder.glob("*.so*")}
    found = [file for folder in programs if folder.is_dir() for file in sorted(folder.iterdir()) if _is_elf(file)]
    wanted = [file for file in found if not file.name.startswith(_LEFT_OUT)]
    seen: set[str] = set()
    todo = [(file, target / "bin" / file.name) for file in wanted]
    while todo:
        file, copy = todo.pop()
        shutil.copy2(file, copy)  # follows the link that a library's short name is
        copy.chmod(0o755)
        if copy.parent.name == "bin" or "xen" in copy.name or "xl" in copy.name:
            run(["strip", "--strip-unneeded", str(copy)], timeout=30)
        for name in [*_needed(copy), *([_LOADER] if "libc.so.6" in there else [])]:
            if name in there and name not in seen:
                seen.add(name)
                todo.append((there[name], target / "lib" / name))


def _is_elf(file: Path) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(4) == b"\x7fELF"


def _needed(file: Path) -> Iterator[str]:
    said = run(["readelf", "-d", str(file)], timeout=30)
    yield from re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", said)
