"""IpmiBmc against a real ipmi_sim, whose chassis has the habits of real ones."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import command_lines
from free_ports import free_port
from ipmi_sim import (  # noqa: F401
    Chassis,
    Simulator,
    board_bmc_fixture,
    board_simulator_fixture,
    chassis_fixture,
    simulator_fixture,
)

from lab.base.credentials import Credential
from lab.base.errors import (
    BmcRefused,
    BmcUnreachable,
    CommandFailed,
    LoginRefused,
    MissingCapability,
    PowerTimeout,
    PrivilegeRefused,
    UsageError,
)
from lab.base.wait import wait_until
from lab.bmc import Bmc, connect, ipmitool, switching
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.switching import Pace
from lab.inventory import BmcSpec

QUICK = Pace(command_gap=0.0, poll=0.05, repeat_after=1.0, settle=0.3)


def bmc_of(simulator: Simulator, pace: Pace = QUICK) -> IpmiBmc:
    return IpmiBmc("virt1", simulator.spec, Credential(simulator.user, simulator.password), pace)


def powers(chassis: Chassis) -> list[str]:
    """Power commands that reached the chassis: "1" on, "0" off."""
    return [words[1] for words in chassis.calls() if words[0] == "power"]


@contextmanager
def once_commanded(chassis: Chassis, action: Callable[[], None]) -> Iterator[None]:
    """Do something beside the body as soon as the first power command has reached the chassis."""

    def watch() -> None:
        wait_until(lambda: powers(chassis), 10.0, "a power command", interval=0.02)
        action()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        watcher.join()


# Power


def test_power_on_and_off_are_seen_at_the_chassis(simulator: Simulator, chassis: Chassis) -> None:
    bmc = bmc_of(simulator)
    assert not bmc.is_powered()
    bmc.power_on()
    assert bmc.is_powered() and chassis.get("power") == 1
    bmc.power_off()
    assert not bmc.is_powered() and chassis.get("power") == 0
    assert powers(chassis) == ["1", "0"]


def test_power_on_sends_nothing_to_a_board_that_is_on(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(power=1)
    bmc_of(simulator).power_on()
    assert powers(chassis) == []


def test_power_button_is_pressed_though_the_board_is_on(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(power=1, sleep=3)
    bmc_of(simulator).press_power_button()
    assert powers(chassis) == ["1"]


def test_a_board_that_proves_its_power_is_not_waited_for(simulator: Simulator, chassis: Chassis) -> None:
    started = time.monotonic()
    asked: list[bool] = []
    bmc_of(simulator, replace(QUICK, settle=20.0)).power_on(10.0, proof=lambda: bool(asked.append(True)) or True)
    assert chassis.get("power") == 1 and asked == [True]
    assert time.monotonic() - started < 10.0


def test_no_proof_of_power_outranks_a_status_that_is_off(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(ignores=9)
    with pytest.raises(PowerTimeout):
        bmc_of(simulator).power_on(2.5, proof=lambda: True)


def test_cycle_is_off_and_then_on(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(power=1, acts_after=0.4)
    bmc = bmc_of(simulator)
    started = time.monotonic()
    bmc.cycle()
    assert powers(chassis) == ["0", "1"] and bmc.is_powered()
    assert time.monotonic() - started > 2 * (0.4 + QUICK.settle)
    answers = [x.output.strip() for x in bmc.history if x.argv[-1] == "status"]
    off, on = (
        answers.index("Chassis Power is off"),
        len(answers) - answers[::-1].index("Chassis Power is off"),
    )
    assert set(answers[:off]) == {"Chassis Power is on"} and set(answers[on:]) == {"Chassis Power is on"}


def test_cycle_of_a_board_that_is_off_powers_it_on(simulator: Simulator, chassis: Chassis) -> None:
    bmc_of(simulator).cycle()
    assert powers(chassis) == ["1"]


def test_reset_and_soft_off_reach_the_chassis(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(power=1)
    bmc = bmc_of(simulator)
    bmc.reset()
    bmc.soft_off()
    assert chassis.calls() == [["reset", "1"], ["shutdown", "1"]]


def test_ignored_first_power_on_is_repeated(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(ignores=1)
    bmc_of(simulator).power_on(10.0)
    assert powers(chassis) == ["1", "1"] and chassis.get("power") == 1


def test_late_chassis_is_waited_for_and_not_pressed_again(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(acts_after=1.5)
    bmc_of(simulator, replace(QUICK, repeat_after=5.0)).power_on(10.0)
    assert powers(chassis) == ["1"] and chassis.get("power") == 1


def test_lie_about_the_power_is_not_believed(simulator: Simulator, chassis: Chassis) -> None:
    """Reported on at once, though the command was dropped; the truth shows 0.7 s later."""
    chassis.set(ignores=1, lies_for=0.7)
    bmc_of(simulator, replace(QUICK, settle=1.0)).power_on(15.0)
    assert powers(chassis) == ["1", "1"] and chassis.get("power") == 1


def test_slow_bmc_executes_a_command_once(simulator: Simulator, chassis: Chassis) -> None:
    """ipmi_sim runs a retransmitted command again, so ipmitool must be patient."""
    chassis.set(answers_after=1.5)
    bmc_of(simulator).press_power_button()
    assert powers(chassis) == ["1"]


def test_failure_while_switching_is_passed_over(simulator: Simulator, chassis: Chassis) -> None:
    bmc = bmc_of(simulator)
    chassis.set(acts_after=1.0)

    with once_commanded(chassis, lambda: chassis.set(failures=2)):
        bmc.power_on(10.0)
    assert bmc.is_powered() and any("Unspecified error" in x.output for x in bmc.history)


def test_board_that_never_powers_on_is_a_power_timeout(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(ignores=99)
    started = time.monotonic()
    with pytest.raises(PowerTimeout, match="virt1: chassis power not on after") as caught:
        bmc_of(simulator).power_on(2.5)
    assert 2.5 <= caught.value.waited <= time.monotonic() - started < 10.0
    assert powers(chassis) == ["1"] * 3


def test_status_that_cannot_be_had_is_no_guess(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(failures=99)
    with pytest.raises(CommandFailed, match="Unspecified error"):
        bmc_of(simulator).is_powered()
    with pytest.raises(CommandFailed, match="Unspecified error"):
        bmc_of(simulator).power_on(5.0)


# Sessions


def test_dead_bmc_is_unreachable_within_bounded_time() -> None:
    spec = BmcSpec(host="127.0.0.1", credential="test", port=free_port(), cipher=3)
    started = time.monotonic()
    with pytest.raises(BmcUnreachable, match=f"virt1: BMC 127.0.0.1:{spec.port}: no answer"):
        IpmiBmc("virt1", spec, Credential("admin", "x"), QUICK).power_on(60.0)
    assert time.monotonic() - started < 25.0


def test_bmc_that_falls_silent_is_unreachable(
    simulator: Simulator, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))  # to be quick
    chassis.set(ignores=99)
    bmc = bmc_of(simulator)
    try:
        freeze = once_commanded(chassis, lambda: os.kill(simulator.pid, signal.SIGSTOP))
        with freeze, pytest.raises(BmcUnreachable):
            bmc.power_on(3.0)
        assert any("Chassis Power is off" in x.output for x in bmc.history)
    finally:
        os.kill(simulator.pid, signal.SIGCONT)


def test_bmc_that_answers_again_is_forgiven(
    simulator: Simulator, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))
    chassis.set(acts_after=1.0)
    bmc = bmc_of(simulator)

    def be_silent() -> None:
        os.kill(simulator.pid, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(simulator.pid, signal.SIGCONT)

    with once_commanded(chassis, be_silent):
        bmc.power_on(20.0)
    assert bmc.is_powered() and any(x.status for x in bmc.history)


@pytest.mark.parametrize(
    ("user", "password", "why"),
    [("admin", "wrong", "RAKP 2 HMAC is invalid"), ("nobody", Simulator.password, "unauthorized name")],
)
def test_wrong_login_says_what_to_check(simulator: Simulator, user: str, password: str, why: str) -> None:
    bmc = IpmiBmc("virt1", simulator.spec, Credential(user, password), QUICK)
    started = time.monotonic()
    with pytest.raises(BmcRefused, match=rf"refused the login \({why}\): check user and password") as caught:
        bmc.power_on(30.0)
    assert time.monotonic() - started < 15.0, "no use in trying again"
    assert f"user {user!r}, credential 'test'" in str(caught.value) and password not in str(caught.value)


def test_an_operator_works_at_the_level_that_it_has(simulator: Simulator, chassis: Chassis) -> None:
    account = Credential("operator", simulator.password)
    bmc = IpmiBmc("virt1", replace(simulator.spec, privilege="operator"), account, QUICK)
    bmc.power_on()
    assert chassis.get("power") == 1 and bmc.is_powered()
    assert bmc.history[0].argv[bmc.history[0].argv.index("-L") + 1] == "OPERATOR"


def test_a_level_that_is_refused_in_silence_is_no_dead_bmc(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ipmi_sim drops what it cannot verify, here by HMAC-MD5."""
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))  # to be quick
    monkeypatch.setattr(ipmitool, "DEAD_AFTER", 1.9)
    bmc = IpmiBmc("virt1", replace(simulator.spec, cipher=8), Credential(simulator.user, simulator.password), QUICK)
    with pytest.raises(PrivilegeRefused, match=r"privilege level administrator .*bmc\.cipher .*bmc\.privilege"):
        bmc.is_powered()


class SlowPath:
    """A way to a BMC on which each datagram takes a while, in both directions together."""

    def __init__(self, port: int, seconds: float) -> None:
        self._bmc, self._seconds = ("127.0.0.1", port), seconds
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._pass, daemon=True).start()

    def _pass(self) -> None:
        onward = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with onward:
            onward.settimeout(5.0)
            while True:
                try:
                    data, client = self._socket.recvfrom(4096)
                    onward.sendto(data, self._bmc)
                    answer = onward.recv(4096)
                    threading.Timer(self._seconds, self._socket.sendto, (answer, client)).start()
                except TimeoutError:
                    continue
                except OSError:
                    return

    def close(self) -> None:
        self._socket.close()


def test_wrong_password_is_told_of_a_slow_bmc(simulator: Simulator) -> None:
    """Each of its answers takes longer than a hasty client waits; it is not taken for dead."""
    way = SlowPath(simulator.spec.port, 1.3)
    try:
        spec = replace(simulator.spec, port=way.port)
        with pytest.raises(LoginRefused, match="check user and password"):
            IpmiBmc("virt1", spec, Credential(simulator.user, "wrong"), QUICK).is_powered()
        assert not IpmiBmc("virt1", spec, Credential(simulator.user, simulator.password), QUICK).is_powered()
    finally:
        way.close()


def test_unknown_cipher_is_not_called_a_wrong_password(simulator: Simulator) -> None:
    credential = Credential(simulator.user, simulator.password)
    with pytest.raises(BmcRefused, match=r"invalid authentication algorithm\): check bmc.cipher \(17\)"):
        IpmiBmc("virt1", replace(simulator.spec, cipher=17), credential, QUICK).is_powered()


def test_unknown_host_is_named() -> None:
    spec = BmcSpec(host="bmc.invalid", credential="test")
    with pytest.raises(BmcUnreachable, match=r"bmc\.invalid:623: host name not known"):
        IpmiBmc("virt1", spec, Credential("admin", "x"), QUICK).is_powered()


def test_users_own_password_variable_does_not_win(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPMITOOL_PASSWORD", "something else")
    monkeypatch.setenv("IPMI_PASSWORD", "something else")
    assert not bmc_of(simulator).is_powered()


def test_login_that_ipmi_cannot_carry_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="16 bytes of user and 20 of password") as caught:
        IpmiBmc("virt1", BmcSpec(host="h", credential="test"), Credential("admin", "canary" * 4))
    assert "canary" not in str(caught.value)


def test_bmc_that_stops_answering_in_a_session_is_unreachable(
    simulator: Simulator, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipmitool, "PATIENT", ("-N", "1", "-R", "1"))
    chassis.set(answers_after=2.4)
    bmc = bmc_of(simulator)
    try:
        freeze = once_commanded(chassis, lambda: os.kill(simulator.pid, signal.SIGSTOP))
        with (
            freeze,
            pytest.raises(BmcUnreachable, match="fell silent: `ipmitool chassis power on` had no answer"),
        ):
            bmc.press_power_button()
    finally:
        os.kill(simulator.pid, signal.SIGCONT)


# Secrets and evidence


def test_password_shows_nowhere(
    simulator: Simulator,
    chassis: Chassis,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    bmc = bmc_of(simulator)
    chassis.set(answers_after=0.3)
    with command_lines() as seen:
        bmc.is_powered()
        bmc.power_on()
        texts = []
        chassis.set(failures=1)
        with pytest.raises(CommandFailed) as failed:
            bmc.is_powered()
        texts.append(repr(failed.value) + failed.value.output)
        with pytest.raises(BmcRefused) as refused:
            IpmiBmc("virt1", replace(simulator.spec, cipher=17), bmc._credential, QUICK).is_powered()
        texts.append(repr(refused.value))
    commands = [line for line in seen if b"ipmitool\0" in line]
    assert commands and not [line for line in seen if simulator.password.encode() in line]
    out = capfd.readouterr()
    texts += [caplog.text, out.out, out.err, repr(bmc.history), repr(vars(bmc))]
    assert "status 0" in caplog.text and not [text for text in texts if simulator.password in text]


def test_history_keeps_what_was_asked_and_said(simulator: Simulator) -> None:
    bmc = bmc_of(simulator)
    before = time.time()
    bmc.is_powered()
    (exchange,) = bmc.history
    assert exchange.argv[0] == "ipmitool" and exchange.argv[-3:] == ("chassis", "power", "status")
    assert exchange.status == 0 and exchange.output == "Chassis Power is off\n"
    assert before <= exchange.time <= time.time() and 0 < exchange.seconds < 5


def test_history_is_bounded(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "HISTORY_LENGTH", 2)
    bmc = bmc_of(simulator)
    for _ in range(3):
        bmc.info()
    bmc.is_powered()
    assert [x.argv[-1] for x in bmc.history] == ["info", "status"]


def test_commands_keep_their_distance(simulator: Simulator) -> None:
    bmc = bmc_of(simulator, replace(QUICK, command_gap=0.3))
    for _ in range(3):
        bmc.is_powered()
    gaps = [b.time - (a.time + a.seconds) for a, b in zip(bmc.history, bmc.history[1:], strict=False)]
    assert len(gaps) == 2 and min(gaps) >= 0.28


# Information


def test_info_is_read_by_heading(simulator: Simulator) -> None:
    info = bmc_of(simulator).info()
    assert info["IPMI Version"] == "2.0" and info["Firmware Revision"] == "9.08"
    assert info["Additional Device Support"].startswith("Sensor Device, SDR Repository Device, ")
    assert info["Aux Firmware Rev Info"] == "0x00, 0x00, 0x00, 0x00"


def test_sensor_reading_has_its_unit(simulator: Simulator) -> None:
    bmc, warm = bmc_of(simulator), {"Board Temp": "35 degrees C"}
    wait_until(lambda: bmc.sensors() == warm, 20.0, "the simulator has polled its sensor")


def test_sensor_name_cannot_drive_a_terminal(tmp_path: Path, chassis: Chassis) -> None:
    simulator = Simulator(tmp_path, chassis, None, sensor=b"\x1b[2J|x")
    simulator.start()
    try:
        bmc = bmc_of(simulator)
        assert list(bmc.sensors()) == ["\N{REPLACEMENT CHARACTER}[2J|x"]
        assert "\x1b" not in bmc.history[-1].output
    finally:
        simulator.stop()


def test_empty_sensor_repository_is_not_listed(tmp_path: Path, chassis: Chassis) -> None:
    """ipmitool would answer an empty one with Clear SDR Repository."""
    simulator = Simulator(tmp_path, chassis, None, sensor=None)
    simulator.start()
    try:
        bmc = bmc_of(simulator)
        assert bmc.sensors() == {}
        assert not any("sdr" in x.argv for x in bmc.history)
    finally:
        simulator.stop()


def test_clock_is_unknown_until_it_is_set(simulator: Simulator) -> None:
    bmc = bmc_of(simulator)
    with pytest.raises(MissingCapability, match="virt1: lacks capability bmc-clock"):
        bmc.clock()
    bmc._raw(0x0A, 0x49, *(1764000000).to_bytes(4, "little"), length=0)
    assert 1764000000 <= bmc.clock().timestamp() < 1764000005 and bmc.clock().tzinfo


# What the plain simulator lacks and our extension adds


def test_missing_commands_are_missing_capabilities(simulator: Simulator) -> None:
    bmc = bmc_of(simulator)
    with pytest.raises(MissingCapability, match="bmc-sleep-state"):
        bmc.sleep_state()
    with pytest.raises(MissingCapability, match="bmc-nmi"):
        bmc.nmi()


def test_boot_flags_that_are_not_valid_are_no_choice(simulator: Simulator, chassis: Chassis) -> None:
    """The plain simulator keeps the device and never marks it valid."""
    bmc = bmc_of(simulator)
    bmc.set_boot_device("pxe")
    assert chassis.get("boot") == "pxe" and bmc.boot_device() == "none"


@pytest.mark.parametrize(("code", "state"), [(0, "S0"), (3, "S3"), (4, "S4"), (5, "S5"), (6, "S4/S5"), (7, "G3")])
def test_sleep_state_is_the_boards_own(board_simulator: Simulator, chassis: Chassis, code: int, state: str) -> None:
    chassis.set(sleep=code)
    assert bmc_of(board_simulator).sleep_state() == state


def test_sleep_state_unknown_to_the_bmc_is_a_missing_capability(board_simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(sleep=0x2A)
    with pytest.raises(MissingCapability, match="bmc-sleep-state"):
        bmc_of(board_simulator).sleep_state()


def test_sleep_state_that_could_not_be_asked_is_a_failure(board_simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(failures=1)
    with pytest.raises(CommandFailed):
        bmc_of(board_simulator).sleep_state()


def test_nmi_reaches_the_chassis(board_simulator: Simulator, chassis: Chassis) -> None:
    bmc_of(board_simulator).nmi()
    assert chassis.calls() == [["nmi", "1"]]


def test_nmi_that_the_board_refuses_is_no_missing_capability(board_simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(failures=1)
    with pytest.raises(CommandFailed):
        bmc_of(board_simulator).nmi()


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("device", "word"), [("pxe", "pxe"), ("disk", "default"), ("cdrom", "cdrom"), ("bios", "bios")]
)
def test_boot_device_is_set_and_read_back(
    board_simulator: Simulator, chassis: Chassis, device: str, word: str, once: bool
) -> None:
    bmc = bmc_of(board_simulator)
    bmc.set_boot_device(device, once=once)
    lasting = "0" if once else "1"
    assert chassis.calls() == [["clearing", "8"], ["boot", word, "persistent", lasting, "efi", "0"]]
    assert bmc.boot_device() == device
    bmc.set_boot_device("none")
    assert bmc.boot_device() == "none"


@pytest.mark.parametrize("once", [True, False])
def test_a_board_with_uefi_is_told_to_boot_by_uefi(board_simulator: Simulator, chassis: Chassis, once: bool) -> None:
    spec = replace(board_simulator.spec, firmware="uefi")
    bmc = IpmiBmc("virt1", spec, Credential(board_simulator.user, board_simulator.password), QUICK)
    bmc.set_boot_device("pxe", once=once)
    assert (chassis.get("boot"), chassis.get("efi"), chassis.get("persistent")) == ("pxe", 1, int(not once))
    flags = bmc._raw(0x00, 0x09, 0x05, 0x00, 0x00, length=7)
    assert flags[2] == (0xA0 if once else 0xE0) and flags[3] == 0x04
    assert bmc._raw(0x00, 0x09, 0x03, 0x00, 0x00, length=3)[2] == 0x08, "the flags hold longer than 60 s"
    assert bmc.boot_device() == "pxe"


def test_boot_device_refused_with_status_0_is_a_failure(simulator: Simulator, chassis: Chassis) -> None:
    chassis.set(failures=9)
    with pytest.raises(CommandFailed, match="Unspecified error"):
        bmc_of(simulator).set_boot_device("pxe")


def test_unknown_boot_device_is_the_callers_mistake(simulator: Simulator) -> None:
    with pytest.raises(UsageError, match="'floppy': must be one of none, pxe, disk, cdrom, bios"):
        bmc_of(simulator).set_boot_device("floppy")


def test_extension_leaves_the_rest_to_the_simulator(board_simulator: Simulator, chassis: Chassis) -> None:
    bmc = bmc_of(board_simulator)
    bmc.power_on()
    bmc.reset()
    bmc.soft_off()
    assert chassis.calls() == [["power", "1"], ["reset", "1"], ["shutdown", "1"]]


def test_extension_refuses_to_load_without_a_chassis_program(tmp_path: Path, chassis: Chassis, board_bmc: Path) -> None:
    simulator = Simulator(tmp_path, chassis, None)
    with (tmp_path / "sim.conf").open("a") as stream:
        stream.write(f'loadlib "{board_bmc}" ""\n')
    with pytest.raises(pytest.fail.Exception, match=r"(?s)ipmi_sim ended.*Error from module"):
        simulator.start()


# connect()


def test_connect_takes_the_credential_by_name(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", f"{simulator.user}:{simulator.password}")
    bmc: Bmc = connect("virt1", simulator.spec)
    assert not bmc.is_powered()
