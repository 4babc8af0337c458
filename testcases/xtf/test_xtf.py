"""Tests of XTF, Xen's own test framework, out of the directory given by `--xtf DIR`."""

import pytest

from lab.xen import xtf


def test_xtf(host, evidence, xtf_instance):
    """An XTF test runs to its end and says SUCCESS. SKIP and ERROR are its own words; no result at all is a failure."""
    with host.domain(xtf.config(host, xtf_instance)) as guest:
        outcome, said = xtf.outcome(guest)
        evidence.console("guest console", guest)
        last = "; ".join(guest.console()[-3:])
    evidence.add("xl create", guest.builder_output, board=host.name)
    if outcome == "SKIP":
        pytest.skip(f"{xtf_instance.name} by its own account: {last}")
    if outcome == "ERROR":
        raise xtf.XtfError(f"{xtf_instance.name} by its own account: {last}")
    assert outcome == "SUCCESS", f"{outcome}: {said}: {last}"
