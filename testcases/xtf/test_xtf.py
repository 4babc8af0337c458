"""Tests of XTF, Xen's own test framework, from the directory given by `--xtf DIR`."""

import pytest

from lab.xen import xtf


def test_xtf(host, evidence, xtf_instance):
    """A test of XTF runs to its end and reports SUCCESS.

    Its SKIP and ERROR are taken over as they are; no result at all is a failure.
    """
    with host.domain(xtf.config(host, xtf_instance)) as guest:
        outcome, said = xtf.outcome(guest)
        evidence.console("guest console", guest)
        last = "; ".join(guest.console()[-3:])
    evidence.add("xl create", guest.builder_output, board=host.name)
    if outcome == "SKIP":
        pytest.skip(f"{xtf_instance.name} reports SKIP: {last}")
    if outcome == "ERROR":
        raise xtf.XtfError(f"{xtf_instance.name} reports ERROR: {last}")
    assert outcome == "SUCCESS", f"{outcome}: {said}: {last}"
