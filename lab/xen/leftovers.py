"""What a case leaves behind in dom0 and in Xen: found by one command before and after the case, and removed.

A grant that is still mapped keeps its domain from dying, so it shows as a dead domain.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab.base.errors import WaitTimeout
from lab.base.wait import wait_until
from lab.xen import pace
from lab.xen.host import Host

SETTLING = 10.0  # seconds in which a dying domain, its memory and its processes must go
TOLERANCE_MIB = 2  # Xen's own heap grows and shrinks by so much
PROCESSES = ("xl", "libxl-save-help", "qemu-system-i38", "xen-qemu-system")  # ps cuts names at 15 letters

# One command for everything: a connection costs more than all of these.
_LOOK = f"""
{pace.script("echo '== domains'; xl list; echo '== memory'; xl info | grep free_memory; echo '== pace'")}
echo '== xenstore'; xenstore-ls -f
echo '== processes'; ps -eo pid=,comm=,args=
echo '== affinity'; xl vcpu-list 0
echo '== pools'; xl cpupool-list -c
echo '== devices'; xl pci-assignable-list
"""
_DOMAIN = re.compile(r"^(\S+)\s+(\d+)\s+\d+\s+\d+\s+([a-z-]{6})\s")
_VCPU = re.compile(r"^\S+\s+0\s+(\d+)\s.*\s(\S+) / (\S+)\s*$")
_STORE = re.compile(r"^(/local/domain/[1-9]\d*|/libxl/[1-9]\d*|/vm/[^/ ]+|/local/domain/0/backend/[^/]+/[1-9]\d*)[ /]")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment. Domains are listed without dom0."""

    domains: frozenset[str]
    dead: frozenset[str]  # ``ID (STATE)`` of domains whose name is gone already
    free_mib: int
    xenstore: frozenset[str]
    processes: Mapping[int, str]
    devices: frozenset[str]
    affinity: Mapping[str, str]  # of each vCPU of dom0: hard and soft, as ``xl vcpu-pin`` takes it
    pools: Mapping[str, str]  # of CPUs, and which each has
    pace: float | None = None  # :mod:`lab.xen.pace`


@dataclass(frozen=True, slots=True)
class Left:
    """What a case left behind.

    ``cleared`` was removed. ``kept`` could not be removed, so the next case cannot use the board as it is. ``stuck`` is
    what Xen did not give back: dead domains, and memory. ``pace`` is how Xen answers now (:mod:`lab.xen.pace`).
    """

    cleared: tuple[str, ...]
    kept: tuple[str, ...]
    stuck: tuple[str, ...]
    pace: float | None = None


def look(host: Host) -> Snapshot:
    """Ask dom0 by one command.

    :raises BenchError: dom0 does not answer, or one of its tools fails.
    """
    return parse(str(host.run(_LOOK).stdout))


def parse(text: str) -> Snapshot:
    """Read the output of that command."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("== "):
            lines = parts.setdefault(line.removeprefix("== "), [])
        else:
            lines.append(line)
    rows = [match for line in parts.get("domains", ()) if (match := _DOMAIN.match(line)) and match[2] != "0"]
    free = next((line.partition(":")[2] for line in parts.get("memory", ())), "0")
    processes = [line.split(None, 2) for line in parts.get("processes", ())]
    return Snapshot(
        domains=frozenset(match[1] for match in rows if match[1] != "(null)"),
        dead=frozenset(f"{match[2]} ({match[3]})" for match in rows if match[1] == "(null)"),
        free_mib=int(free),
        xenstore=frozenset(match[1] for line in parts.get("xenstore", ()) if (match := _STORE.match(line))),
        processes={int(one[0]): one[-1] for one in processes if len(one) > 1 and one[1] in PROCESSES},
        devices=frozenset(line.split()[0] for line in parts.get("devices", ()) if line.strip()),
        affinity={
            match[1]: f"{match[2]} {match[3]}" for line in parts.get("affinity", ()) if (match := _VCPU.match(line))
        },
        pools={name: cpus or "none" for name, cpus in map(_pool, filter(str.strip, parts.get("pools", ())[1:]))},
        pace=pace.of(parts.get("pace", ())),
    )


def _pool(line: str) -> tuple[str, str]:
    """Name and CPUs of a line of ``xl cpupool-list -c``."""
    name, _, cpus = line.partition(" ")
    return name, cpus.strip()


def clear(host: Host, before: Snapshot) -> Left:
    """Bring the board back to what it was before the case; what was left behind.

    Guests are destroyed, processes of the toolstack are killed, devices are given back to dom0, xenstore entries of
    domains that are gone are removed, dom0's vCPUs run where they did, and new CPU pools give their CPUs back.

    :raises LabError: dom0 does not answer, or its toolstack fails.
    """
    now = look(host)
    found = list[str]()
    if guests := sorted(now.domains - before.domains):
        found += [f"guest: {name}" for name in guests]
        host.destroy_all()
        now = look(host)
    if not is_as(now, before):
        now = _settled(host, before)
    found += left_behind(now, before)
    if processes := new_processes(now, before):
        host.run(f"kill -9 {' '.join(map(str, sorted(processes)))}", check=False)
    for device in sorted(now.devices - before.devices):
        host.xl("pci-assignable-remove", "-r", device, check=False)
    if entries := sorted(now.xenstore - before.xenstore):
        host.run(f"xenstore-rm {shlex.join(entries)}", check=False)
    for vcpu, where in before.affinity.items():
        if now.affinity.get(vcpu) != where:
            host.xl("vcpu-pin", "Domain-0", vcpu, *where.split(), check=False)
    if now.pools != before.pools:
        for name in sorted(now.pools.keys() - before.pools.keys()):
            host.xl("cpupool-destroy", name, check=False)
        for name in sorted(before.pools):
            host.xl("cpupool-cpu-add", name, "all", check=False)
    if found and not is_as(now, before):
        now = _settled(host, before)
    kept = tuple(left_behind(now, before))
    cleared = tuple(one for one in dict.fromkeys(found) if one not in kept)
    return Left(cleared, kept, tuple(not_given_back(now, before)), now.pace)


def _settled(host: Host, before: Snapshot) -> Snapshot:
    """What there is as soon as it is as before, or after :data:`SETTLING`."""
    seen = [look(host)]

    def is_as_before() -> bool:
        seen.append(look(host))
        return is_as(seen[-1], before)

    if not is_as(seen[0], before):
        try:
            wait_until(is_as_before, SETTLING, f"{host.name}: nothing is left", interval=1.0)
        except WaitTimeout:
            pass
    return seen[-1]


def is_as(now: Snapshot, before: Snapshot) -> bool:
    """Whether nothing was left behind, and Xen gave everything back."""
    return not left_behind(now, before) and not list(not_given_back(now, before))


def left_behind(now: Snapshot, before: Snapshot) -> list[str]:
    """What is there and was not before, as it is reported, without what Xen did not give back."""
    new = {
        "guest": now.domains - before.domains,
        "process": new_processes(now, before).values(),
        "device assignable": now.devices - before.devices,
        "xenstore": now.xenstore - before.xenstore,
        "affinity of dom0's vCPU": [
            f"{vcpu} ({now.affinity.get(vcpu, 'gone')}, was {where})"
            for vcpu, where in before.affinity.items()
            if now.affinity.get(vcpu) != where
        ],
        "CPU pool": [f"{name} with CPUs {cpus}" for name, cpus in (now.pools.items() - before.pools.items())],
        "CPU pool gone": before.pools.keys() - now.pools.keys(),
    }
    return [f"{kind}: {one}" for kind, ones in new.items() for one in sorted(ones)]


def not_given_back(now: Snapshot, before: Snapshot) -> Iterable[str]:
    """Dead domains and memory that Xen did not give back."""
    for one in sorted(now.dead - before.dead):
        yield f"dead domain {one}"
    if now.free_mib < before.free_mib - TOLERANCE_MIB:
        short = before.free_mib - now.free_mib
        yield f"{short} MiB not given back ({before.free_mib} MiB free before, {now.free_mib} after)"


def new_processes(now: Snapshot, before: Snapshot) -> dict[int, str]:
    """Processes that were not there before, by command line: after a boot the same processes have other numbers."""
    spare = Counter(before.processes.values())
    found = {}
    for number, words in now.processes.items():
        if spare[words]:
            spare[words] -= 1
        else:
            found[number] = words
    return found
