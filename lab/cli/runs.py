"""Commands that run cases, and those that make what a run needs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import RUN, AsJson, Inventory, Ports, located, recipe, show_json, taking
from lab.night.options import COUNTED_LAB, DEFAULT_BUILD, VIRTUAL_LAB, NightlyOptions, Selection
from lab.results.record import REPEATS

app = typer.Typer()


@dataclass(frozen=True)
class Nightly:
    """The words of ``xenlab nightly``."""

    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATHS", help="Files, folders or node ids of cases; default: all cases."),
    ] = None
    keyword: Annotated[
        str, typer.Option("-k", metavar="EXPR", help="Run only the cases whose names match (pytest's -k).")
    ] = ""
    marker: Annotated[
        str, typer.Option("-m", metavar="EXPR", help="Run only the cases whose markers match (pytest's -m).")
    ] = ""
    inventory: Inventory = VIRTUAL_LAB
    ports: Ports = ""
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; default: a new one.", resolve_path=True)
    ] = None
    build: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A hypervisor build to test; repeatable.")] = (
        None
    )
    matrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A matrix of builds, Xen command lines and dom0 modes.", resolve_path=True),
    ] = None
    select: Annotated[
        Selection | None, typer.Option(help="How many cases; default: quick on virtual boards, full on machines.")
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Continue the run in this folder, which broke off.", resolve_path=True),
    ] = None
    xtf: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of built XTF tests; each test becomes a case.", resolve_path=True),
    ] = None
    deadline: Annotated[
        str,
        typer.Option(metavar="WHEN", help="Begin no case after this time: HH:MM, or a duration from now such as 2h."),
    ] = ""
    repeat: Annotated[
        int,
        typer.Option(
            min=1, max=REPEATS, metavar="N", help="Run each case N times. A case is good only if all N attempts pass."
        ),
    ] = 1
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Keep which lines each case executes; default build: coverage.")
    ] = False
    check: Annotated[
        bool, typer.Option("--check", help="Check each board's health before the run; this takes a boot.")
    ] = False


@app.command(rich_help_panel=RUN)
@taking(Nightly)
def nightly(words: Nightly) -> None:
    """Bring the lab up, provision the boards, run the cases and report."""
    from lab.selfcheck.doctor import demand_packages

    deadline = _deadline(words.deadline) if words.deadline else None
    if words.resume:
        _check_resumed(words)
    if words.xtf:
        _check_xtf(words.xtf)
    demand_packages()
    from lab.cli.leased import move_ports
    from lab.night.nightly import run  # two seconds, which wrong words need not wait for

    if words.ports:
        move_ports(words.inventory, words.ports)
    wanted = NightlyOptions(
        paths=tuple(located(path) for path in words.cases or ()),
        keyword=words.keyword,
        marker=words.marker,
        inventory=words.inventory,
        output=words.output,
        builds=tuple(recipe(name) for name in words.build or ()),
        matrix=words.matrix,
        select=words.select,
        resume=words.resume,
        xtf=words.xtf,
        deadline=deadline,
        checks=words.check,
        repeat=words.repeat,
        coverage=words.coverage,
    )
    raise typer.Exit(run(wanted))


_AS_BEGUN = ("cases", "keyword", "marker", "output", "build", "matrix", "select", "repeat", "coverage")


def _check_resumed(words: Nightly) -> None:
    """A run that is continued stays what it was asked to be.

    :raises UsageError: an option that would change it.
    """
    names = {"cases": "PATHS", "keyword": "-k", "marker": "-m"}
    fresh = Nightly()
    if given := [name for name in _AS_BEGUN if getattr(words, name) != getattr(fresh, name)]:
        said = ", ".join(names.get(name, f"--{name}") for name in given)
        raise UsageError(f"--resume continues a run with the cases and builds it began with; leave out {said}")


def _check_xtf(folder: Path) -> None:
    """:raises UsageError: it is no folder of built XTF tests."""
    if not folder.is_dir():
        raise UsageError(f"--xtf {folder}: there is no such folder")
    from lab.xen.xtf import instances

    instances(folder)


@app.command(rich_help_panel=RUN)
def status(inventory: Inventory = VIRTUAL_LAB, as_json: AsJson = False) -> None:
    """Show what the run in this lab is doing now. Exit status 3: no run is going on."""
    from lab.inventory import load
    from lab.night.progress import going_on

    found = going_on(load(inventory))
    if as_json:
        show_json({"run": found})
    else:
        typer.echo("\n".join(found.lines()) if found else "no run is going on")
    raise typer.Exit(0 if found else 3)


@dataclass(frozen=True)
class Bisect:
    """The words of ``xenlab bisect``."""

    good: Annotated[
        str, typer.Option(metavar="A", help="A revision (or a build of --among) with which the case passes.")
    ]
    bad: Annotated[str, typer.Option(metavar="B", help="A later one with which the case fails.")]
    case: Annotated[str, typer.Option(metavar="CASE", help="The case's node id, or the end of it.")] = ""
    figure: Annotated[
        str,
        typer.Option(metavar="NAME", help="Find what moved this figure instead; --case is needed if no run has it."),
    ] = ""
    build: Annotated[str, typer.Option(metavar="NAME", help="The recipe by which each revision is built.")] = (
        "pv32-debug"
    )
    source: Annotated[
        str, typer.Option(metavar="REPOSITORY", help="Where the revisions are; default: the recipe's own source.")
    ] = ""
    among: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Search these builds instead of revisions, the oldest first; repeatable."),
    ] = None
    inventory: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Inventory of the boards; counts have their own default.", resolve_path=True),
    ] = None
    board: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this board of the inventory; repeatable.")
    ] = None
    tries: Annotated[
        int, typer.Option(min=1, help="How often the bad one is tried first, to learn how often it fails.")
    ] = 3


@app.command(rich_help_panel=RUN)
@taking(Bisect)
def bisect(words: Bisect) -> None:
    """Find the commit, or build, with which a case began to fail or a figure moved. The same command continues it."""
    from lab.history.figures import COUNT
    from lab.night import bisection

    if not words.case and not words.figure:
        raise UsageError("bisect needs --case CASE or --figure NAME")
    usual = COUNTED_LAB if words.figure.endswith(COUNT) else VIRTUAL_LAB
    builds = tuple(recipe(name) for name in [words.build, *(words.among or ())])
    asked = bisection.Asked(
        located(words.case),
        words.good,
        words.bad,
        builds[0],
        words.source,
        builds[1:],
        words.inventory or usual,
        words.tries,
        figure=words.figure,
        boards=tuple(words.board or ()),
    )
    raise typer.Exit(bisection.command(asked, typer.echo))


@dataclass(frozen=True)
class Try:
    """The words of ``xenlab try``."""

    series: Annotated[
        str, typer.Argument(metavar="SERIES", help="An mbox, a folder of patches, or commits: A..B, or DIR:A..B.")
    ]
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="PATHS", help="Cases, as pytest takes them; default: all.")
    ] = None
    on: Annotated[
        str, typer.Option(metavar="NAME", help="Build to patch; default: upstream; for commits, the one below them.")
    ] = ""
    each: Annotated[bool, typer.Option("--each", help="Also run the tree after each patch.")] = False
    keyword: Annotated[str, typer.Option("-k", metavar="EXPR", help="Only cases whose names match.")] = ""
    select: Annotated[
        Selection | None, typer.Option(help="How many cases; default: quick on virtual boards, full on machines.")
    ] = None
    inventory: Inventory = VIRTUAL_LAB
    ports: Ports = ""


@app.command("try", rich_help_panel=RUN)
@taking(Try)
def try_series(words: Try) -> None:
    """Try a patch series: run the same cases without and with it, and write the reply."""
    from lab.cli.leased import move_ports
    from lab.night import trying
    from lab.selfcheck.doctor import demand_packages

    demand_packages()
    if words.ports:
        move_ports(words.inventory, words.ports)
    asked = trying.Asked(
        series=words.series,
        on=recipe(words.on),
        paths=tuple(located(path) for path in words.cases or ()),
        keyword=words.keyword,
        select=words.select,
        inventory=words.inventory,
        each=words.each,
    )
    raise typer.Exit(trying.command(asked, typer.echo))


@dataclass(frozen=True)
class Perf:
    """The words of ``xenlab perf``."""

    old: Annotated[str, typer.Argument(metavar="A", help="A build: a recipe by name, or a recipe file.")]
    new: Annotated[str, typer.Argument(metavar="B", help="The build that must cost no more than A.")]
    inventory: Inventory = COUNTED_LAB
    boards: Annotated[
        list[str] | None, typer.Option("--board", metavar="NAME", help="Only this board; repeatable.")
    ] = None
    keyword: Annotated[str, typer.Option("-k", metavar="EXPR", help="Only cases whose names match.")] = ""
    ports: Ports = ""
    as_json: AsJson = False


@app.command(rich_help_panel=RUN)
@taking(Perf)
def perf(words: Perf) -> None:
    """Compare what two builds cost, on small and large boards. Exit status: 1 if B costs more somewhere."""
    from lab.cli.leased import move_ports
    from lab.night import performance
    from lab.selfcheck.doctor import demand_packages

    demand_packages()
    if words.ports:
        move_ports(words.inventory, words.ports)
    asked = performance.Asked(
        recipe(words.old),
        recipe(words.new),
        words.inventory,
        tuple(words.boards or ()),
        keyword=words.keyword,
    )
    report = performance.run(asked, _to_stderr)
    if words.as_json:
        show_json(report.as_data())
    else:
        typer.echo("\n".join(report.lines()))
    raise typer.Exit(report.exit_status)


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)


@app.command(rich_help_panel=RUN)
def build(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of recipes, or recipe files.")],
) -> None:
    """Make hypervisor builds, two at a time, unless they are in the cache."""
    from lab import builds
    from lab.builds import several

    names = [recipe(name) for name in names]
    if len(names) > 1:
        raise typer.Exit(several.make_all(names))
    for name in names:
        made = builds.make(name, progress=_to_stderr)
        typer.echo(f"{made.name}  Xen {made.version}  build id {made.build_id}  {made.directory}")


@app.command(rich_help_panel=RUN)
def prepare(
    names: Annotated[
        list[str] | None, typer.Option("--build", metavar="NAME", help="A hypervisor build to test; repeatable.")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Make what a run needs (image, payloads, builds), unless it is in the cache. Run no case."""
    from lab import builds
    from lab.inventory import load
    from lab.night.lab_services import prepare
    from lab.selfcheck.doctor import demand_packages

    demand_packages()
    wanted = tuple(recipe(name) for name in names or ())
    for name in wanted:
        builds.recipe(name)  # a wrong one is said before anything is made
    prepare(load(inventory), _to_stderr)
    for name in wanted or (DEFAULT_BUILD,):
        builds.make(name, progress=_to_stderr)


@app.command(rich_help_panel=RUN)
def reproduce(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL", help="A cell of the matrix, as in a case's id (pvh64-cut-GO); `list` lists all cells."
        ),
    ],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Print shell commands that break a migration in the same way as a cell of the matrix, for any two dom0s."""
    from lab.inventory import load
    from lab.xen.migration_matrix import cells
    from lab.xen.migration_matrix.reproduce import commands

    if cell == "list":
        for one in cells.CELLS.values():
            typer.echo(f"{one.id}  {one.impossible and 'cannot be: ' + one.impossible or one.selection}")
        return
    found = cells.find(cell)
    peers = [pair[1] for pair in load(inventory).pairs()]
    nic = peers[0].nics.get("lab") if peers else None
    name = "localhost" if found.boards == 1 else peers[0].link_name if peers else "DESTINATION"
    typer.echo(commands(found, name, nic.mac if nic else "MAC-OF-THE-LAB-PORT"), nl=False)


def _deadline(text: str) -> float:
    from lab.base.daytime import next_time
    from lab.leases.records import seconds_of

    now = time.time()
    if ":" in text:
        return next_time(text, now)
    try:
        return now + seconds_of(text)
    except UsageError:
        raise UsageError(f"invalid deadline {text!r}; use 90m, 2h or HH:MM") from None
