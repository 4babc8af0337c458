"""One console line: a run of prefixes, who speaks, and a message.

Many writers share one serial line: firmware, the boot loader, Xen, dom0's kernel, programs of dom0 and, through
Xen, guests. Console servers put stamps in front, a login prompt or half a line of dom0 may stand before Xen's
words, and a bad line loses a letter. So nothing here expects a message at a fixed place: :func:`speaker` judges
whose words they are by what stands before them.
"""

from __future__ import annotations

import re
from typing import Literal

Speaker = Literal["xen", "linux", "other"]

_WINDOW = 300  # characters looked at on either end of what stands before a message

# Xen relays a guest's console as "(d1) ...", "(d1v0) ...", "DOM1: ..." or, before 4.3, "HVM1: ...". All that follows
# is the guest's, though it says "(XEN)" as a PV shim would. dom0 may print through Xen, too: (d0) is no guest.
# This and the next begin with characters, not with a \b: so ``re`` skips all others, up to four times as fast.
_GUESTS_WORDS = re.compile(
    r"\(d[1-9]\d{0,5}(?:v\d{1,4})?\)\s.*|x(?<!\wx)enconsoled(?:\[\d{1,8}\])?:\s.*|D(?<!\wD)OM[1-9]\d{0,3}: .*"
    r"|H(?<!\wH)VM[1-9]\d{0,5}: .*",
    re.DOTALL,
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]"
    r"(?:(?<=\x1b)(?:\[[0-?]{0,40}[ -/]?[@-~]|\][^\x07\x1b]{0,200}(?=[\x07\x1b])|[()*+][0-9A-Z]|[=>78]))?"
)

XEN = "(XEN)"  # xen/drivers/char/console.c: CONSOLE_PREFIX
# The same with one letter lost or wrong, or with its beginning lost at the beginning of a line.
_NEARLY_XEN = re.compile(r"^(?:E?N)?\)(?= )|\(?XEN\)|\((?:\SEN|X\SN|XE\S|EN|XN|XE)\)|\(XEN[^\s)]?(?=\s|\[)")
_DOM0 = re.compile(r"\(d0(?:v\d{1,4})?\)")

_KERNEL_STAMP = r"\[ *\d{1,7}\.\d{1,9}\](?: ?\[ *[TC]\d{1,7}\])?"  # printk.time, CONFIG_PRINTK_CALLER
# "[   12.345678] watchdog: " at the end of what stands before a message: nothing but the kernel's own prefixes.
_STAMPED = re.compile(rf"({_KERNEL_STAMP}) ?(?:[\w/.:-]{{1,24}}(?: [\w/.:-]{{1,24}})?: ){{0,2}}$")
# "sshd[812]: ", "(udev-worker)[331]: "; the kernel is no program.
_PROGRAM = re.compile(r"(?:^|(?<=[\s>]))(?!kernel\b)[\w.@/+()-]{1,64}\[\d{1,8}\]: ")
_SYSLOG = re.compile(  # RFC 3164 or ISO 8601 time, host, tag; without a process id
    r"\s*(?:<\d{1,3}>)?(?:[A-Z][a-z]{2} +\d{1,2} [\d:]{8}|\d{4}-\d\d-\d\d[T ][\d:.,]{8,18}(?:Z|[+-][\d:]{4,6})?)"
    r" [\w.-]{1,64} (?!kernel\b)([\w.@/+()-]{1,64}): "
)
_SERVERS_STAMP = re.compile(  # of a console server, or of a program that records a console
    r"\[[\d.:, +/-]{4,34}\] |(?:[A-Z][a-z]{2} +\d{1,2} )?\d\d:\d\d:\d\d(?:[.,]\d{1,9})? "
    r"|\d\d[./]\d\d[./]\d{4},? \d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?: [AP]M)? "
    r"|\d{4}[-/]\d\d[-/]\d\d[T ][\d:.,]{8,18}(?:Z|[+-][\d:]{4,6})?(?: \d\d[EO])? |\d{9,11}\.\d{1,9} "
)
_HOST = re.compile(r"[\w.-]{1,64} ")  # behind a console server's stamp
_RELAYERS = ("xl", "xenconsoled", "logger", "journalctl", "dmesg", "cat", "sh", "bash")  # they print others' lines
_RELAYED_BY = re.compile(rf"\s*(?:{'|'.join(_RELAYERS)}): ?$")
_IS_QUOTED_END = re.compile(r"[\"'`“‘(=]\s?$")
_COMMANDS = r"(?:[efz]?grep|rg|awk|sed|echo|printf|cat|less|tail|journalctl|dmesg|logger)"
_TYPED = re.compile(rf"[$#>|] ?(?:\w+ ){{0,2}}{_COMMANDS}\b|^{_COMMANDS} ")  # somebody at a shell
_FOUND_IN = re.compile(  # of grep
    r"(?:[\w/-]\.(?:log|txt|out|[gx]z|zst|bz2)(?:\.\d{1,4})?(?:\.[gx]z)?"
    r"|(?:^|\s)/[\w@+.-]{1,100}(?:/[\w@+.-]{1,100}){1,20})"
    r"[:-](?:\d{1,9}[:-])?\s?$"
)
_LOOKED_FOR = re.compile(  # what a test says of the words that it looks for, or found
    r"\b(?:looking|waiting|searching|watching|checking) for\s$"
    r"|\b(?:no|without|saw|found|seen|contains?|expect(?:ed|ing)?|match(?:ed|es|ing)?|pattern):?\s$"
    r"|^(?:E  +)?[A-Z]\w{1,60}(?:Error|Exception): "
)
_PROSE = re.compile(
    r"\baudit(?::|\()"  # words of a command within an audit record
    r"|^\s*(?:[*+#-]|\d+\.) |^\s{2,}$"  # changelogs, commit messages
    r"|^\s{2,}\S[^.]{0,200}: $|^commit [0-9a-f]{7}|\bCVE-\d{4}-\d"
    r"|^(?:not )?ok \d|^(?:PASS|FAIL|SKIP): "  # a test's results
    r"|\b(?:[Ff]ix|[Aa]void|[Pp]revent|[Cc]lose|[Hh]andle)(?:e?[sd]|ing)?:? "
    r"|[\w/-]\.(?:log|txt|service|gz|md):"  # grep's output, a unit's name
)


def clean(line: str) -> str:
    """A line without control characters, colours and what terminals would reorder."""
    return line if line.isprintable() else _CONTROL.sub("", line)


def own_words(text: str) -> str:
    """A line without what a guest said in it."""
    has_any = "(d" in text or "xenconsoled" in text or "DOM" in text or "HVM" in text
    return _GUESTS_WORDS.sub("", text) if has_any else text


def after_xen(text: str) -> int:
    """Where the last ``(XEN)`` of a text ends, or one with a letter lost or wrong; -1: there is none."""
    at = text.rfind(XEN)
    if at >= 0:
        return at + len(XEN)
    found = [match.end() for match in _NEARLY_XEN.finditer(text[:_WINDOW])]
    return found[-1] if found else -1


def speaker(before: str) -> Speaker:
    """Whose words a message is, judged by all that stands before it in its line, guests' words excepted.

    ``other`` is a program of dom0 that says or relays it, a quotation, a changelog, a command that somebody types.
    A line that a program was writing when Xen or the kernel broke in is Xen's or the kernel's.
    """
    if before == f"{XEN} ":  # most often
        return "xen"
    end = after_xen(before)
    if end >= 0:
        lead, rest = before[: max(0, end - len(XEN))], before[end:]
        if _program_end(rest) >= 0 or _is_relayed(lead) or _IS_QUOTED_END.search(rest[-4:]):
            return "other"
        dom0 = _dom0_end(rest)
        return _who_of_dom0(rest[dom0:].lstrip()) if dom0 else "xen"
    return _who_of_dom0(before[_dom0_end(before) :].lstrip() if "(d0" in before else before)


def _dom0_end(text: str) -> int:
    """Where the last mark of dom0's words at the beginning of a text ends; 0: there is none."""
    if "(d0" not in text:
        return 0
    return max((match.end() for match in _DOM0.finditer(text[:_WINDOW])), default=0)


def _who_of_dom0(before: str) -> Speaker:
    """The kernel, or a program of dom0, by what stands before the message."""
    stamped = _STAMPED.search(before[-_WINDOW:])
    stamp = len(before) - min(len(before), _WINDOW) + stamped.start() if stamped else -1
    if (tag := _program_end(before)) >= 0:
        return "linux" if stamp > tag and _broke_in(before[tag:stamp]) else "other"
    begins = _beginnings(before)
    if syslog := next((match for at in begins if (match := _SYSLOG.match(before, at, at + _WINDOW))), None):
        said = before[syslog.end() : stamp] if stamp >= syslog.end() else None
        is_console_server = said == "" and syslog[1] not in _RELAYERS
        return "linux" if is_console_server or (said and _broke_in(said)) else "other"
    if stamped:
        return "linux"
    is_quoted = _IS_QUOTED_END.search(before[-4:]) or before[-_WINDOW:].count('"') % 2
    is_prose = any(one.search(before[at : at + _WINDOW]) for one in (_TYPED, _PROSE, _LOOKED_FOR) for at in begins)
    return "other" if is_quoted or is_prose else "linux"


def _beginnings(before: str) -> list[int]:
    """Where a line begins, and begins behind each stamp that a console server put in front."""
    found = [0]
    while match := _SERVERS_STAMP.match(before, found[-1], _WINDOW):
        found.append(match.end())
    return found


def is_beginning(before: str) -> bool:
    """Whether what follows ``before`` begins a line: stamps, levels and hosts, or a login prompt that waited."""
    if before.isspace():
        return False
    if before.endswith("login: "):
        return True
    at = _beginnings(before)[-1]
    host = _HOST.match(before, at) if at else None
    return not message(before[host.end() if host else at :])


def _program_end(before: str) -> int:
    """Where the last tag of a program, such as ``sshd[812]: ``, ends; -1: there is none."""
    if "]: " not in before:
        return -1
    tail = max(0, len(before) - _WINDOW)
    found = [match.end() + tail for match in _PROGRAM.finditer(before[tail:])]
    found = found or [match.end() for match in _PROGRAM.finditer(before[:_WINDOW])]
    return found[-1] if found else -1


def _is_relayed(lead: str) -> bool:
    """Whether a program or a quotation brings the words that follow, and did not lose the line to them."""
    if not lead or lead.isspace():
        return False
    if _IS_QUOTED_END.search(lead[-4:]) or _TYPED.search(lead[:_WINDOW]):
        return True
    if any(one.search(lead[-_WINDOW:]) for one in (_FOUND_IN, _LOOKED_FOR)) or _RELAYED_BY.match(lead):
        return True
    if (tag := _program_end(lead)) >= 0:
        return not _broke_in(lead[tag:])
    syslog = _SYSLOG.match(lead[:_WINDOW])
    return bool(syslog and syslog[1] in _RELAYERS and not _broke_in(lead[syslog.end() :]))


def _broke_in(said: str) -> bool:
    """Whether ``said``, the words of a program, was broken off: one that relays a line ends with a colon."""
    said = re.sub(rf"\s*{_KERNEL_STAMP}\s*$|<\d>\s*$", "", said).rstrip()
    return bool(said) and said[-1] not in ":>|\"'"


# -- the message of a line ---------------------------------------------------------------------------------------

# What may stand before a message: a stamp in brackets (Xen's boot, date, datems and raw, Linux's, a console
# server's), a level, a caller, another's relay. A letter within a stamp may be wrong.
_PREFIX = re.compile(
    r"\s*(?:\[(?=[^\]]*\d[^\]]*\d)[\w.:, \t+/-]{4,34}\]|\[ *[TC]\d{1,7}\]|<\d{1,3}>|\(d0(?:v\d{1,4})?\))"
)


def message(line: str) -> str:
    """What a line says, without its prefixes, control characters and guests' words."""
    text = clean(own_words(line))
    at = max(0, after_xen(text))
    while match := _PREFIX.match(text, at):
        at = match.end()
    return text[at:].strip()


_NEXT_WRITER = re.compile(rf"\(XEN\)|\s*{_KERNEL_STAMP} ")


def until_next_writer(text: str) -> str:
    """A message without what another writer put behind it on the same line."""
    match = _NEXT_WRITER.search(text)
    return text[: match.start()] if match else text
