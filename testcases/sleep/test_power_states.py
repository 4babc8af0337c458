"""Frequencies and idle states of all CPUs: what Xen sets, counts and keeps to, also for a CPU that was offline."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.xen import power
from lab.xen.cpus import offline
from lab.xen.migration_matrix import known_findings

pytestmark = [pytest.mark.cold, pytest.mark.weekly]

KNOWN = known_findings.read(Path(__file__).with_name("known.yaml"), ["cpu-was-offline"], ["deep-states"])
IDLE_LIMIT = 20.0  # seconds within which an idle CPU has entered a deep state; a tenth was seen


def cpus(host):
    return int(host.info()["nr_cpus"])


@contextmanager
def on_cpu_0(host):
    """Within the block dom0's vCPU 0 runs on CPU 0."""
    host.xl("vcpu-pin", "Domain-0", "0", "0")
    try:
        yield
    finally:
        host.xl("vcpu-pin", "Domain-0", "0", "all")


def with_userspace(host):
    """CPU 0's frequency, on a board whose driver takes a frequency by hand."""
    found = power.frequency(host, 0)
    if "userspace" not in found.governors:
        pytest.skip(f"the driver {found.driver} takes no frequency by hand")
    return found


@pytest.mark.needs("pstate", "frequency-register")
def test_each_cpu_is_told_its_own_frequency(host, evidence):
    """Each frequency that a CPU is given is written to the register of this CPU, and to no other one."""
    steps, count, told = with_userspace(host).steps, cpus(host), []
    with power.governed(host, count, "userspace"):
        power.set_frequency(host, range(count), steps[0])
        for cpu in range(count):
            for khz in (*steps[1:], steps[0]):
                power.set_frequency(host, [cpu], khz)
                written = power.registers(host, count)
                told.append(f"CPU {cpu}: {khz} kHz: registers {written}")
                wanted = tuple(khz if one == cpu else steps[0] for one in range(count))
                assert written == wanted, f"CPU {cpu} was given {khz} kHz, and the registers of all CPUs hold {written}"
            said = power.frequency(host, cpu).current
            assert said == steps[0], f"CPU {cpu} was given {steps[0]} kHz, and xenpm says {said}"
    evidence.add("registers", "\n".join(told), board=host.name)


@pytest.mark.needs("pstate")
def test_each_change_is_counted_once(host, evidence):
    """xenpm counts each change of the frequency by the state that it leads to, and time for the present state alone."""
    steps = with_userspace(host).steps
    with power.governed(host, 1, "userspace"):
        power.set_frequency(host, [0], steps[0])
        before = power.frequency_states(host, 0)
        power.set_frequency(host, [0], *[steps[-1], steps[0]] * 3, steps[-1], steps[-1])  # the last one is no change
        middle = power.frequency_states(host, 0)
        with on_cpu_0(host):
            host.run("timeout 3 taskset -c 0 sh -c 'while :; do :; done'", check=False)
        after = power.frequency_states(host, 0)
    evidence.add("xenpm get-cpufreq-states 0", f"{before}\n{middle}\n{after}", board=host.name)
    changes = {state.khz: state.entries - before[name].entries for name, state in middle.items()}
    wanted = dict.fromkeys(steps, 0) | {steps[0]: 3, steps[-1]: 4}
    assert changes == wanted, f"changes by the frequency they lead to, in kHz: {changes}"
    spent = {state.khz: state.residency_ms - middle[name].residency_ms for name, state in after.items()}
    assert {khz for khz, ms in spent.items() if ms} == {steps[-1]}, f"time by frequency, in ms: {spent}"


@pytest.mark.needs("pstate")
def test_the_platform_limit_is_kept(host, evidence):
    """No governor sets a frequency above the platform's limit (_PPC); the limit goes, and the frequency with it."""
    steps, said = power.frequency(host, 0).steps, []
    with power.governed(host, 1, "performance"):
        try:
            for step in (1, len(steps) - 1, 0):
                answer = power.limit(host, 0, step)
                found = power.frequency(host, 0)
                said.append(f"limit {step}: {answer}; {found}")
                assert answer == "done", f"Xen's answer to the limit {step}: {answer}"
                assert found.current == steps[step], (
                    f"limit {step} ({steps[step]} kHz): CPU 0 is at {found.current} kHz"
                )
                assert found.highest == steps[step], f"limit {step}: the governor may set {found.highest} kHz"
        finally:
            power.limit(host, 0, 0)
    evidence.add("limits", "\n".join(said), board=host.name)


@pytest.mark.needs("pstate")
def test_a_limit_beyond_all_states_is_refused(host, evidence):
    """Xen refuses a platform limit that is no state of the CPU, and the frequency stays.

    Source: xen/drivers/cpufreq/cpufreq.c, cpufreq_limit_change.
    """
    steps = power.frequency(host, 0).steps
    with power.governed(host, 1, "performance"):
        try:
            answer = power.limit(host, 0, len(steps))
            after = power.frequency(host, 0)
        finally:
            power.limit(host, 0, 0)  # before the governor changes: Xen stores the limit that it refuses
    evidence.add("XENPF_set_processor_pminfo", f"{answer}\n{after}", board=host.name)
    assert answer == "refused: EINVAL", f"Xen's answer is: {answer}"
    assert after.current == steps[0], f"CPU 0 is at {after.current} kHz after a limit that was refused"


@pytest.mark.needs("pstate", "frequency-register")
def test_the_firmware_limits_all_cpus(host, evidence):
    """A limit that the firmware's _PPC answers reaches Xen through dom0's kernel, and Xen keeps each CPU to it."""
    steps, count = power.frequency(host, 0).steps, cpus(host)
    with power.governed(host, count, "performance"):
        with power.limited_by_firmware(host, 2):
            limited = power.registers(host, count)
        free = power.registers(host, count)
    evidence.add("registers", f"limited to {steps[2]} kHz: {limited}\nfree: {free}", board=host.name)
    assert limited == (steps[2],) * count, f"limited to {steps[2]} kHz, the registers hold {limited}"
    assert free == (steps[0],) * count, f"without a limit, the registers hold {free}"


@pytest.mark.needs("pstate", "cpu-offline")
def test_frequencies_come_back_with_a_cpu(host, evidence):
    """A CPU that was offline has a frequency again, which follows its governor."""
    last = cpus(host) - 1
    before = power.frequency(host, last)
    with offline(host, last):
        said = host.run(f"xenpm get-cpufreq-para {last} 2>&1", check=False).stdout
    after = power.frequency(host, last)
    evidence.add("xenpm get-cpufreq-para", f"{before}\noffline: {said}\n{after}", board=host.name)
    assert "scaling_driver" not in said, f"xenpm says a frequency of CPU {last}, which is offline"
    assert after.driver == before.driver
    assert after.steps == before.steps
    for governor, khz in (("powersave", before.steps[-1]), ("performance", before.steps[0])):
        with power.governed(host, last + 1, governor):
            found = power.frequency(host, last).current
        assert found == khz, f"CPU {last} was offline, and is at {found} kHz under {governor}"


@pytest.mark.needs("cstate", "cpu-offline")
def test_idle_states_come_back_with_a_cpu(host, evidence):
    """A CPU that was offline enters the deep states that it had. A known failure is excused by name (known.yaml)."""
    last = cpus(host) - 1
    power.upload(host)  # an earlier case may have had this CPU offline
    before = power.idle_states(host, last)
    if not set(before) - {"C0", "C1"}:
        evidence.unproved(f"CPU {last} has no idle state deeper than C1: {before}")
    with offline(host, last):
        pass
    try:
        after = power.idle_states(host, last)
        evidence.add("xenpm get-cpuidle-states", f"{before}\n{after}", board=host.name)
        with known_findings.excusing(KNOWN, evidence, host.info()["xen_version"], "cpu-was-offline", "deep-states"):
            assert set(after) == set(before), f"CPU {last} had {', '.join(before)}, and has {', '.join(after)}"
    finally:
        power.upload(host)
    first = power.deep_entries(host, last)
    host.expect(lambda: power.deep_entries(host, last) > first, IDLE_LIMIT, f"CPU {last} enters a deep state")
