"""The command line. Commands hand over to the module that does the work, imported only then.

Exit statuses: 0 good; 1 a case failed, a figure is short; 2 the caller is wrong; 3 the bench failed;
70 a fault in xenlab itself; 130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from lab.base.errors import BenchError, LabError, UsageError
from lab.cli import racking, sharing
from lab.night.options import VIRTUAL_LAB, NightlyOptions, Selection

app = typer.Typer(
    name="xenlab",
    help="A hardware-in-the-loop test lab for the Xen hypervisor.",
    epilog="Exit statuses: 0 good, 1 a case failed, 2 wrong use, 3 bench failed, 70 fault in xenlab, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
lab_app = typer.Typer(help="The lab's services, and its boards if they are virtual.", no_args_is_help=True)
app.add_typer(lab_app, name="lab")
board_app = typer.Typer(help="One board: what it is, and whether it can be used.", no_args_is_help=True)
app.add_typer(board_app, name="board")
app.add_typer(sharing.app)
board_app.command()(sharing.check)
board_app.command()(sharing.quarantine)
board_app.command()(sharing.clear)
board_app.command()(racking.probe)
board_app.command()(racking.accept)

Inventory = Annotated[
    Path, typer.Option("--inventory", metavar="FILE", help="The boards.", show_default=False, resolve_path=True)
]


@app.callback()
def options(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to stderr; twice: more.")] = 0,
) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")


@app.command()
def nightly(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="PATHS", help="Cases, as pytest takes them; default: all.")
    ] = None,
    keyword: Annotated[str, typer.Option("-k", metavar="EXPR", help="Only cases of such names.")] = "",
    marker: Annotated[str, typer.Option("-m", metavar="EXPR", help="Only cases of such markers.")] = "",
    inventory: Inventory = VIRTUAL_LAB,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: a new one.", resolve_path=True)
    ] = None,
    build: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Hypervisor build; repeatable.")] = None,
    matrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Builds x command lines x dom0 modes.", resolve_path=True)
    ] = None,
    select: Annotated[
        Selection | None, typer.Option(help="How much; default: quick on a virtual lab, full on machines.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a run that broke off.", resolve_path=True)
    ] = None,
    xtf: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Built XTF tests; each is a case.", resolve_path=True)
    ] = None,
    deadline: Annotated[
        str, typer.Option(metavar="WHEN", help="HH:MM, or a time from now as 2h: begin no case after it.")
    ] = "",
    repeat: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run each case N times: good is only PASS each time.")
    ] = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Check each board from within before use; takes a boot.")
    ] = False,
) -> None:
    """Bring the lab up, provision, run the cases, report."""
    from lab.night import nightly as night

    wanted = NightlyOptions(
        paths=tuple(_located(path) for path in cases or ()),
        keyword=keyword,
        marker=marker,
        inventory=inventory,
        output=output,
        builds=tuple(_located(name) if name.endswith((".yaml", ".yml")) else name for name in build or ()),
        matrix=matrix,
        select=select,
        resume=resume,
        xtf=xtf,
        deadline=_deadline(deadline) if deadline else None,
        checks=check,
        repeat=repeat,
    )
    raise typer.Exit(night.run(wanted))


@app.command()
def selftest(
    steps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STEPS",
            help="lint, types, imports, unit, boards, broken, mutants; default: all. With --mutants: AREA, AREA/NAME.",
        ),
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Instead: run hypervisors broken on purpose, whom cases must fail.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="With --mutants: one of each area.")] = False,
    inventory: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --mutants: the boards.", show_default=False, resolve_path=True),
    ] = None,
) -> None:
    """Test the framework itself, then the quick cases on the virtual boards, then broken things on them."""
    if mutants:
        from lab.selfcheck import mutants as broken

        raise typer.Exit(broken.run(steps or (), inventory or VIRTUAL_LAB, is_sample=sample))
    if sample or inventory:
        raise UsageError("--sample and --inventory go with --mutants only")
    from lab.selfcheck import selftest as steps_of_tox

    raise typer.Exit(steps_of_tox.run(steps or ()))


@lab_app.command("up")
def lab_up(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Start boards (if virtual), coordinator, exporter and console recorders, and leave them running."""
    from lab import inventory as inventories
    from lab.grid import services
    from lab.night import nightly as night

    lab = inventories.load(inventory)
    night.lab_up(lab, detach=True, progress=typer.echo)
    if not lab.is_private:
        warning = (
            f"{lab.coordinator} is not loopback: labgrid asks for no password, so whoever reaches it has the boards"
        )
        typer.echo(warning, err=True)
    typer.echo(f"up: {', '.join(sorted(lab.boards))}; for labgrid-client in this shell:")
    typer.echo(f"    . {services.directory(lab) / 'env.sh'}")


@lab_app.command("status")
def lab_status(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Show what of the lab runs; exit status 3 when it is not up."""
    from lab import inventory as inventories
    from lab.grid import services

    status = services.status(services.directory(inventories.load(inventory)))
    typer.echo(str(status))
    raise typer.Exit(0 if status.is_up else 3)


@lab_app.command("down")
def lab_down(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Stop all of it; virtual boards lose power."""
    from lab import inventory as inventories
    from lab.night import nightly as night

    night.lab_down(inventories.load(inventory))


@lab_app.command("fault")
def lab_fault(
    board: Annotated[str, typer.Argument(metavar="BOARD", help="A virtual board of a lab that is up.")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="`list` lists them; `none` ends all.")],
    value: Annotated[str | None, typer.Argument(metavar="[VALUE]", help="How long or how often.")] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Have the BMC of a virtual board misbehave; not of one that somebody else holds."""
    from lab.grid import services
    from lab.virtual import boards as machines
    from lab.virtual import faults

    if kind == "list":
        for name, known in faults.KINDS.items():
            typer.echo(f"{name:<16} {known.text} ({known.value:g})")
        return
    request = "none" if kind == "none" else "{} {:g}".format(*faults.parse(kind, value))
    lab = sharing.unless_held(inventory, board)
    machines.ask(lab, services.directory(lab) / "boards", board, f"fault {request}")


@lab_app.command("shape")
def lab_shape(
    board: Annotated[str, typer.Argument(metavar="BOARD")],
    shape: Annotated[str, typer.Argument(metavar="[SHAPE]", help="Of the inventory's `shapes`; none: its own.")] = "",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Give a virtual board another shape from its next power on; this powers all of them off."""
    from lab import inventory as inventories
    from lab.night import nightly as night

    night.lab_shape(inventories.load(inventory), board, shape)


@app.command()
def build(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Recipes in firmware/builds.")],
) -> None:
    """Make hypervisor builds, two at a time, or find them in the cache."""
    from lab import builds
    from lab.builds import several

    names = [_located(name) if name.endswith((".yaml", ".yml")) else name for name in names]
    if len(names) > 1:
        raise typer.Exit(several.make_all(names))
    for name in names:
        made = builds.make(name, progress=lambda text: typer.echo(text, err=True))
        typer.echo(f"{made.name}  Xen {made.version}  build id {made.build_id}  {made.directory}")


@app.command()
def prepare(
    names: Annotated[
        list[str] | None, typer.Option("--build", metavar="NAME", help="Hypervisor build; repeatable.")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Make all that a run needs (image, payloads, builds), or find it in the cache; run nothing."""
    from lab import inventory as inventories
    from lab.night import nightly as night

    night.prepare(inventories.load(inventory), tuple(names or ()), lambda text: typer.echo(text, err=True))


@app.command()
def netboot(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Write what boards without a disk are served by this machine, with dnsmasq's configuration; `lab up` does too."""
    from lab import inventory as inventories
    from lab.grid import services
    from lab.virtual import served

    lab = inventories.load(inventory)
    if not lab.network_booted():
        raise UsageError(f"{inventory}: no board in it has boot: network")
    if services.status(services.directory(lab)).processes:
        raise UsageError(f"lab {lab.name} is up and serves its boards; `xenlab lab down` ends it")
    folder = served.write(lab, progress=lambda text: typer.echo(text, err=True))
    typer.echo(f"in {folder}: DHCP and TFTP for {', '.join(board.name for board in lab.network_booted())}; as root:")
    typer.echo(f"    dnsmasq --conf-file={folder / 'dnsmasq.conf'}")
    typer.echo("HTTP is a service of the lab: `xenlab lab up`")


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="`all`, or none to list them.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures.")] = None,
) -> None:
    """Measure the lab itself and hold the figures against their bars."""
    from lab.selfcheck import benchmarking as benchmarks

    raise typer.Exit(benchmarks.run(names or (), json_file))


@app.command()
def history(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE | DIR...]", help="A case; or run folders, with --import.")
    ] = None,
    take: Annotated[
        bool, typer.Option("--import", help="Import run folders, or all in a folder; again changes nothing.")
    ] = False,
    crashes: Annotated[bool, typer.Option("--crashes", help="The crashes: how often, first and last build.")] = False,
) -> None:
    """Show a case over time; without one, the builds there are."""
    from lab.history import pages
    from lab.history.importing import run_folders
    from lab.history.store import History

    words = names or []
    if crashes and (take or words):
        raise UsageError("history --crashes goes with nothing else")
    if len(words) < 1 if take else len(words) > 1:
        raise UsageError("history wants one CASE, or --import and at least one DIR")
    store = History()
    if take:
        for folder in [folder for word in words for folder in run_folders(Path(word))]:
            typer.echo(f"{store.import_run(folder):<9} {folder}")
    elif crashes:
        typer.echo("\n".join(pages.crash_lines(store.crashes())) or "no result has a crash")
    elif words:
        case = store.case(words[0])
        typer.echo(case)
        for page in pages.case_pages(store, case):
            typer.echo("\n".join(pages.case_lines(page)))
    else:
        typer.echo("\n".join(pages.build_lines(store.builds())) or f"nothing was imported yet: {store.where}")


@app.command()
def gate(
    build: Annotated[str, typer.Option(metavar="BUILD", help="NAME, NAME@KEY, RUN or RUN@NAME; RUN may be a folder.")],
    baseline: Annotated[
        str, typer.Option(metavar="BUILD", help="Default: the build of the line that was accepted last.")
    ] = "",
) -> None:
    """Judge a build against its baseline. Exit status: 0 pass, 1 blocked by a new failure, 3 nothing to judge."""
    from lab.history import gate as gates
    from lab.history.store import History

    store = History()
    new = store.select(build)
    found = gates.compare(store, new, store.select(baseline) if baseline else gates.baseline(store, new))
    typer.echo("\n".join(gates.gate_lines(found)))
    raise typer.Exit(found.exit_status)


@app.command()
def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="A build or run: NAME, NAME@KEY, RUN or RUN@NAME.")],
    new: Annotated[str, typer.Argument(metavar="B", help="Another: what became of it since A.")],
) -> None:
    """Show what changed from one build or run to another."""
    from lab.history import gate as gates
    from lab.history.store import History

    store = History()
    typer.echo("\n".join(gates.comparison_lines(gates.compare(store, store.select(new), store.select(old)))))


@app.command()
def report(
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    where: Annotated[
        Path | None, typer.Option("--site", metavar="DIR", help="Default: the state folder's.", resolve_path=True)
    ] = None,
) -> None:
    """Bring the pages up to date: what got worse, builds, runs, cases, results. They need no server."""
    from lab.history.store import History
    from lab.reporting import site

    store = History()
    site.take_over(store)
    page = site.write(store, where or site.default())
    typer.echo(str(page))
    if show:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise BenchError(f"no browser is to be had; the page is {page}")


@app.command()
def bisect(
    case: Annotated[str, typer.Option(metavar="CASE", help="The case, as pytest names it.")],
    good: Annotated[str, typer.Option(metavar="A", help="A revision, or a build of --among, that passes.")],
    bad: Annotated[str, typer.Option(metavar="B", help="A later one that fails.")],
    build: Annotated[str, typer.Option(metavar="NAME", help="How a revision is built.")] = "pv32-debug",
    source: Annotated[str, typer.Option(metavar="REPOSITORY", help="Default: that of the build.")] = "",
    among: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Builds, the oldest first, in place of revisions; repeat.")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
    tries: Annotated[int, typer.Option(min=1, help="Attempts that tell how often the bad one fails.")] = 3,
) -> None:
    """Find the commit, or the build, with which a case began to fail. Started again, it goes on."""
    from lab.night import bisection

    names = tuple(_located(name) if name.endswith((".yaml", ".yml")) else name for name in [build, *(among or ())])
    asked = bisection.Asked(_located(case), good, bad, names[0], source, names[1:], inventory, tries)
    raise typer.Exit(bisection.command(asked, typer.echo))


@app.command()
def accept(
    build: Annotated[
        str, typer.Argument(metavar="BUILD", help="NAME, NAME@KEY, RUN or RUN@NAME; RUN may be a folder.")
    ],
) -> None:
    """Make a build the baseline of its line."""
    from lab.history.store import History

    store = History()
    accepted = store.select(build).build
    store.accept(accepted)
    typer.echo(f"{accepted.label} is the baseline of {accepted.line} now")


@app.command()
def reproduce(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="As in a case's id: pvh64-cut-GO; `list` lists them.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Print the commands that break a relocation as a cell of the matrix does, for any two dom0s."""
    from lab import inventory as inventories
    from lab.xen.migration_matrix import cells
    from lab.xen.migration_matrix import reproduce as reproducing

    if cell == "list":
        for one in cells.CELLS.values():
            typer.echo(f"{one.id}  {one.impossible and 'cannot be: ' + one.impossible or one.selection}")
        return
    found = cells.find(cell)
    peers = [ends[1] for ends in inventories.load(inventory).pairs()]
    nic = peers[0].nics.get("lab") if peers else None
    name = "localhost" if found.boards == 1 else peers[0].link_name if peers else "DESTINATION"
    typer.echo(reproducing.commands(found, name, nic.mac if nic else "MAC-OF-THE-LAB-PORT"), nl=False)


@app.command()
def doctor() -> None:
    """Say what this machine lacks, and what to do; nothing is changed."""
    from lab.selfcheck import doctor as setup

    findings = setup.examine()
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.is_good else 'BAD '} {finding.subject}: {finding.detail}")
        if not finding.is_good:
            typer.echo(f"      {finding.remedy}")
    raise typer.Exit(0 if all(finding.is_good for finding in findings) else 1)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove old runs and what can be made again."""
    from lab.results import pruning

    for line in pruning.prune(dry_run=dry_run):
        typer.echo(line)


@app.command()
def cases(
    write: Annotated[bool, typer.Option("--write", help="Write docs/case-table.md instead of printing it.")] = False,
    seen: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="With --write: runs of virtual boards to add to testcases/reference.yaml."),
    ] = None,
) -> None:
    """List the cases: what each proves, needs and keeps, the mutant that it must fail, how it has ended."""
    from lab.selfcheck import case_history, case_table

    if seen and not write:
        raise UsageError("--seen goes with --write")
    if seen:
        rows = case_history.added(case_history.read(), seen)
        case_history.write(rows, [case.nodeid for case in case_table.every()])
    if write:
        case_table.FILE.write_text(case_table.text(), encoding="utf-8")
    else:
        typer.echo(case_table.text(), nl=False)


@app.command()
def version() -> None:
    """Say what this is, and on what it stands."""
    import platform
    import tomllib
    from importlib import metadata

    from lab.base import paths

    project = tomllib.loads((paths.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    others = ", ".join(f"{name} {metadata.version(name)}" for name in ("labgrid", "pytest", "ansible-core"))
    typer.echo(f"xenlab {project['version']} ({others}, Python {platform.python_version()})")


def _located(path: str) -> str:
    """A path of the user's, absolute when it is there from where they stand; else it is one of the checkout's."""
    file, separator, node = path.partition("::")
    return f"{Path(file).resolve()}{separator}{node}" if Path(file).exists() else path


def _deadline(text: str) -> float:
    from lab.base import daytime
    from lab.leases import ledger

    now = time.time()
    return daytime.next_time(text, now) if ":" in text else now + ledger.seconds_of(text)


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: to be cleaned up after as an interrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. All errors end here, and only the unexpected ones leave a traceback, in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _invoke(words or ["--help"])
        sys.stdout.flush()
    except TyperException as error:
        said = error.format_message()  # empty where a group without a command has shown its help
        status = _complain(f"{said} (see xenlab --help)", 2) if said else 2
    except UsageError as error:
        status = _complain(str(error), 2)
    except BenchError as error:
        status = _complain(str(error), 3)
    except LabError as error:  # a missing capability or a crash, outside a case
        status = _complain(str(error), 1)
    except _Terminated as error:
        status = _complain(f"ended by {error}", error.status)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    except BrokenPipeError:  # `xenlab ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            status = _complain(f"the disk is full: {error}; `xenlab clean` removes old runs", 3)
        else:
            status = _fault(error)
    except Exception as error:
        status = _fault(error)
    sys.exit(status)


def _fault(error: Exception) -> int:
    where = _write_traceback()
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return _complain(f"fault in xenlab: {told[:300]} (traceback in {where})", 70)


def _invoke(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("xenlab", words) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _complain(message: str, status: int) -> int:
    sys.stdout.flush()
    typer.echo(f"xenlab: {message}", err=True)
    return status


def _write_traceback() -> str:
    import tempfile
    import traceback

    from lab.base import paths

    text = f"{sys.argv}\n{traceback.format_exc()}"
    try:
        folder = paths.state() / "faults"
        folder.mkdir(exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir())
    handle, name = tempfile.mkstemp(prefix="fault-", suffix=".log", dir=folder)
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return name
