"""Which instructions of the hypervisor a figure's stretch has, counted by a plugin of QEMU (``firmware/profile``).

The plugin writes a line for each figure that a guest has measured since power on: address and instructions of each
block. It is for boards whose clock counts instructions, and changes no count.
"""

from __future__ import annotations

from pathlib import Path

from lab.base import paths
from lab.virtual.compiled import compiled
from lab.virtual.emulator import version

SOURCES = paths.FIRMWARE / "profile"
OF_QEMU = "QEMU emulator version 7."  # the releases whose interface to plugins is the one that is declared there


def plugin(binary: str) -> str:
    """The plugin for this QEMU; "" if its interface is another.

    :raises BenchError: QEMU does not run, or the plugin does not compile.
    """
    return str(compiled(SOURCES, "profile.so")) if version(binary).startswith(OF_QEMU) else ""


def told(written: Path) -> str:
    """All lines so far in one: their number, and each behind a semicolon."""
    try:
        lines = [line.strip() for line in written.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:  # without the plugin, or before the first power on
        lines = []
    return ";".join([str(len(lines)), *lines])
