"""Commands for those who read results: what a build did, and whether it is worse than another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.base.errors import BenchError, UsageError
from lab.cli.arguments import READ, AsJson, show_json

app = typer.Typer()

BUILD_HELP = "NAME, NAME@KEY, RUN or RUN@NAME; RUN may be a folder."


@app.command(rich_help_panel=READ)
def report(
    show: Annotated[bool, typer.Option("--open", help="Open the first page in a browser.")] = False,
    where: Annotated[
        Path | None,
        typer.Option(
            "--site", metavar="DIR", help="Folder of the pages; default: in the state folder.", resolve_path=True
        ),
    ] = None,
    as_mail: Annotated[
        bool, typer.Option("--mail", help="Print the results of a run (default: the newest) as a mail instead.")
    ] = False,
    send: Annotated[bool, typer.Option("--send", help="With --mail: also send the mail to XENLAB_NOTIFY.")] = False,
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="With --mail: the run's id or folder.")] = "",
) -> None:
    """Update the result pages of all runs: what got worse, builds, runs, cases. The pages need no server."""
    if (send or run) and not as_mail:
        raise UsageError("--send and --run go with --mail")
    if as_mail:
        _mail(run, send=send, site_folder=where)
        return
    from lab.history.store import History
    from lab.reporting import site

    folder = where or site.default()
    store = History()
    site.take_over(store)
    try:
        page = site.write(store, folder)
    except OSError as error:
        if where is None or not _is_denied(error):
            raise
        raise UsageError(f"--site {where}: cannot write there: {error.strerror}") from None
    typer.echo(str(page))
    if show:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise BenchError(f"no browser could be opened; the page is {page}")


@app.command(rich_help_panel=READ)
def history(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE | DIR...]", help="A case; with --import, run folders.")
    ] = None,
    take: Annotated[
        bool,
        typer.Option(
            "--import", help="Import run folders, or all run folders in a folder. A second import changes nothing."
        ),
    ] = False,
    crashes: Annotated[
        bool,
        typer.Option("--crashes", help="List the crashes: how often each was seen, with which first and last build."),
    ] = False,
    figure: Annotated[
        str,
        typer.Option("--figure", metavar="NAME", help="Show a figure over builds: its values, its noise, its steps."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show a case over time. Without a case, list the builds."""
    from lab.history import pages, tracks
    from lab.history.importing import run_folders
    from lab.history.store import History

    words = names or []
    if (crashes or figure) and (take or words) or (crashes and figure):
        raise UsageError("history takes one of CASE, --crashes, --figure and --import")
    if len(words) < 1 if take else len(words) > 1:
        raise UsageError("history takes one CASE, or --import and at least one DIR")
    store = History()
    if take:
        imported = [(store.import_run(folder), folder) for word in words for folder in run_folders(Path(word))]
        if as_json:
            show_json([{"import": outcome, "folder": folder} for outcome, folder in imported])
        else:
            for outcome, folder in imported:
                typer.echo(f"{outcome:<9} {folder}")
    elif figure:
        found_tracks = tracks.of_figure(store, figure)
        if as_json:
            show_json([pages.figure_data(track) for track in found_tracks])
        else:
            typer.echo("\n".join(line for track in found_tracks for line in pages.figure_lines(track)))
    elif crashes:
        found = store.crashes()
        if as_json:
            show_json(found)
        else:
            typer.echo("\n".join(pages.crash_lines(found)) or "no result has a crash")
    elif words:
        case = store.case(words[0])
        found_pages = list(pages.case_pages(store, case))
        if as_json:
            show_json([{"series": page.series, "entries": page.entries} for page in found_pages])
        else:
            typer.echo(case)
            for page in found_pages:
                typer.echo("\n".join(pages.case_lines(page)))
    elif as_json:
        show_json(store.builds())
    else:
        typer.echo("\n".join(pages.build_lines(store.builds())) or f"the history has no run yet: {store.where}")


@app.command(rich_help_panel=READ)
def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="A build or run: NAME, NAME@KEY, RUN or RUN@NAME.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The build or run that is compared with A.")],
    as_json: AsJson = False,
) -> None:
    """Show what changed from one build or run to another. Two runs are compared build by build."""
    from lab.history import comparing, gate
    from lab.history.store import History

    store = History()
    found = [gate.compare(store, newer, older) for older, newer in comparing.pairs(store, old, new)]
    if as_json:
        show_json([comparing.as_data(one) for one in found])
    else:
        typer.echo("\n\n".join("\n".join(gate.comparison_lines(one)) for one in found))


@app.command("gate", rich_help_panel=READ)
def judge(
    build: Annotated[str, typer.Option(metavar="BUILD", help=BUILD_HELP)],
    baseline: Annotated[
        str,
        typer.Option(metavar="BUILD", help="The baseline; default: the last accepted build, else an earlier good one."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Judge a build against its baseline. Exit status: 0 pass, 1 worse, 3 nothing to judge."""
    from lab.history import comparing, gate
    from lab.history.store import History

    store = History()
    new = store.select(build)
    found = gate.compare(store, new, store.select(baseline) if baseline else gate.baseline(store, new))
    if as_json:
        show_json(comparing.as_data(found) | {"exit_status": found.exit_status})
    else:
        typer.echo("\n".join(gate.gate_lines(found)))
    raise typer.Exit(found.exit_status)


@app.command(rich_help_panel=READ)
def export(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The run's id or folder; default: the newest.")] = "",
    as_kcidb: Annotated[bool, typer.Option("--kcidb", help="Print it as a report of KCIDB.")] = False,
    origin: Annotated[
        str, typer.Option("--origin", metavar="NAME", help="With --kcidb: the receiver's name for this lab.")
    ] = "",
) -> None:
    """Print the results of a run for another system, as JSON. Name the format: --kcidb."""
    if not as_kcidb:
        raise UsageError("export needs a format: add --kcidb")
    from lab.history.store import History
    from lab.reporting import kcidb
    from lab.results.run_folder import RunFolder

    folder = RunFolder.open(History().folder_of(run))
    typer.echo(kcidb.text(folder.summary(), origin or kcidb.ORIGIN), nl=False)


@app.command(rich_help_panel=READ)
def findings(as_json: AsJson = False) -> None:
    """List the findings in Xen: on which releases each was seen, and the page that tells it."""
    from lab.reporting import findings as known

    if as_json:
        show_json({"findings": known.seen()})
    else:
        typer.echo("\n".join(known.table()))


@app.command(rich_help_panel=READ)
def accept(build: Annotated[str, typer.Argument(metavar="BUILD", help=BUILD_HELP)]) -> None:
    """Make a build the baseline of its line."""
    from lab.history.store import History

    store = History()
    accepted = store.select(build).build
    store.accept(accepted)
    typer.echo(f"{accepted.label} is the baseline of {accepted.line} now")


def _mail(run: str, *, send: bool, site_folder: Path | None) -> None:
    from lab.history.store import History
    from lab.reporting import ci, mail, notify, site
    from lab.results.run_folder import RunFolder

    store = History()
    site.take_over(store)
    summary = RunFolder.open(store.folder_of(run)).summary()
    store.import_run(summary)
    news = ci.judged(store, summary)
    pages = site_folder or site.default()
    text = mail.body(summary, news, pages if (pages / "index.html").exists() else None)
    typer.echo(f"Subject: {mail.subject(summary, news)}\n\n{text}", nl=False)
    if not send:
        return
    if not notify.is_set():
        raise UsageError(
            f"--send: {notify.SETTING} names nobody; want URLs of apprise, as mailtos://USER:PASSWORD@HOST"
        )
    if fault := notify.send(ci.headline(summary, news), text.splitlines(), text):
        raise BenchError(fault)


def _is_denied(error: OSError) -> bool:
    """Whether the place is to blame, and not a full disk."""
    import errno

    return error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
    )
