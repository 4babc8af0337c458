"""Checks plain data from a file against the types and ranges of a dataclass.

pydantic is not used here: it takes no text with lone surrogates, which consoles do print.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

T = TypeVar("T")
Check = Callable[[object], object]

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
    return typing.cast(T, _checked(kind, _loaded(text)))


def read_numbers(text: str | bytes, limit: Between) -> dict[str, float]:
    """JSON that is one object of numbers.

    :raises ValueError: not JSON, or not of this shape.
    """
    return typing.cast(dict[str, float], _checked(Mapping[str, Annotated[float, limit]], _loaded(text)))


def _loaded(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Wrong(Exception):
    """A value is not what it should be. Whoever holds the value puts its own name before ``where``."""

    def __init__(self, said: str, where: str = "") -> None:
        super().__init__(said)
        self.said, self.where = said, where

    def within(self, place: str) -> _Wrong:
        dot = "." if self.where and not self.where.startswith("[") else ""
        self.where = f"{place}{dot}{self.where}"
        return self


def _checked(kind: object, value: object) -> object:
    try:
        return _check_of(kind)(value)
    except _Wrong as error:
        raise ValueError(f"{error.where or 'the record'}: {error.said}") from None


@cache  # of a history there are very many records, and what a type asks for is told once
def _check_of(kind: object) -> Check:
    """What makes a value of a ``kind`` of plain data, or raises ``_Wrong``."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind)
    if isinstance(kind, type) and kind in _WORDS:
        return _plain(kind, None)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of({one.value: one for one in kind})
    if kind is Path:
        text = _plain(str, None)
        return lambda value: Path(typing.cast(str, text(value)))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return _one_of({one: one for one in arguments})
    if origin is typing.Annotated:
        return _plain(arguments[0], arguments[1])
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        given = _check_of(arguments[0])
        return lambda value: None if value is None else given(value)
    if origin is tuple:
        return _list(_check_of(arguments[0]))
    if origin is frozenset:
        listed = _list(_check_of(arguments[0]))
        return lambda value: frozenset(typing.cast(tuple[object, ...], listed(value)))
    if origin is Mapping:
        return _object(_check_of(arguments[1]))
    raise AssertionError(f"no rule for {kind}")


def _one_of(known: Mapping[object, object]) -> Check:
    wanted = f"one of {', '.join(map(str, known))}"

    def check(value: object) -> object:
        if not isinstance(value, str) or value not in known:
            raise _wrong(wanted, value)
        return known[value]

    return check


def _list(of: Check) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, list):
            raise _wrong("a list", value)
        found = []
        try:
            for one in value:
                found.append(of(one))
        except _Wrong as error:
            raise error.within(f"[{len(found)}]") from None
        return tuple(found)

    return check


def _object(of: Check) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        found, name = {}, ""
        try:
            for name, one in value.items():
                found[name] = of(one)
        except _Wrong as error:
            raise error.within(f"[{name!r}]") from None
        return found

    return check


def _record(kind: type) -> Check:
    hints, needed = _fields(kind)
    checks = {name: _check_of(hint) for name, hint in hints.items()}
    as_is = {name: hint if hint in _AS_IS else None for name, hint in hints.items()}

    def check(value: object) -> object:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        if unknown := value.keys() - hints.keys():
            raise _Wrong("unknown field", min(unknown))
        if lacking := needed - value.keys():
            raise _Wrong("is missing", min(lacking))
        read, name = {}, ""
        try:
            for name, one in value.items():
                read[name] = one if type(one) is as_is[name] else checks[name](one)
        except _Wrong as error:
            raise error.within(name) from None
        return kind(**read)

    return check


def _fields(kind: type) -> tuple[dict[str, object], frozenset[str]]:
    """Types of all fields, and the names of those that have no default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    bare = dataclasses.MISSING
    fields = [one for one in dataclasses.fields(kind) if one.init]
    needed = frozenset(one.name for one in fields if one.default is bare and one.default_factory is bare)
    return {one.name: hints[one.name] for one in fields}, needed


def _plain(kind: type, limit: Between | None) -> Check:
    """A number or text as it is. Without a limit, what a database of 64 bits takes."""
    wanted = _WORDS[kind]

    def as_is(value: object) -> object:
        if not isinstance(value, kind):
            raise _wrong(wanted, value)
        return value

    def number(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise _wrong(wanted, value)
        if limit is not None and not limit.least <= value <= limit.greatest:  # NaN is in no range
            raise _wrong(limit.words or f"{wanted} from {limit.least:g} to {limit.greatest:g}", value)
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise _wrong(f"{wanted} of at most 63 bits", value)
        return kind(value)

    return as_is if kind is str or kind is bool else number


def _wrong(wanted: str, value: object) -> _Wrong:
    names = {list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    return _Wrong(f"must be {wanted}, not {names.get(type(value), repr(value)[:60])}")
