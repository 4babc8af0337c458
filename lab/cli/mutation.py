"""The command for those who ask what the cases notice."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import RUN, AsJson, Inventory, show_json
from lab.night.options import VIRTUAL_LAB

app = typer.Typer()


@app.command(rich_help_panel=RUN)
def mutation(
    area: Annotated[str, typer.Option(metavar="NAME", help="Only mutants in the files of this area.")] = "",
    file: Annotated[
        str, typer.Option(metavar="FILE", help="Only mutants in this file, such as xen/common/compat/domain.c.")
    ] = "",
    point: Annotated[int, typer.Option(metavar="N", help="Only this mutant, also if it was tried before.")] = 0,
    most: Annotated[int, typer.Option(metavar="COUNT", help="Try at most so many; 0: all.")] = 0,
    limit: Annotated[str, typer.Option("--for", metavar="TIME", help="For how long to try: 90m, 8h.")] = "24h",
    show: Annotated[
        bool, typer.Option("--show", help="Try nothing: show the score so far, and the survivors.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--list", help="Try nothing: list the mutants and what became of each.")
    ] = False,
    build: Annotated[str, typer.Option(metavar="NAME", help="A build whose recipe has `mutation`.")] = "mutation",
    coverage: Annotated[
        str,
        typer.Option(metavar="RUN", help="The run of nightly --coverage that says which cases execute a line."),
    ] = "",
    select: Annotated[
        Literal["quick", "full", "weekly"], typer.Option(help="Cases up to this selection are tried.")
    ] = "quick",
    inventory: Inventory = VIRTUAL_LAB,
    as_json: AsJson = False,
) -> None:
    """Try small faults in the hypervisor's code, one after the other on running boards: which do the cases notice?"""
    from lab import builds
    from lab.leases.records import seconds_of
    from lab.night import mutation as trials
    from lab.results.run_folder import visible_line

    if every and show:
        raise UsageError("--list and --show: give one of them")
    asked = trials.Asked(
        area,
        file,
        point,
        most,
        seconds_of(limit),
        build,
        coverage,
        select,
        inventory,
    )
    if every or show:
        made = builds.make(build)
        score = trials.score(made)
        points = trials.chosen(asked, score.listing)
        if every and not as_json:
            for one in points:
                typer.echo(f"{one.number:6}  {score.part(one):12}  {one.kind:13} {one.place} {one.function}")
            return
        files, status = {one.file for one in points}, 0
    else:
        found = trials.run(asked, lambda text: typer.echo(text, err=as_json))
        score, files, status = found.score, set(found.files), 3 if found.has_failed else 0
        if found.tried:
            typer.echo(f"tried {found.tried}, {found.rate:.0f} an hour and board", err=as_json)
        points = trials.chosen(asked, score.listing)
    if as_json:
        show_json(score.as_data())
    else:
        lines = score.of_point(points[0]) if point else score.lines(files)
        typer.echo("\n".join(map(visible_line, lines)))
    raise typer.Exit(status)
