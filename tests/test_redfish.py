"""RedfishBmc against sushy-tools' emulator, which switches a real virtual board through its daemon."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port
from virtual_board import PASSWORD, VirtualBoard, make_board_fixture, need_programs  # noqa: F401

from lab import bmc
from lab.base.credentials import Credential
from lab.base.errors import BmcRefused, BmcUnreachable, CommandFailed, MissingCapability, UsageError
from lab.bmc.redfish import RedfishBmc, SshConsole, ssh_console
from lab.bmc.switching import Pace
from lab.inventory import BmcSpec
from lab.virtual import tls

QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.3)

Make = Callable[..., VirtualBoard]


@pytest.fixture(name="board")
def board_fixture(make_board: Make) -> VirtualBoard:
    return make_board("redfish")


@pytest.fixture(name="still", scope="module")
def still_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualBoard]:
    """A board for tests that leave it as it was: off, and with nothing chosen to boot."""
    need_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XENLAB_CREDENTIAL_TEST", f"admin:{PASSWORD}")
        board = VirtualBoard(tmp_path_factory.mktemp("still"), "redfish")
    yield board
    board.stop()


def bmc_of(board: VirtualBoard, password: str = PASSWORD) -> RedfishBmc:
    return RedfishBmc("mini", board.spec.bmc, Credential("admin", password), QUICK)


def resets(found: RedfishBmc) -> list[str]:
    """The kinds of Reset that were posted."""
    return [exchange.argv[2] for exchange in found.history if exchange.argv[0] == "POST"]


# Power


def test_power_is_switched_and_seen_at_the_machine(board: VirtualBoard) -> None:
    found = bmc_of(board)
    assert not found.is_powered()
    found.power_on()
    assert found.is_powered() and board.ask("get power") == "1"
    found.power_on()
    found.cycle()
    assert board.ask("get power") == "1"
    found.power_off()
    assert not found.is_powered() and board.ask("get power") == "0"
    assert resets(found) == [f'{{"ResetType": "{kind}"}}' for kind in ("On", "ForceOff", "On", "ForceOff")]


def test_power_button_powers_on_what_is_off_and_reset_keeps_it_on(board: VirtualBoard) -> None:
    found = bmc_of(board)
    found.press_power_button()
    assert board.ask("get power") == "1"
    found.reset()
    found.soft_off()  # nobody listens to ACPI: the firmware finds no disk
    found.nmi()
    assert found.is_powered()
    assert [kind.split('"')[3] for kind in resets(found)] == [
        "PushPowerButton",
        "ForceRestart",
        "GracefulShutdown",
        "Nmi",
    ]


def test_sleep_state_is_known_only_of_a_board_that_is_off(board: VirtualBoard) -> None:
    found = bmc_of(board)
    assert found.sleep_state() == "S4/S5"
    found.power_on()
    with pytest.raises(MissingCapability, match="bmc-sleep-state"):
        found.sleep_state()


# Boot override


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("device", "word"), [("pxe", "pxe"), ("disk", "default"), ("cdrom", "cdrom"), ("bios", "bios")]
)
def test_boot_override_is_set_read_back_and_taken_away(still: VirtualBoard, device: str, word: str, once: bool) -> None:
    found = bmc_of(still)
    found.set_boot_device(device, once=once)
    assert (still.ask("get boot"), still.ask("get persistent")) == (word, str(int(not once)))
    assert found.boot_device() == device
    found.set_boot_device("none")
    assert found.boot_device() == "none" and still.ask("get boot") == "none"


def test_override_for_once_is_used_up_by_a_boot_and_a_continuous_one_is_not(board: VirtualBoard) -> None:
    found = bmc_of(board)
    for once, left in ((True, "none"), (False, "pxe")):
        found.set_boot_device("pxe", once=once)
        found.cycle()
        assert found.boot_device() == left
    boots = (board.folder / "qemu.log").read_text().splitlines()
    assert ["bootindex=1" in line for line in boots if line.startswith("--- ")] == [True, True], (
        "by network, both times"
    )


def test_the_mode_in_force_is_sent_along(board: VirtualBoard) -> None:
    """A firmware obeys a choice of its own kind alone."""
    found = bmc_of(board)
    found.set_boot_device("pxe")
    assert board.ask("get efi") == "0"
    board.ask("set efi 1")
    found.set_boot_device("pxe", once=False)
    sent = [json.loads(exchange.argv[2])["Boot"] for exchange in found.history if exchange.argv[0] == "PATCH"]
    assert [boot["BootSourceOverrideMode"] for boot in sent] == ["Legacy", "UEFI"]
    found.power_on()
    boots = [line for line in (board.folder / "qemu.log").read_text().splitlines() if line.startswith("--- ")]
    assert "bootindex=1" not in boots[-1], "its firmware is a BIOS"
    assert "the firmware is legacy BIOS" in (board.folder / "daemon.log").read_text()


def test_unknown_boot_device_is_the_callers_mistake(still: VirtualBoard) -> None:
    with pytest.raises(UsageError, match="'floppy': must be one of none, pxe, disk, cdrom, bios"):
        bmc_of(still).set_boot_device("floppy")


# Information


def test_sensors_have_units(still: VirtualBoard) -> None:
    assert bmc_of(still).sensors()["CPU Temp"] == "41 degrees C"
    assert bmc_of(still).sensors()["BaseBoard System Fan"] == "2100 RPM"


def test_info_and_clock(still: VirtualBoard) -> None:
    info = bmc_of(still).info()
    assert info["RedfishVersion"] == "1.5.0" and info["FirmwareVersion"] == "1.00"
    assert abs(bmc_of(still).clock().timestamp() - time.time()) < 5.0 + abs(time.timezone)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, None),
        ({"SerialConsole": {"SSH": {"ServiceEnabled": False, "Port": 22}}}, None),
        ({"SerialConsole": {"IPMI": {"ServiceEnabled": True}}}, None),
        ({"SerialConsole": {"SSH": {"ServiceEnabled": True, "Port": 2200}}}, SshConsole(2200, "")),
        (
            {"SerialConsole": {"SSH": {"ServiceEnabled": True, "ConsoleEntryCommand": "console com2"}}},
            SshConsole(22, "console com2"),
        ),
    ],
)
def test_a_serial_console_behind_ssh_is_found(told: dict[str, object], found: SshConsole | None) -> None:
    assert ssh_console(told) == found


def test_a_service_that_knows_no_serial_console_has_none(still: VirtualBoard) -> None:
    assert bmc_of(still).ssh_console() is None


def test_small_service_lacks_what_it_does_not_name(
    make_board: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither managers nor chassis: power works all the same."""
    (tmp_path / "emulator.conf").write_text('SUSHY_EMULATOR_FEATURE_SET = "minimum"\n')
    monkeypatch.setenv("SUSHY_EMULATOR_CONFIG", str(tmp_path / "emulator.conf"))
    monkeypatch.setenv("XENLAB_PASS_ENV", "SUSHY_EMULATOR_CONFIG")  # a board's service is given no other settings
    found = bmc_of(make_board("redfish"))
    found.power_on()
    assert found.is_powered()
    with pytest.raises(MissingCapability, match="bmc-sensors"):
        found.sensors()
    assert "FirmwareVersion" not in found.info() and found.info()["RedfishVersion"] == "1.5.0"
    with pytest.raises(MissingCapability, match="bmc-clock"):
        found.clock()


# Sessions


def test_dead_bmc_is_unreachable_at_once() -> None:
    spec = BmcSpec("127.0.0.1", "test", "redfish", port=free_port(), tls="off")
    started = time.monotonic()
    with pytest.raises(BmcUnreachable, match=rf"mini: BMC http://127\.0\.0\.1:{spec.port}: power state: no answer"):
        RedfishBmc("mini", spec, Credential("admin", "x"), QUICK).power_on(60.0)
    assert time.monotonic() - started < 10.0


def test_wrong_password_says_what_to_check_and_is_not_tried_again(still: VirtualBoard) -> None:
    found = bmc_of(still, password="wrong")
    with pytest.raises(BmcRefused, match=r"refused the login \(HTTP 401\): check user and password") as caught:
        found.power_on(20.0)
    assert "user 'admin', credential 'test'" in str(caught.value)
    assert [exchange.status for exchange in found.history].count(401) == 1, "this service knows no sessions"


def test_bmc_that_is_there_again_is_spoken_to_again(still: VirtualBoard) -> None:
    found = bmc_of(still)
    assert not found.is_powered()
    own, found._service.spec = found._service.spec, replace(found._service.spec, port=free_port())
    found._service._log_out()
    with pytest.raises(BmcUnreachable):
        found.is_powered()
    found._service.spec = own
    found._service._log_out()
    assert not found.is_powered()


def test_system_that_is_not_there_is_named_with_those_that_are(still: VirtualBoard) -> None:
    spec = replace(still.spec.bmc, system="Self")
    with pytest.raises(UsageError, match=r"bmc\.system 'Self' is none of [0-9a-f-]{36}"):
        RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()


def test_system_is_chosen_by_its_id(still: VirtualBoard) -> None:
    (identity,) = bmc_of(still).systems()
    spec = replace(still.spec.bmc, system=identity)
    assert not RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()


def test_board_that_does_not_answer_its_bmc_is_a_failed_command(board: VirtualBoard) -> None:
    found = bmc_of(board)
    (board.folder / "control.sock").unlink()
    with pytest.raises(CommandFailed, match="HTTP|500|does not answer"):
        found.is_powered()


# TLS


def test_certificate_is_verified_by_the_file_that_is_named(make_board: Make) -> None:
    board = make_board("redfish", tls="verified")
    with pytest.raises(BmcRefused, match=r"its certificate is not trusted: name .* in bmc\.ca_file"):
        bmc_of(board).is_powered()
    spec = replace(board.spec.bmc, ca_file=str(tls.pair(board.folder)[0]))
    assert not RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()
    other = board.folder / "other"
    other.mkdir()
    spec = replace(board.spec.bmc, ca_file=str(tls.make(other, "another")))
    with pytest.raises(BmcRefused, match="its certificate is not trusted"):
        RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()


def test_pinned_certificate_is_taken_whatever_is_in_it_and_no_other_is(make_board: Make) -> None:
    """By a name that is not in the certificate, as those of BMCs seldom have theirs."""
    board = make_board("redfish", tls="verified")
    own = replace(board.spec.bmc, host="localhost", ca_file=str(tls.pair(board.folder)[0]))
    with pytest.raises(BmcRefused, match="its certificate is not trusted"):
        RedfishBmc("mini", own, Credential("admin", PASSWORD), QUICK).is_powered()
    assert not RedfishBmc("mini", replace(own, tls="pinned"), Credential("admin", PASSWORD), QUICK).is_powered()
    other = board.folder / "other"
    other.mkdir()
    spec = replace(own, tls="pinned", ca_file=str(tls.make(other, "another")))
    with pytest.raises(BmcRefused, match=r"has another certificate than bmc\.ca_file"):
        RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()
    spec = replace(spec, ca_file=str(tls.pair(board.folder)[1]))
    with pytest.raises(UsageError, match=r"bmc\.ca_file .*bmc-key\.pem: no certificate \(PEM\)"):
        RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK).is_powered()


def test_unverified_tls_is_silent_even_where_warnings_are_errors(make_board: Make) -> None:
    board = make_board("redfish", tls="verified")
    spec = replace(board.spec.bmc, tls="unverified")
    found = RedfishBmc("mini", spec, Credential("admin", PASSWORD), QUICK)
    assert not found.is_powered() and not found.is_powered()


def test_certificate_file_that_is_not_there_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match=r"bmc\.ca_file /none: no such file"):
        RedfishBmc("mini", BmcSpec("h", "test", "redfish", ca_file="/none"), Credential("admin", "x"))


# Secrets and evidence


def test_password_shows_nowhere(board: VirtualBoard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found = bmc.connect("mini", board.spec.bmc)
    found.power_on()
    with pytest.raises(BmcRefused) as refused:
        bmc_of(board, password=PASSWORD + "x").is_powered()
    texts = [caplog.text, repr(found.history), repr(vars(found)), repr(refused.value)]  # type: ignore[attr-defined]
    texts += [path.read_text(errors="replace") for path in board.folder.glob("*") if path.is_file()]
    assert "Reset On" in caplog.text and not [text for text in texts if PASSWORD in text]


def test_history_keeps_what_was_asked_and_answered(board: VirtualBoard) -> None:
    found = bmc_of(board)
    before = time.time()
    found.power_on()
    post = next(exchange for exchange in found.history if exchange.argv[0] == "POST")
    assert post.argv[1].endswith("/Actions/ComputerSystem.Reset") and post.status == 204
    assert before - 1 <= post.time <= time.time() and 0 < post.seconds < 20
    assert json.loads(found.history[-1].output)["PowerState"] == "On"
