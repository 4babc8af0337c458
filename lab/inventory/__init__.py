"""The boards of a lab, as read from ``inventory/``: the one source of truth.

The file is an Ansible inventory; what is ours stands under the key ``xenlab`` of a host or of
``all.vars``. Secrets are never in it: a BMC names a credential (:mod:`lab.base.credentials`).
"""

from __future__ import annotations

from pathlib import Path

from lab.inventory.specs import (
    BMC_KEYS,
    BMC_PORTS,
    BmcSpec,
    BoardSpec,
    ConsoleSpec,
    HostSpec,
    Lab,
    NetbootSpec,
    NicSpec,
    PduSpec,
    ShapeSpec,
    SwitchSpec,
    VirtualSpec,
)
from lab.inventory.xen_command_line import XEN_OPTIONS

__all__ = [
    "BMC_KEYS",
    "BMC_PORTS",
    "XEN_OPTIONS",
    "BmcSpec",
    "BoardSpec",
    "ConsoleSpec",
    "HostSpec",
    "Lab",
    "NetbootSpec",
    "NicSpec",
    "PduSpec",
    "ShapeSpec",
    "SwitchSpec",
    "VirtualSpec",
    "load",
]


def load(path: Path, *, may_be_empty: bool = False) -> Lab:
    """Read an inventory; see :func:`lab.inventory.reading.load`."""
    from lab.inventory import reading  # with pydantic and ruamel, which recorders and board daemons do without

    return reading.load(path, may_be_empty=may_be_empty)
