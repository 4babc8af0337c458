"""Commands for the holder of a board: console, power, provision, SSH, cases."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import HOLD, Board, Inventory, located
from lab.night.options import VIRTUAL_LAB

app = typer.Typer()

# Words that are not ours go to ssh or pytest, -h too.
PASSED_ON = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@app.command(rich_help_panel=HOLD)
def console(
    board: Board,
    write: Annotated[
        bool, typer.Option("--write", help="Type on the console. Only one holder can type at a time.")
    ] = False,
    take: Annotated[bool, typer.Option("--take", help="Take the keyboard from the holder who types now.")] = False,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Show a board's console: its last lines, then what it prints. Ctrl-] ends it."""
    from lab.cli.leased import held, open_lab
    from lab.leases import console_access
    from lab.leases.records import caller

    lab, ledger = open_lab(inventory, board, must_be_up=True)
    spec = lab.boards[board]
    if write or take:
        held(ledger, board)
    writer = console_access.Writer(ledger, board, caller())
    console_access.attach(spec, writer, types=write or take, take=take)


@app.command(rich_help_panel=HOLD)
def power(
    board: Board,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="One of: on, off, cycle, reset, soft, nmi, status.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Switch the power of a board that you hold, and verify that it switched."""
    from lab.base.errors import did_you_mean
    from lab.cli.leased import held, open_lab
    from lab.grid import mains

    words = [*(word for word in mains.ORDERS if word != "button"), "status"]
    if action not in words:
        raise UsageError(f"no action {action!r}{did_you_mean(action, words)}; there are: {', '.join(words)}")
    lab, ledger = open_lab(inventory, board)
    if lab.boards[board].virtual:  # what answers at its port while this lab is down belongs to another lab
        lab, ledger = open_lab(inventory, board, must_be_up=True)
    lease = None if action == "status" else held(ledger, board)
    if lease is None:
        typer.echo("on" if mains.power_of(lab.boards[board]).is_powered() else "off")
        return
    mains.order(action, lab.boards[board], lease, ledger)
    typer.echo(f"{board}: {action} done")


@app.command(rich_help_panel=HOLD)
def provision(
    board: Board,
    build: Annotated[str, typer.Option(metavar="NAME", help="The hypervisor build.")] = "pv32-debug",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Bring a board that you hold to a build, and prove that the build runs."""
    from lab import builds
    from lab.builds.matrix import Variant
    from lab.case.taking import take
    from lab.cli.arguments import recipe
    from lab.cli.leased import held, open_lab
    from lab.grid import services

    build = recipe(build)
    builds.recipe(build)  # an unknown name is said before the lab is asked
    lab, ledger = open_lab(inventory, board, must_be_up=True)
    lease = held(ledger, board)
    folder = services.directory(lab) / "leases" / str(lease.id)
    folder.mkdir(parents=True, exist_ok=True)
    acquired, rig = take(lab, [board], Variant.plain(build), folder, progress=lambda text: typer.echo(text, err=True))
    with acquired:
        seat = rig.ready(board)
    typer.echo(f"{board}: {rig.build.name} runs, Xen {rig.build.version}: {' '.join(sorted(seat.capabilities))}")


@app.command(rich_help_panel=HOLD)
def controller(
    board: Board,
    passed: Annotated[
        str,
        typer.Option(metavar="PATTERN", help="A job passes if the console says this; default: test passed."),
    ] = "",
    boot: Annotated[
        str, typer.Option(metavar="DEVICE", help="Boot device of poweron, for one boot: pxe, disk, ...")
    ] = "",
    limit: Annotated[str, typer.Option("--for", metavar="TIME", help="Time limit of a job: 90m, 2h.")] = "2h",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Serve a script of Xen's own CI: poweron, console, wake, poweroff. It is an SSH forced command."""
    from lab.cli.leased import open_lab
    from lab.leases.records import seconds_of
    from lab.night import controller as control

    word = control.word_of(os.environ.get(control.COMMAND))
    wishes = control.Wishes(passed or control.PASSED, boot, seconds_of(limit))
    lab, ledger = open_lab(inventory, board, must_be_up=True)
    if status := control.Controller(lab, board, ledger, wishes).answer(word):
        raise typer.Exit(status)


@app.command(context_settings=PASSED_ON, rich_help_panel=HOLD)
def ssh(
    board: Board,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND...]")] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Log in to dom0 of a board that you hold, or run a command there."""
    from lab.cli.leased import held, open_lab
    from lab.grid.ssh import options

    lab, ledger = open_lab(inventory, board)
    spec = lab.boards[board]
    held(ledger, board)
    command = ["ssh", *options(spec.at), "-p", str(spec.ssh_port), f"{spec.ssh_user}@{spec.ssh_host}", *(words or ())]
    os.execvp("ssh", command)


@app.command(context_settings=PASSED_ON, rich_help_panel=HOLD)
def run(
    cases: Annotated[list[str], typer.Argument(metavar="CASE...", help="Cases and options, as pytest takes them.")],
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Run cases on the boards that you hold."""
    from lab.base import paths
    from lab.cli.leased import mine, open_lab
    from lab.leases.ledger import LEASE
    from lab.night.workers import pytest_command, root_of

    _, ledger = open_lab(inventory, must_be_up=True)
    lease = mine(ledger, None)
    if not lease.boards:
        raise UsageError(f"lease {lease.id} has no boards yet")
    words = [_case(word) for word in cases]
    root = root_of([word for word in words if os.path.isabs(word)])
    command = pytest_command(root, inventory, lease.boards, words)
    os.execve(sys.executable, command, paths.environment() | {LEASE: str(lease.id)})


def _case(word: str) -> str:
    """A path of cases, made absolute: from where the user stands, else a shipped one. Other words stay as they are."""
    from lab.base import paths

    if word.startswith("-") or located(word) != word:
        return located(word)
    is_shipped = word.startswith("testcases") and os.path.exists(paths.SHIPPED / word.partition("::")[0])
    return str(paths.SHIPPED / word) if is_shipped else word
