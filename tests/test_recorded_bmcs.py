"""IpmiBmc on the words of BMCs that no simulator stands for."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from ipmitool_stand_in import QUICK, RECORDED, StandIn, stand_in_fixture  # noqa: F401

from lab.base.credentials import Credential
from lab.base.errors import (
    AuthenticationRefused,
    BenchError,
    BmcBusy,
    BmcFellSilent,
    BmcRefused,
    BmcUnreachable,
    CipherRefused,
    CommandFailed,
    CommandRefused,
    LoginRefused,
    MissingCapability,
    NoIpmi2,
    NoSessionNow,
    PowerTimeout,
    PowerUnknown,
    PrivilegeRefused,
    SessionInactive,
    SessionsExhausted,
)
from lab.bmc import ipmitool
from lab.bmc.ipmi import IpmiBmc
from lab.boards import health, probe
from lab.inventory import BmcSpec

V2 = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
V1 = "Error: Unable to establish LAN session\nError: Unable to establish IPMI v1.5 / RMCP session\n"
LEVEL = "Set Session Privilege Level to ADMINISTRATOR failed"

# What ipmitool 1.8.19 wrote to stderr, and what that is. Those after `-v: ` are told with -v alone.
SESSIONS = {
    "privilege level": (f"{LEVEL}: Insufficient privilege level\n{V2}", PrivilegeRefused, "bmc.privilege"),
    "privilege level, in silence": (f"{LEVEL}\n{V2}", PrivilegeRefused, "bmc.privilege"),
    "privilege level, and the session is not closed": (
        f"{LEVEL}: Insufficient privilege level\n{V2}Close Session command failed\n",
        PrivilegeRefused,
        "administrator",
    ),
    "role of the user": (
        f"-v: RAKP 2 message indicates an error : unauthorized role requested\n{V2}",
        PrivilegeRefused,
        "unauthorized role requested",
    ),
    "role that the BMC does not know": (
        f"-v: RAKP 4 message indicates an error : invalid role\n{V2}",
        PrivilegeRefused,
        "bmc.privilege",
    ),
    "wrong password": (f"-v: > RAKP 2 HMAC is invalid\n{V2}", LoginRefused, "check user and password"),
    "unknown user": (
        f"-v: RAKP 2 message indicates an error : unauthorized name\n{V2}",
        LoginRefused,
        "unauthorized name",
    ),
    "key of the BMC's own": (
        f"-v: > RAKP 4 message has invalid integrity check value\n{V2}",
        LoginRefused,
        "K_g",
    ),
    "another authentication algorithm": (
        f"Authentication algorithm 0x01 is not what we requested 0x03\n\n{V2}",
        CipherRefused,
        "check bmc.cipher (17)",
    ),
    "another integrity algorithm": (
        f"Integrity algorithm 0x01 is not what we requested 0x04\n\n{V2}",
        CipherRefused,
        "check bmc.cipher (17)",
    ),
    "another encryption algorithm": (
        f"Encryption algorithm 0x00 is not what we requested 0x01\n\n{V2}",
        CipherRefused,
        "check bmc.cipher (17)",
    ),
    "unknown cipher suite": (
        f"Error in open session response message : no matching cipher suite\n\n{V2}",
        CipherRefused,
        "no matching cipher suite",
    ),
    "unknown integrity algorithm": (
        f"Error in open session response message : invalid integrity algorithm\n\n{V2}",
        CipherRefused,
        "invalid integrity algorithm",
    ),
    "refusal of a kind of its own": (
        f"Error in open session response message : illegal parameter\n\n{V2}",
        BmcRefused,
        "illegal parameter",
    ),
    "all sessions in use": (
        f"Error in open session response message : insufficient resources for session\n\n{V2}",
        SessionsExhausted,
        "no free session",
    ),
    "all sessions of this role in use": (
        f"-v: RAKP 2 message indicates an error : insufficient resources for role\n{V2}",
        SessionsExhausted,
        "no free session",
    ),
    "session that the BMC forgot": (
        f"-v: RAKP 2 message indicates an error : inactive session ID\n{V2}",
        SessionInactive,
        "inactive session ID",
    ),
    "session that the BMC does not know": (
        f"-v: RAKP 4 message indicates an error : invalid session ID\n{V2}",
        SessionInactive,
        "invalid session ID",
    ),
    "IPMI 1.5 alone": (f"-v: This BMC does not support IPMI v2 / RMCP+\n{V2}", NoIpmi2, "bmc.interface: lan"),
    "authentication type of 1.5": (f"Authentication type NONE not supported\n{V1}", AuthenticationRefused, "MD5"),
    "no authentication type of 1.5": (f"No supported authtypes found\n{V1}", AuthenticationRefused, "MD5"),
    "unknown user of 1.5": (f"Invalid user name\n{V1}", LoginRefused, "Invalid user name"),
    "all sessions of 1.5 in use": (
        f"Activate Session error:\tNo session slot available\n{V1}",
        SessionsExhausted,
        "No session slot available",
    ),
    "privilege level of 1.5": (
        f"Activate Session error:\tRequested privilege level exceeds limit\n{V1}",
        PrivilegeRefused,
        "bmc.privilege",
    ),
    "wrong password of 1.5": (f"Activate Session error:\tUnknown\n{V1}", LoginRefused, "check user and password"),
    "level that a busy BMC does not give yet": (
        f"{LEVEL}: Node busy\n{V2}",
        NoSessionNow,
        r"at the moment (Node busy)",
    ),
    "busy BMC of 1.5": (
        f"-v: Get Session Challenge command failed: BMC initialization in progress\n{V1}",
        NoSessionNow,
        "at the moment",
    ),
    "refusal of 1.5 of a kind of its own": (
        f"-v: Get Session Challenge command failed: Invalid data field in request\n{V1}",
        BmcRefused,
        "Invalid data field in request",
    ),
    "silence behind the first words": (
        f"> Error: no response from RAKP 1 message\n{V2}",
        BmcFellSilent,
        "some BMCs do so for a user they do not know",
    ),
    "no such host": (f"Address lookup for bmc.invalid failed\n{V2}", BmcUnreachable, "host name not known"),
    "nobody there": (f"-v: Get Auth Capabilities error\n{V2}", BmcUnreachable, "no answer within"),
    "nobody there any more": (
        f"{LEVEL}\n{V2}-v: Get Auth Capabilities error\n{V2}",
        BmcUnreachable,
        "no answer within",
    ),
}


@pytest.mark.parametrize(("said", "kind", "words"), SESSIONS.values(), ids=SESSIONS.keys())
def test_each_failure_to_open_a_session_is_an_error_of_its_own(
    stand_in: StandIn, said: str, kind: type[BmcRefused | BmcUnreachable], words: str
) -> None:
    plain, _, verbose = said.partition("-v: ")
    stand_in.plays(
        [
            {"match": "-v ", "answers": [{"err": verbose or plain, "rc": 1}]},
            {"match": "", "answers": [{"err": plain or V2, "rc": 1}]},
        ]
    )
    bmc = stand_in.bmc(cipher=17)
    bmc._pace = replace(QUICK, patience=2.0)
    with pytest.raises(kind) as caught:
        bmc.is_powered()
    assert type(caught.value) is kind and words in str(caught.value)
    assert caught.value.board == "smc" and "canary" not in str(caught.value)
    tries = len(stand_in.calls("power status"))
    assert (tries > 1) == issubclass(kind, NoSessionNow), "who refuses is not asked again"


def test_a_user_who_is_only_operator_is_told_what_to_do(stand_in: StandIn) -> None:
    stand_in.plays("privilege-of-session")
    with pytest.raises(
        PrivilegeRefused, match=r"administrator \(Insufficient privilege level\): give .* bmc\.privilege"
    ):
        stand_in.bmc().power_on(60.0)
    assert len(stand_in.calls()) == 1


def test_privilege_level_of_the_inventory_is_asked_for(stand_in: StandIn) -> None:
    stand_in.plays([{"match": "power status", "answers": [{"out": "Chassis Power is on\n"}]}])
    assert stand_in.bmc(privilege="operator").is_powered()
    (call,) = stand_in.calls()
    assert call[call.index("-L") + 1] == "OPERATOR"


def test_password_that_is_wrong_is_told_of_a_slow_bmc(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first words come so late that a hasty question would take it for dead."""
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "3", "-R", "2"))
    hasty = " ".join(ipmitool.IMPATIENT)
    stand_in.plays(
        [
            {"match": f"-v {hasty}", "answers": [{"err": f"Get Auth Capabilities error\n{V2}", "rc": 1}]},
            {"match": "-v ", "answers": [{"err": f"> RAKP 2 HMAC is invalid\n{V2}", "rc": 1}]},
            {"match": "", "answers": [{"err": V2, "rc": 1, "seconds": 0.5}]},
        ]
    )
    with pytest.raises(LoginRefused, match="check user and password"):
        stand_in.bmc().is_powered()


# Cipher suites


def test_cipher_suite_3_is_tried_where_17_is_refused_and_that_is_told(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = {"err": f"Error in open session response message : no matching cipher suite\n\n{V2}", "rc": 1}
    status = {"match": "power status", "answers": [{"out": "Chassis Power is on\n"}]}
    stand_in.plays([{"match": "-C 17", "answers": [refusal]}, status])
    bmc = stand_in.bmc()
    assert bmc.is_powered() and bmc.is_powered()
    assert len(stand_in.calls("-C 17")) == 1, "it is known from then on"
    (remark,) = bmc.remarks
    assert "say bmc.cipher: 3" in remark and caplog.text.count(remark) == 1


def test_a_cipher_suite_that_the_inventory_names_is_the_only_one(stand_in: StandIn) -> None:
    stand_in.plays("cipher-answered-otherwise")
    with pytest.raises(CipherRefused, match=r"bmc\.cipher \(17\)"):
        stand_in.bmc(cipher=17).is_powered()
    assert not stand_in.calls("-C 3")


def test_a_bmc_that_takes_neither_suite_is_refused_by_the_first(stand_in: StandIn) -> None:
    stand_in.plays("cipher-answered-otherwise")
    with pytest.raises(BmcRefused, match=r"bmc\.cipher \(17\)"):
        stand_in.bmc().is_powered()
    assert stand_in.calls("-C 3")


# What passes by itself


def test_sessions_that_are_all_in_use_for_a_moment_do_not_end_a_power_command(stand_in: StandIn) -> None:
    stand_in.plays("sessions-exhausted")
    stand_in.bmc().power_on(3.0)
    assert len(stand_in.calls("power status")) >= 3 and not stand_in.calls("mc info")


@pytest.mark.parametrize("words", ["Node busy", "Timeout", "BMC initialization in progress"])
def test_a_busy_bmc_is_asked_again(stand_in: StandIn, words: str) -> None:
    busy = {"err": f"Get Chassis Power Status failed: {words}\n", "rc": 1}
    stand_in.plays([{"match": "power status", "answers": [busy, busy, {"out": "Chassis Power is on\n"}]}])
    assert stand_in.bmc().is_powered()
    assert len(stand_in.calls()) == 3


def test_a_bmc_that_is_busy_at_first_is_powered_on(stand_in: StandIn) -> None:
    stand_in.plays("node-busy-at-first")
    stand_in.bmc().power_on(3.0)
    assert len(stand_in.calls("power on")) == 1


def test_a_command_that_a_busy_bmc_dropped_is_given_again_at_once(stand_in: StandIn) -> None:
    busy = {"err": "Set Chassis Power Control to Up/On failed: Node busy\n", "rc": 1}
    on = {"out": "Chassis Power Control: Up/On\n"}
    stand_in.plays(
        [
            {"match": "power on", "answers": [busy, busy, on]},
            {
                "match": "power status",
                "answers": [*[{"out": "Chassis Power is off\n"}] * 3, {"out": "Chassis Power is on\n"}],
            },
        ]
    )
    bmc = stand_in.bmc()
    bmc._pace = replace(QUICK, repeat_after=60.0)
    bmc.power_on(5.0)
    assert len(stand_in.calls("power on")) == 3


def test_a_bmc_that_stays_busy_is_said_to_be(stand_in: StandIn) -> None:
    stand_in.plays([{"match": "", "answers": [{"err": "Get Chassis Power Status failed: Node busy\n", "rc": 1}]}])
    started = time.monotonic()
    with pytest.raises(BmcBusy, match=r"Node busy \[C0h\]") as caught:
        stand_in.bmc().power_on(1.0)
    assert caught.value.code == "C0h" and time.monotonic() - started < 3.0


@pytest.mark.parametrize(
    ("said", "is_on"),
    [("Chassis Power is on", True), ("Chassis Power is Off ", False), ("on", True), ("IANA PEN registry\noff", False)],
)
def test_power_is_read_in_all_words_for_it(stand_in: StandIn, said: str, is_on: bool) -> None:
    stand_in.plays([{"match": "power status", "answers": [{"out": f"{said}\n"}]}])
    assert stand_in.bmc().is_powered() is is_on


@pytest.mark.parametrize("said", ["", "Chassis Power is unknown", "Chassis Power is on or off"])
def test_a_power_that_the_bmc_does_not_know_is_neither_on_nor_off(stand_in: StandIn, said: str) -> None:
    status = {"match": "power status", "answers": [{"out": f"{said}\n"}]}
    stand_in.plays([status, {"match": "power off", "answers": [{"out": "Chassis Power Control: Down/Off\n"}]}])
    bmc = stand_in.bmc()
    with pytest.raises(PowerUnknown, match="the BMC does not know"):
        bmc.is_powered()
    with pytest.raises(PowerUnknown):
        bmc.power_off(0.2)
    assert stand_in.calls("power off"), "it is told all the same"


@pytest.mark.parametrize("words", ["Invalid command", "Parameter out of range", "Invalid data field in request"])
def test_a_control_that_a_bmc_does_not_know_is_a_missing_capability(stand_in: StandIn, words: str) -> None:
    stand_in.plays([{"match": "", "answers": [{"err": f"Set Chassis Power Control failed: {words}\n", "rc": 1}]}])
    bmc = stand_in.bmc()
    for ask, capability in ((bmc.nmi, "bmc-nmi"), (bmc.soft_off, "bmc-soft-off")):
        with pytest.raises(MissingCapability, match=capability):
            ask()
    with pytest.raises(CommandRefused):
        bmc.reset()


# Why


def test_a_command_that_is_refused_says_why_and_is_not_repeated(stand_in: StandIn) -> None:
    stand_in.plays("why-is-lost")
    started = time.monotonic()
    with pytest.raises(CommandRefused, match=r"Insufficient privilege level \[D4h\]"):
        stand_in.bmc().power_on(5.0)
    assert time.monotonic() - started < 3.0 and len(stand_in.calls("power on")) == 1


def test_the_last_refusal_is_told_though_the_status_could_be_read(stand_in: StandIn) -> None:
    refusal = {"err": "Set Chassis Power Control to Up/On failed: Command not supported in present state\n", "rc": 1}
    stand_in.plays(
        [
            {"match": "power status", "answers": [{"out": "Chassis Power is off\n"}]},
            {"match": "power on", "answers": [refusal]},
        ]
    )
    bmc = stand_in.bmc()
    bmc._pace = replace(QUICK, repeat_after=60.0)
    with pytest.raises(PowerTimeout, match=r"last refusal: .*not supported in present state \[D5h\]") as caught:
        bmc.power_on(3.0)
    assert caught.value.reason and (caught.value.board, caught.value.wanted) == ("smc", "on")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Get Chassis Power Status failed: Node busy", 0xC0),
        ("Unable to send RAW command (channel=0x0 netfn=0x6 lun=0x0 cmd=0x7 rsp=0xc1): Invalid command", 0xC1),
        ("Get Device ID command failed: 0xd4 Insufficient privilege level", 0xD4),
        ("Set Chassis Boot Parameter 5 failed: Unspecified error", 0xFF),
        ("Get Device ID command failed: Unknown (0x77)", None),
        ("Timeout of 3 s is long", None),
    ],
)
def test_the_completion_code_is_read_from_the_words(said: str, code: int | None) -> None:
    assert ipmitool.completion_code(f"{said}\n") == code


# Boot device


@pytest.mark.parametrize(
    ("firmware", "once", "options"),
    [
        ("bios", True, []),
        ("bios", False, ["options=persistent"]),
        ("uefi", True, ["options=efiboot"]),
        ("uefi", False, ["options=persistent,efiboot"]),
    ],
)
def test_the_kind_of_boot_is_the_boards_own(stand_in: StandIn, firmware: str, once: bool, options: list[str]) -> None:
    stand_in.plays("bootdev-uefi")
    stand_in.bmc(firmware=firmware).set_boot_device("pxe", once=once)
    keep, choice = stand_in.calls()
    assert keep[-5:] == ["raw", "0x00", "0x08", "0x03", "0x08"], "not for 60 s alone"
    assert choice[choice.index("bootdev") :] == ["bootdev", "pxe", *options]


def test_a_bmc_that_knows_no_timer_of_its_flags_takes_them_all_the_same(stand_in: StandIn) -> None:
    refusal = "Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0x80): Unknown (0x80)\n"
    stand_in.plays(
        [
            {"match": "raw 0x00 0x08", "answers": [{"err": refusal, "rc": 1}]},
            {"match": "bootdev", "answers": [{"out": "Set Boot Device to pxe\n"}]},
        ]
    )
    stand_in.bmc().set_boot_device("pxe")
    assert len(stand_in.calls("bootdev pxe")) == 1


# Sensors


def test_a_sensor_record_that_cannot_be_read_costs_that_reading(stand_in: StandIn) -> None:
    stand_in.plays("sdr-one-record-fails")
    found = stand_in.bmc().sensors()
    assert found == {"CPU Temp": "40 degrees C", "FAN 1": "no reading"}
    assert found.unread == ("ipmitool: ipmi_sdr_get_record() failed",)


INFO = {"match": "raw 0x0a 0x20", "answers": [{"out": " 51 3b 00 9c 5f ff ff ff ff 00 00 00 00 2f\n"}]}


def test_sensors_have_the_words_of_all_versions(stand_in: StandIn) -> None:
    """Names that come twice, sensors that are off, the long words for what is critical."""
    rows = (
        "Temp|40 degrees C|ok",
        "Temp|no reading|ns",
        "Fan|disabled|ns",
        "Slot|na|na",
        "PSU||ns",
        "A|B|3.30 Volts|nc",
        "Low|0 RPM|lcr",
        "High|99 degrees C|unr",
    )
    stand_in.plays([INFO, {"match": "sdr list", "answers": [{"out": "".join(f"{row}\n" for row in rows)}]}])
    bmc = stand_in.bmc()
    assert bmc.sensors() == {
        "Temp": "40 degrees C",
        "Temp #2": "no reading",
        "Fan": "disabled",
        "Slot": "na",
        "PSU": "no reading",
        "A|B": "3.30 Volts [nc]",
        "Low": "0 RPM [lcr]",
        "High": "99 degrees C [unr]",
    }
    with pytest.raises(BenchError, match=r"critical: Low 0 RPM \[lcr\], High 99 degrees C \[unr\]$"):
        health.sensors("smc", bmc, {})


def test_a_bmc_that_falls_silent_behind_its_sensors_costs_none_of_them(stand_in: StandIn) -> None:
    answer = {"out": "Temp | 40 degrees C | ok\n", "err": "Close Session command failed\n", "rc": 1}
    stand_in.plays([INFO, {"match": "sdr list", "answers": [answer]}])
    found = stand_in.bmc().sensors()
    assert found == {"Temp": "40 degrees C"} and found.unread == ("Close Session command failed",)


def test_sensors_of_which_none_can_be_read_are_a_failure(stand_in: StandIn) -> None:
    stand_in.plays([INFO, {"match": "sdr list", "answers": [{"err": "Unable to open SDR for reading\n", "rc": 1}]}])
    with pytest.raises(CommandFailed, match="Unable to open SDR"):
        stand_in.bmc().sensors()


def test_an_empty_fan_bay_is_bad_until_the_inventory_accepts_it_by_name(stand_in: StandIn) -> None:
    listed = (RECORDED / "empty-fan-bays.txt").read_text()
    stand_in.plays(
        [
            {"match": "raw 0x0a 0x20", "answers": [{"out": " 51 04 00 9c 5f ff ff ff ff 00 00 00 00 2f\n"}]},
            {"match": "sdr list", "answers": [{"out": listed}]},
        ]
    )
    bmc = stand_in.bmc()
    with pytest.raises(BenchError, match=r"critical: INLET FAN 1 0 RPM \[nr\], Fan3B 0 RPM \[cr\]$"):
        health.sensors("smc", bmc, {})
    with pytest.raises(BenchError, match=r"critical: Fan3B 0 RPM \[cr\]$"):
        health.sensors("smc", bmc, {"INLET FAN 1": "the bay is empty"})
    said = health.sensors("smc", bmc, {"INLET FAN 1": "the bay is empty", "Fan3B": "on order", "INLET FAN 3": "once"})
    assert said == (
        "4 readings; accepted: INLET FAN 1 0 RPM [nr] (the bay is empty), Fan3B 0 RPM [cr] (on order); "
        "accepted in the inventory, but not bad: INLET FAN 3"
    )


def test_a_bmc_with_an_empty_repository_has_no_sensors(stand_in: StandIn) -> None:
    stand_in.plays([{"match": "raw 0x0a 0x20", "answers": [{"out": " 51 00 00 9c 5f ff ff ff ff 00 00 00 00 2f\n"}]}])
    finding = health._finding("BMC sensors", lambda: health.sensors("smc", stand_in.bmc(), {}))
    assert finding.is_good and finding.detail == "the board has none"


# Serial over LAN, and a probe


def test_sol_is_asked_of_the_channel_that_the_session_came_in_by(stand_in: StandIn) -> None:
    stand_in.plays("sol-channel")
    assert stand_in.bmc().has_sol()


def test_a_bmc_that_wants_the_channels_number_is_asked_for_it(stand_in: StandIn) -> None:
    field = (
        "Unable to send RAW command (channel=0x0 netfn=0xc lun=0x0 cmd=0x22 rsp=0xcc): Invalid data field in request\n"
    )
    stand_in.plays(
        [
            {"match": "raw 0x0c 0x22 0x0e", "answers": [{"err": field, "rc": 1}]},
            {"match": "raw 0x06 0x42 0x0e", "answers": [{"out": " 03 04 01 80 f2 1b 00 00 00\n"}]},
            {"match": "raw 0x0c 0x22 0x03", "answers": [{"out": " 11 01\n"}]},
        ]
    )
    assert stand_in.bmc().has_sol()


@pytest.mark.parametrize("code", ["c0", "c1", "cc", "d4", "ff"])
def test_a_probe_goes_on_whatever_a_bmc_refuses(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_RACK_BMC", "lab:canary-R4x")
    monkeypatch.setattr("lab.bmc.ipmi.Pace", lambda: replace(QUICK, patience=0.1))
    refusal = f"Unable to send RAW command (channel=0x0 netfn=0x6 lun=0x0 cmd=0x7 rsp=0x{code}): Whatever\n"
    stand_in.plays(
        [
            {"match": "mc info", "answers": [{"out": "Device ID                 : 35\n"}]},
            {"match": "raw", "answers": [{"err": refusal, "rc": 1}]},
        ]
    )
    machine = probe.ProbedMachine("smc", "192.0.2.1", 22)
    probe.add_bmc(machine, "127.0.0.1:1", "rack-bmc")
    assert machine.bmc and machine.bmc.protocol == "ipmi" and not machine.has_sol
    assert any("whether SOL is enabled" in remark for remark in machine.remarks)
    assert "credential: rack-bmc" in probe.entry(machine, serve_port=22300)


def test_a_probe_finds_the_privilege_level_that_the_user_has(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_RACK_BMC", "lab:canary-R4x")
    stand_in.plays(
        [
            {"match": "-L OPERATOR.*mc info", "answers": [{"out": "Device ID                 : 35\n"}]},
            {"match": "-L OPERATOR.*raw", "answers": [{"out": " 00 01\n"}]},
            {"match": "", "answers": [{"err": f"{LEVEL}: Insufficient privilege level\n{V2}", "rc": 1}]},
        ]
    )
    machine = probe.ProbedMachine("smc", "192.0.2.1", 22)
    probe.add_bmc(machine, "127.0.0.1:1", "rack-bmc")
    assert machine.has_sol and "privilege: operator" in probe.entry(machine, serve_port=22300)


def test_a_bmc_without_ipmi_2_is_no_missing_capability() -> None:
    assert not issubclass(NoIpmi2, MissingCapability)
    spec = BmcSpec("203.0.113.1", "rack-bmc", interface="lan")
    words = ipmitool.words(spec, Credential("lab", "x"), 17)
    assert "-C" not in words and words[words.index("-I") + 1] == "lan"
    assert IpmiBmc("smc", spec, Credential("lab", "x")).remarks == ()
