"""What a case keeps beside its verdict, read from its source: the titles of its evidence and the names of its figures.

The source is parsed and nothing is run. Followed are the functions that the case hands its ``evidence`` to, and the
fixtures that ask for it. A title that is put together at run time keeps the names of its parts: ``sleep <number>``.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType

import pytest

FIXTURE = "evidence"
TITLED = ("add", "console", "figure", "picture")  # methods of lab.case.evidence.CaseLog whose first argument is a title
# Titles that a method gives itself.
BY_METHOD = {"migration": ("xl migrate", "what passed between the hosts"), "checked": ("checks",)}

Texts = tuple[str, ...]  # what a name may stand for


def kept_by(item: pytest.Item) -> list[str]:
    """The titles that a case keeps, in the order of its source."""
    info = getattr(item, "_fixtureinfo", None)
    fixtures = [found[-1].func for name, found in getattr(info, "name2fixturedefs", {}).items() if name != FIXTURE]
    titles: list[str] = []
    for function in (*fixtures, getattr(item, "obj", None)):
        plain = _plain(function)
        titles += _titles_of(plain) if plain else ()
    return list(dict.fromkeys(titles))


@cache
def _titles_of(function: FunctionType) -> Texts:
    """Of a case, which may have many parameters, or of a fixture."""
    return tuple(_Source(function, {FIXTURE}).titles()) if FIXTURE in inspect.signature(function).parameters else ()


@cache
def _parsed(function: FunctionType) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _plain(function: object) -> FunctionType | None:
    """The function as it is written, without its decorators."""
    function = inspect.unwrap(function) if callable(function) else function
    function = getattr(function, "__func__", function)
    return function if isinstance(function, FunctionType) else None


@dataclass
class _Source:
    """One function's source."""

    function: FunctionType
    logs: set[str]  # its names for the evidence
    texts: Mapping[str, Texts] = field(default_factory=dict)  # what its arguments stand for, as far as they are text
    callers: tuple[FunctionType, ...] = ()

    def titles(self) -> Iterator[str]:
        """In the order of the source."""
        tree = _parsed(self.function)
        texts = dict(self.texts)
        for node in ast.walk(tree):
            if isinstance(node, ast.For):
                texts |= _looped(node)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
            called = call.func
            if (
                isinstance(called, ast.Attribute)
                and isinstance(called.value, ast.Name)
                and called.value.id in self.logs
            ):
                yield from BY_METHOD.get(called.attr, ())
                if called.attr in TITLED and call.args:
                    yield from _titles(call.args[0], texts)
            elif (function := self._called(called)) and function not in (*self.callers, self.function):
                yield from self._follow(function, call, texts)

    def _called(self, called: ast.expr) -> FunctionType | None:
        """The function that is called, if it is one of a module's."""
        if isinstance(called, ast.Name):
            return _plain(self.function.__globals__.get(called.id))
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module = self.function.__globals__.get(called.value.id)
            return _plain(getattr(module, called.attr, None)) if inspect.ismodule(module) else None
        return None

    def _follow(self, function: FunctionType, call: ast.Call, texts: Mapping[str, Texts]) -> Iterator[str]:
        """The titles of a function, if it is given the evidence."""
        signature = inspect.signature(function)
        given = dict(_bound(signature, call))
        logs = {name for name, value in given.items() if isinstance(value, ast.Name) and value.id in self.logs}
        if logs:
            known = {name: found for name, value in given.items() if (found := tuple(_texts(value, texts)))}
            for name, parameter in signature.parameters.items():
                if isinstance(parameter.default, str) and name not in given:
                    known[name] = (parameter.default,)
            yield from _Source(function, logs, known, (*self.callers, self.function)).titles()


def _bound(signature: inspect.Signature, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Which argument each parameter gets. What follows a ``*`` is taken for the last parameters."""
    names = [name for name, one in signature.parameters.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    starred = next((place for place, value in enumerate(call.args) if isinstance(value, ast.Starred)), len(call.args))
    yield from zip(names, call.args[:starred], strict=False)
    if behind := call.args[starred + 1 :]:
        yield from zip(names[-len(behind) :], behind, strict=False)
    yield from ((one.arg, one.value) for one in call.keywords if one.arg)


def _looped(loop: ast.For) -> dict[str, Texts]:
    """What the names of a loop over a literal stand for."""
    if not isinstance(loop.iter, ast.Tuple | ast.List):
        return {}
    targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
    found: dict[str, Texts] = {}
    for place, target in enumerate(targets):
        rows = [one.elts if isinstance(one, ast.Tuple) else [one] for one in loop.iter.elts]
        values = [row[place] if place < len(row) else None for row in rows]
        if isinstance(target, ast.Name) and (texts := tuple(_strings(values))) and len(texts) == len(values):
            found[target.id] = texts
    return found


def _strings(values: Iterable[ast.expr | None]) -> Iterator[str]:
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def _titles(expression: ast.expr, texts: Mapping[str, Texts]) -> Iterator[str]:
    """:func:`_texts`, for readers: a title with a part made at run time is in words: ``<who> round trips per s``."""
    if isinstance(expression, ast.Attribute):
        yield _placeholder(expression)
    for text in _texts(expression, texts):
        yield text.replace("_", " ") if "<" in text else text


def _texts(expression: ast.expr, texts: Mapping[str, Texts]) -> Iterator[str]:
    """What an expression may stand for as a text; nothing where all of it is made at run time."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.Name):
        yield from texts.get(expression.id, ())
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body, texts)
        yield from _texts(expression.orelse, texts)
    elif isinstance(expression, ast.JoinedStr):
        parts = [_part(part, texts) for part in expression.values]
        yield from ("".join(chosen) for chosen in itertools.product(*parts))


def _part(part: ast.expr, texts: Mapping[str, Texts]) -> Texts:
    """What a part of an f-string may stand for; else the name of what is put there."""
    if isinstance(part, ast.FormattedValue):
        return tuple(_texts(part.value, texts)) or (_placeholder(part.value),)
    return tuple(_texts(part, texts)) or ("",)


def _placeholder(expression: ast.expr) -> str:
    """Names what is not known before the case runs: ``<guest>`` for ``guest.name.partition("-")[0]``."""
    inner = expression
    while isinstance(inner, ast.Attribute | ast.Subscript | ast.Call):
        inner = inner.func if isinstance(inner, ast.Call) else inner.value
    return f"<{ast.unparse(inner)}>"
