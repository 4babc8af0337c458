"""What runs at a host for a lab, as files there: what the supervisor, the recorders and the exporter read."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lab import netboot
from lab.base import shape
from lab.console.config import RecorderConfig
from lab.grid import host_lines
from lab.grid.host_lines import NETBOOT, Orders

FILE = "at-host.json"  # a supervisor's folder has it if it is that of a host
LINK = "asked-for"  # its time of change: when a lab last asked for what runs here
LINGER = 24 * 3600.0  # seconds that consoles are recorded on when no lab asks any more


@dataclass(frozen=True, slots=True)
class AtHost:
    """Whose host this is."""

    lab: str
    host: str
    coordinator: str  # the address of gRPC's by which the exporter reaches it


def read(folder: Path) -> AtHost | None:
    """None: the folder is a lab's own. :raises ValueError: the file is damaged."""
    try:
        return shape.read(AtHost, (folder / FILE).read_bytes())
    except FileNotFoundError:
        return None


def write(orders: Orders, folder: Path, sockets: Path) -> None:
    """Write what the services here are configured by. :raises OSError: the disk does not take it."""
    consoles = folder / "console"
    consoles.mkdir(parents=True, exist_ok=True)
    for file in consoles.glob("*.recorder.json"):  # of boards that are elsewhere now; their records stay
        file.unlink()
    for board in orders.boards:
        config = RecorderConfig(board.name, board.console, board.console_bmc, consoles, served_in=sockets)
        config.write(consoles / f"{board.name}.recorder.json")
    _write_netboot(orders, folder, sockets)
    (folder / "exporter.yaml").write_text(orders.exported, encoding="utf-8")
    at_host = AtHost(orders.lab, orders.host, f"unix:{sockets / host_lines.COORDINATOR}")
    (folder / FILE).write_text(json.dumps(asdict(at_host)), encoding="utf-8")
    ask(folder)


def _write_netboot(orders: Orders, folder: Path, sockets: Path) -> None:
    """What boards boot from here: GRUB and dnsmasq's configuration, and the relay to the lab's server."""
    command, place = folder / f"{NETBOOT}.yaml", folder / "netboot"
    command.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    if orders.netboot is None:
        return
    (place / "tftp").mkdir(parents=True)
    for name, grub in orders.netboot.grubs.items():
        (place / "tftp" / name).write_bytes(base64.b64decode(grub))
    network, boards = orders.netboot.network, [board for board in orders.boards if board.boot == "network"]
    (place / "dnsmasq.conf").write_text(netboot.dnsmasq_conf(network, boards, place), encoding="utf-8")
    words = [sys.executable, "-P", "-m", "lab.netboot.relay", str(sockets / NETBOOT), str(place)]
    command.write_text(yaml.safe_dump([*words, network.server, str(netboot.PORT)]), encoding="utf-8")


def ask(folder: Path) -> None:
    """A lab asks for what runs here."""
    (folder / LINK).touch()


def is_forgotten(folder: Path) -> bool:
    """Whether this is a host's folder, and no lab has asked for it for :data:`LINGER` seconds."""
    try:
        return time.time() - (folder / LINK).stat().st_mtime > LINGER
    except OSError:
        return False
