"""Ready-made guests out of the payloads that provisioning put on the board."""

from __future__ import annotations

from collections.abc import Mapping

from lab.xen.domain import DomainConfig
from lab.xen.host import GUESTS, Host

LINUX_MIB = 192  # what Debian's kernel and a small initramfs need to come up


def payload(
    host: Host, kind: str, work: str, *, memory_mib: int = 16, pci: tuple[str, ...] = (), **options: object
) -> DomainConfig:
    """A payload guest: ``kind`` is ``pv32``, ``pv64``, ``pvh32`` or ``pvh64``; options go to its command line."""
    words = [f"work={work}", *(f"{key}={value}" for key, value in options.items())]
    return DomainConfig(
        name=host.unique(kind),
        kind="pvh" if kind.startswith("pvh") else "pv",
        kernel=f"{GUESTS}/{kind}",
        memory_mib=memory_mib,
        cmdline=" ".join(words),
        pci=pci,
    )


def linux(
    host: Host,
    kind: str,
    work: str,
    *,
    memory_mib: int = LINUX_MIB,
    cmdline: str = "",
    pci: tuple[str, ...] = (),
    more: Mapping[str, str] | None = None,
) -> DomainConfig:
    """Debian's kernel with the project's small initramfs, as ``pv`` or ``pvh``."""
    return DomainConfig(
        name=host.unique(f"linux-{kind}"),
        kind="pvh" if kind == "pvh" else "pv",
        kernel=f"{GUESTS}/linux-kernel",
        ramdisk=f"{GUESTS}/linux-initrd",
        memory_mib=memory_mib,
        cmdline=f"console=hvc0 quiet mitigations=off xl_work={work} {cmdline}".strip(),
        pci=pci,
        more=more or {},
    )
