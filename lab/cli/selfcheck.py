"""Commands for those who work on xenlab itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import RUN, WORK, AsJson, show_json
from lab.night.options import VIRTUAL_LAB

app = typer.Typer()


@app.command(rich_help_panel=WORK)
def selftest(
    steps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STEPS",
            help="lint, types, imports, unit, boards, broken, mutants, container; default: all of these. fuzz, soak: "
            "only when they are named. With --mutants: AREA, AREA/NAME.",
        ),
    ] = None,
    mutants: Annotated[
        bool,
        typer.Option(
            "--mutants", help="Instead, run hypervisors that are broken on purpose; the cases must fail on them."
        ),
    ] = False,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="With --mutants: one mutant of each required area, or those named; one case each."
        ),
    ] = False,
    on: Annotated[
        str, typer.Option(metavar="BUILD", help="With --mutants: the build to break, in place of each mutant's own.")
    ] = "",
    inventory: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --mutants: inventory of the boards.", show_default=False, resolve_path=True
        ),
    ] = None,
    time_for: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="With fuzz or soak: for how long to make trouble: 90m, 1h.", show_default="1h"
        ),
    ] = None,
) -> None:
    """Test xenlab itself: the code, the quick cases on virtual boards, and hypervisors that are broken on purpose."""
    if mutants:
        from lab.selfcheck.mutants import run

        build = str(Path(on).resolve()) if on.endswith(".yaml") else on
        raise typer.Exit(run(steps or (), inventory or VIRTUAL_LAB, is_sample=sample, build=build))
    if sample or inventory or on:
        raise UsageError("--sample, --inventory and --on need --mutants")
    from lab.base import paths
    from lab.selfcheck import selftest

    paths.checkout("selftest")
    if time_for and not selftest.TIMED.keys() & set(steps or ()):
        raise UsageError("--for needs the step fuzz or soak")
    raise typer.Exit(selftest.run(steps or (), time_for=time_for or "1h"))


@app.command(rich_help_panel=WORK)
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Names of benchmarks, or `all`. Without a name, list them."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Run benchmarks of xenlab itself, and compare the figures with their limits."""
    from lab.selfcheck import benchmarking

    raise typer.Exit(benchmarking.run(names or (), json_file))


@app.command(rich_help_panel=RUN)
def cases(
    write: Annotated[bool, typer.Option("--write", help="Write docs/case-table.md instead of printing it.")] = False,
    seen: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="With --write: runs of virtual boards to add to testcases/reference.yaml."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the cases: what each proves, needs and keeps, the mutants on which it must fail, and how it ended."""
    from lab.base import paths
    from lab.results import reference
    from lab.selfcheck import case_table

    if seen and not write:
        raise UsageError("--seen needs --write")
    if write and as_json:
        raise UsageError("--json and --write: give one of them")
    if write:
        paths.checkout("cases --write")
    if seen:
        rows = reference.added(reference.read(), seen)
        reference.write(rows, [case.nodeid for case in case_table.every()])
    if as_json:
        show_json(case_table.every())
    elif write:
        case_table.FILE.write_text(case_table.text(), encoding="utf-8")
    else:
        typer.echo(case_table.text(), nl=False)
