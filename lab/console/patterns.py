"""What the lines of a console mean: crashes, warnings and milestones of Xen and of its dom0.

Texts are those of Xen 4.17 to 4.20 and of Linux; the source file stands beside those of Xen. What a guest
printed, as Xen relays it (``(d1) ...``), means nothing here; ``(XEN) d1v0 ...`` is Xen's own about a guest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["crash", "warning", "milestone"]


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing a console line can say."""

    kind: Kind
    name: str
    pattern: str  # regular expression, searched for in what remains of a line without guests' words


class HasText(Protocol):
    """A console line, as far as it matters here."""

    @property
    def text(self) -> str: ...


_IOMMU_FAULT = (
    r"DMAR: ?\[(?:DMA|INTR)[^\]]*\] ?Request device"  # drivers/passthrough/vtd/iommu.c; Linux has the blank
    r"|INTR-REMAP: ?Request device"
    r"|AMD-Vi: (?:Event logged \[)?IO_PAGE_FAULT"  # drivers/passthrough/amd/iommu_init.c
)

# The first that matches is the answer, so crashes stand before warnings. No text is told from another by
# where it stands in the line: two writers share the wire, and one's words land in the middle of the other's.
SIGNATURES = (
    # Xen
    Signature("crash", "xen-panic", r"Panic on CPU \d+:"),  # drivers/char/console.c
    Signature("crash", "xen-fatal-trap", r"FATAL TRAP: vec"),  # arch/x86/traps.c
    Signature("crash", "xen-page-fault", r"FATAL PAGE FAULT|Early fatal page fault"),
    Signature("crash", "xen-protection-fault", r"GENERAL PROTECTION FAULT|CONTROL-FLOW PROTECTION FAULT"),
    Signature("crash", "xen-double-fault", r"\*\*\* DOUBLE FAULT \*\*\*|DOUBLE FAULT -- system shutdown"),
    Signature("crash", "xen-bug", r"Xen BUG at "),  # common/bug.c
    Signature("crash", "xen-assertion", r"Assertion '.*' failed at "),  # debug builds only
    Signature("crash", "xen-watchdog", r"Watchdog timer detects that CPU\d+ is stuck"),  # arch/x86/nmi.c
    Signature(  # arch/x86/cpu/mcheck/mce.c; "Hardware Error Registers" of the boot is something else
        "crash",
        "machine-check",
        r"Fatal machine check:|MCE: Fatal error happened|HARDWARE ERROR|CPU ?\d+: Machine Check Exception",
    ),
    Signature("crash", "dom0-watchdog", r"Hardware Dom0 shutdown: watchdog"),  # common/shutdown.c
    Signature(
        "crash",
        "dom0-crash",
        r"Hardware Dom0 crashed|Domain 0 \(vcpu#\d+\) crashed on cpu|Domain 0 reported crashed by domain",
    ),
    Signature("crash", "iommu-fault", rf"(?:\(XEN\)|\[VT-D\]).*(?:{_IOMMU_FAULT})"),
    # Linux in dom0
    Signature("crash", "linux-panic", r"Kernel panic - not syncing"),
    Signature("crash", "linux-bug", r"kernel BUG at "),
    Signature("crash", "linux-soft-lockup", r"BUG: soft lockup"),
    Signature("crash", "linux-hard-lockup", r"Watchdog detected hard LOCKUP"),
    Signature(
        "crash",
        "linux-oops",
        r"\bOops:|BUG: unable to handle|BUG: kernel NULL pointer|general protection fault[,:].*\[#\d+\]",
    ),
    Signature("crash", "linux-hung-task", r"INFO: task .* blocked for more than \d+ seconds"),
    Signature("crash", "linux-rcu-stall", r"INFO: rcu\w* (?:self-)?detected (?:expedited )?stall"),
    # Marked, and the test goes on
    Signature("warning", "iommu-fault", _IOMMU_FAULT),  # Linux says so
    Signature("warning", "xen-warn", r"Xen WARN at "),
    Signature(  # common/domain.c: the guest's fault, the host is fine
        "warning",
        "guest-crash",
        r"Domain \d+ \(vcpu#\d+\) crashed on cpu|Domain \d+ reported crashed by domain",
    ),
    Signature("warning", "domain-crash", r"domain_crash(?:_sync)? called from"),  # sched.h, entry.S
    Signature("warning", "guest-watchdog", r"Watchdog timer fired for domain"),
    Signature("warning", "pod-exhausted", r"out of PoD memory!"),
    Signature("warning", "cpu-lost", r"Error bringing CPU|Non-responding CPUs"),
    Signature("warning", "iommu-ats", r"ATS device .* flush failed"),
    Signature("warning", "lines-lost", r"printk: \d+ messages suppressed"),
    Signature("warning", "linux-warning", r"WARNING: CPU: "),
    Signature("warning", "oom-killer", r"Out of memory: Kill|invoked oom-killer"),
    Signature("warning", "ext4-error", r"EXT4-fs error"),
    Signature("warning", "io-error", r"I/O error, dev|Buffer I/O error"),
    # Milestones
    Signature("milestone", "press-any-key", r"[Pp]ress any key"),
    Signature("milestone", "grub-menu", r"GNU GRUB"),
    Signature("milestone", "xen-banner", r"\(XEN\).* Xen version \d"),  # Linux says "Xen version: 4.17"
    Signature("milestone", "xen-cmdline", r"\(XEN\).* Command line: "),
    Signature("milestone", "iommu-enabled", r"I/O virtualisation enabled"),
    Signature("milestone", "dom0-building", r"\*\*\* Building a PVH? Dom0 \*\*\*"),
    Signature("milestone", "dom0-linux", r"Linux version \d"),
    Signature("milestone", "dom0-up", r"xenlab: dom0 is up|(?<!Last )\blogin:"),
    Signature("milestone", "s3-prepare", r"Preparing system for ACPI S3 state"),  # arch/x86/acpi/power.c
    Signature("milestone", "s3-enter", r"Entering ACPI S3 state"),
    Signature("milestone", "s3-finish", r"Finishing wakeup from ACPI S3 state"),
)

# In the order in which a boot, and then a sleep, passes them.
MILESTONES = tuple(signature.name for signature in SIGNATURES if signature.kind == "milestone")

# Words of which a line must have one to match any signature at all: nearly all lines have none.
_WORDS = (
    *("Panic on CPU", "FATAL ", "y fatal page fault", "PROTECTION FAULT", "DOUBLE FAULT", "Xen BUG", "Assertion '"),
    *("Watchdog ", "achine ", "MCE: Fatal", "HARDWARE ERROR", "Hardware Dom0", "crashed ", "Request device"),
    *("IO_PAGE_FAULT", "Kernel panic", "kernel BUG", "BUG: ", "Oops:", "[#", "INFO: ", "Xen WARN", "domain_crash"),
    *("PoD memory", "ing CPU", "flush failed", "printk: ", "WARNING: CPU", "Out of memory", "oom-killer"),
    *("EXT4-fs error", "I/O error", "ress any key", "GNU GRUB", "Xen version ", "Command line: "),
    *("I/O virtualisation", "Building a PV", "Linux version ", "xenlab: dom0 is up", "login:", "ACPI S3 state"),
)
# What consoles print, the rarest first; what is not here is rarer still.
_BY_RARITY = "Z?!%W\"@J+YzQ;*'K/qGLwkFO=U,ByTDhSHVRxAM_-vIPpCgbuXmc])([N.El:fdnotsirae 0123456789"


def _prefilter(words: Sequence[str]) -> str:
    """The words as one pattern that begins with each one's rarest character.

    ``re`` stops at each character with which something could begin: in most lines, at very few of them.
    """
    by_rarest: dict[str, list[str]] = {}
    for word in words:
        at = min(range(len(word)), key=lambda index: _BY_RARITY.find(word[index]))
        rest = f"(?<={re.escape(word[: at + 1])}){re.escape(word[at + 1 :])}"
        by_rarest.setdefault(word[at], []).append(rest)
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rests)})" for first, rests in by_rarest.items())


_may_say = re.compile(_prefilter(_WORDS)).search
_COMPILED = tuple(re.compile(signature.pattern) for signature in SIGNATURES)
# Each alternative of a pattern has one of the words, as it stands; so a word leads to what it may be a part of.
_BY_WORD = tuple(
    (word, tuple(index for index, signature in enumerate(SIGNATURES) if word in signature.pattern)) for word in _WORDS
)

DUMP_BEGINS = "----[ Xen-"  # arch/x86/x86_64/traps.c
_DUMP_LINES = 120  # no dump is longer

# What a guest said: to the end of the line, though it says "(XEN) Panic" there, as a PV shim would. dom0 may
# print through Xen too: (d0) is no guest.
_GUESTS_WORDS = re.compile(r"(?:\(d[1-9]\d*(?:v\d+)?\)|\bxenconsoled(?:\[\d+\])?:)\s.*", re.DOTALL)


def classify(text: str) -> Signature | None:
    """What this line says, the gravest first; None for nearly all lines."""
    if _may_say(text) is None:
        return None
    text = own_words(text)
    for index in sorted({index for word, indices in _BY_WORD if word in text for index in indices}):
        if _COMPILED[index].search(text):
            return SIGNATURES[index]
    return None


def own_words(text: str) -> str:
    """A line without what a guest said in it."""
    return _GUESTS_WORDS.sub("", text) if "(d" in text or "xenconsoled" in text else text


def crash_excerpt(lines: Sequence[HasText], index: int, before: int | None = None, after: int = 80) -> tuple[str, ...]:
    """The text of ``lines[index]``, and then those around it, itself included, in order.

    Without ``before`` it is 8, or what it takes to have Xen's register dump, which comes ahead of a panic.
    """
    if before is None:
        dump = (back for back in range(9, min(index, _DUMP_LINES) + 1) if DUMP_BEGINS in lines[index - back].text)
        before = next(dump, 6) + 2
    context = lines[max(0, index - before) : index + after + 1]
    return (lines[index].text, *(line.text for line in context))
