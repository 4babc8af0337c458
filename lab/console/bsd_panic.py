"""Where FreeBSD or NetBSD was when it panicked: the frames of its own backtrace.

Formats are those of FreeBSD's sys/kern/subr_stack.c and sys/amd64/amd64/db_trace.c, and of NetBSD's
sys/arch/x86/x86/db_trace.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lab.console.frames import Frame, frame
from lab.console.lines import after_xen, message

# "#6 0xffffffff80b1c4a2 at xbb_run+0x1b2", "xbb_run() at xbb_run+0x1b2/frame 0xfffffe00", "xbb() at netbsd:xbb+0x5e"
_FRAME = re.compile(
    r"(?:^|[\s\]])(?:#\d{1,3} 0x([0-9a-f]{6,16})|[\w.$?]{1,200}\([^()]{0,200}\)) at (?:netbsd:)?"
    r"([A-Za-z_][\w.$]{0,200})(?:\+(0x[0-9a-f]{1,8}))?(?:/frame 0x[0-9a-f]{6,16})?\s*$"
)
# FreeBSD's "cpuid = 3; apic id = 06", NetBSD's "cpu1: Begin traceback..."
_CPU = re.compile(r"cpuid = (\d{1,5})\b|cpu(\d{1,5}): [Bb]egin traceback")
_ENDS = re.compile(r"Uptime: |Dumping \d|dumping to dev|cpu\d+: End traceback|db>|db\{")
_NEAR = 40  # lines from a panic's first words to its backtrace
# Functions that tell of a trap or a panic: not where it was.
_TELLERS = re.compile(
    r"kdb_\w+|db_\w+|v?panic|trap(?:_\w+)?|calltrap|alltraps\w*|nmi_\w+|dblfault_handler|breakpoint|cpu_(?:Debugger|reboot)"
    r"|snprintf|startlwp|kern_assert|kern_reboot|__stack_chk_fail|Xtrap\w+"
)


def frames(lines: Sequence[str]) -> tuple[Frame, ...]:
    """Where it was, innermost first; ``lines`` are those from the telling one on."""
    return tuple(_frames(lines))


def cpu(lines: Sequence[str]) -> int | None:
    """The processor that panicked, as the lines from the telling one on say it."""
    found = (match for line in lines[:_NEAR] if (match := _CPU.search(line)))
    return next((int(match[1] or match[2]) for match in found), None)


def _frames(lines: Sequence[str]) -> Iterator[Frame]:
    has_any = False
    for line in lines:
        if after_xen(line) >= 0 and "(d0" not in line:
            continue
        said = message(line)
        if match := _FRAME.search(said):
            has_any = True
            if not _TELLERS.fullmatch(match[2]):
                yield frame(match[1], match[2], match[3])
        elif has_any and _ENDS.search(said):
            return
