"""A guest with a network port migrates: the port is reconnected, and its peers measure how long it was away."""

import pytest

from lab.xen.guests import linux
from lab.xen.migration import Ending, start_migration
from lab.xen.migration_matrix.one_board import on_one_board
from lab.xen.reach import Pinging, bridge, silence

pytestmark = [pytest.mark.full, pytest.mark.needs("self-ssh", "hap", "guest-cr2")]

DOM0, GUEST = "192.168.231.1", "192.168.231.2"
LIMIT = 60.0  # seconds in which the port of a guest on an emulated board must be back


@pytest.mark.parametrize(
    ("action", "ending"),
    [
        pytest.param("", Ending.SUCCESS, id="succeeds"),
        pytest.param("cut@HVM_CONTEXT", Ending.RESUMED_AT_SENDER, id="cut-HVM_CONTEXT"),
    ],
)
def test_network_is_back_after_a_relocation(action, ending, host, evidence):
    """After a migration, or one that failed, the guest answers on its network port again, where it runs."""
    source, destination = on_one_board(host)
    with bridge(host, f"{DOM0}/24") as name:
        vif = {"vif": f'[ "bridge={name},mac=00:16:3e:00:00:02" ]'}
        words = f"ip={GUEST}/24 peer={DOM0} count=3"
        with source.domain(linux(source, "pvh", "netfront,heartbeat", cmdline=words, more=vif)) as guest:
            results = guest.results(120.0)
            assert results["net-ping"].outcome == "PASS", results["net-ping"].detail
            with Pinging(host, GUEST) as pinging:
                host.expect(lambda: len(pinging.answers()) > 10, LIMIT, "the guest answers")
                migration = start_migration(guest, destination, actions=(action,) if action else ())
                ended = migration.ending(300)
                evidence.migration(migration)
                if action and migration.not_taken():
                    evidence.unproved(f"the stream never reached {action}")
                assert ended is ending, f"xl ended with {ended.name}: {migration.output()[-300:]}"
                moment = host.clock()
                host.expect(lambda: sum(one > moment for one in pinging.answers()) > 10, LIMIT, "the guest answers")
                answers = pinging.answers()
            there = guest.on(destination) if ending is Ending.SUCCESS else guest
            there.beats(3, LIMIT)
            evidence.console("console of the guest", there)
            evidence.add("xl network-list", host.xl("network-list", str(there.domid())).stdout, board=host.name)
            away = [one for one in answers if one > migration.started]
            evidence.figure("downtime_by_network_s", silence(away))
            if stopped := migration.stopped():
                evidence.figure("downtime_by_stream_s", stopped[1] - stopped[0])
            there.destroy()
