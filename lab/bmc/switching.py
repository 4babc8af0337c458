"""What BMCs of all protocols share: power switched until it is seen switched, and the record of what was said."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lab.base.errors import (
    BenchError,
    BmcBusy,
    BmcFellSilent,
    BmcRefused,
    BmcUnreachable,
    CommandFailed,
    CommandRefused,
    NoSessionNow,
    PowerTimeout,
    PowerUnknown,
    UsageError,
    WaitTimeout,
)
from lab.base.wait import wait_until

T = TypeVar("T")

HISTORY_LENGTH = 200  # a board's test sends tens of commands; enough for the evidence of one case
BOOT_DEVICES = ("none", "pxe", "disk", "cdrom", "bios")
# What passes by itself, so that the same question gets an answer a moment later.
PASSING = (NoSessionNow, BmcBusy)
_ASK_AGAIN = 0.5  # seconds between two questions to a BMC that is busy


@dataclass(frozen=True, slots=True)
class Exchange:
    """One command to a BMC and its answer, for the evidence."""

    time: float  # seconds since the epoch
    argv: tuple[str, ...]  # what was run, or method and URL; holds no secret
    status: int | None  # of the process, or HTTP's; None: did not end in time
    output: str  # stdout, then stderr; or the body
    seconds: float


class Readings(dict[str, str]):
    """Sensor readings by name, with units. ``unread`` says what could not be read."""

    unread: tuple[str, ...] = ()

    def add(self, name: str, reading: str) -> None:
        """One more; names are not unique on every board, so a second ``FAN`` becomes ``FAN #2``."""
        key, twin = name, 2
        while key in self:
            key, twin = f"{name} #{twin}", twin + 1
        self[key] = reading


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a BMC is driven, in seconds."""

    command_gap: float = 0.1  # some BMCs drop a command that follows the last one at once
    poll: float = 0.3  # between two readings of the chassis power
    # Some BMCs acknowledge the first power on after a power off and ignore it, so it is sent again.
    # Not sooner than a slow one needs to act (2 to 5 s): on a few boards a second "on" is a second press.
    repeat_after: float = 6.0
    # Some report what was asked for as soon as it was asked for, and the truth at their next poll of
    # the chassis. The wanted state counts once it was read without interruption for this long.
    # It is also how long a cycle keeps the power off: IPMI v2.0 table 28-4 asks for at least 1 s.
    settle: float = 1.0
    # How long a command is given again to a BMC that is busy, or has no session free. Longer than the 20 s that
    # answers take to come at worst, shorter than the minute that a BMC keeps the session of a client that died.
    patience: float = 25.0


def switch(
    board: str,
    wanted: str,
    is_powered: Callable[[], bool],
    command: Callable[[], None],
    timeout: float,
    pace: Pace,
    log: logging.Logger,
    *,
    proof: Callable[[], bool] | None = None,
) -> None:
    """Switch the power ``on`` or ``off``; send the command again until the power has been read as wanted for a while.

    Nothing is sent when the power is as wanted already. A BMC that does not know the power's state is sent the command.
    ``proof`` is another sign that the power is as wanted: once it is true, a reading that agrees need not last.
    ``is_powered`` and ``command`` should not wait for a busy BMC by themselves: this function asks again.

    :raises PowerTimeout: the power was not as wanted within ``timeout`` seconds; has the BMC's last refusal.
    :raises BmcUnreachable: no answer, neither to the first question nor at the deadline.
    :raises CommandFailed: the last question at the deadline failed. One before is asked again: as long as a BMC
        starts, some answer with an error that says no more than that it is one.
    :raises BmcRefused, CommandRefused: at once: the BMC's mind does not change, and a user may be locked out.
    """
    started = time.monotonic()
    deadline = started + timeout
    seen_since: float | None = None
    sent_at: float | None = None
    answered = False
    trouble: BenchError | None = None  # what went wrong in the last try, if it did
    refusal: str | None = None  # why the last command was not taken
    quiet_until = 0.0  # a busy BMC said when to ask again

    def read() -> bool:
        nonlocal answered, trouble
        try:
            is_wanted = is_powered() is (wanted == "on")
            trouble = None
        except PowerUnknown as error:
            is_wanted, trouble = False, error
        answered = True
        return is_wanted

    def is_settled() -> bool:
        nonlocal seen_since, sent_at, trouble, refusal, quiet_until
        is_commanding = False
        if time.monotonic() < quiet_until:
            return False
        try:
            is_wanted, now = read(), time.monotonic()
            if is_wanted:
                seen_since = now if seen_since is None else seen_since
                has_settled = sent_at is None or now - seen_since >= pace.settle
                return has_settled or (proof is not None and proof())
            seen_since = None
            if sent_at is None or now - sent_at >= pace.repeat_after:
                if sent_at is not None:
                    log.warning("still not %s %.1f s after it was told to: again", wanted, now - sent_at)
                sent_at, is_commanding = now, True
                command()
                refusal = None
        except (BmcRefused, CommandRefused):
            raise
        except (BmcUnreachable, CommandFailed) as error:
            # BMCs fall silent for a moment while they switch; one that never spoke is dead.
            if not answered and not isinstance(error, (*PASSING, BmcFellSilent, CommandFailed)):
                raise
            seen_since, trouble = None, error
            if is_commanding and isinstance(error, CommandFailed):
                refusal = f"{error.output.strip()[-200:]}{f' [{error.code}]' if error.code else ''}"
            elif is_commanding and isinstance(error, BmcUnreachable):
                refusal = error.reason  # of an outlet: what its PDU said
            if isinstance(error, BmcBusy):
                quiet_until = min(time.monotonic() + error.retry_after, deadline)
            if is_commanding and isinstance(error, PASSING) and getattr(error, "was_dropped", True):
                sent_at = None  # sent again, it is no second press of the button
            log.warning("while powering %s: %s", wanted, error)
        return False

    try:
        wait_until(is_settled, timeout, f"{board}: chassis power {wanted}", interval=pace.poll)
    except WaitTimeout:
        if trouble is not None:
            raise trouble from None
        raise PowerTimeout(board, wanted, time.monotonic() - started, refusal) from None


def patiently(ask: Callable[[], T], patience: float, what: str, log: logging.Logger) -> T:
    """The answer to ``ask``, which is asked again for ``patience`` seconds while the BMC cannot answer at the moment.

    :raises NoSessionNow, BmcBusy: still not.
    """
    trouble: NoSessionNow | BmcBusy | None = None
    deadline = time.monotonic() + patience
    again_at = 0.0

    def asked() -> tuple[T] | None:
        nonlocal trouble, again_at
        if time.monotonic() < again_at:
            return None
        try:
            return (ask(),)
        except PASSING as error:
            log.info("%s: asked again: %s", what, error)
            trouble = error
            wait = error.retry_after if isinstance(error, BmcBusy) else 0.0
            again_at = min(time.monotonic() + wait, deadline)
            return None

    try:
        return wait_until(asked, patience, what, interval=_ASK_AGAIN)[0]  # type: ignore[index]
    except WaitTimeout:
        assert trouble is not None
        raise trouble from None


def check_boot_device(device: str) -> None:
    """:raises UsageError: none that can be set."""
    if device not in BOOT_DEVICES:
        raise UsageError(f"boot device {device!r}: must be one of {', '.join(BOOT_DEVICES)}")


def printable(data: bytes | None) -> str:
    """A BMC's strings are whatever its maker, or an intruder, put there."""
    text = (data or b"").decode(errors="replace").replace("\r\n", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
