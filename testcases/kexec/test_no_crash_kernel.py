"""Crashes without a crash kernel, and regions that no crash kernel can have."""

import re

import pytest

from lab.xen.guests import payload
from lab.xen.kexec import BANNER_LIMIT, Course, load_crash_kernel, unload_crash_kernel

pytestmark = [pytest.mark.cold, pytest.mark.weekly, pytest.mark.needs("kexec")]


def refused(host, evidence, words):
    """``kexec -p`` refuses with these words, and Xen has no crash kernel then."""
    said = load_crash_kernel(host)
    answer = (said.stdout + said.stderr).strip()
    evidence.add("kexec -p", f"status {said.status}\n{answer}", board=host.name)
    assert said.status != 0, f"kexec -p loaded a crash kernel: {answer}"
    assert re.search(words, answer), f"kexec -p says: {answer}"


@pytest.mark.xen_options("crashkernel=256M", "nmi=fatal")
@pytest.mark.expects_crash("linux-panic", "dom0-crash")
def test_without_a_crash_kernel(host, evidence):
    """No crash kernel is loaded: Xen survives its crash key and says why, and reboots when dom0 crashes."""
    unload_crash_kernel(host)  # an earlier case may have left one
    course = Course(host, host.board.console.mark())
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        said = host.debug_keys("C")
        evidence.add("xl debug-keys C", said, board=host.name)
        assert "no crash kernel loaded!" in said, f"Xen says: {said}"
        guest.beats(3)
        host.run("sync; (sleep 0.5; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
        course.wait("Hardware Dom0 crashed: rebooting machine in 5 seconds", 60.0)
        course.wait(r" Xen version \d", 5.0 + BANNER_LIMIT)
        course.answer()
        evidence.add("power, by the BMC", course.power(), kind="bmc", board=host.name)
        assert course.is_always_on, f"the BMC reports the power off: {course.power()}"


@pytest.mark.xen_options("crashkernel=16M")
def test_a_region_that_is_too_small(host, evidence):
    """Into a region of 16 MiB kexec loads no crash kernel; Xen then has none, and survives its crash key."""
    evidence.add("Kdump", "\n".join(line for line in host.boot_log().splitlines() if "Kdump" in line), board=host.name)
    assert re.search(r"Kdump: 16MB \(16384kB\) at 0x[0-9a-f]+", host.boot_log()), "Xen has not reserved the region"
    refused(host, evidence, "Could not find a free area of memory")
    said = host.debug_keys("C")
    assert "no crash kernel loaded!" in said, f"Xen says: {said}"


@pytest.mark.xen_options("crashkernel=256M@64G")
def test_a_region_where_there_is_no_memory(host, evidence):
    """Xen says that it cannot reserve a region where there is no memory; kexec then finds none."""
    if int(host.info()["total_memory"]) >= 48 << 10:
        pytest.skip("the board may have memory at 64 GiB")
    lines = [line for line in host.boot_log().splitlines() if "Kdump" in line]
    evidence.add("Kdump", "\n".join(lines), board=host.name)
    wanted = "Kdump: DISABLED (failed to reserve 256MB (262144kB) at 0x1000000000)"
    assert any(wanted in line for line in lines), f"Xen says of the region: {lines or 'nothing'}"
    refused(host, evidence, "Cannot load|Memory for crashkernel is not reserved")
