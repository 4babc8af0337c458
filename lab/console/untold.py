"""Finds a crash whose own line is missing, because the console was cut before it.

Two things show such a crash: Xen's registers with nothing of Xen after them, and a panic's rows of asterisks without
the line between them. A debug key, a warning and the end of a guest print registers, too. In these cases Xen says so
before the registers, or goes on after them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lab.console import xen_dump
from lab.console.lines import after_xen, message, own_words
from lab.console.patterns import DUMP_BEGINS, HasText, classify, crash_excerpt

_REACH = 2000  # lines from the end: Xen's last words
PANIC_ROW = re.compile(r"\*{40}$")  # drivers/char/console.c; other rows of Xen's are longer or shorter
_IN_A_ROW = 8  # lines between two rows; a panic's reason has three


def crash(lines: Sequence[HasText]) -> tuple[str, tuple[str, ...]] | None:
    """The signature of a crash that these lines show and do not tell, and the excerpt to parse; None: there is none."""
    at = shown([line.text for line in lines])
    if at is None:
        return None
    name = "xen-dump" if DUMP_BEGINS in lines[at].text else "xen-panic"
    return name, crash_excerpt(lines, at)


def shown(texts: Sequence[str]) -> int | None:
    """Where among the lines of a console such a crash begins."""
    first = max(0, len(texts) - _REACH)
    said = [own_words(text) for text in texts[first:]]
    at = _dump(said)
    if at is None:
        at = _row(said)
    return None if at is None else first + at


def _dump(said: Sequence[str]) -> int | None:
    """The registers of the hypervisor itself that are the last that it says."""
    dumps = xen_dump.dumps(said)
    if not dumps or not dumps[-1].is_cut_short(said):
        return None
    lead = classify(f"(XEN) {dumps[-1].lead}")
    return None if lead and lead.kind == "warning" else dumps[-1].first


def _row(said: Sequence[str]) -> int | None:
    """The first of a panic's rows, if they are the last that Xen says."""
    rows = [at for at, text in enumerate(said) if "*" * 40 in text and after_xen(text) >= 0]
    rows = [at for at in rows if PANIC_ROW.match(message(said[at]))]
    if not rows:
        return None
    at = rows[-2] if len(rows) > 1 and rows[-1] - rows[-2] <= _IN_A_ROW else rows[-1]
    after = [text for text in said[rows[-1] + 1 :] if after_xen(text) >= 0 and message(text)]
    return at if len(after) <= _IN_A_ROW and at >= 0 and not (after and rows[-1] != at) else None
