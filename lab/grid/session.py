"""The boards that one process holds, under a lease of its own or its caller's, driven through labgrid's coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from labgrid import Environment, Target
from labgrid.remote.client import ClientSession, ServerError, ensure_event_loop
from labgrid.remote.client import Error as LabgridError
from labgrid.resource.common import ResourceManager  # noqa: F401  (registers managers)
from labgrid.resource.remote import RemotePlaceManager
from labgrid.util.proxy import proxymanager

from lab.base import processes
from lab.base.errors import BenchError, BoardError, WaitTimeout
from lab.base.wait import wait_until
from lab.grid import drivers  # noqa: F401  (registers them)
from lab.grid.board import Board
from lab.grid.coordinator import lacking
from lab.inventory import Lab
from lab.leases.asking import callers_lease, wait_for
from lab.leases.ledger import Ledger
from lab.leases.records import Kind, Lease, Request, caller

log = logging.getLogger(__name__)

RUN_LIMIT = 24 * 3600.0  # seconds; a process that lives longer must reserve its boards
RESTORE_TIMEOUT = 60.0  # seconds in which the reaper acquires a lease's places anew after the coordinator restarts

SYNC_TIMEOUT = 10.0
_GONE = "gone"  # in an entry of labgrid's: no exporter offers it any more


class PlaceTaken(BoardError):
    """The board is somebody else's."""

    def __init__(self, board: str, holder: str) -> None:
        super().__init__(board, f"held by {holder}")
        self.holder = holder


def acquire(lab: Lab, names: Sequence[str], directory: Path, *, timeout: float = 30.0, kind: Kind = "run") -> Session:
    """Hold these boards, all or none: under the caller's lease, else under a new one that ends with this process.

    The caller's lease is the one that ``XENLAB_LEASE`` names, or one that the caller has reserved. ``kind`` is that of
    the new lease; ``directory`` is where the lab's services keep their files.

    :raises BenchError: no lab is up, there is no such place, or the lease in ``XENLAB_LEASE`` does not hold the boards.
    :raises PlaceTaken: somebody else still holds one of them after ``timeout`` seconds.
    """
    if not (directory / "env.yaml").exists():
        raise BenchError(f"lab {lab.name} is not up: start it with `xenlab lab up`")
    ledger = Ledger(directory)
    lease = callers_lease(ledger, names)
    is_own = lease is None
    if lease is None:
        lease = _own_lease(ledger, names, timeout, kind)
    try:
        return Session(lab, lease, names, directory, ledger, is_own=is_own)
    except BaseException:
        if is_own:
            ledger.end(lease.id, "the boards could not be used")
        raise


def _own_lease(ledger: Ledger, names: Sequence[str], timeout: float, kind: Kind) -> Lease:
    request = Request(kind, caller(), RUN_LIMIT, tuple(sorted(names)), job=processes.mark(os.getpid()))
    number = ledger.ask(request)
    try:
        return wait_for(ledger, number, timeout)
    except WaitTimeout:
        for name in names:
            if other := ledger.lease_of(name):
                raise PlaceTaken(name, other.holder) from None
        raise BenchError(
            f"{', '.join(names)}: not acquired within {timeout:.0f} s: held through labgrid-client, not exported, or "
            "the lab's reaper does not run (`xenlab who`, `xenlab lab status`)"
        ) from None
    finally:
        if ledger.lease(number).state == "waiting":
            ledger.end(number, "its process stopped waiting")


class _HolderSession(ClientSession):
    """labgrid's client in the name of a lease's holder. labgrid's own takes its name from the environment."""

    holder: str  # HOST/USER

    def gethostname(self) -> str:
        return self.holder.partition("/")[0]

    def getuser(self) -> str:
        return self.holder.partition("/")[2]

    async def on_resource_changed(
        self, exporter: str, group_name: str, resource_name: str, resource: dict[str, Any]
    ) -> None:
        """Keep what an exporter that went away has offered: labgrid 26 would raise KeyError at the next driver's turn.

        The exporter may come back, and the lab's drivers do not reach a board through it. Those that cannot do without
        what went away with it say so themselves.
        """
        entry = self.resources.get(exporter, {}).get(group_name, {}).get(resource_name)
        if resource or entry is None:
            await super().on_resource_changed(exporter, group_name, resource_name, resource)
        else:
            entry.data = entry.data | {_GONE: True}


class Session:
    """Boards that are held; a context manager."""

    def __init__(
        self, lab: Lab, lease: Lease, names: Sequence[str], directory: Path, ledger: Ledger, *, is_own: bool
    ) -> None:
        """For :func:`acquire`. ``is_own``: the lease ends with this session."""
        self._lab, self.lease, self.ledger, self._is_own = lab, lease, ledger, is_own
        self._names = tuple(names)
        self._boards: dict[str, Board] = {}
        self._environment = Environment(str(directory / "env.yaml"))
        self._client: _HolderSession | None = None
        try:
            self._await_ours()
        except BaseException:
            self._disconnect()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def board(self, name: str) -> Board:
        """The live handle of a board that is held. :raises BenchError: the coordinator does not know it as ours."""
        if name not in self._boards:
            try:
                target = self._environment.get_target(name)
            except LabgridError as error:  # it was restarted since we looked, and has forgotten us
                log.info("%s: %s; once more", name, error)
                self._await_ours()
                target = self._target_again(name)
            self._boards[name] = Board(self._lab.boards[name], target)
        return self._boards[name]

    def _target_again(self, name: str) -> Target:
        try:
            return self._environment.get_target(name)
        except LabgridError as error:
            raise BoardError(name, f"{' '.join(str(error).split())}") from error

    def why_stop(self) -> str | None:
        """Why no further case may begin under this lease; None: it may."""
        return self.ledger.why_stop(self.lease.id, self._names)

    def close(self) -> None:
        """Let go of everything; a lease of the caller's goes on."""
        for board in self._boards.values():
            with contextlib.suppress(Exception):
                board.target.deactivate_all_drivers()
        self._boards.clear()
        if self._is_own:
            self.ledger.end(self.lease.id, "its process gave it back")
        self._disconnect()

    def _await_ours(self) -> None:
        """Wait until the coordinator lists the places as ours.

        It may be restarting; the reaper then acquires them for us anew.

        :raises BenchError: not within :data:`RESTORE_TIMEOUT`; says what is wrong.
        """
        last: BenchError | None = None

        def is_ours() -> bool:
            nonlocal last
            try:
                self._connect()
                last = next(filter(None, map(self._problem, self._names)), None)
            except (ConnectionError, ServerError, grpc.aio.AioRpcError, OSError) as error:
                last = BenchError(f"no labgrid coordinator at {self._lab.coordinator}: {_words(error)}")
            return last is None

        try:
            wait_until(is_ours, RESTORE_TIMEOUT, "boards", interval=0.3)
        except WaitTimeout:
            assert last is not None
            raise last from None

    def _connect(self) -> None:
        """Have a session with the coordinator that is up to date."""
        if self._client is not None and not self._client.stopping.is_set():
            synced = asyncio.wait_for(self._client.sync_with_coordinator(), SYNC_TIMEOUT)
            with contextlib.suppress(TimeoutError):
                if self._client.loop.run_until_complete(synced):
                    return
        self._disconnect()
        loop = ensure_event_loop()
        address = proxymanager.get_grpc_address(self._lab.coordinator, default_port=20408)
        self._client = _HolderSession(address, loop, env=self._environment)
        self._client.holder = self.lease.holder
        loop.run_until_complete(self._client.start())
        manager = RemotePlaceManager.get()
        manager.env, manager.url = self._environment, self._lab.coordinator
        manager.session, manager.loop = self._client, self._client.loop

    def _disconnect(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.loop.run_until_complete(self._client.stop())
                self._client.loop.run_until_complete(self._client.close())
            self._client = None

    def _problem(self, name: str) -> BoardError | None:
        """Why the board cannot be driven yet, if so."""
        if self._client is None:
            return BoardError(name, "there is no session with the coordinator")
        place = self._client.places.get(name)
        if place is None:
            return BoardError(name, "the coordinator has no such place")
        if place.acquired != self.lease.holder:
            return BoardError(name, f"acquired by {place.acquired or 'nobody'}, not by {self.lease.holder}")
        groups = [groups.get(name, {}) for groups in self._client.resources.values()]
        entries = [entry for group in groups for entry in group.values()]
        offered = {entry.cls for entry in entries if entry.avail and _GONE not in entry.data}
        missing = lacking(self._lab.boards[name], offered)
        return BoardError(name, f"no exporter offers its {missing}") if missing else None


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details() or error.code().name)
    return str(error) or type(error).__name__
