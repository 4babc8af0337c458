"""Repairs the words that tell of a crash, if a noisy serial line lost or changed one letter of them.

If one letter of a text is lost or wrong, one half of the text is still whole. So a line is searched for halves first,
which is cheap, and only then for a text that is nearly one of :data:`TEXTS`.
"""

from __future__ import annotations

import re

from lab.console.prefilter import prefilter, words

TEXTS = (  # of lab.console.signatures: long enough that no other words are nearly the same
    *("Panic on CPU ", "FATAL PAGE FAULT", "FATAL TRAP: ", "*** DOUBLE FAULT ***", "GENERAL PROTECTION FAULT"),
    *("Xen BUG at ", "Assertion '", "Watchdog timer detects that CPU", "Reboot in five seconds..."),
    *("Fatal machine check: ", "Hardware Dom0 crashed", "Hardware Dom0 shutdown: watchdog", "----[ Xen-"),
    *("Kernel panic - not syncing", "BUG: unable to handle ", "BUG: kernel NULL pointer", "kernel BUG at "),
    *("general protection fault, ", "BUG: soft lockup - CPU#", " blocked for more than ", " self-detected stall"),
    "Watchdog detected hard LOCKUP on cpu",
)


def _variants(text: str) -> str:
    """The text with any one letter lost or wrong; the first and last must be there, or its edges were anything."""
    inner = range(1, len(text.rstrip(" '")) - 1)
    return "|".join(f"{re.escape(text[:at])}.?{re.escape(text[at + 1 :])}" for at in inner)


def _halves(text: str) -> tuple[str, str]:
    middle = len(text) // 2
    return text[:middle], text[middle:]


_REACH = max(map(len, TEXTS)) + 2  # characters on either side of a letter of a half that may belong to its text
_TRIES = 32  # halves of one line, or of a block of lines, that are looked at
_NEARLY = tuple((text, *_halves(text), re.compile(_variants(text))) for text in TEXTS)
next_half = re.compile(prefilter(words([half for text in TEXTS for half in _halves(text)]).values())).search


def repaired(text: str) -> str:
    """The line as it was meant, if one of the texts in it lacks a letter or has a wrong one; else the same."""
    place = next_half(text)
    for _ in range(_TRIES):
        if place is None:
            break
        begin = max(0, place.start() - _REACH)
        window = text[begin : place.start() + _REACH]
        for whole, first, second, nearly in _NEARLY:
            if (first in window or second in window) and whole not in window and (match := nearly.search(window)):
                return text[: begin + match.start()] + whole + text[begin + match.end() :]
        place = next_half(text, place.start() + 1)
    return text
