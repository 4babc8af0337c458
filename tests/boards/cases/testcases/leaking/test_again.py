"""A case that the night tries again. tests/boards/test_verdicts_on_boards.py runs it and looks at both attempts."""

import pytest

pytestmark = pytest.mark.quick
SEEN = "/var/tmp/xenlab-second"


def test_answers_at_the_second_attempt(host):
    """dom0 loses its SSH server while the case works, the first time: MISS, then PASS, and flaky."""
    if host.run(f"rm {SEEN}", check=False).status == 0:
        return
    host.run(f"touch {SEEN}; sync; (sleep 1; pkill sshd) >/dev/null 2>&1 &")
    host.run("sleep 20", timeout=40)
