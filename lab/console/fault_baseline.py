"""IOMMU faults that a board also has with its known-good build: they say nothing of the build under test.

Some boards have them all the time. A graphics device that goes on reading where the firmware drew its logo makes tens
of thousands of faults in a boot. What the known-good build saw is the board's baseline. It is kept beside the lab's
other files, one file a board, and only a fault that is not in it counts as a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.console.lines import clean, own_words

SIGNATURE = "iommu-fault"  # lab.console.patterns
BOOTS = 10  # known-good boots that are remembered: a fault that none of them saw is news again
_LIMIT = 1000  # faults of one boot; a device makes few kinds

_VTD = re.compile(  # xen/drivers/passthrough/vtd/iommu.c: iommu_page_fault_do_one
    r"(?:DMAR: ?\[(?P<dma>DMA \w+)[^\]]{0,40}\]|(?P<kind>INTR-REMAP|UNKNOWN):)"
    r" ?Request device \[(?P<device>[0-9a-f:.]{1,16})\]"
)
_AMD = re.compile(  # xen/drivers/passthrough/amd/iommu_init.c: parse_event_log_entry; the second is of Xen before 4.12
    r"AMD-Vi: IO_PAGE_FAULT: (?:(?P<device>[0-9a-f:.]{4,16}) d(?P<domain>\d{1,5})\b"
    r"|domain = (?P<old_domain>\d{1,5}), device id = (?P<old_device>0x[0-9a-f]{1,4}))"
)
_ARM = re.compile(  # xen/drivers/passthrough/arm/smmu.c, smmu-v3.c, ipmmu-vmsa.c: they name themselves, not the device
    r"(?:smmu|SMMUv3|ipmmu): (?P<iommu>\S{1,120}): (?:d\d{1,5}: )?"
    r"(?P<kind>Unhandled context fault|Unexpected global fault|event 0x[0-9a-f]{1,2}|Unhandled fault)"
)
_SYSTEM_DOMAINS = 0x7FF0  # xen/include/public/xen.h: DOMID_FIRST_RESERVED


def fault_of(text: str) -> str | None:
    """What tells one IOMMU fault of Xen from another: its kind, the device, and whose it is; not the address.

    ``DMA Read by 0000:00:02.0``; None when the line says no such fault.
    """
    text = clean(own_words(text))
    if match := _VTD.search(text):
        return f"{match['dma'] or match['kind']} by {match['device']}"
    if match := _AMD.search(text):
        domain = int(match["domain"] or match["old_domain"])
        whose = "dom0" if domain == 0 else "Xen" if domain >= _SYSTEM_DOMAINS else "a guest"
        return f"IO_PAGE_FAULT by {match['device'] or match['old_device']} of {whose}"
    if match := _ARM.search(text):
        return f"{match['kind']} at {match['iommu']}"
    return None


class FaultBaseline:
    """The faults that a board's last known-good boots saw."""

    def __init__(self, file: Path | None) -> None:
        """``file`` is where they are kept; None: nowhere, so every fault is new."""
        self._file = file
        self._boots: list[dict[str, object]] | None = None  # as in the file; None: not read yet

    def learn(self, boot: int, texts: Iterable[str]) -> None:
        """Note the faults among the console lines of the known-good boot that began at record ``boot``.

        Called again for the same boot, it takes the place of what was noted before.
        """
        faults = Counter(fault for text in texts if (fault := fault_of(text)))
        others = [one for one in self._read() if one.get("boot") != boot]
        self._boots = [*others, {"boot": boot, "faults": dict(faults.most_common(_LIMIT))}][-BOOTS:]
        self._write()

    def knows(self, text: str) -> bool:
        """Whether a console line says a fault of the baseline."""
        fault = fault_of(text)
        return fault is not None and fault in self.faults()

    def faults(self) -> Mapping[str, int]:
        """Each fault, and how often the boot that had most of it said it."""
        most: dict[str, int] = {}
        for boot in self._read():
            seen = boot.get("faults")
            for fault, times in seen.items() if isinstance(seen, dict) else ():
                most[str(fault)] = max(most.get(str(fault), 0), times if isinstance(times, int) else 1)
        return most

    def told(self, texts: Iterable[str]) -> str:
        """For the record of a case: which faults of the baseline these lines say, how often; "" if none."""
        known = self.faults()
        seen = Counter(fault for text in texts if (fault := fault_of(text)) is not None and fault in known)
        return "\n".join(
            f"{fault}: {times} times here, {known[fault]} at a known-good boot" for fault, times in seen.most_common()
        )

    def _read(self) -> list[dict[str, object]]:
        if self._boots is None:
            self._boots = []
            with contextlib.suppress(OSError, ValueError):  # none yet, or cut by a full disk: nothing is known
                read = json.loads(self._file.read_text(encoding="utf-8")) if self._file else []
                self._boots = [one for one in read if isinstance(one, dict)] if isinstance(read, list) else []
        return self._boots

    def _write(self) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False, encoding="utf-8") as file:
            json.dump(self._boots, file, indent=1)
        os.replace(file.name, self._file)
