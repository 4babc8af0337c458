"""Commands for whoever racks boards: what a new board is, whether it does what its entry says, its health."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lab.base.errors import BenchError, UsageError
from lab.cli.arguments import RACK, Board, Inventory
from lab.night.options import VIRTUAL_LAB, NightlyOptions

app = typer.Typer()
board_app = typer.Typer(help="Probe, accept, check and quarantine a board.", no_args_is_help=True)
app.add_typer(board_app, name="board", rich_help_panel=RACK)

FIRST_PORT = 22212  # of the consoles, when no inventory says which are taken
STEP = 10  # from one board's ports to the next one's
# What a board is tried by: everything that can be tried on one, and relocation for two that are joined.
CASES = ("boot", "guest32", "superpages", "sleep", "passthrough")
PAIR_CASES = ("relocation/test_live.py",)


@board_app.command()
def probe(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="[USER@]HOST of the machine's system for SSH; default user: root.")
    ],
    bmc: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address of the machine's BMC; leave it out if there is none or you do not know it."
        ),
    ] = "",
    credential: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the BMC's credential in credentials.yaml.")
    ] = "",
    port: Annotated[int, typer.Option(help="The SSH port.")] = 22,
    name: Annotated[str, typer.Option(metavar="NAME", help="The board's name; default: its host name.")] = "",
    inventory: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The inventory that will get the entry; it says which ports and names are free."
        ),
    ] = None,
) -> None:
    """Look at a machine and print its inventory entry. It changes nothing on the machine and switches no power."""
    from lab.boards.probe import add_bmc, entry, look
    from lab.grid.ssh import Ssh
    from lab.inventory import load

    if bmc and not credential:
        raise UsageError("--bmc needs --credential: the name of who logs in there")
    user, _, host = address.rpartition("@")
    boards = load(inventory, may_be_empty=True).boards if inventory else {}
    shell = Ssh(name or host, host, port, user or "root")
    try:
        found = look(name, host, port, shell.run)
    finally:
        shell.close()
    if found.name in boards:
        raise UsageError(f"{inventory} has a board {found.name} already: --name gives this one another")
    if bmc:
        add_bmc(found, bmc, credential)
    taken = [board.console.serve_port for board in boards.values()]
    text = entry(found, serve_port=max(taken) + STEP if taken else FIRST_PORT)
    _check(text)
    typer.echo(text, nl=False)


@board_app.command()
def accept(
    boards: Annotated[list[str], typer.Argument(metavar="BOARD...", help="One board, or the two boards of a pair.")],
    build: Annotated[str, typer.Option(metavar="NAME", help="The hypervisor build.")] = "pv32-debug",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; default: a new one.", resolve_path=True)
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Run the quick cases on a new board. Exit status 0: it can do all it declares; 3: it cannot; 1: a case failed."""
    from lab.base import paths
    from lab.grid import services
    from lab.inventory import load
    from lab.leases.ledger import Ledger
    from lab.night.nightly import run
    from lab.results import run_folder
    from lab.results.record import LACKING

    lab = load(inventory)
    ledger = Ledger(services.directory(lab))
    for name, state in ledger.boards(lab.restricted(boards).boards).items():
        if state.is_away:
            raise BenchError(f"{name} is {state.health}")
        if state.quarantine:  # a run would wait for it to become a good one
            raise BenchError(f"{name} is in quarantine ({state.quarantine}): `xenlab board check {name}` comes first")
    joined = any({end.name for end in pair} == set(boards) for pair in lab.pairs())
    cases = [f"testcases/{name}" for name in (*CASES, *(PAIR_CASES if joined else ()))]
    name = run_folder.new_id()
    folder = output or paths.state() / "runs" / name
    options = NightlyOptions(
        paths=tuple(cases),
        inventory=inventory,
        output=folder,
        run_id=name,
        builds=(build,),
        select="quick",
        boards=tuple(boards),
    )
    status = run(options)
    evidence = [one for result in run_folder.RunFolder.open(folder).results() for one in result.evidence]
    if lacking := sorted({f"{one.title}: {one.body}" for one in evidence if one.kind == LACKING}):
        raise BenchError("\n".join(lacking))
    if status == 0:
        typer.echo(f"accepted: {', '.join(boards)}")
    raise typer.Exit(status)


@board_app.command()
def quarantine(
    board: Board,
    cause: Annotated[
        str, typer.Argument(metavar="CAUSE", help="What is wrong with the board; other users see this text.")
    ],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Put a board into quarantine: only who names it gets it."""
    from lab.cli.leased import open_lab

    _, ledger = open_lab(inventory, board)
    ledger.quarantine(board, cause)
    typer.echo(f"{board} is {ledger.board(board).health}")


@board_app.command()
def check(
    board: Board,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look from outside only, without a boot. This lifts no quarantine.")
    ] = False,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Check whether a board is healthy. A good board leaves quarantine, a bad one goes into it. Exit status 3: bad."""
    from lab.boards import health
    from lab.cli.leased import open_lab
    from lab.grid import services, session

    lab, ledger = open_lab(inventory, board, must_be_up=True)
    spec = lab.boards[board]
    if quick:
        findings = health.look(spec)
    else:
        with session.acquire(lab, [board], services.directory(lab), kind="check") as held:
            findings = health.examine(held.board(board))
    typer.echo("\n".join(map(str, findings)))
    is_good = health.conclude(ledger, board, findings, is_whole=not quick)
    typer.echo(f"{board} is {ledger.board(board).health}")
    raise typer.Exit(0 if is_good else 3)


@board_app.command()
def clear(board: Board, inventory: Inventory = VIRTUAL_LAB) -> None:
    """Lift a quarantine without a check (`xenlab board check` does one)."""
    from lab.cli.leased import open_lab
    from lab.leases.records import caller

    _, ledger = open_lab(inventory, board)
    ledger.clear(board, f"by {caller()}, unseen", checked=False)
    typer.echo(f"{board} is {ledger.board(board).health}")


def _check(text: str) -> None:
    """An entry that could not be read back would be our own mistake: better said here than later.

    :raises UsageError: the inventory would refuse it.
    """
    from lab.inventory import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entry.yaml"
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        path.write_text(f"all:\n  vars: {{xenlab: {{lab: probe}}}}\n  hosts:\n{indented}", encoding="utf-8")
        load(path)
