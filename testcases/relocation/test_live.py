"""Live relocation between two boards: one that works, and one that fails in the middle."""

import pytest
from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload
from lab.xen.migration import Ending, start_migration
from lab.xen.stream import Step

pytestmark = [pytest.mark.quick, pytest.mark.needs("migration-pair", "hap")]


def test_relocation_brings_the_guest_over(source, destination, evidence):
    """A guest goes to the other board: it runs there and only there, no heartbeat lost or doubled, memory intact."""
    peer = destination.name
    with source.domain(payload(source, "pvh64", "memory,heartbeat", hb_ms=100)) as guest:
        guest.beats(5)
        migration = start_migration(source.board, peer, guest.name)
        ending = migration.ending(120.0)
        evidence.add("xl migrate", migration.output(), board=source.name)
        try:
            assert ending is Ending.SUCCESS, f"xl ended with {ending}"
            here, there = guest.heartbeats(), guest.on(destination)
            last = there.beats(10)
            evidence.add("guest console, source", "\n".join(guest.console()), kind="console", board=source.name)
            evidence.add("guest console, destination", "\n".join(there.console()), kind="console", board=peer)
            assert guest.name not in source.domains(), "the guest is still at the source"
            assert guest.name in destination.domains(), "the guest is not at the destination"
            after = there.heartbeats()
            assert_unbroken([*here, *after])
            evidence.figure("downtime_s", (after[0].system_ns - here[-1].system_ns) / 1e9)
            assert last.n > here[-1].n
            failed = [line for line in there.payload_lines() if getattr(line, "outcome", "") == "FAIL"]
            assert not failed, failed
        finally:
            destination.xl("destroy", guest.name, check=False)


def test_cut_in_stop_and_copy_resumes_at_the_source(source, destination, evidence):
    """The link is cut after the guest was suspended and before GO: the source must resume it, and only the source."""
    with source.domain(payload(source, "pvh64", "memory,heartbeat", hb_ms=100)) as guest:
        guest.beats(5)
        migration = start_migration(source.board, destination.name, guest.name, actions=("cut@TSC_INFO",))
        ending = migration.ending(120.0)
        evidence.add("xl migrate", migration.output(), board=source.name)
        assert ending is Ending.RESUMED_AT_SENDER, f"xl ended with {ending}"
        beat = guest.beats(10)
        evidence.add("guest console", "\n".join(guest.console()), kind="console", board=source.name)
        assert_unbroken(guest.heartbeats())
        assert beat.n > 0
        assert not source.domains()[guest.name].is_suspended
        left = [name for name in destination.domains() if name.startswith(guest.name)]
        assert not left, f"left at the destination: {left}"
