"""What shall be on a board: a build, its payloads, the options of a boot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.base import paths
from lab.builds import Build
from lab.inventory import BoardSpec
from lab.on_board import GUESTS, PYTHON

TOOLS_INIT = paths.FIRMWARE / "provision" / "tools-init"
CRASH_INIT = paths.FIRMWARE / "provision" / "crash-init"  # lab.xen.kexec starts it
TOOLS = "usr/lib/xenlab/tools"
HYPERVISOR = "boot/xenlab/xen-under-test.gz"
ON_BOARD = (
    "__init__.py",
    "on_board/__init__.py",
    "on_board/stream.py",
    "on_board/proxy.py",
    "on_board/poke.py",
    "on_board/vmcore.py",
)  # of lab/: run in dom0 by its Python


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be on a board."""

    build: Build
    xen_options: str = ""  # for this run, beside the lab's, the board's and the build's own
    payloads: Mapping[str, Path] = field(default_factory=dict)

    def command_line(self, board: BoardSpec) -> str:
        """Xen's options on this board, in the order in which later ones win."""
        return board.xen_command_line(self.build.recipe.xen_options, self.xen_options)

    def dom0_words(self, board: BoardSpec) -> str:
        """Options of dom0's kernel, beside those of the known-good entry."""
        return " ".join(filter(None, (board.dom0_options, self.tools_words())))

    def tools_words(self) -> str:
        """Options of dom0's kernel with which a build's own tools come in."""
        if not self.build.tools:
            return ""
        place = f"/{self.build.tools_place}:/{TOOLS}/{self.build.key}"
        return f"init=/usr/lib/xenlab/{TOOLS_INIT.name} xenlab_tools={place}"

    def options(self, board: BoardSpec) -> str:
        """All options of a boot on this board."""
        return f"{self.command_line(board)}\0{self.dom0_words(board)}"

    def files(self) -> dict[str, Path]:
        """What goes onto every board: path from its root -> local file."""
        found = {HYPERVISOR: self.build.xen, f"usr/lib/xenlab/{CRASH_INIT.name}": CRASH_INIT}
        if self.build.tools:
            found[f"usr/lib/xenlab/{TOOLS_INIT.name}"] = TOOLS_INIT
            found |= {f"{TOOLS}/{self.build.key}/{name}": path for name, path in self.build.tool_files().items()}
        found |= {f"{GUESTS}/{name}".lstrip("/"): path for name, path in self.payloads.items()}
        found |= {f"{PYTHON}/lab/{name}".lstrip("/"): paths.PACKAGE / name for name in ON_BOARD}
        return found

    def digest(self, board: BoardSpec) -> str:
        """What names all of it, for the board to keep."""
        return digest_of(self.options(board), self.checksums())

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each of :meth:`files`."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(self.files().items())}


def digest_of(options: str, checksums: Mapping[str, str]) -> str:
    """What names options and files together."""
    return hashlib.sha256(json.dumps([options, dict(checksums)]).encode()).hexdigest()[:24]
