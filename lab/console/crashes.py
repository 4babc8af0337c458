"""What a crash on a console was: read from its dump, and named so that the same crash has the same name.

Formats are those of Xen 4.17 to 4.20 on x86 (the source file stands beside) and of Linux 5 to 6.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab.builds.elf import symbolise
from lab.console.patterns import DUMP_BEGINS, classify, own_words

FRAMES_THAT_COUNT = 3  # of those that differ; what is below them is how one got there
GUESSES_THAT_COUNT = 1  # of frames that Xen only guesses: the rest may be what is left of earlier calls
LABEL_LIMIT = 200  # characters
_LINES_LIMIT, _LINE_LIMIT, _MESSAGE_LIMIT, _FRAMES_LIMIT = 600, 1000, 300, 64
_NAME_LIMIT = 100  # characters of a function


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in code. ``function`` is "" where only the address is known; ``is_sure`` is not what was guessed."""

    function: str
    offset: int | None = None
    address: int | None = None
    is_sure: bool = True

    def __str__(self) -> str:
        text = self.function or "?"
        text += f"+{self.offset:#x}" if self.offset is not None else ""
        text += f"  [<{self.address:016x}>]" if self.address is not None else ""
        return text if self.is_sure else f"{text}  (guessed)"


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

    @property
    def functions(self) -> tuple[str, ...]:
        """Those that the fingerprint is made of."""
        found = list[str]()
        guesses = 0
        for frame in self.frames:
            name = _plain_name(frame.function)
            if not name or name in found:
                continue
            guesses += not frame.is_sure
            if guesses <= GUESSES_THAT_COUNT or frame.is_sure:
                found.append(name)
        return tuple(found[:FRAMES_THAT_COUNT])

    @property
    def label(self) -> str:
        """``xen-assertion: Assertion 'x' failed at common/sched/core.c / do_foo < bar < baz``"""
        text = ": ".join(part for part in (self.kind, normalised(self.message)) if part)
        text = " / ".join(part for part in (text, " < ".join(self.functions)) if part)
        return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits and the label: without addresses, offsets, numbers, lines. One crash, one name."""
        parts = "\0".join((self.kind, normalised(self.message), *self.functions))
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
    texts = [_words(line) for line in lines[:_LINES_LIMIT]]
    raw = list(lines[:_LINES_LIMIT])
    if not texts:
        return Crash(signature, "")
    at = 0
    if raw[0] in raw[1:]:  # it stands before its context, too
        at = raw.index(raw[0], 1) - 1
        texts, raw = texts[1:], raw[1:]
    crash = Crash(signature, _short(texts[at]), _cpu(texts[at]))
    if signature.startswith("linux-"):
        return _linux(crash, texts, at)
    return _xen(crash, texts, raw, at)


def with_symbols(crash: Crash, elf: Path | None) -> Crash:
    """The same, functions found for Xen's addresses that came without; ``elf`` is the build's ``xen-syms``."""
    if elf is None:
        return crash
    frames = []
    for frame in crash.frames:
        known = None if frame.function or frame.address is None else symbolise(frame.address, elf)
        frames.append(replace(frame, function=known[0], offset=known[1]) if known else frame)
    where = crash.where or next((frame.function for frame in frames if frame.function), "")
    return replace(crash, frames=tuple(frames), where=where)


def normalised(message: str) -> str:
    """A message without what differs from one time to the next."""
    for pattern, instead in _VARIABLE:
        message = pattern.sub(instead, message)
    return message.strip()


_VARIABLE = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"[\w./-]+#(?=[A-Za-z_])", ""),  # file.c#function: how much of the path is told depends on the build
        (r"\+(?:0x[0-9a-f]+|0)/(?:0x)?[0-9a-f]+", ""),
        (r"(\.[chS]):\d+", r"\1"),
        (r"\b(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b", "#"),  # PCI
        (r"\b(?:0x)?[0-9a-fA-F]{8,}\b", "#"),
        (r"\b(CPU|cpu|dom|d|v)\d+(?:v\d+)?\b", r"\1#"),
        (r"#?\b\d\w*", "#"),
        (r"\s+", " "),
    )
)

# -- lines -------------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
_PREFIX = re.compile(r"\s*(?:\((?:XEN|d0(?:v\d+)?)\)\s?)?(?:\[ *[0-9][0-9.: -]*\]\s?)?(?:\[ *[TC]\d+\]\s?)?")


def _words(line: str) -> str:
    """A line without prefix, time stamp, control characters and guests' words."""
    text = _CONTROL.sub("", own_words(line[:_LINE_LIMIT]))
    return text[match.end() :] if (match := _PREFIX.match(text)) else text


def _short(text: str) -> str:
    return text.strip()[:_MESSAGE_LIMIT]


_CPUS = re.compile(r"Panic on CPU (\d{1,5}):|crashed on cpu#(\d{1,5})|\bCPU#?:?\s*(\d{1,5})\b|\bon cpu#(\d{1,5})")


def _cpu(text: str) -> int | None:
    match = _CPUS.search(text)
    return int(next(number for number in match.groups() if number)) if match else None


_FILE = re.compile(r"\b(?:at|from) ([\w./-]{1,200}\.[chS](?::\d+)?)")


def _where(message: str, frames: Sequence[Frame]) -> str:
    """The file that the message names, else the innermost function."""
    if match := _FILE.search(message):
        return match[1]
    return next((frame.function for frame in frames if frame.function), "")


def _plain_name(function: str) -> str:
    """Without the file, and what a compiler appends: ``core.c#foo.isra.0`` is ``foo``."""
    return re.sub(r"\.(?:cold|isra|constprop|part|lto_priv|llvm)\b.*", "", function.rpartition("#")[2])


# -- Xen ---------------------------------------------------------------------------------------------------------

_PLACE = r"([^\s+]+)(?:\+(0x[0-9a-f]{1,8}|0)/(?:0x)?[0-9a-f]+)?"  # %pS: function+offset/size
_HEADER = re.compile(r"----\[ Xen-(\S+)\s+\S+\s+(?:debug=([yn]))?")  # arch/x86/x86_64/traps.c: print_xen_info
_RIP = re.compile(rf"RIP:\s+[0-9a-f]{{4}}:\[<([0-9a-f]{{6,16}})>\](?:\s+{_PLACE})?")  # same: _show_registers
_FRAME = re.compile(rf"^\s*\[<([0-9a-f]{{6,16}})>\] ([A-Z])\??(?:\s+{_PLACE})?")  # arch/x86/traps.c: show_trace
_TAINTED = re.compile(r"Tainted: ([A-Z ]{1,30})")
_FAULT_AT = re.compile(rf"(?:fault at|Early fatal page fault at \w{{4}}:)\s*([0-9a-f]{{6,16}})(?: {_PLACE})?")
_DUMP_BEFORE = ("xen-panic", "xen-fatal-trap", "xen-page-fault", "xen-protection-fault")  # the dump comes first
_DUMP_NEVER = ("iommu-fault", "guest-watchdog", "pod-exhausted")
_CRASHED = re.compile(r"crashed on cpu#|reported crashed by domain")


def _xen(crash: Crash, texts: Sequence[str], raw: Sequence[str], at: int) -> Crash:
    kind, message, cpu = crash.kind, crash.message, crash.cpu
    if "Panic on CPU" in texts[at]:
        message = _panic_message(texts, raw, at)
        grave = classify(message)
        kind = grave.name if grave and grave.kind == "crash" and kind == "xen-panic" else kind
    elif _CRASHED.search(texts[at]):  # common/domain.c; who called it stands before: include/xen/sched.h
        called = [text for text in texts[max(0, at - 6) : at] if "domain_crash" in text and "called from" in text]
        message = _short(called[-1]) if called else message
    dump: Sequence[str] = ()
    if kind not in _DUMP_NEVER:
        dump = _dump(texts, at, first_before=kind in _DUMP_BEFORE or "Panic on CPU" in texts[at])
    header = _HEADER.search(dump[0]) if dump else None
    tainted = _TAINTED.search(dump[0]) if dump else None
    if cpu is None:
        cpu = next((found for text in dump[1:4] if (found := _cpu(text)) is not None), None)
    frames = _distinct(_xen_frames([message], dump))
    return replace(
        crash,
        kind=kind,
        message=message,
        cpu=cpu,
        where=_where(message, frames),
        frames=frames,
        version=header[1][:40] if header else "",
        is_debug=header[2] == "y" if header and header[2] else None,
        tainted=tainted[1].strip() if tainted else "",
    )


def _panic_message(texts: Sequence[str], raw: Sequence[str], at: int) -> str:
    """drivers/char/console.c: it begins on the line after. Lines of dom0 may come between."""
    marked = "(XEN)" in raw[at]
    for text, line in zip(texts[at + 1 : at + 8], raw[at + 1 : at + 8], strict=True):
        if text.strip(" *") and (not marked or "(XEN)" in line):
            return _short(text)
    return ""


def _dump(texts: Sequence[str], at: int, *, first_before: bool) -> Sequence[str]:
    """The register dump that belongs to the line ``at``: to the next dump, or the panic."""
    heads = [index for index, text in enumerate(texts) if DUMP_BEGINS in text]
    before, after = [head for head in heads if head < at][-1:], [head for head in heads if head > at][:1]
    chosen = (before or after) if first_before else (after or before)
    if not chosen:
        return ()
    first = chosen[0]
    ends = (i for i in range(first + 1, len(texts)) if DUMP_BEGINS in texts[i] or "Panic on CPU" in texts[i])
    return texts[first : next(ends, len(texts))]


def _xen_frames(messages: Iterable[str], dump: Sequence[str]) -> Iterator[Frame]:
    for text in messages:
        if match := _FAULT_AT.search(text):  # x86_64/entry.S: domain_crash_page_fault; traps.c: early_page_fault
            yield _frame(match[1], match[2], match[3])
    is_trace = False
    for text in dump:
        is_trace = is_trace or "Xen call trace" in text
        if match := _RIP.search(text):
            yield _frame(match[1], match[2], match[3])
        elif is_trace and (match := _FRAME.search(text)):
            yield _frame(match[1], match[3], match[4], is_sure=match[2] != "S")


def _frame(address: str | None, function: str | None, offset: str | None, *, is_sure: bool = True) -> Frame:
    name = (function or "")[:_NAME_LIMIT]
    if re.fullmatch(r"(?:0x)?[0-9a-f]{6,16}", name) or not re.search(r"[A-Za-z_]", name):
        name = ""
    return Frame(name, int(offset, 16) if offset and name else None, int(address, 16) if address else None, is_sure)


def _distinct(frames: Iterable[Frame]) -> tuple[Frame, ...]:
    """RIP stands in the registers and again in the trace."""
    return tuple(dict.fromkeys(frames))[:_FRAMES_LIMIT]


# -- Linux -------------------------------------------------------------------------------------------------------

_LINUX_RIP = re.compile(r"RIP: [0-9a-f]{4}:\s*(?:\[<([0-9a-f]{6,16})>\]\s*)*([^\s+]+)\+(0x[0-9a-f]{1,8})/0x")
_LINUX_FRAME = re.compile(
    r"^\s*(?:\[<([0-9a-f]{6,16})>\]\s*)?(\? )?([A-Za-z_][\w.$]{0,200})\+(0x[0-9a-f]{1,8})/0x[0-9a-f]+"
)
_TRACE_ENDS = re.compile(r"</TASK>|RIP: 00[23]3:|Modules linked in|^Code:|---\[ end|Kernel panic")
_MACHINERY = re.compile(  # how an oops is told, not where it was
    r"(?:asm_|__)?(?:exc|do)_(?:page_fault|invalid_op|general_protection|error_trap|divide_error|nmi)|dump_stack\w*"
    r"|show_stack\w*|show_trace\w*|panic|vpanic|n?mi_panic|oops_\w+|__?die\w*|page_fault_oops|watchdog_timer_fn"
)


def _linux(crash: Crash, texts: Sequence[str], at: int) -> Crash:
    found = _distinct(_linux_frames(texts[at:])) or _distinct(_linux_frames(texts[:at]))
    cpu = crash.cpu
    told = next((text for text in texts[at : at + 30] if "ainted" in text and "CPU:" in text), "")
    tainted = _TAINTED.search(told)
    if cpu is None:
        cpu = _cpu(told)
    return replace(
        crash,
        cpu=cpu,
        where=_where(crash.message, found),
        frames=found,
        tainted=tainted[1].strip() if tainted else "",
    )


def _linux_frames(texts: Sequence[str]) -> Iterator[Frame]:
    """RIP's and those of the first trace that are no guesses (``?``)."""
    is_trace, has_rip = False, False
    for text in texts:
        if not has_rip and (match := _LINUX_RIP.search(text)):
            has_rip = True
            yield _frame(match[1], match[2], match[3])
        elif "Call Trace:" in text:
            if is_trace:
                return
            is_trace = True
        elif is_trace and _TRACE_ENDS.search(text):
            return
        elif is_trace and (match := _LINUX_FRAME.search(text)) and not match[2]:
            if not _MACHINERY.fullmatch(_plain_name(match[3])):
                yield _frame(match[1], match[3], match[4])
