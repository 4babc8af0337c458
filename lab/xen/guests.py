"""Ready-made configurations of guests, made of the payloads that provisioning puts on a board."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from lab.base.errors import BenchError
from lab.on_board import GUESTS
from lab.xen import payloads
from lab.xen.domain import DomainConfig
from lab.xen.host import Host

HEADLESS = {"vga": '"none"', "vnc": "0", "sdl": "0", "nographic": "1"}
LINUX_MIB = 192  # Debian's kernel and a small initramfs need this to come up


def payload(
    host: Host,
    kind: str,
    work: str,
    *,
    memory_mib: int = 16,
    vcpus: int = 1,
    pci: tuple[str, ...] = (),
    **options: object,
) -> DomainConfig:
    """A payload guest: ``kind`` is one of :data:`lab.xen.payloads.KERNELS`; options go to its command line.

    Of several vCPUs the payload uses those beyond the first only if ``vcpus`` is among its works.
    """
    if vcpus > 1:
        options = {"vcpus": vcpus, **options}
    words = " ".join((f"work={work}", *(f"{key}={value}" for key, value in options.items())))
    return replace(named(host.unique(kind), kind, words, memory_mib=memory_mib, pci=pci), vcpus=vcpus)


def named(name: str, kind: str, words: str, *, memory_mib: int, pci: tuple[str, ...] = ()) -> DomainConfig:
    """A payload guest of this kind with this name and these words on its command line.

    In an HVM guest the payload is the firmware, which gets no command line: the words are in the file that xl loads
    for a BIOS (libxl_dom.c, libxl__domain_firmware). The device model of such a guest has no display.
    """
    path = f"{GUESTS}/{kind}"
    if kind.startswith("hvm"):
        file = f"/run/xenlab/{name}.words"
        more = {"firmware_override": f'"{path}"', "bios_path_override": f'"{file}"', **HEADLESS}
        return DomainConfig(name, "hvm", memory_mib=memory_mib, pci=pci, more=more, files={file: words})
    sort: Literal["pv", "pvh"] = "pvh" if kind.startswith("pvh") else "pv"
    return DomainConfig(name, sort, path, memory_mib=memory_mib, cmdline=words, pci=pci)


def linux(
    host: Host,
    kind: Literal["pv", "pvh", "hvm"],
    work: str,
    *,
    sort: str = "linux",
    memory_mib: int = LINUX_MIB,
    cmdline: str = "",
    pci: tuple[str, ...] = (),
    more: Mapping[str, str] | None = None,
) -> DomainConfig:
    """Debian's kernel with the project's small initramfs; ``sort`` is one of :data:`lab.xen.payloads.LINUXES`."""
    return DomainConfig(
        name=host.unique(f"{sort}-{kind}"),
        kind=kind,
        kernel=f"{GUESTS}/{sort}-kernel",
        ramdisk=f"{GUESTS}/{sort}-initrd",
        memory_mib=memory_mib,
        cmdline=f"console=hvc0 quiet mitigations=off xl_work={work} {cmdline}".strip(),
        pci=pci,
        more={**(HEADLESS if kind == "hvm" else {}), **(more or {})},
        system=sort,
    )


@contextlib.contextmanager
def of_release(host: Host, release: str) -> Iterator[tuple[str, str]]:
    """Bring kernel and initramfs of :data:`lab.xen.payloads.RELEASES` onto a board for a block; their paths there.

    :raises BenchError: the kernel cannot be fetched.
    """
    there = [f"/var/tmp/{host.unique(release)}-{part}" for part in ("kernel", "initrd")]
    try:
        for file, path in zip(payloads.of_release(release), there, strict=True):
            host.board.put(file, path)
        yield there[0], there[1]
    finally:
        with contextlib.suppress(BenchError):  # a lost host has them no more
            host.run(f"rm -f {' '.join(there)}")
