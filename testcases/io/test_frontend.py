"""A frontend that lies to dom0's backend: what it gets for that, and whom it harms."""

import re

import pytest

from lab.xen.disks import digest, numbered, with_disk
from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload

pytestmark = pytest.mark.weekly

KINDS = [
    pytest.param("pv64", marks=pytest.mark.needs("pv")),
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
]
WANTED = {"disk", "disk-read", "disk-after-lies", "lie-index", "disk-closed", "grants-ended", "disk-again"}
LIES = 13
# Refusals, of which a release build says nothing; and what a PVH guest tells Xen at its start.
EXPECTED = r"grant_table\.c:\d+:d0|callback via changed|^$"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lying_frontend_harms_only_its_own_disk(host, evidence, kind):
    """A block frontend gets an error for each lie it tells dom0's backend; dom0 and another guest's disk work on."""
    with numbered(host) as mine, numbered(host) as others:
        before = digest(host, mine)
        honest_guest = with_disk(payload(host, "pv64", "disk,heartbeat", hb_ms=200), others)
        with (
            host.domain(honest_guest) as honest,
            host.domain(with_disk(payload(host, kind, "disk,lies"), mine), paused=True) as liar,
        ):
            host.xl("dmesg", "-c")  # what Xen says of creating them
            host.xl("unpause", liar.name)
            results = liar.results(90.0)
            evidence.console("console of the liar", liar)
            honest.beats(5)
            evidence.console("console of the honest guest", honest)
            said = host.xl("dmesg").stdout
            evidence.add("xl dmesg", said, board=host.name)
            kernel = host.run("dmesg | tail -n 40").stdout
            evidence.add("the end of dom0's dmesg", kernel, board=host.name)
            failed = [f"{name}: {line.detail}" for name, line in results.items() if line.outcome == "FAIL"]
            assert not failed, "; ".join(failed)
            lies = [name for name in results if name.startswith("lie-")]
            assert results.keys() >= WANTED and len(lies) == LIES + 1, f"the liar has told {sorted(results)}"
            assert_unbroken(honest.heartbeats())
            assert_unhurt(honest)
        assert digest(host, mine) == before, "the disk of the liar, who only read, is another one now"
    more = [line for line in said.splitlines() if not re.search(EXPECTED, line)]
    assert not more, f"Xen says more than which grants it refused: {more[0]}"
