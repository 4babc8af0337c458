"""The BMC of a virtual board that speaks Redfish: ``python -m lab.virtual.redfish FOLDER``.

sushy-tools' emulator with a driver for the board daemon: what a client asks of the system goes over the control socket,
as ``ipmi_sim`` asks by :mod:`lab.virtual.chassis`. The emulator serves neither how long a boot override holds nor the
power button; both are added here.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import bcrypt
import flask
from sushy_tools import error
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver

from lab.base import credentials
from lab.virtual import tls
from lab.virtual.chassis import ask
from lab.virtual.spec import DaemonConfig, read_config

# DSP0268, ComputerSystem, ResetType; GracefulRestart is left out: nothing here knows when the system is down.
RESETS = {
    "On": "set power 1",
    "ForceOn": "set power 1",
    "ForceOff": "set power 0",
    "ForceRestart": "set reset 1",
    "GracefulShutdown": "set shutdown 1",
    "PushPowerButton": "set button 1",
    "Nmi": "set nmi 1",
}
# The same, BootSource; the right hand as the daemon names them.
BOOT_SOURCES = {"None": "none", "Pxe": "pxe", "Hdd": "default", "Cd": "cdrom", "BiosSetup": "bios"}
# The same, BootSourceOverrideMode; the right hand is whether a choice is for UEFI.
BOOT_MODES = {"Legacy": 0, "UEFI": 1}


class _System(TypedDict):
    """What is changed of a ComputerSystem as sushy-tools tells it."""

    Boot: dict[str, object]
    Actions: dict[str, dict[str, object]]


class BoardDriver(AbstractSystemsDriver):  # type: ignore[misc]
    """The one system behind this BMC."""

    def __init__(self, config: DaemonConfig, control: Path) -> None:
        self._name, self._control = config.board.name, control
        self._uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, config.board.name))

    @property
    def driver(self) -> str:
        return "<xenlab board daemon>"

    @property
    def systems(self) -> list[str]:
        return [self._uuid]

    def uuid(self, identity: str) -> str:
        if identity not in (self._uuid, self._name):
            raise error.NotFound(f"no system {identity}")
        return self._uuid

    def name(self, identity: str) -> str:
        self.uuid(identity)
        return self._name

    def get_power_state(self, identity: str) -> str:
        return "On" if self._ask("get power") == "1" else "Off"

    def set_power_state(self, identity: str, state: str) -> None:
        if state not in RESETS:
            raise error.BadRequest(f"ResetType {state} is not one of {', '.join(RESETS)}")
        self._ask(RESETS[state])

    def get_boot_device(self, identity: str) -> str:
        device = self._ask("get boot")
        return next(source for source, name in BOOT_SOURCES.items() if name == device)

    def set_boot_device(self, identity: str, boot_source: str) -> None:
        if boot_source not in BOOT_SOURCES:
            raise error.BadRequest(f"BootSourceOverrideTarget {boot_source} is not one of {', '.join(BOOT_SOURCES)}")
        self._ask(f"set boot {BOOT_SOURCES[boot_source]}")

    def override(self, boot: Mapping[str, object]) -> None:
        """What a client changes of ``Boot``."""
        enabled = boot.get("BootSourceOverrideEnabled")
        if enabled == "Disabled":
            self.set_boot_device(self._uuid, "None")
        elif "BootSourceOverrideTarget" in boot:
            target = boot["BootSourceOverrideTarget"]
            self.set_boot_device(self._uuid, target if isinstance(target, str) else json.dumps(target))
        if (mode := boot.get("BootSourceOverrideMode")) is not None:
            if not isinstance(mode, str) or mode not in BOOT_MODES:
                raise error.BadRequest(f"BootSourceOverrideMode {mode} is not one of {', '.join(BOOT_MODES)}")
            self._ask(f"set efi {BOOT_MODES[mode]}")
        if enabled is not None:
            self._ask(f"set persistent {int(enabled == 'Continuous')}")

    def overridden(self, system: _System) -> _System:
        """The system as it is told, with what the emulator leaves out."""
        boot, action = system["Boot"], system["Actions"]["#ComputerSystem.Reset"]
        is_persistent = self._ask("get persistent") == "1"
        is_disabled = boot["BootSourceOverrideTarget"] == "None"
        boot["BootSourceOverrideEnabled"] = "Disabled" if is_disabled else "Continuous" if is_persistent else "Once"
        boot["BootSourceOverrideTarget@Redfish.AllowableValues"] = list(BOOT_SOURCES)
        boot["BootSourceOverrideMode"] = "UEFI" if self._ask("get efi") == "1" else "Legacy"
        boot["BootSourceOverrideMode@Redfish.AllowableValues"] = list(BOOT_MODES)
        action["ResetType@Redfish.AllowableValues"] = list(RESETS)
        return system

    def _ask(self, request: str) -> str:
        try:
            answer = ask(self._control, request)
        except OSError as lost:
            raise error.FishyError(f"the board does not answer: {lost}") from None
        if answer.startswith("error"):
            raise error.FishyError(answer)
        return answer


def application(config: DaemonConfig, folder: Path) -> flask.Flask:
    """The emulator, in front of this board."""
    driver = BoardDriver(config, folder / "control.sock")
    account = credentials.lookup(config.board.bmc.credential)
    users = folder / "redfish.htpasswd"
    with open(os.open(users, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        # 2^4 rounds: each request logs in, and the password next to it is in a file of the same mode.
        digest = bcrypt.hashpw(account.password.encode(), bcrypt.gensalt(4))
        stream.write(account.user.encode() + b":" + digest + b"\n")

    class Application(type(emulator.app)):  # type: ignore[misc]
        systems = driver  # in place of the drivers for hypervisors that it looks for

    app: flask.Flask = emulator.app
    app.__class__ = Application
    emulator.app.configure(
        extra_config={"SUSHY_EMULATOR_AUTH_FILE": str(users), "SUSHY_EMULATOR_STATE_DIR": str(folder / "bmc-state")}
    )
    plain: Callable[..., flask.Response] = emulator.app.view_functions["system_resource"]

    def system_resource(identity: str) -> flask.Response | tuple[str, int]:
        if flask.request.method == "PATCH":
            driver.uuid(identity)
            driver.override((flask.request.get_json() or {}).get("Boot") or {})
            return "", 204
        answer = plain(identity=identity)
        answer.set_data(json.dumps(driver.overridden(answer.get_json())))
        return answer

    app.view_functions["system_resource"] = system_resource
    return app


def main() -> int:
    """Serve until killed; the log goes to stderr, which whoever starts this sends to a file."""
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = read_config(folder / "daemon.json")
    spec, context = config.board.bmc, None
    if spec.tls != "off":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls.pair(folder))
    application(config, folder).run(host="127.0.0.1", port=spec.port, ssl_context=context, threaded=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
