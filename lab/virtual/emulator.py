"""Which QEMU runs the virtual boards: the machine's own, unless it gets something wrong that the guests need.

QEMU from 9.1 on checks the interception of each read of a control register as that of CR0, so that no Linux runs on
nested paging in a board (docs/findings/emulation.md). So the machine's QEMU is asked, by a kernel of a hundred lines
(``firmware/probe``). In place of one that fails, boards get QEMU 7.2 of Debian 12's packages, unpacked into the cache
beside the machine's own, with the libraries of its release.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.base import lock, paths, processes
from lab.base.errors import BenchError, UsageError
from lab.builds.apt import PrivateApt
from lab.builds.command import run
from lab.virtual import qemu
from lab.virtual.compiled import compiled

PROBE = paths.FIRMWARE / "probe"
GIVEN = "XENLAB_QEMU"  # the variable that names a QEMU to be used whatever it lacks
LIMIT = 60.0  # seconds of the probe; it takes a fifth of one
SUITE = "bookworm"  # the release of Debian whose QEMU lacks nothing
LACKS = {33: (), 35: ("guest-cr2",)}  # by the status with which the probe ends

Say = Callable[[str], None]


def choose(say: Say | None = None) -> qemu.Emulator:
    """The QEMU for this machine's boards. It is probed once, and Debian 12's is fetched once if it must be.

    :raises UsageError: there is none.
    :raises BenchError: it does not run the probe, or Debian 12's packages cannot be had.
    """
    found, outlook = _found()
    if not found.lacks:
        return found
    if not os.environ.get(GIVEN):
        return of_debian_12(outlook, say)
    if say:
        say(outlook)
    return found


def outlook() -> str:
    """What boards run on, in a line for people. Nothing is fetched.

    :raises UsageError, BenchError: as :func:`choose`.
    """
    return _found()[1]


def _found() -> tuple[qemu.Emulator, str]:
    """The QEMU that is named or installed, and what comes of it."""
    given = os.environ.get(GIVEN, "")
    binary = shutil.which(given or qemu.BINARY)
    if binary is None:
        raise UsageError(
            f"{GIVEN}={given}: there is no such program"
            if given
            else f"{qemu.BINARY} is not installed (Debian package qemu-system-x86); `xenlab doctor` lists all"
        )
    lacks = lacking(binary)
    text = f"{version(binary)} ({GIVEN})" if given else version(binary)
    if lacks:
        end = "so do its boards" if given else "so boards run on Debian 12's QEMU"
        text += f" lacks {', '.join(lacks)}, {end}"
    return qemu.Emulator(binary, lacks=lacks), text


def version(binary: str) -> str:
    """``QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)``. :raises BenchError: it does not run."""
    return run([binary, "--version"], timeout=20).splitlines()[0]


def lacking(binary: str) -> tuple[str, ...]:
    """The capabilities that no board on this QEMU has (:mod:`lab.inventory.capabilities`); kept until it changes.

    They are of emulated boards: KVM has its own interception.

    :raises BenchError: it does not run the probe.
    """
    probe = compiled(PROBE, "cr2")
    kept = paths.cache() / "emulators.json"
    key = f"{version(binary)}, {os.path.realpath(binary)}, probe {probe.parent.name}"
    try:
        known = dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = _probed(binary, probe)
        kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return tuple(map(str, known[key]))


def _probed(binary: str, probe: Path) -> tuple[str, ...]:
    machine = ["-machine", "q35", "-accel", "tcg", "-cpu", qemu.CPU, "-m", "64", "-no-user-config", "-nodefaults"]
    command = [*qemu.DIE_WITH_PARENT, binary, *machine, "-display", "none", "-device", "isa-debug-exit"]
    command += ["-kernel", str(probe)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            env=processes.environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{binary}: the probe {probe} did not end within {LIMIT:.0f} s") from None
    if done.returncode not in LACKS:
        said = (done.stdout + done.stderr).strip()[-500:]
        raise BenchError(f"{binary}: the probe {probe} ended with status {done.returncode}: {said or 'no word'}")
    return LACKS[done.returncode]


def of_debian_12(why: str, say: Say | None = None) -> qemu.Emulator:
    """Debian 12's QEMU with firmware and libraries: from the cache, or fetched now (35 MB), which ``say`` is told.

    :raises BenchError: the packages cannot be had.
    """
    folder = paths.cache() / "emulators" / SUITE
    made = folder / "made"
    found = qemu.Emulator(str(folder / "usr" / "bin" / qemu.BINARY), str(folder / "usr" / "share" / "OVMF"))
    with lock.held(folder.with_name(f"{SUITE}.lock"), 900, "Debian 12's QEMU"):
        if not made.exists() or made.read_text(encoding="utf-8") != str(folder):  # its loader's place is in the program
            if say:
                say(f"{why}: fetching it (once)")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
                _unpack(Path(scratch), folder)
                shutil.rmtree(folder, ignore_errors=True)
                (Path(scratch) / "root").rename(folder)
            made.write_text(str(folder), encoding="utf-8")
    return found


def _unpack(scratch: Path, target: Path) -> None:
    """Make ``root`` in ``scratch``, to be moved to ``target``. QEMU finds modules and firmware beside itself there."""
    root, archives = scratch / "root", scratch / "archives"
    archives.mkdir()
    apt = PrivateApt(suite=SUITE)
    others = ("qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu", "ovmf")
    for archive in apt.fetch_newest([*apt.libraries("qemu-system-x86"), *others], archives):
        run(["dpkg-deb", "-x", str(archive), str(root)], timeout=120, what=f"unpacking {archive.name}")
    for module in (root / "usr" / "lib" / "x86_64-linux-gnu" / "qemu").glob("*.so"):
        if not module.name.startswith("accel-"):
            module.unlink()  # screens, sound and USB, which need more libraries, and which no board has
    loader = target / "lib" / "x86_64-linux-gnu" / "ld-linux-x86-64.so.2"
    places = ":".join(f"$ORIGIN/../{up}lib/x86_64-linux-gnu" for up in ("", "../"))
    # DT_RPATH and not DT_RUNPATH: it holds for the libraries' own needs too (ld.so(8)).
    words = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", places]
    run(["patchelf", *words, str(root / "usr" / "bin" / qemu.BINARY)], timeout=60)
