"""Memory on demand: a guest that may have more memory than it owns, and what Xen takes back from it for that."""

from dataclasses import replace

import pytest

from lab.xen.domain import numbers
from lab.xen.guests import payload

pytestmark = [pytest.mark.full, pytest.mark.needs("hap", "sp2m")]

OWNED_MIB = 32
MOST_MIB = 64


def test_what_is_written_stays_when_zeros_are_taken_back(host, evidence):
    """A guest touches twice the memory that it owns: Xen takes pages of zeros back, and none that holds data.

    The guest's pages begin with zeros and hold data behind them. Source: xen/arch/x86/mm/p2m-pod.c.
    """
    config = payload(host, "pvh64", "demand", memory_mib=OWNED_MIB)
    with host.domain(replace(config, more={**config.more, "maxmem": str(MOST_MIB)})) as guest:
        results = guest.results(120.0)
        evidence.console("guest console", guest)
        line = results["demand"]
        assert line.outcome == "PASS", f"demand: {line.detail}"
        touched = numbers(line.detail)["touched_mib"]
        assert touched > OWNED_MIB, f"{touched} MiB were touched: Xen had no need to take pages back"
