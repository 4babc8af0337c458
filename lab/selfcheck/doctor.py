"""What this machine lacks before it can run a lab: ``xenlab doctor``. Nothing is changed here.

``./xenlab`` reads the same list of packages and installs them; see there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import paths, processes
from lab.base.errors import BenchError, UsageError

PACKAGES_OF_TESTS = "# --- what the framework's own tests need"  # begins the last section of the list
PACKAGES = paths.FIRMWARE / "packages.txt"
CHECKED = "XENLAB_PACKAGES_CHECKED"  # set by ./xenlab
TESTED = ("12", "13")  # releases of Debian
CACHE_GIB = 6.0  # image, builds, payloads, environment; see README.md
MEMORY_GIB = 7.0  # two virtual boards of 3 GiB and the rest


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package and what it is for."""

    name: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing looked at. ``remedy`` says what to do; only where ``is_good`` is false."""

    subject: str
    is_good: bool
    detail: str
    remedy: str = ""


def packages(listing: Path = PACKAGES) -> list[Package]:
    """The packages a machine needs; without those that only `xenlab selftest` does.

    :raises UsageError: unreadable, or a line that is not one name and a comment.
    """
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{listing}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line == PACKAGES_OF_TESTS:
            break
        name, _, purpose = line.partition("#")
        if not name.strip():
            continue
        if len(name.split()) != 1:
            raise UsageError(f"{listing}:{number}: one package name a line, got {name.strip()!r}")
        found.append(Package(name.strip(), purpose.strip()))
    return found


def missing_packages(listing: Path = PACKAGES) -> list[Package]:
    """Those of the list that dpkg does not call installed, in the list's order.

    :raises UsageError: no Debian system.
    :raises BenchError: dpkg-query fails.
    """
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=processes.environment()
        )
    except FileNotFoundError:
        raise UsageError("this is not a Debian system (no dpkg-query): Debian 12 or 13 is needed") from None
    except subprocess.TimeoutExpired as error:
        raise BenchError("dpkg-query did not end within 60 s") from error
    if done.returncode:
        raise BenchError(f"dpkg-query ended with status {done.returncode}: {done.stderr.strip()[-400:]}")
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages(listing) if package.name not in installed]


def demand_packages() -> None:
    """See that everything a run starts is installed. ``./xenlab`` has looked already, and says so.

    :raises UsageError: something is missing; the message is the command that installs it.
    """
    if os.environ.get(CHECKED):
        return
    if missing := missing_packages():
        raise UsageError(f"this machine lacks packages; as root: {install_command(missing)}")


def install_command(missing: Sequence[Package]) -> str:
    """The one command that installs them, to be run as root."""
    names = " ".join(package.name for package in missing)
    return f"apt-get update && apt-get install -y --no-install-recommends {names}"


def examine(listing: Path = PACKAGES) -> list[Requirement]:
    """Look at everything, and go on where one thing is bad."""
    looks: list[Callable[[], Requirement]] = [
        _system,
        lambda: _packages(listing),
        _python,
        lambda: _folder("cache", paths.cache, CACHE_GIB),
        lambda: _folder("state", paths.state, 1.0),
        _memory,
        _namespaces,
    ]
    findings = []
    for look in looks:
        try:
            findings.append(look())
        except (UsageError, BenchError) as error:
            findings.append(Requirement("packages", False, str(error), "see above"))
    return findings


def _system() -> Requirement:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    name = release.get("PRETTY_NAME", "no os-release(5)")
    is_tested = release.get("ID") == "debian" and release.get("VERSION_ID") in TESTED
    tested = " and ".join(TESTED)
    remedy = f"Debian {tested} are tested; other systems may lack packages or have them under other names"
    return Requirement("system", is_tested, name if is_tested else f"{name}: not tested", remedy)


def _packages(listing: Path) -> Requirement:
    missing = missing_packages(listing)
    if not missing:
        return Requirement("packages", True, f"all {len(packages(listing))} installed")
    detail = ", ".join(f"{p.name} ({p.purpose})" if p.purpose else p.name for p in missing)
    return Requirement("packages", False, f"missing: {detail}", f"as root: {install_command(missing)}")


def _python() -> Requirement:
    version = ".".join(str(number) for number in sys.version_info[:3])
    return Requirement("python", sys.version_info >= (3, 11), f"{version} in {sys.prefix}", "Python 3.11 or newer")


def _folder(kind: str, where: Callable[[], Path], wanted_gib: float) -> Requirement:
    variable = f"XDG_{kind.upper()}_HOME"
    try:
        directory = where()
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Requirement(f"{kind} folder", False, str(error), f"point {variable} to a folder you may write to")
    free_gib = shutil.disk_usage(directory).free / 2**30
    detail = f"{directory}: {free_gib:.1f} GiB free"
    remedy = f"a full lab wants {wanted_gib:.0f} GiB there: make room, or point {variable} elsewhere"
    return Requirement(f"{kind} folder", free_gib >= wanted_gib, detail, remedy)


def _memory() -> Requirement:
    available_gib = 0.0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available_gib = int(line.split()[1]) / 2**20  # the file counts in KiB
    detail = f"{available_gib:.1f} GiB available, {os.cpu_count()} processors"
    return Requirement("memory", available_gib >= MEMORY_GIB, detail, f"two virtual boards want {MEMORY_GIB:.0f} GiB")


def _namespaces() -> Requirement:
    """mmdebstrap makes the dom0 image as root who may mount, or else in a user namespace with ids of its own."""
    if os.geteuid() == 0 and not processes.is_root_without_mounts():
        return Requirement("image building", True, "as root")
    remedy = "allow user namespaces and give this user a range in /etc/subuid and /etc/subgid"
    if shutil.which(processes.NAMESPACE[0]) is None:
        return Requirement("image building", False, "no unshare (package util-linux)", remedy)
    try:
        done = subprocess.run(
            [*processes.NAMESPACE, "true"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=processes.environment(),
        )
    except subprocess.TimeoutExpired:
        return Requirement("image building", False, "unshare did not end within 20 s", remedy)
    detail = "in a user namespace" if done.returncode == 0 else done.stderr.strip()[-200:]
    return Requirement("image building", done.returncode == 0, detail, remedy)
