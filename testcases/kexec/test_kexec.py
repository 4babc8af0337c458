"""From Xen to another system, without firmware and boot loader between."""

import pytest

from lab.xen.guests import payload
from lab.xen.kexec import BANNER, BANNER_LIMIT, LEAVES, LEAVES_LIMIT, Course, boot_id, load_linux, load_xen, start

pytestmark = [pytest.mark.full, pytest.mark.needs("kexec")]


def started(host, evidence, loaded, arrives):
    """Start what ``kexec -l`` loaded, wait for its first words and until it answers; gives its command line."""
    evidence.add("kexec -l", loaded.stdout + loaded.stderr, board=host.name)
    assert loaded.status == 0, f"kexec -l refused: {(loaded.stderr or loaded.stdout).strip()}"
    before, course = boot_id(host), Course(host, host.board.console.mark())
    start(host)
    leaves = course.wait(LEAVES, LEAVES_LIMIT)
    first = course.wait(arrives, BANNER_LIMIT, leaves)
    course.check(leaves, first)
    course.answer()
    course.check(leaves, first)
    evidence.add("power, by the BMC", course.power(), kind="bmc", board=host.name)
    evidence.figure("first_words_s", first.time - leaves.time)
    assert boot_id(host) != before, "the same boot of dom0 answers"
    return host.run("cat /proc/cmdline").stdout.split()


def test_from_xen_to_linux(host, evidence):
    """kexec -e starts dom0's kernel without Xen: Linux has the machine, and Xen is gone."""
    words = started(host, evidence, load_linux(host, "xenlab.kexec=linux"), r"Linux version \d")
    assert "xenlab.kexec=linux" in words, f"Linux was started with: {' '.join(words)}"
    said = host.run("dmesg | grep -i -E 'hypervisor|paravirtualized'; ls /sys/hypervisor", check=False)
    evidence.add("what Linux says of a hypervisor", said.stdout + said.stderr, board=host.name)
    assert host.run("cat /sys/hypervisor/type", check=False).stdout.strip() != "xen", "Linux still runs on Xen"
    host.board.strategy.reboot(entry="under-test")
    host.board.reconnect()


def test_from_xen_to_xen(host, evidence, build):
    """kexec -e starts the hypervisor under test once more, and a new dom0 on it: a guest runs there."""
    words = started(host, evidence, load_xen(host, "xenlab.kexec=xen"), BANNER)
    assert "xenlab.kexec=xen" in words, f"dom0 was started with: {' '.join(words)}"
    info = host.info()
    evidence.add("xl info", "\n".join(f"{key}: {value}" for key, value in info.items()), board=host.name)
    if build.build_id:
        assert info["build_id"] == build.build_id, f"the new Xen has the build id {info['build_id']}"
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        guest.beats(5)
