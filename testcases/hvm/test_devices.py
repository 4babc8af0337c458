"""What Xen emulates of a machine for a PVH or HVM guest: a save and a relocation carry each device's state over."""

from dataclasses import replace
from pathlib import Path

import pytest

from lab.results.record import Check
from lab.xen.guests import payload
from lab.xen.migration import relocated
from lab.xen.migration_matrix import known_findings
from lab.xen.migration_matrix.one_board import on_one_board

pytestmark = pytest.mark.weekly  # full after ten runs in a row

# What the payload reports when it goes on, a line each (firmware/guests/README.md). A missing line is a failed check.
OF_PROCESSOR = (
    *("processor", "cr2", "time", "lapic", "lapic-count", "lapic-timer", "pending", "held", "mtrr", "mtrr-ranges"),
)
OF_BOARD = (
    *("ioapic", "pic", "pic-interrupt", "routes", "lines", "pit", "pit-interrupt", "clock", "clock-alarm", "pm"),
    *("hpet", "hpet-one-shot", "hpet-periodic", "hpet-level"),
)
OF_HYPERV = ("viridian", "viridian-control")
CHECKS = (*OF_PROCESSOR, *OF_BOARD, *OF_HYPERV)

# The local APIC has one timer, so each guest has another use of it.
ONE_SHOT, FIRED, PERIODIC, DEADLINE = 1, 2, 3, 4
GUESTS = {
    "hvm64": {"lapic": ONE_SHOT},
    "hvm32": {"lapic": PERIODIC, "fired": 1},
    "hvm64-viridian": {"lapic": PERIODIC, "viridian": 1},
    "pvh64": {"lapic": FIRED},
    "pvh64-x2apic": {"lapic": DEADLINE, "x2apic": 1},
    "pvh32": {"lapic": ONE_SHOT},
}
NEEDS = {"hvm64": ("hap", "qemu"), "hvm32": ("hap", "hvm32", "qemu"), "pvh64": ("hap",), "pvh32": ("hap", "hvm32")}
WAYS = ("save", "relocation", "checkpoint")
KNOWN = known_findings.read(
    Path(__file__).with_name("known.yaml"), [f"{way}-{guest}" for way in WAYS for guest in GUESTS], CHECKS
)


def those(*names):
    params = [pytest.param(name, marks=pytest.mark.needs(*NEEDS[name.partition("-")[0]])) for name in names]
    return pytest.mark.parametrize("name", params)


def programmed(host, name):
    """A guest that programs each device of Xen's. Of QEMU's devices it uses the lines of two, disk and USB."""
    kind, options = name.partition("-")[0], GUESTS[name]
    config = payload(host, kind, "devices,heartbeat", **options)
    more = {"usb": "1"} if kind.startswith("hvm") else {}
    if options.get("viridian"):
        more["viridian"] = '["all"]'
    return replace(config, more={**config.more, **more})


def assert_programmed(guest):
    """Each device holds what was written into it, before anything else happens."""
    failed = [f"{line.case}: {line.detail}" for line in guest.results(60.0).values() if line.outcome == "FAIL"]
    assert not failed, "; ".join(failed)


def assert_kept(way, name, guest, host, evidence):
    """All checks that the guest makes when it goes on are good, but for those that a known finding excuses."""
    guest.wait_for("^XL devices INFO", 120.0)
    evidence.console("guest console", guest)
    told = {line.case: line for line in guest.payload_lines() if hasattr(line, "case")}
    if (armed := told.get("armed")) is not None:
        evidence.unproved(f"the devices could not be set up: {armed.detail}")
    if "clock-alarm" in told and told["clock-alarm"].outcome == "INFO":
        evidence.unproved(told["clock-alarm"].detail)
    wanted = [*OF_PROCESSOR, *(OF_BOARD if name.startswith("hvm") else ())]
    wanted += OF_HYPERV if GUESTS[name].get("viridian") else ()
    known = KNOWN.of(host.info()["xen_version"], f"{way}-{name}")
    checks = []
    for check in wanted:
        line = told.get(check)
        is_good = line is not None and line.outcome == "PASS"
        said = line.detail if line else "the guest did not report it"
        checks.append(Check(check, is_good, said, None if is_good else known.get(check)))
        if is_good and check in known:
            evidence.add("known finding no longer shows", f"{known[check]} ({check})", kind="note")
    evidence.checked(checks)
    bad = [f"{check.name}: {check.said}" for check in checks if check.is_bad]
    assert not bad, "; ".join(bad)


@those(*GUESTS)
def test_devices_survive_save_and_restore(name, host, evidence):
    """`xl save` and `xl restore` keep each device of a guest: registers, running timers, interrupts that wait."""
    with host.domain(programmed(host, name)) as guest:
        assert_programmed(guest)
        with guest.saved() as path:
            guest.restore(path)
            assert_kept("save", name, guest, host, evidence)
            guest.beats(3)


@pytest.mark.needs("self-ssh")
@those(*GUESTS)
def test_devices_survive_a_relocation(name, host, evidence):
    """A live relocation keeps each device of a guest: registers, running timers, interrupts that wait."""
    source, destination = on_one_board(host)
    with source.domain(programmed(source, name)) as guest:
        assert_programmed(guest)
        with relocated(guest, destination, evidence.migration) as (there, _):
            assert_kept("relocation", name, there, host, evidence)
            there.beats(3)


@those("hvm64", "hvm32", "pvh64")
def test_devices_go_on_after_a_checkpoint(name, host, evidence):
    """A guest that `xl save -c` has saved and that runs on finds each device as it was; what runs has run on."""
    with host.domain(programmed(host, name)) as guest:
        assert_programmed(guest)
        with guest.saved(keep_running=True):
            assert_kept("checkpoint", name, guest, host, evidence)
            guest.beats(3)
