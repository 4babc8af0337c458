"""How Xen's scheduler shares a CPU among guests that want all of it. Source: docs/man/xl.1, SCHEDULER SUBCOMMANDS."""

import contextlib
from dataclasses import replace

import pytest

from lab.xen.guests import payload

pytestmark = [pytest.mark.weekly, pytest.mark.needs("hap")]

SECONDS = 20
SCHEDULERS = ("credit2", "credit")  # those that have weights and caps


@contextlib.contextmanager
def on_the_last_cpu(host, evidence, *limits):
    """A guest for each of ``limits`` (lines of its configuration), all on one CPU and without a pause."""
    if (scheduler := host.info()["xen_scheduler"]) not in SCHEDULERS:
        evidence.unproved(f"{host.name} has the scheduler {scheduler}, which has no weights and caps")
    cpu = int(host.info()["nr_cpus"]) - 1
    with contextlib.ExitStack() as stack:
        guests = []
        for more in limits:
            config = payload(host, "pvh64", "busy,heartbeat", hb_ms=500)
            config = replace(config, more={**config.more, "cpus": f'"{cpu}"', **more})
            guests.append(stack.enter_context(host.domain(config)))
        for guest in guests:
            guest.beats(2, 60)
        yield guests


def shares(host, evidence, guests):
    """The part of one CPU's time that each guest was given within some seconds."""

    def now():
        rows = host.domains()
        return float(host.run("cut -d' ' -f1 /proc/uptime").stdout), [rows[guest.name].cpu_seconds for guest in guests]

    began, first = now()
    host.run(f"sleep {SECONDS}", timeout=SECONDS * 10)
    ended, last = now()
    found = [(to - since) / (ended - began) for since, to in zip(first, last, strict=True)]
    evidence.add(
        "parts of a CPU",
        "\n".join(f"{guest.name}: {part:.3f}" for guest, part in zip(guests, found, strict=True)),
        board=host.name,
    )
    return found


def test_a_cpu_is_shared_by_weight(host, evidence):
    """Of two guests that want all of a CPU, one with three times the weight of the other has three times as much."""
    with on_the_last_cpu(host, evidence, {"cpu_weight": "256"}, {"cpu_weight": "768"}) as guests:
        light, heavy = shares(host, evidence, guests)
        if light + heavy < 0.5:
            evidence.unproved(f"something else has the CPU: the guests have {light:.2f} and {heavy:.2f} of it")
        evidence.figure("share_by_weight", heavy / light)
        assert 2.2 < heavy / light < 4.0, f"{heavy:.2f} and {light:.2f} of a CPU, at three times the weight"


def test_a_cap_is_kept(host, evidence):
    """A guest that wants all of a CPU and is capped at 40 % has 40 %, and without the cap it has more."""
    with on_the_last_cpu(host, evidence, {"cap": "40"}) as guests:
        [capped] = shares(host, evidence, guests)
        host.xl(f"sched-{host.info()['xen_scheduler']}", "-d", guests[0].name, "-c", "0")
        [free] = shares(host, evidence, guests)
        if free < 0.5:
            evidence.unproved(f"without a cap the guest has {free:.2f} of the CPU, too")
        evidence.figure("share_under_a_cap", capped)
        assert 0.3 < capped < 0.48, f"the guest has {capped:.2f} of a CPU, and is capped at 0.40"
