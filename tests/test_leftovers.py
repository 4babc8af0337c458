"""What a case leaves, read from what dom0 prints; tests/boards has it done on boards."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from lab.xen import leftovers

CLEAN = """\
== domains
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   800     1     r-----      31.4
== memory
free_memory            : 1184
== xenstore
/tool = ""   (n0)
/tool/xenstored = ""   (n0)
/local/domain/0/name = "Domain-0"   (n0,r0)
/local/domain/0/backend/vif = ""   (n0,r0)
/libxl/0/dm-version = "qemu_xen"   (n0)
/vm/00000000-0000-0000-0000-000000000000/name = "Domain-0"   (n0)
== processes
      1 systemd         /sbin/init
    512 xenstored       /usr/lib/xen-4.17/bin/xenstored --pid-file /run/xen/xenstored.pid
    560 qemu-system-i38 /usr/lib/xen-4.17/bin/qemu-system-i386 -xen-domid 0 -xen-attach -name dom0
== affinity
Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)
Domain-0                             0     0    1   r--      31.4  all / all
Domain-0                             0     1    -   --p       2.1  all / 0-1
== pools
Name               CPU list
Pool-0             0,1
== devices
"""
GUESTS = """\
pvh64-7-1                                    5    16     1     -b----       0.2
(null)                                       6     0     1     --p--d       0.1
"""
ENTRIES = """\
/local/domain/5 = ""   (n0,r5)
/local/domain/5/name = "pvh64-7-1"   (n0,r5)
/libxl/5/type = "pvh"   (n0)
/vm/a6c1/name = "pvh64-7-1"   (n0)
/local/domain/0/backend/vif/5/0/state = "4"   (n0,r5)
"""
PROCESSES = """\
    901 xl              xl create /run/pvh64-7-1.cfg
    902 libxl-save-help libxl-save-helper --restore-domain
"""
LEFT = (
    CLEAN.replace("== memory\n", f"{GUESTS}== memory\n")
    .replace("1184", "1151")
    .replace("== processes\n", f"{ENTRIES}== processes\n{PROCESSES}")
    + "0000:00:04.0\n"
)


def owed(text: str) -> list[str]:
    return list(leftovers.not_given_back(leftovers.parse(text), leftovers.parse(CLEAN)))


def test_everything_that_a_case_can_leave_is_seen() -> None:
    before, now = leftovers.parse(CLEAN), leftovers.parse(LEFT)
    assert leftovers.is_as(before, before)
    assert not leftovers.is_as(now, before)
    assert now.dead == {"6 (--p--d)"}
    assert leftovers.left_behind(now, before) == [
        "guest: pvh64-7-1",
        "process: libxl-save-helper --restore-domain",
        "process: xl create /run/pvh64-7-1.cfg",
        "device assignable: 0000:00:04.0",
        "xenstore: /libxl/5",
        "xenstore: /local/domain/0/backend/vif/5",
        "xenstore: /local/domain/5",
        "xenstore: /vm/a6c1",
    ]
    assert sorted(leftovers.new_processes(now, before)) == [901, 902]
    assert owed(LEFT) == [
        "dead domain 6 (--p--d)",
        "33 MiB not given back (1184 MiB free before, 1151 after)",
    ]


def test_where_dom0_runs_and_the_pools_of_cpus_are_looked_at() -> None:
    before = leftovers.parse(CLEAN)
    assert before.affinity == {"0": "all all", "1": "all 0-1"} and before.pools == {"Pool-0": "0,1"}
    ran = CLEAN.replace("0    1   r--      31.4", "0    0   -b-      35.9")
    assert leftovers.is_as(leftovers.parse(ran), before), "dom0 ran on another CPU"
    pinned = leftovers.parse(CLEAN.replace("31.4  all / all", "31.4  1 / all"))
    assert leftovers.left_behind(pinned, before) == ["affinity of dom0's vCPU: 0 (1 all, was all all)"]
    split = leftovers.parse(CLEAN.replace("Pool-0             0,1", "Pool-node0         0\nPool-node1         1"))
    assert leftovers.left_behind(split, before) == [
        "CPU pool: Pool-node0 with CPUs 0",
        "CPU pool: Pool-node1 with CPUs 1",
        "CPU pool gone: Pool-0",
    ]
    empty = leftovers.parse(CLEAN.replace("Pool-0             0,1", "Pool-0             0,1\nmine"))
    assert leftovers.left_behind(empty, before) == ["CPU pool: mine with CPUs none"]


class Toolstack:
    """dom0's tools on two CPUs: what is ordered shows at the next look."""

    name = "virt1"

    def __init__(self, said: str) -> None:
        self.said = said

    def run(self, command: str, check: bool = True) -> Any:
        return SimpleNamespace(stdout=self.said)

    def xl(self, *words: str, check: bool = True) -> None:
        match words:
            case ("vcpu-pin", "Domain-0", vcpu, hard, soft):
                line = rf"(?m)^(Domain-0 +0 +{vcpu} +\S+ +\S+ +\S+  ).*$"
                self.said = re.sub(line, rf"\g<1>{hard} / {soft}", self.said)
            case ("cpupool-destroy", name):
                self.said = re.sub(rf"(?m)^{name}\b.*\n", "", self.said)
            case ("cpupool-cpu-add", name, "all"):
                self.said = re.sub(rf"(?m)^{name}\b.*$", f"{name}             0,1", self.said)
            case _:
                raise AssertionError(words)


def test_a_pinned_dom0_and_a_pool_are_taken_away_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "SETTLING", 0.1)
    left = CLEAN.replace("31.4  all / all", "31.4  1 / all").replace("0,1\n", "0\nmine              1\n")
    host: Any = Toolstack(left)
    found = leftovers.clear(host, leftovers.parse(CLEAN))
    assert found.cleared == (
        "affinity of dom0's vCPU: 0 (1 all, was all all)",
        "CPU pool: Pool-0 with CPUs 0",
        "CPU pool: mine with CPUs 1",
    )
    assert (found.kept, found.stuck) == ((), ())
    assert host.said == CLEAN


@pytest.mark.parametrize("free", [1184, 1300, 1182])
def test_memory_that_breathes_is_no_leak(free: int) -> None:
    assert owed(CLEAN.replace("1184", str(free))) == []


def test_after_a_boot_the_same_processes_have_other_numbers() -> None:
    booted = leftovers.parse(CLEAN.replace("    560 qemu", "    733 qemu"))
    assert leftovers.is_as(booted, leftovers.parse(CLEAN))
    [again] = [line for line in CLEAN.splitlines() if "qemu-system-i38" in line]
    twice = CLEAN.replace("== affinity", f"{again.replace('560', '734')}\n== affinity")
    assert list(leftovers.new_processes(leftovers.parse(twice), leftovers.parse(CLEAN))) == [734]
