"""A host: the dom0 of a board, and the domains on it."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lab.base.errors import BenchError, ProductTimeout, ToolstackFailed, WaitTimeout
from lab.base.wait import wait_until
from lab.xen.domain import Domain, DomainConfig, nodes_free

LARGE_MIB = 7 * 1024  # what is left of 8 GiB when the firmware has had its part
GUESTS = "/var/lib/xenlab/guests"  # where provisioning puts guest payloads
ARRIVED = "--incoming"  # what the name of a domain that is being received ends in (xl_migrate.c)

BELOW_4_GIB_MIB = 4096
OF_THE_BUILD = frozenset(
    {"pv32", "no-pv32", "shadow", "shim"}
)  # capabilities that a build has by configuration, or not
PROBED_IN_DOM0 = frozenset("s3 s5 rtcwake qemu dma-device pstate cstate self-ssh shim".split())

_HEAD = 200  # characters by which a place in a ring of text is looked for
_CUT = "== and then"  # between two readings of Xen's ring
# Prints Xen's ring as it was when this was first asked for in this boot, if it still had its beginning then.
_BOOT_LOG = (
    'f=/run/xenlab/xen-boot.log; [ -s $f ] || { mkdir -p ${f%/*}; log=$(xl dmesg); case $log in *"Xen version"*) '
    'printf "%s\\n" "$log" > $f.new && mv $f.new $f;; esac; } 2>/dev/null; cat $f 2>/dev/null || printf "%s\\n" "$log"'
)
_ROW = re.compile(r"^(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([a-z-]{6})\s+([\d.]+)$")


@dataclass(frozen=True, slots=True)
class DomainRow:
    """A line of ``xl list``. ``state`` is xl's six letters: r b p s c d (tools/xl/xl_list.c)."""

    name: str
    domid: int
    memory_mib: int
    vcpus: int
    state: str
    cpu_seconds: float

    @property
    def is_suspended(self) -> bool:
        return "s" in self.state

    @property
    def is_paused(self) -> bool:
        return "p" in self.state


@contextlib.contextmanager
def _owed() -> Iterator[None]:
    """What was waited for in vain within is the product's failure, not the bench's."""
    try:
        yield
    except WaitTimeout as error:
        raise ProductTimeout(error.what, error.timeout, error.last) from error


class Host:
    """dom0 of a board whose hypervisor is up."""

    _numbers = itertools.count(1)

    def __init__(self, board: Any) -> None:
        self.board = board
        self.name: str = board.name
        self.lacking: frozenset[str] = frozenset()  # what its inventory entry declares, and the rig did not find
        self.keep: Callable[[str, str], None] = lambda title, body: None  # the plugin puts evidence here
        # And times what goes on: `create` (a domain is being built), `wait` (for a guest or the board), `sleep`.
        self.phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext()

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    # -- commands --------------------------------------------------------------------------------------------

    def run(self, command: str, *, timeout: float = 60.0, check: bool = True) -> Any:
        """One shell command in dom0; a CommandResult. :raises CommandFailed: status not 0 and ``check``."""
        return self.board.run(command, timeout=timeout, check=check)

    def xl(self, *words: str, timeout: float = 60.0, check: bool = True) -> Any:
        """One ``xl`` command. :raises ToolstackFailed: its status is not 0, and ``check``."""
        result = self.run(shlex.join(["xl", *words]), timeout=timeout, check=False)
        if check and result.status:
            raise ToolstackFailed(self.name, f"xl {' '.join(words)}", result.status, result.stderr or result.stdout)
        return result

    def info(self) -> Mapping[str, str]:
        """``xl info`` as a mapping."""
        found: dict[str, str] = {}
        for line in self.xl("info").stdout.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
        return found

    def free_memory_mib(self) -> int:
        """What Xen has to give, in MiB (``xl info free_memory``)."""
        return int(self.info()["free_memory"])

    def free_pages(self, timeout: float = 60.0) -> int:
        """Pages of 4 KiB that Xen has to give, on all nodes, once no domain is dying (debug key ``u``).

        :raises ProductTimeout: a domain is still dying after ``timeout`` seconds.
        """
        self.expect(lambda: "(null)" not in self.xl("list").stdout, timeout, f"{self.name}: no domain is dying")
        return sum(nodes_free(self.debug_keys("u")).values())

    def wait_scrubbed(self, timeout: float = 120.0) -> None:
        """Wait until Xen has scrubbed all free memory, which it does when idle.

        Until then a guest gets pages that are clean before such as are where they should be, of its NUMA node or high
        up (xen/common/page_alloc.c, alloc_heap_pages: a second search takes what is dirty).

        :raises WaitTimeout: it is not done.
        """
        what = f"{self.name}: free memory is scrubbed"
        wait_until(lambda: "unscrubbed" not in self.debug_keys("H"), timeout, what, interval=1.0)

    def clock(self) -> float:
        """dom0's wall clock in seconds since the epoch, as it is when this returns (half a round trip is added)."""
        before = time.monotonic()
        said = float(self.run("date +%s.%N").stdout)
        return said + (time.monotonic() - before) / 2

    def lag(self) -> float:
        """How far dom0's wall clock is ahead of this machine's, in seconds."""
        return self.clock() - time.time()

    def domains(self) -> dict[str, DomainRow]:
        """The guests (not dom0) of this end by name."""
        return self.own(self.rows())

    def own(self, rows: Iterable[DomainRow]) -> dict[str, DomainRow]:
        """Those of :meth:`rows` that :meth:`domains` gives."""
        return {row.name: row for row in rows if row.domid and self.owns(row.domid)}

    def rows(self) -> list[DomainRow]:
        """All of ``xl list``."""
        rows = []
        for line in self.xl("list").stdout.splitlines():
            if match := _ROW.match(line.strip()):
                name, domid, memory, vcpus, state, seconds = match.groups()
                rows.append(DomainRow(name, int(domid), int(memory), int(vcpus), state, float(seconds)))
        return rows

    def owns(self, domid: int) -> bool:
        """Whether a domain belongs to this end of a relocation: all do where one board is both ends.

        See :mod:`lab.xen.migration_matrix.one_board`.
        """
        return True

    def log_names(self, name: str) -> tuple[str, ...]:
        """What xenconsoled may call the log of a guest here: it keeps the name of its arrival."""
        return (name + ARRIVED, name)

    @property
    def link_name(self) -> str:
        """What the source of a relocation calls this host."""
        return str(self.board.spec.link_name)

    def debug_keys(self, keys: str) -> str:
        """Press Xen's debug keys and give back what they wrote to its console ring, which is not emptied for it."""
        script = f"xl dmesg && echo {_CUT} && xl debug-keys {shlex.quote(keys)} && xl dmesg"
        result = self.run(script, check=False)
        if result.status:
            raise ToolstackFailed(self.name, f"xl debug-keys {keys}", result.status, result.stderr or result.stdout)
        before, _, after = str(result.stdout).partition(f"{_CUT}\n")
        return added(before, after)

    def boot_log(self) -> str:
        """What Xen said since this boot began, up to where its capabilities were probed: the ring itself forgets."""
        return str(self.run(_BOOT_LOG).stdout)

    def grave(self) -> list[str]:
        """Lines of Xen's ring that tell of a bug, a warning or a guest that Xen crashed; ``xl dmesg -c`` empties it."""
        said = str(self.xl("dmesg").stdout).splitlines()
        return [line for line in said if "BUG" in line or "WARN at" in line or "domain_crash" in line]

    def expect_console(self, pattern: str, timeout: float, *, since: int) -> Any:
        """The first line on the serial console that matches, from record ``since`` (``board.console.mark()``) on.

        :raises ProductTimeout: it did not come.
        """
        with _owed(), self.phase("wait"):
            return self.board.console.wait_for(pattern, timeout, since=since)

    def expect(self, predicate: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until the product has done what it owes. :raises ProductTimeout: it has not in time."""
        with _owed(), self.phase("wait"):
            wait_until(predicate, timeout, f"{self.name}: {what}")

    # -- domains ---------------------------------------------------------------------------------------------

    def unique(self, stem: str) -> str:
        """A domain name nobody had before on this board: logs of an older one are never taken for its own."""
        return f"{stem}-{int(time.time()) % 100000}-{next(self._numbers)}"

    @contextlib.contextmanager
    def domain(self, config: DomainConfig, *, paused: bool = False) -> Iterator[Domain]:
        """Create a domain, and have it gone at the end whatever happens.

        :raises ToolstackFailed: ``xl create`` refused.
        """
        domain = Domain(self, config)
        try:
            domain.create(paused=paused)
            yield domain
        except BaseException:
            with contextlib.suppress(Exception):  # what a guest has said belongs to every failure
                self.keep(f"console of {domain.name}, when the case failed", "\n".join(domain.console()) or "nothing")
            raise
        finally:
            with contextlib.suppress(BenchError):  # a crashed host must not hide what the case found
                domain.destroy()

    def destroy_all(self) -> list[str]:
        """Destroy every guest there is; the names of those that were."""
        names = list(self.domains())
        for name in names:
            self.xl("destroy", name, check=False)
        if names:
            with contextlib.suppress(WaitTimeout):
                wait_until(lambda: not self.domains(), 20, f"{self.name}: guests gone")
        return names

    # -- power -----------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Ask dom0 to power the machine off (ACPI S5); returns at once."""
        self.run("(sleep 0.3; poweroff) >/dev/null 2>&1 &")

    # -- capabilities ----------------------------------------------------------------------------------------

    def capabilities(self) -> frozenset[str]:
        """What this hypervisor on this board can do, probed.

        Words of ``virt_caps`` and ``xen_caps`` (tools/xl/xl_info.c, xen/arch/x86/setup.c init_xen_cap_info),
        /sys/power/mem_sleep, tools/misc/xenpm.c, PCI ids, and what boot printed.
        """
        info = self.info()
        words = set(info.get("virt_caps", "").split())
        found: set[str] = {word for word in ("pv", "hvm", "hap", "shadow", "vpmu") if word in words}
        if "pv_directio" in words or "hvm_directio" in words:
            found.add("iommu")
        kinds = info.get("xen_caps", "").split()
        found.add("pv32" if "xen-3.0-x86_32p" in kinds else "no-pv32")
        if "hvm-3.0-x86_32" in kinds:
            found.add("hvm32")
        # A node's size is that of the addresses it spans, holes and all (xen/common/sysctl.c, numainfo).
        nodes = str(self.xl("info", "-n").stdout).partition("numa_info")[2]
        if sum(int(size) for size in re.findall(r"(?m)^\s*\d+:\s+(\d+)\s+\d+\s", nodes)) > BELOW_4_GIB_MIB:
            found.add("high-memory")
        if int(info.get("nr_nodes", "1")) > 1:
            found.add("numa")
        if int(info.get("nr_cpus", "1")) > 1:
            found.add("cpu-offline")
        if int(info.get("total_memory", "0")) > LARGE_MIB:
            found.add("memory-8g")
        probe = self.run(
            "grep -q deep /sys/power/mem_sleep && echo s3; grep -q disk /sys/power/state && echo s5; "
            "test -e /sys/class/rtc/rtc0/wakealarm && echo rtcwake; "
            "{ test -x /usr/libexec/xen-qemu-system-i386 || command -v qemu-system-i386 >/dev/null; } && echo qemu; "
            "test -e /usr/lib/xen-*/boot/xen-shim && echo shim; "
            "grep -qs 0x1234 /sys/bus/pci/devices/*/vendor && grep -qs 0x11e8 /sys/bus/pci/devices/*/device "
            "&& echo dma-device; "
            "xenpm get-cpufreq-para 0 2>/dev/null | grep -q scaling_driver && echo pstate; "
            "xenpm get-cpuidle-states 0 2>/dev/null | awk '/total C-states/ && $NF > 2 { print \"cstate\" }'; "
            "ssh -o BatchMode=yes -o ConnectTimeout=10 localhost true 2>/dev/null && echo self-ssh; "
            f"{{ {_BOOT_LOG}; }} | grep -o 'HAP page sizes:.*'; true",
            check=False,
        ).stdout
        found |= set(probe.split()) & PROBED_IN_DOM0
        found.add("s5" if "s3" in found else "no-s3")
        sizes = next((line for line in probe.splitlines() if line.startswith("HAP page sizes")), "")
        if "2MB" in sizes and "2MB [disabled]" not in sizes:
            found.add("sp2m")
        if "1GB" in sizes and "1GB [disabled]" not in sizes:
            found.add("sp1g")
        return frozenset(found)

    def pci_of(self, mac: str) -> str:
        """PCI address (``0000:00:04.0``) of the network port with this MAC, whoever drives it now.

        :raises BenchError: no such port.
        """
        script = 'for d in /sys/class/net/*; do [ "$(cat $d/address)" = %s ] && '
        script += "basename $(readlink -f $d/device); done; true"
        found = str(self.run(script % shlex.quote(mac.lower())).stdout).split()
        if not found:
            raise BenchError(f"{self.name}: no network port has the MAC {mac}")
        return found[0]


def added(before: str, after: str) -> str:
    """What a ring of text was given between two readings: it loses as much at its beginning once it is full."""
    start = before.find(head := after[:_HEAD])
    while start >= 0 and not after.startswith(before[start:]):
        start = before.find(head, start + 1)
    if start < 0:  # less than that was kept
        ends = range(max(len(before) - _HEAD, 0), len(before))
        start = next((end for end in ends if after.startswith(before[end:])), len(before))
    return after[len(before) - start :]
