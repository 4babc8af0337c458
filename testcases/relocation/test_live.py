"""Live migration between two boards: one that works, and one that fails in the middle."""

import pytest

from lab.on_board.stream import Step
from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration import Ending, downtime, relocated, start_migration

pytestmark = [pytest.mark.quick, pytest.mark.needs("migration-pair", "hap")]

BEAT = 0.1  # seconds
FEW_KIB = 4  # written in each beat: so little that pre-copy ends since few pages are dirty, and sends these once more


def test_relocation_brings_the_guest_over(source, destination, evidence):
    """A guest migrates to another board and runs there alone, with no heartbeat lost and its memory intact."""
    config = payload(source, "pvh64", "memory,heartbeat", hb_ms=round(BEAT * 1000), dirty_kib=FEW_KIB)
    with source.domain(config) as guest:
        guest.beats(5)
        with relocated(guest, destination, evidence.migration) as (there, migration):
            here = guest.heartbeats()
            there.beats(10)
            evidence.console("guest at the source", guest)
            evidence.console("guest at the destination", there)
            assert guest.name not in source.domains(), "the guest is still at the source"
            assert guest.name in destination.domains(), "the guest is not at the destination"
            assert_unbroken([*here, *there.heartbeats()])
            evidence.figure("downtime_s", downtime(migration, BEAT))
            start, end = migration.stopped()
            evidence.figure("downtime_by_stream_s", end - start)
            assert_unhurt(there)


def test_cut_in_stop_and_copy_resumes_at_the_source(source, destination, evidence):
    """If the transport dies between a guest's suspend and GO, the source resumes the guest, and only the source."""
    with source.domain(payload(source, "pvh64", "memory,heartbeat", hb_ms=round(BEAT * 1000))) as guest:
        guest.beats(5)
        migration = start_migration(guest, destination, actions=("cut@TSC_INFO",))
        ending = migration.ending()
        evidence.migration(migration)
        if migration.acted() != [("cut", Step.TSC_INFO)]:
            evidence.unproved("the cut did not fall before TSC_INFO")
        assert ending is Ending.RESUMED_AT_SENDER, f"xl ended with {ending.name}"
        guest.beats(10)
        evidence.console("guest", guest)
        assert_unbroken(guest.heartbeats())
        assert not source.domains()[guest.name].is_suspended
        left = [name for name in destination.domains() if name.startswith(guest.name)]
        assert not left, f"left behind at the destination: {left}"
        assert_unhurt(guest)
