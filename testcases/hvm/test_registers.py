"""The registers of a guest's vCPUs: a save, a relocation and a sleep of the host carry each of them over."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from lab.xen.domain import assert_unbroken, assert_unhurt
from lab.xen.guests import payload
from lab.xen.migration import relocated
from lab.xen.migration_matrix.one_board import on_one_board
from lab.xen.sleep import suspend

PV32 = pytest.param("pv32", marks=pytest.mark.needs("pv32"))
PV64 = pytest.param("pv64", marks=pytest.mark.needs("pv"))
TRANSLATED = [
    pytest.param("pvh32", marks=pytest.mark.needs("hap", "hvm32")),
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    pytest.param("hvm32", marks=pytest.mark.needs("hap", "hvm32", "qemu")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]
SHADOWED = [  # a PV guest is relocated live only where Xen has shadow paging
    pytest.param("pv32", marks=pytest.mark.needs("pv32", "shadow")),
    pytest.param("pv64", marks=pytest.mark.needs("pv", "shadow")),
]
VCPUS = 2
HIDDEN = '"host,popcnt=0"'  # not what a new guest is shown: the stream must tell it
ASLEEP = 10  # seconds from the order to the alarm


def living(host, kind):
    """A guest of two vCPUs that looks at all of its registers and at CPUID, each heartbeat and after each resume."""
    config = payload(host, kind, "registers,vcpus,heartbeat", vcpus=VCPUS)
    return replace(config, more={**config.more, "cpuid": HIDDEN})


def assert_loaded(guest):
    """All registers of each vCPU hold their patterns."""
    results = guest.results(60.0)
    failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)
    guest.beats(2)


@pytest.mark.parametrize("kind", [PV32, PV64, *TRANSLATED])
def test_registers_survive_save_and_restore(kind, host, evidence):
    """`xl save` and `xl restore` keep a guest's x87, SSE, debug and model-specific registers, and what CPUID shows."""
    with host.domain(living(host, kind)) as guest:
        assert_loaded(guest)
        with guest.saved() as path:
            guest.restore(path)
            guest.wait_for("^XL resume INFO cancelled=0", 60.0)
            guest.beats(5)
        evidence.console("guest console", guest)
        assert_unbroken(guest.heartbeats())
        assert_unhurt(guest)


@pytest.mark.needs("self-ssh")
@pytest.mark.parametrize("kind", [*SHADOWED, *TRANSLATED])
def test_registers_survive_a_relocation(kind, host, evidence):
    """A live relocation keeps a guest's x87, SSE, debug and model-specific registers, and what CPUID shows."""
    source, destination = on_one_board(host)
    with source.domain(living(source, kind)) as guest:
        assert_loaded(guest)
        with relocated(guest, destination, evidence.migration) as (there, _):
            there.beats(5)
            evidence.console("guest at the destination", there)
            assert_unhurt(there)


@pytest.mark.needs("s3", "bmc-sleep-state", "rtcwake", "hap", "pv")
def test_registers_survive_a_sleep_of_the_host(host, evidence):
    """While the host sleeps in S3 and wakes, a PV and a PVH guest keep the registers of both vCPUs."""
    with ExitStack() as stack:
        guests = [stack.enter_context(host.domain(living(host, kind))) for kind in ("pv64", "pvh64")]
        for guest in guests:
            assert_loaded(guest)
        sleep = suspend(host, wake_after=ASLEEP)
        evidence.add("sleep", sleep.text(), kind="console", board=host.name)
        sleep.check()
        for guest in guests:
            guest.beats(5, 60)
            evidence.console(guest.name, guest)
        assert_unhurt(*guests)
