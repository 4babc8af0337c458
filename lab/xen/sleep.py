"""Put a host into ACPI S3 and watch it from outside: by its console and by its BMC."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lab.base.errors import BenchError, WaitTimeout
from lab.base.wait import wait_until
from lab.console.client import ConsoleLine
from lab.grid import pulse
from lab.grid.board import Board
from lab.grid.ssh import until
from lab.on_board.poke import POKE
from lab.xen.host import Host

REQUESTED = "xenlab: asks for S3"  # dom0 prints this right before it asks its kernel
# dom0 prints this when each port that had a link before has one again, or after 10 s. Whoever connects earlier leaves
# a connection behind, which is retried while the board goes to sleep the next time.
LINKED = "xenlab: its links are up"
_LINKS = "grep -lsx 1 /sys/class/net/*/carrier"
_LINKS_LIMIT = 10.0  # seconds
_ALARM_LIMIT = 10.0  # seconds until a timer is armed; without it the board is not put to sleep
_AWAKE = "(" + until(f'[ "$links" = "$({_LINKS})" ]', _LINKS_LIMIT, interval=0.1) + f"); echo '{LINKED}' > /dev/console"
# In the order in which xen/arch/x86/acpi/power.c enter_state() prints them.
ENTERING = "Entering ACPI S3 state."
FINISHING = "Finishing wakeup from ACPI S3 state."
BANNER = "Xen version "
# What Xen prints when a sleep goes wrong, its banner aside: arch/x86/acpi/power.c, common/cpu.c, smpboot.c, time.c,
# drivers/passthrough/vtd/iommu.c. Some come without a newline before them, so "(XEN)" does not stand before each.
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
class Sleep:
    """What was seen of one sleep. Times are in seconds."""

    lines: list[str] = field(default_factory=list)
    entered: bool = False
    finished: bool = False
    rebooted: bool = False  # Xen's banner came instead of the wake-up
    seen_asleep: bool = False  # the BMC reported ACPI power state S3
    woke_early: bool = False  # and reported another state before the host was to be woken
    answered: bool = False  # dom0, over its network, after waking
    voice: pulse.Voice | None = None  # what answered on the console where dom0 did not
    states: list[str] = field(default_factory=list)  # what the BMC said, with times
    asleep_seconds: float = 0.0  # from Entering to Finishing, by the console's clock
    suspend_seconds: float = 0.0  # from dom0's request to Entering: its drivers, Xen's domains and CPUs
    back_seconds: float = 0.0  # from Finishing to the first answer of dom0
    waited: float = 0.0  # the limit within which it had to wake

    def text(self) -> str:
        """The console and the BMC's states, for the evidence."""
        return "\n".join([*self.lines, *self.states])

    def figures(self) -> dict[str, float]:
        return {
            "suspend_s": self.suspend_seconds,
            "asleep_s": self.asleep_seconds,
            "resume_s": self.back_seconds,
        }

    def failure(self) -> str | None:
        """What went wrong: the host never slept, rebooted, never woke, or woke with trouble. None: nothing."""
        if not self.entered:
            return "never slept: Xen did not say that it enters S3"
        if self.rebooted:
            return "rebooted instead of waking: Xen printed its banner instead of the end of its wake-up"
        if not self.finished:
            return f"never woke: Xen said nothing for {self.waited:.0f} s after it went to sleep"
        if not self.seen_asleep:
            return f"never slept: Xen said so, but the board was never in S3: {'; '.join(self.states)}"
        if self.woke_early:
            return f"woke by itself, before anybody woke it: {'; '.join(self.states)}"
        if not self.answered and self.voice is pulse.Voice.DOM0:
            return "woke without its network: dom0 answers on its console, but not over SSH"
        if not self.answered:
            return "woke without its dom0: Xen finished its wake-up, but dom0 does not answer"
        if trouble := next((line for line in self.lines for words in TROUBLE if words in line), None):
            return f"woke with trouble: {trouble}"
        return None

    def check(self) -> None:
        """:raises AssertionError: :meth:`failure` names one."""
        failure = self.failure()
        assert failure is None, failure


def suspend(
    host: Host,
    *,
    wake_after: int | None = None,
    by: Literal["rtc", "timer"] = "rtc",
    while_asleep: Callable[[], None] | None = None,
    asleep_for: float = 0.0,
    timeout: float = 60.0,
) -> Sleep:
    """Put the host into S3 and have it woken; the result says how it went, good or bad.

    After ``wake_after`` seconds the RTC wakes it, set by ``rtcwake`` or by a timer of dom0's kernel. ``while_asleep``
    is called when the BMC has reported for ``asleep_for`` seconds that the board is asleep; it may press the power
    button. It is not called if the board wakes before. With neither, nobody wakes the host. A host that never woke or
    that rebooted is left as it is: the rig power-cycles it for the next case.

    :param timeout: seconds beyond ``wake_after`` in which the host must wake, and then seconds for dom0 to answer; up
        to four times that on a slow board (:meth:`~lab.xen.dom0.Dom0.slowness`, measured before it sleeps).
    :raises MissingCapability: the BMC does not report the ACPI power state.
    :raises BenchError: dom0 could not be told to sleep.
    """
    board = host.board
    board.power.sleep_state()
    timeout *= host.slowness()  # of a dom0 that does not answer it cannot be measured
    sleep = Sleep(waited=(wake_after or 0) + timeout)
    mark = board.console.mark()
    _order(host, wake_after, by)
    if entering := _wait(host, ENTERING, 30.0, mark):
        sleep.entered = True
        _watch_asleep(host, sleep, entering, asleep_for)
        # The power button of a board that is awake would shut it down.
        if while_asleep is not None and sleep.seen_asleep and not sleep.woke_early:
            while_asleep()
            sleep.states.append(f"acted on {time.time() - entering.time:.1f} s after Entering")
        if woken := _wait(host, f"{FINISHING}|{BANNER}", sleep.waited, entering.n + 1):
            sleep.rebooted = BANNER in woken.text
            sleep.finished = not sleep.rebooted
            sleep.asleep_seconds = woken.time - entering.time
            if sleep.finished:
                _watch_back(host, sleep, woken, timeout)
    _note_lines(sleep, board, mark)
    return sleep


def _order(host: Host, wake_after: int | None, by: Literal["rtc", "timer"]) -> None:
    """Have dom0 ask its kernel for S3, in the background."""
    sleep = "echo mem > /sys/power/state"
    if wake_after is None:
        command = f"echo 0 > /sys/class/rtc/rtc0/wakealarm; {sleep}"
    elif by == "rtc":
        command = f"rtcwake -m mem -s {wake_after}"
    else:
        log = "/run/xenlab/alarm.log"
        command = (
            f"rm -f {log}; {POKE} alarm {wake_after} > {log} & "
            + until(f"grep -qs armed {log}", _ALARM_LIMIT, interval=0.1)
            + f"; {sleep}"
        )
    go = f"links=$({_LINKS}); sleep 0.3; echo '{REQUESTED}' > /dev/console; {command}; {_AWAKE}"
    host.run(f"echo deep > /sys/power/mem_sleep; ({go}) >/run/xenlab/sleep.log 2>&1 &")


def _wait(host: Host, pattern: str, timeout: float, since: int) -> ConsoleLine | None:
    """The first console line that matches, or None when there is none in time."""
    try:
        with host.phase("sleep"):
            return host.board.console.wait_for(pattern, timeout, since=since)
    except WaitTimeout:
        return None


def _watch_asleep(host: Host, sleep: Sleep, entering: ConsoleLine, asleep_for: float) -> None:
    """Note the BMC's states until it reports S3, at most 10 s, and from then on for ``asleep_for`` seconds."""

    def asleep() -> bool:
        state = str(host.board.power.sleep_state())
        if not sleep.states or not sleep.states[-1].endswith(state):
            sleep.states.append(f"BMC, {time.time() - entering.time:.1f} s after Entering: ACPI power state {state}")
        return state == "S3"

    try:
        wait_until(asleep, 10.0, f"{host.name}: asleep", interval=0.1)
        sleep.seen_asleep = True
        if asleep_for:
            wait_until(lambda: not asleep(), asleep_for, f"{host.name}: awake", interval=0.5)
            sleep.woke_early = True
    except WaitTimeout as error:
        if not sleep.seen_asleep:
            sleep.states.append(str(error))
    except BenchError as error:
        sleep.states.append(str(error))


def _watch_back(host: Host, sleep: Sleep, woken: ConsoleLine, timeout: float) -> None:
    """Wait for the links and then for dom0; listen to the console if dom0 does not answer."""
    _wait(host, LINKED, 20.0, woken.n)
    try:
        host.board.reconnect(timeout)
        sleep.answered = True
        sleep.back_seconds = time.time() - woken.time
    except BenchError as error:
        sleep.states.append(str(error))
        sleep.voice = pulse.listen(host.board.console)


def _note_lines(sleep: Sleep, board: Board, mark: int) -> None:
    lines = board.console.lines(mark)
    sleep.lines = [f"{line.time:.3f} {line.text}" for line in lines]
    times = {key: line.time for line in lines for key in (REQUESTED, ENTERING) if key in line.text}
    if len(times) == 2:
        sleep.suspend_seconds = times[ENTERING] - times[REQUESTED]
