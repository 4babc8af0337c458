"""A cell of the relocation matrix as commands that anybody can type into two dom0s."""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Iterable, Iterator

from lab.base.errors import UsageError
from lab.xen.guests import named
from lab.xen.host import GUESTS
from lab.xen.migration import SSH, words
from lab.xen.migration_matrix.attempt import BEAT, MEMORY_MIB
from lab.xen.migration_matrix.cells import Cell
from lab.xen.migration_matrix.expected import expected
from lab.xen.migration_matrix.faults import Effect

FOLDER = "/tmp/reloc"


def commands(cell: Cell, peer: str, mac: str = "MAC-OF-THE-LAB-PORT") -> str:
    """A shell script for people: what to type where, and what must come of it.

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
        "# Both dom0s need lab/on_board/stream.py and proxy.py under /usr/lib/xenlab/python/lab/on_board (with an",
        f"# empty __init__.py in lab and lab/on_board) and the guest in {GUESTS}. The source's root must get into",
        f"# {peer} by ssh.",
        "",
        "# --- source",
        f"rm -rf {FOLDER}; mkdir -p {FOLDER}",
        f"cat > {FOLDER}/{name}.cfg <<'XL'\n{config.text()}XL",
        *(f"mkdir -p {os.path.dirname(file)} && printf %s '{text}' > {file}" for file, text in config.files.items()),
        f"xl create {FOLDER}/{name}.cfg; sleep 5",
        *_before(cell, name),
    ]
    held = fault.is_by_hand
    lines += ["# --- source"]
    if held:
        lines += [
            "(" + migrate + f") > {FOLDER}/said 2>&1 &",
            f'until grep -q \'"action": "hold"\' {FOLDER}/log; do sleep 0.1; done  # the stream stands still',
            *_strike(cell, peer, name, mac),
        ]
        if fault.power != "source":
            lines += ["# --- source", f"touch {FOLDER}/release; wait; cat {FOLDER}/said"]
    else:
        lines += [f"{migrate}; echo status $?"]
    if wanted.hangs:
        lines += ["# it hangs; in another shell, after a while:", f"pkill -KILL -f '{SSH}'"]
    lines += [
        "",
        "# --- look, on both",
        "xl list; ps -eo pid,args | grep -E '[x]l migrate|[l]ibxl-save-helper'",
        f"tail -n 3 /var/log/xen/console/guest-{name}*.log; xl debug-keys q; xl dmesg | grep -A9 'General information'",
        f"cat {FOLDER}/log  # source: what passed, and that the fault fell there",
    ]
    if fault.cure:
        lines += ["", f"# --- {fault.side}: put right", f"GUEST={name}; MAC={mac}; {fault.cure}"]
    return "\n".join(_without_repeats(lines)) + "\n"


def _without_repeats(lines: Iterable[str]) -> Iterator[str]:
    """Where to type what follows, said only where it changes."""
    where = ""
    for line in lines:
        if line.startswith("# ---"):
            if line == where:
                continue
            where = line
        yield line


def _before(cell: Cell, name: str) -> list[str]:
    small = f"xl create -p /dev/null 'kernel=\"{GUESTS}/pvh64\"' 'type=\"pvh\"'"
    named = {
        Effect.INCOMING_TAKEN: ("destination", f"{name}--incoming"),
        Effect.NAME_TAKEN: ("destination", name),
        Effect.AWAY_TAKEN: ("source", f"{name}--migratedaway"),
    }
    if cell.fault.effect is Effect.NO_ROOM:
        return [
            "# --- destination: leave less than the guest needs",
            f'M=$(($(xl info free_memory) - {MEMORY_MIB + 4})); {small} \'name="hog"\' "memory=$M"',
        ]
    if cell.fault.effect in named:
        side, taken = named[cell.fault.effect]
        return [f"# --- {side}", f"{small} 'name=\"{taken}\"' memory=8"]
    return []


def _strike(cell: Cell, peer: str, name: str, mac: str) -> list[str]:
    fault = cell.fault
    if fault.effect is Effect.SECOND:
        return ["# --- source", f"xl migrate {name} {shlex.quote(peer)}"]
    if fault.power:
        return [f"# --- anywhere: the {fault.power}'s BMC", "ipmitool -I lanplus -H BMC -U USER -E chassis power off"]
    if not fault.command:
        raise UsageError(f"{cell.id}: nothing to be done by hand")
    return [f"# --- {fault.side}", f"GUEST={name}; MAC={mac}; {fault.command}"]
