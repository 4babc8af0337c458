"""labgrid drivers for the resources of :mod:`lab.grid.resources`. Generated environments import this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

import attr
from labgrid.driver import Driver
from labgrid.factory import target_factory
from labgrid.protocol import PowerProtocol, ResetProtocol
from labgrid.resource import NetworkService
from labgrid.step import step

from lab import bmc
from lab.console.client import Console
from lab.grid import mains, outlets, resources, strategy
from lab.grid.board_socket import Profiler, StealMeter
from lab.grid.client_errors import shown_by_client
from lab.grid.host_power import HostPower
from lab.grid.ssh import Ssh
from lab.grid.states import SavedStates
from lab.inventory import BmcSpec, HostSpec, PduSpec

__all__ = ["BmcDriver", "Dom0Driver", "RecordedConsoleDriver", "outlets", "resources", "strategy"]


@target_factory.reg_driver
@attr.s(eq=False)
class BmcDriver(Driver, PowerProtocol, ResetProtocol):
    """Chassis power through the board's BMC, whatever it speaks; each change verified by reading it back.

    With an outlet of a PDU the mains are cut when the BMC fails; an outlet alone is all there is to power.
    """

    bindings = {"port": {"IPMIPort", "RedfishPort", None}, "mains": {"OutletDriver", None}}
    priorities = {PowerProtocol: 10}  # over labgrid's own driver of the outlet
    at: dict[str, Any] | None = attr.ib(default=None)  # the host that the board is at (HostSpec)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        board, port = self.target.name, self.port
        with shown_by_client():
            if self.at:
                outlet = self.mains.port if self.mains else None
                pdu = PduSpec(outlet.model, outlet.host, int(outlet.index)) if outlet else None
                spec = _spec(port) if port else BmcSpec("", "", protocol="none")
                self.bmc: bmc.Bmc = HostPower(board, HostSpec(**self.at), spec, pdu)
            else:
                self.bmc = mains.power(board, bmc.connect(board, _spec(port)) if port else None, self.mains)

    @Driver.check_active
    @step()
    @shown_by_client()
    def on(self, proof: Callable[[], bool] | None = None) -> None:
        self.bmc.power_on(proof=proof)

    @Driver.check_active
    @step()
    @shown_by_client()
    def off(self) -> None:
        self.bmc.power_off()

    @Driver.check_active
    @step()
    @shown_by_client()
    def cycle(self) -> None:
        self.bmc.cycle()

    @Driver.check_active
    @step()
    @shown_by_client()
    def reset(self) -> None:
        self.bmc.reset()

    @Driver.check_active
    @step(result=["True"])
    @shown_by_client()
    def get(self) -> bool:
        return self.bmc.is_powered()

    @Driver.check_active
    @step()
    @shown_by_client()
    def soft_off(self) -> None:
        """Ask for a shutdown (ACPI power button)."""
        self.bmc.soft_off()

    @Driver.check_active
    @step()
    @shown_by_client()
    def nmi(self) -> None:
        """Send a diagnostic interrupt."""
        self.bmc.nmi()

    @Driver.check_active
    @step(args=["device"])
    @shown_by_client()
    def bootdev(self, device: str) -> None:
        """Boot from ``device`` the next time."""
        self.bmc.set_boot_device(device)

    @Driver.check_active
    @step()
    @shown_by_client()
    def sensors(self) -> Mapping[str, str]:
        """Readings by name."""
        return self.bmc.sensors()


@target_factory.reg_driver
@attr.s(eq=False)
class RecordedConsoleDriver(Driver):
    """The recorder's line records: history, waiting, listening."""

    bindings = {"recorder": "ConsoleRecorder"}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        recorder: resources.ConsoleRecorder = self.recorder
        ports = recorder.serve_port, recorder.lines_port
        self.console = Console(self.target.name, recorder.host, *ports, owner=recorder.owner)

    def on_activate(self) -> None:
        self.console.open()

    def on_deactivate(self) -> None:
        self.console.close()


@target_factory.reg_driver
@attr.s(eq=False)
class SavedStatesDriver(Driver):
    """The saved states of a board that has them."""

    bindings = {"port": "BoardSocket"}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.states = SavedStates(self.target.name, self.port.path)


@target_factory.reg_driver
@attr.s(eq=False)
class StealTimeDriver(Driver):
    """The steal time of a board that knows it."""

    bindings = {"port": "BoardSocket"}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.meter = StealMeter(self.target.name, self.port.path)


@target_factory.reg_driver
@attr.s(eq=False)
class ProfileDriver(Driver):
    """What figures are made of, on a board that counts instructions."""

    bindings = {"port": "BoardSocket"}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.profiler = Profiler(self.target.name, self.port.path)


@target_factory.reg_driver
@attr.s(eq=False)
class Dom0Driver(Driver):
    """Commands and files in dom0, over SSH."""

    bindings = {"service": "NetworkService"}
    at: dict[str, Any] | None = attr.ib(default=None)  # the host that the board is at (HostSpec)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        service: NetworkService = self.service
        at = HostSpec(**self.at) if self.at else None
        self.ssh = Ssh(self.target.name, service.address, service.port, service.username, at)

    def on_deactivate(self) -> None:
        self.ssh.close()


def _spec(port: resources.IPMIPort | resources.RedfishPort) -> BmcSpec:
    """A labgrid resource as what it was generated from (:func:`lab.grid.services.exported`)."""
    protocol: Literal["ipmi", "redfish"] = "redfish" if port.__class__.__name__.endswith("RedfishPort") else "ipmi"
    names = {field.name for field in fields(BmcSpec)} - {"protocol"}
    return BmcSpec(protocol=protocol, **{name: getattr(port, name) for name in names if hasattr(port, name)})
