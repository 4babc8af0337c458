"""Debian's 32-bit kernel, with PAE paging and drivers of its own, as a PVH and as an HVM guest."""

import contextlib

import pytest

from lab.xen.guests import linux
from lab.xen.reach import bridge

pytestmark = [pytest.mark.full, pytest.mark.needs("hvm32")]

DOM0, GUEST = "192.168.232.1", "192.168.232.2"
KINDS = [pytest.param("pvh", id="pvh"), pytest.param("hvm", id="hvm", marks=pytest.mark.needs("qemu"))]
PAGING = [
    pytest.param("0", id="shadow", marks=pytest.mark.needs("shadow")),
    pytest.param("1", id="hap", marks=pytest.mark.needs("hap", "pae-guests", "guest-cr2")),
]


@contextlib.contextmanager
def running(host, evidence, kind, hap):
    """A guest that is in 32-bit mode with PAE and NX, and that has reached dom0 by its network port."""
    with bridge(host, f"{DOM0}/24") as name:
        more = {"hap": hap, "vif": f'[ "type=vif,bridge={name},mac=00:16:3e:00:00:03" ]'}
        words = f"ip={GUEST}/24 peer={DOM0} count=3"
        config = linux(host, kind, "mode,cpu,netfront,heartbeat", sort="linux32", cmdline=words, more=more)
        if host.run(f"test -e {config.kernel}", check=False).status:
            evidence.unproved("the board has no 32-bit kernel, because no mirror of this machine has one")
        with host.domain(config) as guest:
            results = guest.results(150.0)
            evidence.console("guest console", guest)
            failed = [f"{line.case}: {line.detail}" for line in results.values() if line.outcome == "FAIL"]
            assert not failed, "; ".join(failed)
            mode = results["mode"].detail
            assert "machine=i686" in mode and f"guest_type={kind.upper()}" in mode, mode
            guest.beats(2, 30)
            yield guest


@pytest.mark.parametrize("hap", PAGING)
@pytest.mark.parametrize("kind", KINDS)
def test_linux_of_32_bit(kind, hap, host, evidence):
    """Debian's 32-bit kernel boots as a guest, finds PAE and NX, runs user mode and reaches dom0 by its network."""
    with running(host, evidence, kind, hap) as guest:
        assert guest.is_there


@pytest.mark.needs("pae-guests", "guest-cr2")
@pytest.mark.parametrize("kind", KINDS)
def test_linux_of_32_bit_is_saved_and_restored(kind, host, evidence):
    """After `xl save` and `xl restore` a 32-bit Linux guest runs on, and answers on its network port."""
    with running(host, evidence, kind, "1") as guest:
        with guest.saved() as path:
            guest.restore(path)
            guest.beats(2, 60)
        answers = host.run(f"ping -n -c 3 -W 5 {GUEST}", timeout=60, check=False).stdout
        evidence.add("ping after restore", answers, board=host.name)
        assert " 0% packet loss" in answers, answers
