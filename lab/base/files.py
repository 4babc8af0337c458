"""YAML files that people write, read so that what is wrong is said by file, line and key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lab.base.errors import UsageError

Key = Sequence[str | int]
ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


class Strict(pydantic.BaseModel):
    """Base of what a file may hold: unknown keys and wrong types are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


def read_yaml(file: Path) -> Any:
    """The file's content, with the lines its keys stand on (see :func:`at`).

    :raises UsageError: unreadable, not YAML, or a key twice.
    """
    try:
        return YAML(typ="rt").load(file.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:  # duplicate keys are among these
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{file}{line}: {str(error.problem or error.context).splitlines()[0]}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not YAML: {error}") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def at(file: Path, tree: Any, key: Key) -> str:
    """``FILE:LINE: KEY``, the line being the deepest one known on the way to ``key``."""
    node, line = tree, 1
    for part in key:
        try:
            line = (node.lc.item(part) if isinstance(part, int) else node.lc.key(part))[0] + 1
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return f"{file}:{line}: {'.'.join(str(part) for part in key)}"


def validate(model: type[ModelT], file: Path, tree: Any, key: Key = ()) -> ModelT:
    """What stands at ``key`` in ``tree``, as a ``model``.

    :raises UsageError: a line for each thing that is wrong, and what would be right.
    """
    part = tree
    for word in key:
        part = part[word]
    try:
        return model.model_validate(part)
    except pydantic.ValidationError as error:
        problems = [_explain(model, file, tree, key, problem) for problem in error.errors()]
        raise UsageError("\n".join(problems)) from None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`` (did you mean X?)``, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _explain(model: type[pydantic.BaseModel], file: Path, tree: Any, base: Key, problem: Any) -> str:
    inner = problem["loc"]
    key = (*base, *inner)
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _fields(model, inner[:-1])
        said = f"unknown key{did_you_mean(str(key[-1]), known)}; known here: {', '.join(known)}"
    elif problem["type"] == "missing":
        said = "is missing"
    elif problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        said = "must be a mapping (key: value)"
    return f"{at(file, tree, key)}: {said}" if key else f"{file}:1: {said}"


def _fields(model: type[pydantic.BaseModel], key: Key) -> list[str]:
    """The keys known at ``key``, which leads through models, mappings and lists of models."""
    current: Any = model
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
