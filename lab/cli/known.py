"""``xenlab known``: what a bug tracker says of a failure, kept with the history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.cli.arguments import READ, AsJson, show_json

app = typer.Typer()
group = typer.Typer(
    help="Link failures to a bug tracker. A link shows for as long as the failure is the same.", no_args_is_help=True
)
app.add_typer(group, name="known", rich_help_panel=READ)


@group.command()
def add(
    what: Annotated[
        str,
        typer.Argument(metavar="FAULT-ID|CASE", help="The fault id that pages and mails show, or a case."),
    ],
    link: Annotated[str, typer.Option("--link", metavar="URL", help="URL of the issue: https://...")],
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="A note that is shown beside the link.")] = "",
) -> None:
    """Link a failure, or the last failure of a case, to an issue. A failure that changed shows without the link."""
    from lab.history import known_issues
    from lab.history.store import History

    typer.echo(known_issues.add(History(), what, link, note).line())


@group.command("list")
def show(as_json: AsJson = False) -> None:
    """Show all linked bug reports, with who added them and when."""
    from lab.history import known_issues
    from lab.history.store import History

    found = known_issues.read(History()).all
    if as_json:
        show_json(found)
    else:
        typer.echo("\n".join(one.line() for one in found) or "no bug report is linked")


@group.command()
def remove(
    what: Annotated[
        str,
        typer.Argument(metavar="FAULT-ID|CASE|URL", help="The fault, the case or the URL whose links are removed."),
    ],
) -> None:
    """Remove the links of a failure or a case, or one link."""
    from lab.history import known_issues
    from lab.history.store import History

    for one in known_issues.remove(History(), what):
        typer.echo(f"removed  {one.line()}")


@group.command("export")
def write() -> None:
    """Print all linked bug reports as JSON, for `xenlab known import`."""
    from lab.history import known_issues
    from lab.history.store import History

    typer.echo(known_issues.exported(History()), nl=False)


@group.command("import")
def take(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `xenlab known export` printed.")],
) -> None:
    """Import linked bug reports from another history. A second import changes nothing."""
    from lab.history import known_issues
    from lab.history.store import History

    typer.echo(f"{known_issues.imported(History(), file)} new")
