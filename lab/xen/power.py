"""Frequencies (P-states) and idle states (C-states) of a host's CPUs, as ``xenpm`` tells and sets them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lab.on_board.poke import POKE
from lab.xen.dom0 import Toolstack

# Where the capability ``frequency-register`` is (firmware/acpi/power.asl): a byte for each CPU, which holds its
# frequency in the unit; and one that the firmware reads for _PPC.
REGISTERS, LIMIT, UNIT = 0xE0, 0xE3, 100_000  # ports; kHz
UPLOADER = "xen-acpi-processor"  # the driver of dom0 that reads the firmware's tables and tells Xen

_LINE = re.compile(r"(?m)^([a-z_ ]+?)\s*: (.*)$")
_LIMITS = re.compile(r"max \[(\d+)\] min \[(\d+)\] cur \[(\d+)\]")
_STATE = re.compile(r"(?m)^\*?([PC]\d+)\s*(?:\[ *(\d+) MHz\])?: transition \[ *(\d+)\]\n\s+residency  \[ *(\d+) ms\]")


@dataclass(frozen=True, slots=True)
class Frequency:
    """``xenpm get-cpufreq-para`` of a CPU. Frequencies are in kHz."""

    driver: str
    governor: str
    governors: tuple[str, ...]
    steps: tuple[int, ...]  # that it has, the highest first
    highest: int  # that the governor may set now
    lowest: int
    current: int


@dataclass(frozen=True, slots=True)
class State:
    """What ``xenpm`` counts of one state of a CPU."""

    entries: int
    residency_ms: int
    khz: int = 0  # of a frequency


def frequency(toolstack: Toolstack, cpu: int) -> Frequency:
    """:raises AssertionError: xenpm says none."""
    text = toolstack.run(f"xenpm get-cpufreq-para {cpu} 2>&1", check=False).stdout
    said = dict(_LINE.findall(text))
    limits = _LIMITS.search(said.get("scaling frequency", ""))
    assert limits, f"xenpm says no frequency of CPU {cpu}: {text.strip() or 'nothing'}"
    return Frequency(
        driver=said.get("scaling_driver", ""),
        governor=said.get("current_governor", "").strip(),
        governors=tuple(said.get("scaling_avail_gov", "").split()),
        steps=tuple(int(word) for word in said.get("scaling_avail_freq", "").replace("*", "").split()),
        highest=int(limits[1]),
        lowest=int(limits[2]),
        current=int(limits[3]),
    )


def frequency_states(toolstack: Toolstack, cpu: int) -> Mapping[str, State]:
    """``xenpm get-cpufreq-states`` of a CPU, by state: P0 is the highest frequency."""
    return _states(toolstack.run(f"xenpm get-cpufreq-states {cpu}").stdout)


def idle_states(toolstack: Toolstack, cpu: int) -> Mapping[str, State]:
    """``xenpm get-cpuidle-states`` of a CPU, by state: C0 is that it runs, C1 that it is halted."""
    return _states(toolstack.run(f"xenpm get-cpuidle-states {cpu}").stdout)


def deep_entries(toolstack: Toolstack, cpu: int) -> int:
    """How often a CPU has entered a state deeper than C1."""
    return sum(state.entries for name, state in idle_states(toolstack, cpu).items() if int(name[1:]) > 1)


def _states(text: str) -> dict[str, State]:
    return {
        name: State(int(entries), int(residency), int(mhz or 0) * 1000)
        for name, mhz, entries, residency in _STATE.findall(text)
    }


def set_frequency(toolstack: Toolstack, cpus: Iterable[int], *frequencies: int) -> None:
    """Have these CPUs run at these frequencies (kHz), one after the other. For the governor ``userspace``."""
    orders = [f"xenpm set-scaling-speed {cpu} {khz}" for khz in frequencies for cpu in cpus]
    toolstack.run(" && ".join(orders))


@contextlib.contextmanager
def governed(toolstack: Toolstack, cpus: int, governor: str) -> Iterator[None]:
    """Within the block the first ``cpus`` CPUs have this governor; afterwards each has its own again."""
    said = toolstack.run("xenpm get-cpufreq-para").stdout
    before = [line.strip() for key, line in _LINE.findall(said) if key == "current_governor"][:cpus]
    try:
        _set_governors(toolstack, [governor] * cpus)
        yield
    finally:
        _set_governors(toolstack, before)


def _set_governors(toolstack: Toolstack, names: Sequence[str]) -> None:
    toolstack.run(" && ".join(f"xenpm set-scaling-governor {cpu} {name}" for cpu, name in enumerate(names)))


def limit(toolstack: Toolstack, cpu: int, step: int) -> str:
    """Tell Xen that the platform allows a CPU no frequency above this step (_PPC); its answer."""
    return toolstack.run(f"{POKE} frequency-limit {cpu} {step}").stdout.strip()


@contextlib.contextmanager
def limited_by_firmware(toolstack: Toolstack, step: int) -> Iterator[None]:
    """Within the block _PPC answers this step, and dom0 has told Xen so. Needs ``frequency-register``."""
    try:
        write_port(toolstack, LIMIT, step)
        upload(toolstack)
        yield
    finally:
        write_port(toolstack, LIMIT, 0)
        upload(toolstack)


def upload(toolstack: Toolstack) -> None:
    """Have dom0 read the firmware's tables anew, and tell Xen."""
    toolstack.run(f"modprobe -r {UPLOADER} && modprobe {UPLOADER}")


def registers(toolstack: Toolstack, cpus: int) -> tuple[int, ...]:
    """The frequency in the register of each of the first ``cpus`` CPUs, in kHz. Needs ``frequency-register``."""
    read = f"dd if=/dev/port bs=1 skip={REGISTERS} count={cpus} status=none | od -An -v -tu1"
    return tuple(int(word) * UNIT for word in toolstack.run(read).stdout.split())


def write_port(toolstack: Toolstack, port: int, value: int) -> None:
    """Write a byte to an I/O port."""
    word = f"\\{value:03o}"
    toolstack.run(f"printf '{word}' | dd of=/dev/port bs=1 seek={port} conv=notrunc status=none")
