"""32-bit PV guests on the 64-bit hypervisor: they run, and their hypercalls cross the compat layer unharmed."""

import pytest

from lab.xen.domain import numbers
from lab.xen.guests import payload

pytestmark = [pytest.mark.quick, pytest.mark.needs("pv32")]


def test_pv32_runs_and_says_what_it_is(host, evidence):
    """The domain builder finds a 32-bit PAE kernel, and the PV guest itself runs in 32-bit PAE mode."""
    with host.domain(payload(host, "pv32", "mode")) as guest:
        results = guest.results()
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
        evidence.add("xl create", guest.builder_output, board=host.name)
        assert "guest xen-3.0-x86_32p, address size 32" in guest.builder_output
        assert results["mode"].outcome == "PASS", results["mode"].detail
        assert numbers(results["mode"].detail)["bits"] == 32, results["mode"].detail


def test_pv32_hypercalls(host, evidence):
    """Each group of hypercalls that a 32-bit PV guest makes through the compat layer gives what the ABI promises."""
    with host.domain(payload(host, "pv32", "mode,hypercalls")) as guest:
        results = guest.results(60.0)
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=host.name)
        failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
        passed = [line.case for line in results.values() if line.outcome == "PASS"]
        assert not failed, "; ".join(failed)
        assert len(passed) >= 10, f"only {len(passed)} checks ran"


def test_pv32_answers_as_pv64(host, evidence):
    """A 32-bit PV guest and its 64-bit twin get the same results from the same hypercall checks."""
    with (
        host.domain(payload(host, "pv32", "hypercalls")) as narrow,
        host.domain(payload(host, "pv64", "hypercalls")) as wide,
    ):
        answers = {}
        for guest in (narrow, wide):
            results = guest.results(60.0)
            evidence.add(guest.config.name, "\n".join(guest.console()), kind="console", board=host.name)
            answers[guest.config.name] = {
                line.case: line.outcome for line in results.values() if line.case not in ("mode", "done")
            }
        a, b = answers.values()
        both = a.keys() & b.keys()
        different = [case for case in sorted(both) if a[case] != b[case]]
        assert len(both) >= 10, f"only {len(both)} checks in common"
        assert not different, f"32 and 64 bit differ in: {', '.join(different)}"
