"""Migration streams that are broken field by field, fed to a receiver."""

import pytest

from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration_matrix import fuzz

pytestmark = [pytest.mark.weekly, pytest.mark.timeout(3600, func_only=True)]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pvh64", marks=pytest.mark.needs("hap")),
        pytest.param("pv64", marks=pytest.mark.needs("pv")),
    ],
)
def test_host_survives_broken_streams(kind, seed, host, evidence):
    """Fed with broken migration streams, host and bystander live on and no memory is lost.

    The receiver may refuse a stream or take it. Each field of each kind of step is broken in every way that is known to
    be nasty, and by chance: 300 to 350 variants, which take an emulated board five to seven minutes. All seeds together
    take an hour.
    """
    with host.domain(payload(host, "pvh64", "memory,heartbeat", hb_ms=500)) as bystander:
        with host.domain(payload(host, kind, "memory,idle", memory_mib=8)) as guest:
            guest.results(60)
            stream = fuzz.record(guest)
        free = host.free_memory_mib()
        chosen = list(fuzz.variants(stream, seed))
        fed = fuzz.feed(host, guest.name, chosen)
        evidence.add(
            "variants",
            "\n".join(
                f"{one.variant}: status {one.status}, {one.seconds:.1f} s{', copy left' if one.is_left else ''}\n"
                f"    {' | '.join(one.said.splitlines()[-2:])}"
                for one in fed
            ),
            board=host.name,
        )
        evidence.figure("variants", len(fed))
        evidence.figure("copies_left", sum(one.is_left for one in fed))
        evidence.figure("hanging", sum(one.status == "hangs" for one in fed))
        assert len(fed) == len(chosen), f"{len(fed)} of {len(chosen)} variants were fed"
        assert "Domain-0" in host.xl("list").stdout
        bystander.beats(5, 60)
        assert_unbroken(bystander.heartbeats())
        assert_unhurt(bystander)
        now = host.free_memory_mib()
        assert now >= free - 4, f"{free - now} MiB less are free than before"
