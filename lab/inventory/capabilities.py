"""The capabilities of a board: each word once, with its meaning, who vouches for it, and how it is probed.

Cases name these words in ``needs(...)``, inventories declare them, planning and the queue compare them, and
:mod:`lab.xen.probing` probes them. To add a capability, add one row to :data:`TABLE` (and a line to docs/rack.md,
which a test compares with the table).

The rules read what Xen's own tools print: ``virt_caps`` and ``xen_caps`` of ``xl info`` (tools/xl/xl_info.c,
xen/arch/x86/setup.c init_xen_cap_info), ``numa_info`` of ``xl info -n``, and the boot log (xen/arch/x86/hvm/hvm.c,
"HAP page sizes"). The conditions in dom0 rest on Linux's sysfs and on tools/misc/xenpm.c.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.base.errors import UsageError, did_you_mean

LARGE_MIB = 7 * 1024  # what 8 GiB of memory come to when the firmware has had its part
BELOW_4_GIB_MIB = 4096


class DecidedBy(enum.Enum):
    """Who vouches for a capability. An inventory may declare every word, since cases are planned by it."""

    RACKER = "taken from the inventory as it stands; the lab does not probe it"
    EMULATOR = "every board has it, declared or not, but virtual ones whose QEMU is found to lack it by `lab up`"
    BOARD = "probed; a board that declares it and lacks it is reported, and fails testcases/boot"
    BUILD = "probed; the build's configuration decides, so a board that declares it may lack it under some builds"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a board while a hypervisor runs on it. Each rule of :data:`TABLE` reads these."""

    info: Mapping[str, str]  # `xl info`
    numa: str  # `xl info -n`, from "numa_info" on
    boot_log: str  # what Xen has printed since it began to boot
    dom0: frozenset[str]  # the words whose `shell` condition holds in dom0
    ports: frozenset[str]  # roles of the board's network ports: "spare"
    is_linked: bool  # a cable joins the board to another one
    tells_sleep: bool  # the BMC tells the ACPI power state
    tells_power: bool  # there is a BMC: an outlet is on while a machine that has shut itself down is off

    def number(self, key: str) -> int:
        """A number of ``xl info``; 0 where Xen does not print it."""
        return int(self.info.get(key, "0"))

    def has(self, key: str, *words: str) -> bool:
        """Whether a list in ``xl info`` has one of these words."""
        return not set(words).isdisjoint(self.info.get(key, "").split())


@dataclass(frozen=True, slots=True)
class Capability:
    """One row of :data:`TABLE`. A probed one has a ``shell`` condition, a ``rule`` or both; others have neither."""

    word: str
    meaning: str
    source: DecidedBy
    shell: str | None = None  # a condition for dom0's /bin/sh: status 0 means that the board has the capability
    rule: Callable[[Facts], bool] | None = None
    is_seen_without_xen: bool = False  # `shell` says the same on a Linux without Xen

    @property
    def is_probed(self) -> bool:
        return self.shell is not None or self.rule is not None

    def holds(self, facts: Facts) -> bool:
        """Whether these facts meet all that is asked for."""
        return (self.shell is None or self.word in facts.dom0) and (self.rule is None or self.rule(facts))


def _page_size(size: str) -> Callable[[Facts], bool]:
    """Xen says at boot which sizes nested paging has, and of those that an option switches off ``[disabled]``."""

    def has_it(facts: Facts) -> bool:
        line = re.search(r"HAP page sizes:.*", facts.boot_log)
        return bool(line and size in line[0] and f"{size} [disabled]" not in line[0])

    return has_it


def _has_high_memory(facts: Facts) -> bool:
    """By the memory map that Xen prints at boot, or, where its log does not have that any more, by the nodes' sizes.

    A node's size is that of the addresses it spans, holes within it included, but none between two nodes
    (xen/common/sysctl.c, XEN_SYSCTL_numainfo): four nodes of 1 GiB sum up to 4 GiB, and the last two are above.
    """
    ends = re.findall(r"\[[0-9a-f]{16}, ([0-9a-f]{16})\] \(usable\)", facts.boot_log)
    sizes = re.findall(r"(?m)^[ \t]*\d+:[ \t]+(\d+)[ \t]+\d+\s", facts.numa)
    return any(int(end, 16) >> 32 for end in ends) or sum(map(int, sizes)) > BELOW_4_GIB_MIB


def _has_invariant_tsc(facts: Facts) -> bool:
    """``hw_caps`` has the features by their words in Xen; the eighth is EDX of leaf 0x80000007, with ITSC in bit 8."""
    words = facts.info.get("hw_caps", "").split(":")
    return len(words) > 7 and bool(int(words[7], 16) & 0x100)


_RUNNING = "$(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)"  # X.Y of the hypervisor
_DEEP_SLEEP = "grep -q deep /sys/power/mem_sleep"
_ROWS = (
    Capability(
        "pv32",
        "32-bit PV guests (xen_caps has xen-3.0-x86_32p)",
        DecidedBy.BUILD,
        rule=lambda facts: facts.has("xen_caps", "xen-3.0-x86_32p"),
    ),
    Capability(
        "no-pv32",
        "no 32-bit PV guests: the opposite of pv32",
        DecidedBy.BUILD,
        rule=lambda facts: not facts.has("xen_caps", "xen-3.0-x86_32p"),
    ),
    Capability("pv", "PV guests (virt_caps has pv)", DecidedBy.BUILD, rule=lambda facts: facts.has("virt_caps", "pv")),
    Capability(
        "hvm",
        "hardware virtualisation (virt_caps has hvm)",
        DecidedBy.BOARD,
        rule=lambda facts: facts.has("virt_caps", "hvm"),
    ),
    Capability(
        "hvm32",
        "32-bit HVM and PVH guests (xen_caps has hvm-3.0-x86_32)",
        DecidedBy.BOARD,
        rule=lambda facts: facts.has("xen_caps", "hvm-3.0-x86_32"),
    ),
    Capability("high-memory", "memory at machine addresses above 4 GiB", DecidedBy.BOARD, rule=_has_high_memory),
    Capability(
        "shim",
        "the running hypervisor's PV shim is installed in dom0 (xen-shim); tools from source come without one",
        DecidedBy.BUILD,
        shell=f"test -e /usr/lib/xen-{_RUNNING}/boot/xen-shim",
    ),
    Capability(
        "hap", "nested paging (virt_caps has hap)", DecidedBy.BOARD, rule=lambda facts: facts.has("virt_caps", "hap")
    ),
    Capability(
        "shadow",
        "shadow paging (virt_caps has shadow): deprecated, and not security supported (XSA-495)",
        DecidedBy.BUILD,
        rule=lambda facts: facts.has("virt_caps", "shadow"),
    ),
    Capability(
        "pae-guests",
        "guests with PAE and user mode run on nested paging, and after a restore: true of all machines but QEMU",
        DecidedBy.RACKER,
    ),
    Capability(
        "guest-cr2",
        "guests on nested paging read the CR2 they wrote, as Linux must: true of all machines but QEMU from 9.1 on",
        DecidedBy.EMULATOR,
    ),
    Capability("sp2m", "2 MiB pages in nested paging", DecidedBy.BOARD, rule=_page_size("2MB")),
    Capability("sp1g", "1 GiB pages in nested paging", DecidedBy.BOARD, rule=_page_size("1GB")),
    Capability(
        "iommu",
        "DMA remapping is in use (virt_caps has pv_directio or hvm_directio)",
        DecidedBy.BOARD,
        rule=lambda facts: facts.has("virt_caps", "pv_directio", "hvm_directio"),
    ),
    Capability("numa", "more than one NUMA node", DecidedBy.BOARD, rule=lambda facts: facts.number("nr_nodes") > 1),
    Capability("numa-4", "four NUMA nodes", DecidedBy.BOARD, rule=lambda facts: facts.number("nr_nodes") > 3),
    Capability("cpu-offline", "more than one CPU", DecidedBy.BOARD, rule=lambda facts: facts.number("nr_cpus") > 1),
    Capability(
        "memory-8g", "8 GiB of memory", DecidedBy.BOARD, rule=lambda facts: facts.number("total_memory") > LARGE_MIB
    ),
    Capability("s3", "suspend to RAM", DecidedBy.BOARD, shell=_DEEP_SLEEP, is_seen_without_xen=True),
    Capability("no-s3", "no suspend to RAM: the opposite of s3", DecidedBy.BOARD, shell=f"! {_DEEP_SLEEP}"),
    Capability(
        "s5",
        "soft off: dom0 has ACPI, and a BMC says whether the power is off",
        DecidedBy.BOARD,
        shell="test -d /sys/firmware/acpi",
        rule=lambda facts: facts.tells_power,
        is_seen_without_xen=True,
    ),
    Capability(
        "rtcwake",
        "the RTC can wake the board",
        DecidedBy.BOARD,
        shell="test -e /sys/class/rtc/rtc0/wakealarm",
        is_seen_without_xen=True,
    ),
    Capability(
        "qemu",
        "dom0 has a device model for HVM guests",
        DecidedBy.BOARD,
        shell="test -x /usr/libexec/xen-qemu-system-i386 || command -v qemu-system-i386",
    ),
    Capability(
        "kexec",
        "dom0's kexec is made for the running hypervisor (its libxenctrl is of that X.Y), and dom0's root is on a disk",
        DecidedBy.BUILD,
        shell=f'ldd $(command -v kexec) | grep "libxenctrl.so.{_RUNNING} " && [ $(stat -f -c %T /) != overlayfs ]',
    ),
    Capability(
        "spare-nic",
        "a network port to pass through (nics.spare)",
        DecidedBy.BOARD,
        rule=lambda facts: "spare" in facts.ports,
    ),
    Capability(
        "self-ssh",
        "root gets into localhost by SSH, for migrations from a board to itself",
        DecidedBy.BOARD,
        shell="ssh -o BatchMode=yes -o ConnectTimeout=10 localhost true",
    ),
    Capability(
        "migration-pair", "a lab link joins it to another board", DecidedBy.BOARD, rule=lambda facts: facts.is_linked
    ),
    Capability(
        "bmc-sleep-state", "the BMC tells the ACPI power state", DecidedBy.BOARD, rule=lambda facts: facts.tells_sleep
    ),
    Capability(
        "bmc-nmi",
        "the BMC can send a diagnostic interrupt (it may reset a board that has no handler)",
        DecidedBy.RACKER,
    ),
    Capability("pvh-dom0", "Xen boots on it with dom0=pvh", DecidedBy.RACKER),
    Capability(
        "pstate",
        "Xen controls the CPU frequency",
        DecidedBy.BOARD,
        shell="xenpm get-cpufreq-para 0 | grep scaling_driver",
    ),
    Capability(
        "cstate",
        "idle states deeper than C1",
        DecidedBy.BOARD,
        shell="xenpm get-cpuidle-states 0 | awk '/total C-states/ && $NF > 2 { deep = 1 } END { exit !deep }'",
    ),
    Capability(
        "frequency-register",
        "each CPU's frequency is set by a port that dom0 can read, as the tables of firmware/acpi say",
        DecidedBy.BOARD,
        shell="grep -qs XENLAB /sys/firmware/acpi/tables/SSDT*",
    ),
    Capability(
        "invariant-tsc",
        "the CPUs say that their TSC stops in no idle state (hw_caps, CPUID 0x80000007)",
        DecidedBy.BOARD,
        rule=_has_invariant_tsc,
    ),
    Capability(
        "no-invariant-tsc",
        "the CPUs do not say that: the opposite of invariant-tsc",
        DecidedBy.BOARD,
        rule=lambda facts: not _has_invariant_tsc(facts),
    ),
    Capability(
        "perf",
        "figures of performance are taken on it; nothing else runs on it meanwhile",
        DecidedBy.RACKER,
    ),
    Capability(
        "counted-clock",
        "its TSC goes on by 2 for each instruction and for nothing else, so figures are counts and not times",
        DecidedBy.RACKER,
    ),
    Capability("sriov", "a network port with virtual functions", DecidedBy.RACKER),
    Capability(
        "dma-device",
        "a PCI device that does DMA where it is told to (1234:11e8: QEMU's edu, or an FPGA like it)",
        DecidedBy.BOARD,
        shell="grep -qs 0x1234 /sys/bus/pci/devices/*/vendor && grep -qs 0x11e8 /sys/bus/pci/devices/*/device",
    ),
)
TABLE: Mapping[str, Capability] = {row.word: row for row in _ROWS}
ASSUMED = frozenset(row.word for row in _ROWS if row.source is DecidedBy.EMULATOR)
OF_THE_BUILD = frozenset(row.word for row in _ROWS if row.source is DecidedBy.BUILD)


def check(word: str, where: str | None = None) -> None:
    """Refuse a word that is no capability. ``where`` (``FILE:LINE: KEY``) goes before the message.

    :raises UsageError: no row of :data:`TABLE` has this word; names the nearest, and all there are.
    """
    if word not in TABLE:
        place = f"{where}: " if where else ""
        hint = did_you_mean(word, list(TABLE))
        raise UsageError(f"{place}unknown capability {word!r}{hint}; there are: {', '.join(TABLE)}")


def conditions(*, without_xen: bool = False) -> str:
    """A shell script that prints each word whose condition holds; ``without_xen``: only those that need no Xen."""
    rows = (row for row in _ROWS if row.shell and (row.is_seen_without_xen or not without_xen))
    return "".join(f"{{ {row.shell}; }} >/dev/null 2>&1 </dev/null && echo {row.word}\n" for row in rows) + "true\n"


def probed(facts: Facts) -> frozenset[str]:
    """The capabilities that these facts show."""
    return frozenset(row.word for row in _ROWS if row.is_probed and row.holds(facts))
