"""Verdicts: the rule that must decide, and what it says."""

from __future__ import annotations

import pytest

from lab.errors import (
    BenchError,
    BoardUnreachable,
    CommandFailed,
    HypervisorCrash,
    LabError,
    MissingCapability,
    PowerTimeout,
    ProductTimeout,
    UsageError,
    WaitTimeout,
)
from lab.record import Verdict
from lab.verdicts import RULES, Observation, decide

PANIC = HypervisorCrash("virt1", "xen-panic", ("(XEN) Panic on CPU 0:", "(XEN) stack"))


class BuildDoesNotBoot(BenchError):
    """As in lab.rig."""


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
        (BuildDoesNotBoot("virt1: no"), Verdict.MISS, "build-does-not-boot"),
        (MissingCapability("virt1", "iommu"), Verdict.SKIP, "missing-capability"),
        (caught(pytest.skip, "not today"), Verdict.SKIP, "skipped"),
        (WaitTimeout("BMC answers", 3.0), Verdict.MISS, "bench"),
        (PowerTimeout("virt1", "on", 3.0), Verdict.MISS, "bench"),
        (CommandFailed("virt1", "xl list", 1, "no"), Verdict.MISS, "bench"),
        (UsageError("no such build"), Verdict.ERROR, "usage"),
        (caught(pytest.fail, "Timeout (>600.0s) from pytest-timeout."), Verdict.ERROR, "case-timeout"),
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


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        BoardUnreachable("ssh"),
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
    assert (decision.evidence[1].kind, decision.evidence[1].title) == ("note", "crash")
    assert decision.fingerprint.endswith(" xen-panic: stack")
    assert f"fingerprint: {decision.fingerprint}" in decision.evidence[1].body
    told = [one for one in decision.evidence if one.title == "how the case itself ended"]
    assert len(told) == (outcome is not None)


def test_a_crash_that_another_exception_came_over_still_counts() -> None:
    def lose_the_board() -> None:
        try:
            raise PANIC
        finally:
            raise BoardUnreachable("virt1: ssh")

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


def test_rules_can_be_listed() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.when and isinstance(rule.verdict, Verdict) for rule in RULES)
