"""32-bit guests of several vCPUs: each is brought up by the guest itself, through the compat layer."""

import pytest

from lab.xen.guests import payload

KINDS = [
    pytest.param("pv32", "pv64", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh32", "pvh64", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("hvm32", "hvm64", marks=pytest.mark.needs("hap", "hvm32", "qemu")),
]


@pytest.mark.parametrize("vcpus", [2, 8])
@pytest.mark.parametrize(("narrow", "wide"), KINDS)
def test_vcpus_are_brought_up_and_accounted(narrow, wide, vcpus, host, evidence):
    """Each vCPU of a 32-bit guest starts, answers events, keeps its timer, runstate and registers, as in 64 bit."""
    answers = []
    for kind in (narrow, wide):
        with host.domain(payload(host, kind, "vcpus", vcpus=vcpus)) as guest:
            results = guest.results(120.0)
            evidence.console(kind, guest)
            evidence.add(f"xl vcpu-list of {kind}", host.xl("vcpu-list", guest.name).stdout, board=host.name)
        failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
        assert not failed, f"{kind}: {'; '.join(failed)}"
        answers.append(results.keys())
    assert "vcpus-registers" in answers[0], f"{narrow} did not come to its last check"
    assert answers[0] == answers[1], f"{narrow} and {wide} made different checks"
