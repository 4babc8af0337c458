"""Disks of guests: files of dom0, and what other guests serve."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace

from lab.xen.dom0 import Dom0
from lab.xen.domain import DomainConfig

SECTOR = 512


@contextlib.contextmanager
def blank(host: Dom0, mib: int) -> Iterator[str]:
    """A file of dom0 without a byte in it, until the end of the block; its path."""
    path = f"/var/tmp/{host.unique('disk')}"
    try:
        host.run(f"modprobe -q loop; truncate -s {mib}M {path}")  # the toolstack makes a loop device of it
        yield path
    finally:
        host.run(f"rm -f {path}")


@contextlib.contextmanager
def numbered(host: Dom0, mib: int = 1) -> Iterator[str]:
    """A file of dom0 whose words of 32 bits hold their own numbers, from 1 on, as the payloads' work ``disk`` wants."""
    with blank(host, mib) as path:
        program = f"import array; array.array('I', range(1, {mib << 18} + 1)).tofile(open('{path}', 'wb'))"
        host.run(f"python3 -c {shlex.quote(program)}")
        yield path


def digest(host: Dom0, path: str) -> str:
    """SHA-256 of a file of dom0."""
    return host.run(f"sha256sum {path}").stdout.split()[0]


def disk(target: str, name: str = "xvda", *, backend: str = "") -> str:
    """A disk as xl-disk-configuration(5) has it: a file of dom0, or a device of the driver domain ``backend``."""
    where = f",backendtype=phy,backend={backend}" if backend else ""
    return f"format=raw,vdev={name},access=rw{where},target={target}"


def with_disk(config: DomainConfig, target: str, *, backend: str = "") -> DomainConfig:
    """The same guest with :func:`disk` as its xvda."""
    return replace(config, more={**config.more, "disk": f'[ "{disk(target, backend=backend)}" ]'})
