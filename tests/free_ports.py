"""Ports of loopback for what a test starts."""

from __future__ import annotations

import itertools
import os
import random
import socket

from lab.base.processes import port_is_taken

# Below those that the kernel gives to connections, above those of the labs in inventory/. Each worker of pytest-xdist
# has its own; the last ones are for a process without.
FIRST, EACH, ALONE = 23000, 2400, 3
_SLOT = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{ALONE}").removeprefix("gw")) % (ALONE + 1)
_NUMBERS = itertools.count(random.randrange(EACH))


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody has, and that was not given out a moment ago: it may be bound much later."""
    ports = (FIRST + _SLOT * EACH + number % EACH for number in _NUMBERS)
    return next(port for port in ports if not port_is_taken(port, kind))
