"""The desk where boards are given out: the commands of people who share them."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.base.errors import BenchError, UsageError
from lab.night.options import VIRTUAL_LAB

if TYPE_CHECKING:
    from lab.inventory import Lab
    from lab.leases.ledger import Lease, Ledger

app = typer.Typer()

Inventory = Annotated[
    Path, typer.Option("--inventory", metavar="FILE", help="The boards.", show_default=False, resolve_path=True)
]
Board = Annotated[str, typer.Argument(metavar="BOARD", help="Its exact name.")]
Number = Annotated[int | None, typer.Argument(metavar="[LEASE]", help="Default: $XENLAB_LEASE, or your only one.")]

PATIENCE = 90.0  # seconds for boards that are free: what the last holder left is switched off first
FOREVER = 366 * 86400.0


@app.command()
def reserve(
    names: Annotated[list[str] | None, typer.Argument(metavar="[BOARD...]", help="These very boards.")] = None,
    need: Annotated[str, typer.Option(metavar="CAPABILITIES", help="What they must be able to do: iommu,hvm.")] = "",
    count: Annotated[
        int, typer.Option(min=1, help="How many; 2 with migration-pair in --need are two that are joined.")
    ] = 1,
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="90m, 2h, 1d.")] = "2h",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are free.")] = False,
    shell: Annotated[bool, typer.Option("--shell", help="Print nothing but what a shell evaluates.")] = False,
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="The lease ends with this process too: $$ in a job's script.")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Have boards for a while: all that were asked for, or none."""
    from lab.base import processes
    from lab.grid.session import wait_for
    from lab.leases import ledger as booking
    from lab.leases import queue

    lab, ledger = _open(inventory, *(names or ()), must_be_up=True)
    request = booking.Request(
        "person",
        booking.caller(),
        booking.seconds_of(length),
        tuple(names or ()),
        frozenset(word for word in need.replace(",", " ").split() if word),
        count,
        processes.mark(pid) if pid else "",
    )
    states = ledger.boards(lab.boards)
    queue.check(request, lab, states)
    held = ledger.leases("held")  # what is being given back is waited for
    taken = {board for lease in held for board in lease.boards}
    if not wait and queue.choose(request, lab, states, {}, taken) is None:
        has = "; ".join(f"{','.join(lease.boards)}: {lease.holder} until {_clock(lease.until)}" for lease in held)
        raise BenchError(f"not free now: {has}; --wait waits")
    number = ledger.ask(request)
    try:
        lease = wait_for(ledger, number, FOREVER if wait else PATIENCE)
    finally:
        if ledger.lease(number).state == "waiting":
            ledger.end(number, "not waited for any longer")
    for board in lease.boards:
        if (state := ledger.board(board)).quarantine:
            typer.echo(f"{board} is {state.health}", err=True)
    said = f"lease {lease.id}: {' '.join(lease.boards)} until {_clock(lease.until)}"
    typer.echo(said, err=shell)
    if not shell:
        typer.echo("for labgrid-client, pytest and xenlab in this shell:")
    for line in environment(lab, lease):
        typer.echo(line if shell else f"    {line}")


@app.command()
def extend(
    number: Number = None,
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="From now on: 90m, 2h, 1d.")] = "1h",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Keep boards for longer. Called again and again by a job on another machine, it is a sign of life."""
    from lab.leases import ledger as booking

    _, ledger = _open(inventory)
    lease = _mine(ledger, number)
    until = ledger.extend(lease.id, booking.seconds_of(length))
    typer.echo(f"lease {lease.id}: {' '.join(lease.boards)} until {_clock(until)}")


@app.command()
def release(number: Number = None, inventory: Inventory = VIRTUAL_LAB) -> None:
    """Give boards back, or do not wait for them any longer."""
    _, ledger = _open(inventory)
    lease = _mine(ledger, number)
    ledger.end(lease.id, "released by its holder")
    typer.echo(f"lease {lease.id}: {' '.join(lease.boards) or 'was not granted yet'}: given back")


@app.command()
def who(
    audit: Annotated[bool, typer.Option("--audit", help="What happened, too.")] = False,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Show who has each board, since when and until when, how it is, and what was said of it last."""
    from rich.console import Console
    from rich.table import Table

    lab, ledger = _open(inventory)
    leases = ledger.leases()
    of = {board: lease for lease in leases for board in lease.boards}
    strangers, trouble = _strangers(lab, set(of))
    table = Table("board", "holder", "lease", "since", "until", "health", "last verdict", box=None, pad_edge=False)
    for name, state in ledger.boards(lab.boards).items():
        row = [name, strangers.get(name, "-"), "-", "-", "-"]
        if lease := of.get(name):
            wanted = " (wanted back)" if lease.wanted_back else ""
            row = [name, lease.holder, str(lease.id), _clock(lease.since), _clock(lease.until) + wanted]
        table.add_row(*row, state.health, state.verdict or "-")
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for lease in leases:
        if lease.state == "waiting":
            console.print(f"waiting: lease {lease.id}, {lease.holder}, since {_clock(lease.asked)}: {lease.request}")
    if trouble:
        console.print(f"places taken by labgrid-client are not shown: {trouble}")
    for event in ledger.audit() if audit else ():
        lease_word = f"lease {event.lease}" if event.lease else ""
        stamp = time.strftime("%F %T", time.localtime(event.time))
        console.print(f"{stamp}  {lease_word:<9} {event.board:<10} {event.what}: {event.detail}")


@app.command()
def boards(inventory: Inventory = VIRTUAL_LAB) -> None:
    """List the boards, what they can do, and what ails them."""
    lab, ledger = _open(inventory)
    states = ledger.boards(lab.boards)
    for board in lab.boards.values():
        ill = f"  ({states[board.name].health})" if states[board.name].quarantine else ""
        typer.echo(f"{board.name}  {board.board_class}  {' '.join(sorted(board.capabilities))}{ill}")
        for name, shape in (board.virtual.shapes if board.virtual else {}).items():
            typer.echo(f"{board.name} as {name}  {' '.join(sorted(shape.capabilities))}")


@app.command()
def status(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Show what the run that goes on in the lab is doing. Exit status 3: none is."""
    from lab import inventory as inventories
    from lab.night import nightly

    lines = nightly.progress(inventories.load(inventory))
    typer.echo("\n".join(lines) or "no run is going on")
    raise typer.Exit(0 if lines else 3)


@app.command()
def console(
    board: Board,
    write: Annotated[bool, typer.Option("--write", help="Type on it; holders only, one at a time.")] = False,
    take: Annotated[bool, typer.Option("--take", help="Take the keyboard over from who types now.")] = False,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Attach to a board's console: what it said last, then what it says. Ctrl-] detaches."""
    from lab.leases import console_access
    from lab.leases import ledger as booking

    lab, ledger = _open(inventory, board, must_be_up=True)
    spec = lab.boards[board]
    if write or take:
        _held(ledger, board)
    writer = console_access.Writer(ledger, board, booking.caller())
    console_access.attach(spec, writer, types=write or take, take=take)


@app.command()
def power(
    board: Board,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="on, off, cycle, reset, soft, nmi or status.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Switch a board that you hold, and see that it is done."""
    from lab.grid.mains import power_of

    lab, ledger = _open(inventory, board)
    spec = lab.boards[board]
    control = power_of(spec)
    if action == "status":
        typer.echo("on" if control.is_powered() else "off")
        return
    actions = {
        "on": control.power_on,
        "off": control.power_off,
        "cycle": control.cycle,
        "reset": control.reset,
        "soft": control.soft_off,
        "nmi": control.nmi,
    }
    if action not in actions:
        raise UsageError(f"no action {action!r}; there are: {', '.join(actions)}, status")
    lease = _held(ledger, board)
    try:
        actions[action]()
    except BenchError as error:
        ledger.quarantine(board, f"power {action} failed", str(error))
        raise
    ledger.note("power", action, lease=lease.id, board=board)
    typer.echo(f"{board}: {action} done")


@app.command()
def provision(
    board: Board,
    build: Annotated[str, typer.Option(metavar="NAME", help="Hypervisor build.")] = "pv32-debug",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Bring a board that you hold to a build, and prove that it runs."""
    from lab import builds
    from lab import provision as provisioning
    from lab.base import paths
    from lab.case.rig import Rig
    from lab.grid import services, session
    from lab.xen.payloads import build_payloads, kernel_roots

    lab, ledger = _open(inventory, board, must_be_up=True)
    spec = lab.boards[board]
    lease = _held(ledger, board)
    made = builds.make(build, progress=lambda text: typer.echo(text, err=True))
    wanted = provisioning.Wanted(made, payloads=build_payloads(paths.cache() / "payloads", kernel_roots()))
    folder = services.directory(lab) / "leases" / str(lease.id)
    folder.mkdir(parents=True, exist_ok=True)
    with session.acquire(lab, [spec.name], services.directory(lab)) as held:
        seat = Rig(lab, {board: held.board(board)}, wanted, folder).ready(board)
    typer.echo(f"{board}: {made.name} runs, Xen {made.version}: {' '.join(sorted(seat.capabilities))}")


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    board: Board,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND...]")] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Log in to dom0 of a board that you hold, or run a command there."""
    from lab.grid import ssh as shells

    lab, ledger = _open(inventory, board)
    spec = lab.boards[board]
    _held(ledger, board)
    command = ["ssh", *shells.options(), "-p", str(spec.ssh_port), f"{spec.ssh_user}@{spec.ssh_host}", *(words or ())]
    os.execvp("ssh", command)


@app.command("run", context_settings={"ignore_unknown_options": True})
def run_cases(
    cases: Annotated[list[str], typer.Argument(metavar="CASE...", help="Cases and options, as pytest takes them.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Run cases on the boards that you hold."""
    from lab.base import paths
    from lab.leases import ledger as booking

    _, ledger = _open(inventory, must_be_up=True)
    lease = _mine(ledger, None)
    if not lease.boards:
        raise UsageError(f"lease {lease.id} has no boards yet")
    command = [sys.executable, "-m", "pytest", f"--rootdir={paths.CHECKOUT}", "-c", str(paths.CHECKOUT / "tox.ini")]
    command += [f"--inventory={inventory}", f"--boards={','.join(lease.boards)}", *cases]
    os.execve(sys.executable, command, paths.environment() | {booking.LEASE: str(lease.id)})


# -- one board's health ------------------------------------------------------------------------------------------


def quarantine(
    board: Board,
    cause: Annotated[str, typer.Argument(metavar="CAUSE", help="What ails it, for the others.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Keep a board from everybody who does not ask for it by name."""
    _, ledger = _open(inventory, board)
    ledger.quarantine(board, cause)
    typer.echo(f"{board} is {ledger.board(board).health}")


def check(
    board: Board,
    quick: Annotated[bool, typer.Option("--quick", help="From outside only: no boot; lifts no quarantine.")] = False,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Look whether a board can be used: a good one gets out of quarantine, a bad one into it. Exit status 3: bad."""
    from lab.boards import health
    from lab.grid import services, session

    lab, ledger = _open(inventory, board, must_be_up=True)
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


def clear(board: Board, inventory: Inventory = VIRTUAL_LAB) -> None:
    """Lift a quarantine without looking; `xenlab board check` looks."""
    from lab.leases import ledger as booking

    _, ledger = _open(inventory, board)
    ledger.clear(board, f"by {booking.caller()}, unseen", checked=False)
    typer.echo(f"{board} is {ledger.board(board).health}")


# -- shared ------------------------------------------------------------------------------------------------------


def environment(lab: Lab, lease: Lease) -> list[str]:
    """What a shell must evaluate to work under a lease, with labgrid's own client too."""
    from lab.grid import services
    from lab.leases import ledger as booking

    host, user = lease.holder.split("/", 1)
    values = {
        booking.LEASE: str(lease.id),
        "XENLAB_BOARDS": " ".join(lease.boards),
        "LG_PLACE": lease.boards[0],
        "LG_HOSTNAME": host,
        "LG_USERNAME": user,
    }
    setting = "".join(f" {key}={shlex.quote(value)}" for key, value in values.items())
    return [f". {shlex.quote(str(services.directory(lab) / 'env.sh'))};", f"export{setting};"]


def _open(inventory: Path, *names: str, must_be_up: bool = False) -> tuple[Lab, Ledger]:
    """The lab and its ledger. ``names``: boards that it must have, which is looked at first.

    :raises UsageError: the inventory is wrong, or has no such board.
    :raises BenchError: the lab is not up, and must be.
    """
    from lab import inventory as inventories
    from lab.grid import services
    from lab.leases import ledger as booking

    lab = inventories.load(inventory)
    lab.restricted(names)
    folder = services.directory(lab)
    if must_be_up and not services.status(folder).is_up:
        raise BenchError(f"lab {lab.name} is not up, or not whole: `xenlab lab status` shows it")
    return lab, booking.Ledger(folder)


def _held(ledger: Ledger, board: str) -> Lease:
    """The caller's lease on the board.

    :raises UsageError: they have none; says who has.
    """
    from lab.leases import ledger as booking

    lease = ledger.lease_of(board)
    if lease and lease.state == "held" and lease.holder == booking.caller():
        return lease
    has = f"held by {lease.holder} until {_clock(lease.until)}" if lease else "held by nobody"
    raise UsageError(f"{board} is {has}, not by you ({booking.caller()}): xenlab reserve {board}")


def unless_held(inventory: Path, board: str) -> Lab:
    """The lab, for what a board's holder alone may do to it, or anybody if it has none.

    :raises UsageError: somebody else holds it, or there is no such board.
    """
    from lab.leases import ledger as booking

    lab, ledger = _open(inventory, board)
    lease = ledger.lease_of(board)
    if lease and lease.holder != booking.caller():
        raise UsageError(
            f"{board} is held by {lease.holder} until {_clock(lease.until)}, not by you ({booking.caller()})"
        )
    return lab


def _mine(ledger: Ledger, number: int | None) -> Lease:
    """The caller's lease: of this number, of the environment, or the only one."""
    from lab.leases import ledger as booking

    said = os.environ.get(booking.LEASE, "")
    if number is None and said:
        if not said.isdigit():
            raise UsageError(f"{booking.LEASE}={said} is no number of a lease")
        number = int(said)
    mine = [lease for lease in ledger.leases("waiting", "held") if lease.holder == booking.caller()]
    mine = [lease for lease in mine if lease.request.kind == "person"]
    if number is not None:
        mine = [lease for lease in mine if lease.id == number]
    if len(mine) == 1:
        return mine[0]
    if mine:
        raise UsageError(f"which one? yours are: {'; '.join(f'{one.id} ({one.request})' for one in mine)}")
    raise UsageError(f"{booking.caller()} has no lease" + (f" {number}" if number is not None else ""))


def _strangers(lab: Lab, leased: set[str]) -> tuple[dict[str, str], str]:
    """Who has places without a lease; and why that cannot be said, if so."""
    from lab.grid.coordinator import Coordinator

    with closing(Coordinator(lab.coordinator)) as coordinator:
        try:
            places = coordinator.places()
        except BenchError as error:
            return {}, str(error)
    taken = {name: f"{place.acquired} (no lease)" for name, place in places.items() if place.acquired}
    return {name: holder for name, holder in taken.items() if name not in leased}, ""


def _clock(when: float | None) -> str:
    """In the lab machine's own time; with the day, if it is not today."""
    if when is None:
        return "-"
    form = "%H:%M" if time.strftime("%F") == time.strftime("%F", time.localtime(when)) else "%a %d %b %H:%M"
    return time.strftime(form, time.localtime(when))
