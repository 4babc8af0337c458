"""A case that must not pass. tests/boards/test_verdicts_on_boards.py runs it and looks at the verdict."""

import pytest

pytestmark = pytest.mark.quick


def test_host_is_reset(host):
    """The keyboard controller resets the machine, and nothing is printed: MISS, and FAIL when it is so again."""
    host.run("(sleep 1; printf '\\376' | dd of=/dev/port bs=1 seek=100 conv=notrunc) >/dev/null 2>&1 &")
    host.run("sleep 20", timeout=40)
