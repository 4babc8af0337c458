"""Page sizes of nested paging that are switched off on Xen's command line."""

import pytest

from lab.xen.domain import numbers
from lab.xen.guests import payload

MEMORY_MIB = 96


def said_and_ran(host, evidence, said):
    """Xen's line on page sizes ends so, and a guest keeps its memory. Returns how many tables map it."""
    line = next((one for one in host.boot_log().splitlines() if "HAP page sizes:" in one), "")
    evidence.add("xl dmesg", line, board=host.name)
    with host.domain(payload(host, "pvh64", "idle", memory_mib=MEMORY_MIB), paused=True) as guest:
        tables = guest.table_pages()
        evidence.figure("table_pages", tables)
    with host.domain(payload(host, "pvh64", "memory,tlb,give,take", memory_mib=MEMORY_MIB, step_kib=2048)) as guest:
        results = guest.results(120.0)
        evidence.console("guest console", guest)
        evidence.add("domain builder", guest.builder_output, board=host.name)
    assert line.endswith(said), f"Xen says {line!r}"
    for name in ("memory", "tlb", "give", "take"):
        assert results[name].outcome == "PASS", f"{name}: {results[name].detail}"
    seen = numbers(results["tlb"].detail)
    evidence.figure("tlb_ratio", seen["sparse_ps"] / seen["dense_ps"])
    return tables


@pytest.mark.needs("hap", "sp1g")
@pytest.mark.xen_options("hap_1gb=0")
def test_without_1g(host, evidence):
    """With `hap_1gb=0` Xen says so at boot, and maps a guest by 2 MiB entries."""
    tables = said_and_ran(host, evidence, "4kB, 2MB, 1GB [disabled]")
    assert tables < MEMORY_MIB // 2, f"{tables} tables for {MEMORY_MIB} MiB: not mapped by entries of 2 MiB"


@pytest.mark.needs("hap", "sp2m")
@pytest.mark.xen_options("hap_1gb=0 hap_2mb=0")
def test_without_any(host, evidence):
    """With `hap_2mb=0 hap_1gb=0` Xen says so at boot, and maps a guest by 4 KiB entries alone."""
    tables = said_and_ran(host, evidence, "4kB, 2MB [disabled], 1GB [disabled]")
    assert tables >= MEMORY_MIB // 2, f"{tables} tables for {MEMORY_MIB} MiB: mapped by larger entries than 4 KiB"
