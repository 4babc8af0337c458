"""This machine's processes and ports, as what is started here must know them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path


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


def port_is_taken(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether nobody else can listen on this loopback port."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:  # ports of connections that just ended are free; of datagrams it would share
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
