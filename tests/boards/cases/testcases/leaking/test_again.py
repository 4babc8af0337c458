"""A case that the night tries again. tests/boards/test_verdicts_on_boards.py runs it and looks at both attempts."""

import pytest

from lab.grid import rescue

pytestmark = pytest.mark.quick
SEEN = "/var/tmp/xenlab-second"


def test_answers_at_the_second_attempt(host):
    """dom0 loses its SSH server while the case works, the first time: MISS, then PASS, and flaky."""
    if host.run(f"rm {SEEN}", check=False).status == 0:
        return
    host.run(f"touch {SEEN}; sync; (sleep 1; pkill sshd) >/dev/null 2>&1 &")
    host.run("sleep 20", timeout=40)


@pytest.mark.expects_crash("xen-panic", "xen-fatal-trap")
def test_nmi_says_where_xen_is(host, evidence):
    """The last resort for a hypervisor that answers nothing: a debug build says where it is, and dies: PASS."""
    said = "\n".join(rescue.nmi(host.board) or ())
    evidence.add("said", said)
    assert "FATAL TRAP" in said
    assert "RIP:" in said
