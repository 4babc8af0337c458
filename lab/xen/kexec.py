"""Crash a host into its crash kernel, and watch that from outside: by its console and by its BMC.

The crash kernel is dom0's own kernel with dom0's own initrd and root. In place of dom0's init it starts
``firmware/provision/crash-init``, which keeps what :mod:`lab.on_board.vmcore` finds, and reboots the board into the
build under test. So nothing has to be built for it, and every dom0 whose initrd obeys ``init=`` can have one.
"""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from lab.base.errors import NotProved
from lab.builds.elf import symbolise
from lab.console import crashes, patterns
from lab.console.client import ConsoleLine
from lab.grid import boot
from lab.grid.board import CommandResult
from lab.grid.strategy import ENTRY_ID
from lab.on_board.vmcore import FACTS, NOTES, Facts
from lab.xen.host import Host

DUMPS = "/var/crash/xenlab"  # on the board; a folder in it for each crash
LEAVES = r"Executing kexec image on cpu(\d+)"  # xen/common/kexec.c, one_cpu_only: on the way into every image
RUNS, DONE = "xenlab: the crash kernel runs", r"xenlab: the crash kernel is done, status (\d+)"  # crash-init
BANNER = r" Xen version \d"
# Seconds from one of these to the next; an emulated board of a busy machine took up to 150 s to its dom0.
LEAVES_LIMIT, RUNS_LIMIT, DONE_LIMIT, DOM0_LIMIT = 60.0, 240.0, 120.0, 480.0
BANNER_LIMIT = boot.MENU_TIMEOUT + boot.XEN_TIMEOUT  # from a reset on: firmware and boot loader
LOAD_LIMIT = 120.0
# Words of dom0's command line that are dom0's alone: its console is Xen's, and provisioning's words name its entry.
_DOM0S_OWN = ("console=", "init=", "xenlab", "BOOT_IMAGE=", "placeholder")
_REGISTERS = {"ttyS0": "0x3f8", "ttyS1": "0x2f8"}
_FACTS = pydantic.TypeAdapter(Facts)
_RESET = frozenset({"press-any-key", "grub-menu"})  # signatures of a board that was reset


# -- what is loaded ------------------------------------------------------------------------------------------------


def unload_crash_kernel(host: Host) -> None:
    """Have Xen forget its crash kernel, if it has one."""
    host.run("kexec -p -u", check=False)


def load_crash_kernel(host: Host) -> CommandResult:
    """Have ``kexec -p`` load dom0's own kernel as the crash kernel; what it answers.

    dom0's kernel and its initrd are where Debian has them.

    :raises BenchError: dom0 does not answer, or Xen's console is no serial port.
    """
    kept, port = host.run("cat /proc/cmdline").stdout.split(), _serial_port(host)
    words = [word for word in kept if not word.startswith(_DOM0S_OWN)]
    words += ["irqpoll", "nr_cpus=1", "reset_devices", "panic=10"]
    words += ["no_timer_check"]  # which an emulated board that is slow fails: then Linux panics
    words += ["init=/usr/lib/xenlab/crash-init", f"xenlab_next={ENTRY_ID}", f"xenlab_dump={_folder(host)}"]
    # So it is heard wherever it stops: in kexec's own code ("purgatory"), or early in Linux.
    words += [f"console={port}", f"earlyprintk=serial,{port}"]
    heard = f"--console-serial --serial={_REGISTERS[port.partition(',')[0]]} --serial-baud={port.partition(',')[2]}"
    return host.run(
        f"k=$(uname -r); kexec -p /boot/vmlinuz-$k --initrd=/boot/initrd.img-$k {heard} "
        f"--command-line={shlex.quote(' '.join(words))} || exit 1",  # its own 255 is also ssh's for a lost connection
        timeout=LOAD_LIMIT,
        check=False,
    )


def _serial_port(host: Host) -> str:
    """Linux's name and speed of the port on which Xen has its console: ``ttyS0,115200``.

    :raises NotProved: Xen's console is no serial port.
    Source: docs/misc/xen-command-line of Xen, com1 and console; the last of each counts.
    """
    options = host.info()["xen_commandline"]
    ports = re.findall(r"(?:^| )console=\S*?\bcom([12])", options)
    if not ports:
        raise NotProved(f"{host.name}: Xen's console is no serial port: {options}")
    speeds = re.findall(rf"(?:^| )com{ports[-1]}=(\d+)", options)
    return f"ttyS{int(ports[-1]) - 1},{speeds[-1] if speeds else 115200}"


def _folder(host: Host) -> str:
    """Where the crash of this boot is kept on the board's disk: a boot can crash only once."""
    return f"{DUMPS}/{host.run('cat /proc/sys/kernel/random/boot_id').stdout.strip()}"


# -- what is watched -----------------------------------------------------------------------------------------------


@dataclass
class Course:
    """What a host did after it was told to crash, as its console and its BMC tell it."""

    host: Host
    mark: int  # the console's record before it was told
    began: float = field(default_factory=time.time)
    looks: list[tuple[float, bool]] = field(default_factory=list)  # when the BMC was asked, and whether power was on
    _looks_before: dict[int, int] = field(
        default_factory=dict
    )  # a line that was waited for -> looks until it was there

    def wait(self, pattern: str, timeout: float, since: ConsoleLine | None = None) -> ConsoleLine:
        """The first console line that matches after ``since``; meanwhile the BMC is asked for the power.

        :raises ProductTimeout: there is none within ``timeout`` seconds.
        :raises BmcUnreachable: the BMC does not answer.
        """
        found, start, search = list[ConsoleLine](), since.n + 1 if since else self.mark, re.compile(pattern).search

        def is_there() -> bool:
            self._look()
            lines = self.host.board.console.lines(start)
            found.extend(line for line in lines if line.kind == "line" and search(line.text))
            return bool(found)

        self.host.expect(is_there, timeout, f"its console says '{pattern}'")
        self._looks_before.setdefault(found[0].n, len(self.looks))
        return found[0]

    def answer(self) -> None:
        """Wait until Linux answers over SSH. :raises ProductTimeout: it does not."""

        def answers() -> bool:
            self._look()
            return self.host.board.is_reachable()

        self.host.expect(answers, DOM0_LIMIT, "its Linux answers")
        self.host.board.reconnect()

    def _look(self) -> None:
        self.looks.append((time.time() - self.began, self.host.board.power.is_powered()))

    def lines(self) -> list[ConsoleLine]:
        return self.host.board.console.lines(self.mark)

    def text(self) -> str:
        """The console, for the evidence."""
        return "\n".join(f"{line.time:.3f} {line.text}" for line in self.lines())

    @property
    def is_always_on(self) -> bool:
        """Whether the BMC has reported the power on, as often as it was asked."""
        return all(is_on for _, is_on in self.looks)

    def power(self, looks: int | None = None) -> str:
        """What the BMC said, for the evidence; ``looks``: the first so many times that it was asked."""
        shown = self.looks[:looks]
        gap = max((late - early for (early, _), (late, _) in itertools.pairwise(shown)), default=0.0)
        off = [f"off {at:.1f} s after the order" for at, is_on in shown if not is_on]
        return "\n".join([f"asked {len(shown)} times, at most {gap:.1f} s apart", *(off or ["power was always on"])])

    def check(self, leaves: ConsoleLine, arrives: ConsoleLine) -> None:
        """Assert that between two lines nobody reset the board, and that its power was on until the second one.

        Later the board reboots by itself: what the BMC says of that does not count.
        """
        looks = self._looks_before.get(arrives.n, len(self.looks))
        was_on = all(is_on for _, is_on in self.looks[:looks])
        assert was_on, f"the BMC reports the power off: {self.power(looks)}"
        passed = [line.text for line in self.lines() if leaves.n < line.n <= arrives.n]
        told = [text for text in passed if (found := patterns.classify(text)) and found.name in _RESET]
        assert not told, f"the board was reset instead of starting what was loaded: {told[0].strip()}"


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash that the crash kernel has kept."""

    cpu: int  # on which Xen says that it leaves
    facts: Facts
    course: Course
    notes: str  # path on the board of the vmcore's notes
    crash_kernel_seconds: float  # from Xen's last line to the crash kernel's first program

    def functions(self, symbols: Path, cpu: int | None = None) -> tuple[str, ...]:
        """Functions on a processor's stack in the vmcore, innermost first; of the one that crashed if none is named.

        The first is where its note says that it was. Functions of calls that are over are among the others.
        ``symbols`` is the build's ``xen-syms``.
        """
        one = self.facts.cpus[self.cpu if cpu is None else cpu]
        # A call that never returns may be its function's end: the address behind it is another function's.
        found = [symbolise(one.rip, symbols), *(symbolise(address - 1, symbols) for address in one.stack)]
        return tuple(dict.fromkeys(name for name, _ in filter(None, found)))

    def told(self, symbols: Path) -> crashes.Crash | None:
        """The crash that the console tells; None if it tells of none."""
        lines = self.course.lines()
        for index, line in enumerate(lines):
            if (found := patterns.classify(line.text)) and found.kind == "crash":
                told = crashes.parse(found.name, patterns.crash_excerpt(lines, index))
                return crashes.with_symbols(told, symbols)
        return None


def crash(host: Host, order: Callable[[], object]) -> Crash:
    """Crash the host by ``order``, and follow it through its crash kernel to the dom0 that answers after that.

    :raises ProductTimeout: a step did not come in time.
    :raises AssertionError: the board was reset or switched off, or its crash kernel could not read the vmcore.
    :raises BenchError: what the crash kernel kept cannot be read.
    """
    kept, course = _folder(host), Course(host, host.board.console.mark())
    order()
    leaves = course.wait(LEAVES, LEAVES_LIMIT)
    runs = course.wait(f"{RUNS}|{BANNER}", RUNS_LIMIT, leaves)
    assert RUNS in runs.text, "the board was reset instead of starting what was loaded"
    done = course.wait(DONE, DONE_LIMIT, runs)
    course.wait(BANNER, BANNER_LIMIT, done)
    course.answer()
    course.check(leaves, runs)
    status, said = re.search(DONE, done.text), [line.text for line in course.lines() if runs.n < line.n < done.n]
    assert status and status[1] == "0", f"the crash kernel cannot read its vmcore: {' '.join(said)[-300:]}"
    number = re.search(LEAVES, leaves.text)
    facts = _FACTS.validate_json(host.run(f"cat {kept}/{FACTS}").stdout)
    return Crash(int(number[1]) if number else 0, facts, course, f"{kept}/{NOTES}", runs.time - leaves.time)
