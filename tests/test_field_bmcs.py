"""BMCs in the words that people reported of theirs: what each means, and whether it is asked again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ipmitool_stand_in import QUICK, StandIn, stand_in_fixture  # noqa: F401
from redfish_zoo import MakeZoo, error, zoo_fixture  # noqa: F401

from lab.base.errors import (
    BmcBusy,
    BmcFellSilent,
    BmcRefused,
    BmcUnreachable,
    CipherRefused,
    CommandFailed,
    CommandRefused,
    LicenceMissing,
    LoginRefused,
    MissingCapability,
    NoSessionNow,
    PowerUnknown,
    PrivilegeRefused,
    SessionInactive,
    SessionsExhausted,
)

V2 = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
LEVEL = "Set Session Privilege Level to ADMINISTRATOR failed"
V1 = "Error: Unable to establish LAN session\nError: Unable to establish IPMI v1.5 / RMCP session\n"
ON, OFF = "Chassis Power is on\n", "Chassis Power is off\n"


def fails(err: str, out: str = "") -> dict[str, Any]:
    return {"out": out, "err": err, "rc": 1}


# What ipmitool wrote, who wrote it down, and what a question about the power comes to.
STATUS = {
    "openbmc boots (openbmc#1810)": (
        fails("Get Chassis Power Status failed: Unspecified error\n"),
        CommandFailed,
        "Unspecified",
    ),
    "no answer in a session (ipmi_chassis.c)": (
        fails("Unable to get Chassis Power Status\n"),
        BmcFellSilent,
        "fell silent",
    ),
    "no answer, and more of it (openbmc#3728)": (
        fails("Error sending request.\nGet Device ID command failed\nUnable to get Chassis Power Status\n"),
        BmcFellSilent,
        "fell silent",
    ),
    "packets that come twice (ipmitool#122)": (
        fails("Error: Received an Unexpected Open Session Response\n" * 5 + V2),
        NoSessionNow,
        "Unexpected Open Session Response",
    ),
    "an old answer to RAKP 1 (lanplus.c)": (
        fails(f"Error: Received an Unexpected RAKP 2 message\n{V2}"),
        NoSessionNow,
        "RAKP 2",
    ),
    "no RAKP 1 while the host's power changes (openbmc#1812)": (
        fails(f"> Error: no response from RAKP 1 message\n{LEVEL}: Insufficient privilege level\n{V2}"),
        BmcFellSilent,
        "RAKP 1",
    ),
    "role that X11 does not give (hush#14)": (
        fails(f"Error in open session response message : invalid role\n\n{V2}"),
        PrivilegeRefused,
        "bmc.privilege",
    ),
    "iDRAC with all its sessions in use (ipmi_exporter#243)": (
        fails(f"Error in open session response message : insufficient resources for session\n\n{V2}"),
        SessionsExhausted,
        "no free session",
    ),
    "Cisco refuses by a parameter (ipmitool#53)": (
        fails(f"RAKP 2 message indicates an error : illegal parameter\n{V2}"),
        BmcRefused,
        "illegal parameter",
    ),
    "session that X10 forgot (ipmitool#154)": (
        fails(f"RAKP 2 message indicates an error : inactive session ID\n{V2}"),
        SessionInactive,
        "inactive",
    ),
    "cipher that openbmc has off": (
        fails(f"Error in open session response message : no matching cipher suite\n\n{V2}"),
        CipherRefused,
        "bmc.cipher",
    ),
    "user of 1.5 that nobody knows (gigabyte, python-ipmi#188)": (
        fails(f"Get Session Challenge command failed: Invalid data field in request\n{V1}"),
        BmcRefused,
        "Invalid data field",
    ),
    "silence of 1.5 (R710, home-assistant-ipmi#27)": (
        fails(f"Get Session Challenge command failed\n{V1}"),
        BmcUnreachable,
        "no answer",
    ),
    "nobody there, as -v of 1.8.18 tells it (many posts)": (
        fails(f"Get Auth Capabilities error\nError issuing Get Channel Authentication Capabilities request\n{V2}"),
        BmcUnreachable,
        "no answer within",
    ),
    "no session, and what it was wanted for (1.8.11)": (
        fails(f"{V1}Unable to get Chassis Power Status\n"),
        BmcUnreachable,
        "no answer within",
    ),
    "words that nobody knows yet": (
        fails(f"lanplus: the HMAC could not be made\n{V2}"),
        BmcUnreachable,
        "no session: lanplus: the HMAC could not be made",
    ),
    "answer that could not be provided (openbmc#2492)": (
        fails("Get Chassis Power Status failed: Command response could not be provided\n"),
        BmcBusy,
        "could not be provided",
    ),
    "busy XCC": (fails("Get Chassis Power Status failed: Node busy\n"), BmcBusy, "Node busy"),
    "level the user may not have (Dell, gebn/bmc#38)": (
        fails("Get Chassis Power Status failed: Insufficient privilege level\n"),
        CommandRefused,
        "D4h",
    ),
    "level of a user who is known, by a code (IPMI 22.18)": (
        fails(f"Set Session Privilege Level to ADMINISTRATOR failed: Unknown (0x81)\n{V2}"),
        PrivilegeRefused,
        "0x81",
    ),
    "name that is not known": (
        fails(f"Address lookup for smc-9.lab failed\n{V2}"),
        BmcUnreachable,
        "host name not known",
    ),
    "name that has no IPv4 address": (
        fails(f"Address lookup for smc-9.lab failed. Got IPv6, expected IPv4 address.\n{V2}"),
        BmcUnreachable,
        "host name not known",
    ),
    "code of the maker's own": (fails("Get Chassis Power Status failed: Unknown (0x9f)\n"), CommandFailed, "0x9f"),
    "session that ipmitool lost (lanplus.c)": (
        {
            "err": "ipmitool: lanplus.c:2191: ipmi_lanplus_send_payload: Assertion "
            "`session->v2_data.session_state == LANPLUS_STATE_ACTIVE' failed.\n",
            "rc": 134,
        },
        BmcFellSilent,
        "fell silent",
    ),
    "an ipmitool that crashes": ({"rc": 139}, CommandFailed, "crashed (SIGSEGV)"),
    "no way to its network (lanplus.c)": (
        fails(f"connect failed: Network is unreachable\n{V2}"),
        BmcUnreachable,
        "Network is unreachable",
    ),
    "power that is neither": ({"out": "Chassis Power is \n"}, PowerUnknown, "does not know"),
}


@pytest.mark.parametrize(("answer", "kind", "words"), STATUS.values(), ids=STATUS.keys())
def test_what_a_question_about_the_power_comes_to(
    stand_in: StandIn, answer: dict[str, Any], kind: type[Exception], words: str
) -> None:
    stand_in.plays([{"match": "", "answers": [answer]}])
    bmc = stand_in.bmc(cipher=17, interface="lan" if V1 in answer.get("err", "") else "lanplus")
    bmc._pace = replace(QUICK, patience=0.3)
    with pytest.raises(kind) as caught:
        bmc.is_powered()
    assert type(caught.value) is kind and words in str(caught.value)


@pytest.mark.parametrize(
    "out",
    [
        "Received a response with unexpected ID 0 vs. 1\nChassis Power is on\n",  # ipmitool#399
        "IANA PEN registry open failed: No such file or directory\nChassis Power is on\n",  # ipmitool#379
        "Chassis Power is on\r\n",  # through a terminal
    ],
)
def test_power_is_read_among_words_that_are_no_answer(stand_in: StandIn, out: str) -> None:
    stand_in.plays([{"match": "power status", "answers": [{"out": out}]}])
    assert stand_in.bmc().is_powered()


def test_a_raw_answer_is_read_among_words_that_are_no_answer(stand_in: StandIn) -> None:
    out = "Received a response with unexpected ID 0 vs. 1\n 03 00\n"
    stand_in.plays([{"match": "raw", "answers": [{"out": out}]}])
    assert stand_in.bmc().sleep_state() == "S3"


@pytest.mark.parametrize(
    "first",
    [
        fails("Get Chassis Power Status failed: Unspecified error\n"),  # openbmc#1810: as long as it boots
        fails("Unable to get Chassis Power Status\n"),
        fails(f"> Error: no response from RAKP 1 message\n{LEVEL}: Insufficient privilege level\n{V2}"),
        fails("Error: Received an Unexpected Open Session Response\n" * 5 + V2),
    ],
    ids=["boots", "silent", "no RAKP", "twice"],
)
def test_a_board_is_powered_on_though_the_first_answer_is_none(stand_in: StandIn, first: dict[str, Any]) -> None:
    stand_in.plays(
        [
            {"match": "mc info", "answers": [first]},
            {"match": "power on", "answers": [{"out": "Chassis Power Control: Up/On\n"}]},
            {"match": "power status", "answers": [first, {"out": OFF}, {"out": ON}]},
        ]
    )
    stand_in.bmc(cipher=17).power_on(5.0)
    assert len(stand_in.calls("power on")) == 1


def test_a_dell_that_is_off_already_is_not_told_to(stand_in: StandIn) -> None:
    """bmclib#382: `power off` of one that is off is refused as not supported in the present state."""
    refusal = fails("Set Chassis Power Control to Down/Off failed: Command not supported in present state\n")
    stand_in.plays([{"match": "power off", "answers": [refusal]}, {"match": "power status", "answers": [{"out": OFF}]}])
    stand_in.bmc().power_off(2.0)
    assert not stand_in.calls("power off")


@pytest.mark.parametrize(
    "code",
    [
        "rsp=0xd6): Cannot execute command, command disabled",
        "rsp=0xc1): Invalid command",
        "rsp=0xc2): Invalid command on LUN",
    ],
)
def test_a_command_that_a_bmc_has_switched_off_is_a_missing_capability(stand_in: StandIn, code: str) -> None:
    stand_in.plays(
        [
            {
                "match": "raw",
                "answers": [fails(f"Unable to send RAW command (channel=0x0 netfn=0x6 lun=0x0 cmd=0x7 {code}\n")],
            }
        ]
    )
    with pytest.raises(MissingCapability):
        stand_in.bmc().sleep_state()


SENSORS = (
    "MB_Inlet_TEMP | 21 degrees C | ok\nmm1pres | Not Readable | ns\nTemp | disabled | ns\nVCORE PG | 0x00 | ok\n"
    "PVDDQ | no reading | ns\n"
)


def test_sensors_of_megarac_and_old_dells(stand_in: StandIn) -> None:
    info = {"match": "0x0a 0x20", "answers": [{"out": " 51 05 00 ff\n"}]}
    err = "Get SDR 0042 command failed\n"  # openbmc#3326
    stand_in.plays(
        [
            info,
            {
                "match": "sdr list",
                "answers": [fails(err, "IANA PEN registry open failed: No such file or directory\n" + SENSORS)],
            },
        ]
    )
    found = stand_in.bmc().sensors()
    assert dict(found) == {
        "MB_Inlet_TEMP": "21 degrees C",
        "mm1pres": "Not Readable",
        "Temp": "disabled",
        "VCORE PG": "0x00",
        "PVDDQ": "no reading",
    }
    assert found.unread == ("Get SDR 0042 command failed",)


# -- Redfish ---------------------------------------------------------------------------------------------------------


def dell(message_id: str, text: str) -> dict[str, Any]:
    info = {
        "Message": text,
        "MessageArgs": [],
        "MessageArgs@odata.count": 0,
        "MessageId": message_id,
        "RelatedProperties": [],
    }
    return {
        "error": {
            "@Message.ExtendedInfo": [info],
            "code": "Base.1.5.GeneralError",
            "message": "A general error has occurred. See ExtendedInfo for more information",
        }
    }


ILO4_OFF = {
    "Messages": [{"MessageArgs": ["Power is off"], "MessageID": "iLO.0.10.InvalidOperationForSystemState"}],
    "Type": "ExtendedError.1.0.0",
    "error": {
        "@Message.ExtendedInfo": [
            {"MessageArgs": ["Power is off"], "MessageID": "iLO.0.10.InvalidOperationForSystemState"}
        ],
        "code": "iLO.0.10.ExtendedInfo",
        "message": "See @Message.ExtendedInfo for more information.",
    },
}
ILO_POST = {
    "error": {
        "code": "iLO.0.10.ExtendedInfo",
        "message": "See @Message.ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [
            {"MessageArgs": ["BootSourceOverrideTarget"], "MessageId": "iLO.2.37.UnableToModifyDuringSystemPOST"}
        ],
    }
}
SMC_LICENCE = {
    "error": {
        "code": "Base.v1_10_3.GeneralError",
        "Message": "A general error has occurred. See ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [
            {
                "MessageId": "SMC.1.0.OemLicenseNotPassed",
                "Severity": "Warning",
                "Resolution": "Please activate at least one license in the above message.",
                "Message": "Not licensed to perform this request. The following licenses DCMS were needed",
                "MessageArgs": ["DCMS "],
            }
        ],
    }
}
IDRAC8_LICENCE = {
    "error": {
        "code": "Base.1.0.GeneralError",
        "@Message.ExtendedInfo": [
            {
                "MessageId": "Base.1.0.InternalError",
                "Message": "failed, No sufficient LICENSE for user to perform requested  operation.",
            }
        ],
    }
}
SMC_401 = {
    "error": {
        "code": "Base.v1_4_0.GeneralError",
        "Message": "A general error has occurred. See ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [
            {
                "MessageId": "Base.v1_4_0.ResourceAtUriUnauthorized",
                "Message": "While accessing the resource, the service received an authorization error unauthorized.",
            }
        ],
    }
}
AMI_FUTURE = {
    "error": {
        "code": "Ami.1.0.OperationSupportedInFutureStateURI",
        "message": "Support of this Operation is moved to FutureState URI(/redfish/v1/Systems/Self/SD)",
    }
}

# What a service answered to a question about the power, and what that is.
POWER = {
    "iDRAC that is not ready (badfish#129)": (
        400,
        dell(
            "IDRAC.1.6.SWC0700",
            "iDRAC is not ready. The configuration values cannot be accessed. Please retry after a few minutes.",
        ),
        BmcBusy,
        "not ready",
    ),
    "iDRAC without its data (metal-operator#170)": (
        503,
        dell(
            "IDRAC.2.8.SYS518",
            "iDRAC is currently unable to display any information because data sources are unavailable.",
        ),
        BmcBusy,
        "unable to display",
    ),
    "iDRAC with a fault of its own (lisa#4421)": (
        500,
        dell("IDRAC.2.8.RAC0508", "An unexpected error occurred. Wait for few minutes and refresh the page."),
        BmcBusy,
        "unexpected error",
    ),
    "iDRAC with all its sessions in use (gofish#75)": (
        503,
        dell("IDRAC.2.1.RAC0218", "The maximum number of user sessions is reached."),
        SessionsExhausted,
        "maximum number",
    ),
    "iDRAC with all its sessions in use, said otherwise": (
        400,
        dell("IDRAC.2.4.RAC0218", "The maximum number of user sessions is reached."),
        SessionsExhausted,
        "maximum number",
    ),
    "iLO that is flashed (PowerShell-ProLiant-SDK#30)": (
        400,
        {"error": {"@Message.ExtendedInfo": [{"MessageId": "iLO.2.8.ResourceTemporarilyUnavailable"}]}},
        BmcBusy,
        "ResourceTemporarilyUnavailable",
    ),
    "Supermicro without a licence (ironic-image#688)": (403, SMC_LICENCE, LicenceMissing, "DCMS"),
    "iDRAC 8 without a licence (check_redfish#151)": (403, IDRAC8_LICENCE, LicenceMissing, "LICENSE"),
    "Supermicro X10 and a wrong password (zabbix-book#444)": (401, SMC_401, LoginRefused, "authorization error"),
    "XCC that denies access (python-redfish-lenovo#308)": (
        401,
        error(
            "Base.1.8.AccessDenied",
            "While attempting to establish a connection to /redfish/v1/Systems/1, the service denied access.",
        ),
        LoginRefused,
        "denied access",
    ),
    "Superdome that is off (Redfish-Tacklebox#143)": (
        500,
        error("Base.1.8.InternalError", "The request failed due to an internal service error."),
        CommandFailed,
        "internal service error",
    ),
    "web server before the service (metal-operator#155)": (
        400,
        "<html><h1>400 - Bad Request</h1></html>",
        CommandFailed,
        "Bad Request",
    ),
    "a proxy that says no (bmcweb)": (502, None, BmcBusy, "Bad Gateway"),
    "OpenBMC before its inventory is there": (
        503,
        error(
            "Base.1.13.0.ServiceTemporarilyUnavailable", "The service is temporarily unavailable. Retry in 2 seconds."
        ),
        BmcBusy,
        "temporarily",
    ),
    "resource in standby": (503, error("Base.1.8.ResourceInStandby"), BmcBusy, "ResourceInStandby"),
    "power is locked by another task (XCC)": (
        409,
        error(
            "Base.1.8.ResourceInUse",
            "The change to the requested resource failed because the resource is in use or in transition.",
        ),
        BmcBusy,
        "in use",
    ),
    "a body that is empty (console#1051)": (200, None, CommandFailed, "power state"),
    "another web server on that port": (
        200,
        b"<!DOCTYPE html><html><head><title>Login</title></head><body></body></html>",
        CommandFailed,
        "no JSON, but a page for people (Login): is bmc.port",
    ),
    "a list of errors": (400, [{"error": {"message": "The host is in transition."}}], CommandFailed, "in transition"),
    "errors of a gateway's form": (400, {"errors": [{"detail": "The host is locked."}]}, CommandFailed, "is locked"),
    "an error of OAuth's form": (
        401,
        {"error": "invalid_token", "error_description": "The access token expired"},
        LoginRefused,
        "invalid_token: The access token expired",
    ),
    "no state, and why (DSP0266, extended information of a property)": (
        200,
        {
            "PowerState": None,
            "PowerState@Message.ExtendedInfo": [
                {"MessageId": "Base.1.8.PropertyValueNotReady", "Message": "The host is being reset."}
            ],
        },
        PowerUnknown,
        "The host is being reset.",
    ),
}


@pytest.mark.parametrize(("status", "body", "kind", "words"), POWER.values(), ids=POWER.keys())
def test_what_a_service_says_of_the_power(
    zoo: MakeZoo, status: int, body: Any, kind: type[Exception], words: str
) -> None:
    service = zoo("supermicro")
    bmc = service.bmc()
    bmc._pace = bmc._service._pace = replace(QUICK, patience=0.3)
    service.instead = lambda _request, _method, path, _body: (status, body, {}) if path == "Systems/1" else None
    with pytest.raises(kind) as caught:
        bmc.is_powered()
    assert words in str(caught.value)


def test_what_ilo_4_refuses_by_is_told(zoo: MakeZoo) -> None:
    """goldyfruit/ansible-ilo#1: the id is written MessageID, and the text is in its arguments."""
    service = zoo("hpe", states=[], refused={"POST Systems/1/Actions/ComputerSystem.Reset": (400, ILO4_OFF)})
    with pytest.raises(CommandFailed, match=r"Power is off .*InvalidOperationForSystemState"):
        service.bmc().reset()


def test_a_boot_device_is_chosen_when_the_firmware_is_done(zoo: MakeZoo) -> None:
    """ironcore-dev/metal-operator#997: an iLO takes no change as long as the machine is in POST."""
    service = zoo("hpe", states=[])
    answers = [(400, ILO_POST, {}), (400, ILO_POST, {})]
    service.instead = lambda _r, method, _p, _b: answers.pop(0) if method == "PATCH" and answers else None
    service.bmc().set_boot_device("pxe")
    assert service.tree["Systems/1"]["Boot"]["BootSourceOverrideTarget"] == "Pxe"


def test_a_boot_override_of_another_resource_is_told(zoo: MakeZoo) -> None:
    """DMTF/Redfish-Tacklebox#144: AMI has it at the settings, which this one does not link."""
    service = zoo("supermicro", refused={"PATCH Systems/1": (400, AMI_FUTURE)})
    with pytest.raises(CommandFailed, match=r"FutureState URI"):
        service.bmc().set_boot_device("pxe")


def test_a_sensor_that_is_not_there_has_no_reading(zoo: MakeZoo) -> None:
    """iLO shows sockets without a processor as 0 degrees C, and Absent."""
    service = zoo("hpe", states=[])
    thermal = service.tree["Chassis/1/Thermal"]
    thermal["Temperatures"] = [
        {"MemberId": "0", "Name": "02-CPU 1", "ReadingCelsius": 40, "Status": {"Health": "OK", "State": "Enabled"}},
        {"MemberId": "1", "Name": "03-CPU 2", "ReadingCelsius": 0, "Status": {"State": "Absent"}},
    ]
    thermal["Fans"] = [{"Name": "Fan 2", "Reading": 0, "ReadingUnits": "Percent", "Status": {"State": "Absent"}}]
    assert dict(service.bmc().sensors()) == {
        "02-CPU 1": "40 degrees C",
        "03-CPU 2": "no reading",
        "Fan 2": "no reading",
    }


def test_a_socket_without_its_part_is_not_ill(zoo: MakeZoo) -> None:
    """A bay whose supply or fan was taken out: absent, and critical since two were meant to be there."""
    service = zoo("supermicro")
    gone = {"State": "Absent", "Health": "Critical"}
    service.tree["Chassis/1/Thermal"]["Fans"] = [
        {"Name": "FAN2", "Reading": 0, "ReadingUnits": "RPM", "Status": gone},
        {"Name": "FAN3", "Reading": 0, "ReadingUnits": "RPM", "Status": {"State": "Enabled", "Health": "Critical"}},
    ]
    service.tree["Chassis/1/Power"]["PowerSupplies"][1]["Status"] = gone
    found = service.bmc().sensors()
    assert (found["FAN2"], found["FAN3"], found["PSU2"]) == ("no reading", "0 RPM [Critical]", "Absent")


NOT_CHANGED = {
    "MessageId": "Base.1.8.PropertyNotWritable",
    "Message": "The property BootSourceOverrideTarget is a read only property and cannot be assigned a value.",
}
HPE_SUCCESS = {
    "error": {
        "code": "iLO.0.10.ExtendedInfo",
        "message": "See @Message.ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [{"MessageId": "Base.1.4.Success"}],
    }
}


@pytest.mark.parametrize(
    ("body", "is_done"),
    [
        ({"Boot": {"BootSourceOverrideTarget@Message.ExtendedInfo": [NOT_CHANGED]}}, False),  # DSP0266, annotations
        ({"error": {"@Message.ExtendedInfo": [NOT_CHANGED]}}, False),
        ({"@Message.ExtendedInfo": [{"MessageId": "Base.1.5.Success"}, NOT_CHANGED]}, False),
        ({"@Message.ExtendedInfo": [{"MessageId": "Base.1.5.Success"}, {"MessageId": "IDRAC.2.1.SYS413"}]}, True),
        (HPE_SUCCESS, True),
        (b"", True),
        ([], True),
    ],
    ids=["annotation", "error", "second", "iDRAC", "iLO", "nothing", "list"],
)
def test_a_change_that_is_answered_with_success_may_not_have_been_made(
    zoo: MakeZoo, body: object, is_done: bool
) -> None:
    service = zoo("supermicro")
    service.instead = lambda _r, method, _p, _b: (200, body, {}) if method == "PATCH" else None
    if is_done:
        service.bmc().set_boot_device("pxe")
    else:
        with pytest.raises(CommandFailed, match=r"read only property .*\[Base.1.8.PropertyNotWritable\]"):
            service.bmc().set_boot_device("pxe")


def test_a_power_on_that_a_service_fails_at_first_is_given_again(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    answers = [
        (500, error("Base.1.8.InternalError", "internal"), {}),
        (400, dell("IDRAC.1.6.SWC0700", "not ready"), {}),
    ]
    service.instead = lambda _r, method, path, _b: (
        answers.pop(0) if method == "POST" and "Reset" in path and answers else None
    )
    service.bmc().power_on(5.0)
    assert service.tree["Systems/1"]["PowerState"] == "On"


def test_a_service_that_is_at_fault_when_it_is_asked_first_is_asked_again(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    answers = [(500, error("Base.1.8.InternalError", "internal"), {}), (200, None, {}), (400, "<html></html>", {})]
    service.instead = lambda _r, _m, path, _b: answers.pop(0) if path == "Systems/1" and answers else None
    service.bmc().power_on(8.0)
    assert service.tree["Systems/1"]["PowerState"] == "On"


@pytest.mark.parametrize(
    ("told", "hours"),
    [
        ("2026-06-23T20:07:14+0800", 12),
        ("2026-06-23T20:07:14Z", 20),
        ("2026-06-23T20:07:14.123456+00:00", 20),
    ],
)
def test_clocks_are_read_as_makers_write_them(zoo: MakeZoo, told: str, hours: int) -> None:
    from datetime import UTC

    service = zoo("supermicro")
    service.tree["Managers/1"]["DateTime"] = told
    assert service.bmc().clock().astimezone(UTC).hour == hours


@pytest.mark.parametrize(
    "kinds",
    [
        ["On", "ForceOff", "GracefulShutdown", "ForceRestart", "Nmi", "ForcePowerCycle"],
        ["On", "ForceOff", "ForceRestart", "FullPowerCycle"],
    ],
)
def test_a_kind_of_reset_that_nobody_knows_is_not_in_the_way(zoo: MakeZoo, kinds: list[str]) -> None:
    """Huawei's ForcePowerCycle, and what other makers add."""
    service = zoo("supermicro")
    service.tree["Systems/1"]["Actions"]["#ComputerSystem.Reset"]["ResetType@Redfish.AllowableValues"] = kinds
    bmc = service.bmc()
    bmc.power_on(5.0)
    bmc.power_off(5.0)
    assert service.resets() == ["On", "ForceOff"]


IDRAC8_BOOT = {
    "error": {
        "code": "Base.1.2.GeneralError",
        "message": "A general error has occurred. See ExtendedInfo for more information",
        "@Message.ExtendedInfo": [
            {
                "MessageId": "IDRAC.1.6.SYS444",
                "Message": "Unable to set the attribute value because it depends on other attribute(s).",
                "RelatedProperties": ["BootSourceOverrideEnabled"],
            },
            {
                "MessageId": "IDRAC.1.6.SYS410",
                "Message": "Unable to modify the attribute because the attribute is read-only and depends on other "
                "attributes.",
                "RelatedProperties": ["BootSourceOverrideMode"],
            },
        ],
    }
}


@pytest.mark.parametrize("is_done", [True, False])
def test_a_boot_override_that_is_refused_and_made_all_the_same_is_made(zoo: MakeZoo, is_done: bool) -> None:
    """ansible-collections/community.general#5091: Dells of the 13th generation."""
    service = zoo("dell")
    (name,) = (path for path in service.tree if path.startswith("Systems/") and "Boot" in service.tree[path])

    def instead(_request: Any, method: str, path: str, body: Any) -> Any:
        if (method, path) != ("PATCH", name):
            return None
        if is_done:
            service.tree[name]["Boot"].update(body["Boot"])
        return 400, IDRAC8_BOOT, {}

    service.instead = instead
    bmc = service.bmc()
    if is_done:
        bmc.set_boot_device("pxe")
        assert bmc.boot_device() == "pxe"
    else:
        with pytest.raises(CommandFailed, match=r"depends on other attribute\(s\)\. \[IDRAC\.1\.6\.SYS444\]"):
            bmc.set_boot_device("pxe")
