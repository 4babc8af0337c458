"""Putting a host to sleep and looking at it from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lab.errors import BenchError, LabError, WaitTimeout
from lab.wait import wait_until
from lab.xen.host import Host

REQUESTED = "xenlab: asks for S3"  # dom0 prints it right before it asks its kernel
# In the order xen/arch/x86/acpi/power.c enter_state() prints them.
ENTERING = "Entering ACPI S3 state."
FINISHING = "Finishing wakeup from ACPI S3 state."
BANNER = "Xen version "


@dataclass
class Night:
    """What was seen of one sleep. Times are seconds."""

    lines: list[str] = field(default_factory=list)
    entered: bool = False
    finished: bool = False
    rebooted: bool = False  # Xen's banner came instead of the wake-up
    seen_asleep: bool = False  # the board itself said so: BMC's ACPI power state
    states: list[str] = field(default_factory=list)  # what the BMC said, with times
    asleep_seconds: float = 0.0  # from Entering to Finishing, by the console's clock
    suspend_seconds: float = 0.0  # from dom0's request to Entering: its drivers, Xen's domains and CPUs
    back_seconds: float = 0.0  # from Finishing to dom0 answering

    def text(self) -> str:
        """For the evidence."""
        return "\n".join([*self.lines, *self.states])

    def figures(self) -> dict[str, float]:
        return {
            "suspend_s": self.suspend_seconds,
            "asleep_s": self.asleep_seconds,
            "resume_s": self.back_seconds,
        }


def suspend(host: Host, *, wake_after: int | None, timeout: float = 60.0) -> Night:
    """Put the host into S3 and have it woken: by its RTC after ``wake_after`` seconds, or by its power button.

    Tells apart: never slept, rebooted instead, never woke. A host that never woke is power-cycled by the caller's rig.

    :raises BenchError: dom0 could not be told to sleep.
    """
    board = host.board
    night = Night()
    mark = board.console.mark()
    if wake_after is None:
        command = "echo 0 > /sys/class/rtc/rtc0/wakealarm; echo mem > /sys/power/state"
    else:
        command = f"rtcwake -m mem -s {wake_after}"
    go = f"sleep 0.3; echo '{REQUESTED}' > /dev/console; {command}"
    host.run(f"echo deep > /sys/power/mem_sleep; ({go}) >/run/xenlab/sleep.log 2>&1 &")
    try:
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

        wait_until(asleep, 5.0, f"{host.name}: asleep", interval=0.1)
        night.seen_asleep = True
    except LabError as error:
        night.states.append(str(error))
    if wake_after is None:
        board.power.press_power_button()
        night.states.append(f"power button pressed {time.time() - entering.time:.1f} s after Entering")
    try:
        woken = board.console.wait_for(f"{FINISHING}|{BANNER}", (wake_after or 0) + timeout, since=entering.n + 1)
    except WaitTimeout:
        return _close(night, board, mark)
    night.rebooted = BANNER in woken.text
    night.finished = not night.rebooted
    night.asleep_seconds = woken.time - entering.time
    board.reconnect()
    try:
        wait_until(lambda: board.is_reachable(), timeout, f"{host.name}: dom0 answers after waking")
        night.back_seconds = time.time() - woken.time
    except BenchError as error:
        night.states.append(str(error))
    return _close(night, board, mark)


def _close(night: Night, board: object, mark: int) -> Night:
    lines = board.console.lines(mark)  # type: ignore[attr-defined]
    night.lines = [f"{line.time:.3f} {line.text}" for line in lines]
    times = {key: line.time for line in lines for key in (REQUESTED, ENTERING) if key in line.text}
    if len(times) == 2:
        night.suspend_seconds = times[ENTERING] - times[REQUESTED]
    return night
