"""A cell of the migration matrix as commands that anybody can type into two dom0s."""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Iterable, Iterator

from lab.on_board import GUESTS, PYTHON
from lab.xen.guests import named
from lab.xen.migration import SSH, words
from lab.xen.migration_matrix.attempt import BEAT
from lab.xen.migration_matrix.cells import Cell
from lab.xen.migration_matrix.expected import expected
from lab.xen.migration_matrix.strikes import MEMORY_MIB

FOLDER = "/tmp/reloc"


def commands(cell: Cell, peer: str, mac: str = "MAC-OF-THE-LAB-PORT") -> str:
    """A shell script for people: what to type where, and how it must end.

    :raises UsageError: there can be no such cell.
    """
    wanted, fault = expected(cell), cell.fault
    name = "repro"
    options = f"work={fault.work} hb_ms={round(BEAT * 1000)} dirty_kib={cell.dirty_kib}"
    config = named(name, cell.guest, options, memory_mib=MEMORY_MIB)
    migrate = shlex.join(words(name, peer, FOLDER, cell.actions, patience=fault.patience))
    lines = [
        f"# {cell.id}: {fault.does}, at {cell.place}",
        f"# must end: {wanted.ending.name}; {wanted.where.value}",
        f"# since: {wanted.why}",
        *(["# Source and destination are the same dom0."] if cell.boards == 1 else []),
        f"# Both dom0s need the files of lab/on_board in {PYTHON}/lab/on_board, an empty",
        f"# {PYTHON}/lab/__init__.py, and the guest in {GUESTS}.",
        f"# The source's root must get into {peer} by ssh.",
        "",
        "# --- source",
        f"rm -rf {FOLDER}; mkdir -p {FOLDER}",
        f"cat > {FOLDER}/{name}.cfg <<'XL'\n{config.text()}XL",
        *(f"mkdir -p {os.path.dirname(file)} && printf %s '{text}' > {file}" for file, text in config.files.items()),
        f"xl create {FOLDER}/{name}.cfg; sleep 5",
        *(fault.obstacle.commands(name) if fault.obstacle else ()),
    ]
    lines += ["# --- source"]
    if fault.strike:
        lines += [
            "(" + migrate + f") > {FOLDER}/said 2>&1 &",
            f'until grep -q \'"action": "hold"\' {FOLDER}/log; do sleep 0.1; done  # the stream stands still',
            *fault.strike.commands(name, peer, mac),
        ]
        if not fault.cuts_the_source:
            lines += ["# --- source", f"touch {FOLDER}/release; wait; cat {FOLDER}/said"]
    else:
        lines += [f"{migrate}; echo status $?"]
    if wanted.hangs:
        lines += ["# xl hangs; in another shell, after a while:", f"pkill -KILL -f '{SSH}'"]
    lines += [
        "",
        "# --- on both: look",
        "xl list; ps -eo pid,args | grep -E '[x]l migrate|[l]ibxl-save-helper'",
        f"tail -n 3 /var/log/xen/console/guest-{name}*.log; xl debug-keys q; xl dmesg | grep -A9 'General information'",
        f"cat {FOLDER}/log  # source: what passed, and that the fault fell there",
    ]
    if fault.strike and (cure := fault.strike.cure_commands(name, mac)):
        lines += ["", *cure]
    return "\n".join(_without_repeats(lines)) + "\n"


def _without_repeats(lines: Iterable[str]) -> Iterator[str]:
    """The lines, with a heading that says where to type only where that changes."""
    where = ""
    for line in lines:
        if line.startswith("# ---"):
            if line == where:
                continue
            where = line
        yield line
