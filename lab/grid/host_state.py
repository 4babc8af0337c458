"""How a lab's hosts are, as files in the lab's folder: what a link is told, and what it tells."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.base import shape
from lab.base.errors import UsageError
from lab.inventory import HostSpec

FOLDER = "hosts"


@dataclass(frozen=True, slots=True)
class Link:
    """What the lab's connection to a host is told. It holds no secret."""

    host: HostSpec
    boards: tuple[str, ...]
    coordinator: str  # HOST:PORT, here
    orders: Path  # what the host is told, without logins
    has_netboot: bool = False  # boards there boot by network

    @classmethod
    def read(cls, folder: Path, name: str) -> Link:
        """:raises UsageError: what :meth:`write` wrote is not there."""
        path = folder / FOLDER / f"{name}.link.json"
        try:
            return shape.read(cls, path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None

    def write(self, folder: Path) -> None:
        path = folder / FOLDER / f"{self.host.name}.link.json"
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class HostState:
    """How a host is."""

    name: str
    address: str  # as ssh is told
    is_up: bool = False
    why: str = "not reached yet"  # it is away
    since: float | None = None  # seconds since the epoch: when it came, or went
    processes: Mapping[str, int] = field(default_factory=dict)
    gone: tuple[str, ...] = ()  # services that should run there, and do not

    def __str__(self) -> str:
        since = f" since {time.strftime('%H:%M:%S', time.localtime(self.since))}" if self.since else ""
        return f"{self.address}, up{since}" if self.is_up else f"{self.address}, AWAY{since}: {self.why}"

    def write(self, folder: Path) -> None:
        """Others see the old one or the new one."""
        path = _path(folder, self.name)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(fresh, path)


def names(folder: Path) -> tuple[str, ...]:
    """The hosts that the lab was started with, in order."""
    return tuple(sorted(file.name.removesuffix(".link.json") for file in (folder / FOLDER).glob("*.link.json")))


def read(folder: Path, name: str) -> HostState | None:
    """How a host is; None: its link has said nothing yet."""
    try:
        return shape.read(HostState, _path(folder, name).read_bytes())
    except (OSError, ValueError):
        return None


def forget(folder: Path) -> None:
    """What was noted of the hosts is not so any more."""
    for name in names(folder):
        _path(folder, name).unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.state.json"
