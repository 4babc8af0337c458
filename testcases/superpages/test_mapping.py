"""The mappings of a guest's memory, counted from outside by its paging tables, and what a migration does to them.

A domain builder that asks for superpages does not say what Xen makes of them, and a guest cannot see it. Xen's own
count of the pages that the guest's tables take shows it: one more for each 2 MiB that no single entry maps.
"""

import re

import pytest

from lab.on_board.stream import Step
from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration import Ending, start_migration
from lab.xen.migration_matrix.faults import THROTTLE
from lab.xen.migration_matrix.one_board import on_one_board

pytestmark = pytest.mark.needs("hap", "sp2m")

MEMORY_MIB = 128
MOVED_MIB = 64  # memory of a guest that migrates
FEW = 24  # tables of a guest of any size: a few for each level, those of its special pages, one for each vCPU
BEAT = 0.1  # seconds
RESTORED_LARGE = (4, 21)  # Xen from which a receiver builds of superpages (50baf2d9f7); before, of single pages


def test_guest_is_mapped_by_2m_entries(host, evidence):
    """A guest is mapped by 2 MiB entries, as its few paging tables show, and a hole in an entry splits that entry."""
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
    assert entries - 4 <= split <= entries, f"{split} entries were split by a hole in each of {entries}"


def test_restored_guest_is_mapped_by_2m_entries(host, evidence):
    """A guest that was saved and restored is mapped by 2 MiB entries from Xen 4.21 on, and by single pages before."""
    version = host.info()["xen_version"]
    is_large = tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= RESTORED_LARGE
    with host.domain(payload(host, "pvh64", "memory,heartbeat", memory_mib=MOVED_MIB)) as guest:
        guest.beats(3, 60)
        before = guest.table_pages()
        with guest.saved() as path:
            guest.restore(path)
            guest.beats(3, 60)
            after = guest.table_pages()
        evidence.console("guest console", guest)
        evidence.figure("table_pages_before", before)
        evidence.figure("table_pages_restored", after)
        assert before <= FEW, f"{before} tables before: not mapped by entries of 2 MiB"
        single = after - before
        if is_large:
            assert after <= FEW, f"{single} more tables after the restore on Xen {version}: 2 MiB entries were lost"
        else:
            entries = MOVED_MIB // 2
            assert entries - 4 <= single <= entries, f"{single} of {entries} are of single pages on Xen {version}"


@pytest.mark.needs("self-ssh")
def test_log_dirty_splits_what_is_written(host, evidence):
    """Pre-copy splits the 2 MiB entries that a guest writes to; if the migration fails, the guest runs on, intact.

    The number of tables then, and at the destination after a migration, are figures: Xen does not join entries again,
    and before 4.21 the receiver builds of single pages (tools/libs/guest/xg_sr_restore.c).
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
