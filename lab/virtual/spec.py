"""What a board daemon is told: one JSON file in the board's directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec, NetbootSpec, NicSpec, PduSpec, ShapeSpec, VirtualSpec
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


def write_config(path: Path, config: DaemonConfig) -> None:
    """Write what :func:`read_config` reads."""
    path.write_text(json.dumps(asdict(config), indent=1, default=sorted), encoding="utf-8")  # sorted: of sets


def read_config(path: Path) -> DaemonConfig:
    """Read a daemon's configuration back."""
    data = json.loads(path.read_text(encoding="utf-8"))
    board = data.pop("board")
    board["bmc"] = BmcSpec(**board["bmc"])
    board["sol"] = BmcSpec(**board["sol"]) if board["sol"] else None
    board["console"] = ConsoleSpec(**board["console"])
    board["nics"] = {role: NicSpec(**nic) for role, nic in board["nics"].items()}
    board["capabilities"] = frozenset(board["capabilities"])
    board["pdu"] = PduSpec(**board["pdu"]) if board["pdu"] else None
    if board["virtual"]:
        shapes = board["virtual"].pop("shapes")
        for form in (board["virtual"], *shapes.values()):  # JSON has lists where these have tuples
            form["numa_distances"] = tuple(tuple(row) for row in form["numa_distances"])
        made = {
            name: ShapeSpec(**shape | {"capabilities": frozenset(shape["capabilities"])})
            for name, shape in shapes.items()
        }
        board["virtual"] = VirtualSpec(**board["virtual"], shapes=made)
    data["netboot"] = NetbootSpec(**data["netboot"]) if data["netboot"] else None
    data["emulator"] = Emulator(**data["emulator"] | {"lacks": tuple(data["emulator"]["lacks"])})
    return DaemonConfig(board=BoardSpec(**board), **data)
