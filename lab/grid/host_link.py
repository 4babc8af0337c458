"""``python -m lab.grid.host_link DIRECTORY HOST``: the lab's connection to a host, and what runs there kept running.

One SSH connection carries all: the host's recorders are reached by Unix sockets that it forwards to the lab, the
coordinator by one that it forwards to the host. Nothing listens on a network. What runs at the host outlives the
connection, so that the consoles are recorded meanwhile; it ends when the lab goes down, or after a day without a lab.

While the host is away its boards are given to nobody (:mod:`lab.leases.away`); their leases stay.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from lab.base import credentials, processes, shape
from lab.base.errors import LabError
from lab.console import config as recorders
from lab.grid import host_lines, hosts
from lab.grid.host_lines import HELLO, Hello, HostAway, Login, Orders, Remote, Report, encoded
from lab.grid.host_state import HostState, Link
from lab.leases import away

log = logging.getLogger("host")

SETTLED = 150.0  # seconds after which a host that still starts is said to be away; virtual boards need disks
SILENCE = 40.0  # seconds without a report, which comes every few seconds, after which the connection is made anew
AGAIN = (1.0, 2.0, 5.0, 10.0)  # seconds between two attempts
FORWARD_TIMEOUT = 20.0
DOWN_TIMEOUT = 4.0  # seconds that the host has to say that it is down; it goes down anyway


class HostLink:
    """Holds the connection, again and again, until it is told to end."""

    def __init__(self, folder: Path, link: Link, ending: threading.Event) -> None:
        self._folder, self._link, self._ending = folder, link, ending
        self._state = HostState(link.host.name, f"{link.host.user}@{link.host.address}:{link.host.port}")
        self._told = ""
        self._progress = "nothing said yet"

    def run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                with tempfile.TemporaryFile() as errors:
                    self._hold(errors)
            except LabError as error:
                self._is_away(str(error))
            except Exception as error:  # a host that nobody connects to again is worse than a fault in this
                log.exception("the connection")
                self._is_away(f"host {self._link.host.name}: {type(error).__name__}: {error}")
            failures = 0 if time.monotonic() - started > HELLO else failures + 1
            self._pause(AGAIN[min(failures, len(AGAIN) - 1)])
        away.end(self._folder, self._link.boards)

    def _hold(self, errors: IO[bytes]) -> None:
        """One connection, from its beginning to its end. :raises HostAway: it ended, or never stood."""
        host = self._link.host
        hosts.control(host).unlink(missing_ok=True)  # of a connection whose holder died
        remote = Remote(host, errors, "serve", host.lab, host.name, options=("-o", "ControlMaster=yes"))
        try:
            hello = self._greeted(remote)
            if self._ending.is_set():
                remote.send(host_lines.DOWN)
                return
            if abs(off := hello.clock - time.time()) > 5.0:
                log.warning("the clock of host %s is %+.0f s off: its records have its times", host.name, off)
            self._forward(hello)
            remote.send(encoded(self._orders()))
            self._follow(remote)
        finally:
            remote.close()

    def _greeted(self, remote: Remote) -> Hello:
        """What it says first. :raises HostAway: it says nothing, or something else."""
        deadline = time.monotonic() + HELLO
        while not self._ending.is_set() and time.monotonic() < deadline and not remote.is_there(1.0):
            processes.give_sign_of_life()
        return remote.greet(1.0)

    def _forward(self, hello: Hello) -> None:
        """Have the sockets of the recorders here, and that of the coordinator there."""
        host, there = self._link.host, Path(hello.sockets)
        words = ["-O", "forward", "-R", f"{there / host_lines.COORDINATOR}:{self._link.coordinator}"]
        if self._link.has_netboot:
            words += ["-R", f"{there / host_lines.NETBOOT}:{hosts.folder(host) / host_lines.NETBOOT}"]
        for board in self._link.boards:
            pairs = zip(recorders.sockets(hosts.folder(host), board), recorders.sockets(there, board), strict=True)
            for here, other in pairs:
                words += ["-L", f"{here}:{other}"]
        done = subprocess.run(
            hosts.command(host, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORWARD_TIMEOUT,
            env=processes.environment(processes.NETWORK),
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            why = said[-1] if said else "no reason given"
            raise HostAway(
                f"host {host.name}: its sshd does not forward Unix sockets ({why}): it needs AllowTcpForwarding and "
                "AllowStreamLocalForwarding"
            )

    def _orders(self) -> Orders:
        orders = shape.read(Orders, self._link.orders.read_bytes())
        names = {board.bmc.credential for board in orders.boards if board.bmc.protocol != "none"}
        names |= {spec.credential for board in orders.boards for spec in (board.sol, board.console) if spec}
        logins = {name: credentials.lookup(name) for name in names if name}
        return replace(orders, logins={name: Login(one.user, one.password) for name, one in logins.items()})

    def _follow(self, remote: Remote) -> None:
        """Take its reports, until the end."""
        heard = started = time.monotonic()
        while not self._ending.is_set():
            processes.give_sign_of_life()
            line = remote.next(0.5)
            if line is not None:
                heard = time.monotonic()
                self._take(shape.read(Report, line))
            if time.monotonic() - heard > SILENCE and self._state.is_up:
                raise HostAway(f"host {self._link.host.name}: its xenlab says nothing for {SILENCE:.0f} s")
            if not self._state.is_up and time.monotonic() - started > SETTLED:
                starts = f"host {self._link.host.name} still starts: {self._progress}"
                if starts != self._told:
                    self._is_away(starts)
        remote.send(host_lines.DOWN)
        deadline = time.monotonic() + DOWN_TIMEOUT
        with contextlib.suppress(HostAway):
            while time.monotonic() < deadline:
                remote.next(0.5)

    def _take(self, report: Report) -> None:
        name = self._link.host.name
        if report.failed:
            raise HostAway(f"host {name}: {report.failed}")
        if report.said:
            log.info("%s: %s", name, report.said)
            self._progress = report.said
            self._state = replace(self._state, why=report.said)
        if not report.is_up:
            return
        since = self._state.since if self._state.is_up else time.time()
        self._state = replace(
            self._state, is_up=True, why="", since=since, processes=report.processes, gone=report.gone
        )
        away.end(self._folder, self._link.boards)
        self._note()
        if self._told:
            log.info("host %s is back", name)
            self._told = ""

    def _is_away(self, why: str) -> None:
        if self._ending.is_set():
            return
        away.begin(self._folder, self._link.boards, f"its host is away: {why}")
        since = time.time() if self._state.is_up or not self._state.since else self._state.since
        self._state = replace(self._state, is_up=False, why=why, since=since, processes={}, gone=())
        self._note()
        if why != self._told:
            self._told = why
            log.warning("%s; tried again", why)

    def _note(self) -> None:
        try:
            self._state.write(self._folder)
        except OSError as error:
            log.warning("%s: %s", self._folder, error.strerror)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ending.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            processes.give_sign_of_life()
            if time.monotonic() >= deadline:
                return


def main() -> int:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stdout)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    HostLink(folder, Link.read(folder, name), ending).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
