"""Suspend of the host to RAM (ACPI S3): it sleeps, it wakes, and what ran before runs afterwards."""

import time
from contextlib import ExitStack
from itertools import pairwise

import pytest

from lab.xen import power
from lab.xen.domain import assert_unbroken
from lab.xen.guests import linux, payload
from lab.xen.pci import assignable, dma_device, fill_page, frames, page_digest
from lab.xen.sleep import suspend

pytestmark = [pytest.mark.cold, pytest.mark.needs("s3", "bmc-sleep-state")]

ASLEEP = 10  # seconds from the order to the alarm; they include going to sleep
TIMER = 20
# Seconds for one sleep. Xen's clock may be a second ahead after a sleep, and in every tenth sleep of an emulated board
# a whole second of that stays for good (docs/findings/sleep.md). Several sleeps may have this times the root of their
# number.
CLOCK_ERROR = 2.5
# Seconds for which a host sleeps before its power button is pressed, where clocks are looked at: a clock that stood
# still meanwhile is then wrong by more than is allowed, also over several sleeps.
ASLEEP_FOR = 8.0


def slept(host, evidence, **how):
    """One sleep, with its evidence and its figures. Asserts that it was one."""
    sleep = suspend(host, **how)
    evidence.add("sleep", sleep.text(), kind="console", board=host.name)
    for name, value in sleep.figures().items():
        evidence.figure(name, value)
    sleep.check()
    return sleep


def assert_not_early(sleep, alarm):
    """The alarm woke the host, and nothing woke it before."""
    woke = sleep.suspend_seconds + sleep.asleep_seconds
    assert woke >= alarm - 2, (  # an RTC counts whole seconds
        f"the alarm was set to {alarm} s, and the host woke {woke:.1f} s after it was told to sleep"
    )


def assert_clocks(evidence, guest, lag, sleeps=1):
    """The guest's system time never went back, and its wall clock is as right as dom0's was before.

    A sleep that sets right what an earlier one left wrong sets the wall clock back by as much.
    ``lag``: seconds by which dom0's clock was ahead of this machine's.
    """
    beats = guest.heartbeats()
    for before, after in pairwise(beats):
        assert after.system_ns > before.system_ns, f"system time went back at beat {after.n}: {before} {after}"
        assert after.wall > before.wall - CLOCK_ERROR, f"the wall clock went back at beat {after.n}: {before} {after}"
    before = time.time()
    wall = guest.beats(1).wall - lag  # the heartbeat came between then and now
    error = min(wall - before, 0.0) + max(wall - time.time(), 0.0)
    evidence.figure(f"{guest.name.partition('-')[0]}_clock_error_s", error)
    assert abs(error) < CLOCK_ERROR * sleeps**0.5, f"the wall clock of {guest.name} is {error:+.1f} s off after waking"


@pytest.mark.quick
@pytest.mark.needs("rtcwake")
def test_s3_with_a_guest_running(host, evidence):
    """The host sleeps in S3, which its BMC confirms, and the RTC wakes it; a guest and its clocks go on."""
    with host.domain(payload(host, "pvh64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        lag = host.lag()
        sleep = slept(host, evidence, wake_after=ASLEEP)
        assert_not_early(sleep, ASLEEP)
        guest.beats(5)
        assert_unbroken(guest.heartbeats())
        assert_clocks(evidence, guest, lag)


@pytest.mark.quick
def test_s3_woken_by_the_power_button(host, evidence):
    """Without an alarm the host sleeps until its BMC presses the power button; Xen's and dom0's clocks are right."""
    with host.domain(payload(host, "pvh64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        before = host.lag()
        sleep = slept(host, evidence, while_asleep=host.board.power.press_power_button, asleep_for=ASLEEP_FOR)
        drift = host.lag() - before
        evidence.figure("clock_drift_s", drift)
        if sleep.asleep_seconds < 2 * CLOCK_ERROR:
            evidence.unproved(
                f"the host slept {sleep.asleep_seconds:.1f} s: too short to tell whether a clock stood still"
            )
        guest.beats(2)
        assert_clocks(evidence, guest, before)  # a guest reads Xen's own clock, and dom0 may have set its by the RTC
    assert abs(drift) < CLOCK_ERROR, f"dom0's clock is {drift:+.1f} s off after waking"


@pytest.mark.full
@pytest.mark.needs("rtcwake")
def test_s3_woken_by_a_timer(host, evidence):
    """A timer of dom0's kernel that expires while the host sleeps wakes the host."""
    sleep = slept(host, evidence, wake_after=TIMER, by="timer")
    said = host.run("timeout 5 sh -c 'until grep expired /run/xenlab/alarm.log; do sleep 0.2; done'", check=False)
    evidence.add("the timer", said.stdout, board=host.name)
    assert_not_early(sleep, TIMER)
    assert said.status == 0, "the host woke, but the timer that should have woken it has not expired"


@pytest.mark.needs("pv32", "hap")
@pytest.mark.parametrize(
    "cycles",
    [
        pytest.param(3, marks=pytest.mark.full),
        pytest.param(20, marks=[pytest.mark.weekly, pytest.mark.timeout(3600, func_only=True)]),
    ],
)
def test_sleeps_in_a_row(host, evidence, cycles):
    """PV and PVH guests of 32 and 64 bit survive several sleeps in a row; no memory is lost, and clocks are right."""
    cpus, resumes = host.info()["nr_cpus"], []
    with ExitStack() as stack:
        kinds = ("pv64", "pv32", "pvh64", "pvh32")
        guests = [
            stack.enter_context(host.domain(payload(host, kind, "memory,heartbeat", hb_ms=500))) for kind in kinds
        ]
        for guest in guests:
            guest.beats(2)
        free, lag = host.free_memory_mib(), host.lag()
        course, clock = lag, []
        stack.callback(lambda: evidence.add("dom0's clock after each sleep", "\n".join(clock) or "not read"))
        for number in range(1, cycles + 1):
            is_last = number == cycles  # a long one: over short ones a clock that stands still may look right
            press = host.board.power.press_power_button
            sleep = suspend(host, while_asleep=press, asleep_for=ASLEEP_FOR if is_last else 0.0)
            evidence.add(f"sleep {number} of {cycles}", sleep.text(), kind="console", board=host.name)
            assert not sleep.failure(), f"sleep {number} of {cycles}: {sleep.failure()}"
            resumes.append(sleep.back_seconds)
            before, course = course, host.lag()
            drift = course - before
            clock.append(f"after sleep {number}: {course - lag:+.2f} s off, {drift:+.2f} s of that by this sleep")
            assert abs(drift) < CLOCK_ERROR, f"sleep {number} of {cycles}: dom0's clock is {drift:+.1f} s off"
        evidence.figure("resume_mean_s", sum(resumes) / cycles)
        evidence.figure("resume_longest_s", max(resumes))
        for guest in guests:
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
            assert_clocks(evidence, guest, lag, cycles)
            bad = [line for line in guest.payload_lines() if getattr(line, "outcome", "") == "FAIL"]
            assert not bad, f"{guest.name}: {bad[0]}"
        assert host.info()["nr_cpus"] == cpus
        assert host.free_memory_mib() == free, f"free memory: {free} MiB before, {host.free_memory_mib()} MiB after"
        evidence.figure("clock_drift_s", course - lag)
        drift = abs(course - lag)
        assert drift < CLOCK_ERROR * cycles**0.5, f"dom0's clock is {course - lag:+.1f} s off after {cycles} sleeps"


@pytest.mark.full
@pytest.mark.needs("cpu-offline")
def test_all_cpus_come_back(host, evidence):
    """After a sleep every CPU is online, and a guest that is pinned to the last CPU runs on there."""
    last = int(host.info()["nr_cpus"]) - 1
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        host.xl("vcpu-pin", guest.name, "0", str(last))
        guest.beats()
        lag = host.lag()
        slept(host, evidence, while_asleep=host.board.power.press_power_button, asleep_for=ASLEEP_FOR)
        evidence.add("xl vcpu-list", host.xl("vcpu-list").stdout, board=host.name)
        assert int(host.info()["nr_cpus"]) == last + 1, "a CPU is missing after waking"
        guest.beats(5)
        assert_unbroken(guest.heartbeats())
        assert_clocks(evidence, guest, lag)
        row = host.xl("vcpu-list", guest.name).stdout.splitlines()[-1].split()
        assert row[3] == str(last), f"the guest was pinned to CPU {last}: {' '.join(row)}"
        assert row[6] == str(last), f"the pinning did not survive the sleep: {' '.join(row)}"


@pytest.mark.weekly
@pytest.mark.needs("pstate", "frequency-register")
def test_each_cpu_has_its_frequency_after_a_sleep(host, evidence):
    """After a sleep Xen writes each CPU's frequency to its register anew, and it follows the governor."""
    count, steps = int(host.info()["nr_cpus"]), power.frequency(host, 0).steps
    with power.governed(host, count, "userspace"):  # which writes nothing by itself
        for cpu in range(count):
            power.write_port(host, power.REGISTERS + cpu, 0xFF)  # as a machine's registers may hold anything after S3
        slept(host, evidence, while_asleep=host.board.power.press_power_button)
        found = [power.frequency(host, cpu) for cpu in range(count)]
        evidence.add("after waking", "\n".join(map(str, found)), board=host.name)
        what = "Xen has written a frequency to the register of each CPU after waking"
        host.expect(lambda: set(power.registers(host, count)) <= set(steps), 10.0, what)
    for governor, khz in (("powersave", steps[-1]), ("performance", steps[0])):
        with power.governed(host, count, governor):
            assert power.registers(host, count) == (khz,) * count, f"{governor} is not obeyed by each CPU after waking"


@pytest.mark.weekly
@pytest.mark.needs("cstate")
def test_each_cpu_has_its_idle_states_after_a_sleep(host, evidence):
    """After a sleep each CPU has all idle states that it had, and enters deep ones."""
    cpus = range(int(host.info()["nr_cpus"]))
    before = [set(power.idle_states(host, cpu)) for cpu in cpus]
    slept(host, evidence, while_asleep=host.board.power.press_power_button)

    def there():
        return [set(power.idle_states(host, cpu)) for cpu in cpus] == before

    host.expect(there, 10.0, f"each CPU has the states {', '.join(sorted(before[0]))}")  # dom0 tells Xen of them anew
    for cpu in cpus:
        entered = power.deep_entries(host, cpu)
        host.expect(lambda cpu=cpu, entered=entered: power.deep_entries(host, cpu) > entered, 20.0, f"CPU {cpu} idles")
    evidence.add("idle states", "\n".join(str(power.idle_states(host, cpu)) for cpu in cpus), board=host.name)


@pytest.mark.weekly
@pytest.mark.parametrize(
    "tsc",
    [
        pytest.param("invariant", marks=pytest.mark.needs("pstate", "cstate", "invariant-tsc")),
        pytest.param("stopping", marks=pytest.mark.needs("pstate", "no-invariant-tsc")),
    ],
)
def test_clocks_over_power_states(host, evidence, tsc):
    """Guests' clocks are right over idle states, changes of the frequency and a sleep; a TSC that stops is not stopped.

    A TSC that may stop and that Xen cannot set again allows no idle state deeper than C1.
    Source: xen/arch/x86/time.c, tsc_check_writability.
    """
    cpus, steps = int(host.info()["nr_cpus"]), power.frequency(host, 0).steps
    unwritable = "writable" in host.xl("dmesg").stdout
    allowed = host.run("xenpm get-cpuidle-states 0").stdout.splitlines()[0]
    evidence.add("xenpm get-cpuidle-states 0", allowed, board=host.name)
    if tsc == "stopping" and unwritable:
        assert allowed == "Max possible C-state: C1", f"the TSC may stop and cannot be set, and xenpm says: {allowed}"
    kinds = ("pv64", "pvh64")
    with ExitStack() as stack:
        guests = [stack.enter_context(host.domain(payload(host, kind, "heartbeat", hb_ms=500))) for kind in kinds]
        for guest in guests:
            guest.beats()
        lag, entered = host.lag(), power.deep_entries(host, 0)
        with power.governed(host, cpus, "userspace"):
            for khz in (*steps, *steps):
                power.set_frequency(host, range(cpus), khz)
                guests[0].beats(2)
        deep = power.deep_entries(host, 0) - entered
        evidence.figure("deep_entries", deep)
        if tsc == "invariant":
            assert deep > 0, "CPU 0 has entered no deep state meanwhile"
        for guest in guests:
            assert_unbroken(guest.heartbeats())
            assert_clocks(evidence, guest, lag)
        slept(host, evidence, while_asleep=host.board.power.press_power_button, asleep_for=ASLEEP_FOR)
        for guest in guests:
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
            assert_clocks(evidence, guest, lag)


@pytest.mark.full
@pytest.mark.needs("iommu", "spare-nic")
def test_port_passes_through_after_a_sleep(host, evidence):
    """After a sleep a guest can drive a passed-through port: its DMA is remapped, and its MSI-X interrupts arrive."""
    slept(host, evidence, while_asleep=host.board.power.press_power_button)
    with assignable(host, "spare") as device:
        words = "iommu=soft ip=10.0.2.15/24 peer=10.0.2.2 count=5"
        with host.domain(linux(host, "pv", "nic", cmdline=words, pci=(device.address,))) as guest:
            results = guest.results(120.0)
            evidence.console("guest console", guest)
            assert results["nic-ping"].outcome == "PASS", results["nic-ping"].detail
            assert results["nic-irq"].outcome == "PASS", results["nic-irq"].detail


@pytest.mark.full
@pytest.mark.needs("iommu", "dma-device")
@pytest.mark.expects_crash("iommu-fault")
def test_iommu_guards_after_a_sleep(host, evidence):
    """After a sleep the IOMMU still lets a guest's device reach that guest's memory, and no other memory."""
    slept(host, evidence, while_asleep=host.board.power.press_power_button)
    with dma_device(host) as device:
        victim_config = payload(host, "pv64", "memory,heartbeat", hb_ms=200)
        owner_config = payload(host, "pv64", "heartbeat", hb_ms=200, pci=(device.address,))
        with host.domain(victim_config) as victim, host.domain(owner_config) as guest:
            victim.beats()
            mine, other = frames(guest, 2)
            foreign = frames(victim, 1)[0]
            wanted, before = fill_page(guest, mine, "xenlab"), page_digest(victim, foreign)
            device.read(mine)
            device.write(other)
            assert page_digest(guest, other) == wanted, (
                "the device does not reach the memory of the guest it belongs to"
            )
            mark = host.board.console.mark()
            device.write(foreign)
            written = page_digest(victim, foreign) != before
            assert not written, "the device wrote to another guest's memory"
            host.expect_console(device.fault_at(foreign), 10.0, since=mark)
