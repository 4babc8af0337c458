"""Debian's kernels as guests. Xen's interface to them is stable, so that each kernel runs on each hypervisor."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lab.base.errors import ProductFailure
from lab.xen.disks import SECTOR, numbered, with_disk
from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import linux, of_release
from lab.xen.migration_matrix import known_findings
from lab.xen.payloads import RELEASES
from lab.xen.reach import bridge

pytestmark = pytest.mark.weekly

DOM0, GUEST = "192.168.233.1", "192.168.233.2"
MIB, FEWER_MIB = 320, 256  # the newest of the kernels needs more than 192 MiB to come up
WORKS = "mode,netfront,clock,copy,heartbeat"
# Seconds. Until Linux has its clocksource it counts ticks, and loses those that a busy machine withholds: 8 were seen.
CLOCK = 20.0
CLOCK_OVER_RESTORE = 3.0
ASK = f"""import socket, time
before = time.time()
said = socket.create_connection(("{GUEST}", 13), 60).makefile().read()
print(before, said.strip(), time.time())"""
KNOWN = known_findings.read(
    Path(__file__).with_name("known.yaml"),
    [f"{one}-{kind}" for one in RELEASES for kind in ("pv", "pvh", "hvm")],
    ["boot"],
)
RESET_STATUS = "print_s5_reset_status_mmio"  # of Linux, arch/x86/kernel/cpu/amd.c
KINDS = [
    pytest.param("pv", marks=pytest.mark.needs("pv")),
    pytest.param("pvh", marks=pytest.mark.needs("hap", "guest-cr2")),
    pytest.param("hvm", marks=pytest.mark.needs("hap", "qemu", "guest-cr2")),
]


def boots(host, evidence, kind, release):
    """Assert that the kernel does not panic where the known finding says. It need not come up within the block."""
    with of_release(host, release) as (kernel, ramdisk):
        config = replace(linux(host, kind, "idle", memory_mib=MIB), kernel=kernel, ramdisk=ramdisk)
        with host.domain(config) as guest:
            line = guest.wait_for("^XL done |Kernel panic - not syncing", 300.0)
            said = guest.console()
            evidence.console("console of a guest with no option", guest)
    if "panic" in line and not any(RESET_STATUS in one for one in said):
        raise ProductFailure(f"{guest.name} on {host.name}: {line}")
    assert "panic" not in line, f"{line} ({RESET_STATUS})"


@contextlib.contextmanager
def running(host, evidence, kind, release, words=""):
    """A guest with this kernel that has reached dom0 by its network port, and that has copied half of its disk."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(bridge(host, f"{DOM0}/24"))
        path = stack.enter_context(numbered(host, 2))
        if release == "bookworm-i386":
            boot, more = {}, {"sort": "linux32", "more": {"hap": "0"}}
        else:
            boot = dict(zip(("kernel", "ramdisk"), stack.enter_context(of_release(host, release)), strict=True))
            more = {"more": {}}
        more["more"] |= {"vif": f'[ "type=vif,bridge={name},mac=00:16:3e:00:00:04" ]'}
        # From 6.3 on Linux would take an invariant TSC, at the frequency that Xen measured when it booted.
        words = f"ip={GUEST}/24 peer={DOM0} count=3 clocksource=xen {words}".strip()
        config = replace(linux(host, kind, WORKS, memory_mib=MIB, cmdline=words, **more), **boot)
        if host.run(f"test -e {config.kernel}", check=False).status:
            evidence.unproved("the board has no 32-bit kernel, because no mirror of this machine has one")
        half = host.run(f"head -c 1M {path} | sha256sum").stdout.split()[0]
        with host.domain(with_disk(config, path)) as guest:
            try:
                results = guest.results(300.0)
            finally:
                evidence.console("guest console", guest)
            failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
            assert not failed, "; ".join(failed)
            mode = results["mode"].detail
            assert f"guest_type={kind.upper()}" in mode and mode.endswith("clocksource=xen"), mode
            assert f"sectors={(1 << 20) // SECTOR} sha256={half}" in results["copy"].detail, results["copy"].detail
            written = host.run(f"tail -c 1M {path} | sha256sum").stdout.split()[0]
            assert written == half, f"the guest's disk has {written} where it wrote {half}"
            yield guest


def clock_error(host, evidence, when):
    """Seconds by which the guest's wall clock, which it tells in whole ones by its network port, is not dom0's."""
    before, wall, after = map(float, host.run(f"python3 -c {shlex.quote(ASK)}", timeout=90).stdout.split())
    error = min(wall - (before - 1), 0.0) + max(wall - after, 0.0)
    evidence.figure(f"clock_error_{when}_s", error)
    return error


def resize(host, guest, mib):
    """`xl mem-set`, until Xen counts the guest's memory so."""
    host.xl("mem-set", guest.name, str(mib))
    host.expect(lambda: abs(host.domains()[guest.name].memory_mib - mib) <= 2, 90.0, f"{guest.name} has {mib} MiB")


def does_all(host, evidence, kind, release, words="", *, is_saved=True):
    """What each kernel is asked."""
    with running(host, evidence, kind, release, words) as guest:
        error = clock_error(host, evidence, "after_boot")
        assert abs(error) < CLOCK, f"the guest's wall clock is {error:+.1f} s off after its boot"
        full = host.domains()[guest.name].memory_mib
        for mib in (FEWER_MIB, full):
            resize(host, guest, mib)
        guest.beats(2, 30)
        assert_unbroken(guest.heartbeats())
        if is_saved:
            runs_on(host, evidence, guest, error)
        assert_unhurt(guest)


def runs_on(host, evidence, guest, error):
    """Save and restore the guest: it beats, answers a ping, and its clock is as much off as before."""
    with guest.saved() as path:
        guest.restore(path)
        guest.beats(3, 60)
    change = clock_error(host, evidence, "after_restore") - error
    assert abs(change) < CLOCK_OVER_RESTORE, f"the guest's wall clock is {change:+.1f} s off by its restore"
    answers = host.run(f"ping -n -c 3 -W 5 {GUEST}", timeout=60, check=False).stdout
    evidence.add("ping after restore", answers, board=host.name)
    evidence.console("guest console after restore", guest)
    assert " 0% packet loss" in answers, answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", sorted(RELEASES))
def test_debians_kernel_runs(release, kind, host, evidence):
    """A release's kernel boots, has network, disk and clock, gives memory back, and runs on when it was saved.

    A known failure of its boot is excused by name (known.yaml), and all else is asked without what fails there.
    """
    version, cell, words = host.info()["xen_version"], f"{release}-{kind}", ""
    if KNOWN.finding(version, cell, "boot"):
        with known_findings.excusing(KNOWN, evidence, version, cell, "boot"):
            boots(host, evidence, kind, release)
        words = f"initcall_blacklist={RESET_STATUS}"
    does_all(host, evidence, kind, release, words)


KINDS_OF_32_BIT = pytest.mark.parametrize("kind", ["pvh", pytest.param("hvm", marks=pytest.mark.needs("qemu"))])


@pytest.mark.needs("hvm32", "shadow")
@KINDS_OF_32_BIT
def test_debians_kernel_of_32_bit_runs(kind, host, evidence):
    """Debian's last 32-bit kernel, on shadow paging, boots, has network, disk and clock, and gives memory back."""
    does_all(host, evidence, kind, "bookworm-i386", is_saved=False)


@pytest.mark.needs("hvm32", "shadow", "pae-guests")  # QEMU 7.2 ends when such a guest goes on (docs/virtual-lab.md)
@KINDS_OF_32_BIT
def test_debians_kernel_of_32_bit_is_restored(kind, host, evidence):
    """Debian's last 32-bit kernel, on shadow paging, runs on when it was saved, with its network, disk and clock."""
    does_all(host, evidence, kind, "bookworm-i386")
