"""Xen's register dumps among the lines of a console: which of several belongs to a crash, and what it says.

Formats are those of xen/arch/x86/traps.c, x86_64/traps.c and arch/arm/traps.c, Xen 3 to 4.23.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.console.frames import Frame, frame
from lab.console.lines import after_xen, message
from lab.console.patterns import DUMP_BEGINS, DUMP_CPU, PANIC

_SOON = 40  # lines; a dump that follows a telling line comes within these, though others talk in between

_PLACE = r"([^\s+]+)(?:\+(0x[0-9a-f]{1,8}|0)/(?:0x)?[0-9a-f]+)?"  # %pS: function+offset/size
_HEADER = re.compile(r"----\[ Xen-(\S+)\s+\S+\s+(?:debug=([yn]))?")  # print_xen_info
_TAINTED = re.compile(r"Tainted: ([A-Z ]{1,30})")
_ADDRESS = r"\[(?:<([0-9a-f]{6,16})>| *)\]"  # copies that took <...> for markup have none
# _show_registers; EIP is that of Xen 3 and 4.0 for 32 bits
_RIP = re.compile(rf"[RE]IP:\s+([0-9a-f]{{4}}):{_ADDRESS}(?:\s+{_PLACE})?")
_PC = re.compile(rf"\bPC: +([0-9a-f]{{8,16}})(?: +{_PLACE})?\s*$")  # arch/arm/traps.c
# show_trace: R is RIP, F found by frame pointers, C by the shadow stack, S a guess from the stack, E an address that
# an exception was told of. Xen before 4.13 has no letter.
# Behind it the name of a livepatch.
_FRAME = re.compile(
    rf"{_ADDRESS}(?:\s+([RFSCE])\b\??)?(?:\s+{_PLACE})?(?:\s+\[[\w.-]{{1,128}}\]|\s+\((?:PC|LR)\))?\s*$"
)
_FAULT_AT = re.compile(r"fault at ([0-9a-f]{6,16}) ([^\s+]+)\+(0x[0-9a-f]{1,8}|0)/(?:0x)?[0-9a-f]+")
_OF_A_DUMP = re.compile(
    r"\*{0,60}$|----\[ Xen-|CPU:\s|[RE]IP:\s|[RE]FLAGS:\s|CONTEXT:|(?:[re]\w\w?|cr\d|[fg]sb|[de]s|gss): |ler: "
    r"|to [0-9a-f]{16} |Xen (?:code around|stack trace from|call trace:|stack overflow)|Guest stack trace"
    r"|Pagetable walk|L\d\[0x|\[<?\w*>?\]|(?:--|<?[0-9a-f]{2}>?)(?: |$)|(?:[0-9a-f]{8}){1,2}(?: |$)|Stack empty"
    r"|\[Fault on access|Non-responding CPUs|CPU\d+\t|CPU\d+ @ |CPU\d+ +d\S+ +[0-9a-f]{4}:|(?:Current|Valid) stack "
    r"|No stack over|Inaccessible|User mode|Fault while"
)
# The dump below such a line is no crash's.
_OTHERS = re.compile(r"Xen WARN at |\*\*\* Dumping (?:CPU|Dom)|crashed on cpu#|Triple fault|pressed -> |host state:")
# Panics that print one before.
_HAS_DUMP = re.compile(r"FATAL |PROTECTION FAULT|Xen BUG at |Assertion '|DOUBLE FAULT|Unexpected Trap: ")
_FLAGS = re.compile(r"RFLAGS: ([0-9a-f]{16})\s+CONTEXT: (\w+)")
_INTERRUPT_FLAG = 1 << 9  # IF of RFLAGS
_XEN_TEXT = range(0xFFFF82C000000000, 0xFFFF830000000000)  # xen/arch/x86/include/asm/config.h


@dataclass(frozen=True, slots=True)
class Dump:
    """One register dump."""

    first: int  # the place of its header within what was read
    lines: tuple[str, ...]
    lead: str  # what Xen said directly before
    cpu: int | None

    @property
    def version(self) -> str:
        match = _HEADER.search(self.lines[0])
        return match[1][:40] if match else ""

    @property
    def is_debug(self) -> bool | None:
        match = _HEADER.search(self.lines[0])
        return match[2] == "y" if match and match[2] else None

    @property
    def tainted(self) -> str:
        match = _TAINTED.search(self.lines[0])
        return match[1].strip() if match else ""

    @property
    def is_guest(self) -> bool:
        """Whether the registers are a guest's, dom0's included."""
        rip = next((match for line in self.lines if (match := _RIP.search(line))), None)
        return bool(rip and rip[1] != "e008") or any(
            "CONTEXT: pv guest" in x or "CONTEXT: hvm" in x or " (Guest " in x for x in self.lines
        )

    def frames(self) -> Iterator[Frame]:
        """RIP's, then those of the trace."""
        is_marked = after_xen(self.lines[0]) >= 0
        for line in self.lines:
            if match := _RIP.search(line):
                yield frame(match[2], match[3], match[4])
            elif match := _PC.search(line):
                yield frame(match[1], match[2], match[3])
            elif match := _FRAME.search(line):
                if (match[1] or match[3]) and (match[2] or not is_marked or after_xen(line) >= 0):
                    yield frame(
                        match[1], match[3], match[4], is_sure=match[2] != "S" if match[2] else bool(self.is_debug)
                    )

    @property
    def is_outside_xen(self) -> bool:
        """Whether Xen was not in its own code: in the firmware, or behind a wild pointer."""
        first = next(self.frames(), None)
        return not self.is_guest and bool(
            first and not first.function and first.address is not None and first.address not in _XEN_TEXT
        )

    def is_cut_short(self, lines: Sequence[str]) -> bool:
        """Whether it is the hypervisor's own, nobody asked for it, and Xen says nothing else in the lines behind it."""
        is_own = any("CONTEXT: hypervisor" in line for line in self.lines) or any(_PC.search(x) for x in self.lines)
        is_asked_for = _OTHERS.search(self.lead)
        return is_own and not self.is_guest and not is_asked_for and _only_dumps(lines[self.first :])

    def guesses_that_count(self, usual: int) -> int:
        """How many guessed frames tell something.

        Where RIP is outside Xen, in the firmware, the guesses are leftovers on the stack. After a jump through a wild
        pointer the first is the caller, by the comment in show_trace.
        """
        if not self.is_outside_xen:
            return 0 if self.is_guest else usual
        rip, *others = self.frames()
        is_firmware = 0x10000 <= (rip.address or 0) < 1 << 47  # mapped where it is in memory
        below = next((one for one in others if one.address != rip.address), None)
        return int(not is_firmware and below is not None and bool(below.function))


def has_interrupts_off(lines: Sequence[str]) -> bool:
    """Whether a dump among these lines shows the hypervisor itself with interrupts off."""
    found = (match for line in lines if (match := _FLAGS.search(line)))
    return any(match[2] == "hypervisor" and not int(match[1], 16) & _INTERRUPT_FLAG for match in found)


def dumps(lines: Sequence[str]) -> list[Dump]:
    """All dumps, in order. Of two headers in a row, one that another interrupted, the second counts."""
    heads = [index for index, line in enumerate(lines) if DUMP_BEGINS in line]
    found = []
    lead: str | None = None
    for head, following in itertools.pairwise([*heads, len(lines)]):
        lead = _lead(lines, head) if lead is None else lead
        end = next((at for at in range(head + 1, following) if PANIC.search(lines[at])), following)
        body = tuple(lines[head:end])
        if end == following < len(lines) and not any(_RIP.search(line) or _PC.search(line) for line in body):
            continue
        cpu = next((int(match[1]) for line in body[1:6] if (match := DUMP_CPU.search(line))), None)
        found.append(Dump(head, body, lead, cpu))
        lead = None
    return found


def dump_of_panic(lines: Sequence[str], at: int, cpu: int | None, said: str) -> Dump | None:
    """The dump that ``Panic on CPU`` at ``lines[at]`` belongs to, if it has one. ``said`` is the panic's message.

    A plain panic prints none; a dump directly before it is its own, unless a warning or a key printed it.
    """
    is_warnings = "UBSAN failure" in said  # common/ubsan/ubsan.c: panics after its WARN
    before = [
        dump
        for dump in dumps(lines[:at])
        if not dump.is_guest
        and (cpu is None or dump.cpu in (None, cpu))
        and (is_warnings or not _OTHERS.search(dump.lead))
    ]
    if not before:
        return None
    chosen = before.pop()
    if not (_HAS_DUMP.search(said) or _only_dumps(lines[chosen.first : at], is_warnings=is_warnings)):
        return None
    while before and _only_dumps(lines[before[-1].first : chosen.first]):  # it crashed while it told of its crash
        chosen = before.pop()
    return chosen


def dump_at(lines: Sequence[str], at: int) -> Dump | None:
    """The dump that begins at ``lines[at]``."""
    return next((dump for dump in dumps(lines) if dump.first == at), None)


def dump_after(lines: Sequence[str], at: int) -> Dump | None:
    """The dump that follows a telling line; or, where it was lost, the one before it."""
    panic = next((index for index in range(at + 1, len(lines)) if PANIC.search(lines[index])), len(lines))
    following = [dump for dump in dumps(lines) if at < dump.first < min(panic, at + _SOON)]
    return following[0] if following else dump_of_panic(lines, at, None, "FATAL ")


def fault_frame(text: str) -> Frame | None:
    """Where Xen's entry code faulted, as ``domain_crash_sync called from entry.S: fault at ...`` says it."""
    match = _FAULT_AT.search(text)
    return frame(match[1], match[2], match[3]) if match else None


def _lead(lines: Sequence[str], head: int) -> str:
    for line in reversed(lines[max(0, head - 8) : head]):
        if (after_xen(line) >= 0 or after_xen(lines[head]) < 0) and (said := message(line).strip(" =")):
            return said
    return ""


def _only_dumps(lines: Sequence[str], *, is_warnings: bool = False) -> bool:
    """Whether Xen says nothing but dumps in these lines; others may talk in between."""
    said = [message(line) for line in lines if after_xen(line) >= 0]
    return all(_OF_A_DUMP.match(text) or (is_warnings and not text.strip("=")) for text in said)
