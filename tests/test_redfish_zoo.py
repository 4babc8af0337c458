"""RedfishBmc against services in the shapes of several makers, and what a new board's BMC is asked of each of them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port
from redfish_zoo import HABITS, PASSWORD, QUICK, SHAPES, USER, MakeZoo, Tree, error, zoo_fixture  # noqa: F401

from lab import inventory
from lab.base.credentials import Credential
from lab.base.errors import (
    BenchError,
    BmcBusy,
    CommandFailed,
    CommandRefused,
    LoginRefused,
    MissingCapability,
    PasswordExpired,
    PowerTimeout,
    PowerUnknown,
    PrivilegeRefused,
    UsageError,
)
from lab.bmc import redfish_answers
from lab.bmc.redfish import RedfishBmc
from lab.boards import health, probe
from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec

RECORDED = Path(__file__).parent / "data" / "bmc" / "redfish"
OTHERS = [shape for shape in SHAPES if shape != "cray"]


def merged(tree: Tree, name: str) -> Tree:
    """A tree, with resources of a recording over it."""
    for path, resource in json.loads((RECORDED / f"{name}.json").read_text()).items():
        if path.startswith("/redfish/v1/") and resource != {"status": 404}:
            short = path.removeprefix("/redfish/v1/")
            tree[short] = tree.get(short, {}) | resource
    return tree


def options(shape: str) -> dict[str, Any]:
    return {"system": "Node1"} if shape == "cray" else {}


# What a new board's BMC is asked, of each shape


@pytest.mark.parametrize("shape", SHAPES)
def test_power_is_switched_and_seen(zoo: MakeZoo, shape: str) -> None:
    service = zoo(shape)
    bmc = service.bmc(**options(shape))
    bmc.power_on(10.0)
    assert bmc.is_powered()
    bmc.power_on(10.0)
    bmc.cycle(10.0)
    bmc.power_off(10.0)
    assert not bmc.is_powered() and service.resets() == ["On", "ForceOff", "On", "ForceOff"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_probe_finds_it_and_its_entry_is_one(zoo: MakeZoo, shape: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_ZOO", f"{USER}:{PASSWORD}")
    service = zoo(shape)
    spec = service.spec(**options(shape))
    machine = probe.ProbedMachine("board", "192.0.2.1", 22)
    machine.bmc = probe._look_at_bmc("board", spec, "", machine.remarks)
    machine.ssh_console = service.bmc(**options(shape)).ssh_console()
    tree = {"all": {"vars": {"xenlab": {"lab": "unit"}}}}
    tree["all"]["hosts"] = yaml.safe_load(probe.entry(machine, serve_port=22300))
    (tmp_path / "unit.yaml").write_text(yaml.safe_dump(tree))
    (board,) = inventory.load(tmp_path / "unit.yaml").boards.values()
    assert board.bmc == spec and machine.remarks[0].startswith("redfish: RedfishVersion 1.6.0")
    ports = {"openbmc": ("ssh", 2200, ""), "dell": ("ssh", 22, "console com2")}
    if shape in ports:
        assert (board.console.via, board.console.port, board.console.entry) == ports[shape]


SENSORS = {
    "supermicro": {
        "CPU1 Temp": "41 degrees C",
        "P1-DIMMA1 Temp": "no reading",
        "FAN1": "2100 RPM",
        "System Power Control": "112 W",
        "12V": "12.1 V",
        "PSU1": "231 V",
        "PSU2": "Absent",
    },
    "dell": {
        "CPU1 Temp": "41 degrees C",
        "System Board Fan1A": "6720 RPM",
        "PS1 Status": "Normal",
        "PS2 Status": "Absent",
    },
    "hpe": {"01-Inlet Ambient": "21 degrees C", "sensor 0": "no reading", "Fan 1": "13 %"},
    "lenovo": {"Ambient Temp": "24 degrees C"},
    "intel": {"Fan": "no reading"},
    "openbmc": {"cpu": "37 degrees C", "fan0": "4200.0 RPM"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_sensors_are_read_once_each_and_what_is_gone_is_said(zoo: MakeZoo, shape: str) -> None:
    bmc = zoo(shape).bmc(**options(shape))
    if shape not in SENSORS:
        with pytest.raises(MissingCapability, match="bmc-sensors"):
            bmc.sensors()
        return
    found = bmc.sensors()
    assert found == SENSORS[shape]
    gone = {
        "dell": ("/redfish/v1/Chassis/System.Embedded.1/Sensors/Gone: HTTP 404",),
        "lenovo": ("/redfish/v1/Chassis/2: HTTP 404",),
        "openbmc": (),
    }
    assert found.unread == gone.get(shape, ())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_clock_is_a_managers_or_none(zoo: MakeZoo, shape: str) -> None:
    bmc = zoo(shape).bmc(**options(shape))
    if shape in ("openbmc", "cray"):  # zeros; and a controller of two nodes, which are not linked to it
        with pytest.raises(MissingCapability, match="bmc-clock"):
            bmc.clock()
        return
    assert bmc.clock().isoformat()[:16] in ("2026-06-23T20:07", "2026-06-23T15:07")
    assert bmc.info()["Manager"] in ("ASPEED", "16G Monolithic", "iLO 5", "Lenovo XClarity Controller", "Manager")


@pytest.mark.parametrize("shape", OTHERS)
def test_a_boot_override_is_taken(zoo: MakeZoo, shape: str) -> None:
    service = zoo(shape)
    bmc = service.bmc()
    bmc.set_boot_device("pxe")
    assert bmc.boot_device() == "pxe"
    bmc.set_boot_device("none")
    assert bmc.boot_device() == "none"
    modes = {patch.get("BootSourceOverrideMode") for patch in service.patches()}
    assert modes == ({None} if shape in ("hpe", "intel") else {"UEFI"})


def look(spec: BmcSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, health.HealthFact]:
    """What `xenlab board check` says of a board with this BMC, but for its console, which nobody records here."""
    monkeypatch.setenv("XENLAB_CREDENTIAL_ZOO", f"{USER}:{PASSWORD}")
    console = ConsoleSpec("tcp", free_port(), free_port(), host="127.0.0.1", port=free_port())
    found = health.look(BoardSpec("zoo", "127.0.0.1", spec, console))
    return {finding.subject: finding for finding in found if finding.subject != "console"}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_look_at_the_board_has_nothing_bad(zoo: MakeZoo, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = zoo(shape, states=[])
    for path, resource in service.tree.items():
        if path.startswith("Managers/") and not str(resource.get("DateTime")).startswith("0000"):
            resource["DateTime"] = datetime.now(UTC).isoformat()
    found = look(service.spec(**options(shape)), monkeypatch)
    assert found.keys() == {"power", "BMC clock", "BMC sensors"}
    assert all(finding.is_good for finding in found.values()), found
    assert "0 readings" not in found["BMC sensors"].detail


# Power


@pytest.mark.parametrize("state", [None, "Unknown", "Reset", "missing"])
def test_a_power_state_that_nobody_knows_is_neither_on_nor_off(zoo: MakeZoo, state: Any) -> None:
    tree = merged(SHAPES["supermicro"](), "powerstate-null")
    tree["Systems/1"] |= {"PowerState": state}
    if state == "missing":
        del tree["Systems/1"]["PowerState"]
    service = zoo(tree, keeps_state=True)
    bmc = service.bmc()
    with pytest.raises(PowerUnknown, match="the BMC does not know"):
        bmc.is_powered()
    with pytest.raises(PowerUnknown):
        bmc.sleep_state()
    for switch, sent in ((bmc.power_off, ["ForceOff"]), (bmc.cycle, ["ForceOff"]), (bmc.power_on, ["On"])):
        before = len(service.resets())
        with pytest.raises(PowerUnknown):
            switch(0.4)
        assert service.resets()[before:] == sent, "told, though nobody knows"


def test_a_power_state_that_is_unknown_for_a_moment_is_waited_for(zoo: MakeZoo) -> None:
    service = zoo("supermicro", states=[None, "Unknown", None])
    service.tree["Systems/1"]["PowerState"] = "On"
    bmc = service.bmc()
    bmc.cycle(5.0)
    assert service.resets() == ["ForceOff", "On"]


def test_a_state_that_is_unknown_is_no_good_finding(zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    service = zoo(merged(SHAPES["supermicro"](), "powerstate-null"))
    finding = look(service.spec(), monkeypatch)["power"]
    assert not finding.is_good and "does not know" in finding.detail


def test_a_kind_of_reset_that_is_not_offered_is_said_with_those_that_are(zoo: MakeZoo) -> None:
    service = zoo(merged(SHAPES["supermicro"](), "reset-not-offered"))
    bmc = service.bmc()
    with pytest.raises(CommandRefused, match="the BMC offers ForceRestart, GracefulRestart, On, PowerCycle"):
        bmc.power_off(2.0)
    for ask in (bmc.soft_off, bmc.nmi):
        with pytest.raises(MissingCapability):
            ask()
    assert service.resets() == []
    bmc.cycle(5.0)
    assert service.resets() == ["PowerCycle"] and "no Reset of ForceOff" in bmc.remarks[0]


def test_a_reset_line_that_is_not_offered_is_no_fault_of_ours(zoo: MakeZoo) -> None:
    bmc = zoo("cray").bmc(system="Node0")
    with pytest.raises(CommandRefused, match="Reset ForceRestart.* the BMC offers ForceOff, On"):
        bmc.reset()


def test_kinds_of_reset_are_found_behind_an_action_info(zoo: MakeZoo) -> None:
    service = zoo("dell")
    service.tree["Systems/System.Embedded.1/ResetActionInfo"]["Parameters"][0]["AllowableValues"] = ["On"]
    with pytest.raises(CommandRefused, match="the BMC offers On"):
        service.bmc().reset()


def test_the_bmcs_own_reason_ends_a_command_with_its_message_id(zoo: MakeZoo) -> None:
    said = "Server is in a state that does not allow it."
    service = zoo("dell", conflicts=False)
    reset = "POST Systems/System.Embedded.1/Actions/ComputerSystem.Reset"
    service.habits.refused[reset] = (409, error("IDRAC.2.8.PSU501", said))
    bmc = service.bmc()
    with pytest.raises(CommandFailed, match=rf"{said} \[IDRAC\.2\.8\.PSU501\]") as caught:
        bmc.reset()
    assert caught.value.code == "IDRAC.2.8.PSU501" and caught.value.board == "zoo"
    bmc._pace = replace(QUICK, repeat_after=60.0)
    with pytest.raises(PowerTimeout, match=r"the BMC's last refusal: .*PSU501") as late:
        bmc.power_on(0.4)
    assert late.value.reason and "PSU501" in late.value.reason


def test_a_message_without_a_text_is_told_by_its_id(zoo: MakeZoo) -> None:
    service = zoo("hpe", states=[])
    refused = (400, error("iLO.2.24.InvalidOperationForSystemState"))
    service.habits.refused["POST Systems/1/Actions/ComputerSystem.Reset"] = refused
    with pytest.raises(CommandFailed, match=r"\[iLO\.2\.24\.InvalidOperationForSystemState\]"):
        service.bmc().reset()


def test_what_a_task_failed_at_is_told(zoo: MakeZoo) -> None:
    service = zoo("openbmc", task_fails="The host did not leave the state.")
    with pytest.raises(PowerTimeout, match="its task ended as Exception: The host did not leave the state"):
        service.bmc().power_on(0.5)


# Busy, and the login


def test_a_busy_service_is_asked_again_when_it_wants_to_be(zoo: MakeZoo) -> None:
    service = zoo("supermicro", busy=[(503, "1")])
    started = time.monotonic()
    assert not service.bmc().is_powered()
    assert time.monotonic() - started > 0.9


def test_a_service_that_stays_busy_is_said_to_be(zoo: MakeZoo) -> None:
    service = zoo("supermicro", busy=[(503, None)] * 50)
    bmc = service.bmc()
    bmc._service._pace = replace(QUICK, patience=0.6)
    with pytest.raises(BmcBusy, match=r"temporarily unavailable.* \[Base\.1\.8\.ServiceTemporarilyUnavailable\]"):
        bmc.is_powered()
    with pytest.raises(BmcBusy):
        bmc.power_on(0.5)


@pytest.mark.parametrize("status", [409, 412, 428, 500])
def test_an_error_is_a_failed_command_whatever_its_body(zoo: MakeZoo, status: int) -> None:
    for body in (None, [], "no", {"error": "none"}, {"error": None}, error("Base.1.8.GeneralError", "why")):
        service = zoo("supermicro")
        service.habits.refused["GET Systems/1"] = (status, body)
        with pytest.raises(CommandFailed) as caught:
            service.bmc().is_powered()
        assert caught.value.status == status


def test_a_password_that_must_be_changed_is_said_so(zoo: MakeZoo) -> None:
    recorded = json.loads((RECORDED / "403-says-why.json").read_text())
    service = zoo("supermicro")
    service.habits.refused["GET Systems"] = (recorded["status"], recorded["body"])
    with pytest.raises(PasswordExpired, match="must be changed before access is granted"):
        service.bmc().is_powered()


def test_a_role_that_is_too_small_is_said_so(zoo: MakeZoo) -> None:
    twin = json.loads((RECORDED / "403-says-why.json").read_text())["twin"]
    service = zoo("supermicro")
    refused = (twin["status"], error(twin["MessageId"], twin["Message"]))
    service.habits.refused["POST Systems/1/Actions/ComputerSystem.Reset"] = refused
    bmc = service.bmc()
    with pytest.raises(PrivilegeRefused, match=r"the user's role .*insufficient privileges for the account") as caught:
        bmc.power_on(5.0)
    assert "check user and password" not in str(caught.value) and service.resets() == ["On"], "once"


def test_a_session_is_opened_where_basic_authentication_is_off(zoo: MakeZoo) -> None:
    recorded = json.loads((RECORDED / "basic-auth-off.json").read_text())
    assert recorded["GET /redfish/v1/Systems with Authorization: Basic"] == {"status": 401}
    service = zoo("supermicro", basic=False)
    bmc = service.bmc()
    assert not bmc.is_powered()
    bmc.power_on(5.0)
    assert "HTTP basic authentication" in bmc.remarks[0] and len(service.sessions) == 1
    assert PASSWORD not in repr(bmc.history)
    del bmc
    assert not service.sessions, "given back"


def test_a_session_that_ran_out_is_opened_anew(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)
    bmc = service.bmc()
    assert not bmc.is_powered()
    service.sessions.clear()
    assert not bmc.is_powered() and len(service.sessions) == 1


def test_a_wrong_password_is_told_where_both_ways_were_tried(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    with pytest.raises(LoginRefused, match="check user and password by HTTP basic authentication and by a session"):
        service.bmc(password="wrong").is_powered()
    assert len([path for _, path, _ in service.requests if path]) == 2, "each once: more would lock the user out"


def test_a_service_without_sessions_tells_of_its_own_refusal(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)
    service.habits.refused["POST SessionService/Sessions"] = (404, error("Base.1.8.ResourceMissingAtURI"))
    service.habits.sessions = False
    with pytest.raises(LoginRefused, match="There is no valid session established|check user and password"):
        service.bmc().is_powered()


# Which resources


def test_several_systems_are_named_and_a_probe_finds_its_own_by_uuid(zoo: MakeZoo, monkeypatch: Any) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_ZOO", f"{USER}:{PASSWORD}")
    service = zoo("cray")
    with pytest.raises(UsageError, match=r"say which one in bmc\.system: it is one of Node0, Node1"):
        service.bmc().is_powered()
    remarks: list[str] = []
    assert probe._look_at_bmc("board", service.spec(), "", remarks).system == ""
    assert remarks == ["redfish: say in bmc.system which one it is: Node0, Node1"]
    service.tree["Systems/Node1"]["UUID"] = "44454C4C-5100-1035-8052-B4C04F4A4D32"
    turned = "4c4c4544-0051-3510-8052-b4c04f4a4d32"  # as Linux reads it from SMBIOS 2.6 on
    assert probe._look_at_bmc("board", service.spec(), turned, []).system == "Node1"


def test_a_system_that_is_gone_is_not_in_the_way_of_another(zoo: MakeZoo) -> None:
    service = zoo("cray")
    del service.tree["Systems/Node0"]
    assert not service.bmc(system="Node1").is_powered()
    assert list(service.bmc().systems()) == ["Node0", "Node1"]


def test_a_manager_that_is_gone_costs_itself_alone(zoo: MakeZoo) -> None:
    service = zoo(merged(SHAPES["supermicro"](), "a-manager-is-gone"))
    bmc = service.bmc()
    assert bmc.clock().isoformat() == "2025-06-23T20:07:14+00:00"
    assert bmc.info()["Manager"] == "ASPEED"


@pytest.mark.parametrize("told", ["0000-00-00T00:00:00Z", "1970-01-01T00:03:20Z", "", None, 7])
def test_a_clock_that_was_never_set_is_none(zoo: MakeZoo, told: Any) -> None:
    service = zoo("supermicro")
    service.tree["Managers/1"]["DateTime"] = told
    with pytest.raises(MissingCapability, match="bmc-clock"):
        service.bmc().clock()


@pytest.mark.parametrize("part", ["Boot", "Links", "Status", "Actions", "BootProgress", "SerialConsole"])
@pytest.mark.parametrize("value", [None, [], "odd", {"LastStateTime": "0000-00-00"}])
def test_an_odd_part_of_the_system_does_not_hide_its_power(zoo: MakeZoo, part: str, value: Any) -> None:
    service = zoo("supermicro")
    service.tree["Systems/1"][part] = value
    bmc = service.bmc()
    assert not bmc.is_powered() and "RedfishVersion" in bmc.info()
    assert bmc.ssh_console() is None


# Sensors


def test_sensors_without_the_deprecated_thermal(zoo: MakeZoo) -> None:
    tree = SHAPES["supermicro"]()
    del tree["Chassis/1"]["Thermal"], tree["Chassis/1"]["Power"]
    bmc = zoo(merged(tree, "thermal-subsystem")).bmc()
    found = bmc.sensors()
    assert found == {"CPU1 Temp": "37 degrees C [Critical]"}
    assert found.unread == ("/redfish/v1/Chassis/1/ThermalSubsystem: HTTP 404",)
    with pytest.raises(
        BenchError, match=r"critical: CPU1 Temp 37 degrees C \[Critical\]; not read: .*ThermalSubsystem"
    ):
        health.sensors("zoo", bmc, {})
    said = health.sensors("zoo", bmc, {"CPU1 Temp": "its cooler is on order", "FAN9": "an empty bay"})
    assert "accepted: CPU1 Temp 37 degrees C [Critical] (its cooler is on order)" in said
    assert "accepted in the inventory, but not bad: FAN9" in said and "ThermalSubsystem: HTTP 404" in said


def test_fans_and_temperatures_of_thermal_subsystem_are_read_where_there_are_no_sensors(zoo: MakeZoo) -> None:
    service = zoo("dell")
    chassis = "Chassis/System.Embedded.1"
    for word in ("Sensors", "Thermal", "PowerSubsystem"):
        del service.tree[chassis][word]
    service.tree[f"{chassis}/ThermalSubsystem"]["ThermalMetrics"] = {"@odata.id": f"/redfish/v1/{chassis}/Metrics"}
    readings = [{"DeviceName": "CPU1", "Reading": 44, "DataSourceUri": "/x/CPU1Temp"}, {"DataSourceUri": "/x/Inlet"}]
    service.tree[f"{chassis}/Metrics"] = {"TemperatureReadingsCelsius": readings}
    assert service.bmc().sensors() == {
        "System Board Fan1A": "6720 RPM",
        "CPU1": "44 degrees C",
        "Inlet": "no reading",
    }


def test_a_temperature_without_a_name_gets_one(zoo: MakeZoo) -> None:
    tree = merged(SHAPES["supermicro"](), "temperature-without-name")
    del tree["Chassis/1"]["Power"]
    assert zoo(tree).bmc().sensors() == {"sensor 0": "no reading"}


def test_sensors_that_cannot_be_read_are_bad_and_not_none(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    service.habits.refused["GET Chassis/1/Thermal"] = (500, None)
    del service.tree["Chassis/1"]["Power"]
    bmc = service.bmc()
    assert bmc.sensors() == {} and bmc.sensors().unread == ("/redfish/v1/Chassis/1/Thermal: HTTP 500",)
    with pytest.raises(BenchError, match="not read: /redfish/v1/Chassis/1/Thermal: HTTP 500"):
        health.sensors("zoo", bmc, {})


def test_a_sensors_name_cannot_drive_a_terminal(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    service.tree["Chassis/1/Thermal"]["Temperatures"][0]["Name"] = "\x1b[2Jx"
    assert "\N{REPLACEMENT CHARACTER}[2Jx" in service.bmc().sensors()


# Boot override


def test_the_mode_in_force_is_sent_along(zoo: MakeZoo) -> None:
    service = zoo(merged(SHAPES["supermicro"](), "boot-mode"), needs_mode=True)
    service.bmc().set_boot_device("pxe")
    (sent,) = service.patches()
    wanted = json.loads((RECORDED / "boot-mode.json").read_text())["sent now"]["Boot"]
    assert sent == wanted | {"BootSourceOverrideMode": "UEFI"}


@pytest.mark.parametrize(
    ("mode", "modes", "habits", "sent"),
    [
        ("UEFI", None, {}, [None]),
        ("UEFI", ["Legacy"], {}, [None]),
        (None, None, {}, [None]),
        ("UEFI", None, {"needs_mode": True}, [None, "UEFI"]),
        ("Legacy", ["Legacy", "UEFI"], {"takes_no_mode": True}, ["Legacy", None]),
    ],
)
def test_a_mode_is_sent_where_it_is_listed_and_tried_the_other_way_once(
    zoo: MakeZoo, mode: str | None, modes: list[str] | None, habits: dict[str, Any], sent: list[str | None]
) -> None:
    service = zoo(SHAPES["supermicro"](), **habits)
    own = service.tree["Systems/1"]["Boot"]
    for key, value in (("", mode), ("@Redfish.AllowableValues", modes)):
        own.pop(f"BootSourceOverrideMode{key}")
        if value:
            own[f"BootSourceOverrideMode{key}"] = value
    service.bmc().set_boot_device("pxe")
    assert [patch.get("BootSourceOverrideMode") for patch in service.patches()] == sent


def test_a_boot_source_that_is_not_offered_is_said_with_those_that_are(zoo: MakeZoo) -> None:
    service = zoo("openbmc")
    service.tree["Systems/system"]["Boot"]["BootSourceOverrideTarget@Redfish.AllowableValues"] = ["None", "Hdd"]
    with pytest.raises(CommandRefused, match="the BMC offers Hdd, None"):
        service.bmc().set_boot_device("pxe")


def test_a_change_without_its_etag_is_given_again_with_it(zoo: MakeZoo) -> None:
    service = zoo("intel")
    service.bmc().set_boot_device("cdrom")
    assert service.tree["Systems/QSB1"]["Boot"]["BootSourceOverrideTarget"] == "Cd"


# Small things


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0.0), ("7", 7.0), ("soon", 0.0), ("\N{SUPERSCRIPT TWO}", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float) -> None:
    assert redfish_answers.retry_after(header) == seconds


@pytest.mark.parametrize("host", ["2001:db8::1", "[2001:db8::1]"])
def test_an_address_of_ipv6_is_one_in_the_url_whether_it_came_in_brackets_or_not(tmp_path: Path, host: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "all:\n  vars: {xenlab: {lab: unit}}\n  hosts:\n    desk:\n      xenlab:\n"
        f"        bmc: {{protocol: redfish, host: '{host}', credential: c, tls: unverified}}\n"
        "        console: {via: device, device: /dev/ttyS0, serve_port: 2, lines_port: 3}\n"
    )
    spec = inventory.load(file).boards["desk"].bmc
    assert spec.host == "2001:db8::1"
    service = RedfishBmc("desk", spec, Credential("lab", "x"))._service
    assert service.url == "https://[2001:db8::1]:443"


def test_every_shape_has_its_habits() -> None:
    assert HABITS.keys() == SHAPES.keys()
