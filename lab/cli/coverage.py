"""The command for those who ask what the cases execute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import READ, AsJson, show_json

app = typer.Typer()


@app.command(rich_help_panel=READ)
def coverage(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run of nightly --coverage: its id, or its folder.")],
    where: Annotated[
        str, typer.Argument(metavar="[FILE[:LINE]]", help="A file of Xen; or a line: the cases that execute it.")
    ] = "",
    build: Annotated[str, typer.Option(metavar="NAME", help="Of a run with several builds: which one.")] = "",
    area: Annotated[str, typer.Option(metavar="NAME", help="Only this area, with its files.")] = "",
    never: Annotated[bool, typer.Option("--never", help="What no case executes, by area, file and function.")] = False,
    interface: Annotated[
        bool, typer.Option("--interface", help="Hypercalls and their operations, each with the cases that use it.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write the sources as pages into the run folder; the site links them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the cases of a run execute of the hypervisor: lines and functions by area, case and file."""
    from lab.base.errors import did_you_mean
    from lab.coverage import areas, measured, tables
    from lab.coverage import interface as operations
    from lab.history.store import History
    from lab.reporting import coverage as pages
    from lab.results.run_folder import RunFolder

    file, _, number = where.partition(":")
    if where and (area or never or html or interface):
        raise UsageError("FILE goes without --area, --never, --html and --interface")
    if interface and (area or never or html):
        raise UsageError("--interface has all areas and goes without --area, --never and --html")
    if html and (area or never):
        raise UsageError("--html has all sources and goes without --area and --never")
    if as_json and (area or never or html):
        raise UsageError("--json has all areas and goes without --area, --never and --html")
    if ":" in where and not (file and number.isdecimal()):
        raise UsageError(f"{where}: want FILE:LINE, as xen/common/domain.c:512")
    summary = RunFolder.open(History().folder_of(run)).summary()
    files = areas.load(summary.header.cases_root())
    if area and area not in files:
        raise UsageError(f"no area {area!r}{did_you_mean(area, list(files))}; there are: {', '.join(files)}")
    found = measured.of_run(summary, build)
    if file:
        file = measured.check_file(found, file)
    if html:
        typer.echo(str(pages.write(found, files, summary)))
    elif interface:
        show_json(operations.of(found)) if as_json else _tell(operations.table(found))
    elif as_json:
        if number:
            show_json(tables.line_as_data(found, file, int(number)))
        else:
            show_json(tables.file_as_data(found, file) if file else tables.as_data(found, files))
    elif number:
        _tell(tables.of_line(found, file, int(number)))
    elif file:
        _tell(tables.of_file(found, file))
    else:
        _tell(tables.never(found, files, area) if never else tables.overview(found, files, area))


def _tell(lines: Iterable[str]) -> None:
    """Reasons are what boards and guests said."""
    from lab.results.run_folder import visible_line

    typer.echo("\n".join(map(visible_line, lines)))
