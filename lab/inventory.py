"""The boards of a lab, as read from ``inventory/``: the one source of truth.

The file is an Ansible inventory; what is ours stands under the key ``xenlab`` of a host or of
``all.vars``. Secrets are never in it: a BMC names a credential (:mod:`lab.credentials`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class BmcSpec:
    """How the board's BMC is reached."""

    host: str
    credential: str
    protocol: Literal["ipmi", "redfish"] = "ipmi"
    port: int = 623
    interface: str = "lanplus"
    cipher: int = 17  # ipmi_sim 2.0.33 only knows 3


@dataclass(frozen=True, slots=True)
class ConsoleSpec:
    """Where the recorder reads the serial console, and where it serves it to others."""

    via: Literal["sol", "tcp", "rfc2217", "device"]
    serve_port: int  # TCP port of the recorded console (labgrid's NetworkSerialPort, protocol raw)
    lines_port: int  # TCP port of the recorded lines (JSON lines)
    host: str = ""  # tcp, rfc2217
    port: int = 0
    device: str = ""  # device: /dev/serial/by-id/...
    speed: int = 115200


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network port of the board. Roles: management, lab (link to the peer), spare (to pass through)."""

    role: Literal["management", "lab", "spare"]
    mac: str
    address: str = ""  # CIDR in dom0
    pci: str = ""  # "0000:00:05.0"; empty: found by MAC


@dataclass(frozen=True, slots=True)
class VirtualSpec:
    """The shape of a board made of QEMU; absent on steel."""

    vcpus: int = 1
    memory_mib: int = 3072
    numa_nodes: int = 1
    serial_port: int = 0  # TCP port of the UART's far end, what ``console`` or the BMC's SOL connects to
    link_port: int = 0  # UDP port of this end of the lab link; the peer's is found by ``link``
    accelerator: Literal["tcg", "kvm", "proved"] = "tcg"


@dataclass(frozen=True, slots=True)
class BoardSpec:
    """One board."""

    name: str
    ssh_host: str
    bmc: BmcSpec
    console: ConsoleSpec
    ssh_port: int = 22
    ssh_user: str = "root"
    nics: Mapping[str, NicSpec] = field(default_factory=dict)  # by role
    capabilities: frozenset[str] = frozenset()  # declared; probed before use
    tags: Mapping[str, str] = field(default_factory=dict)
    link: str = ""  # boards with the same link are a migration pair
    xen_options: str = ""  # what this board needs on Xen's command line, e.g. "spec-ctrl=no xsave=0"
    dom0_options: str = ""
    virtual: VirtualSpec | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab: its boards and where its labgrid coordinator listens."""

    name: str
    path: Path
    boards: Mapping[str, BoardSpec]
    coordinator: str = "127.0.0.1:20408"

    @property
    def is_virtual(self) -> bool:
        """Whether any board is made of QEMU, so that the lab must be brought up first."""
        return any(board.virtual for board in self.boards.values())

    def pairs(self) -> tuple[tuple[BoardSpec, BoardSpec], ...]:
        """Boards joined by a link, two and two, in name order."""
        links: dict[str, list[BoardSpec]] = {}
        for name in sorted(self.boards):
            if self.boards[name].link:
                links.setdefault(self.boards[name].link, []).append(self.boards[name])
        return tuple((ends[0], ends[1]) for ends in links.values() if len(ends) == 2)
