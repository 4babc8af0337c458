"""A console's bytes, as they may be shown on a person's terminal.

A board may print anything, and a terminal obeys: control strings set its title, its clipboard and its colours, and some
sequences have it print, move its window, or type an answer. Text, and what moves the cursor or colours text, passes.
Sources: ECMA-48, 5th edition, 8.3 and 5.6; xterm's ctlseqs, "Window manipulation" and "Media Copy".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

_HELD_LIMIT = 4096  # characters; a longer sequence is no sequence

# ESC and one character, or the one character of C1 that stands for both (ECMA-48, 5.3).
_STRING = r"(?:\x1b[PX\]^_]|[\x90\x98\x9d\x9e\x9f])"  # DCS, SOS, OSC, PM, APC
_CSI = r"(?:\x1b\[|\x9b)"
# A string ends by ST, and with xterm by BEL. It is also cut at a line's end and where another sequence begins: since
# its beginning is not shown, a terminal takes what stands behind for text.
_TOKEN = re.compile(
    rf"(?P<string>{_STRING}[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c|(?=[\x00-\x1f\x7f-\x9f])))"
    rf"|(?P<csi>{_CSI}[0-?]*[ -/]*[@-~])"
    rf"|(?P<torn>{_CSI}[0-?]*[ -/]*)"
    r"|(?P<escape>\x1b[ -/]*[0-OQ-WYZ\\`-~])"
    r"|(?P<control>[\x00-\x1f\x7f-\x9f])"
    r"|(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
)
# What may still become a sequence when more comes.
_UNFINISHED = re.compile(rf"(?:{_STRING}[^\x00-\x1f\x7f-\x9f]*\x1b?|{_CSI}[0-?]*[ -/]*|\x1b[ -/]*)\Z")
_SHOWN_CONTROLS = frozenset("\a\b\t\n\v\f\r\x0e\x0f")  # not ENQ, which a terminal answers, nor C1
# Finals of CSI sequences that move the cursor, erase, insert, delete, scroll, colour, or set a screen mode. Without
# those that a terminal answers (c, n, x, and p and q with a prefix), print (i), or move its window (t).
_PARAMETERS = re.compile(r"\??(?:[0-9]{0,4}[;:])*[0-9]{0,4}\Z")  # a count of millions would stall a terminal
_SHOWN_FINALS = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefghlmrsu")
_SHOWN_ESCAPES = re.compile(r"\x1b(?:[()*+][0-9A-Z<>%]|[78=>DEHMc])\Z")  # character sets, cursor, keypad, reset
# DEC modes that have a terminal type of its own accord: mouse and focus reports, pasted text in brackets.
_TYPING_MODES = re.compile(r"(?:^|[;?])(?:9|100[0-6]|1015|1016|2004|2031|2048)(?:;|$)")


class Screen:
    """Filters one stream; what is split between two pieces is held until it is whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def show(self, data: bytes) -> bytes:
        """The part of ``data``, and of what was held, that may be shown now."""
        text = self._held + self._decoder.decode(data)
        self._held = ""
        if (begun := _UNFINISHED.search(text, max(0, len(text) - _HELD_LIMIT))) and begun.start() < len(text):
            self._held, text = text[begun.start() :], text[: begun.start()]
        shown = []
        for token in _TOKEN.finditer(text):
            if (kind := token.lastgroup) and _SHOWN[kind](token[0]):
                shown.append(token[0])
        return "".join(shown).encode()


def _is_shown_csi(sequence: str) -> bool:
    if not sequence.startswith("\x1b["):
        return False  # of C1: in UTF-8 nobody means it
    parameters, final = sequence[2:-1], sequence[-1]
    if not _PARAMETERS.match(parameters):
        return False
    if parameters.startswith("?"):
        return final in "lJK" or (final == "h" and not _TYPING_MODES.search(parameters))
    return final in _SHOWN_FINALS


_SHOWN: dict[str, Callable[[str], bool]] = {
    "string": lambda _: False,
    "csi": _is_shown_csi,
    "torn": lambda _: False,
    "escape": lambda sequence: bool(_SHOWN_ESCAPES.match(sequence)),
    "control": lambda character: character in _SHOWN_CONTROLS,
    "text": lambda _: True,
}
