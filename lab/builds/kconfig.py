"""Reads Kconfig fragments, and checks that a resolved ``.config`` has what they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError

_SET = re.compile(r"CONFIG_(\w+)=(\S.*)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")


@dataclass(frozen=True, slots=True)
class Wish:
    """One symbol a fragment asks for; ``value`` is ``n`` for "is not set"."""

    symbol: str
    value: str
    where: str  # FILE:LINE


def parse(text: str) -> dict[str, str]:
    """Symbol -> value of a ``.config``; symbols that are "not set" are ``n``."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line.strip()):
            found[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            found[match[1]] = "n"
    return found


def wishes(fragments: Iterable[Path]) -> tuple[Wish, ...]:
    """What the fragments ask for, each symbol once.

    :raises UsageError: a line that is neither a setting nor a comment, or two fragments that disagree.
    """
    found: dict[str, Wish] = {}
    for file in fragments:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file}:{number}"
            line = line.strip()
            if match := _SET.fullmatch(line):
                wish = Wish(match[1], match[2], where)
            elif match := _UNSET.fullmatch(line):
                wish = Wish(match[1], "n", where)
            elif not line or line.startswith("#"):
                continue
            else:
                raise UsageError(f"{where}: not a Kconfig setting: {line!r}; write CONFIG_NAME=value")
            other = found.setdefault(wish.symbol, wish)
            if other.value != wish.value:
                raise UsageError(
                    f"{where}: CONFIG_{wish.symbol}={wish.value}, but {other.where} says {other.value}: "
                    "these fragments cannot be used together"
                )
    return tuple(found.values())


def check(wanted: Iterable[Wish], resolved: Mapping[str, str]) -> None:
    """Every wanted symbol must have survived ``olddefconfig``.

    :raises UsageError: names each that did not, and the line that asks for it.
    """
    lost = []
    for wish in wanted:
        is_now = resolved.get(wish.symbol, "n")  # Kconfig leaves out what cannot be chosen
        if is_now != wish.value:
            known = "" if wish.symbol in resolved else " (this Xen does not offer it, or what it depends on is off)"
            lost.append(f"{wish.where}: asked for CONFIG_{wish.symbol}={wish.value}, resolved to {is_now}{known}")
    if lost:
        raise UsageError("\n".join(lost))
