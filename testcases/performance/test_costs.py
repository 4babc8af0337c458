"""What the hypervisor's operations cost a guest. A figure alone is no verdict: `xenlab perf A B` compares two builds'.

These cases measure, and fail where an operation that is measured does not succeed.
"""

import pytest

from lab.xen import costs
from lab.xen.guests import payload

pytestmark = [pytest.mark.cold, pytest.mark.needs("perf")]

KINDS = [
    pytest.param("pv64", marks=pytest.mark.needs("pv")),
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    pytest.param("pvh32", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]


def measure(kind, work, host, evidence, **options):
    """Have a guest measure, and keep what it says; MISS where a count was disturbed, however often it was taken."""
    config = costs.with_native_tsc(payload(host, kind, work, **options))
    earlier = len(costs.profiles(host))
    with host.domain(config) as guest:
        results = guest.results(300.0)
        evidence.console("guest console", guest)
        found = costs.read(guest.payload_lines())
    failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)
    assert found, "the guest measured nothing"
    disturbed = [one for one in found if costs.is_counted(host) and not one.is_undisturbed]
    for name, value in costs.figures(host, kind, [one for one in found if one not in disturbed]).items():
        evidence.figure(name, value)
    profiles = costs.profiles(host)[earlier:]
    if profiles:
        evidence.profiles(costs.profiled(kind, dict(zip(found, profiles, strict=True))))
    if disturbed:
        evidence.unproved("; ".join(map(str, disturbed)))


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_measured(kind, host, evidence):
    """Hypercalls, faults, exits, events, grants and page-table changes of a guest succeed, and their costs are kept."""
    measure(kind, "perf", host, evidence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_to_another_vcpu_is_measured(kind, host, evidence):
    """A vCPU that is rung by an event channel wakes, and rings back; what both take is kept."""
    measure(kind, "vcpus,ping", host, evidence, vcpus=2)
