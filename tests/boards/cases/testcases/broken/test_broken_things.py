"""Cases that must not pass. tests/boards/test_verdicts_on_boards.py runs them and looks at the verdicts."""

import pytest

from lab.xen.guests import payload

pytestmark = pytest.mark.quick


def test_guest_that_never_comes_up(host):
    """The guest is created and never runs: FAIL, with its console."""
    with host.domain(payload(host, "pvh64", "idle"), paused=True) as guest:
        guest.results(5.0)


def test_dom0_dies(host):
    """dom0's kernel panics while the case waits for something else: FAIL, at once."""
    host.run("(sleep 2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.run("sleep 100", timeout=120)


def test_dom0_goes_silent(host):
    """dom0 runs on and answers no SSH: MISS, and FAIL when it is so again; with what console and debug keys say."""
    host.run("(sleep 1; pkill sshd) >/dev/null 2>&1 &")
    host.run("sleep 20", timeout=40)


@pytest.mark.expects_crash("linux-panic", "dom0-crash")
def test_dom0_dies_on_purpose(host):
    """The same, declared: PASS."""
    mark = host.board.console.mark()
    host.run("(sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.expect_console("Hardware Dom0 crashed", 30.0, since=mark)


def test_works_again_afterwards(host):
    """What a crash leaves is cleaned up before the next case: PASS."""
    assert "Domain-0" in host.xl("list").stdout
