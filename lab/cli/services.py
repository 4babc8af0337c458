"""Commands for whoever runs a lab: its services, its virtual boards, what it serves for network boot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lab.base.errors import UsageError
from lab.cli.arguments import RACK, AsJson, Inventory, Ports, show_json
from lab.night.options import VIRTUAL_LAB

app = typer.Typer()
lab_app = typer.Typer(
    help="Start, show and stop the lab's services, and the boards if they are virtual.", no_args_is_help=True
)
app.add_typer(lab_app, name="lab", rich_help_panel=RACK)
host_app = typer.Typer(
    help="For lab machines, not for people: what one calls over SSH at another machine that has boards.",
    no_args_is_help=True,
)
app.add_typer(host_app, name="host", rich_help_panel=RACK)


@lab_app.command()
def up(inventory: Inventory = VIRTUAL_LAB, ports: Ports = "") -> None:
    """Start boards (if virtual), coordinator, exporter and console recorders, and leave them running."""
    from lab.cli.leased import move_ports
    from lab.grid import services
    from lab.inventory import load
    from lab.night.lab_services import lab_up
    from lab.selfcheck.doctor import demand_packages

    demand_packages()
    if ports:
        move_ports(inventory, ports)
    lab = load(inventory)
    lab_up(lab, detach=True, progress=typer.echo)
    if not lab.is_private:
        risk = "labgrid asks for no password, so everyone who reaches it can use the boards"
        typer.echo(f"{lab.coordinator} is not loopback: {risk}", err=True)
    for host in services.status(services.directory(lab)).hosts:
        if not host.is_up:
            typer.echo(f"host {host.name}: {host.why}; it is tried again until it is there", err=True)
    typer.echo(f"up: {', '.join(sorted(lab.boards))}; for labgrid-client in this shell:")
    typer.echo(f"    . {services.directory(lab) / 'env.sh'}")


@lab_app.command()
def status(inventory: Inventory = VIRTUAL_LAB, as_json: AsJson = False) -> None:
    """Show which services of the lab run, and which consoles are read. Exit status 3: the lab is not up."""
    from lab.grid import consoles, services
    from lab.inventory import load

    lab = load(inventory)
    found = services.status(services.directory(lab))
    read = consoles.status(lab) if found.processes else {}
    if as_json:
        show_json({**asdict(found), "consoles": read})
    else:
        typer.echo(str(found))
        for name, one in read.items():
            typer.echo(f"{f'console of {name}':<24} {one}")
    raise typer.Exit(0 if found.is_up else 3)


@lab_app.command()
def down(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Stop all services of the lab. Virtual boards lose power."""
    from lab.inventory import load
    from lab.night.lab_services import lab_down

    lab_down(load(inventory))


@lab_app.command()
def salvage(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Make a new ledger of leases from the readable part of a damaged one. The damaged file is kept beside it."""
    from lab.grid import services
    from lab.inventory import load
    from lab.leases.salvage import salvage as salvaged

    typer.echo(str(salvaged(services.directory(load(inventory)))))


@lab_app.command()
def fault(
    board: Annotated[str, typer.Argument(metavar="BOARD", help="A virtual board of a lab that is up.")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="The fault; `list` lists all faults, `none` ends them.")],
    value: Annotated[
        str | None, typer.Argument(metavar="[VALUE]", help="How long the fault lasts, or how often it strikes.")
    ] = None,
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Make the BMC of a virtual board misbehave, or pull out a cable, unless somebody else holds the board."""
    from lab.cli.leased import unless_held
    from lab.grid import services
    from lab.virtual import faults
    from lab.virtual.boards import ask

    if kind == "list":
        for name, known in faults.KINDS.items():
            typer.echo(f"{name:<16} {known.text} ({known.value:g})")
        return
    request = "none" if kind == "none" else "{} {:g}".format(*faults.parse(kind, value))
    lab = unless_held(inventory, board)
    ask(lab, services.directory(lab) / "boards", board, f"fault {request}")


@lab_app.command()
def shape(
    board: Annotated[str, typer.Argument(metavar="BOARD")],
    shape: Annotated[
        str,
        typer.Argument(
            metavar="[SHAPE]", help="A name from the inventory's `shapes`; without one, the board's own shape."
        ),
    ] = "",
    inventory: Inventory = VIRTUAL_LAB,
) -> None:
    """Give a virtual board another shape from its next power on. The virtual boards of its machine are powered off."""
    from lab.base.errors import did_you_mean
    from lab.inventory import load
    from lab.night.lab_services import lab_shape

    lab = load(inventory)
    spec = lab.restricted([board]).boards[board].virtual
    if spec is None:
        raise UsageError(f"{board} is not a virtual board: it has no shapes")
    if shape and shape not in spec.shapes:
        known = ", ".join(spec.shapes) or "none"
        raise UsageError(f"no shape {shape!r}{did_you_mean(shape, list(spec.shapes))}; there are: {known}")
    lab_shape(lab, board, shape)


@host_app.command("serve")
def host_serve(
    lab: Annotated[str, typer.Argument(metavar="LAB", help="The name of the lab that asks.")],
    host: Annotated[str, typer.Argument(metavar="HOST", help="What that lab calls this machine.")],
) -> None:
    """Run the recorders, the exporter and the virtual boards that a lab has here. It reads what they are."""
    from lab.night.at_host import serve

    serve(lab, host)


@host_app.command("power")
def host_power() -> None:
    """Switch the power of a board here for a lab. It reads which one, and what to do."""
    from lab.night.at_host import power

    power()


@host_app.command("board")
def host_board(
    lab: Annotated[str, typer.Argument(metavar="LAB", help="The name of the lab that asks.")],
    host: Annotated[str, typer.Argument(metavar="HOST", help="What that lab calls this machine.")],
    board: Annotated[str, typer.Argument(metavar="BOARD", help="A virtual board here.")],
) -> None:
    """Give a virtual board here a fault or a shape. It reads which."""
    from lab.night.at_host import board as ask

    ask(lab, host, board)


@host_app.command("wire")
def host_wire(
    peer: Annotated[int, typer.Argument(metavar="PORT", help="UDP port that a virtual board here sends to.")],
    own: Annotated[int, typer.Argument(metavar="PORT", help="UDP port of the board.")],
) -> None:
    """Be the end of a lab link whose other board is at another machine."""
    from lab.grid import wire

    wire.end(peer, own)


@app.command(rich_help_panel=RACK)
def netboot(inventory: Inventory = VIRTUAL_LAB) -> None:
    """Write the files that boards without a disk boot from, and dnsmasq's configuration. `lab up` does it too."""
    from lab.grid import services
    from lab.inventory import load
    from lab.virtual import served

    lab = load(inventory)
    if not lab.network_booted():
        raise UsageError(f"{inventory}: no board in it has boot: network")
    if services.status(services.directory(lab)).processes:
        raise UsageError(f"lab {lab.name} is up and serves its boards; `xenlab lab down` ends it")
    folder = served.write(lab, progress=lambda text: typer.echo(text, err=True))
    for host in ("", *lab.hosts):
        names = ", ".join(board.name for board in lab.boards_at(host) if board.boot == "network")
        if names and host:
            place = f"$HOME/.local/state/xenlab/at/{lab.name}.{host}/netboot"
            typer.echo(f"at host {host}, when the lab is up: DHCP and TFTP for {names}:")
            typer.echo(f'    sudo dnsmasq --conf-file="{place}/dnsmasq.conf"')
        elif names:
            typer.echo(f"in {folder}: DHCP and TFTP for {names}; as root:")
            typer.echo(f"    dnsmasq --conf-file={folder / 'dnsmasq.conf'}")
    typer.echo("HTTP is a service of the lab: `xenlab lab up`")
