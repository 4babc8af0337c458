"""The register that tells a guest where its page fault was."""

import pytest

from lab.xen.guests import payload

KINDS = [
    pytest.param("pvh32", marks=pytest.mark.needs("hvm32")),
    pytest.param("pvh64"),
    pytest.param("hvm32", marks=pytest.mark.needs("hvm32", "qemu")),
    pytest.param("hvm64", marks=pytest.mark.needs("qemu")),
]


@pytest.mark.needs("hap", "guest-cr2")
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_reads_the_cr2_that_it_wrote(kind, host, evidence):
    """A guest on nested paging reads from CR2 what it wrote there: the hypervisor does not answer for the processor."""
    with host.domain(payload(host, kind, "cr2")) as guest:
        line = guest.results(60.0)["cr2"]
        evidence.console("guest console", guest)
    assert line.outcome == "PASS", f"CR2 is not the guest's own: {line.detail}"
