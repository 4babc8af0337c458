"""A crash of the host, kept by its crash kernel, which Xen starts."""

import pytest

from lab.xen.guests import payload
from lab.xen.kexec import crash, load_crash_kernel

pytestmark = [
    pytest.mark.cold,
    pytest.mark.weekly,
    pytest.mark.needs("kexec"),
    pytest.mark.xen_options("crashkernel=256M", "nmi=fatal"),
    pytest.mark.timeout(1200, func_only=True),  # three boots
]


def crashed(host, evidence, build, command, through):
    """Crash the host by a command in dom0, or what is called; assert that the crash kernel kept that crash.

    ``through``: functions of Xen that must be on the stack of the processor that crashed.
    """
    before, dom0 = host.info(), host.rows()[0]
    is_pv = host.run("cat /sys/hypervisor/guest_type").stdout.strip() == "PV"
    loaded = load_crash_kernel(host)
    evidence.add("kexec -p", loaded.stdout + loaded.stderr, board=host.name)
    assert loaded.status == 0, f"kexec -p refused: {(loaded.stderr or loaded.stdout).strip()}"

    def order():
        host.run(f"sync; (sleep 0.5; {command}) >/dev/null 2>&1 &")

    seen = crash(host, command if callable(command) else order)
    facts = seen.facts
    evidence.add("what the crash kernel kept", facts.text(), board=host.name)
    evidence.file("the notes of the vmcore", host, seen.notes)
    evidence.add("power, by the BMC", seen.course.power(), kind="bmc", board=host.name)
    evidence.figure("crash_kernel_s", seen.crash_kernel_seconds)
    total = int(before["total_memory"])
    assert facts.memory >> 20 > total * 0.8, f"the vmcore has {facts.memory >> 20} of {total} MiB of memory"
    assert facts.xen, "the vmcore has no crash note of Xen"
    assert facts.xen.version == before["xen_version"], f"the crash note is of Xen {facts.xen.version}"
    if build.build_id:
        assert facts.xen.build_id == build.build_id, f"the Xen in the vmcore has the build id '{facts.xen.build_id}'"
    if is_pv:
        found = facts.xen.dom0_mib
        assert found >= dom0.memory_mib * 0.9, f"{found} of dom0's {dom0.memory_mib} MiB are in the vmcore"
    saved = [number for number, cpu in enumerate(facts.cpus) if cpu.rip]
    assert saved == list(range(int(before["nr_cpus"]))), f"the vmcore has the registers of the processors {saved}"
    if build.symbols:
        found = seen.functions(build.symbols)
        evidence.add(f"on the stack of CPU {seen.cpu}", "\n".join(found), board=host.name)
        missing = {"kexec_crash", *through} - set(found)
        assert not missing, f"not on the stack of CPU {seen.cpu}, which crashed: {', '.join(sorted(missing))}"
    return seen


def test_a_crash_of_xen_is_kept(host, evidence, build):
    """Xen is crashed by its debug key while a guest runs: its crash kernel comes up, and this Xen is in the vmcore."""
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        crashed(host, evidence, build, "xl debug-keys C", ["do_crashdump_trigger"])


@pytest.mark.expects_crash("linux-panic", "dom0-crash")
def test_a_crash_of_dom0_is_kept(host, evidence, build):
    """dom0's kernel panics while a guest runs: Xen's crash kernel comes up, and the vmcore tells of both."""
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        crashed(host, evidence, build, "echo c > /proc/sysrq-trigger", ["hwdom_shutdown"])


@pytest.mark.needs("cpu-offline")
def test_a_crash_on_another_cpu_is_kept(host, evidence, build):
    """Xen crashes on its last CPU: the crash kernel comes up there, and the vmcore has the registers of all CPUs."""
    last = int(host.info()["nr_cpus"]) - 1
    host.xl("vcpu-pin", "0", "all", str(last))
    try:
        seen = crashed(host, evidence, build, "xl debug-keys C", ["do_crashdump_trigger"])
    except BaseException:
        host.run("xl vcpu-pin 0 all all", check=False)  # the host may not have crashed
        raise
    if seen.cpu != last:
        evidence.unproved(f"Xen crashed on CPU {seen.cpu}, not on CPU {last}")
    if build.symbols:
        for cpu in range(last):
            found = seen.functions(build.symbols, cpu)
            assert "do_nmi_crash" in found, f"CPU {cpu} was not stopped for the crash: {', '.join(found[:5])}"


@pytest.mark.needs("bmc-nmi")
@pytest.mark.expects_crash("xen-fatal-trap", "xen-panic")
def test_an_nmi_of_the_bmc_is_kept(host, evidence, build):
    """A fatal NMI from the BMC: the functions that Xen names on its console are those on the stack in the vmcore."""
    seen = crashed(host, evidence, build, host.board.power.nmi, ["fatal_trap", "panic"])
    if not build.symbols:
        evidence.unproved("the build has no symbols")
    told = seen.told(build.symbols)
    evidence.add("what crashed, by the console", told.text(), board=host.name)
    strange = set(told.functions) - set(seen.functions(build.symbols))
    assert told.functions, f"the console names no function: {told.label}"
    assert not strange, f"the console names {', '.join(sorted(strange))}; the vmcore has no such function on the stack"
