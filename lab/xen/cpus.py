"""CPUs of a host that go offline and come back, by ``xen-hptool``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.grid.ssh import CommandResult
from lab.xen.dom0 import Toolstack


def hptool(toolstack: Toolstack, *words: str) -> CommandResult:
    """``xen-hptool``, with a time limit: it retries for ever when Xen answers EBUSY."""
    return toolstack.run(f"timeout 20 xen-hptool {' '.join(words)} 2>&1", check=False)


@contextlib.contextmanager
def offline(toolstack: Toolstack, cpu: int) -> Iterator[None]:
    """Within the block the CPU is offline; it comes back whatever happens there.

    :raises AssertionError: it does not go, or does not come back; carries what the tool said.
    """
    off = hptool(toolstack, "cpu-offline", str(cpu))
    assert f"CPU {cpu} offlined successfully" in off.stdout, off.stdout
    try:
        yield
    finally:
        on = hptool(toolstack, "cpu-online", str(cpu))
    assert f"CPU {cpu} onlined successfully" in on.stdout, on.stdout
