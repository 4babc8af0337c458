"""Redfish services in the shapes of several makers, small and made for this: a tree of resources and habits.

The trees follow what the makers' services are known to look like (which links there are, what is null, which kinds of
Reset are offered), not any one machine's answers. The power is a switch of the service's own.

Import ``zoo_fixture`` to have the fixture ``zoo``: ``zoo("dell")``, ``zoo(tree)``.
"""

from __future__ import annotations

import base64
import copy
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab.base.credentials import Credential
from lab.bmc.redfish import RedfishBmc
from lab.bmc.switching import Pace
from lab.inventory import BmcSpec

USER, PASSWORD = "lab", "canary-M5t9"
QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=0.6, settle=0.1, patience=5.0)

Tree = dict[str, Any]


def link(path: str) -> dict[str, str]:
    return {"@odata.id": f"/redfish/v1/{path}"}


def links(*paths: str) -> list[dict[str, str]]:
    return [link(path) for path in paths]


def collection(*paths: str) -> dict[str, Any]:
    return {"Members": links(*paths), "Members@odata.count": len(paths)}


def error(message_id: str, message: str | None = None) -> dict[str, Any]:
    """An error response, as DSP0266 has it."""
    info = {"MessageId": message_id} | ({"Message": message} if message else {})
    return {"error": {"code": "Base.1.8.GeneralError", "@Message.ExtendedInfo": [info]}}


def root(*, systems: list[str], managers: list[str] = (), chassis: list[str] = (), **more: Any) -> Tree:  # type: ignore[assignment]
    """The service root, and its collections."""
    tree: Tree = {
        "": {
            "Id": "RootService",
            "RedfishVersion": "1.6.0",
            "Systems": link("Systems"),
            "SessionService": link("SessionService"),
            "Links": {"Sessions": link("SessionService/Sessions")},
            **more,
        },
        "Systems": collection(*(f"Systems/{name}" for name in systems)),
    }
    for word, names in (("Managers", managers), ("Chassis", chassis)):
        if names:
            tree[""][word] = link(word)
            tree[word] = collection(*(f"{word}/{name}" for name in names))
    return tree


def system(name: str, resets: list[str] | None, **more: Any) -> dict[str, Any]:
    reset: dict[str, Any] = {"target": f"/redfish/v1/Systems/{name}/Actions/ComputerSystem.Reset"}
    if resets is not None:
        reset["ResetType@Redfish.AllowableValues"] = resets
    return {
        "@odata.id": f"/redfish/v1/Systems/{name}",
        "Id": name,
        "Name": "System",
        "PowerState": "Off",
        "Actions": {"#ComputerSystem.Reset": reset},
        **more,
    }


def boot(*targets: str, mode: str | None = None, modes: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "BootSourceOverrideEnabled": "Disabled",
        "BootSourceOverrideTarget": "None",
        "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", *targets],
    }
    if mode:
        found["BootSourceOverrideMode"] = mode
    if modes is not None:
        found["BootSourceOverrideMode@Redfish.AllowableValues"] = modes
    return found


def temperature(name: str | None, celsius: float | None, health: str | None = "OK") -> dict[str, Any]:
    return {"MemberId": "0", "Name": name, "ReadingCelsius": celsius, "Status": {"State": "Enabled", "Health": health}}


def supermicro() -> Tree:
    """Many kinds of Reset, Thermal, a mode that must be sent along."""
    return root(systems=["1"], managers=["1"], chassis=["1"]) | {
        "Systems/1": system(
            "1",
            ["On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "Nmi", "ForceOn"],
            Manufacturer="Supermicro",
            Boot=boot("Pxe", "Hdd", "Cd", "UsbCd", "BiosSetup", mode="UEFI", modes=["Legacy", "UEFI", "Dual"]),
            Links={"Chassis": links("Chassis/1"), "ManagedBy": links("Managers/1")},
        ),
        "Managers/1": {"Model": "ASPEED", "FirmwareVersion": "1.73.10", "DateTime": "2026-06-23T20:07:14Z"},
        "Chassis/1": {"Id": "1", "Thermal": link("Chassis/1/Thermal"), "Power": link("Chassis/1/Power")},
        "Chassis/1/Thermal": {
            "Temperatures": [temperature("CPU1 Temp", 41), temperature("P1-DIMMA1 Temp", None, None)],
            "Fans": [
                {"MemberId": "0", "Name": "FAN1", "Reading": 2100, "ReadingUnits": "RPM", "Status": {"Health": "OK"}}
            ],
        },
        "Chassis/1/Power": {
            "PowerControl": [{"MemberId": "0", "Name": "System Power Control", "PowerConsumedWatts": 112}],
            "Voltages": [{"MemberId": "0", "Name": "12V", "ReadingVolts": 12.1, "Status": {"Health": "OK"}}],
            "PowerSupplies": [
                {"MemberId": "0", "Name": "PSU1", "LineInputVoltage": 231, "Status": {"State": "Enabled"}},
                {"MemberId": "1", "Name": "PSU2", "LineInputVoltage": None, "Status": {"State": "Absent"}},
            ],
        },
    }


def dell() -> Tree:
    """Values behind ActionInfo, both generations of sensors, PSU501 for a power that is as wanted already."""
    name = "System.Embedded.1"
    tree = root(systems=[name], managers=["iDRAC.Embedded.1"], chassis=[name], Product="Integrated Dell Remote Access")
    tree[f"Systems/{name}"] = system(
        name,
        None,
        Manufacturer="Dell Inc.",
        UUID="4c4c4544-0051-3510-8052-b4c04f4a4d32",
        Boot=boot("Pxe", "Hdd", "Cd", "BiosSetup", mode="UEFI", modes=["Legacy", "UEFI"]),
        Links={"Chassis": links(f"Chassis/{name}"), "ManagedBy": links("Managers/iDRAC.Embedded.1")},
        SerialConsole={"SSH": {"ServiceEnabled": True, "Port": 22, "ConsoleEntryCommand": "console com2"}},
    )
    tree[f"Systems/{name}"]["Actions"]["#ComputerSystem.Reset"]["@Redfish.ActionInfo"] = (
        f"/redfish/v1/Systems/{name}/ResetActionInfo"
    )
    values = [
        "On",
        "ForceOff",
        "ForceRestart",
        "GracefulRestart",
        "GracefulShutdown",
        "PushPowerButton",
        "Nmi",
        "PowerCycle",
    ]
    tree[f"Systems/{name}/ResetActionInfo"] = {
        "Id": "ResetActionInfo",
        "Parameters": [{"Name": "ResetType", "Required": True, "AllowableValues": values}],
    }
    tree["Managers/iDRAC.Embedded.1"] = {
        "Model": "16G Monolithic",
        "FirmwareVersion": "7.10.30.00",
        "DateTime": "2026-06-23T15:07:14-05:00",
    }
    chassis = f"Chassis/{name}"
    tree[chassis] = {
        "Id": name,
        "Thermal": link(f"{chassis}/Thermal"),
        "ThermalSubsystem": link(f"{chassis}/ThermalSubsystem"),
        "Sensors": link(f"{chassis}/Sensors"),
        "PowerSubsystem": link(f"{chassis}/PowerSubsystem"),
    }
    tree[f"{chassis}/Thermal"] = {"Temperatures": [temperature("CPU1 Temp", 41)], "Fans": []}
    tree[f"{chassis}/ThermalSubsystem"] = {"Fans": link(f"{chassis}/ThermalSubsystem/Fans")}
    tree[f"{chassis}/ThermalSubsystem/Fans"] = collection(f"{chassis}/ThermalSubsystem/Fans/Fan1")
    tree[f"{chassis}/ThermalSubsystem/Fans/Fan1"] = {
        "Name": "System Board Fan1A",
        "SpeedPercent": {"Reading": 27, "SpeedRPM": 6720, "DataSourceUri": f"/redfish/v1/{chassis}/Sensors/Fan1A"},
        "Status": {"State": "Enabled", "Health": "OK"},
    }
    tree[f"{chassis}/Sensors"] = collection(*(f"{chassis}/Sensors/{one}" for one in ("CPU1Temp", "Fan1A", "Gone")))
    tree[f"{chassis}/Sensors/CPU1Temp"] = sensor(chassis, "CPU1Temp", "CPU1 Temp", "Temperature", 41, "Cel")
    tree[f"{chassis}/Sensors/Fan1A"] = sensor(chassis, "Fan1A", "System Board Fan1A", "Rotational", 6720, "RPM")
    tree[f"{chassis}/PowerSubsystem"] = {"PowerSupplies": link(f"{chassis}/PowerSubsystem/PowerSupplies")}
    supplies = f"{chassis}/PowerSubsystem/PowerSupplies"
    tree[supplies] = collection(f"{supplies}/PSU.Slot.1", f"{supplies}/PSU.Slot.2")
    tree[f"{supplies}/PSU.Slot.1"] = {"Name": "PS1 Status", "LineInputStatus": "Normal", "Status": {"Health": "OK"}}
    tree[f"{supplies}/PSU.Slot.2"] = {"Name": "PS2 Status", "LineInputStatus": None, "Status": {"State": "Absent"}}
    return tree


def sensor(
    chassis: str, name: str, title: str, kind: str, reading: float | None, units: str, health: str = "OK"
) -> Tree:
    return {
        "@odata.id": f"/redfish/v1/{chassis}/Sensors/{name}",
        "Id": name,
        "Name": title,
        "ReadingType": kind,
        "Reading": reading,
        "ReadingUnits": units,
        "Status": {"State": "Enabled", "Health": "OK"},
    }


def hpe() -> Tree:
    """A power state that is null at first, messages without a text, a mode that is told and not listed."""
    return root(systems=["1"], managers=["1"], chassis=["1"], Product="ProLiant DL360 Gen10") | {
        "Systems/1": system(
            "1",
            ["On", "ForceOff", "GracefulShutdown", "ForceRestart", "Nmi", "PushPowerButton", "GracefulRestart"],
            Manufacturer="HPE",
            Boot=boot("Cd", "Hdd", "Usb", "SDCard", "Utilities", "Diags", "BiosSetup", "Pxe", "UefiShell", mode="UEFI"),
            Links={"Chassis": links("Chassis/1"), "ManagedBy": links("Managers/1")},
        ),
        "Managers/1": {
            "Model": "iLO 5",
            "FirmwareVersion": "iLO 5 v3.06",
            "DateTime": "2026-06-23T20:07:14Z",
            "SerialConsole": {"ServiceEnabled": True, "ConnectTypesSupported": ["SSH", "IPMI", "Oem"]},
        },
        "Chassis/1": {"Id": "1", "Thermal": link("Chassis/1/Thermal")},
        "Chassis/1/Thermal": {
            "Temperatures": [temperature("01-Inlet Ambient", 21), temperature(None, None, None)],
            "Fans": [
                {
                    "MemberId": "0",
                    "FanName": "Fan 1",
                    "CurrentReading": 13,
                    "Units": "Percent",
                    "Status": {"Health": "OK"},
                }
            ],
        },
    }


def lenovo() -> Tree:
    """A chassis and a manager that are linked and gone; busy at first."""
    return root(systems=["1"], managers=["1"], chassis=["1", "2"], Product="Lenovo XClarity Controller") | {
        "Systems/1": system(
            "1",
            ["On", "Nmi", "GracefulShutdown", "GracefulRestart", "ForceOn", "ForceOff", "ForceRestart"],
            Boot=boot("Pxe", "Cd", "Usb", "Hdd", "BiosSetup", "Diags", mode="UEFI", modes=["UEFI", "Legacy"]),
            Links={
                "Chassis": links("Chassis/2", "Chassis/1"),
                "ManagedBy": links("Managers/gone", "Managers/1"),
            },
        ),
        "Managers/1": {"Model": "Lenovo XClarity Controller", "DateTime": "2026-06-23T20:07:14+00:00"},
        "Chassis/1": {"Id": "1", "Thermal": link("Chassis/1/Thermal")},
        "Chassis/1/Thermal": {"Temperatures": [temperature("Ambient Temp", 24)], "Fans": None},
    }


def intel() -> Tree:
    """Neither managers nor chassis are linked, and each change wants the resource's ETag."""
    return root(systems=["QSB1"], managers=["BMC"], chassis=["RackMount"]) | {
        "Systems/QSB1": system(
            "QSB1",
            ["On", "ForceOff", "ForceRestart", "GracefulShutdown", "ForceOn"],
            **{"@odata.etag": '"7c2"'},
            Boot=boot("Pxe", "Hdd", "Cd", "BiosSetup"),
        ),
        "Managers/BMC": {
            "Model": None,
            "Name": "Manager",
            "FirmwareVersion": "2.48",
            "DateTime": "2026-06-23T20:07:14",
        },
        "Chassis/RackMount": {"Id": "RackMount", "Thermal": link("Chassis/RackMount/Thermal")},
        "Chassis/RackMount/Thermal": {"Temperatures": None, "Fans": [{"Name": "Fan", "Reading": None, "Status": None}]},
    }


def openbmc() -> Tree:
    """No basic authentication, no Thermal, tasks, a console behind SSH; a clock of zeros."""
    chassis = "Chassis/chassis"
    return root(systems=["system"], managers=["bmc"], chassis=["chassis"]) | {
        "Systems/system": system(
            "system",
            ["ForceOff", "On", "ForceOn", "ForceRestart", "GracefulRestart", "GracefulShutdown", "PowerCycle", "Nmi"],
            Boot=boot("Pxe", "Hdd", "Cd", "Diags", "BiosSetup", "Usb", mode="UEFI", modes=["Legacy", "UEFI"]),
            Links={"Chassis": links("Chassis/chassis"), "ManagedBy": links("Managers/bmc")},
            SerialConsole={"SSH": {"ServiceEnabled": True, "Port": 2200}, "IPMI": {"ServiceEnabled": True}},
        ),
        "Managers/bmc": {"Model": "OpenBmc", "FirmwareVersion": "2.14.0", "DateTime": "0000-00-00T00:00:00+00:00"},
        chassis: {
            "Id": "chassis",
            "ThermalSubsystem": link(f"{chassis}/ThermalSubsystem"),
            "Sensors": link(f"{chassis}/Sensors"),
        },
        f"{chassis}/ThermalSubsystem": {"ThermalMetrics": link(f"{chassis}/ThermalSubsystem/ThermalMetrics")},
        f"{chassis}/Sensors": collection(f"{chassis}/Sensors/temperature_cpu", f"{chassis}/Sensors/fan0"),
        f"{chassis}/Sensors/temperature_cpu": sensor(chassis, "temperature_cpu", "cpu", "Temperature", 37, "Cel"),
        f"{chassis}/Sensors/fan0": sensor(chassis, "fan0", "fan0", "Rotational", 4200.0, "RPM"),
    }


def cray() -> Tree:
    """A controller of two nodes, which offer On and ForceOff alone."""
    nodes = {f"Systems/{name}": system(name, ["On", "ForceOff"]) for name in ("Node0", "Node1")}
    return (
        root(systems=["Node0", "Node1"], managers=["BMC"])
        | nodes
        | {"Managers/BMC": {"DateTime": "2026-06-23T20:07:14Z"}}
    )


SHAPES: Mapping[str, Callable[[], Tree]] = {
    shape.__name__: shape for shape in (supermicro, dell, hpe, lenovo, intel, openbmc, cray)
}


@dataclass
class Habits:
    """How the service behaves. Counts are used up by requests."""

    basic: bool = True
    sessions: bool = True
    busy: list[tuple[int, str | None]] = field(default_factory=list)  # status and Retry-After of the next answers
    states: list[Any] = field(default_factory=list)  # what PowerState says in turn; then the truth
    keeps_state: bool = False  # PowerState stays as it is in the tree
    etag: bool = False  # each PATCH must have the resource's, or is answered with 428 or 412
    tasks: bool = False  # Reset is answered with 202
    task_fails: str | None = None  # with this message
    conflicts: bool = False  # a Reset to what is so already is answered with 409
    refused: dict[str, tuple[int, Any]] = field(default_factory=dict)  # "METHOD path" -> answer
    needs_mode: bool = False  # a boot override without a mode is answered with 400
    takes_no_mode: bool = False


HABITS: Mapping[str, dict[str, Any]] = {
    "supermicro": {"needs_mode": True},
    "dell": {"conflicts": True},
    "hpe": {"states": [None, None], "takes_no_mode": True},
    "lenovo": {"busy": [(503, "1"), (503, None)]},
    "intel": {"etag": True},
    "openbmc": {"basic": False, "tasks": True},
    "cray": {},
}


Answer = tuple[int, Any, dict[str, str]]  # status, body as JSON or as bytes, headers
# Of a request: its method, its path, its body.
Instead = Callable[[http.server.BaseHTTPRequestHandler, str, str, Any], Answer | None]


class Zoo:
    """A running service."""

    def __init__(self, tree: Tree, habits: Habits) -> None:
        self.tree, self.habits = tree, habits
        self.requests: list[tuple[str, str, Any]] = []  # method, path below /redfish/v1, body
        self.sessions: set[str] = set()
        self.instead: Instead | None = None  # asked first; None is the usual answer
        zoo = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                zoo._answer(self, "GET", None)

            def do_POST(self) -> None:
                zoo._answer(self, "POST", self._body())

            def do_PATCH(self) -> None:
                zoo._answer(self, "PATCH", self._body())

            def do_DELETE(self) -> None:
                zoo._answer(self, "DELETE", None)

            def _body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def spec(self, **options: Any) -> BmcSpec:
        return BmcSpec("127.0.0.1", "zoo", "redfish", port=self.port, tls="off", **options)

    def bmc(self, *, password: str = PASSWORD, **options: Any) -> RedfishBmc:
        return RedfishBmc("zoo", self.spec(**options), Credential(USER, password), QUICK)

    def resets(self) -> list[str]:
        return [body["ResetType"] for method, path, body in self.requests if method == "POST" and "Reset" in path]

    def patches(self) -> list[dict[str, Any]]:
        return [body["Boot"] for method, _, body in self.requests if method == "PATCH"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- answers -------------------------------------------------------------------------------------------------

    def _answer(self, request: Any, method: str, body: Any) -> None:
        path = request.path.removeprefix("/redfish/v1").strip("/")
        self.requests.append((method, path, body))
        special = self.instead(request, method, path, body) if self.instead else None
        status, answer, headers = special or self._handled(request, method, path, body)
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode() if answer is not None else b""
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _handled(self, request: Any, method: str, path: str, body: Any) -> Answer:
        habits = self.habits
        if method == "POST" and path == "SessionService/Sessions":
            if not habits.sessions or body != {"UserName": USER, "Password": PASSWORD}:
                return 401, error("Base.1.8.NoValidSession"), {}
            token = f"token-{len(self.sessions)}"
            self.sessions.add(token)
            where = f"/redfish/v1/SessionService/Sessions/{token}"
            return 201, {"@odata.id": where}, {"X-Auth-Token": token, "Location": where}
        if path and not self._is_logged_in(request):
            return 401, error("Base.1.8.NoValidSession", "There is no valid session established."), {}
        if f"{method} {path}" in habits.refused:
            return *habits.refused[f"{method} {path}"], {}
        if habits.busy and path:
            status, after = habits.busy.pop(0)
            said = error("Base.1.8.ServiceTemporarilyUnavailable", "The service is temporarily unavailable.")
            return status, said, {"Retry-After": after} if after else {}
        if method == "DELETE":
            self.sessions.discard(path.rpartition("/")[2])
            return 204, None, {}
        if method == "POST" and path.endswith("/Actions/ComputerSystem.Reset"):
            return self._reset(path.removesuffix("/Actions/ComputerSystem.Reset"), body["ResetType"])
        if path not in self.tree:
            return 404, error("Base.1.8.ResourceMissingAtURI", f"The resource at the URI {path} was not found."), {}
        if method == "PATCH":
            return self._patch(path, body, request.headers.get("If-Match"))
        found = copy.deepcopy(self.tree[path])
        if habits.states and path.startswith("Systems/") and "PowerState" in found:
            found["PowerState"] = habits.states.pop(0)
        return 200, found, {}

    def _is_logged_in(self, request: Any) -> bool:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        is_basic = request.headers.get("Authorization") == f"Basic {login}"
        return (is_basic and self.habits.basic) or request.headers.get("X-Auth-Token") in self.sessions

    def _reset(self, path: str, kind: str) -> Answer:
        found = self.tree[path]
        wanted = {"On": "On", "ForceOn": "On", "ForceOff": "Off", "PushPowerButton": "On"}.get(
            kind, found["PowerState"]
        )
        if self.habits.conflicts and kind in ("On", "ForceOff") and wanted == found["PowerState"]:
            said = f"Server is already powered {wanted.upper()}."
            return 409, error("IDRAC.2.8.PSU501", said), {}
        if self.habits.task_fails:
            message = {"MessageId": "TaskEvent.1.0.TaskAborted", "Message": self.habits.task_fails}
            task = {"TaskState": "Exception", "TaskStatus": "Critical", "Messages": [message]}
        else:
            task = {"TaskState": "Completed", "TaskStatus": "OK", "Messages": []}
            if not self.habits.keeps_state:
                found["PowerState"] = wanted
        if not self.habits.tasks:
            return 204, None, {}
        where = "TaskService/Tasks/1"
        self.tree[where] = task | {"@odata.id": f"/redfish/v1/{where}", "Id": "1"}
        return 202, {"@odata.id": f"/redfish/v1/{where}"}, {"Location": f"/redfish/v1/{where}/Monitor"}

    def _patch(self, path: str, body: Any, etag: str | None) -> Answer:
        found = self.tree[path]
        if self.habits.etag and etag != found.get("@odata.etag"):
            return (412 if etag else 428), error("Base.1.8.PreconditionFailed", "The ETag did not match."), {}
        changed = body["Boot"]
        mode = "BootSourceOverrideMode" in changed
        if (self.habits.needs_mode and not mode) or (self.habits.takes_no_mode and mode):
            return 400, error("Base.1.8.PropertyMissing", "The mode is wrong here."), {}
        found["Boot"] |= changed
        return 200, found, {}


MakeZoo = Callable[..., Zoo]


@pytest.fixture(name="zoo")
def zoo_fixture() -> Iterator[MakeZoo]:
    started: list[Zoo] = []

    def make(shape: str | Tree, **habits: Any) -> Zoo:
        tree = SHAPES[shape]() if isinstance(shape, str) else shape
        usual = copy.deepcopy(HABITS.get(shape, {})) if isinstance(shape, str) else {}
        started.append(Zoo(tree, Habits(**usual | habits)))
        return started[-1]

    yield make
    for one in started:
        one.close()
