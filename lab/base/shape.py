"""Plain data read from a file, held against the types and ranges of the dataclass that it shall become.

pydantic is not used here: it takes no text with lone surrogates, which consoles do print.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

T = TypeVar("T")

_AS_IS = (str, bool, float)  # of which all values will do
_WORDS: dict[type, str] = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Between:
    """The least and the greatest that a number may be, for ``typing.Annotated``."""

    least: float
    greatest: float
    words: str | None = None  # how a message says it


def read(kind: type[T], text: str | bytes) -> T:
    """JSON as a ``kind``, a dataclass; lists become tuples. Fields with a default may be missing, others are errors.

    :raises ValueError: not JSON, or not of this shape: names the field and what would be right.
    """
    return typing.cast(T, _checked(kind, _loaded(text), ""))


def read_numbers(text: str | bytes, limit: Between) -> dict[str, float]:
    """JSON that is one object of numbers.

    :raises ValueError: not JSON, or not of this shape.
    """
    return typing.cast(dict[str, float], _checked(Mapping[str, Annotated[float, limit]], _loaded(text), ""))


def _loaded(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _checked(kind: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where)
    if isinstance(kind, type) and kind in _WORDS:
        return _plain(kind, value, where, None)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = {one.value: one for one in kind}
        if not isinstance(value, str) or value not in known:
            raise _wrong(where, f"one of {', '.join(map(str, known))}", value)
        return known[value]
    if kind is Path:
        return Path(typing.cast(str, _plain(str, value, where, None)))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(where, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if origin is typing.Annotated:
        return _plain(arguments[0], value, where, arguments[1])
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        return None if value is None else _checked(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return tuple(_checked(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {name: _checked(arguments[1], one, f"{where}[{name!r}]") for name, one in value.items()}
    raise AssertionError(f"no rule for {kind}")


def _record(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints, needed = _fields(kind)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{_at(where, min(unknown))}: unknown field")
    if lacking := needed - value.keys():
        raise ValueError(f"{_at(where, min(lacking))}: is missing")
    read = {}
    for name, one in value.items():
        hint = hints[name]
        as_is = type(one) is hint and hint in _AS_IS  # most are, and there are very many
        read[name] = one if as_is else _checked(hint, one, _at(where, name))
    return kind(**read)


@cache
def _fields(kind: type) -> tuple[dict[str, object], frozenset[str]]:
    """Types of all fields, and the names of those that have no default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    bare = dataclasses.MISSING
    fields = [one for one in dataclasses.fields(kind) if one.init]
    needed = frozenset(one.name for one in fields if one.default is bare and one.default_factory is bare)
    return {one.name: hints[one.name] for one in fields}, needed


def _plain(kind: type, value: object, where: str, limit: Between | None) -> object:
    """A number or text as it is. Without a limit, what a database of 64 bits takes."""
    if kind is str or kind is bool:
        if not isinstance(value, kind):
            raise _wrong(where, _WORDS[kind], value)
        return value
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise _wrong(where, _WORDS[kind], value)
    if limit is not None and not limit.least <= value <= limit.greatest:  # NaN is in no range
        wanted = limit.words or f"{_WORDS[kind]} from {limit.least:g} to {limit.greatest:g}"
        raise _wrong(where, wanted, value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise _wrong(where, f"{_WORDS[kind]} of at most 63 bits", value)
    return kind(value)


def _wrong(where: str, wanted: str, value: object) -> ValueError:
    names = {list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    said = names.get(type(value), repr(value)[:60])
    return ValueError(f"{where or 'the record'}: must be {wanted}, not {said}")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
