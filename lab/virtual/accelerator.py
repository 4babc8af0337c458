"""Which accelerator runs the virtual boards: KVM only where a Xen has booted under it.

``/dev/kvm`` can be there, make a machine, and still fail at an instruction of Xen's start-up (nested on hosts that
emulate only part of it), so the file says nothing. The answer is kept until QEMU, the host's
kernel or CPU, or the image changes.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lab.base import paths
from lab.inventory import BoardSpec
from lab.virtual import bare, qemu
from lab.virtual.emulator import version

KVM = Path("/dev/kvm")
LIMIT = 120.0  # seconds to dom0; with KVM it takes a few
SILENCE = 15.0  # a machine that stopped at an instruction prints nothing more


def proved(
    board: BoardSpec,
    home: Path,
    kcs_port: int,
    image: str,
    emulator: qemu.Emulator,
    say: Callable[[str], None] | None,
) -> Literal["tcg", "kvm"]:
    """``kvm`` if the board's own disk has booted Xen and dom0 under it, else ``tcg``.

    ``home`` is the folder of the prepared board (its disk is used and must be made anew afterwards).
    """
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    kept = paths.cache() / "accelerator.json"
    key = f"{version(emulator.binary)}, {platform.release()}, {cpu()}, image {image}"
    try:
        known = dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    if key not in known:
        if say:
            say("/dev/kvm is there: proving that Xen boots under it (once)")
        assert board.virtual
        tried = replace(board, virtual=replace(board.virtual, accelerator="kvm"))
        ends = bare.wiring(home, kcs_port)
        with bare.booted(tried, ends, timeout=LIMIT, silence=SILENCE, emulator=emulator) as seconds:
            known[key] = "tcg" if seconds is None else "kvm"
        if say:
            say(f"accelerator: {known[key]} ({'Xen does not boot' if seconds is None else 'Xen boots'} under KVM)")
        kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return "kvm" if known[key] == "kvm" else "tcg"


def cpu() -> str:
    """The model of this machine's processor."""
    text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return match[1] if match else "unknown CPU"
