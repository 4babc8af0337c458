"""What a board daemon is told: one JSON file in the board's directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import shape
from lab.inventory import BoardSpec, NetbootSpec
from lab.virtual.qemu import OF_THE_MACHINE, Emulator

OWN_SHAPE = "own"  # what a board's own form is called where a shape's name is asked for


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """A board and the loopback ports that are nobody else's business."""

    board: BoardSpec
    kcs_port: int  # TCP: the BMC's system interface, QEMU connects to it; 0: it speaks Redfish and has none
    link_peer_port: int  # UDP: the peer's end of the lab link; 0: none
    netboot: NetbootSpec | None = None  # the network it boots from, if it has no disk
    served: str = ""  # folder of what it gets there
    emulator: Emulator = OF_THE_MACHINE
    stands_on: str = ""  # the image of its disk, QEMU and this machine's processor: a saved state is for these alone


def write_config(path: Path, config: DaemonConfig) -> None:
    """Write what :func:`read_config` reads."""
    path.write_text(json.dumps(asdict(config), indent=1, default=sorted), encoding="utf-8")  # sorted: of sets


def read_config(path: Path) -> DaemonConfig:
    """Read a daemon's configuration back. :raises ValueError: it is not what :func:`write_config` wrote."""
    return shape.read(DaemonConfig, path.read_bytes())
