"""What a line of a console means, and which lines around it tell more. What lines can say stands in ``signatures``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lab.console.damaged import next_half, repaired
from lab.console.formats import Signature
from lab.console.lines import clean, is_beginning, message, own_words, speaker
from lab.console.prefilter import prefilter, words
from lab.console.signatures import SIGNATURES


@dataclass(frozen=True, slots=True)
class Found:
    """A signature, and where in the line its text begins."""

    signature: Signature
    text: str  # the line from there on


class HasText(Protocol):
    """A console line, as far as it matters here. One that has a ``kind`` "partial" is a line's beginning."""

    @property
    def text(self) -> str: ...


# -- how a line is searched --------------------------------------------------------------------------------------


_CHOSEN = words([text for signature in SIGNATURES for text in signature.formats])
_next_place = re.compile(prefilter(dict.fromkeys(_CHOSEN.values()))).search
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
        if text.isprintable() and next_half(text) is None:  # nearly all lines
            return None
        whole = meant(text)
        return classify(whole) if whole is not text and _next_place(whole) else None
    said = clean(own_words(text))
    first = _first(said, place if said is text else _next_place(said), "")
    return first[1] if first else None


def meant(text: str) -> str:
    """A line without colours within its words, and its telling words whole where a bad line damaged them."""
    return repaired(clean(text))


def may_say(text: str) -> bool:
    """Whether :func:`classify` may find something in a line of this text: one question for very many lines."""
    if _next_place(text) is not None or repaired(text) is not text:
        return True
    return ("\x1b" in text or "\0" in text) and may_say(clean(text))


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
    if signature.unless and any(other in text.rstrip() for other in signature.unless):
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
    if signature.is_first and not is_beginning(before):
        return False
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
