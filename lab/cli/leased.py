"""What the commands of people who share a lab have in common: the lab opened, the caller's lease found."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import get_args

from lab.base.errors import BenchError, UsageError
from lab.cli.elsewhere import REACHED_AS
from lab.grid import services
from lab.inventory import Lab, load, ports
from lab.leases.ledger import LEASE, Ledger
from lab.leases.records import Lease, State, caller


def open_lab(inventory: Path, *names: str, must_be_up: bool = False) -> tuple[Lab, Ledger]:
    """The lab and its ledger. ``names``: boards that it must have; this is checked first.

    :raises UsageError: the inventory is wrong, or has no such board.
    :raises BenchError: the lab is not up, and must be.
    """
    lab = load(inventory)
    lab.restricted(names)
    folder = services.directory(lab)
    if must_be_up and not services.status(folder).is_up:
        raise BenchError(_not_up(lab))
    return lab, Ledger(folder)


def _not_up(lab: Lab) -> str:
    """What is wrong with a lab that is not up, and what to do."""
    if services.status(services.directory(lab)).processes:
        return f"lab {lab.name}: a service is missing: `xenlab lab status` shows which"
    return f"lab {lab.name} is not up: `xenlab lab up` brings it up"


def move_ports(inventory: Path, wanted: str) -> None:
    """Choose the lab's ports before it comes up.

    :raises UsageError: it is up already, or ``wanted`` is wrong.
    """
    lab = load(inventory)
    if services.status(services.directory(lab)).processes:
        raise UsageError(f"lab {lab.name} is up; --ports goes with its start: `xenlab lab down` first")
    ports.choose(lab, wanted)


def held(ledger: Ledger, board: str) -> Lease:
    """The caller's lease on the board.

    :raises UsageError: they have none; the message says who has.
    """
    lease = ledger.lease_of(board)
    if lease is None:
        raise UsageError(f"you do not hold {board}; it is free: xenlab reserve {board}")
    if lease.state == "held" and lease.holder == caller():
        return lease
    raise UsageError(f"{_taken(lease, board)}; xenlab reserve {board} --wait waits for it")


def unless_held(inventory: Path, board: str) -> Lab:
    """The lab, for what only a board's holder may do to it, or anybody while nobody holds it.

    :raises UsageError: somebody else holds it, or there is no such board.
    """
    lab, ledger = open_lab(inventory, board)
    lease = ledger.lease_of(board)
    if lease and lease.holder != caller():
        raise UsageError(_taken(lease, board))
    return lab


def _taken(lease: Lease, board: str) -> str:
    return f"{board} is held by {lease.holder} until {clock(lease.until)}, and you are {caller()}"


def mine(ledger: Ledger, which: str | None) -> Lease:
    """The caller's lease: that of this number or board, the one the environment names, or the only one.

    :raises UsageError: there is no such lease, or there are several.
    """
    said = os.environ.get(LEASE, "")
    if which is None and said:
        if not said.isdigit():
            raise UsageError(f"{LEASE}={said} is not the number of a lease")
        which = said
    of_caller = [one for one in ledger.leases(*get_args(State)) if one.holder == caller()]
    of_caller = [one for one in of_caller if one.request.kind == "person"]
    if which is not None:
        of_caller = [one for one in of_caller if which in (str(one.id), *one.boards)]
    leases = [one for one in of_caller if one.state in ("waiting", "held")]
    if len(leases) == 1:
        return leases[0]
    if leases:
        known = "; ".join(f"{one.id} ({one.request})" for one in leases)
        raise UsageError(f"you hold several leases; name one: {known}")
    last = f"; lease {of_caller[-1].id} is over: {of_caller[-1].why_ended}" if of_caller else ""
    of = "" if which is None else f" {which}" if which.isdigit() else f" on {which}"
    raise UsageError(f"{caller()} has no lease{of}{last}")


def strangers(lab: Lab, leased: set[str]) -> tuple[dict[str, str], str]:
    """Who has places without a lease; and why that is unknown, if it is.

    Another lab may be at the coordinator's address while this one is down: its holders are not this lab's.
    """
    if not services.status(services.directory(lab)).processes:
        return {}, f"lab {lab.name} is not up in this state folder ({services.directory(lab)})"
    from lab.grid.coordinator import Coordinator  # with all of labgrid, which most commands do without

    with closing(Coordinator(lab.coordinator)) as coordinator:
        try:
            places = coordinator.places()
        except BenchError as error:
            return {}, str(error)
    taken = {name: f"{place.acquired} (no lease)" for name, place in places.items() if place.acquired}
    return {name: holder for name, holder in taken.items() if name not in leased}, ""


def environment(lab: Lab, lease: Lease) -> list[str]:
    """What a shell must evaluate to work under a lease, with labgrid's own client too.

    The shell of somebody elsewhere has no file of this machine's, and labgrid's client comes here by SSH.
    """
    host, user = lease.holder.split("/", 1)
    values = {
        LEASE: str(lease.id),
        "XENLAB_BOARDS": " ".join(lease.boards),
        "LG_PLACE": lease.boards[0],
        "LG_HOSTNAME": host,
        "LG_USERNAME": user,
    }
    first = f". {shlex.quote(str(services.directory(lab) / 'env.sh'))};"
    if reached_as := os.environ.get(REACHED_AS):
        first = "unset LG_ENV;"
        values |= {"LG_PROXY": reached_as, "LG_COORDINATOR": lab.coordinator}
    setting = "".join(f" {key}={shlex.quote(value)}" for key, value in values.items())
    return [first, f"export{setting};"]


def clock(when: float | None) -> str:
    """In the lab machine's own time, whose zone is named; with the day, if it is not today."""
    if when is None:
        return "-"
    form = "%H:%M %Z" if time.strftime("%F") == time.strftime("%F", time.localtime(when)) else "%a %d %b %H:%M %Z"
    return time.strftime(form, time.localtime(when))
