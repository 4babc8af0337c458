"""Boards that are not there, for measuring and testing the lab itself: everything around a board is real.

Coordinator, exporter, recorders, reaper and BMC protocol are the lab's own; where a board's UART would be there is a
TCP port, and nobody need listen on it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from lab import inventory
from lab.base.processes import port_is_taken
from lab.inventory import Lab

CREDENTIAL = "simulated"
FIRST, LAST, EACH = 11000, 20000, 300  # where free ports are looked for: below those of the labs in inventory/
_NUMBERS = itertools.count(os.getpid() * EACH)
CAPABILITIES = ("hvm", "iommu", "migration-pair")


def lab(path: Path, boards: int, *, bmcs: Mapping[str, int] | None = None, **settings: str) -> Lab:
    """Write an inventory of boards ``sim1``, ``sim2``..., joined two and two, and read it.

    ``bmcs``: UDP ports of BMCs by board; ``settings``: more keys for ``all.vars.xenlab``.
    """
    names = [f"sim{number}" for number in range(1, boards + 1)]
    ports = iter(free_ports(4 * boards + 1))
    head = {"lab": path.stem, "coordinator": f"127.0.0.1:{next(ports)}", **settings}
    hosts = {}
    for index, name in enumerate(names):
        source, serve, lines, bmc = (next(ports) for _ in range(4))
        has_peer = (index ^ 1) < boards
        hosts[name] = {
            "ansible_host": "127.0.0.1",
            "xenlab": {
                "bmc": {
                    "host": "127.0.0.1",
                    "port": (bmcs or {}).get(name, bmc),
                    "cipher": 3,
                    "credential": CREDENTIAL,
                },
                "console": {
                    "via": "tcp",
                    "host": "127.0.0.1",
                    "port": source,
                    "serve_port": serve,
                    "lines_port": lines,
                },
                "capabilities": [word for word in CAPABILITIES if has_peer or word != "migration-pair"],
                "tags": {"class": "simulated"},
                **({"link": f"wire-{index // 2 + 1}"} if has_peer else {}),
            },
        }
    tree = {"all": {"vars": {"xenlab": head}, "hosts": hosts}}
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")  # JSON is YAML
    return inventory.load(path)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses at the moment, TCP nor UDP.

    They lie below those that Linux gives to connections (ip_local_port_range, from 32768 on): such a one is soon in use
    by somebody who never asked for it. Processes that were started one after another look in different places.
    """
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    ports = (FIRST + number % (LAST - FIRST) for number in _NUMBERS)
    free = (port for port in ports if not any(port_is_taken(port, kind) for kind in kinds))
    return list(itertools.islice(free, count))
