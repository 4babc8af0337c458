"""What a 32-bit guest sees of a 64-bit processor."""

import pytest

from lab.xen.domain import numbers
from lab.xen.guests import payload

pytestmark = pytest.mark.quick


@pytest.mark.needs("pv32")
def test_pv32_sees_a_32_bit_processor(host, evidence):
    """CPUID shows a 32-bit PV guest PAE and NX, but no long mode and no superpages; an NX page cannot execute."""
    with host.domain(payload(host, "pv32", "features")) as guest:
        results = guest.results()
        evidence.console("guest console", guest)
        assert results["features"].outcome == "PASS", results["features"].detail
        seen = numbers(results["features"].detail)
        assert seen["lm"] == 0, "a 32-bit PV guest is shown long mode"
        assert (seen["pse"], seen["gib"]) == (0, 0), f"a PV guest is shown superpages: {results['features'].detail}"
        assert results["nx"].outcome == "PASS", f"nx: {results['nx'].detail}"


@pytest.mark.needs("hap", "hvm32")
def test_pvh32_boots_and_says_what_it_is(host, evidence):
    """A PVH guest starts in 32-bit protected mode without paging, and CPUID shows it the whole processor."""
    with host.domain(payload(host, "pvh32", "mode,features,hypercalls")) as guest:
        results = guest.results()
        evidence.console("guest console", guest)
        failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
        assert not failed, "; ".join(failed)
        assert numbers(results["mode"].detail)["bits"] == 32
        seen = numbers(results["features"].detail)
        assert (seen["pse"], seen["lm"]) == (1, 1), (
            f"CPUID does not show the whole processor: {results['features'].detail}"
        )
