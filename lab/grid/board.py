"""``Board``: the live handle of an acquired place, and all that a case's host stands on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lab.bmc import Bmc
from lab.console.client import Console
from lab.grid.board_socket import Profiler, StealMeter
from lab.grid.ssh import CommandResult, Job, wait_reachable
from lab.grid.states import SavedStates
from lab.grid.strategy import XenStrategy
from lab.inventory import BoardSpec

if TYPE_CHECKING:
    from labgrid import Target

    from lab.grid.switch import SwitchPort

__all__ = ["Board", "CommandResult", "Job"]


class Board:
    """One board: power, console, commands in dom0."""

    def __init__(self, spec: BoardSpec, target: Target) -> None:
        self.name, self.spec = spec.name, spec
        self.target = target
        self.strategy: XenStrategy = target.get_driver(XenStrategy)
        self.strategy._activate()
        self._ssh = target.get_driver("Dom0Driver").ssh
        # Where the lab link is cut from outside; None: only dom0 can take its own port down.
        self.switch_port = switch_port(spec)

    def __repr__(self) -> str:
        return f"<Board {self.name}>"

    @property
    def power(self) -> Bmc:
        """The board's BMC."""
        return self.target.get_driver("BmcDriver").bmc  # type: ignore[no-any-return]

    @property
    def console(self) -> Console:
        """The recorded console."""
        return self.strategy.console

    @property
    def states(self) -> SavedStates | None:
        """What the board can go on from in place of a boot; None: it can do nothing of the kind."""
        return self.strategy.saved.states if self.strategy.saved else None

    @property
    def steal_meter(self) -> StealMeter | None:
        """What tells how much processor time the board was denied; None: it does not know, as steel does not."""
        return self.strategy.steal.meter if self.strategy.steal else None

    @property
    def profiler(self) -> Profiler | None:
        """What tells of what a figure is made; None: nothing does, as on steel."""
        return self.strategy.profile.profiler if self.strategy.profile else None

    def run(
        self, command: str, *, timeout: float = 60.0, check: bool = True, input: bytes | None = None
    ) -> CommandResult:
        """One shell command in dom0. :raises CommandFailed, BoardUnreachable, WaitTimeout:"""
        return self._ssh.run(command, timeout=timeout, check=check, input=input)  # type: ignore[no-any-return]

    def spawn(self, command: str) -> Job:
        """A command that goes on without the connection."""
        return Job.start(self._ssh, command)

    def put(self, local: Path, remote: str) -> None:
        """Copy a file onto the board."""
        self._ssh.put(local, remote)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file from the board."""
        self._ssh.get(remote, local)

    def is_reachable(self, timeout: float = 5.0) -> bool:
        """Whether dom0 runs a command."""
        return bool(self._ssh.is_reachable(timeout))

    def sleeps(self) -> bool | None:
        """Whether a short sleep in dom0 ends: whether the hypervisor's timers still expire. None: dom0 is silent."""
        answer: bool | None = self._ssh.sleeps()
        return answer

    def reconnect(self, timeout: float = 60.0) -> None:
        """Forget the connection, which may hang, and have a new one. :raises WaitTimeout: dom0 does not answer."""
        self._ssh.close()
        wait_reachable(self._ssh, timeout)


def switch_port(spec: BoardSpec) -> SwitchPort | None:
    """The port that the board's end of the lab link is plugged into; None: none that could be switched."""
    if spec.switch is None:
        return None
    from lab.grid.switch import SwitchPort  # its SNMP takes a while to load, and few boards have one

    return SwitchPort(spec.name, spec.switch)
