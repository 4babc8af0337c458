"""PVH and HVM guests of several vCPUs: started by hypercall or by start-up IPI, rung, timed, stopped and accounted."""

import pytest

from lab.xen.guests import payload

KINDS = [
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]


@pytest.mark.parametrize("vcpus", [2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_vcpus_are_brought_up_and_accounted(kind, vcpus, host, evidence):
    """Each vCPU of a 64-bit guest starts, answers events, keeps its timer, its runstate and its registers."""
    with host.domain(payload(host, kind, "vcpus", vcpus=vcpus)) as guest:
        results = guest.results(120.0)
        evidence.console(kind, guest)
        evidence.add(f"xl vcpu-list of {kind}", host.xl("vcpu-list", guest.name).stdout, board=host.name)
    failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)
    assert "vcpus-registers" in results, "the guest did not come to its last check"
