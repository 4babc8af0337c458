"""What boards that boot by network are served: the virtual boards' image as the known-good build, machines or not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from lab import netboot
from lab.base import paths
from lab.inventory import Lab
from lab.virtual import identity, image


def write(lab: Lab, *, progress: Callable[[str], None] | None = None) -> Path:
    """Write it anew, identities included; the folder it is in. No build under test is offered then.

    :raises BenchError: the image or GRUB cannot be made.
    """
    made, keys = image.make(progress=progress), paths.state() / "lab" / "ssh"
    with tempfile.TemporaryDirectory() as scratch:
        identities = {board.name: Path(scratch, f"{board.name}.tar") for board in lab.network_booted()}
        for name, path in identities.items():
            identity.write_seed(path, lab, lab.boards[name], keys)
        netboot.write(lab, boot=made.kernel_root / "boot", root=made.root, identities=identities)
    (keys / "known_hosts").write_text(identity.known_hosts(lab, keys), encoding="ascii")
    return netboot.folder(lab)
