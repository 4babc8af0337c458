"""An example of a case: what Xen says about the memory of its host."""

import pytest

pytestmark = [pytest.mark.quick]


def test_free_memory_is_less_than_all(host, evidence):
    """Xen counts less free memory than there is in all, since dom0 and Xen itself use some."""
    info = host.info()
    evidence.add("xl info", "\n".join(f"{key}: {value}" for key, value in info.items()), board=host.name)
    free, total = int(info["free_memory"]), int(info["total_memory"])
    assert 0 <= free < total, f"Xen counts {free} MiB free of {total} MiB"
