"""Guests that serve other guests: a Linux guest with a network port or a disk is the backend of theirs."""

from __future__ import annotations

from lab.base.errors import ProductFailure
from lab.xen.disks import with_disk
from lab.xen.domain import Domain, DomainConfig
from lab.xen.guests import linux
from lab.xen.host import Host

ADDRESS, PEER = "10.0.2.15/24", "10.0.2.2"  # on the spare port: docs/rack.md
_MORE = {"driver_domain": "1", "on_crash": '"destroy"', "on_reboot": '"destroy"'}
_BOOT = 120.0  # seconds that a Linux guest may take until its works are done


def network(host: Host, *devices: str) -> DomainConfig:
    """A driver domain with these PCI devices; the network port among them is to be of other guests' use."""
    return linux(host, "pv", "backend", cmdline="iommu=soft sysrq_always_enabled", pci=devices, more=_MORE)


def storage(host: Host, path: str) -> DomainConfig:
    """A driver domain that has a file of dom0 as its disk, for others: their disk is its /dev/xvda."""
    return with_disk(linux(host, "pv", "diskback", cmdline="sysrq_always_enabled", more=_MORE), path)


def serves(domain: Domain) -> None:
    """Wait until a driver domain is ready for guests. :raises ProductFailure: it is not; says why."""
    done = domain.results(_BOOT)
    if bad := [line for line in done.values() if line.outcome == "FAIL" and line.case != "done"]:
        raise ProductFailure(f"{domain.name} serves nobody: {bad[0].case}: {bad[0].detail}")


def vif(backend: Domain) -> str:
    """A network port as xl-network-configuration(5) has it, with this driver domain as its backend."""
    return f"backend={backend.name},mac=00:16:3e:00:00:01"


def served(host: Host, backend: Domain, work: str, **words: object) -> DomainConfig:
    """A Linux guest whose network goes through the driver domain."""
    told = " ".join(f"{key}={value}" for key, value in words.items())
    cmdline = f"ip={ADDRESS} peer={PEER} count=5 {told}"
    return linux(host, "pv", work, cmdline=cmdline, more={"vif": f'[ "{vif(backend)}" ]'})
