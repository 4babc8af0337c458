"""The table of capabilities: what each rule finds in what Xen and dom0 say, and who else repeats its words."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lab import inventory
from lab.base import paths
from lab.base.errors import UsageError
from lab.grid.ssh import CommandResult
from lab.inventory import capabilities
from lab.inventory.capabilities import TABLE, DecidedBy, Facts, probed
from lab.xen.dom0 import Toolstack
from lab.xen.probing import of_toolstack

# What `xl info` and the boot log of a board with two nodes and 8 GiB say, shortened.
INFO = {
    "nr_cpus": "4",
    "hw_caps": "178bfbfd:80002081:24100800:00000005:00000000:00000000:00000000:00000100",
    "nr_nodes": "2",
    "total_memory": "8063",
    "virt_caps": "pv hvm hap shadow hvm_directio",
    "xen_caps": "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64",
}
NUMA = """
node:    memsize    memfree    distances
   0:      5120       2050      10,20
   1:      4096       3000      20,10
"""
BOOT_LOG = "(XEN) HVM: VMX enabled\n(XEN) HVM: HAP page sizes: 4kB, 2MB, 1GB [disabled]\n"
FACTS = Facts(INFO, NUMA, BOOT_LOG, frozenset({"s3", "s5", "rtcwake"}), frozenset({"spare"}), True, False, True)


def test_each_capability_is_found_in_what_a_board_says() -> None:
    by_xen = {"pv", "pv32", "hvm", "hvm32", "hap", "shadow", "iommu", "numa", "cpu-offline", "memory-8g"}
    by_xen |= {"invariant-tsc"}
    assert probed(FACTS) == by_xen | {"high-memory", "sp2m", "s3", "s5", "rtcwake", "spare-nic", "migration-pair"}


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (replace(FACTS, info=INFO | {"virt_caps": "pv hap"}), "hvm"),
        (replace(FACTS, info=INFO | {"virt_caps": "hvm hap"}), "pv"),
        (replace(FACTS, info=INFO | {"xen_caps": "xen-3.0-x86_64"}), "pv32"),
        (replace(FACTS, info={}), "numa"),
        (replace(FACTS, info=INFO | {"hw_caps": "178bfbfd:80002081:0:0:0:0:0:00000000"}), "invariant-tsc"),
        (replace(FACTS, numa="\n   0:      4096       2050      10\n"), "high-memory"),
        (replace(FACTS, boot_log=""), "sp2m"),
        (replace(FACTS, dom0=frozenset()), "s3"),
        (replace(FACTS, dom0=frozenset()), "s5"),
        (replace(FACTS, tells_power=False), "s5"),
        (replace(FACTS, ports=frozenset()), "spare-nic"),
        (replace(FACTS, is_linked=False), "migration-pair"),
    ],
)
def test_a_capability_that_is_not_there_is_not_found(facts: Facts, word: str) -> None:
    assert word in probed(FACTS) and word not in probed(facts)


def test_memory_above_4_gib_is_found_where_its_hole_lies_between_two_nodes() -> None:
    """As on a board with four nodes of 1 GiB: the hole of PCI is below the third."""
    nodes = "\n" + "".join(f"   {node}:      1024        700      10,20,20,20\n" for node in range(4))
    low = (
        "(XEN)  [0000000000100000, 000000007ffdbfff] (usable)\n(XEN)  [00000000fffc0000, 00000000ffffffff] (reserved)\n"
    )
    four = replace(FACTS, numa=nodes, boot_log=low)
    assert "high-memory" not in probed(four)
    high = "(XEN)  [0000000100000000, 000000017fffffff] (usable)\n"
    assert "high-memory" in probed(replace(four, boot_log=low + high))
    assert "high-memory" not in probed(replace(four, boot_log=low + high.replace("usable", "reserved")))


def test_opposites_are_never_found_together() -> None:
    narrow = replace(FACTS, info=INFO | {"xen_caps": "xen-3.0-x86_64"})
    assert "no-pv32" in probed(narrow) and "no-pv32" not in probed(FACTS)


def test_rackers_and_lab_up_vouch_for_what_nobody_probes_and_for_nothing_else() -> None:
    assert {row.word for row in TABLE.values() if not row.is_probed} == {
        row.word for row in TABLE.values() if row.source in (DecidedBy.RACKER, DecidedBy.EMULATOR)
    }


def test_conditions_run_in_a_shell_and_print_words_of_the_table_alone() -> None:
    done = subprocess.run(
        ["sh", "-c", capabilities.conditions()], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) <= TABLE.keys() and not done.stderr
    assert ("s3" in done.stdout.split()) != ("no-s3" in done.stdout.split())


def test_a_toolstack_alone_is_enough_to_probe() -> None:
    said = {
        "xl info": "\n".join(f"{key:<10}: {value}" for key, value in INFO.items()),
        "xl info -n": "numa_info" + NUMA,
    }

    def run(command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult:
        text = said.get(command, "s3\nno-such-word\n" if "echo s3" in command else BOOT_LOG)
        return CommandResult(command, 0, text, "", 0.1)

    found = of_toolstack(Toolstack("desk1", run), ["management"])
    assert {"pv", "high-memory", "sp2m", "s3"} <= found
    assert found.isdisjoint({"spare-nic", "migration-pair", "no-such-word"})


def test_an_unknown_word_is_refused_with_the_nearest_one() -> None:
    capabilities.check("hap")
    with pytest.raises(
        UsageError, match=r"^a\.yaml:3: unknown capability 'happ' \(did you mean hap\?\); there are: pv32"
    ):
        capabilities.check("happ", "a.yaml:3")


def test_the_rackers_documentation_lists_every_word() -> None:
    text = (paths.CHECKOUT / "docs" / "rack.md").read_text(encoding="utf-8")
    table = text.partition("| capability | what it means | capability | what it means |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) - {"localhost"} >= TABLE.keys()


@pytest.mark.parametrize("path", sorted((paths.CHECKOUT / "inventory").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_board_that_runs_32_bit_pv_guests_runs_pv_guests(path: Path) -> None:
    for board in inventory.load(path).boards.values():
        assert "pv" in board.capabilities or "pv32" not in board.capabilities
