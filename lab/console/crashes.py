"""What a crash on a console was: read from its dump, and named so that the same crash has the same name.

Formats are those of Xen 3 to 4.23 (the source file stands beside) and of Linux 2.6.16 to 7.x.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab.console import bsd_panic, linux_oops, patterns, xen_dump
from lab.console.frames import Frame, distinct
from lab.console.lines import XEN, after_xen, message, own_words, until_next_writer
from lab.console.naming import normalised, plain_name, without_task
from lab.console.wrapped import unwrapped

__all__ = ("LABEL_LIMIT", "Crash", "Frame", "normalised", "parse", "with_symbols")

FRAMES_THAT_COUNT = 3  # of those that differ; what is below them is how one got there
GUESSES_THAT_COUNT = 1  # of frames that Xen only guesses: the rest may be what is left of earlier calls
LABEL_LIMIT = 200  # characters
_END = re.compile(r"(?:(?:\^M|#015)\s*){1,9}$")  # a carriage return, as cat -v and rsyslog show it
_LINES_LIMIT, _LINE_LIMIT, _MESSAGE_LIMIT = 600, 1000, 300


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash as its console tells it; what is not told is "" or None."""

    kind: str  # a signature's name: xen-assertion
    message: str
    cpu: int | None = None
    where: str = ""  # file:line, or function
    frames: tuple[Frame, ...] = ()  # innermost first
    version: str = ""  # of Xen
    is_debug: bool | None = None
    tainted: str = ""
    beside: str = (
        ""  # what else tells this crash from others: where a dom0 was that Xen ended, or that Xen was in firmware
    )
    guesses: int = GUESSES_THAT_COUNT  # how many guessed frames count

    @property
    def functions(self) -> tuple[str, ...]:
        """Those that the fingerprint is made of."""
        found = list[str]()
        guesses = 0
        for frame in self.frames:
            name = plain_name(frame.function)
            if not name or name in found:
                continue
            guesses += not frame.is_sure
            if guesses <= self.guesses or frame.is_sure:
                found.append(name)
        return tuple(found[:FRAMES_THAT_COUNT])

    @property
    def _said(self) -> str:
        """The message without what varies. Which task met a fault counts only where nothing else tells the place."""
        said = normalised(self.message)
        return without_task(said) if self.functions else said

    @property
    def label(self) -> str:
        """``xen-assertion: Assertion 'x' failed at common/sched/core.c / do_foo from bar from baz``"""
        text = ": ".join(part for part in (self.kind, self._said) if part)
        text = " / ".join(part for part in (text, " from ".join(self.functions), self.beside) if part)
        return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits and the label: without addresses, offsets, numbers, lines. One crash, one name."""
        parts = "\0".join((self.kind, self._said, *self.functions, *([self.beside] if self.beside else [])))
        return f"{hashlib.sha256(parts.encode(errors='replace')).hexdigest()[:10]} {self.label}"

    def text(self) -> str:
        """For readers."""
        facts = {
            "crash": self.kind,
            "message": self.message,
            "where": self.where,
            "cpu": "" if self.cpu is None else str(self.cpu),
            "xen": f"{self.version}{'' if self.is_debug is None else f', debug={self.is_debug}'}".lower(),
            "tainted": self.tainted,
            "fingerprint": self.fingerprint,
        }
        lines = [f"{name + ':':<12} {value}" for name, value in facts.items() if value]
        return "\n".join([*lines, *(["frames:"] if self.frames else []), *(f"  {frame}" for frame in self.frames)])


def parse(signature: str, lines: Sequence[str]) -> Crash:
    """What the signature's first line, ``lines[0]``, and the lines around it say; never raises.

    ``lines`` are as of :func:`lab.console.patterns.crash_excerpt`; or just the dump, from the telling line on.
    """
    raw = [_END.sub("", patterns.meant(own_words(line[:_LINE_LIMIT]))) for line in lines[:_LINES_LIMIT]]
    if not raw:
        return Crash(signature, "")
    at = 0
    if raw[0] in raw[1:]:  # it stands before its context, too
        at = raw.index(raw[0], 1) - 1
        raw = raw[1:]
    raw, at = unwrapped(*_without_beginnings(raw, at))
    found = patterns.find(raw[at], signature)
    said = until_next_writer(found.text) if found else message(raw[at])
    crash = Crash(signature, _short(said), _cpu(said))
    if signature.startswith("linux-"):
        return _linux(crash, raw, at)
    return _bsd(crash, raw, at) if signature == "bsd-panic" else _xen(crash, raw, at)


def of_nmi(lines: Sequence[str]) -> Crash:
    """The dump that Xen makes at an NMI, read as that of a crash; ``lines`` is what the console showed from then on."""
    said = [(index, found.kind) for index, line in enumerate(lines) if (found := patterns.classify(line))]
    at = next((index for index, kind in said if kind == "crash"), said[0][0] if said else 0)
    return parse("xen-fatal-trap", patterns.crash_excerpt([_Line(line) for line in lines], at))


@dataclass(frozen=True, slots=True)
class _Line:
    text: str


def with_symbols(crash: Crash, elf: Path | None) -> Crash:
    """The same, functions found for Xen's addresses that came without; ``elf`` is the build's ``xen-syms``."""
    if elf is None:
        return crash
    from lab.builds.elf import symbolise  # with all that makes builds, which most who read a console do without

    frames = []
    for frame in crash.frames:
        known = None if frame.function or frame.address is None else symbolise(frame.address, elf)
        frames.append(replace(frame, function=known[0], offset=known[1]) if known else frame)
    named = replace(crash, frames=tuple(frames))
    return replace(named, where=crash.where or _where(named))


def _without_beginnings(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """Without lines that are the beginning of the one after: a console that stalls within a line tells it twice."""
    kept = list[str]()
    for index, line in enumerate(lines):
        if index == at:
            at_kept = len(kept)
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if not (line and following.startswith(line)):
            kept.append(line)
    return kept, min(at_kept, len(kept) - 1)


def _short(text: str) -> str:
    return text.strip()[:_MESSAGE_LIMIT]


_CPUS = re.compile(r"Panic on CPU (\d{1,5}):|crashed on cpu#(\d{1,5})|\bCPU#?:?\s*(\d{1,5})\b|\bon cpu[ #](\d{1,5})")


def _cpu(text: str) -> int | None:
    match = _CPUS.search(text)
    return int(next(number for number in match.groups() if number)) if match else None


_FILE = re.compile(r"\b(?:at|from) ([\w./-]{1,200}\.[chS](?::\d+)?)")


def _where(crash: Crash) -> str:
    """The file that the message names, else the innermost function that is known."""
    if match := _FILE.search(crash.message):
        return match[1]
    named = [frame for frame in crash.frames if frame.function and (frame.is_sure or crash.guesses)]
    return named[0].function if named else ""


# -- Xen ---------------------------------------------------------------------------------------------------------

_DUMP_NEVER = (
    *("iommu-fault", "guest-watchdog", "pod-exhausted", "machine-check"),
    *("firmware-exception", "xen-efi-loader", "dom0-gives-up"),
)
_ENDED = re.compile(r"crashed on cpu#|reported crashed by domain|d0v\d+ Triple fault")  # a domain was
_WHO_ENDED_IT = re.compile(  # include/xen/sched.h: domain_crash; x86_64/entry.S; some callers have words of their own
    r"domain_crash(?:_sync)? called from |#NM but vCR0\.TS clear|Attempt to set \S+ activity_state"
)
_UNHANDLED = re.compile(r"d0(?::?v\d+:?)? ([Uu]nhandled\b.*)")  # arch/x86/pv/traps.c: pv_inject_event
_ADDRESS = "Faulting linear address: "
_NO_REASON = "the reason is lost"
_NEAR = 12  # lines between the panic's head and its message, or a domain's end and its cause: others may talk between


def _xen(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    if patterns.PANIC.search(raw[at]):
        return _panic(crash, raw, at)
    if crash.kind in ("dom0-crash", "guest-crash"):
        return _domain(crash, raw, at)
    if crash.kind == "xen-panic":
        return _panics_end(crash, raw, at)
    if crash.kind == "xen-dump":  # lab.console.untold
        return _with_dump(replace(crash, message="registers, and then nothing"), xen_dump.dump_at(raw, at))
    if crash.message.startswith(_ADDRESS):  # arch/x86/traps.c: behind these words, which were lost
        crash = replace(crash, message="FATAL PAGE FAULT")
    before = xen_dump.dump_of_panic(raw, at, None, crash.message) if _is_panics_message(raw, at) else None
    dump = before or xen_dump.dump_after(raw, at)
    if dump is None and crash.cpu is None and (panic := _panic_below(raw, at)):
        crash = replace(crash, cpu=_cpu(panic))
    return _with_dump(crash, None if crash.kind in _DUMP_NEVER else dump)


def _panic(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    said = _panic_message(raw, at)
    grave = patterns.find(f"{XEN} {said}")
    kind = (
        grave.signature.name if grave and grave.signature.kind == "crash" and crash.kind == "xen-panic" else crash.kind
    )
    if kind == "machine-check":  # arch/x86/cpu/mcheck/mce.c: the panic only says "HARDWARE ERROR"
        told = [message(line) for line in raw[max(0, at - 24) : at] if "Fatal machine check:" in line]
        said = told[-1] if told else said
    crash = replace(crash, kind=kind, message=_short(said) or _NO_REASON)
    dump = None if kind in _DUMP_NEVER else xen_dump.dump_of_panic(raw, at, crash.cpu, said)
    return _with_dump(crash, dump)


def _panics_end(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    """A panic of which the head is lost: by its rows of asterisks, and by what it says at its end."""
    near = range(max(0, at - _NEAR), min(len(raw), at + _NEAR))
    rows = [index for index in near if "*" * 40 in raw[index] and set(message(raw[index])) == {"*"}]
    told = [message(raw[index]) for index in range(rows[0], rows[-1])] if rows else []
    said = next((text for text in told if text.strip("*") and not text.startswith("[error_code")), "")
    grave = patterns.find(f"{XEN} {said}")
    kind = grave.signature.name if grave and grave.signature.kind == "crash" else crash.kind
    crash = replace(crash, kind=kind, message=_short(said) or _NO_REASON)
    return _with_dump(crash, xen_dump.dump_of_panic(raw, rows[0] if rows else at, None, said))


def _panic_below(raw: Sequence[str], at: int) -> str:
    """The head of the panic that a telling line without a dump leads to."""
    return next((line for line in raw[at : at + _NEAR] if patterns.PANIC.search(line)), "")


def _is_panics_message(raw: Sequence[str], at: int) -> bool:
    return any(patterns.PANIC.search(line) for line in raw[max(0, at - _NEAR) : at])


def _panic_message(raw: Sequence[str], at: int) -> str:
    """drivers/char/console.c: it begins on the line after. Lines of dom0 may come between."""
    same_line = raw[at][panic.end() :] if (panic := patterns.PANIC.search(raw[at])) else ""
    if said := message(same_line).strip(" *"):  # a newline was lost
        return said
    is_marked = after_xen(raw[at]) >= 0
    told = list[str]()
    for line in raw[at + 1 : at + _NEAR]:
        if after_xen(line) < 0 and is_marked:
            continue
        said = until_next_writer(message(line))
        if said.strip(" *") and not said.startswith(_ADDRESS):
            told.append(said)
        elif said and told:  # the asterisks below
            break
    # Another processor may have said something between.
    grave = (said for said in told if (found := patterns.find(f"{XEN} {said}")) and found.signature.kind == "crash")
    return next(grave, next(iter(told), ""))


def _domain(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    """A domain that Xen ended, or dom0 itself: common/domain.c, then common/shutdown.c."""
    if not _ENDED.search(raw[at]):  # the host's end; dom0's own may have come before
        ends = [index for index in range(at) if _ENDED.search(raw[index])]
        if crash.kind != "dom0-crash" or not ends:
            return crash
        at = ends[-1]
        crash = replace(crash, message=_short(message(raw[at])), cpu=_cpu(raw[at]))
    who = [message(line) for line in raw[max(0, at - _NEAR) : at] if _WHO_ENDED_IT.search(line)]
    message_ = who[-1] if who else re.sub(r"^d\d+v\d+ (?=Triple)", "", crash.message)
    dump = xen_dump.dump_after(raw, at)
    crash = _with_dump(replace(crash, message=_short(message_)), dump if dump and dump.is_guest else None)
    if fault := xen_dump.fault_frame(crash.message):
        crash = replace(crash, frames=distinct([fault, *crash.frames]))
    if crash.kind == "dom0-crash" and not re.search(r"called from \S+\.c", crash.message):
        unhandled = [match[1] for line in raw[max(0, at - 40) : at] if (match := _UNHANDLED.search(line))]
        crash = replace(crash, beside=_dom0_at(crash.frames) or (normalised(unhandled[-1]) if unhandled else ""))
    return crash


def _dom0_at(frames: Sequence[Frame]) -> str:
    """Where dom0's kernel was: a PV dom0 is not relocated, so its build and this address tell the place."""
    for frame in frames:
        if frame.address is not None and not frame.function and not 1 << 32 <= frame.address < 0xFFFF800000000000:
            return f"dom0 at {frame.address:016x}"
    return ""


def _with_dump(crash: Crash, dump: xen_dump.Dump | None) -> Crash:
    if dump is None:
        return replace(crash, where=_where(crash))
    crash = replace(
        crash,
        cpu=dump.cpu if crash.cpu is None else crash.cpu,
        frames=distinct(dump.frames()),
        version=dump.version,
        is_debug=dump.is_debug,
        tainted=dump.tainted,
        beside="outside Xen" if dump.is_outside_xen else "",
        guesses=dump.guesses_that_count(GUESSES_THAT_COUNT),
    )
    return replace(crash, where=_where(crash))


# -- FreeBSD, NetBSD ---------------------------------------------------------------------------------------------


def _bsd(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    frames = bsd_panic.frames(raw[at:]) or bsd_panic.frames(raw[:at])
    cpu = bsd_panic.cpu(raw[at:]) if crash.cpu is None else crash.cpu
    crash = replace(crash, cpu=cpu, frames=distinct(frames))
    return replace(crash, where=_where(crash))


# -- Linux -------------------------------------------------------------------------------------------------------

_LINUX_TAINTED = re.compile(r"Tainted: ([A-Z ]{1,30})")
_LINUX_CPU = re.compile(r"\bCPU:? *(\d{1,5})\b")
_OLD_CPU = re.compile(r"(?:^|[\s>\]])CPU:? +(\d{1,5})\s*$")  # of a kernel that says it on a line of its own


def _linux(crash: Crash, raw: Sequence[str], at: int) -> Crash:
    frames = linux_oops.frames(crash.kind, raw[at:]) or linux_oops.frames(crash.kind, raw[:at])
    told = next((line for line in raw[at : at + 30] if "ainted" in line and _LINUX_CPU.search(line)), "")
    old = (_OLD_CPU.search(line) for line in raw[at : at + 30] if after_xen(line) < 0)
    tainted, cpu = _LINUX_TAINTED.search(told), _LINUX_CPU.search(told) or next(filter(None, old), None)
    crash = replace(
        crash,
        cpu=int(cpu[1]) if crash.cpu is None and cpu else crash.cpu,
        frames=distinct(frames),
        tainted=tainted[1].strip() if tainted else "",
    )
    return replace(crash, where=_where(crash))
