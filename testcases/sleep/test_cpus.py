"""CPUs that go offline and come back, their frequency and their idle states."""

import pytest

from lab.xen import power
from lab.xen.cpus import hptool, offline
from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload

pytestmark = [pytest.mark.cold, pytest.mark.full]


@pytest.mark.needs("cpu-offline")
def test_cpu_goes_and_comes_back(host, evidence):
    """The last CPU goes offline and comes back five times; a guest pinned to it moves to another CPU and runs on."""
    last = int(host.info()["nr_cpus"]) - 1
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=100)) as guest:
        for _ in range(5):
            host.xl("vcpu-pin", guest.name, "0", str(last))  # Xen drops the pinning when the CPU goes offline
            guest.beats()
            with offline(host, last):
                assert int(host.info()["nr_cpus"]) == last, "xl info counts the CPU that is offline"
                where = host.xl("vcpu-list", guest.name).stdout.splitlines()[-1].split()
                assert where[3] != str(last), f"the guest is said to run on a CPU that is offline: {' '.join(where)}"
                guest.beats(3)
            assert int(host.info()["nr_cpus"]) == last + 1, "xl info does not count the CPU that came back"
        guest.beats(3)
        evidence.add("xl vcpu-list", host.xl("vcpu-list").stdout, board=host.name)
        assert_unbroken(guest.heartbeats())


@pytest.mark.needs("cpu-offline")
def test_a_guest_runs_on_a_cpu_that_came_back(host, evidence):
    """A guest that is pinned to a CPU which was offline runs there, and loses no heartbeat."""
    last = int(host.info()["nr_cpus"]) - 1
    with offline(host, last):
        pass
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=100)) as guest:
        host.xl("vcpu-pin", guest.name, "0", str(last))
        guest.beats(2)

        def runs_there():
            return host.xl("vcpu-list", guest.name).stdout.splitlines()[-1].split()[3] == str(last)

        host.expect(runs_there, 10.0, f"{guest.name} runs on CPU {last}")
        guest.beats(10)
        evidence.add("xl vcpu-list", host.xl("vcpu-list").stdout, board=host.name)
        assert_unbroken(guest.heartbeats())


def test_the_boot_cpu_stays(host, evidence):
    """CPU 0 cannot be taken offline: Xen answers EINVAL.

    Source: xen/common/cpu.c, cpu_down.
    """
    said = hptool(host, "cpu-offline", "0")
    evidence.add("xen-hptool cpu-offline 0", said.stdout, board=host.name)
    answer = said.stdout.strip().replace("\n", "; ")
    assert "CPU 0 offline failed" in answer, answer
    assert "Invalid argument" in answer, answer
    assert "Domain-0" in host.xl("list").stdout


@pytest.mark.needs("pstate")
def test_frequency_follows_the_governor(host, evidence):
    """The governors powersave and performance set CPU 0 to its lowest and its highest frequency."""
    before = power.frequency(host, 0)
    evidence.add("xenpm get-cpufreq-para 0", str(before), board=host.name)
    for governor, wanted in (("powersave", before.lowest), ("performance", before.highest)):
        with power.governed(host, 1, governor):

            def there(wanted=wanted):
                return abs(power.frequency(host, 0).current - wanted) <= wanted * 0.02

            host.expect(there, 5.0, f"CPU 0 runs at {wanted} kHz under {governor}")


@pytest.mark.needs("cstate")
def test_idle_states_are_used_and_can_be_forbidden(host, evidence):
    """An idle CPU enters states deeper than C1, and enters none of them after set-max-cstate 1."""
    before = power.deep_entries(host, 0)
    host.expect(lambda: power.deep_entries(host, 0) > before, 20.0, "CPU 0 enters a deep state")
    evidence.add("xenpm get-cpuidle-states 0", str(power.idle_states(host, 0)), board=host.name)
    try:
        host.run("xenpm set-max-cstate 1")
        forbidden = power.deep_entries(host, 0)
        host.run("xenpm start 3")  # it samples for three seconds
        assert power.deep_entries(host, 0) == forbidden, (
            "deeper states are entered although set-max-cstate 1 forbids them"
        )
    finally:
        host.run("xenpm set-max-cstate unlimited")
