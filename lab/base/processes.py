"""This machine's processes and ports, and the environment that a process started from here is given."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError, WaitTimeout
from lab.base.wait import wait_until

# A child is given the variables it needs, by name, and no others: a user's environment holds BMC passwords, the URL of
# a database, tokens of CI, and whatever else there is. Each name may be a pattern of fnmatch.
_ALWAYS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "LANG", "LANGUAGE", "LC_*"),
    *("TMPDIR", "XDG_*", "LD_LIBRARY_PATH"),
)
# For programs that reach other machines: git, apt, ssh. A proxy's URL may hold a password, so a compiler has none.
NETWORK = (
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
    *("SSH_AUTH_SOCK", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"),
)
ANSIBLE = ("ANSIBLE_CONFIG", "ANSIBLE_VAULT_PASSWORD_FILE")  # paths of files
# For processes of this project; environment() puts this checkout first on their path.
PYTHON = (
    *("PYTHON*", "VIRTUAL_ENV", "PYTEST_*", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "GRPC_*"),
    *("LG_COORDINATOR", "LG_ENV", "LG_HOSTNAME", "LG_USERNAME", "LG_PROXY"),
    *("XENLAB_LEASE", "XENLAB_PASS_ENV", "XENLAB_PYTHON", "XENLAB_REPORTS"),
)
CREDENTIALS = ("XENLAB_CREDENTIAL_*",)  # for processes of this project that speak to BMCs
PASS_ENV = "XENLAB_PASS_ENV"  # the user's own additions: names or patterns, separated by blanks


def environment(*needs: Sequence[str]) -> dict[str, str]:
    """The environment for a child process: what every program needs, and what is named by ``needs``.

    ``needs`` are among :data:`NETWORK`, :data:`ANSIBLE`, :data:`PYTHON` and :data:`CREDENTIALS`. A user adds names by
    the variable :data:`PASS_ENV`.
    """
    patterns = [*_ALWAYS, *(name for names in needs for name in names), *os.environ.get(PASS_ENV, "").split()]
    found = {
        name: value for name, value in os.environ.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns)
    }
    if PYTHON in needs:
        found["PYTHONPATH"] = paths.environment()["PYTHONPATH"]
    return found


# Namespaces in which root may mount, with the ids of /etc/subuid and /etc/subgid beside its own: unshare(1).
NAMESPACE = ("unshare", "--user", "--map-auto", "--map-root-user", "--mount")
_SYS_ADMIN = 21  # what mount(2) asks for: capabilities(7); the number is in linux/capability.h


def is_root_without_mounts() -> bool:
    """Whether this is root who may not mount, as in a container that was given no more than by default."""
    if os.geteuid():
        return False
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return not int(effective, 16) >> _SYS_ADMIN & 1


def has_ended(pid: int, timeout: float) -> bool:
    """Wait up to ``timeout`` seconds for a process; a child is reaped, or it would never go away."""

    def is_gone() -> bool:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        return not Path(f"/proc/{pid}").exists()

    try:
        return wait_until(is_gone, timeout, f"the end of process {pid}", interval=0.05)
    except WaitTimeout:
        return False


def mark(pid: int) -> str:
    """What tells this process from a later one of the same number: boot, number, and when it started.

    :raises UsageError: there is no such process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        raise UsageError(f"there is no process {pid}") from None
    return f"{boot()}:{pid}:{fields[19]}"  # proc(5): starttime is field 22, the state after the name is 3


@cache
def boot() -> str:
    """What tells this boot of the machine from all others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]


def is_alive(marked: str) -> bool:
    """Whether the process that :func:`mark` saw still runs; one that only waits for its parent does not.

    Text that is no mark is nobody's.
    """
    parts = marked.split(":")
    if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit()):
        return False
    pid = int(parts[1])
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X") and mark(pid) == marked
    except (OSError, UsageError):
        return False


def hold_for_life(path: Path) -> bool:
    """Take the exclusive lock on this file for as long as this process lives; False: another process has it.

    It is a record lock of fcntl(2): the kernel knows the holder (:func:`holder_of`) and takes the lock from whoever
    ends, however that is. Nothing is written, so a full disk is no hindrance once the file exists. The file must not
    be opened by this process again: closing it would give the lock back.

    :raises OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    _held.append(descriptor)
    return True


_held: list[int] = []  # descriptors that stay open until this process ends
_FLOCK = "hhqqi"  # struct flock of Linux on 64 bits: type, whence, start, length, pid


def holder_of(path: Path) -> int | None:
    """The process that has the lock of :func:`hold_for_life`, or None. The lock is not touched."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)


ALIVE = "XENLAB_SIGN_OF_LIFE"  # the file by which a service shows that it is alive; set by the supervisor


def give_sign_of_life() -> None:
    """Say that this service is alive, if a supervisor asked for it: its main loop calls this at least every 5 s.

    The sign is the time of change of a file, so it needs no room on the disk. Cheap: it is given once a second.
    """
    global _last_sign
    path, now = os.environ.get(ALIVE), time.monotonic()
    if path and now - _last_sign >= 1.0:
        _last_sign = now
        with suppress(OSError):
            os.utime(path)


_last_sign = -1.0


def is_listening(address: str) -> bool:
    """Whether somebody takes a connection at ``HOST:PORT``, or ``unix:PATH``, at any address, within a second."""
    host, _, port = address.rpartition(":")
    try:
        if host == "unix":
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(1)
                link.connect(port)
            return True
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def port_is_taken(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether somebody has this loopback port: listens on it, or for datagrams is bound to it.

    It is looked up, as proc_pid_net(5) has it, and not tried: a try has the port for that moment, and takes it from
    whoever was just being waited for.
    """
    table, states = ("tcp", {"0A"}) if kind is socket.SOCK_STREAM else ("udp", {"01", "07"})
    # Addresses are in the machine's own byte order: these are 127.0.0.1 and any, of IPv4 and of IPv6.
    hosts = ("0100007F", "0" * 8, "0" * 32)
    wanted = {f"{host}:{port:04X}" for host in hosts}
    for name in (table, f"{table}6"):
        try:
            rows = Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        if any(fields[1] in wanted and fields[3] in states for fields in map(str.split, rows)):
            return True
    return False
