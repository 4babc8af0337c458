"""Putting a host to sleep and looking at it from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lab.base.errors import BenchError, WaitTimeout
from lab.base.wait import wait_until
from lab.grid import pulse
from lab.on_board.poke import POKE
from lab.xen.host import Host

REQUESTED = "xenlab: asks for S3"  # dom0 prints it right before it asks its kernel
# Said when each port that had a link before has one again, or after 10 s. Whoever connects before that leaves a
# connection behind that is tried again while the board goes to sleep the next time.
LINKED = "xenlab: its links are up"
_LINKS = "grep -lsx 1 /sys/class/net/*/carrier"
AWAKE = (
    f'i=0; until [ "$links" = "$({_LINKS})" ] || [ $((i += 1)) -gt 100 ]; do sleep 0.1; done; '
    f"echo '{LINKED}' > /dev/console"
)
# In the order xen/arch/x86/acpi/power.c enter_state() prints them.
ENTERING = "Entering ACPI S3 state."
FINISHING = "Finishing wakeup from ACPI S3 state."
BANNER = "Xen version "
# Xen's own words of a sleep that went wrong, its banner aside: arch/x86/acpi/power.c, common/cpu.c, smpboot.c, time.c,
# drivers/passthrough/vtd/iommu.c. "(XEN)" does not stand before each: some come without a newline before them.
TROUBLE = (
    "Some devices failed to power down",
    "Error taking CPU",
    "Error bringing CPU",
    "Error re-offlining CPU",
    "not coming back online",
    "Not coming online",
    "TSC warp detected",
    "unexpectedly wrapped",
    "IOMMU flush all failed",
)


@dataclass
class Night:
    """What was seen of one sleep. Times are seconds."""

    lines: list[str] = field(default_factory=list)
    entered: bool = False
    finished: bool = False
    rebooted: bool = False  # Xen's banner came instead of the wake-up
    seen_asleep: bool = False  # the board itself said so: BMC's ACPI power state
    answered: bool = False  # dom0, over its network, after waking
    voice: pulse.Voice | None = None  # what answered on the console where dom0 did not
    states: list[str] = field(default_factory=list)  # what the BMC said, with times
    asleep_seconds: float = 0.0  # from Entering to Finishing, by the console's clock
    suspend_seconds: float = 0.0  # from dom0's request to Entering: its drivers, Xen's domains and CPUs
    back_seconds: float = 0.0  # from Finishing to dom0 answering
    waited: float = 0.0  # for it to wake, at most

    def text(self) -> str:
        """For the evidence."""
        return "\n".join([*self.lines, *self.states])

    def figures(self) -> dict[str, float]:
        return {
            "suspend_s": self.suspend_seconds,
            "asleep_s": self.asleep_seconds,
            "resume_s": self.back_seconds,
        }

    def failure(self) -> str:
        """Why this was not a sleep and a waking up, the three ways to fail told apart; empty when it was one."""
        if not self.entered:
            return "never slept: Xen did not say that it enters S3"
        if self.rebooted:
            return "rebooted instead of waking: Xen's banner came where it should finish its wake-up"
        if not self.finished:
            return f"never woke: no word from Xen within {self.waited:.0f} s of being asleep"
        if not self.seen_asleep:
            return f"never slept: Xen said so, but the board was never in S3: {'; '.join(self.states)}"
        if not self.answered and self.voice is pulse.Voice.DOM0:
            return "woke without its network: dom0 answers on its console and not over SSH"
        if not self.answered:
            return "woke without its dom0: Xen finished its wake-up, but dom0 does not answer"
        if trouble := next((line for line in self.lines for words in TROUBLE if words in line), ""):
            return f"woke with trouble: {trouble}"
        return ""

    def check(self) -> None:
        """:raises AssertionError: :meth:`failure` has something to say."""
        assert not self.failure(), self.failure()


def suspend(
    host: Host,
    *,
    wake_after: int | None = None,
    by: Literal["rtc", "timer"] = "rtc",
    while_asleep: Callable[[], None] | None = None,
    timeout: float = 60.0,
) -> Night:
    """Put the host into S3 and have it woken; what came of it is in the answer, good or bad.

    ``wake_after`` seconds the RTC wakes it, set by hand or by a timer of dom0's kernel. ``while_asleep`` is done when
    the board is asleep, as its BMC says: to press its power button, for one. With neither nobody wakes it. A host that
    never woke or rebooted is left as it is: the rig power-cycles it for the next case.

    :raises MissingCapability: the BMC does not tell the ACPI power state.
    :raises BenchError: dom0 could not be told to sleep.
    """
    board = host.board
    board.power.sleep_state()
    night = Night(waited=(wake_after or 0) + timeout)
    mark = board.console.mark()
    sleep = "echo mem > /sys/power/state"
    if wake_after is None:
        command = f"echo 0 > /sys/class/rtc/rtc0/wakealarm; {sleep}"
    elif by == "rtc":
        command = f"rtcwake -m mem -s {wake_after}"
    else:
        log = "/run/xenlab/alarm.log"
        command = (
            f"rm -f {log}; {POKE} alarm {wake_after} > {log} & until grep -qs armed {log}; do sleep 0.1; done; {sleep}"
        )
    go = f"links=$({_LINKS}); sleep 0.3; echo '{REQUESTED}' > /dev/console; {command}; {AWAKE}"
    host.run(f"echo deep > /sys/power/mem_sleep; ({go}) >/run/xenlab/sleep.log 2>&1 &")
    try:
        with host.phase("sleep"):
            entering = board.console.wait_for(ENTERING, 30.0, since=mark)
        night.entered = True
    except WaitTimeout:
        return _close(night, board, mark)
    try:

        def asleep() -> bool:
            state = str(board.power.sleep_state())
            if not night.states or not night.states[-1].endswith(state):
                night.states.append(
                    f"BMC, {time.time() - entering.time:.1f} s after Entering: ACPI power state {state}"
                )
            return state == "S3"

        wait_until(asleep, 10.0, f"{host.name}: asleep", interval=0.1)
        night.seen_asleep = True
    except BenchError as error:
        night.states.append(str(error))
    if while_asleep is not None and night.seen_asleep:  # a power button does something else to one that is awake
        while_asleep()
        night.states.append(f"acted on {time.time() - entering.time:.1f} s after Entering")
    try:
        with host.phase("sleep"):
            woken = board.console.wait_for(f"{FINISHING}|{BANNER}", night.waited, since=entering.n + 1)
    except WaitTimeout:
        return _close(night, board, mark)
    night.rebooted = BANNER in woken.text
    night.finished = not night.rebooted
    night.asleep_seconds = woken.time - entering.time
    if night.finished:
        with contextlib.suppress(WaitTimeout), host.phase("sleep"):
            board.console.wait_for(LINKED, 20.0, since=woken.n)
        try:
            board.reconnect(timeout)
            night.answered = True
            night.back_seconds = time.time() - woken.time
        except BenchError as error:
            night.states.append(str(error))
            night.voice = pulse.listen(board.console)
    return _close(night, board, mark)


def _close(night: Night, board: object, mark: int) -> Night:
    lines = board.console.lines(mark)  # type: ignore[attr-defined]
    night.lines = [f"{line.time:.3f} {line.text}" for line in lines]
    times = {key: line.time for line in lines for key in (REQUESTED, ENTERING) if key in line.text}
    if len(times) == 2:
        night.suspend_seconds = times[ENTERING] - times[REQUESTED]
    return night
