"""The loopback ports of a lab moved elsewhere, so that two labs run side by side on one machine.

An inventory names ports. A lab that shall use others keeps the first of them in its state folder, and every command
with that state folder sees the lab there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError
from lab.base.processes import port_is_taken
from lab.inventory.specs import BoardSpec, Lab

FREE = "free"  # find them
OWN = "own"  # those of the inventory
FIRST, LAST, STEP = 24000, 32000, 200  # where free ones are looked for: below the ephemeral ports of Linux (32768)
GAP = 10  # between the coordinator's and the boards'


def choose(lab: Lab, wanted: str) -> None:
    """Keep where the lab's ports are from now on: ``wanted`` is a number, ``free`` or ``own``.

    :raises UsageError: none of these, or not enough ports above the number.
    """
    file = _file(lab)
    if wanted == OWN:
        file.unlink(missing_ok=True)
        return
    base = _free(lab) if wanted == FREE else _number(lab, wanted)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{base}\n", encoding="ascii")


def applied(lab: Lab) -> Lab:
    """The lab with its ports where its state folder says; as it is where that says nothing."""
    try:
        text = _file(lab).read_text(encoding="ascii")
    except FileNotFoundError:
        return lab
    return moved(lab, _number(lab, text.strip()))


def moved(lab: Lab, base: int) -> Lab:
    """The lab with its coordinator at ``base`` and the boards' loopback ports above it, in the order they had.

    What is a machine's own (its BMC, its SSH) stays where it is.
    """
    first = min(_ports(lab))
    shift = base + GAP - first
    host = lab.coordinator.rpartition(":")[0]
    boards = {name: _moved(board, shift) for name, board in lab.boards.items()}
    return replace(lab, coordinator=f"{host}:{base}", boards=boards)


def _moved(board: BoardSpec, shift: int) -> BoardSpec:
    console = replace(
        board.console, serve_port=board.console.serve_port + shift, lines_port=board.console.lines_port + shift
    )
    if not board.virtual:
        return replace(board, console=console)
    if console.port:
        console = replace(console, port=console.port + shift)
    virtual = replace(
        board.virtual,
        serial_port=board.virtual.serial_port + shift,
        link_port=board.virtual.link_port and board.virtual.link_port + shift,
    )
    bmc = replace(board.bmc, port=board.bmc.port + shift) if board.bmc.protocol != "none" else board.bmc
    return replace(board, console=console, virtual=virtual, bmc=bmc, ssh_port=_ssh(board, shift))


def _ssh(board: BoardSpec, shift: int) -> int:
    return board.ssh_port + shift if board.ssh_host.startswith("127.") else board.ssh_port


def _ports(lab: Lab) -> Iterator[int]:
    """The boards' ports that move."""
    for board in lab.boards.values():
        yield board.console.serve_port
        yield board.console.lines_port
        if board.virtual:
            yield board.virtual.serial_port
            yield board.bmc.port
            if board.virtual.link_port:
                yield board.virtual.link_port
            if board.ssh_host.startswith("127."):
                yield board.ssh_port


def _free(lab: Lab) -> int:
    for base in range(FIRST, LAST, STEP):
        there = moved(lab, base)
        span = range(base, max(_ports(there)) + GAP)  # with what the boards derive from a port of theirs
        if span.stop <= LAST and not any(
            port_is_taken(port, kind) for port in span for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ):
            return base
    raise UsageError(f"no {STEP} free ports in a row between {FIRST} and {LAST}; name one with --ports BASE")


def _number(lab: Lab, text: str) -> int:
    span = max(_ports(lab)) - min(_ports(lab)) + 2 * GAP
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) <= 65536 - span:
        raise UsageError(f"invalid --ports {text!r}; use a number from 1024 to {65536 - span}, `free` or `own`")
    return int(text)


def _file(lab: Lab) -> Path:
    return paths.state() / "lab" / lab.name / "ports"
