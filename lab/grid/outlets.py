"""Switched outlets: labgrid's driver for them, with backends of the lab's own for PDUs that speak SNMP.

labgrid's backends for these want an older pysnmp than the one that is installed, or the programs of net-snmp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import attr
from labgrid.driver import NetworkPowerDriver
from labgrid.factory import target_factory

if TYPE_CHECKING:
    from lab.grid.snmp import Agent


class Backend(Protocol):
    """What labgrid's driver asks of a model of PDU (``labgrid/driver/power``, where each is a module)."""

    def power_get(self, host: str, port: int | None, index: str) -> bool: ...

    def power_set(self, host: str, port: int | None, index: str, value: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class SnmpBackend:
    """A PDU by SNMPv1, as one of labgrid's backends: ``power_get`` and ``power_set``.

    ``host`` may be ``ADDRESS:PORT``; else it is port 161.
    """

    state: Callable[[int], str]  # object of an outlet that says how it is
    states: Mapping[int, bool]  # its values, and whether the outlet has power then
    control: Callable[[int, bool], tuple[str, int]]  # object that switches it, and the value to set
    read: str = "private"  # communities, as these PDUs come and as labgrid has them
    write: str = "private"

    def power_get(self, host: str, port: int | None, index: str) -> bool:
        """Whether the outlet has power. :raises SnmpFailed: no answer, or a state that is neither on nor off."""
        from lab.grid.snmp import SnmpFailed

        value = _agent(host, self.read).get(self.state(int(index)))
        if value not in self.states:
            raise SnmpFailed(f"outlet {index} is in state {value}, which is neither on nor off")
        return self.states[value]

    def power_set(self, host: str, port: int | None, index: str, value: bool) -> None:
        """Switch the outlet. :raises SnmpFailed: no answer, or the PDU refuses."""
        _agent(host, self.write).set(*self.control(int(index), value))


def _agent(host: str, community: str) -> Agent:
    from lab.grid import snmp  # it takes a while to load, and few boards have such an outlet

    address, _, port = host.partition(":")
    return snmp.Agent(address, int(port or snmp.PORT), lambda: snmp.community(community, version=1))


def _sentry_outlet(number: int) -> str:
    """Tower, infeed and outlet: eight outlets an infeed."""
    return f"1.{(number - 1) // 8 + 1}.{(number - 1) % 8 + 1}"


# Sources: PowerNet-MIB (sPDUOutletCtl), EATON-EPDU-MIB (outletControl...), POWER-ETHERNET-MIB, RFC 3621
# (pethPsePortAdminEnable), PDU2-MIB (outletSwitching...), Sentry3-MIB (outletControlState, outletControlAction).
_APC = "1.3.6.1.4.1.318.1.1.4.4.2.1.3"
_EATON = "1.3.6.1.4.1.534.6.6.7.6.6.1"
_POE = "1.3.6.1.2.1.105.1.1.1.3.1"
_RARITAN = "1.3.6.1.4.1.13742.6.4.1.2.1"
_SENTRY = "1.3.6.1.4.1.1718.3.2.3.1"
SNMP_BACKENDS: Mapping[str, SnmpBackend] = {
    "apc": SnmpBackend(
        lambda outlet: f"{_APC}.{outlet}", {1: True, 2: False}, lambda outlet, on: (f"{_APC}.{outlet}", 1 if on else 2)
    ),
    "eaton": SnmpBackend(
        lambda outlet: f"{_EATON}.2.0.{outlet}",
        {0: False, 1: True, 2: True, 3: False},  # off, on; on its way to off, to on: it is not there yet
        lambda outlet, on: (f"{_EATON}.{4 if on else 3}.0.{outlet}", 1),  # in a second
        read="public",
        write="public",
    ),
    "poe_mib": SnmpBackend(
        lambda port: f"{_POE}.{port}", {1: True, 2: False}, lambda port, on: (f"{_POE}.{port}", 1 if on else 2)
    ),
    "raritan": SnmpBackend(
        lambda outlet: f"{_RARITAN}.3.1.{outlet}",
        {7: True, 8: False},
        lambda outlet, on: (f"{_RARITAN}.2.1.{outlet}", int(on)),
        read="public",
    ),
    "sentry": SnmpBackend(
        lambda outlet: f"{_SENTRY}.10.{_sentry_outlet(outlet)}",
        {0: False, 1: True, 2: False, 3: True, 4: False, 5: True, 6: False, 7: True},  # idle, wake, plain, locked
        lambda outlet, on: (f"{_SENTRY}.11.{_sentry_outlet(outlet)}", 1 if on else 2),
    ),
}


@target_factory.reg_driver
@attr.s(eq=False)
class OutletDriver(NetworkPowerDriver):
    """labgrid's driver of an outlet; PDUs that speak SNMP are spoken to by :data:`SNMP_BACKENDS`."""

    backend: Backend

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.backend = SNMP_BACKENDS.get(self.port.model, self.backend)
