"""A port of a managed switch, by SNMP: the lab link of a board that is cut outside of the board."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lab.base import credentials
from lab.base.errors import BenchError
from lab.base.wait import wait_until
from lab.grid import snmp
from lab.grid.snmp import SnmpFailed
from lab.inventory import SwitchSpec

_log = logging.getLogger(__name__)

# RFC 2863, IF-MIB. Switches name a port by ifName ("Gi1/0/3"); some have the longer word in ifDescr alone.
IF_DESCR = "1.3.6.1.2.1.2.2.1.2"
IF_ADMIN_STATUS = "1.3.6.1.2.1.2.2.1.7"
IF_OPER_STATUS = "1.3.6.1.2.1.2.2.1.8"
IF_NAME = "1.3.6.1.2.1.31.1.1.1.1"
UP, DOWN = 1, 2

SWITCHED = 10.0  # seconds in which a port must do as it was told
TRAINED = 60.0  # seconds from "up" to a carrier: without `portfast` spanning tree alone takes thirty


class SwitchFailed(BenchError):
    """The switch does not answer, refuses, or has no such port."""


class SwitchPort:
    """One port. Its board's link is down while it is, and no dom0 can bring it up."""

    def __init__(self, board: str, spec: SwitchSpec) -> None:
        self.board, self._spec = board, spec
        self.name = f"{spec.host} port {spec.port}"
        self._agent = snmp.Agent(spec.host, spec.udp_port, self._login)
        self._index = 0
        self._timer: threading.Thread | None = None
        self._restored = threading.Event()
        self._failed: list[BenchError] = []

    def is_up(self) -> bool:
        """Whether the port is switched on (ifAdminStatus). :raises SwitchFailed:"""
        return self._get(IF_ADMIN_STATUS) == UP

    def has_carrier(self) -> bool:
        """Whether there is somebody at its other end (ifOperStatus). :raises SwitchFailed:"""
        return self._get(IF_OPER_STATUS) == UP

    def down(self) -> None:
        """Switch it off, and see that it is. :raises SwitchFailed, WaitTimeout:"""
        self._switch(DOWN)
        wait_until(lambda: not self.is_up() and not self.has_carrier(), SWITCHED, f"{self.name} is down")

    def up(self) -> None:
        """Switch it on, and wait for the board's carrier. :raises SwitchFailed, WaitTimeout:"""
        self._switch(UP)
        wait_until(lambda: self.is_up() and self.has_carrier(), TRAINED, f"{self.name} has a carrier")

    def cut(self, seconds: float) -> None:
        """Down at once, and up again after a while, or with :meth:`restore`. :raises SwitchFailed, WaitTimeout:"""
        self.restore()
        self.down()
        self._restored.clear()
        self._timer = threading.Thread(target=self._later, args=(seconds,), name=f"{self.board}-link", daemon=True)
        self._timer.start()

    def restore(self) -> None:
        """End a cut that is going on. :raises SwitchFailed, WaitTimeout: the port does not come up."""
        timer, self._timer = self._timer, None
        if timer is None:
            return
        self._restored.set()
        timer.join()
        if self._failed:
            raise self._failed.pop()

    def _later(self, seconds: float) -> None:
        self._restored.wait(seconds)
        try:
            self.up()
        except BenchError as error:
            self._failed.append(error)

    def _switch(self, status: int) -> None:
        _log.getChild(self.board).info("%s: ifAdminStatus %d", self.name, status)
        with self._named():
            self._agent.set(f"{IF_ADMIN_STATUS}.{self._ifindex()}", status)

    def _get(self, column: str) -> int:
        with self._named():
            return self._agent.get(f"{column}.{self._ifindex()}")

    def _ifindex(self) -> int:
        """The number that the switch knows the port by today: it may be another after a restart of the switch."""
        if not self._index:
            self._index = self._find()
        return self._index

    def _find(self) -> int:
        names: dict[int, str] = {}
        for column in (IF_NAME, IF_DESCR):
            names |= self._agent.column(column)
            if indices := [index for index, name in names.items() if name == self._spec.port]:
                return indices[0]
        there = ", ".join(sorted(set(names.values()))) or "none"
        raise SwitchFailed(f"{self.board}: switch {self._spec.host} has no port {self._spec.port!r}; it has: {there}")

    def _login(self) -> snmp.Login:
        credential = credentials.lookup(self._spec.credential)
        if self._spec.snmp == "2c":
            return snmp.community(credential.password, version=2)
        return snmp.user(credential.user, credential.password, is_sha256=self._spec.auth == "sha256")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SnmpFailed as error:
            raise SwitchFailed(f"{self.board}: switch {self.name}: {error}") from None
