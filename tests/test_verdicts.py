"""Verdicts: the rule that must decide, and what it says."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lab.base.errors import (
    BenchError,
    BmcUnreachable,
    BoardUnreachable,
    BuildDoesNotBoot,
    CaseTimeout,
    CommandFailed,
    HypervisorCrash,
    LabError,
    MissingCapability,
    NotProved,
    PowerTimeout,
    ProductFailure,
    ProductTimeout,
    UsageError,
    WaitTimeout,
)
from lab.case import conclude
from lab.case.bench import Bench
from lab.case.evidence import Running
from lab.console import crashes
from lab.console.client import ConsoleLine
from lab.grid.session import Session
from lab.leases.ledger import Ledger
from lab.results.record import HOST_LOST, NESTED_GUEST_CRASH, TRANSIENT, GuestConsole, TestResult, Verdict
from lab.results.verdicts import RULES, HostLoss, Observation, decide, guest_crash, is_tried_again

PANIC = HypervisorCrash("virt1", "xen-panic", ("(XEN) Panic on CPU 0:", "(XEN) stack"))


def caught(function: object, *arguments: object) -> BaseException:
    try:
        function(*arguments)  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("outcome", "verdict", "rule"),
    [
        (None, Verdict.PASS, "passed"),
        (AssertionError("assert 1 == 2\n +  where 1 = f()"), Verdict.FAIL, "assertion"),
        (caught(pytest.fail, "no"), Verdict.FAIL, "assertion"),
        (PANIC, Verdict.FAIL, "console-crash"),
        (ProductTimeout("guest pv1 up", 30.0, "paused"), Verdict.FAIL, "product-timeout"),
        (BuildDoesNotBoot("virt1", "no"), Verdict.MISS, "build-does-not-boot"),
        (MissingCapability("virt1", "iommu"), Verdict.SKIP, "missing-capability"),
        (caught(pytest.skip, "not today"), Verdict.SKIP, "skipped"),
        (WaitTimeout("BMC answers", 3.0), Verdict.MISS, "bench"),
        (PowerTimeout("virt1", "on", 3.0), Verdict.MISS, "transient"),
        (BoardUnreachable("virt1", "ssh: timeout"), Verdict.MISS, "transient"),
        (BmcUnreachable("virt1", "no session"), Verdict.MISS, "transient"),
        (CommandFailed("virt1", "xl list", 1, "no"), Verdict.MISS, "bench"),
        (UsageError("no such build"), Verdict.ERROR, "usage"),
        (CaseTimeout(600.0), Verdict.ERROR, "case-timeout"),
        (caught(pytest.fail, "Timeout (>9 s) of the guest's own clock"), Verdict.FAIL, "assertion"),
        (KeyboardInterrupt(), Verdict.MISS, "interrupted"),
        (caught(pytest.exit, "enough"), Verdict.MISS, "interrupted"),
        (KeyError("x"), Verdict.ERROR, "exception"),
        (SystemExit(3), Verdict.ERROR, "exception"),
        (LabError("odd"), Verdict.ERROR, "exception"),
    ],
)
def test_the_outcome_alone_decides(outcome: BaseException | None, verdict: Verdict, rule: str) -> None:
    decision = decide(Observation(outcome))
    assert (decision.verdict, decision.rule) == (verdict, rule)
    assert bool(decision.reason) == (verdict is not Verdict.PASS)


@pytest.mark.parametrize(("is_declared", "more"), [(False, ""), (True, ", which it declares")])
def test_a_skip_says_whether_the_board_was_to_have_it(is_declared: bool, more: str) -> None:
    decision = decide(Observation(MissingCapability("virt1", "s3", is_declared=is_declared)))
    assert decision.reason == f"virt1: lacks capability s3{more}"


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        BoardUnreachable("virt1", "ssh"),
        UsageError("x"),
        KeyError("x"),
        KeyboardInterrupt(),
        MissingCapability("virt1", "s3"),
    ],
)
def test_a_crash_on_the_console_outranks_how_the_case_ended(outcome: BaseException | None) -> None:
    decision = decide(Observation(outcome, crashes=(PANIC,)))
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "console-crash")
    assert "Panic on CPU 0" in decision.reason
    assert decision.evidence[0].body == "(XEN) Panic on CPU 0:\n(XEN) stack"
    assert decision.evidence[0].board == "virt1"
    assert "xen-panic: stack" in decision.reason
    assert decision.evidence[1].kind == "crash"
    assert decision.fingerprint.endswith(" xen-panic: stack")
    assert f"fingerprint: {decision.fingerprint}" in decision.evidence[1].body
    told = [one for one in decision.evidence if one.kind == "outcome"]
    assert len(told) == (outcome is not None)


@pytest.mark.parametrize("cause", [ValueError, KeyboardInterrupt])
def test_a_crash_seen_while_an_interrupted_case_clears_up_is_no_matter_of_it(cause: type[BaseException]) -> None:
    """An interrupt takes a guest's device away in the middle of its work: that fault must not be a FAIL."""
    bench = object.__new__(Bench)
    bench.is_armed = True
    bench.running = cast(Running, SimpleNamespace(crash=PANIC, crash_time=0.0, figures={}))

    def clear_up() -> None:
        try:
            raise cause
        finally:
            with contextlib.suppress(KeyError):
                try:
                    raise KeyError
                finally:
                    bench.on_crash_signal(0, None)

    with pytest.raises(KeyboardInterrupt if cause is KeyboardInterrupt else HypervisorCrash):
        clear_up()


def test_a_ledger_that_cannot_be_written_ends_no_worker_and_is_told_later(tmp_path: Path) -> None:
    """Its disk may be full. The rule of several misses in a row counts those of that time, too."""
    book = Ledger(tmp_path)
    bench = object.__new__(Bench)
    bench._untold, bench._session = [], cast(Session, SimpleNamespace(ledger=book))
    book.path.rename(tmp_path / "kept")
    book.path.mkdir()
    for build in ("one", "two"):
        result = TestResult("a::b", "a", Verdict.MISS, "transient", "x", 1.0, 2.0, ("virt1",), build)
        bench.note_health(result, decide(Observation(BoardUnreachable("virt1", "ssh"))))
    book.path.rmdir()
    (tmp_path / "kept").rename(book.path)
    assert book.board("virt1").misses == ()
    bench.note_health(replace(result, build="three"), decide(Observation(BoardUnreachable("virt1", "ssh"))))
    assert book.board("virt1").misses == ("one", "two", "three")
    assert "2 bench misses in a row" in book.board("virt1").quarantine


def test_a_crash_that_another_exception_came_over_still_counts() -> None:
    def lose_the_board() -> None:
        try:
            raise PANIC
        finally:
            raise BoardUnreachable("virt1", "ssh")

    decision = decide(Observation(caught(lose_the_board)))
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "console-crash")


def test_only_a_crash_has_a_fingerprint() -> None:
    for outcome in (None, AssertionError("no"), BenchError("x"), KeyError("x")):
        assert decide(Observation(outcome)).fingerprint == ""
    expected = frozenset({"xen-panic"})
    assert decide(Observation(expected_crashes=expected, seen_crashes=expected)).fingerprint == ""


def test_an_expected_crash_must_come() -> None:
    expected = frozenset({"xen-panic"})
    assert decide(Observation(expected_crashes=expected)).rule == "expected-crash-missing"
    assert decide(Observation(expected_crashes=expected)).verdict is Verdict.FAIL
    assert decide(Observation(expected_crashes=expected, seen_crashes=expected)).verdict is Verdict.PASS
    assert decide(Observation(skipped="no", expected_crashes=expected)).verdict is Verdict.SKIP
    assert decide(Observation(BenchError("x"), expected_crashes=expected)).verdict is Verdict.MISS


def test_a_skip_is_told_by_its_reason() -> None:
    decision = decide(Observation(skipped="needs two boards"))
    assert (decision.verdict, decision.reason) == (Verdict.SKIP, "needs two boards")


def test_what_goes_wrong_after_a_skip_is_not_hidden_by_it() -> None:
    assert decide(Observation(KeyError("x"), skipped="no")).verdict is Verdict.ERROR


def test_of_several_errors_the_gravest_counts() -> None:
    both = BaseExceptionGroup("teardown", [BenchError("x"), ExceptionGroup("y", [AssertionError("leak")])])
    assert decide(Observation(both)).verdict is Verdict.FAIL


def test_a_reason_is_one_bounded_line_without_control_characters() -> None:
    decision = decide(Observation(BenchError("a\x1b[2J\x00\r\n\x9b b\u202e " + "x" * 999)))
    assert decision.reason.startswith(r"a\x1b[2J\x00 \x9b b\u202e xxx")
    assert decision.reason.isprintable()
    assert len(decision.reason) <= 300


def test_an_exception_whose_text_cannot_be_had_is_judged_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert decide(Observation(Broken())).verdict is Verdict.ERROR


def test_a_gap_in_the_console_stands_beside_a_pass() -> None:
    decision = decide(Observation(console_gaps=("virt1: 3.2 s",)))
    assert decision.verdict is Verdict.PASS
    assert "virt1: 3.2 s" in decision.evidence[0].body


def test_what_was_seen_last_is_evidence_of_a_product_timeout() -> None:
    decision = decide(Observation(ProductTimeout("guest up", 30.0, "console:\nlast words")))
    assert decision.evidence[0].body == "console:\nlast words"
    assert "\n" not in decision.reason


@pytest.mark.parametrize("outcome", [None, AssertionError("no heartbeat"), BenchError("ssh"), PANIC], ids=str)
def test_boards_that_were_lost_on_the_way_say_nothing(outcome: BaseException | None) -> None:
    """Not even a crash: by then the console may be that of somebody else's case."""
    over = "lease 7 is over: its process is gone"
    decision = decide(Observation(outcome, crashes=(PANIC,), lease_over=over, leaks=("virt1: 64 MiB",)))
    assert (decision.verdict, decision.rule, decision.reason) == (Verdict.MISS, "lease-over", over)


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (BoardUnreachable("virt2", "ssh: timeout"), {"virt2"}),
        (PowerTimeout("virt2", "on", 3.0), {"virt2"}),
        (WaitTimeout("dom0 answers", 3.0, board="virt2"), {"virt2"}),
        (
            ExceptionGroup("end", [MissingCapability("virt1", "s3"), BmcUnreachable("virt2", "no session")]),
            {"virt2"},
        ),
        (BenchError("virt2: the text alone blames nobody"), set()),
        (NotProved("virt2: the fault missed its step"), None),
        (ProductTimeout("guest up", 3.0, board="virt2"), None),
        (AssertionError("virt2: no"), None),
        (None, None),
    ],
)
def test_a_bench_failure_is_blamed_on_the_board_that_the_error_carries(
    outcome: BaseException | None, failed: set[str] | None
) -> None:
    assert decide(Observation(outcome)).failed_boards == failed


def test_rules_can_be_listed() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.when and isinstance(rule.verdict, Verdict) for rule in RULES)


# leaks


def test_what_xen_owes_fails_a_case_that_passed_and_no_other() -> None:
    leaks = ("virt1: dead domain 5 (--p--d)",)
    decision = decide(Observation(leaks=leaks))
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "leak")
    assert "virt1: dead domain 5" in decision.reason
    assert decide(Observation(BenchError("x"), leaks=leaks)).verdict is Verdict.MISS
    assert decide(Observation(skipped="no", leaks=leaks)).verdict is Verdict.SKIP
    assert decide(Observation(AssertionError("x"), leaks=leaks)).rule == "assertion"


# guests that die where emulation lies in emulation

OOPS = "[   12.3] Kernel panic - not syncing: Fatal exception in interrupt"


def console(system: str | None = "linux", kind: str = "pvh", *lines: str) -> GuestConsole:
    return GuestConsole("virt1", f"{system}-{kind}-7-1", kind, system, lines or ("up", OOPS))


@pytest.mark.parametrize(
    ("guest", "consoles", "is_found"),
    [
        (console(), (), True),
        (console(), ("(XEN) Domain 5 (vcpu#0) crashed on cpu#1:",), False),  # Xen says why
        (console(), ("(XEN) Panic on CPU 0:",), False),
        (console(), ("(XEN) HVM d5v0 save: CPU",), True),
        (console("linux", "hvm"), (), True),
        (console("linux", "pv"), (), False),  # no hardware virtualisation
        (console("linux32", "pvh"), (), False),
        (console(None, "pvh"), (), False),  # no Linux
        (console("linux", "pvh", "up and well"), (), False),
    ],
)
def test_a_guest_crash_in_doubt_is_a_linux_that_xen_says_nothing_of(
    guest: GuestConsole, consoles: tuple[str, ...], is_found: bool
) -> None:
    assert (guest_crash([guest], consoles) is not None) is is_found


def test_a_guest_crash_in_doubt_is_a_miss_until_it_repeats() -> None:
    outcome = ProductTimeout("guest up", 30.0)
    first = decide(Observation(outcome, guest_crash="virt1: panic"))
    assert (first.verdict, first.rule) == (Verdict.MISS, NESTED_GUEST_CRASH)
    again = decide(Observation(outcome, guest_crash="virt1: panic", crashed_before=True))
    assert (again.verdict, again.rule) == (Verdict.FAIL, "guest-crash-repeats")
    assert decide(Observation(outcome, crashed_before=True)).rule == "product-timeout"  # fails otherwise
    assert decide(Observation(guest_crash="virt1: panic")).verdict is Verdict.PASS  # that was the point of it
    assert decide(Observation(outcome, guest_crash="virt1: panic", crashes=(PANIC,))).rule == "console-crash"


# which attempts are followed by another


def attempt(word: str) -> TestResult:
    verdict, _, rule = word.partition(":")
    return TestResult("c", "a", Verdict(verdict), rule or "some", "", 1.0, 1.0)


@pytest.mark.parametrize(
    ("attempts", "again"),
    [
        ("", False),
        ("PASS", False),
        ("FAIL", False),
        ("ERROR", False),
        ("SKIP", False),
        ("MISS:bench", False),
        (f"MISS:{TRANSIENT}", True),
        (f"MISS:{HOST_LOST}", True),
        (f"MISS:{TRANSIENT} MISS:{HOST_LOST}", False),
        (f"MISS:{TRANSIENT} MISS:{TRANSIENT}", False),
        (f"MISS:{TRANSIENT} PASS", False),
        (f"MISS:{TRANSIENT} FAIL", False),
        (f"FAIL MISS:{TRANSIENT}", False),
        (f"MISS:{NESTED_GUEST_CRASH}", True),
        (f"MISS:{NESTED_GUEST_CRASH} PASS", True),
        (f"MISS:{NESTED_GUEST_CRASH} PASS PASS", False),
        (f"MISS:{NESTED_GUEST_CRASH} FAIL", False),
        (f"MISS:{TRANSIENT} MISS:{NESTED_GUEST_CRASH} PASS", True),
    ],
)
def test_only_what_a_rule_names_is_tried_again(attempts: str, again: bool) -> None:
    assert is_tried_again([attempt(word) for word in attempts.split()]) is again


# -- a host that falls silent --------------------------------------------------------------------------------

NMI_DUMP = """\
(XEN) [  121.500000] NMI watchdog or button
(XEN) ----[ Xen-4.17.5  x86_64  debug=y  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    e008:[<ffff82d0402062c1>] domain_kill+0x41/0x130
(XEN) RFLAGS: {flags}   CONTEXT: {context}
(XEN) Xen call trace:
(XEN)    [<ffff82d0402062c1>] R domain_kill+0x41/0x130
(XEN)    [<ffff82d04022f0c1>] F do_domctl+0x1ad1/0x2340
(XEN)    [<ffff82d0402f1a3e>] F pv_hypercall+0x3f3/0x4a0
(XEN)
(XEN) ****************************************
(XEN) Panic on CPU 0:
(XEN) FATAL TRAP: vec 2, NMI[0000]
(XEN) ****************************************
(XEN) Reboot in five seconds...
"""
SILENT = "fell silent"
OFF, ON = "0000000000000046", "0000000000000246"


def after_nmi(flags: str, context: str = "hypervisor (d0v0)") -> tuple[str, ...]:
    return tuple(NMI_DUMP.format(flags=flags, context=context).splitlines())


@pytest.mark.parametrize("outcome", [BoardUnreachable("virt1", "ssh: timeout"), WaitTimeout("job", 3.0), None])
def test_a_hypervisor_found_by_an_nmi_with_interrupts_off_is_a_hang(outcome: BaseException | None) -> None:
    decision = decide(Observation(outcome=outcome, losses=(HostLoss("virt1", SILENT, after_nmi(OFF)),)))
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "hypervisor-hang")
    assert "domain_kill" in decision.reason and decision.fingerprint


@pytest.mark.parametrize(
    "lines", [after_nmi(ON), after_nmi(OFF, "pv guest (d0v0)"), ("(XEN) RFLAGS: garbled   CONTEXT: hypervisor",), ()]
)
def test_without_that_proof_a_silence_fails_only_when_it_repeats_on_a_sound_board(lines: tuple[str, ...]) -> None:
    lost = BoardUnreachable("virt1", "ssh: timeout")
    unsound = Observation(outcome=lost, losses=(HostLoss("virt1", SILENT, lines),))
    assert decide(unsound).rule == TRANSIENT
    first = decide(Observation(outcome=lost, losses=(HostLoss("virt1", SILENT, lines, comes_back=True),)))
    assert (first.verdict, first.rule) == (Verdict.MISS, HOST_LOST)
    again = decide(
        Observation(outcome=lost, losses=(HostLoss("virt1", SILENT, lines, comes_back=True),), lost_before=True)
    )
    assert (again.verdict, again.rule) == (Verdict.FAIL, "host-lost-again")


@pytest.mark.parametrize(
    ("outcome", "rule"), [(AssertionError("3 pages"), "assertion"), (ProductFailure("xl: no"), "product")]
)
def test_what_the_case_found_outranks_a_lost_host(outcome: BaseException, rule: str) -> None:
    loss = HostLoss("virt1", "lost its network", comes_back=True)
    for before in (False, True):
        assert decide(Observation(outcome=outcome, losses=(loss,), lost_before=before)).rule == rule


def test_a_lost_host_says_how_it_was_lost() -> None:
    loss = HostLoss("virt1", "was reset", comes_back=True)
    reason = decide(Observation(outcome=BoardUnreachable("virt1", "ssh: timeout"), losses=(loss,))).reason
    assert reason == "virt1: the host was reset; the power is on, and a known-good build is sound"


@pytest.mark.parametrize(
    ("began", "banners", "outcome", "is_reset"),
    [
        (5, (30,), BoardUnreachable("virt1", "ssh: timeout"), True),  # booted before the case, and in it
        (5, (), BoardUnreachable("virt1", "ssh: timeout"), False),
        (20, (30,), BoardUnreachable("virt1", "ssh: timeout"), False),  # the boot that the case asked for
        (20, (30, 40), BoardUnreachable("virt1", "ssh: timeout"), True),
        (20, (15, 30), BoardUnreachable("virt1", "ssh: timeout"), False),  # two boots that were asked for
        (5, (30,), AssertionError("woke without its disk"), False),
        (5, (30,), None, False),
    ],
)
def test_a_boot_that_nobody_asked_for_is_a_reset(
    began: int, banners: tuple[int, ...], outcome: BaseException | None, is_reset: bool
) -> None:
    lines = tuple(
        ConsoleLine("virt1", number, float(number), "line", "(XEN) Xen version 4.17.5" if number in banners else "...")
        for number in range(10, 50)
    )
    seat = SimpleNamespace(board=SimpleNamespace(strategy=SimpleNamespace(since=began)))
    running = cast(Running, SimpleNamespace(outcome=outcome, marks={"virt1": 10}, seats={"virt1": seat}))
    found = list(conclude._reset(running, [conclude.ConsoleSlice("virt1", lines, None, frozenset())]))
    assert found == ["virt1"] * is_reset


def test_a_crash_on_the_console_outranks_the_silence_after_it() -> None:
    decision = decide(Observation(crashes=(PANIC,), losses=(HostLoss("virt1", SILENT, after_nmi(OFF)),)))
    assert decision.rule == "console-crash"


def test_a_crash_that_no_line_tells_is_the_cases_crash_unless_xen_goes_on() -> None:
    strategy = SimpleNamespace(is_under_test=True, since=1, is_old_news=lambda signature, text: False)
    seats = {"virt1": SimpleNamespace(board=SimpleNamespace(strategy=strategy))}
    running = cast(Running, SimpleNamespace(seats=seats, crash_numbers={}, expected=frozenset()))
    said = (
        "(XEN) HVM d1v0 save: CPU",
        "(XEN) ----[ Xen-4.17.5  x86_64  debug=y  Not tainted ]----",
        "(XEN) CPU:    2",
        "(XEN) RIP:    e008:[<ffff82d040221234>] vmx_vmexit_handler+0x12/0x34",
        "(XEN) RFLAGS: 0000000000010086   CONTEXT: hypervisor (d1v0)",
    )

    def crash(*texts: str) -> HypervisorCrash | None:
        lines = [ConsoleLine("virt1", number, 1.0, "line", text) for number, text in enumerate(texts, 1)]
        return conclude._crash(running, "virt1", lines)

    found = crash(*said)
    assert found and found.signature == "xen-dump"
    assert crashes.parse(found.signature, found.lines).functions == ("vmx_vmexit_handler",)
    assert crash(*said, "(XEN) HVM d1v0 save: CPU_MSR") is None and crash() is None
    strategy.is_under_test = False
    assert crash(*said) is None
