"""Counts what each case executes of the hypervisor: counters set to 0 before it, read after it, kept in its folder.

The counters live in the hypervisor's memory: a sleep keeps them, a reboot or a crash loses them.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from lab.base.errors import BenchError, LabError
from lab.coverage import counters
from lab.xen.dom0 import Toolstack

FOLDER = "/run/xenlab"  # on the board; gone with the boot
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def _reading() -> str:
    return f"xencov read {FOLDER}/counters && gzip -1c {FOLDER}/counters | base64 -w 0"


def _resetting() -> str:
    """Prints the boot's id, and what was counted so far if this is the first reset in this boot."""
    begun = f"{FOLDER}/counting"
    since_boot = f"{{ [ -e {begun} ] || {{ {_reading()}; }}; }}"
    return f"{_BOOT_ID} && mkdir -p {FOLDER} && {since_boot} && echo && xencov reset && : > {begun}"


@dataclass
class Counted:
    """What came of it for one case: the file of each board, or why there is none."""

    files: dict[str, Path] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    boot_ids: dict[str, str] = field(default_factory=dict)  # of the boards that count

    def begin(self, host: Toolstack, folder: Path) -> None:
        """Set the counters to 0, once in a case. What was counted since the boot is kept, if nobody did that before."""
        if host.name in self.boot_ids or host.name in self.not_read:
            return
        try:
            boot, _, since_boot = host.run(_resetting(), timeout=60.0).stdout.partition("\n")
            if since_boot.strip():
                counters.save(folder / f"{host.name}{counters.BOOT}", counters.parse(_unpacked(since_boot)))
            self.boot_ids[host.name] = boot
        except BenchError as error:  # a crash that a console shows meanwhile ends the case
            self.not_read[host.name] = f"the counters could not be reset: {_first(error)}"

    def end(self, host: Toolstack, folder: Path, *, crashed: bool) -> None:
        """Read the counters, unless the boot that counted is over."""
        if (begun := self.boot_ids.get(host.name)) is None:
            self.not_read.setdefault(host.name, "the board did not come up for the case")
        elif crashed:
            self.not_read[host.name] = "its console showed a crash"
        else:
            try:
                boot, _, packed = host.run(f"{_BOOT_ID} && {_reading()}", timeout=60.0).stdout.partition("\n")
                if boot != begun:
                    self.not_read[host.name] = "it was booted during the case"
                    return
                path = folder / f"{host.name}{counters.SUFFIX}"
                counters.save(path, counters.parse(_unpacked(packed)))
                self.files[host.name] = path
            except LabError as error:
                self.not_read[host.name] = _first(error)


def _unpacked(text: str) -> bytes:
    try:
        return gzip.decompress(base64.b64decode(text))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise BenchError(f"the counters came damaged: {error}") from None


def _first(error: LabError) -> str:
    return str(error).splitlines()[0]
