"""YAML files that people write, read so that what is wrong is said by file, line and key."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self, TypeVar, runtime_checkable

import pydantic
import yaml
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.comments import LineCol
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from lab.base.errors import UsageError, did_you_mean

Key = Sequence[str | int]
ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)

_MOST = 50  # mistakes that are told of one part of a file
_INI = re.compile(r"(?:\s*(?:[#;].*)?\n)*\[[\w:.-]+\]\s*$", re.M)  # as Ansible's other kind of inventory
_DEEPEST = 100  # lists and mappings within each other


_LIKE: dict[str, str] = {}  # patterns, and how a message says them


def like(pattern: str, words: str) -> pydantic.StringConstraints:
    """Text of a pattern, for ``typing.Annotated``; a message says what it must be in ``words``."""
    _LIKE[pattern] = words
    return pydantic.StringConstraints(pattern=pattern)


class Strict(pydantic.BaseModel):
    """Base of what a file may hold: unknown keys and wrong types are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def contradictions(cls, raw: Mapping[str, object]) -> Iterator[str]:
        """What is wrong with these keys together, each in words; ``raw`` is as it stands in the file, unchecked."""
        yield from ()

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _whole(cls, raw: object, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        """All that is wrong, at once: pydantic's own findings, and the contradictions."""
        found: list[InitErrorDetails] = []
        if isinstance(raw, Mapping):
            found = [_detail((), raw, "contradiction", said) for said in cls.contradictions(raw)]
        try:
            made = handler(raw)
        except pydantic.ValidationError as error:
            if not found:
                raise
            own = [_detail(one["loc"], one["input"], one["type"], one["msg"]) for one in error.errors()]
            raise pydantic.ValidationError.from_exception_data(cls.__name__, own + found) from None
        if found:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, found)
        return made


def _detail(where: tuple[str | int, ...], raw: object, kind: str, said: str) -> InitErrorDetails:
    # In braces pydantic looks for a value; what is said holds none.
    error = PydanticCustomError(kind, "{said}", {"said": said})
    return InitErrorDetails(type=error, loc=where, input=raw)


class Problems:
    """What is wrong with a file, gathered so that all of it can be said at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep a :class:`UsageError` of the body, and go on behind it."""
        try:
            yield
        except UsageError as error:
            self._found.append(str(error))

    @property
    def is_empty(self) -> bool:
        """Whether nothing wrong was found so far."""
        return not self._found

    def raise_all(self) -> None:
        """:raises UsageError: a line for each thing that is wrong."""
        if self._found:
            raise UsageError("\n".join(self._found))


def read_yaml(file: Path) -> object:
    """The file's content, with the lines its keys stand on (see :func:`at`). Keys are plain words or numbers.

    :raises UsageError: unreadable, not YAML, nested too deeply, or a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if _is_too_deep(text):
            raise RecursionError
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:  # duplicate keys are among these
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        said = re.sub(r' with value ".*', "", _first_line(error.problem or error.context))
        if _INI.match(text):
            said = "not YAML, but what looks like an INI file"
        raise UsageError(f"{file}{line}: {said}") from None
    except RecursionError:
        raise UsageError(f"{file}: not YAML that can be read: nested too deeply") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except Exception as error:  # ruamel lets its own mistakes through: KeyError for `%YAML 9.9`, TypeError for odd keys
        raise UsageError(f"{file}: not YAML: {_first_line(error) or type(error).__name__}") from None
    _check_keys(file, tree)
    return tree


def read_mapping(file: Path) -> dict[str, object]:
    """As :func:`read_yaml`, of a file that is one mapping.

    :raises UsageError: as :func:`read_yaml`, or the file is something else.
    """
    tree = read_yaml(file)
    if not isinstance(tree, dict):
        raise UsageError(f"{file}:1: must be a mapping (key: value)")
    return tree


def _is_too_deep(text: str) -> bool:
    """Whether lists and mappings are nested deeper than any file of ours; ruamel's time grows with the square of it."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEEPEST:
                return True
    except yaml.YAMLError:  # ruamel says what is wrong, by its line
        return False
    return False


def _first_line(said: object) -> str:
    return (str(said or "").splitlines() or [""])[0]


def _check_keys(file: Path, tree: object) -> None:
    """A key that is a list or a mapping fits nowhere. Aliases may make a tree endless, so each node is seen once."""
    seen, waiting = set[int](), [tree]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, dict | list):
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            for key in node:
                if isinstance(key, dict | list | tuple | set):
                    line = node.lc.line + 1 if hasattr(node, "lc") else 1
                    raise UsageError(f"{file}:{line}: a key must be a plain word, not a list or a mapping")
                if not isinstance(key, str | int | float) or isinstance(key, bool):
                    line = node.lc.key(key)[0] + 1 if hasattr(node, "lc") else 1
                    raise UsageError(
                        f"{file}:{line}: a key must be a word; YAML reads this one as {_kind(key)}: quote it"
                    )
            waiting.extend(node.values())
        else:
            waiting.extend(node)


def _kind(key: object) -> str:
    """What YAML takes a key for that is no word."""
    named = {type(None): "nothing", bool: "true or false", bytes: "binary data"}
    return next((words for kind, words in named.items() if isinstance(key, kind)), "a date or another value")


def node_at(tree: object, key: Key) -> object:
    """What stands at this key; None where nothing does."""
    for part in key:
        if isinstance(tree, Mapping):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and 0 <= part < len(tree):
            tree = tree[part]
        else:
            return None
    return tree


@runtime_checkable
class _Placed(Protocol):
    """A mapping or a list as ruamel reads it: it knows the lines of what it holds."""

    @property
    def lc(self) -> LineCol: ...

    def __getitem__(self, part: str | int, /) -> object: ...


def at(file: Path, tree: object, key: Key) -> str:
    """``FILE:LINE: KEY``, the line being the deepest one known on the way to ``key``."""
    node, line = tree, 1
    for part in key:
        if not isinstance(node, _Placed):
            break
        try:
            line = (node.lc.item(part) if isinstance(part, int) else node.lc.key(part))[0] + 1
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
    return f"{file}:{line}: {'.'.join(str(part) for part in key)}"


def validate(model: type[ModelT], file: Path, tree: object, key: Key = ()) -> ModelT:
    """What stands at ``key`` in ``tree``, as a ``model``.

    :raises UsageError: a line for each thing that is wrong, and what would be right.
    """
    try:
        return model.model_validate(node_at(tree, key))
    except pydantic.ValidationError as error:
        found = error.errors()
        problems = [_explain(model, file, tree, key, problem) for problem in found[:_MOST]]
        if len(found) > _MOST:
            problems.append(f"{file}: and {len(found) - _MOST} more")
        raise UsageError("\n".join(problems)) from None


def _explain(model: type[pydantic.BaseModel], file: Path, tree: object, base: Key, problem: ErrorDetails) -> str:
    inner = tuple(part for part in problem["loc"] if part != "[key]")
    key = (*base, *inner)
    said = plain(problem["msg"]) + _instead_of(problem)
    if problem["type"] == "extra_forbidden":
        known = _fields(model, inner[:-1])
        said = f"unknown key{did_you_mean(str(key[-1]), known)}; known here: {', '.join(known)}"
    elif problem["type"] == "missing":
        said = "is missing"
    elif problem["type"] == "string_pattern_mismatch" and (words := _LIKE.get(problem["ctx"]["pattern"])):
        said = f"must be {words}"
    elif problem["type"] == "string_type" and (kind := _NO_TEXT.get(type(problem["input"]))):
        said = f"{said}, not {kind}"
    elif problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        said = "must be a mapping (key: value)"
    return f"{at(file, tree, key)}: {said}" if key else f"{file}:1: {said}"


_OURS = (  # pydantic's words, and ours
    (r"^Value error, ", ""),
    (r"^Input should be a valid integer.*", "must be a whole number"),
    (r"^Input should be a valid number.*", "must be a number"),
    (r"^Input should be a valid boolean.*", "must be true or false"),
    (r"^Input should be a valid string", "must be text"),
    (r"^Input should be a valid list", "must be a list"),
    (r"^(?:Input|String|List|Dictionary) should ", "must "),
    (r" after validation, not \d+$", ""),
)
_NO_TEXT = {type(None): "nothing", bool: "true or false: quote it"}
_NO_TEXT |= dict.fromkeys((int, float, ScalarInt, ScalarFloat), "a number: quote it")
_NUMBERS = re.compile(r"(?:less|greater)_than.*|(?:int|float|bool)_(?:type|parsing|from_float)|literal_error")


def plain(said: str) -> str:
    """What pydantic says of a value, in our words: what it must be."""
    for theirs, ours in _OURS:
        said = re.sub(theirs, ours, said)
    return said


def _instead_of(problem: ErrorDetails) -> str:
    """What there is where a number or one of some words must be. Other text is not shown: it may hold a secret."""
    value = problem["input"]
    if not _NUMBERS.fullmatch(problem["type"]) or not isinstance(value, str | int | float | None):
        return ""
    words = re.findall(r"'([^']*)'", problem["msg"]) if problem["type"] == "literal_error" else []
    shown = "nothing" if value is None else repr(value)[:40]
    return f", not {shown}{did_you_mean(str(value), words)}"


def _fields(model: type[pydantic.BaseModel], key: Key) -> list[str]:
    """The keys known at ``key``, which leads through models, mappings and lists of models."""
    current: object = model
    for part in key:
        if isinstance(current, type) and issubclass(current, pydantic.BaseModel):
            name = next((n for n, f in current.model_fields.items() if str(part) in (n, f.alias)), None)
            if name is None:
                return []
            current = current.model_fields[name].annotation
        else:
            current = typing.get_args(current)[-1] if typing.get_args(current) else None
        if typing.get_origin(current) in (typing.Union, types.UnionType):
            current = next(arg for arg in typing.get_args(current) if arg is not type(None))
    if isinstance(current, type) and issubclass(current, pydantic.BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []
