"""The manual page xenlab(1), made from the commands' own help.

click-man needs commands of click; typer brings a click of its own, which it does not know.
Source: man(7), groff_man(7).
"""

from __future__ import annotations

from collections.abc import Iterator

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from lab import __version__

_FILES = """\
.TP
.I ~/.local/state/xenlab
Runs, consoles, leases, the history and the pages (\\fBXDG_STATE_HOME\\fR).
.TP
.I ~/.cache/xenlab
Images, builds, payloads: they can be made again (\\fBXDG_CACHE_HOME\\fR).
.TP
.I ~/.config/xenlab/credentials.yaml
Passwords of BMCs, by name (\\fBXDG_CONFIG_HOME\\fR)."""

_STATUSES = (
    (0, "good"),
    (1, "a case failed, a figure is short of its bar, or the gate is blocked"),
    (2, "wrong use: an option, a file, a port that is taken, a package that is missing"),
    (3, "the bench failed, or there is nothing to judge"),
    (70, "a fault in xenlab itself"),
    (130, "interrupted"),
)


def page(top: object) -> str:
    """The whole page, as roff. ``top`` is the group of all commands."""
    assert isinstance(top, TyperGroup)
    lines = [
        f'.TH XENLAB 1 "" "xenlab {__version__}" "User Commands"',
        ".SH NAME",
        f"xenlab \\- {_text(top.help or '')}",
        ".SH SYNOPSIS",
        ".B xenlab",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH OPTIONS",
        *_options(top),
        ".SH COMMANDS",
    ]
    by_role: dict[str, list[tuple[str, TyperCommand]]] = {}
    for role, words, command in _commands(top):
        by_role.setdefault(role, []).append((words, command))
    for role, commands in by_role.items():
        lines.append(f".SS {_text(role)}")
        for words, command in commands:
            lines += [".TP", _synopsis(words, command), _text(command.help or "")]
            if options := list(_options(command)):
                lines += [".RS", *options, ".RE"]
    lines.append(".SH EXIT STATUS")
    for status, meaning in _STATUSES:
        lines += [".TP", f".B {status}", f"{_text(meaning)}."]
    return "\n".join([*lines, ".SH FILES", _FILES]) + "\n"


def _commands(group: TyperGroup, before: str = "", role: str = "") -> Iterator[tuple[str, str, TyperCommand]]:
    """Role, words and command, of this group and those in it."""
    for name, command in group.commands.items():
        words = f"{before} {name}".strip()
        panel = role or getattr(command, "rich_help_panel", None) or ""
        if isinstance(command, TyperGroup):
            yield from _commands(command, words, panel)
        elif isinstance(command, TyperCommand) and not command.hidden:
            yield panel, words, command


def _synopsis(words: str, command: TyperCommand) -> str:
    arguments = [one.metavar or str(one.name) for one in command.params if isinstance(one, TyperArgument)]
    said = f"\\fBxenlab {_text(words)}\\fR"
    return f"{said} \\fI{_text(' '.join(arguments))}\\fR" if arguments else said


def _options(command: TyperCommand | TyperGroup) -> Iterator[str]:
    for one in command.params:
        if not isinstance(one, TyperOption) or one.hidden:
            continue
        shown = ", ".join(f"\\fB{_text(name)}\\fR" for name in one.opts)
        yield ".TP"
        yield f"{shown} \\fI{_text(one.metavar)}\\fR" if one.metavar else shown
        yield _text(one.help or "")


def _text(text: str) -> str:
    """One line of running text that roff takes as it is."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line
