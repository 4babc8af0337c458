"""This machine's processes and ports, as what is started here must know them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from lab.base.errors import UsageError


def has_ended(pid: int, timeout: float) -> bool:
    """Wait up to ``timeout`` seconds for a process; a child is reaped, or it would never go away."""
    deadline = time.monotonic() + timeout
    while Path(f"/proc/{pid}").exists():
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def mark(pid: int) -> str:
    """What tells this process from a later one of the same number: boot, number, and when it started.

    :raises UsageError: there is no such process.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        raise UsageError(f"there is no process {pid}") from None
    return f"{boot}:{pid}:{fields[19]}"  # proc(5): starttime is field 22, the state after the name is 3


def is_alive(marked: str) -> bool:
    """Whether the process that :func:`mark` saw still runs; one that only waits for its parent does not."""
    pid = int(marked.split(":")[1])
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X") and mark(pid) == marked
    except (OSError, UsageError):
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
