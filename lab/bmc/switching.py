"""What BMCs of all protocols share: power switched until it is seen switched, and the record of what was said."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.base.errors import BenchError, BmcRefused, BmcUnreachable, CommandFailed, PowerTimeout, UsageError, WaitTimeout
from lab.base.wait import wait_until

HISTORY_LENGTH = 200  # a board's test sends tens of commands; enough for the evidence of one case
BOOT_DEVICES = ("none", "pxe", "disk", "cdrom", "bios")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One command to a BMC and its answer, for the evidence."""

    time: float  # seconds since the epoch
    argv: tuple[str, ...]  # what was run, or method and URL; holds no secret
    status: int | None  # of the process, or HTTP's; None: did not end in time
    output: str  # stdout, then stderr; or the body
    seconds: float


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
    """Have the power ``on`` or ``off``: sent, and sent again, until it has been read as wanted for a while.

    Nothing is sent when it is so already. ``proof`` is another sign that it is as wanted: once it is true, a reading
    that agrees need not last.

    :raises PowerTimeout: it was not within ``timeout`` seconds.
    :raises BmcUnreachable, CommandFailed: no answer, neither at first nor at the deadline.
    :raises BmcRefused: at once; trying again would lock the user out.
    """
    started = time.monotonic()
    seen_since: float | None = None
    sent_at: float | None = None
    answered = False
    trouble: BenchError | None = None  # what went wrong in the last try, if it did

    def is_settled() -> bool:
        nonlocal seen_since, sent_at, answered, trouble
        try:
            is_wanted = is_powered() is (wanted == "on")
            answered, trouble, now = True, None, time.monotonic()
            if is_wanted:
                seen_since = now if seen_since is None else seen_since
                has_settled = sent_at is None or now - seen_since >= pace.settle
                return has_settled or (proof is not None and proof())
            seen_since = None
            if sent_at is None or now - sent_at >= pace.repeat_after:
                if sent_at is not None:
                    log.warning("still not %s %.1f s after it was told to: again", wanted, now - sent_at)
                sent_at = now
                command()
        except BmcRefused:
            raise
        except (BmcUnreachable, CommandFailed) as error:
            # BMCs fall silent for a moment while they switch; one that never spoke is dead.
            if not answered:
                raise
            seen_since, trouble = None, error
            log.warning("while powering %s: %s", wanted, error)
        return False

    try:
        wait_until(is_settled, timeout, f"{board}: chassis power {wanted}", interval=pace.poll)
    except WaitTimeout:
        if trouble is not None:
            raise trouble from None
        raise PowerTimeout(board, wanted, time.monotonic() - started) from None


def check_boot_device(device: str) -> None:
    """:raises UsageError: none that can be set."""
    if device not in BOOT_DEVICES:
        raise UsageError(f"boot device {device!r}: must be one of {', '.join(BOOT_DEVICES)}")


def printable(data: bytes | None) -> str:
    """A BMC's strings are whatever its maker, or an intruder, put there."""
    text = (data or b"").decode(errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
