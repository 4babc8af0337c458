"""One pattern that finds where in a line one of very many texts may stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lab.console.formats import pieces

# How rare a character is on consoles, the rarest first; one that is not here is rarer still. It decides speed only.
_BY_RARITY = "Z?!%W\"@J+YzQ;*'K/qGLwkFO=U,ByTDhSHVRxAM_-vIPpCgbuXmc])([N.El:fdnotsirae 0123456789"
_NEW_LETTER = 4  # how much dearer one more letter is than one at which a line is looked at anyway


def words(formats: Sequence[str]) -> dict[str, tuple[str, int]]:
    """For each format a part that a line has as it stands, and which of its letters is looked for.

    Letters that are rare on consoles are chosen, and as few of them as possible.
    """

    def places(text: str) -> list[tuple[str, int]]:
        parts = [part for part in pieces(text)[::2] if part]
        parts = [part for part in parts if len(part) > 4 or "#" in part] or parts
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


def prefilter(words: Iterable[tuple[str, int]]) -> str:
    """One pattern that finds the letters of the words where they stand in their words.

    ``re`` stops at these letters only, in most lines at few. There the next letter rules out nearly all words, before
    ``re`` begins with any; what stands before the letter is looked at last.
    """
    by_letter: dict[str, list[str]] = {}
    for word, at in words:
        by_letter.setdefault(word[at], []).append(f"{re.escape(word[at + 1 :])}(?<={re.escape(word)})")
    return "|".join(f"{re.escape(letter)}(?:{'|'.join(rests)})" for letter, rests in by_letter.items())
