"""The form in which a signature is written: what one console line can say, and by whom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lab.console.lines import Speaker

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
    they must be; None: anybody's. A line that has one of ``unless`` does not say it. One that ``is_first`` begins its
    line: prefixes may stand before it, or a login prompt that waited. One that has ``recalled_by`` is taken back if
    that text follows within a few lines: see :mod:`lab.console.recalled`.
    """

    kind: Kind
    name: str
    by: Speaker | None
    formats: tuple[str, ...]
    unless: tuple[str, ...] = ()
    is_marked: bool = False  # Linux has the same words: without Xen's mark they are not Xen's
    is_first: bool = False
    recalled_by: str = ""

    @property
    def pattern(self) -> str:
        """The regular expression of its formats."""
        return "|".join(_regex(text) for text in self.formats)


def pieces(text: str) -> list[str]:
    """A format as texts, with a placeholder between two."""
    return re.split(r"(%[dxws])", text)


def _regex(text: str) -> str:
    """A format as a regular expression."""
    return "".join(_PLACEHOLDERS.get(piece) or re.escape(piece) for piece in pieces(text))
