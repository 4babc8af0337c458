"""What the lab observes of a migration while it runs."""

import pytest

from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload
from lab.xen.migration import Ending, downtime, start_migration
from lab.xen.migration_matrix.faults import THROTTLE
from lab.xen.migration_matrix.one_board import on_one_board

pytestmark = [pytest.mark.full, pytest.mark.needs("self-ssh", "hap")]

BEAT = 0.1  # seconds
HELD = {"PAGE_DATA:pass2": "pre-copy 2", "TSC_INFO": "stop-and-copy", "GO": "handshake: GO"}
TOLERANCE = 3.0  # seconds: the stream does not show the suspend itself, and consoles are slow under emulation


def test_phases_and_downtime(host, evidence):
    """Each phase of a migration is recognised while it is held; heartbeats and stream agree on the downtime."""
    source, destination = on_one_board(host)
    with source.domain(payload(source, "pvh64", "memory,heartbeat", hb_ms=round(BEAT * 1000), dirty_kib=64)) as guest:
        guest.beats(5)
        holds = [f"hold@{place}=60" for place in HELD]
        migration = start_migration(guest, destination, actions=(THROTTLE, *holds))
        seen = {}
        for place in HELD:
            migration.wait_acted(120, kind=f"hold@{place}")
            seen[place] = migration.phase()
            migration.release()
        ending = migration.ending()
        evidence.migration(migration)
        evidence.add("phases", "\n".join(f"held at {place}: {phase}" for place, phase in seen.items()), kind="note")
        assert ending is Ending.SUCCESS, ending.name
        assert seen == HELD
        assert migration.phase() == "over"
        there = guest.on(destination)
        there.beats(5, 60)
        assert_unbroken([*guest.heartbeats(), *there.heartbeats()])
        by_heart, (start, end) = downtime(migration, BEAT), migration.stopped()
        evidence.figure("downtime_s", by_heart)
        evidence.figure("downtime_by_stream_s", end - start)
        assert abs(end - start - by_heart) < TOLERANCE, (
            f"downtime is {by_heart:.1f} s by heartbeats, and {end - start:.1f} s by the stream"
        )
