"""What the commands share: the headings of the help, arguments with one meaning everywhere, and JSON output."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import typer

RUN = "Run cases"
READ = "Read results"
SHARE = "Share boards"
HOLD = "Use a board that you hold"
RACK = "Rack boards, run the lab"
MACHINE = "Set up this machine"
WORK = "Work on xenlab itself"

Inventory = Annotated[
    Path,
    typer.Option(
        "--inventory",
        metavar="FILE",
        help="Inventory of the boards; default: virtual boards.",
        show_default=False,
        resolve_path=True,
    ),
]
Board = Annotated[str, typer.Argument(metavar="BOARD", help="The board's exact name.")]
Ports = Annotated[
    str,
    typer.Option(
        "--ports",
        metavar="BASE",
        help="First loopback port of the lab: a number, `free`, or `own` (the inventory's). The lab keeps it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Words = TypeVar("Words")


def taking(words: type[Words]) -> Callable[[Callable[[Words], None]], Callable[..., None]]:
    """Make a command of a function whose one argument is a dataclass: each field is an argument or an option.

    typer reads a command's arguments from its signature. Thirteen of them are a class, not thirteen parameters.
    """

    def decorate(command: Callable[[Words], None]) -> Callable[..., None]:
        def called(**values: object) -> None:
            command(words(**values))

        hints = get_type_hints(words, include_extras=True)
        parameters = []
        for field in dataclasses.fields(words):  # type: ignore[arg-type]  # only dataclasses are given
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__annotations__ = hints
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def located(path: str) -> str:
    """A path that exists from where the user stands, made absolute; any other word as it is.

    A node id keeps its part after ``::``. A word that is no path here may be one of the shipped cases.
    """
    file, separator, node = path.partition("::")
    return f"{Path(file).resolve()}{separator}{node}" if os.path.exists(file) else path


def recipe(name: str) -> str:
    """A build's name as it is, and the path of a recipe file made absolute."""
    return located(name) if name.endswith((".yaml", ".yml")) else name


def show_json(content: object) -> None:
    """Print one JSON document, times in seconds since the epoch."""
    typer.echo(json.dumps(content, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
