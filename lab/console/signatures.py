"""What the lines of a console say: crashes, warnings and milestones of Xen, of its dom0, and of what boots them.

A new pattern is one row of the table of who says it, and nothing else.
"""

from __future__ import annotations

from lab.console import said_by_dom0, said_by_loaders, said_by_xen
from lab.console.formats import Signature

_MILESTONES = (
    Signature("milestone", "press-any-key", None, ("Press any key", "press any key")),
    Signature("milestone", "grub-menu", None, ("GNU GRUB",)),
    Signature("milestone", "xen-banner", "xen", (" Xen version %d",)),  # Linux says "Xen version: 4.17"
    Signature("milestone", "xen-cmdline", "xen", (" Command line: ",)),
    Signature("milestone", "iommu-enabled", None, ("I/O virtualisation enabled",)),
    Signature("milestone", "dom0-building", None, ("*** Building a PV Dom0 ***", "*** Building a PVH Dom0 ***")),
    Signature("milestone", "dom0-linux", None, ("Linux version %d",)),
    Signature("milestone", "dom0-up", None, ("xenlab: dom0 is up", "login:"), unless=("Last login:",)),
    Signature("milestone", "s3-prepare", None, ("Preparing system for ACPI S3 state",)),  # arch/x86/acpi/power.c
    Signature("milestone", "s3-enter", None, ("Entering ACPI S3 state",)),
    Signature("milestone", "s3-finish", None, ("Finishing wakeup from ACPI S3 state",)),
)

_GRAVEST_FIRST = ("crash", "warning", "milestone")

# The first that matches is the answer.
SIGNATURES = tuple(
    sorted(
        (*said_by_xen.SIGNATURES, *said_by_loaders.SIGNATURES, *said_by_dom0.SIGNATURES, *_MILESTONES),
        key=lambda one: _GRAVEST_FIRST.index(one.kind),
    )
)

# In the order in which a boot, and then a sleep, passes them.
MILESTONES = tuple(one.name for one in _MILESTONES)
