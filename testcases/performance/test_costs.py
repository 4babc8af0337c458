"""What the hypervisor's operations cost a guest. A figure alone is no verdict: `xenlab perf A B` compares two builds'.

These cases measure, and fail where an operation that is measured does not succeed.
"""

import pytest

from lab.xen import costs
from lab.xen.guests import payload

pytestmark = pytest.mark.needs("perf")

KINDS = [
    pytest.param("pv64", marks=pytest.mark.needs("pv")),
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    pytest.param("pvh32", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]


def measure(kind, work, host, evidence, **options):
    """Have a guest measure, and keep what it says."""
    config = costs.with_native_tsc(payload(host, kind, work, **options))
    with host.domain(config) as guest:
        results = guest.results(300.0)
        evidence.console("guest console", guest)
        found = costs.read(guest.payload_lines())
    failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)
    assert found, "the guest measured nothing"
    keep(kind, found, costs.AGREED, host, evidence)


def keep(kind, found, agreed, host, evidence):
    """Keep the figures; MISS where a count was disturbed, however often it was taken."""
    disturbed = [one for one in found if costs.is_counted(host) and not one.is_undisturbed(agreed)]
    for name, value in costs.figures(host, kind, [one for one in found if one not in disturbed]).items():
        evidence.figure(name, value)
    if disturbed:
        evidence.unproved("; ".join(map(str, disturbed)))


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_measured(kind, host, evidence):
    """Hypercalls, faults, exits, events, grants and memory operations of a guest succeed, and their costs are kept."""
    measure(kind, "perf", host, evidence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_to_another_vcpu_is_measured(kind, host, evidence):
    """A vCPU that is rung by an event channel wakes, and rings back; what both take is kept."""
    measure(kind, "vcpus,ping", host, evidence, vcpus=2)


ROUNDS = 12
MEMORY_MIB = 256
LOOP = """
for round in $(seq {rounds}); do
  a=$(date +%s%N); xl create -q -p {file} || exit 1
  b=$(date +%s%N); xl destroy {name} || exit 1
  echo $((b - a)) $(($(date +%s%N) - b))
done
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values[0] in ("pv64", "pvh64")])
def test_creation_and_destruction_are_measured(kind, host, evidence):
    """A guest is created and destroyed again and again; what xl takes for each, in dom0 and in Xen, is kept."""
    config = payload(host, kind, "idle", memory_mib=MEMORY_MIB)
    with host.domain(config, paused=True):
        pass  # its configuration file is on the board now, and what xl reads is in dom0's memory
    script = LOOP.format(rounds=ROUNDS, file=f"/run/xenlab/{config.name}.cfg", name=config.name)
    said = host.run(script, timeout=300, check=False)
    evidence.add("ns of each creation and destruction", said.stdout + said.stderr, board=host.name)
    assert said.status == 0, f"xl failed: {said.stderr}"
    pairs = [tuple(map(int, line.split())) for line in said.stdout.splitlines()]
    names = (f"create_{MEMORY_MIB}mib", f"destroy_{MEMORY_MIB}mib")
    found = [costs.of_times(host, name, times) for name, times in zip(names, zip(*pairs, strict=True), strict=True)]
    keep(kind, found, 3, host, evidence)
