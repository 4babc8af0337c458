"""The build under test boots, and it is the build that was wanted."""

import pytest

from lab.inventory.capabilities import OF_THE_BUILD
from lab.xen.dom0 import added

pytestmark = [pytest.mark.quick, pytest.mark.cold]


def test_build_under_test_runs(host, build, evidence):
    """The running hypervisor has the build id of the build file; dom0 runs, and Xen counts the machine's memory."""
    info = host.info()
    evidence.add("xl info", "\n".join(f"{key}: {value}" for key, value in info.items()), board=host.name)
    assert info["build_id"] == build.build_id, f"Xen has build id {info['build_id']}, wanted {build.build_id}"
    assert int(info["total_memory"]) > 1024, f"Xen counts {info['total_memory']} MiB in the machine"
    assert host.domains() == {}, "guests exist right after boot"


def test_nothing_that_the_board_can_do_is_lost(host, evidence):
    """Under this build the board has every capability that its inventory entry declares.

    A lost capability would make the cases that need it SKIP unnoticed. Capabilities that depend on the build's
    configuration do not count.
    """
    evidence.add("xl dmesg", host.boot_log(), board=host.name)
    lost = sorted(host.lacking - OF_THE_BUILD)
    assert not lost, f"{host.name} declares {', '.join(lost)}: this build lost that, or the inventory is wrong"


def test_hypervisor_log_is_clean(host, evidence):
    """Xen's boot log has no crash, no failed assertion, no undefined behaviour and no warning of Xen."""
    log = host.boot_log()
    log += added(log, host.xl("dmesg").stdout)
    if "Xen version" not in log:
        evidence.unproved("Xen's console ring no longer has the beginning of the boot")
    words = ("Xen WARN", "Xen BUG", "Assertion '", "UBSAN: ")
    bad = [line for line in log.splitlines() if any(word in line for word in words)]
    evidence.add("xl dmesg", log, board=host.name)
    assert not bad, bad[0]
