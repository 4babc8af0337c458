"""What maps a guest's memory, counted from outside by what its tables take, and what relocation makes of it.

A domain builder that asks for superpages says nothing of what Xen makes of them, and a guest cannot see it. Xen's own
count of the pages its tables take does: one more for each 2 MiB that no single entry maps.
"""

import pytest

from lab.on_board.stream import Step
from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration import Ending, start_migration
from lab.xen.migration_matrix.faults import THROTTLE
from lab.xen.migration_matrix.one_board import on_one_board

pytestmark = pytest.mark.needs("hap", "sp2m")

MEMORY_MIB = 128
MOVED_MIB = 64  # of a guest that is relocated
FEW = 24  # tables of a guest of any size: a few a level, those for its special pages, one a vCPU
BEAT = 0.1  # seconds


def test_guest_is_mapped_by_2m_entries(host, evidence):
    """A guest's tables are as few as entries of 2 MiB need, and holes in its memory split as many as they fall into."""
    work = "memory,heartbeat"
    with host.domain(payload(host, "pvh64", work, memory_mib=MEMORY_MIB)) as guest:
        guest.beats(3, 60)
        whole = guest.table_pages()
        evidence.console("guest console", guest)
    with host.domain(payload(host, "pvh64", "give,heartbeat", memory_mib=MEMORY_MIB, step_kib=2048)) as guest:
        guest.beats(3, 60)
        holes = guest.table_pages()
        evidence.console("guest with a hole in each 2 MiB", guest)
    entries = MEMORY_MIB // 2
    evidence.figure("table_pages", whole)
    evidence.figure("table_pages_with_holes", holes)
    assert whole <= FEW, f"{whole} tables for {MEMORY_MIB} MiB: not mapped by entries of 2 MiB"
    split = holes - whole
    assert entries - 4 <= split <= entries, f"a hole in each of {entries} entries, and {split} were split"


@pytest.mark.needs("self-ssh")
def test_log_dirty_splits_what_is_written(host, evidence):
    """In pre-copy Xen splits entries that the guest writes to; when the relocation fails the guest goes on, whole.

    What is mapped page by page then, and what it has at the destination after a relocation, are figures: Xen puts no
    entries together again, and the receiver builds of single pages (tools/libs/guest/xg_sr_restore.c).
    """
    source, destination = on_one_board(host)
    config = payload(host, "pvh64", "memory,heartbeat", memory_mib=MOVED_MIB, hb_ms=round(BEAT * 1000), dirty_kib=64)
    with source.domain(config) as guest:
        guest.beats(5, 60)
        before = guest.table_pages()
        migration = start_migration(guest, destination, actions=(THROTTLE, "hold@PAGE_DATA:pass2=120", "cut@TSC_INFO"))
        migration.wait_acted(120, kind="hold")
        during = guest.table_pages()
        migration.release()
        ending = migration.ending(180)
        evidence.migration(migration)
        if ("cut", Step.TSC_INFO) not in migration.acted():
            evidence.unproved("the cut did not fall before TSC_INFO")
        guest.beats(10, 60)
        after = guest.table_pages()
        evidence.console("guest", guest)
        evidence.add(
            "tables", f"{before} before, {during} in pre-copy, {after} after it failed, 4 KiB each", board=host.name
        )
        evidence.figure("table_pages_before", before)
        evidence.figure("table_pages_in_pre_copy", during)
        evidence.figure("table_pages_after", after)
        assert ending is Ending.RESUMED_AT_SENDER, f"xl ended with {ending.name}"
        assert before <= FEW, f"{before} tables before: not mapped by entries of 2 MiB"
        assert before < during, f"{during} tables in pre-copy as before: nothing was split for log-dirty mode"
        assert after <= before + MOVED_MIB // 2, f"{after} tables after, {before} before, for {MOVED_MIB} MiB"
        assert_unbroken(guest.heartbeats())
        assert_unhurt(guest)
        migration = start_migration(guest, destination)
        ending = migration.ending()
        evidence.migration(migration)
        assert ending is Ending.SUCCESS, f"xl ended with {ending.name}"
        there = guest.on(destination)
        there.beats(10, 60)
        evidence.figure("table_pages_at_the_destination", there.table_pages())
        assert_unhurt(there)
