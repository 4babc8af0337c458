"""What is found on a board after a case: Xen that gets slower, dead timers, a silent console; and what is not."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lab.base import processes
from lab.base.errors import (
    BenchError,
    BoardUnreachable,
    BuildDoesNotBoot,
    CaseTimeout,
    NotProved,
    ProductTimeout,
    SilentConsole,
    WaitTimeout,
)
from lab.case import rig
from lab.case.rig import Rig
from lab.case.seat import After, Seat
from lab.grid import pulse
from lab.grid.boot import XEN_SILENCE, Boot
from lab.grid.ssh import CommandResult
from lab.grid.strategy import Status, XenStrategy
from lab.results.record import Evidence, Verdict
from lab.results.verdicts import HostLoss, Observation, decide
from lab.xen import leftovers, pace

ROUNDS = ["400000000 200000000", "900000000 210000000", "410000000 800000000"]


def test_what_interrupts_a_round_does_not_count() -> None:
    assert pace.of(ROUNDS) == pytest.approx(2.0)
    assert pace.of(["", "xl: command not found"]) is None


def test_load_changes_nothing_and_a_slow_hypervisor_does() -> None:
    assert pace.of(["1200000000 600000000"]) == pytest.approx(2.0)
    assert pace.of(["1200000000 200000000"]) == pytest.approx(6.0)


def test_dom0s_shell_measures_and_says_what_was_asked(tmp_path: Path) -> None:
    for name, said in (("xl", "echo free_memory : $#"), ("xenstore-ls", ""), ("ps", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / name).chmod(0o755)
    environment = processes.environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"

    def run(text: str) -> SimpleNamespace:
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return SimpleNamespace(stdout=done.stdout)

    host = cast(rig.Host, SimpleNamespace(run=run))
    seen = leftovers.look(host)
    assert seen.free_mib == 1 and seen.pace
    assert (pace.measure(host, 2) or 0.0) > 0.0


def seat_and_rig(
    monkeypatch: pytest.MonkeyPatch, measured: list[float], *, comes_back: bool = True
) -> tuple[Seat, Rig, list[str]]:
    """A board whose pace was 2 after its boot, the paces that are then measured well one by one, and its reboots."""
    seat = Seat(cast(rig.Board, SimpleNamespace(name="virt1")), cast(rig.Host, None), pace=2.0)
    one, reboots = object.__new__(Rig), list[str]()
    one.evidence = []

    def reboot(_: Rig, seat: Seat) -> bool:
        reboots.append(seat.suspect or "")
        seat.suspect = None if comes_back else seat.suspect
        return comes_back

    monkeypatch.setattr(Rig, "_comes_back", reboot)
    monkeypatch.setattr(Rig, "_begin", lambda *_: None)
    monkeypatch.setattr(pace, "measure", lambda *_: measured.pop(0))
    return seat, one, reboots


@pytest.mark.parametrize(
    ("now", "measured", "reboots", "said"),
    [
        (9.0, [9.0, 2.1], 1, "virt1: Xen takes 4.3 times as long to answer dom0 as after a boot"),
        (9.0, [2.2], 0, ""),  # one measurement that something disturbed
        (9.0, [9.0, 8.0], 1, ""),  # so it is after a reboot, too: the board
        (3.9, [], 0, ""),
        (1.5, [], 0, ""),
        (None, [], 0, ""),  # dom0 did not say
    ],
)
def test_a_hypervisor_is_slower_when_a_reboot_makes_it_fast(
    monkeypatch: pytest.MonkeyPatch, now: float | None, measured: list[float], reboots: int, said: str
) -> None:
    seat, one, done = seat_and_rig(monkeypatch, measured)
    assert one._slowing(seat, now) == said
    assert (len(done), measured) == (reboots, [])
    assert len(one.evidence) == reboots


def test_a_board_that_does_not_come_back_says_nothing_of_the_hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    seat, one, _ = seat_and_rig(monkeypatch, [9.0], comes_back=False)
    assert one._slowing(seat, 9.0) == ""
    assert seat.suspect == "Xen answers slower than before"


@pytest.mark.parametrize(
    ("sleeps", "suspect"),
    [
        (True, "xl info ended"),  # its tools fail, and that is no loss of the host
        (False, "dom0's sleeps do not end"),
        (None, "dom0 does not answer"),
    ],
)
def test_a_host_that_a_case_which_passed_has_lost_is_looked_into(
    monkeypatch: pytest.MonkeyPatch, sleeps: bool | None, suspect: str
) -> None:
    def look(*_: object) -> leftovers.Left:
        raise BenchError("xl info ended")

    monkeypatch.setattr(leftovers, "clear", look)
    lost = HostLoss("virt1", "lost its timers", comes_back=True)
    monkeypatch.setattr(Rig, "_after_loss", lambda *_, **__: After(loss=lost))
    board = SimpleNamespace(name="virt1", is_reachable=lambda: True, sleeps=lambda: sleeps)
    seat = Seat(cast(rig.Board, board), cast(rig.Host, None), before=leftovers.parse(""))
    one = object.__new__(Rig)
    one.seats = {"virt1": seat}
    found = one.after("virt1", crashed=False, was_reset=False)
    assert seat.suspect == suspect
    assert found.loss == (None if sleeps else lost)


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_silent_console_is_the_builds_when_the_known_good_build_is_heard(
    monkeypatch: pytest.MonkeyPatch, is_sound: bool
) -> None:
    monkeypatch.setattr(
        Rig, "_try_sound_build", lambda *_, **__: (is_sound, Evidence("note", "known-good", "said", 1.0))
    )
    seat = Seat(cast(rig.Board, SimpleNamespace(name="virt1")), cast(rig.Host, None))
    one = object.__new__(Rig)
    one.seats = {"virt1": seat}
    found = one.after("virt1", crashed=False, was_reset=False, is_mute=True)
    assert seat.suspect and found.loss
    verdicts = []
    for before in (False, True):
        seen = Observation(outcome=SilentConsole("virt1"), losses=(found.loss,), lost_before=before)
        verdicts.append(decide(seen).rule)
    assert verdicts == (["host-lost", "host-lost-again"] if is_sound else ["bench", "bench"])


def test_a_build_that_boots_without_a_word_is_not_booted_for_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such case costs three boots, of the known-good build, too, until two have been silent."""
    boots = list[str]()

    def reboot(*, entry: str) -> None:
        boots.append(entry)
        if entry == "under-test":
            raise SilentConsole("virt1")

    for name in ("_deploy", "_try_sound_build"):
        monkeypatch.setattr(Rig, name, lambda *_, **__: (True, Evidence("note", "known-good", "said", 1.0)))
    strategy = SimpleNamespace(reboot=reboot)
    board = SimpleNamespace(name="virt1", is_reachable=lambda: True, strategy=strategy, states=None)
    seat = Seat(cast(rig.Board, board), cast(rig.Host, None))
    monkeypatch.setattr(Rig, "_is_proved", lambda *_: False)
    monkeypatch.setattr(Rig, "build", SimpleNamespace(name="mine"))
    one = object.__new__(Rig)
    one.seats, one.phases = {"virt1": seat}, []
    for kind in (SilentConsole, SilentConsole, BuildDoesNotBoot, BuildDoesNotBoot):
        with pytest.raises(kind, match="the console is silent"):
            one.ready("virt1")
        if kind is SilentConsole:
            one.after("virt1", crashed=False, was_reset=False, is_mute=True)
    assert boots == ["under-test", "under-test", "known-good", "under-test"]


SLOW = ("virt1: Xen takes 4.3 times as long to answer dom0 as after a boot",)


@pytest.mark.parametrize(
    "outcome", [None, WaitTimeout("job", 3.0), BoardUnreachable("virt1", "ssh"), CaseTimeout(600.0), NotProved("no")]
)
def test_a_hypervisor_that_gets_slower_fails_what_would_be_no_failure(outcome: BaseException | None) -> None:
    decision = decide(Observation(outcome=outcome, slowings=SLOW))
    assert (decision.verdict, decision.rule, decision.reason) == (Verdict.FAIL, "slows-down", SLOW[0])


def test_what_the_case_found_outranks_that() -> None:
    assert decide(Observation(outcome=AssertionError("no"), slowings=SLOW)).rule == "assertion"


@pytest.mark.parametrize(
    ("is_reachable", "voice", "kind"),
    [
        (True, pulse.Voice.SILENT, SilentConsole),
        (True, pulse.Voice.LOST, SilentConsole),
        (True, pulse.Voice.DOM0, ProductTimeout),  # the console is good: Xen did not say it
        (True, pulse.Voice.XEN, ProductTimeout),
        (False, pulse.Voice.SILENT, ProductTimeout),  # a host that is dead
    ],
)
def test_what_was_awaited_on_a_silent_console_is_not_known(
    monkeypatch: pytest.MonkeyPatch, is_reachable: bool, voice: pulse.Voice, kind: type[Exception]
) -> None:
    def wait_for(*_: object, **__: object) -> None:
        raise WaitTimeout("virt1: 'ACPI S3'", 1.0)

    monkeypatch.setattr(pulse, "listen", lambda _: voice)
    monkeypatch.setattr(rig.Host, "slowness", lambda _: 1.0)
    board = SimpleNamespace(
        steal_meter=None,
        name="virt1",
        run=None,
        console=SimpleNamespace(wait_for=wait_for),
        is_reachable=lambda: is_reachable,
    )
    with pytest.raises(kind) as raised:
        rig.Host(cast(rig.Board, board)).expect_console("ACPI S3", 1.0, since=1)
    assert isinstance(raised.value, BenchError) == (kind is SilentConsole)


@pytest.mark.parametrize(
    ("status", "voice", "kind"),
    [
        (0, pulse.Voice.SILENT, SilentConsole),
        (0, pulse.Voice.DOM0, ProductTimeout),
        (1, pulse.Voice.SILENT, ProductTimeout),
        (None, pulse.Voice.SILENT, ProductTimeout),
    ],
    ids=["up", "heard", "no xl", "dead"],
)
def test_a_boot_that_a_console_does_not_show_and_that_dom0_answers_after_is_no_hang(
    status: int | None, voice: pulse.Voice, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "listen", lambda console: voice)
    late = ProductTimeout("virt1: dom0 answers (under-test)", 240.0, "nothing", board="virt1")
    boot = SimpleNamespace(
        board="virt1",
        lines=[],
        has_banner=True,
        read=lambda *_: None,
        is_to_be_asked=lambda _: False,
        overdue=lambda _: late,
    )
    strategy = SimpleNamespace(
        console=SimpleNamespace(lines=lambda _: []),
        since=1,
        _ask=lambda: None if status is None else CommandResult("xl info", status, "", "", 0.1),
        _stolen=lambda: 0.0,
    )
    with pytest.raises(kind):
        XenStrategy._is_booted(cast(XenStrategy, strategy), cast(Boot, boot), Status.dom0, 0.0)


def test_time_that_was_stolen_from_a_board_is_not_its_boots() -> None:
    """Its hypervisor is silent for longer than a hang, and had too little of the machine to say anything."""
    boot = Boot("small", "under-test", started=time.time() - 200.0)
    boot.has_banner = True
    boot._spoke, boot._deadline = time.time() - XEN_SILENCE - 20.0, time.time() + 60.0
    strategy = SimpleNamespace(console=SimpleNamespace(lines=lambda _: []), since=1, _ask=lambda: None)
    strategy.is_old_news = lambda *_: False
    for stolen, is_late in ((70.0, False), (60.0, True)):
        strategy._stolen = lambda: stolen  # noqa: B023
        try:
            assert not XenStrategy._is_booted(cast(XenStrategy, strategy), boot, Status.dom0, 45.0)
        except ProductTimeout:
            assert is_late
        else:
            assert not is_late
