"""What the lines of a console mean: crashes, warnings and milestones of Xen and of its dom0.

A new pattern is one row of :data:`SIGNATURES`, and nothing else. Texts are those of Xen 3 to 4.23 and of
Linux 2.6.16 to 7.x; the source file stands beside those of Xen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lab.console.lines import Speaker, clean, message, own_words, speaker

Kind = Literal["crash", "warning", "milestone"]

_PLACEHOLDERS = {  # all bounded: a hostile line must not make a search slow
    "%d": r"-?\d{1,20}",
    "%x": r"[0-9a-fA-F]{1,32}",
    "%w": r"\S{1,120}?",
    "%s": r".{1,160}?",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing that a console line can say.

    ``formats`` are the texts that say it, as in a printk: ``%d`` is a number, ``%x`` a hexadecimal one, ``%s`` any
    text, ``%w`` any text without blanks. A crash's message begins where its format does. ``by`` is whose words
    they must be; None: anybody's. A line that has one of ``unless`` does not say it.
    """

    kind: Kind
    name: str
    by: Speaker | None
    formats: tuple[str, ...]
    unless: tuple[str, ...] = ()
    is_marked: bool = False  # Linux has the same words: without Xen's mark they are not Xen's

    @property
    def pattern(self) -> str:
        """The regular expression of its formats."""
        return "|".join(_regex(text) for text in self.formats)


@dataclass(frozen=True, slots=True)
class Found:
    """A signature, and where in the line its text begins."""

    signature: Signature
    text: str  # the line from there on


class HasText(Protocol):
    """A console line, as far as it matters here. One that has a ``kind`` "partial" is a line's beginning."""

    @property
    def text(self) -> str: ...


# The first that matches is the answer, so crashes stand before warnings, and these before milestones.
SIGNATURES = (
    # Xen
    Signature("crash", "xen-panic", "xen", ("Panic on CPU %d:",)),  # drivers/char/console.c
    Signature(  # arch/x86/traps.c, arch/arm/traps.c
        "crash",
        "xen-fatal-trap",
        "xen",
        ("FATAL TRAP: ve", "FATAL TRAP: type %d", "CPU%d: Unexpected Trap: "),
    ),
    Signature("crash", "xen-page-fault", "xen", ("FATAL PAGE FAULT", "Early fatal page fault")),
    Signature("crash", "xen-protection-fault", "xen", ("GENERAL PROTECTION FAULT", "CONTROL-FLOW PROTECTION FAULT")),
    Signature(
        "crash",
        "xen-double-fault",
        "xen",
        ("*** DOUBLE FAULT ***", "DOUBLE FAULT -- system shutdown", "*** DOUBLE FAULT: Xen-"),
    ),
    Signature("crash", "xen-bug", "xen", ("Xen BUG at ",)),  # common/bug.c
    Signature(  # debug builds; the second is that of Xen before 4.4
        "crash",
        "xen-assertion",
        "xen",
        ("Assertion '%s' failed at ", "Assertion '%s' failed, line %d, file "),
        unless=(", function ",),
    ),
    Signature("crash", "xen-watchdog", "xen", ("Watchdog timer detects that CPU%d is stuck",)),  # arch/x86/nmi.c
    Signature(  # arch/x86/cpu/mcheck/mce.c
        "crash",
        "machine-check",
        "xen",
        ("Fatal machine check: ", "MCE: Fatal error happened", "HARDWARE ERROR", "CPU%d: Machine Check Exception:"),
        unless=("HARDWARE ERROR.", "HARDWARE ERROR "),  # mcelog's, others'
    ),
    Signature(  # common/shutdown.c; "Domain 0" is what Xen before 4.4 says
        "crash",
        "dom0-watchdog",
        "xen",
        ("Hardware Dom%d shutdown: watchdog", "Domain 0 shutdown: watchdog"),
    ),
    Signature(
        "crash",
        "dom0-crash",
        "xen",
        (
            *("Hardware Dom%d crashed", "Hardware Dom%d shutdown (unknown reason", "did unsupported soft reset"),
            *("Domain 0 crashed: ", "Domain 0 shutdown (unknown reason"),
            *("Domain 0 (vcpu#%d) crashed on cpu", "Domain 0 reported crashed by domain"),  # common/domain.c
            "d0v%d Triple fault - invoking HVM shutdown",  # arch/x86/hvm/hvm.c
        ),
    ),
    Signature(
        "crash",
        "iommu-fault",
        "xen",
        (
            *("[VT-D]DMAR:[%s] Request device", "[VT-D]INTR-REMAP: Request device"),  # drivers/passthrough/vtd/iommu.c
            *("[VT-D]UNKNOWN: Request device", "DMAR:[%s] Request device", "AMD-Vi: IO_PAGE_FAULT"),
        ),
        is_marked=True,
    ),
    # Firmware: xen.efi, or the boot loader before it, died in it (edk2, ArchExceptionHandler.c)
    Signature("crash", "firmware-exception", "linux", ("!!!! X64 Exception Type - ", "!!!! IA32 Exception Type - ")),
    # Linux in dom0
    Signature(  # arch/x86/xen/setup.c: and then it gives up, before it can say more
        "crash",
        "linux-panic",
        "linux",
        ("Kernel panic - not syncing", "Kernel panic: ", "hypervisor allocated %s conflicts with E820"),
    ),
    Signature(
        "crash",
        "linux-bug",
        "linux",
        (
            *("kernel BUG at %w", "BUG: Bad page %w in process", "BUG: scheduling while atomic: ", "BUG: KASAN: "),
            *("BUG: KFENCE: ", "BUG: stack guard page was hit", "BUG: %w stack guard page was hit"),
            *("BUG: spinlock %s on CPU#%d, ", "BUG: rwlock %s on CPU#%d, ", "BUG: KMSAN: "),
            *("BUG %w (Not tainted): ", "BUG %w (Tainted: %s): "),  # mm/slub.c
            *("Kernel BUG at %w:%d", "Bad page state in process '"),  # Linux 2.6.18
        ),
    ),
    Signature(  # the second of each is that of Linux 2.6
        "crash",
        "linux-soft-lockup",
        "linux",
        ("BUG: soft lockup - CPU#%d stuck for", "BUG: soft lockup detected on CPU#%d"),
    ),
    Signature(
        "crash",
        "linux-hard-lockup",
        "linux",
        ("Watchdog detected hard LOCKUP on cpu", "NMI Watchdog detected LOCKUP on CPU"),
    ),
    Signature(
        "crash",
        "linux-oops",
        "linux",
        (
            *("Oops: %s [#%d]", "BUG: unable to handle ", "BUG: kernel NULL pointer", "PANIC: double fault"),
            *("PANIC: early exception %w IP", "general protection fault, %w for "),
            *("general protection fault%s [#%d]", "invalid opcode: %x [#%d]", "divide error: %x [#%d]"),
            *("double fault: %x [#%d]", "stack segment: %x [#%d]", "invalid TSS: %x [#%d]", "int3: %x [#%d]"),
            *("segment not present: %x [#%d]", "alignment check: %x [#%d]", "simd exception: %x [#%d]"),
            *("bounds: %x [#%d]", "overflow: %x [#%d]", "iret exception: %x [#%d]", "fpu exception: %x [#%d]"),
            *("Bad pagetable: %x [#%d]", "kernel stack overflow (%w): %x [#%d]"),
            "Unable to handle kernel ",  # arch/arm64/mm/fault.c; Linux 2.6.18, as are the next
            *("Oops: %x [%d]", "general protection fault: %x [%d]", "invalid opcode: %x [%d]", "divide error: %x [%d]"),
            *("stack segment: %x [%d]", "double fault: %x [%d]"),
        ),
    ),
    Signature(
        "crash",
        "linux-hung-task",
        "linux",
        ("INFO: task %s blocked for more than %d", "INFO: task %s blocked in I/O wait for more than %d"),
    ),
    Signature(
        "crash",
        "linux-rcu-stall",
        "linux",
        ("INFO: rcu%w self-detected stall", "INFO: rcu%w detected stall", "INFO: rcu%w detected expedited stall"),
    ),
    Signature(  # fatal, or on the way to it: MCG_STATUS, the number, is 0 for what a poll or the last boot left
        "crash",
        "machine-check",
        "linux",
        ("CPU %d: Machine Check Exception: ",),
        unless=(" 0 Bank ",),
    ),
    # Marked, and the test goes on
    Signature(  # Linux's
        "warning",
        "iommu-fault",
        None,
        ("DMAR: [%s] Request device", "INTR-REMAP: Request device", "AMD-Vi: Event logged [", "AMD-Vi: IO_PAGE_FAULT"),
    ),
    Signature(  # drivers/passthrough/amd/iommu_init.c: those that name no fault of a device
        "warning",
        "iommu-fault",
        "xen",
        (
            *("ILLEGAL_DEV_TABLE_ENTRY %x %x", "DEV_TABLE_HW_ERROR %x %x", "PAGE_TABLE_HW_ERROR %x %x"),
            *("ILLEGAL_COMMAND_ERROR %x %x", "COMMAND_HW_ERROR %x %x", "IOTLB_INV_TIMEOUT %x %x"),
            *("INVALID_DEV_REQUEST %x %x", "event %x %x %x %x"),
        ),
    ),
    Signature("warning", "xen-warn", "xen", ("Xen WARN at ", "UBSAN: Undefined behaviour in ")),  # common/ubsan/ubsan.c
    Signature(  # common/domain.c: the guest's fault, the host is fine
        "warning",
        "guest-crash",
        "xen",
        (
            *("Domain %d (vcpu#%d) crashed on cpu", "Domain %d reported crashed by domain"),
            "Triple fault - invoking HVM shutdown",
            *("VIRIDIAN CRASH: ", "VIRIDIAN GUEST_CRASH: "),  # arch/x86/hvm/viridian: what Windows says of its own
        ),
    ),
    Signature("warning", "domain-crash", "xen", ("domain_crash called from", "domain_crash_sync called from")),
    Signature("warning", "guest-watchdog", "xen", ("Watchdog timer fired for domain",)),
    Signature("warning", "pod-exhausted", "xen", ("out of PoD memory!",)),
    Signature(
        "warning",
        "cpu-lost",
        None,
        (
            *("Error bringing CPU%d up", "Error taking CPU%d down", "Failed to bring up CPU"),  # common/cpu.c
            *("Non-responding CPUs", "stuck while starting up"),  # arch/x86/traps.c, smpboot.c
        ),
    ),
    Signature("warning", "cpu-lost", "xen", ("Stuck ??", "Not responding.")),  # arch/x86/smpboot.c of 4.8 to 4.17
    Signature("warning", "iommu-ats", "xen", ("ATS device %w flush failed",)),
    Signature(  # drivers/passthrough/vtd/qinval.c, amd/iommu_cmd.c
        "warning",
        "iommu-slow",
        "xen",
        ("wait descriptor taking too long", "completion wait taking too long"),
    ),
    Signature("warning", "lines-lost", None, ("printk: %d messages suppressed",)),
    Signature(
        "warning",
        "linux-warning",
        "linux",
        (
            *("WARNING: CPU: ", "WARNING: %w at %w, CPU#%d", "WARNING: at %w, CPU#%d", "WARNING: [%s at %w, CPU#%d"),
            *("UBSAN: %w in ", "BUG: sleeping function called from invalid", "BUG: using %w in preemptible"),
            *("BUG: Bad rss-counter state", "BUG: workqueue leaked", "WARNING: suspicious RCU usage"),
            *("BUG: KCSAN: ", "BUG: Invalid wait context", "NETDEV WATCHDOG: "),
            *("WARNING: at %w:%d ", "BUG: warning at %w:%d"),  # Linux 3, 2.6.18
            *("WARNING: possible circular locking", "WARNING: possible recursive locking"),  # lockdep
            *("WARNING: possible irq lock inversion", "WARNING: inconsistent lock state"),
            *("WARNING: bad unlock balance", "WARNING: held lock freed", "[ BUG: bad unlock", "[ BUG: held lock"),
            *(
                "[ INFO: possible %w lock",
                "[ INFO: inconsistent lock state",
                "[ INFO: suspicious RCU usage",
            ),  # before 4.11
            "irq %d: nobody cared",
        ),
    ),
    Signature("warning", "linux-workqueue-lockup", "linux", ("BUG: workqueue lockup - pool",)),
    Signature("warning", "oom-killer", "linux", ("Out of memory: Kill", "invoked oom-killer")),
    Signature("warning", "ext4-error", "linux", ("EXT4-fs error",)),
    Signature("warning", "io-error", "linux", ("I/O error, dev", "Buffer I/O error")),
    # Milestones
    Signature("milestone", "press-any-key", None, ("Press any key", "press any key")),
    Signature("milestone", "grub-menu", None, ("GNU GRUB",)),
    Signature("milestone", "xen-banner", "xen", (" Xen version %d",)),  # Linux says "Xen version: 4.17"
    Signature("milestone", "xen-cmdline", "xen", (" Command line: ",)),
    Signature("milestone", "iommu-enabled", None, ("I/O virtualisation enabled",)),
    Signature("milestone", "dom0-building", None, ("*** Building a PV Dom0 ***", "*** Building a PVH Dom0 ***")),
    Signature("milestone", "dom0-linux", None, ("Linux version %d",)),
    Signature("milestone", "dom0-up", None, ("xenlab: dom0 is up", "login:"), unless=("Last login:",)),
    Signature("milestone", "s3-prepare", None, ("Preparing system for ACPI S3 state",)),  # arch/x86/acpi/power.c
    Signature("milestone", "s3-enter", None, ("Entering ACPI S3 state",)),
    Signature("milestone", "s3-finish", None, ("Finishing wakeup from ACPI S3 state",)),
)

# In the order in which a boot, and then a sleep, passes them.
MILESTONES = tuple(signature.name for signature in SIGNATURES if signature.kind == "milestone")


# -- how a line is searched --------------------------------------------------------------------------------------


def _pieces(text: str) -> list[str]:
    return re.split(r"(%[dxws])", text)


def _regex(text: str) -> str:
    """A format as a regular expression."""
    return "".join(_PLACEHOLDERS.get(piece) or re.escape(piece) for piece in _pieces(text))


# How rare a character is on consoles, the rarest first; one that is not here is rarer still. It decides speed only.
_BY_RARITY = "Z?!%W\"@J+YzQ;*'K/qGLwkFO=U,ByTDhSHVRxAM_-vIPpCgbuXmc])([N.El:fdnotsirae 0123456789"
_NEW_LETTER = 4  # how much dearer one more letter is than one at which a line is looked at anyway


def _words(formats: Sequence[str]) -> dict[str, tuple[str, int]]:
    """For each format a part that a line has as it stands, and which of its letters is looked for.

    Letters that are rare on consoles are chosen, and as few of them as possible.
    """

    def places(text: str) -> list[tuple[str, int]]:
        parts = [part for part in _pieces(text)[::2] if len(part) > 4 or "#" in part]
        return [(part, at) for part in parts for at in range(len(part))]

    def cost(place: tuple[str, int]) -> int:
        letter = place[0][place[1]]
        return (_BY_RARITY.find(letter) + 2) * (1 if letter in letters else _NEW_LETTER)

    letters = set[str]()
    chosen = dict[str, tuple[str, int]]()
    for text in sorted(formats, key=lambda text: min(map(cost, places(text))), reverse=True):  # with least choice first
        chosen[text] = min(places(text), key=cost)
        letters.add(chosen[text][0][chosen[text][1]])
    return chosen


def _prefilter(words: Iterable[tuple[str, int]]) -> str:
    """One pattern that finds the letters of the words where they stand in their words.

    ``re`` stops at these letters only, in most lines at few. There the next letter rules out nearly all words, before
    ``re`` begins with any; what stands before the letter is looked at last.
    """
    by_letter: dict[str, list[str]] = {}
    for word, at in words:
        by_letter.setdefault(word[at], []).append(f"{re.escape(word[at + 1 :])}(?<={re.escape(word)})")
    return "|".join(f"{re.escape(letter)}(?:{'|'.join(rests)})" for letter, rests in by_letter.items())


_CHOSEN = _words([text for signature in SIGNATURES for text in signature.formats])
_next_place = re.compile(_prefilter(dict.fromkeys(_CHOSEN.values()))).search
_COMPILED = tuple(re.compile(signature.pattern) for signature in SIGNATURES)
_ALL = [  # a word, the letter's place in it, the signatures
    (*place, tuple(i for i, one in enumerate(SIGNATURES) if place in (_CHOSEN[text] for text in one.formats)))
    for place in dict.fromkeys(_CHOSEN.values())
]
# By the letter and the one behind it. A word that ends with its letter stands with all of that letter, and alone.
_BY_LETTERS = {
    letters: [one for one in _ALL if letters.startswith(one[0][one[1] : one[1] + 2])]
    for letters in (word[at : at + 2] for word, at, _ in _ALL)
}
_TRIES = 8  # how many places of one line are judged for a signature
_GUEST_SPEAKS = re.compile(r"\bd[1-9]\d{0,4}v\d{1,4}:? ")  # "(XEN) d5v0 ...": what a guest writes to Xen's debug port
_GUEST_REACH = 80  # characters


def classify(text: str) -> Signature | None:
    """What this line says, the gravest first; None for nearly all lines."""
    place = _next_place(text)
    if place is None:
        return None
    said = clean(own_words(text))
    first = _first(said, place if said is text else _next_place(said), "")
    return first[1] if first else None


def may_say(text: str) -> bool:
    """Whether :func:`classify` may find something in a line of this text: one question for very many lines."""
    return _next_place(text) is not None


def find(text: str, name: str = "") -> Found | None:
    """As :func:`classify`, and where the message begins; with a ``name`` only that signature is looked for."""
    said = clean(own_words(text))
    first = _first(said, _next_place(said), name)
    return Found(first[1], said[first[0] :]) if first else None


def _first(text: str, place: re.Match[str] | None, name: str) -> tuple[int, Signature] | None:
    """Where in the line a message begins, and its signature. ``place`` is the first of any word.

    Of several crashes on one line the first that is told counts: what follows from it is told behind.
    """
    first: tuple[int, Signature] | None = None
    for index in sorted(_candidates(text, place)):
        signature = SIGNATURES[index]
        if (first and signature.kind != "crash") or (name and signature.name != name):
            continue
        start = _start(index, text)
        if start >= 0 and (first is None or start < first[0]):
            first = (start, signature)
            if signature.kind != "crash":
                break
    return first


def _start(index: int, text: str) -> int:
    """Where in the line a signature's text begins; -1: it does not say it."""
    signature = SIGNATURES[index]
    if signature.unless and any(other in text for other in signature.unless):
        return -1
    search, at = _COMPILED[index].search, 0
    for _ in range(_TRIES):
        match = search(text, at)
        if match is None:
            break
        if signature.by is None or _is_said_by(signature, text[: match.start()]):
            return match.start()
        at = match.end()
    return -1


def _candidates(text: str, place: re.Match[str] | None) -> set[int]:
    """Signatures of which a word stands in the text, at ``place`` or behind it."""
    found: set[int] = set()  # set[int]() takes three times as long
    while place:
        start = place.start()
        for word, at, signatures in _BY_LETTERS.get(text[start : start + 2]) or _BY_LETTERS[text[start]]:
            if text.startswith(word, start - at):
                found.update(signatures)
        place = _next_place(text, start + 1)
    return found


def _is_said_by(signature: Signature, before: str) -> bool:
    """Whether it is the signature's speaker who says what follows ``before``."""
    said = speaker(before)
    if signature.by == "linux":  # dom0's words may come through Xen without a mark; a guest's have its number
        return said != "other" and not (said == "xen" and _GUEST_SPEAKS.search(before[-_GUEST_REACH:]))
    # A console that was copied without Xen's mark has nothing else there.
    is_bare = said == "linux" and not before.isspace() and not message(before)
    return said == "xen" or (is_bare and signature.kind == "crash" and not signature.is_marked)


# -- what stands around a line -----------------------------------------------------------------------------------

DUMP_BEGINS = "----[ Xen-"  # arch/x86/traps.c: print_xen_info
PANIC = re.compile(r"Panic on CPU (\d{1,5}):")
DUMP_CPU = re.compile(r"\bCPU:\s+(\d{1,5})\s*$")  # the line after
_BEFORE, _DUMP_LINES = 16, 120  # no dump of one processor is longer
_FAR = 20_000  # lines; before a panic each other processor may have told where it is, or dumped


@dataclass(frozen=True, slots=True)
class _LeftOut:
    text: str


def crash_excerpt(lines: Sequence[HasText], index: int, before: int | None = None, after: int = 80) -> tuple[str, ...]:
    """The text of ``lines[index]``, and then those around it, itself included, in order.

    Where ``lines[index]`` is a partial record, the whole line is taken once it is there. Without ``before`` it is
    16, or what it takes to have Xen's register dump, which comes ahead of a panic: of one that is far ahead its
    lines, and a note of how many are left out.
    """
    index = _whole(lines, index)
    context: list[HasText] = list(lines[index : index + after + 1])
    if before is not None:
        context[:0] = lines[max(0, index - before) : index]
    else:
        near = max(0, index - _BEFORE)
        head = _dump_before(lines, index)
        if head is not None and index - head > _DUMP_LINES + _BEFORE:
            left_out = _LeftOut(f"--- {near - head - _DUMP_LINES} lines are left out here ---")
            context[:0] = [*lines[max(0, head - 4) : head + _DUMP_LINES], left_out, *lines[near:index]]
        else:
            context[:0] = lines[near if head is None else max(0, min(near, head - 4)) : index]
    told = [line for at, line in enumerate(context) if context[_whole(context, at)] is line]
    return (lines[index].text, *(line.text for line in told))


def _whole(lines: Sequence[HasText], index: int) -> int:
    """The record that has all of a line of which ``lines[index]`` is the beginning: a partial record, until then."""
    for at in range(index, min(index + 8, len(lines))):
        if getattr(lines[at], "kind", "line") == "line" and lines[at].text.startswith(lines[index].text):
            return at
    return index


def _dump_before(lines: Sequence[HasText], index: int) -> int | None:
    """Where the register dump of a panic begins: that of its own processor, and of several in a row the first."""
    panic = PANIC.search(lines[index].text)
    reach = max(0, index - (_FAR if panic else _DUMP_LINES))
    found: int | None = None
    for at in range(index - 1, reach - 1, -1):
        if found is not None and found - at > _DUMP_LINES:
            break
        if DUMP_BEGINS not in lines[at].text or own_words(lines[at].text) != lines[at].text:
            continue
        said = next((match for line in lines[at + 1 : at + 5] if (match := DUMP_CPU.search(line.text))), None)
        if panic is None:
            return at
        if said is None or said[1] == panic[1]:
            found = at
    return found
