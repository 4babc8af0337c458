"""How a verdict is decided: the first rule of :data:`RULES` that applies. Evidence outranks the exception.

A case is judged from an :class:`Observation`: how it ended, and what the consoles of its boards showed. Where several
things went wrong at once (an exception group), the gravest verdict counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from lab.base.errors import (
    BenchError,
    BmcRefused,
    BmcUnreachable,
    BoardUnreachable,
    BuildDoesNotBoot,
    BuildFailed,
    CaseTimeout,
    HypervisorCrash,
    MissingCapability,
    PowerTimeout,
    ProductFailure,
    ProductTimeout,
    UsageError,
)
from lab.console import crashes
from lab.console.crashes import Crash
from lab.console.patterns import classify
from lab.results.observation import Decision, HostLoss, Observation, Rule, StealTime
from lab.results.record import (
    BENCH,
    CRASH,
    HOST_LOST,
    NESTED_GUEST_CRASH,
    OUTCOME,
    STARVED,
    TRANSIENT,
    Evidence,
    GuestConsole,
    TestResult,
    Verdict,
)

__all__ = ["RULES", "Decision", "HostLoss", "Observation", "Rule", "decide", "guest_crash", "is_tried_again"]

# Failures that often pass by themselves: lost sessions and packets, busy BMCs.
TRANSIENT_KINDS = (BmcUnreachable, BmcRefused, PowerTimeout, BoardUnreachable)
_TRIED_ONCE_MORE = (TRANSIENT, HOST_LOST, STARVED)
REASON_LIMIT = 300  # characters
# Signatures of lab.console.patterns by which Xen reports a guest's death, and by which Linux reports its own.
XEN_TELLS = frozenset({"guest-crash", "domain-crash"})
# Those by which Linux in dom0 complains of nothing but time.
OF_TIME = frozenset({"linux-soft-lockup", "linux-rcu-stall", "linux-hung-task"})
STARVED_SHARE = 0.2  # of a processor: nine others wait for it. Beside a second board it is 0.5; at a load of 7, 0.28
LINUX_DIES = frozenset({"linux-panic", "linux-oops", "linux-bug"})
NESTED_SYSTEM = "linux"  # the guest system that is known to die so without a cause (docs/virtual-lab.md)


def is_tried_again(attempts: Sequence[TestResult]) -> bool:
    """Whether a case gets one more attempt after these, oldest first.

    A FAIL is never retried. NESTED_GUEST_CRASH is retried twice, TRANSIENT, HOST_LOST and STARVED once.
    """
    if not attempts or any(one.verdict is Verdict.FAIL for one in attempts):
        return False
    rules = [one.rule for one in attempts]
    if NESTED_GUEST_CRASH in rules:
        return len(rules) - rules.index(NESTED_GUEST_CRASH) <= 2
    return rules[-1] in _TRIED_ONCE_MORE and sum(rule in _TRIED_ONCE_MORE for rule in rules) == 1


def guest_crash(guests: Iterable[GuestConsole], consoles: Iterable[str]) -> str | None:
    """The line in which a Linux guest in hardware virtualisation reports its death. None if Xen reports it, too.

    :param guests: the guest consoles that the case kept.
    :param consoles: lines of the boards' consoles.
    """
    for line in consoles:
        if (found := classify(line)) and (found.kind == "crash" or found.name in XEN_TELLS):
            return None
    for guest in guests:
        if guest.system != NESTED_SYSTEM or guest.kind == "pv":
            continue
        for line in guest.lines:
            if (found := classify(line)) and found.name in LINUX_DIES:
                return f"{guest.board}: console of {guest.guest}: {line.strip()}"
    return None


def decide(observation: Observation) -> Decision:
    """The verdict of the first rule that applies."""
    decisions = [_decide(replace(observation, outcome=leaf)) for leaf in _leaves(observation.outcome)]
    decision = max(decisions, key=lambda decision: decision.verdict.severity)
    return replace(decision, evidence=decision.evidence + _besides(observation, decision))


def _decide(observation: Observation) -> Decision:
    for rule in RULES:
        reason = rule.why(observation)
        if reason is not None:
            found = rule.evidence(observation)
            fingerprint = one_line(rule.fingerprint(observation))
            return Decision(rule.verdict, rule.name, one_line(reason), found, fingerprint, observation.outcome)
    raise AssertionError("the last rule applies to all")


def one_line(text: str) -> str:
    """``text`` on one line of bounded length, control characters shown as escapes."""
    text = " ".join(text.split(None))
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= REASON_LIMIT else text[: REASON_LIMIT - 1] + "…"


# What is asked of an observation.


def _leaves(outcome: BaseException | None) -> Iterator[BaseException | None]:
    if isinstance(outcome, BaseExceptionGroup):
        for inner in outcome.exceptions:
            yield from _leaves(inner)
    else:
        yield outcome


def _said(error: BaseException, *, first_line: bool = False) -> str:
    try:
        text = str(error).strip()
    except Exception as broken:  # somebody's __str__
        text = f"(its text cannot be had: {type(broken).__name__})"
    return text.partition("\n")[0] if first_line else text


def _all_crashes(observation: Observation) -> tuple[HypervisorCrash, ...]:
    """The crashes on the consoles; else the one that was raised, even if another exception followed it."""
    if observation.crashes:
        return observation.crashes
    if isinstance(observation.outcome, HypervisorCrash):
        return (observation.outcome,)
    error, seen = observation.outcome, set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, HypervisorCrash) and error.signature not in observation.expected_crashes:
            return (error,)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return ()


def _console_crash(observation: Observation) -> str | None:
    found = _all_crashes(observation)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    if not found:
        return None
    first, crash = found[0], _parsed(observation, found[0])
    seen_as = "" if crash.kind == first.signature else f"{first.signature}: "
    line = first.lines[0].strip() if first.lines else "nothing"
    return f"{first.board}: {seen_as}{crash.label}{more}; the console: {line}"


def _crash_evidence(observation: Observation) -> tuple[Evidence, ...]:
    evidence = list[Evidence]()
    for one in _all_crashes(observation):
        evidence.append(Evidence("console", one.signature, "\n".join(one.lines), observation.at, one.board))
        evidence.append(Evidence(CRASH, "what crashed", _parsed(observation, one).text(), observation.at, one.board))
    return tuple(evidence)


def _crash_fingerprint(observation: Observation) -> str:
    found = _all_crashes(observation)
    return _parsed(observation, found[0]).fingerprint if found else ""


def _parsed(observation: Observation, crash: HypervisorCrash) -> Crash:
    return crashes.with_symbols(crashes.parse(crash.signature, crash.lines), observation.symbols)


def _hypervisor_hang(observation: Observation) -> str | None:
    for loss, crash in _proved(observation):
        where = " from ".join(crash.functions) or crash.label
        return f"{loss.board}: the hypervisor hangs with interrupts off in {where}"
    return None


def _hang_fingerprint(observation: Observation) -> str:
    return next((crash.fingerprint for _, crash in _proved(observation)), "")


def _proved(observation: Observation) -> Iterator[tuple[HostLoss, Crash]]:
    """The hosts in which an NMI found the hypervisor hanging, each with the dump that it made."""
    for loss in observation.losses:
        if loss.is_hang:
            yield loss, crashes.with_symbols(crashes.of_nmi(loss.after_nmi), observation.symbols)


def _host_lost(observation: Observation, *, repeats: bool) -> str | None:
    loss = next((one for one in observation.losses if one.comes_back), None)
    if loss is None or observation.lost_before is not repeats:
        return None
    is_overdue = isinstance(observation.outcome, ProductTimeout)  # as all is on a lost host
    if isinstance(observation.outcome, AssertionError | ProductFailure | pytest.fail.Exception) and not is_overdue:
        return None  # the case itself found a fault, and may have rebooted the host
    return f"{loss.board}: the host {loss.how}; the power is on, and a known-good build is sound"


def _slows_down(observation: Observation) -> str | None:
    if not isinstance(observation.outcome, BenchError | CaseTimeout | None) or observation.skipped:
        return None  # the case itself found a fault
    return "; ".join(observation.slowings) or None


def _starved(observation: Observation) -> str | None:
    """A processor that Xen itself keeps busy is not stolen (:class:`lab.results.observation.StealTime`)."""
    crashes, lost = {one.signature for one in _all_crashes(observation)}, bool(observation.losses)
    is_late = lost or isinstance(observation.outcome, ProductTimeout | CaseTimeout)
    if not (crashes <= OF_TIME if crashes else is_late) or any(_proved(observation)):
        return None
    for board, steal in observation.steal.items():
        if steal.share < STARVED_SHARE:
            what = _console_crash(observation) or next((f"the host {one.how}" for one in observation.losses), None)
            return f"{board}: {_got(steal)}; {what or _said(observation.outcome or AssertionError())}"
    return None


def _got(steal: StealTime) -> str:
    return (
        f"its processors got {steal.share:.0%} of what they could have had: they ran for {steal.ran:.0f} s, and for "
        f"{steal.stolen:.0f} s the lab's machine did other work"
    )


def _expected_crash_missing(observation: Observation) -> str | None:
    gone = observation.expected_crashes - observation.seen_crashes
    if not gone or observation.outcome is not None or observation.skipped:
        return None
    return f"the case passed, but its crash was not on the console: {', '.join(sorted(gone))}"


def _case_timeout(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, CaseTimeout) else None


def _assertion(observation: Observation) -> str | None:
    if isinstance(observation.outcome, AssertionError | pytest.fail.Exception):
        return _said(observation.outcome, first_line=True) or "assertion failed"
    return None


def _product_timeout(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, ProductTimeout) else None


def _product_timeout_evidence(observation: Observation) -> tuple[Evidence, ...]:
    error = observation.outcome
    if not isinstance(error, ProductTimeout) or error.last is None:
        return ()
    return (Evidence("note", f"last seen: {error.what}", str(error.last), observation.at),)


def _product_failure(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, ProductFailure) else None


def _build_failed(observation: Observation) -> str | None:
    error = observation.outcome
    return ": ".join(filter(None, (error.what, error.cause))) if isinstance(error, BuildFailed) else None


def _build_failed_evidence(observation: Observation) -> tuple[Evidence, ...]:
    error = observation.outcome
    if not isinstance(error, BuildFailed) or not error.lines:
        return ()
    more = [f"log: {error.log}"] if error.log else []
    return (Evidence("command", error.what, "\n".join((*error.lines, *more)), observation.at),)


def _build_does_not_boot(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, BuildDoesNotBoot) else None


def _missing_capability(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, MissingCapability) else None


def _skipped(observation: Observation) -> str | None:
    if isinstance(observation.outcome, pytest.skip.Exception):
        return _said(observation.outcome) or "skipped"
    return observation.skipped if observation.outcome is None and observation.skipped else None


def _usage(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) if isinstance(error, UsageError) else None


def _guest_crash(observation: Observation, *, repeats: bool) -> str | None:
    if not observation.guest_crash or observation.crashed_before is not repeats:
        return None
    if not isinstance(observation.outcome, AssertionError | ProductFailure | pytest.fail.Exception):
        return None
    return observation.guest_crash


def _transient(observation: Observation) -> str | None:
    return _said(observation.outcome) if isinstance(observation.outcome, TRANSIENT_KINDS) else None


def _bench(observation: Observation) -> str | None:
    error = observation.outcome
    return _said(error) or type(error).__name__ if isinstance(error, BenchError) else None


def _interrupted(observation: Observation) -> str | None:
    error = observation.outcome
    if isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
        return f"interrupted: {_said(error)}".rstrip(": ")
    return None


def _exception(observation: Observation) -> str | None:
    error = observation.outcome
    return None if error is None else f"{type(error).__name__}: {_said(error, first_line=True)}".rstrip(": ")


def _leak(observation: Observation) -> str | None:
    if observation.outcome is not None or observation.skipped or not observation.leaks:
        return None
    return f"left behind by the case, though its guests are gone: {'; '.join(observation.leaks)}"


def _passed(observation: Observation) -> str:
    return ""


def _besides(observation: Observation, decision: Decision) -> tuple[Evidence, ...]:
    """What did not decide the verdict, but a reader must know."""
    found = []
    outcome = observation.outcome
    if decision.rule == "console-crash" and outcome is not None and not isinstance(outcome, HypervisorCrash):
        body = f"{type(outcome).__name__}: {_said(outcome)}"
        found.append(Evidence(OUTCOME, "how the case itself ended", body, observation.at))
    for board, steal in observation.steal.items():
        if decision.verdict is not Verdict.PASS and steal.share < 0.5:
            found.append(Evidence("note", "the lab's machine was busy", _got(steal), observation.at, board))
    if observation.console_gaps:
        title = "the console was lost for a time; what it said then is not known"
        found.append(Evidence("note", title, "\n".join(observation.console_gaps), observation.at))
    return tuple(found)


RULES: tuple[Rule, ...] = (
    Rule(
        "lease-over",
        Verdict.MISS,
        "the lease on its boards was over before the case ended: they were powered off, or somebody else's",
        lambda observation: observation.lease_over,
    ),
    Rule(
        STARVED,
        Verdict.MISS,
        "the lab's machine left an emulated board less than a fifth of the processor time that it could have had, and "
        "a time limit was exceeded, a host was lost, or dom0's kernel complained of delays only; tried once more",
        _starved,
    ),
    Rule(
        "console-crash",
        Verdict.FAIL,
        "a console shows a crash of the hypervisor or dom0 that the case did not declare, however the case ended",
        _console_crash,
        _crash_evidence,
        _crash_fingerprint,
    ),
    Rule(
        "hypervisor-hang",
        Verdict.FAIL,
        "a host fell silent, its power on and its console open, and an NMI found the hypervisor with interrupts off",
        _hypervisor_hang,
        fingerprint=_hang_fingerprint,
    ),
    Rule(
        "host-lost-again",
        Verdict.FAIL,
        "a host was lost as by host-lost, and at an earlier attempt of the run too",
        partial(_host_lost, repeats=True),
    ),
    Rule(
        HOST_LOST,
        Verdict.MISS,
        "a host was lost, its power on and its console open: it fell silent, dom0 died, dom0's network, timers or "
        "console died, or it was reset; no crash or NMI says why, and a known-good build finds the board sound; tried "
        "once more",
        partial(_host_lost, repeats=False),
    ),
    Rule(
        "slows-down",
        Verdict.FAIL,
        "Xen takes at least twice as long to answer dom0 as after a reboot of the same build; dom0's own computing "
        "speed, measured beside it, is the clock",
        _slows_down,
    ),
    Rule(
        "expected-crash-missing",
        Verdict.FAIL,
        "the case declares a crash and passed, but the console shows none",
        _expected_crash_missing,
    ),
    Rule(
        "case-timeout",
        Verdict.ERROR,
        "the case exceeded its time limit and was ended; cause unknown",
        _case_timeout,
    ),
    Rule(
        "guest-crash-repeats",
        Verdict.FAIL,
        "a guest crashed as by nested-guest-crash, and at an earlier attempt of the run too",
        partial(_guest_crash, repeats=True),
    ),
    Rule(
        NESTED_GUEST_CRASH,
        Verdict.MISS,
        "a Linux PVH or HVM guest died without a sign from Xen, on boards tagged `emulation: nested`; tried twice more",
        partial(_guest_crash, repeats=False),
    ),
    Rule("assertion", Verdict.FAIL, "an assertion of the case failed, or it called pytest.fail", _assertion),
    Rule(
        "product-timeout",
        Verdict.FAIL,
        "the product did not do something in time (ProductTimeout)",
        _product_timeout,
        _product_timeout_evidence,
    ),
    Rule(
        "build-failed",
        Verdict.FAIL,
        "the build under test cannot be made: its source does not compile, or a patch does not apply (BuildFailed)",
        _build_failed,
        _build_failed_evidence,
    ),
    Rule(
        "product",
        Verdict.FAIL,
        "the product, for example its toolstack, failed to do what it was asked for (ProductFailure)",
        _product_failure,
    ),
    Rule(
        "build-does-not-boot",
        Verdict.MISS,
        "an earlier case found that the build does not come up on this board; that case has the FAIL or MISS for it",
        _build_does_not_boot,
    ),
    Rule("missing-capability", Verdict.SKIP, "the board lacks what the case needs", _missing_capability),
    Rule("skipped", Verdict.SKIP, "the case skipped itself (pytest.skip)", _skipped),
    Rule("usage", Verdict.ERROR, "a wrong configuration or call (UsageError)", _usage),
    Rule(
        TRANSIENT,
        Verdict.MISS,
        "the BMC, the power or the network did not do its part; tried once more",
        _transient,
    ),
    Rule(BENCH, Verdict.MISS, "the bench failed (BenchError)", _bench),
    Rule("interrupted", Verdict.MISS, "the run was interrupted", _interrupted),
    Rule("exception", Verdict.ERROR, "any other exception", _exception),
    Rule(
        "leak",
        Verdict.FAIL,
        "the case came to its end, but when all guests were destroyed a domain stayed dead or memory was missing",
        _leak,
    ),
    Rule("passed", Verdict.PASS, "none of the above", _passed),
)
