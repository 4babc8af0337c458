"""Commands about the machine that xenlab runs on, and about xenlab as it is installed there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.cli.arguments import MACHINE

app = typer.Typer()


@app.command(rich_help_panel=MACHINE)
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")]) -> None:
    """Write a lab of your own: inventory, build recipe, an example case with its conftest, a CI job."""
    from lab.cli.starter import write

    for file in write(folder):
        typer.echo(file)
    typer.echo(f"next: {folder / 'README.md'}")


@app.command(rich_help_panel=MACHINE)
def doctor(
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory",
            metavar="FILE",
            help="Also say what the boards of this inventory need here.",
            resolve_path=True,
        ),
    ] = None,
) -> None:
    """Say what this machine lacks, and what to do about it. It changes nothing and contacts no board."""
    from lab import inventory as inventories
    from lab.base.errors import LabError
    from lab.selfcheck import rack_needs
    from lab.selfcheck.doctor import Requirement, examine

    lab = inventories.load(inventory) if inventory else None
    findings = examine()
    if lab is None or lab.is_virtual:
        from lab.virtual import emulator

        try:
            findings.append(Requirement("virtual boards", True, emulator.outlook()))
        except LabError as error:
            findings.append(Requirement("virtual boards", False, str(error), "install the packages above"))
    findings += rack_needs.examine(lab) if lab else []
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.is_good else 'BAD '} {finding.subject}: {finding.detail}")
        if not finding.is_good:
            typer.echo(f"      {finding.remedy}")
    raise typer.Exit(0 if all(finding.is_good for finding in findings) else 1)


@app.command(rich_help_panel=MACHINE)
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
) -> None:
    """Remove old runs, and cached files that can be made again."""
    from lab.results import pruning

    for line in pruning.prune(dry_run=dry_run):
        typer.echo(line)


@app.command(rich_help_panel=MACHINE)
def version() -> None:
    """Print the version of xenlab and of its main libraries."""
    typer.echo(version_text())


@app.command("man", rich_help_panel=MACHINE)
def manual(context: typer.Context) -> None:
    """Print the manual page. To read it: xenlab man | man -l -"""
    from lab.cli.manual import page

    typer.echo(page(context.find_root().command), nl=False)


def version_text() -> str:
    """``xenlab 0.1.0 (labgrid 26.0.1, ...)``"""
    import platform
    from importlib import metadata

    from lab import __version__

    others = ", ".join(f"{name} {metadata.version(name)}" for name in ("labgrid", "pytest", "ansible-core"))
    return f"xenlab {__version__} ({others}, Python {platform.python_version()})"
