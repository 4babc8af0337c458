"""What looks like a broken hypervisor, and is the bench's doing. tests/boards/test_twins.py looks at the verdicts."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import inventory
from lab.grid import services
from lab.virtual import boards
from lab.xen.guests import payload

pytestmark = pytest.mark.quick
SEEN = "/var/tmp/xenlab-twin"
LOAD = 90  # seconds
SWAMPED = 150  # seconds


def order(host, fault):
    """Have the board's own daemon do it."""
    lab = inventory.load(Path(os.environ["TWINS_INVENTORY"]))
    boards.ask(lab, services.directory(lab) / "boards", host.name, f"fault {fault}")


def is_first(host):
    """Whether no attempt was here before."""
    if host.run(f"rm {SEEN}", check=False).status == 0:
        return False
    host.run(f"touch {SEEN}; sync")
    return True


@contextmanager
def hogs(count, seconds):
    """So many processes that do nothing but work, for so long at most."""
    work = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_network_is_off(host):
    """The management network goes away, and is not back before the known-good build was tried: MISS; then PASS."""
    if not is_first(host):
        return
    order(host, "network-off 400")
    host.run("true", timeout=60)


def test_serial_cable_is_off(host):
    """The console is awaited while its cable is out: MISS."""
    order(host, "serial-off 240")
    host.expect_console("nobody says this", 10.0, since=host.board.console.mark())


def test_bmc_lies(host):
    """The BMC says that it has switched the power, and has not, so that no boot comes: MISS."""
    order(host, "lie 120")
    host.board.strategy.reboot(entry="under-test")


def test_machine_is_busy(host, evidence):
    """The lab's machine has three times the work that it can do: PASS, only later."""
    with hogs(6, LOAD):
        for _ in range(3):
            with host.domain(payload(host, "pvh64", "memory", memory_mib=64)) as guest:
                assert guest.results(60.0)["memory"].outcome == "PASS"


def test_machine_is_swamped(host):
    """All other work of the lab's machine goes before the board, which then answers too late: MISS; then PASS."""
    if not is_first(host):
        return
    folder = services.directory(inventory.load(Path(os.environ["TWINS_INVENTORY"]))) / "boards" / host.name
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes()
        if b"qemu-system" in words and f"{folder}/".encode() in words:
            for task in (process / "task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), 19)
    with hogs(4 * len(os.sched_getaffinity(0)), SWAMPED):
        for _ in range(10):
            host.xl("list")
