"""Commands for people who share the boards of a lab: who has which board, reserve, extend, release."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from lab.base.errors import BenchError
from lab.cli.arguments import SHARE, AsJson, Inventory, show_json
from lab.night.options import VIRTUAL_LAB

app = typer.Typer()

WhichLease = Annotated[
    str | None,
    typer.Argument(
        metavar="[LEASE|BOARD]",
        help="Number of the lease, or a board of it; default: $XENLAB_LEASE, or your only lease.",
    ),
]

PATIENCE = 90.0  # seconds for boards that are free: what the last holder left is switched off first
FOREVER = 366 * 86400.0


@app.command(rich_help_panel=SHARE)
def boards(inventory: Inventory = VIRTUAL_LAB, as_json: AsJson = False) -> None:
    """List the boards, what they can do, and which are in quarantine."""
    from lab.cli.leased import open_lab

    lab, ledger = open_lab(inventory)
    states = ledger.boards(lab.boards)
    if as_json:
        show_json(
            [
                {
                    "board": board.name,
                    "class": board.board_class,
                    "at": board.at.name if board.at else None,
                    "capabilities": board.capabilities,
                    "shapes": {
                        name: shape.capabilities
                        for name, shape in (board.virtual.shapes if board.virtual else {}).items()
                    },
                    "health": states[board.name].health,
                    "quarantine": states[board.name].quarantine or None,
                }
                for board in lab.boards.values()
            ]
        )
        return
    for board in lab.boards.values():
        ill = f"  ({states[board.name].health})" if states[board.name].quarantine else ""
        there = f"  at {board.at.name}" if board.at else ""
        typer.echo(f"{board.name}  {board.board_class}{there}  {' '.join(sorted(board.capabilities))}{ill}")
        for name, shape in (board.virtual.shapes if board.virtual else {}).items():
            typer.echo(f"{board.name} as {name}  {' '.join(sorted(shape.capabilities))}")


@app.command(rich_help_panel=SHARE)
def who(
    audit: Annotated[bool, typer.Option("--audit", help="Also show what happened to the leases so far.")] = False,
    inventory: Inventory = VIRTUAL_LAB,
    as_json: AsJson = False,
) -> None:
    """Show for each board who has it, since when and until when, its health and its last verdict."""
    from rich.console import Console
    from rich.table import Table

    from lab.cli.leased import clock, open_lab, strangers

    lab, ledger = open_lab(inventory)
    leases = ledger.leases()
    of = {board: lease for lease in leases for board in lease.boards}
    others, trouble = strangers(lab, set(of))
    states = ledger.boards(lab.boards)
    places = {name: board.at.name if board.at else "" for name, board in lab.boards.items()}
    events = ledger.audit() if audit else []
    if as_json:
        show_json(
            {
                "boards": [
                    {
                        "board": name,
                        "at": places[name] or None,
                        "holder": of[name].holder if name in of else others.get(name),
                        "lease": of[name].id if name in of else None,
                        "since": of[name].since if name in of else None,
                        "until": of[name].until if name in of else None,
                        "wanted_back": (of[name].wanted_back or None) if name in of else None,
                        "health": state.health,
                        "last_verdict": state.verdict or None,
                    }
                    for name, state in states.items()
                ],
                "waiting": [
                    {"lease": one.id, "holder": one.holder, "since": one.asked, "request": str(one.request)}
                    for one in leases
                    if one.state == "waiting"
                ],
                "places_unknown": trouble or None,
                "audit": events,
            }
        )
        return
    at = ("at",) if lab.hosts else ()
    headings = ("board", *at, "holder", "lease", "since", "until", "health", "last verdict")
    table = Table(*headings, box=None, pad_edge=False)
    for name, state in states.items():
        row = [others.get(name, "-"), "-", "-", "-"]
        if lease := of.get(name):
            wanted = " (wanted back)" if lease.wanted_back else ""
            row = [lease.holder, str(lease.id), clock(lease.since), clock(lease.until) + wanted]
        table.add_row(
            name, *([places[name] or "the lab machine"] if at else []), *row, state.health, state.verdict or "-"
        )
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for lease in leases:
        if lease.state == "waiting":
            console.print(f"waiting: lease {lease.id}, {lease.holder}, since {clock(lease.asked)}: {lease.request}")
    if trouble:
        console.print(f"places taken by labgrid-client are not shown: {trouble}")
    for event in events:
        lease_word = f"lease {event.lease}" if event.lease else ""
        stamp = time.strftime("%F %T", time.localtime(event.time))
        console.print(f"{stamp}  {lease_word:<9} {event.board:<10} {event.what}: {event.detail}")


@app.command(rich_help_panel=SHARE)
def reserve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[BOARD...]", help="Names of boards; without names, any that fit.")
    ] = None,
    need: Annotated[
        str, typer.Option(metavar="CAPABILITIES", help="Capabilities that each board must have: iommu,hvm.")
    ] = "",
    count: Annotated[
        int,
        typer.Option(min=1, help="How many boards. With --need migration-pair, 2 gives two boards that are joined."),
    ] = 1,
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="For how long: 90m, 2h, 1d.")] = "2h",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are free.")] = False,
    shell: Annotated[
        bool, typer.Option("--shell", help="Print shell commands that set the lease's variables, for `eval`.")
    ] = False,
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="End the lease when this process ends ($$ in a job's script).")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Reserve boards for a time: either all that you ask for, or none."""
    from lab.base import processes
    from lab.cli.elsewhere import REACHED_AS
    from lab.cli.leased import clock, environment, open_lab
    from lab.inventory import capabilities
    from lab.leases import queue
    from lab.leases.asking import wait_for
    from lab.leases.records import Request, caller, seconds_of

    seconds = seconds_of(length)
    needs = frozenset(word for word in need.replace(",", " ").split() if word)
    for word in sorted(needs):
        capabilities.check(word)
    lab, ledger = open_lab(inventory, *(names or ()), must_be_up=True)
    request = Request(
        "person",
        caller(),
        seconds,
        tuple(names or ()),
        needs,
        count,
        processes.mark(pid) if pid else "",
    )
    states = ledger.boards(lab.boards)
    queue.check(request, lab, states)
    held = ledger.leases("held")  # boards that are being given back are waited for
    taken = {board for lease in held for board in lease.boards}
    if not wait and queue.choose(request, lab, states, {}, taken) is None:
        has = "; ".join(f"{','.join(lease.boards)}: {lease.holder} until {clock(lease.until)}" for lease in held)
        raise BenchError(f"not free now: {has}; add --wait to wait for them")
    number = ledger.ask(request)
    try:
        lease = wait_for(ledger, number, FOREVER if wait else PATIENCE)
    finally:
        if ledger.lease(number).state == "waiting":
            ledger.end(number, "not waited for any longer")
    for board in lease.boards:
        if (state := ledger.board(board)).quarantine:
            typer.echo(f"{board} is {state.health}", err=True)
    said = f"lease {lease.id}: {' '.join(lease.boards)} until {clock(lease.until)}"
    typer.echo(said, err=shell)
    if not shell:
        typer.echo(f"for labgrid-client{'' if REACHED_AS in os.environ else ', pytest'} and xenlab in this shell:")
    for line in environment(lab, lease):
        typer.echo(line if shell else f"    {line}")


@app.command(rich_help_panel=SHARE)
def extend(
    which: WhichLease = None,
    length: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long it lasts from now, at least: 90m, 2h, 1d.")
    ] = "1h",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Extend a lease; never shorten it. A job on another machine calls this repeatedly as a sign of life."""
    from lab.cli.leased import clock, mine, open_lab
    from lab.leases.records import seconds_of

    seconds = seconds_of(length)
    _, ledger = open_lab(inventory)
    lease = mine(ledger, which)
    until = ledger.extend(lease.id, seconds)
    is_longer = lease.until is not None and until < lease.until + 1  # the two are read from clocks that may differ
    same = f", as before: that is later than {length} from now" if is_longer else ""
    typer.echo(f"lease {lease.id}: {' '.join(lease.boards)} until {clock(until)}{same}")


@app.command(rich_help_panel=SHARE)
def release(which: WhichLease = None, inventory: Inventory = VIRTUAL_LAB) -> None:
    """Give the boards of a lease back, or stop waiting for them."""
    from lab.cli.leased import mine, open_lab

    _, ledger = open_lab(inventory)
    lease = mine(ledger, which)
    ledger.end(lease.id, "released by its holder")
    typer.echo(f"lease {lease.id}: {' '.join(lease.boards) or 'was not granted yet'}: given back")
