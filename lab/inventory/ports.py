"""The loopback ports of a lab moved elsewhere, so that two labs run side by side on one machine.

An inventory names ports. A lab that shall use others keeps the first of them in its state folder, and every command
with that state folder sees the lab there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError
from lab.base.processes import port_is_taken
from lab.inventory.specs import BoardSpec, Lab

FREE = "free"  # find them
OWN = "own"  # those of the inventory
FIRST, LAST, STEP = 24000, 32000, 100  # where free ones are looked for: below the ephemeral ports of Linux (32768)
_LONGEST = 64  # bytes of the file that are read; a number has five
GAP = 10  # ports of a board, and of the coordinator


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
        with paths.open_regular(_file(lab)) as file:
            text = file.read(_LONGEST).decode("ascii", "replace")
    except FileNotFoundError:
        return lab
    except OSError as error:
        raise UsageError(f"{_file(lab)}: {error.strerror}; remove it") from None
    try:
        return moved(lab, _number(lab, text.strip()))
    except UsageError:
        raise UsageError(f"{_file(lab)}: damaged: {text[:20]!r}; give --ports again") from None


def moved(lab: Lab, base: int) -> Lab:
    """The lab with its coordinator at ``base``, and each board's loopback ports in a row above it.

    What is a machine's own (its BMC, its SSH) stays where it is.
    """
    host = lab.coordinator.rpartition(":")[0]
    boards, first = {}, base + GAP
    for name, board in lab.boards.items():
        places, first = _places(board, first)
        boards[name] = _moved(board, places)
    return replace(lab, coordinator=f"{host}:{base}", boards=boards)


def _places(board: BoardSpec, first: int) -> tuple[dict[int, int], int]:
    """Where each port of the board goes, and the first port behind them.

    A board derives a port from another (:data:`lab.virtual.boards.KCS_OFFSET`), so distances are kept, or all are wide.
    """
    own = sorted(set(_ports(board)))
    if own[-1] - own[0] < GAP:
        return {port: first + port - own[0] for port in own}, first + GAP
    return {port: first + GAP * index for index, port in enumerate(own)}, first + GAP * len(own)


def _moved(board: BoardSpec, places: Mapping[int, int]) -> BoardSpec:
    console = board.console
    console = replace(console, serve_port=places[console.serve_port], lines_port=places[console.lines_port])
    if not board.virtual:
        return replace(board, console=console)
    return replace(
        board,
        console=replace(console, port=places.get(console.port, console.port)),
        virtual=replace(
            board.virtual,
            serial_port=places[board.virtual.serial_port],
            link_port=places.get(board.virtual.link_port, 0),
        ),
        bmc=replace(board.bmc, port=places.get(board.bmc.port, 0)),
        ssh_port=places[board.ssh_port],
    )


def _ports(board: BoardSpec) -> Iterator[int]:
    """The ports that move: of its recorder; of a virtual board, which is on loopback, all."""
    yield from (board.console.serve_port, board.console.lines_port)
    if board.virtual:
        yield from (board.virtual.serial_port, board.ssh_port)
        yield from (port for port in (board.bmc.port, board.virtual.link_port) if port)


def _free(lab: Lab) -> int:
    """Where ports are free. They are claimed until this process ends: by then the lab has taken them itself."""
    size = _size(lab)
    for base in range(FIRST, LAST - size, STEP):
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        with ExitStack() as claims:
            if not all(_is_claimed(first, claims) for first in range(base, base + size, STEP)):
                continue
            if not any(port_is_taken(port, kind) for port in range(base, base + size) for kind in kinds):
                _claims.append(claims.pop_all())
                return base
    raise UsageError(f"no {size} free ports in a row between {FIRST} and {LAST}; name one with --ports BASE")


_claims: list[ExitStack] = []  # what is claimed while this process lives


def _is_claimed(first: int, claims: ExitStack) -> bool:
    """Claim :data:`STEP` ports from ``first`` on, for as long as ``claims`` is open; False: another process has them.

    The claim is a name of an abstract Unix socket (unix(7)): it belongs to one network namespace, as ports do, is seen
    by all users, and is gone with its process.
    """
    claim = claims.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        claim.bind(f"\0xenlab-ports-{first}")
    except OSError:
        return False
    return True


def _size(lab: Lab) -> int:
    """How many ports the lab takes in a row."""
    first = GAP
    for board in lab.boards.values():
        _, first = _places(board, first)
    return first


def _number(lab: Lab, text: str) -> int:
    last = 65536 - _size(lab)
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) <= last:
        raise UsageError(f"invalid --ports {text!r}; use a number from 1024 to {last}, `free` or `own`")
    return int(text)


def _file(lab: Lab) -> Path:
    return paths.state() / "lab" / lab.name / "ports"
