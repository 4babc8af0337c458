"""What xenpm prints of frequencies and idle states, read; the text is of a virtual board under Xen 4.17.5."""

from __future__ import annotations

from typing import Any

import pytest

from lab.grid.ssh import CommandResult
from lab.xen import power

PARA = """cpu id               : 0
affected_cpus        : 0
cpuinfo frequency    : max [2600000] min [800000] cur [800000]
scaling_driver       : acpi-cpufreq
scaling_avail_gov    : userspace performance powersave ondemand
current_governor     : ondemand
  ondemand specific  :
    sampling_rate    : max [10000000] min [10000] cur [20000]
    up_threshold     : 80
scaling_avail_freq   : 2600000 2000000 1400000 *800000
scaling frequency    : max [1400000] min [800000] cur [800000]
turbo mode           : disabled or n/a

"""
IDLE = """All C-states allowed

cpu id               : 1
total C-states       : 4
idle time(ms)        : 66018
C0                   : transition [                5080]
                       residency  [               77733 ms]
C1                   : transition [                 436]
                       residency  [               15418 ms]
C2                   : transition [                2175]
                       residency  [                   1 ms]
C3                   : transition [                2468]
                       residency  [                   5 ms]

"""
STATES = """cpu id               : 0
total P-states       : 2
usable P-states      : 2
current frequency    : 800 MHz
P0         [2600 MHz]: transition [                   3]
                       residency  [                  12 ms]
*P1        [ 800 MHz]: transition [                   4]
                       residency  [                   7 ms]

"""


class Dom0:
    """Answers each command with one text, and keeps what was asked."""

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, list[str]()

    def run(self, command: str, **_: Any) -> CommandResult:
        self.asked.append(command)
        return CommandResult(command, 0, self.text, "", 0.0)


def test_a_cpus_frequency_is_read() -> None:
    assert power.frequency(Dom0(PARA), 0) == power.Frequency(
        driver="acpi-cpufreq",
        governor="ondemand",
        governors=("userspace", "performance", "powersave", "ondemand"),
        steps=(2600000, 2000000, 1400000, 800000),
        highest=1400000,
        lowest=800000,
        current=800000,
    )


def test_a_cpu_without_a_frequency_fails_the_case() -> None:
    with pytest.raises(AssertionError, match="no frequency of CPU 1: .*failed to get cpufreq parameter"):
        power.frequency(Dom0("[CPU1] failed to get cpufreq parameter\n"), 1)


def test_counts_are_read_by_state() -> None:
    assert power.idle_states(Dom0(IDLE), 1)["C3"] == power.State(2468, 5)
    assert power.deep_entries(Dom0(IDLE), 1) == 2175 + 2468
    assert power.frequency_states(Dom0(STATES), 0) == {
        "P0": power.State(3, 12, 2600000),
        "P1": power.State(4, 7, 800000),
    }


def test_each_cpu_gets_its_own_governor_back() -> None:
    dom0 = Dom0(PARA + PARA)
    with pytest.raises(ZeroDivisionError), power.governed(dom0, 2, "powersave"):
        raise ZeroDivisionError
    orders = [command for command in dom0.asked if "set-scaling-governor" in command]
    both = "xenpm set-scaling-governor 0 {0} && xenpm set-scaling-governor 1 {0}"
    assert orders == [both.format(name) for name in ("powersave", "ondemand")]


def test_frequencies_are_set_one_after_the_other() -> None:
    dom0 = Dom0("")
    power.set_frequency(dom0, [1], 800000, 2600000)
    assert dom0.asked == ["xenpm set-scaling-speed 1 800000 && xenpm set-scaling-speed 1 2600000"]


def test_registers_are_read_as_frequencies() -> None:
    assert power.registers(Dom0("  26   8\n"), 2) == (2600000, 800000)
