"""Places acquired for one process, through labgrid's coordinator."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from labgrid import Environment
from labgrid.remote.client import start_session
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.resource.common import ResourceManager  # noqa: F401  (registers managers)
from labgrid.resource.remote import RemotePlaceManager

from lab.errors import BenchError
from lab.grid import drivers, services  # noqa: F401  (registers drivers)
from lab.grid.board import Board
from lab.inventory import Lab

log = logging.getLogger(__name__)

_OURS = re.compile(r"xenlab-(\d+)")  # the user name under which a process of ours holds places


class PlaceTaken(BenchError):
    """The board is somebody else's."""

    def __init__(self, board: str, holder: str) -> None:
        super().__init__(f"{board}: acquired by {holder}")
        self.board, self.holder = board, holder


def acquire(lab: Lab, names: Sequence[str], directory: Path, *, timeout: float = 30.0) -> Session:
    """Acquire these boards, all or none. ``directory`` is where the lab's services keep their files.

    A place whose holder was a process of ours that has died is taken over.

    :raises BenchError: no lab is up, or no such place.
    :raises PlaceTaken: somebody else has it, and still has it after ``timeout`` seconds.
    """
    return Session(lab, names, directory, timeout)


class Session:
    """Acquired places; a context manager."""

    def __init__(self, lab: Lab, names: Sequence[str], directory: Path, timeout: float) -> None:
        self._lab, self._names = lab, sorted(names)
        self._held: list[str] = []
        self._boards: dict[str, Board] = {}
        self._environment: Any = None
        environment = directory / "env.yaml"
        if not environment.exists():
            raise BenchError(f"lab {lab.name} is not up: start it with `xenlab lab up`")
        os.environ["LG_HOSTNAME"], os.environ["LG_USERNAME"] = socket.gethostname(), f"xenlab-{os.getpid()}"
        try:
            self._environment = Environment(str(environment))
            self._client = start_session(lab.coordinator, extra={"env": self._environment})
        except (ConnectionError, grpc.aio.AioRpcError, OSError) as error:
            raise BenchError(f"no labgrid coordinator at {lab.coordinator}: {_words(error)}") from None
        manager = RemotePlaceManager.get()
        manager.env, manager.url = self._environment, lab.coordinator
        manager.session, manager.loop = self._client, self._client.loop
        try:
            deadline = time.monotonic() + timeout
            for name in self._names:
                self._acquire(name, deadline)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def board(self, name: str) -> Board:
        """The live handle of an acquired place."""
        if name not in self._boards:
            self._boards[name] = Board(self._lab.boards[name], self._environment.get_target(name))
        return self._boards[name]

    def close(self) -> None:
        """Let go of everything."""
        for board in self._boards.values():
            with contextlib.suppress(Exception):
                board.target.deactivate_all_drivers()
        self._boards.clear()
        for name in self._held:
            with contextlib.suppress(grpc.aio.AioRpcError, OSError):
                self._call(self._client.stub.ReleasePlace(messages.ReleasePlaceRequest(placename=name)))
        self._held.clear()
        with contextlib.suppress(Exception):
            self._client.loop.run_until_complete(self._client.stop())
            self._client.loop.run_until_complete(self._client.close())

    def _acquire(self, name: str, deadline: float) -> None:
        while True:
            place = self._client.places.get(name)
            problem = self._problem(name, place)
            if problem is None:
                try:
                    self._call(self._client.stub.AcquirePlace(messages.AcquirePlaceRequest(placename=name)))
                    self._held.append(name)
                    self._sync()
                    return
                except grpc.aio.AioRpcError as error:
                    problem = BenchError(f"{name}: not acquired: {error.details()}")
            if time.monotonic() > deadline:
                raise problem
            self._call(_nap(0.5))
            self._sync()

    def _problem(self, name: str, place: Any) -> BenchError | None:
        if place is None:
            return BenchError(f"{name}: the coordinator has no such place")
        if place.acquired:
            host, _, user = place.acquired.partition("/")
            match = _OURS.fullmatch(user)
            if match and host == socket.gethostname() and not _is_alive(int(match[1])):
                log.warning("%s: was held by %s, which is gone: released", name, place.acquired)
                request = messages.ReleasePlaceRequest(placename=name, fromuser=place.acquired)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    self._call(self._client.stub.ReleasePlace(request))
            return PlaceTaken(name, place.acquired)
        offered = {
            entry.cls
            for groups in self._client.resources.values()
            for entry in groups.get(name, {}).values()
            if entry.avail
        }
        wanted = set(services.exported(self._lab.boards[name])) - {"SleepState"}
        if missing := wanted - offered:
            return BenchError(f"{name}: no exporter offers its {', '.join(sorted(missing))}")
        return None

    def _call(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self._client.loop.run_until_complete(wait())

    def _sync(self) -> None:
        self._call(self._client.sync_with_coordinator())


async def _nap(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details() or error.code().name)
    return str(error) or type(error).__name__
