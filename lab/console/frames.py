"""A place in code, as a register dump or a call trace tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FRAMES_LIMIT = 64
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


def frame(address: str | None, function: str | None, offset: str | None, *, is_sure: bool = True) -> Frame:
    """A frame of the texts that a line has for it; what is no name of a function counts as none."""
    name = (function or "")[:_NAME_LIMIT]
    if re.fullmatch(r"(?:0x)?[0-9a-f]{6,16}", name) or not re.search(r"[A-Za-z_]", name):
        name = ""
    return Frame(name, int(offset, 16) if offset and name else None, int(address, 16) if address else None, is_sure)


def distinct(frames: Iterable[Frame]) -> tuple[Frame, ...]:
    """Each once, in order: RIP stands in the registers and again in the trace."""
    return tuple(dict.fromkeys(frames))[:FRAMES_LIMIT]
