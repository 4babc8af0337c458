"""A boot followed by its console: what ends it, and whose failure it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base.errors import ProductFailure, ProductTimeout, ToolstackFailed, WaitTimeout
from lab.console.client import ConsoleLine
from lab.console.recalled import REACH
from lab.grid.boot import (
    ASK_INTERVAL,
    DOM0_TIMEOUT,
    MENU_TIMEOUT,
    SILENCE,
    TOOLS_TIMEOUT,
    XEN_SILENCE,
    XEN_TIMEOUT,
    Boot,
)
from lab.grid.ssh import CommandResult
from lab.netboot import Entry

RECORDED = Path(__file__).parent / "data" / "console"
MENU, UNDER_TEST, KNOWN_GOOD = "GNU GRUB  version 2.06", "  Booting `under-test: Xen'", "  Booting `known-good: Xen'"
BANNER = "(XEN) Xen version 4.17.5 (x@y) (gcc) debug=y"
GONE_WRONG = CommandResult("xl info", 1, "", "libxl: cannot open libxc handle", 0.1)
WELL = CommandResult("xl info", 0, "host : virt1", "", 0.1)


class Followed:
    """A boot whose console prints a line a second."""

    def __init__(self, entry: Entry = "under-test") -> None:
        self.boot, self.now, self._number = Boot("virt1", entry, started=1000.0), 1000.0, 0

    def reads(self, *texts: str) -> None:
        for text in texts:
            self.now, self._number = self.now + 1.0, self._number + 1
            assert self.boot.read([ConsoleLine("virt1", self._number, self.now, "line", text)], self.now) is None

    def waits(self, seconds: float) -> None:
        self.now += seconds
        assert self.boot.read([], self.now) is None


def recorded(name: str) -> list[ConsoleLine]:
    texts = (RECORDED / f"{name}.log").read_text(errors="replace").splitlines()
    return [ConsoleLine("virt1", number, 1000.0 + number / 10, "line", text) for number, text in enumerate(texts)]


def test_a_recorded_boot_passes_its_milestones_and_dom0_is_asked_when_the_console_falls_silent() -> None:
    lines = recorded("417-good-boot-to-login")
    boot, end = Boot("virt1", "known-good", started=1000.0), lines[-1].time
    assert boot.read(lines, end) is None
    assert list(boot.milestones) == ["xen-banner", "xen-cmdline", "dom0-building", "dom0-linux"]
    assert boot.has_banner and not boot.is_to_be_asked(end + SILENCE / 2)
    assert boot.is_to_be_asked(end + SILENCE + 1.0)
    assert boot.take_answer(None, end + SILENCE + 1.0, end + SILENCE + 2.0) is False
    assert not boot.is_to_be_asked(end + SILENCE + 2.0), "a dom0 that nobody heard is left alone for a while"
    assert boot.take_answer(WELL, end + 30.0, end + 31.0) is True
    assert boot.milestones["ready"] == end + 31.0 - 1000.0


def test_a_dom0_that_prints_its_login_is_asked_at_once_and_paced() -> None:
    seen = Followed()
    seen.reads(UNDER_TEST, BANNER, "[    0.000000] Linux version 6.1.0", "virt1 login: ")
    assert seen.boot.is_to_be_asked(seen.now)
    seen.boot.take_answer(None, seen.now, seen.now)
    assert not seen.boot.is_to_be_asked(seen.now + ASK_INTERVAL / 2)
    assert seen.boot.is_to_be_asked(seen.now + 2 * ASK_INTERVAL)


def test_a_login_of_before_the_boot_is_not_taken_for_one() -> None:
    seen = Followed()
    seen.reads("virt1 login: ", MENU)
    assert not seen.boot.has_login and "dom0-up" not in seen.boot.milestones


def test_a_recorded_crash_is_found_where_it_is() -> None:
    lines = recorded("417-boot-panic-EPYC")
    found = Boot("virt1", "under-test", started=1000.0).read(lines, 1100.0)
    assert found is not None
    signature, index = found
    assert signature.kind == "crash" and signature.name == "xen-panic"
    assert "Panic on CPU" in lines[index].text


def test_a_build_that_resets_the_board_is_the_products_failure() -> None:
    seen = Followed()
    seen.reads(UNDER_TEST, BANNER)
    with pytest.raises(ProductFailure, match="virt1: the build reset the board"):
        seen.reads(KNOWN_GOOD)
    Followed("known-good").reads(KNOWN_GOOD, BANNER, KNOWN_GOOD)  # of that one more is known: nothing is under test


@pytest.mark.parametrize(
    ("texts", "wait", "kind", "what"),
    [
        ((), MENU_TIMEOUT + XEN_TIMEOUT, WaitTimeout, "hypervisor starts"),  # no boot loader
        ((UNDER_TEST,), XEN_TIMEOUT, ProductTimeout, "hypervisor starts"),  # not a word of the hypervisor
        ((UNDER_TEST, "error: file `/boot/xen' not found."), XEN_TIMEOUT, WaitTimeout, "hypervisor starts"),
        ((KNOWN_GOOD,), XEN_TIMEOUT, WaitTimeout, "hypervisor starts"),  # not the entry that was wanted
        ((UNDER_TEST, BANNER), XEN_SILENCE, ProductTimeout, "dom0 answers"),  # it hangs
        ((UNDER_TEST, BANNER, "[    0.000000] Linux version 6.1.0"), DOM0_TIMEOUT, ProductTimeout, "dom0 answers"),
    ],
)
def test_a_boot_that_takes_too_long_is_the_products_once_the_hypervisor_was_started(
    texts: tuple[str, ...], wait: float, kind: type[Exception], what: str
) -> None:
    seen = Followed()
    seen.reads(*texts)
    seen.waits(wait - len(texts))
    assert seen.boot.overdue(seen.now) is None
    seen.waits(len(texts) + 1.0)
    overdue = seen.boot.overdue(seen.now)
    assert isinstance(overdue, kind)
    assert overdue.board == "virt1" and f"virt1: {what} (under-test)" in str(overdue)
    assert (texts[-1] if texts else "nothing on the console") in str(overdue)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            (UNDER_TEST, "error: file `/xen.gz' not found.", "error: you need to load the kernel first."),
            "`/xen.gz' not",
        ),
        (("BdsDxe: No bootable option or device was found.",), "No bootable option"),
        ((UNDER_TEST, "\x1b[0mVerification failed: (0x1A) Security Violation"), "Verification failed: (0x1A)"),
    ],
)
def test_a_boot_that_ends_before_xen_is_named_by_what_the_loader_says(texts: tuple[str, ...], said: str) -> None:
    seen = Followed()
    seen.reads(*texts, *["Press any key to continue..."] * 9)
    seen.waits(MENU_TIMEOUT + XEN_TIMEOUT + 1.0)
    overdue = seen.boot.overdue(seen.now)
    assert isinstance(overdue, WaitTimeout)
    assert "hypervisor starts (under-test); it does not, since the boot loader or the firmware says: " in str(overdue)
    assert said in str(overdue)


def test_what_a_loader_says_of_another_entry_or_of_fonts_is_no_reason() -> None:
    seen = Followed()
    seen.reads("BdsDxe: failed to load Boot0001: Not Found", UNDER_TEST, BANNER, "[    0.0] Linux version 6.1.0")
    seen.waits(DOM0_TIMEOUT + 1.0)
    overdue = seen.boot.overdue(seen.now)
    assert isinstance(overdue, ProductTimeout) and "BdsDxe" not in overdue.what
    for said in (
        ("error: file `/boot/grub/fonts/unicode.pf2' not found.", UNDER_TEST),
        (UNDER_TEST, "error: no suitable video mode found.", "Booting in blind mode"),
    ):
        silent = Followed()
        silent.reads(*said)
        silent.waits(XEN_TIMEOUT + 1.0)
        assert isinstance(silent.boot.overdue(silent.now), ProductTimeout)


def test_a_stall_that_is_over_ends_no_boot_and_one_that_stays_does() -> None:
    stall, over = (
        f"[   42.9] rcu: INFO: {text}"
        for text in ("rcu_preempt detected stalls on CPUs/tasks:", "Stall ended before state dump start")
    )
    seen = Followed()
    seen.reads(UNDER_TEST, BANNER, stall, over, *["[   43.0] and so on"] * REACH)
    boot = Boot("virt1", "under-test", started=1000.0)
    lines = [UNDER_TEST, BANNER, stall, *["[   43.0] and so on"] * REACH]
    crash = boot.read([ConsoleLine("virt1", at, 1000.0 + at, "line", text) for at, text in enumerate(lines)], 1009.0)
    assert crash and crash[0].name == "linux-rcu-stall" and boot.lines[crash[1]].text == stall


def test_a_toolstack_that_does_not_work_for_a_while_fails_the_boot() -> None:
    seen = Followed()
    seen.reads(UNDER_TEST, BANNER, "[    0.000000] Linux version 6.1.0", "virt1 login: ")
    assert seen.boot.take_answer(GONE_WRONG, seen.now, seen.now) is False
    assert seen.boot.take_answer(GONE_WRONG, seen.now + TOOLS_TIMEOUT, seen.now) is False
    with pytest.raises(ToolstackFailed, match="cannot open libxc handle"):
        seen.boot.take_answer(GONE_WRONG, seen.now + TOOLS_TIMEOUT + 1.0, seen.now)


def test_a_dom0_that_goes_away_between_two_answers_gets_its_time_again() -> None:
    seen = Followed()
    seen.boot.take_answer(GONE_WRONG, 1000.0, 1000.0)
    seen.boot.take_answer(None, 1010.0, 1010.0)
    assert seen.boot.take_answer(GONE_WRONG, 1000.0 + TOOLS_TIMEOUT + 1.0, 1030.0) is False
