"""How a guest stands still, ends, and begins anew. Source: docs/man/xl.cfg.5, EVENT ACTIONS."""

from dataclasses import replace

import pytest

from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload

pytestmark = pytest.mark.weekly

KINDS = [
    pytest.param("pv32", marks=pytest.mark.needs("pv32")),
    pytest.param("pv64", marks=pytest.mark.needs("pv")),
    pytest.param("pvh64", marks=pytest.mark.needs("hap")),
    pytest.param("hvm64", marks=pytest.mark.needs("hap", "qemu")),
]
STILL = 4  # seconds


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_guest_stands_still(kind, host, evidence):
    """`xl pause` gives a guest that wants all of its CPU none of it; after `xl unpause` it goes on where it was."""
    with host.domain(payload(host, kind, "busy,heartbeat", hb_ms=100)) as guest:
        guest.beats(3, 60)
        host.xl("pause", guest.name)
        row, last = host.domains()[guest.name], guest.heartbeats()[-1]
        host.run(f"sleep {STILL}")
        after, now = host.domains()[guest.name], guest.heartbeats()[-1]
        evidence.add("xl list, before and after", f"{row}\n{after}", board=host.name)
        assert "p" in after.state, f"`xl list` shows {after.state}"
        assert after.cpu_seconds == row.cpu_seconds, f"it used {after.cpu_seconds - row.cpu_seconds:.1f} s while paused"
        assert now.n <= last.n + 1, f"heartbeat {now.n} after {last.n} while it was paused"
        host.xl("unpause", guest.name)
        guest.beats(5, 60)
        assert_unbroken(guest.heartbeats())


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_is_shut_down_is_gone(kind, host):
    """After `xl shutdown` a guest is gone, and Xen has as much memory as before it came."""
    host.wait_scrubbed()
    free = host.free_pages()
    with host.domain(payload(host, kind, "heartbeat")) as guest:
        guest.beats(2, 60)
        host.xl("shutdown", guest.name)
        guest.wait_for("^XL shutdown INFO poweroff", 60.0)
        host.expect(lambda: not guest.is_there, 60.0, f"{guest.name} is gone")
    host.wait_scrubbed()
    assert host.free_pages() >= free, f"{free - host.free_pages()} pages are missing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_is_rebooted_begins_anew(kind, host):
    """After `xl reboot` a guest begins anew, as another domain of the same name."""
    config = payload(host, kind, "heartbeat")
    with host.domain(replace(config, more={**config.more, "on_reboot": '"restart"'})) as guest:
        guest.beats(2, 60)
        before, lines = guest.domid(), len(guest.console())
        host.xl("reboot", guest.name)
        guest.wait_for("^XL shutdown INFO reboot", 60.0, after=lines)
        guest.wait_for("^XL HB 1 ", 90.0, after=lines)
        assert guest.domid() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_crashes_is_kept_or_begins_anew(kind, host):
    """A guest that crashes is kept with `on_crash="preserve"`, as crashed; with "restart" it begins anew."""
    config = payload(host, kind, "mode,trap")
    with host.domain(config) as guest:
        guest.wait_for("^XL trap FAIL vector=6 ", 60.0)
        host.expect(lambda: is_crashed(host, guest), 30.0, f"`xl list` shows {guest.name} as crashed")
    again = replace(config, name=host.unique(kind), more={**config.more, "on_crash": '"restart"'})
    with host.domain(again) as guest:
        host.expect(lambda: len(traps(guest)) > 1, 90.0, f"{guest.name} begins anew, and crashes again")
        host.xl("destroy", guest.name, check=False)


def is_crashed(host, guest):
    """Whether the guest is there, and Xen says that it has crashed."""
    row = host.domains().get(guest.name)
    return row is not None and "c" in row.state


def traps(guest):
    """Lines of the guest's console in which it crashed."""
    return [line for line in guest.console() if line.startswith("XL trap FAIL")]
