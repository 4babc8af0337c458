"""xenlab at a host: what a lab elsewhere has it run, and the power and the daemon of a board that it is asked for.

The lab machine calls them over SSH and speaks to them on their standard streams (:mod:`lab.grid.host_lines`).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lab.base import credentials, paths, shape
from lab.base.errors import LabError, WaitTimeout
from lab.base.release import release
from lab.base.wait import wait_until
from lab.console import config as recorders
from lab.console.client import SourceState
from lab.console.mirror import ask
from lab.grid import host_files, host_power, mains, services
from lab.grid.host_lines import COORDINATOR, DOWN, NETBOOT, Hello, Lines, Orders, PowerOf, Report, encoded
from lab.inventory import Lab
from lab.virtual import boards

FIRST = 30.0  # seconds that the lab has to say what it wants
CONSOLES = 15.0  # seconds that they have to be read before the host counts as up; a dead BMC is given up after 14
EVERY = 5.0  # seconds between two reports
OTHERS_END = 60.0  # seconds that another connection's changes here may take
_ORDERS = "orders.digest"


def serve(lab: str, host: str) -> None:
    """Run what a lab wants here, and report. It runs on when the connection ends, until the lab ends it."""
    sockets = paths.runtime() / f"at-{hashlib.sha256(f'{paths.state()} {lab} {host}'.encode()).hexdigest()[:12]}"
    sockets.mkdir(mode=0o700, exist_ok=True)
    for name in (COORDINATOR, NETBOOT):
        (sockets / name).unlink(missing_ok=True)  # sshd does not replace that of an older connection
    other = sockets / f"{COORDINATOR}:20408"  # labgrid 26 adds its port to an address of gRPC's that has none
    if not other.is_symlink():
        other.symlink_to(COORDINATOR)
    lines = Lines(0)
    line = _after_hello(lines, str(sockets))
    if line is None:
        return
    folder = _folder(lab, host)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if line + b"\n" == DOWN:
            with _alone(folder):
                _down(folder)
            return
        orders = shape.read(Orders, line)
        with _alone(folder):
            _run(orders, folder, sockets, hashlib.sha256(release().encode() + line).hexdigest())
        _await_consoles(orders, sockets)
        _report(lines, folder)
    except (LabError, ValueError) as error:
        _say(Report(failed=str(error)))
    except BrokenPipeError:  # the connection ended
        return
    except OSError as error:
        _say(Report(failed=f"{error.filename or folder}: {error.strerror}"))


def power() -> None:
    """Do what a lab asks of a board's BMC and outlet."""
    lines = Lines(0)
    line = _after_hello(lines)
    if line is None:
        return
    asked = shape.read(PowerOf, line)
    with tempfile.TemporaryDirectory(prefix="xenlab-power-") as scratch:
        spec = asked.bmc
        if asked.certificate:
            file = Path(scratch) / "certificate.pem"
            file.write_text(asked.certificate, encoding="ascii")
            spec = replace(spec, ca_file=str(file))
        if asked.login:
            os.environ[credentials.variable(spec.credential)] = f"{asked.login.user}:{asked.login.password}"
        with suppress(BrokenPipeError):
            host_power.answer(lines, lambda: mains.power_here(asked.board, spec, asked.pdu), _write)


def board(lab: str, host: str, name: str) -> None:
    """Ask the daemon of a virtual board here what a lab asks. :raises BenchError: it does not run."""
    line = _after_hello(Lines(0))
    if line is not None:
        _write(boards.asked_here(_folder(lab, host) / "boards", name, line.decode()).encode() + b"\n")


def _folder(lab: str, host: str) -> Path:
    """What runs here for a lab has its files there."""
    return paths.state() / "at" / f"{lab}.{host}"


def _after_hello(lines: Lines, sockets: str = "") -> bytes | None:
    """Say who this is; the first line that the lab says. None: it went away."""
    try:
        _say(Hello(release(), time.time(), sockets))
        return lines.next(FIRST)
    except (EOFError, BrokenPipeError):
        return None


def _run(orders: Orders, folder: Path, sockets: Path, digest: str) -> None:
    """Have what is wanted running; what runs already is left alone, if it is just that."""
    noted = folder / _ORDERS
    if services.holder(folder) is not None and noted.exists() and noted.read_text(encoding="ascii") == digest:
        return
    _down(folder)
    for name, login in orders.logins.items():
        os.environ[credentials.variable(name)] = f"{login.user}:{login.password}"  # for what is started here
    orders = _with_certificates(orders, folder)
    lab = Lab(orders.lab, folder / "inventory.yaml", {board.name: board for board in orders.boards})
    if lab.is_virtual:
        seeds = {name: base64.b64decode(text) for name, text in orders.seeds.items()}
        keys = paths.state() / "lab" / "ssh"
        boards.prepare(lab, folder / "boards", keys, seeds=seeds, peers=orders.peers, progress=_progress)
    host_files.write(orders, folder, sockets)
    _progress("starting the services")

    def start_boards(supervisor: int) -> None:
        if lab.is_virtual:
            boards.start(lab, folder / "boards", owner=supervisor)

    services.bring_up(folder, f"lab {orders.lab}", None, first=start_boards)
    noted.write_text(digest, encoding="ascii")


def _await_consoles(orders: Orders, sockets: Path) -> None:
    """Give the recorders time to open their sources: a board is looked at as soon as its host is there."""

    def are_read() -> bool:
        try:
            asked = [ask(recorders.sockets(sockets, board.name)[1], {"source": True}) for board in orders.boards]
            return all(SourceState.read(answer).is_open for answer in asked)
        except (OSError, ValueError):
            return False

    with suppress(WaitTimeout):  # one that is not there is its board's trouble, not the host's
        wait_until(are_read, CONSOLES, "the consoles are read")


def _with_certificates(orders: Orders, folder: Path) -> Orders:
    """What BMCs are verified by, as files here."""
    made = []
    for board in orders.boards:
        if text := orders.certificates.get(board.name):
            file = folder / f"{board.name}.pem"
            file.write_text(text, encoding="ascii")
            board = replace(board, bmc=replace(board.bmc, ca_file=str(file)))
        made.append(board)
    return replace(orders, boards=tuple(made))


def _down(folder: Path) -> None:
    (folder / _ORDERS).unlink(missing_ok=True)
    services.stop(folder)
    boards.stop(folder / "boards")


def _report(lines: Lines, folder: Path) -> None:
    """Say how it is, again and again, until the lab takes it down or the connection ends."""
    while True:
        host_files.ask(folder)
        found = services.status(folder)
        running = {
            **found.processes,
            **{f"board-{name}": pid for name, pid in boards.running(folder / "boards").items()},
        }
        if not found.is_up and services.holder(folder) is None:
            _say(Report(failed="what ran there for the lab has ended"))
            return
        gone = tuple(name for name in found.wanted if name not in found.processes)
        _say(Report(is_up=True, processes=running, gone=gone))
        try:
            line = lines.next(EVERY)
        except EOFError:
            return
        if line is not None and line + b"\n" == DOWN:
            with _alone(folder):
                _down(folder)
            _say(Report(said="down"))
            return


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else changes what runs here; who does is waited for. :raises WaitTimeout: too long."""
    with open(folder / "change.lock", "ab") as file:

        def is_locked() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_until(is_locked, OTHERS_END, "another connection of the lab's ends what it does here", interval=0.1)
        yield


def _progress(text: str) -> None:
    _say(Report(said=text))


def _say(one: Hello | Report) -> None:
    _write(encoded(one))


def _write(data: bytes) -> None:
    """:raises BrokenPipeError: the connection ended."""
    while data:
        data = data[os.write(1, data) :]
