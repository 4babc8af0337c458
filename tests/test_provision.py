"""The proof that a build runs, from what a board said; the board's words are those of a run with Xen 4.20."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import builds, inventory, provision
from lab.base import paths
from lab.base.wait import wait_until
from lab.builds import Recipe
from lab.inventory import ports
from lab.provision import deployment, playbook

BOARD = inventory.load(paths.CHECKOUT / "inventory" / "virtual.yaml").boards["virt1"]
FILES = 6 + len(provision.ON_BOARD)  # hypervisor, two inits, xl, xenstored, payload
SAID = """\
release                : 6.1.0-56-amd64
xen_version            : 4.20.5-pre
xen_commandline        : {options}
build_id               : 576c0736b3e38388c5afe9aaccc43a18d514e88e
dom0_cmdline : root=LABEL=xenlab-root console=hvc0 mitigations=off {words} xenlab.entry=under-test
deployed : {digest}
entry_kernel : 6.1.0-56-amd64
tools : /usr/lib/xenlab/tools/36b09379e51f5363
tools_xl : {xl}
tools_xenstored : {xenstored}
"""


@pytest.fixture
def wanted(tmp_path: Path) -> provision.Wanted:
    for name in ("xen.gz", "tools/bin/xl", "tools/bin/xenstored", "payload"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    recipe = Recipe("mine", builds.DebianBinary("xen-hypervisor-4.20-amd64", "", "trixie"))
    build = builds.Build(
        name="mine",
        key="36b09379e51f5363",
        directory=tmp_path,
        xen=tmp_path / "xen.gz",
        symbols=None,
        build_id="576c0736b3e38388c5afe9aaccc43a18d514e88e",
        version="4.20.4+63-g7abfd2bce2-0+deb13u1",
        config=None,
        log=tmp_path / "build.log",
        seconds=1.0,
        recipe=recipe,
        source="",
        sha256=hashlib.sha256(b"xen.gz").hexdigest(),
        tools=tmp_path / "tools",
    )
    return provision.Wanted(build, "sched=credit", {"payload": tmp_path / "payload"})


def _said(wanted: provision.Wanted) -> str:
    sums = wanted.checksums()
    own = "usr/lib/xenlab/tools/36b09379e51f5363/bin"
    text = SAID.format(
        options=wanted.command_line(BOARD),
        words=wanted.dom0_words(BOARD),
        digest=wanted.digest(BOARD),
        xl=sums[f"{own}/xl"],
        xenstored=sums[f"{own}/xenstored"],
    )
    return text + "".join(f"/{name} : {checksum}\n" for name, checksum in sums.items())


def test_a_board_that_is_as_wanted(wanted: provision.Wanted) -> None:
    proof = provision.prove(lambda _: _said(wanted), BOARD, wanted)
    assert proof.mismatches == ()
    assert proof.as_evidence().title == "virt1: as wanted"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (("build_id               : 576c", "build_id               : 1111"), "build id of the running Xen is 1111"),
        (("sched=credit", "sched=credit2"), "Xen's command line is com1="),
        (("release                : 6.1.0-56", "release                : 6.1.0-55"), "dom0's kernel is 6.1.0-55-amd64"),
        (("tools_xl : ", "tools_xl : 0"), "the xl for the running Xen, is 0"),
        (("tools_xenstored : ", "tools_xenstored : 0"), "the running xenstored is 0"),
        (
            ("/var/lib/xenlab/guests/payload : ", "x : "),
            f"1 of {FILES} files are not what was copied, /var/lib/xenlab/guests",
        ),
        (("deployed : ", "deployed : 0"), "what was deployed is 0"),
    ],
)
def test_what_is_not_as_wanted_is_named(wanted: provision.Wanted, change: tuple[str, str], wrong: str) -> None:
    proof = provision.prove(lambda _: _said(wanted).replace(*change), BOARD, wanted)
    assert len(proof.mismatches) == 1
    assert wrong in proof.mismatches[0]


def test_the_known_good_entry_is_no_proof_of_anything(wanted: provision.Wanted) -> None:
    said = _said(wanted).replace("xenlab.entry=under-test", "")
    assert provision.prove(lambda _: said, BOARD, wanted).mismatches == (
        "the known-good entry runs, not the one under test",
    )


def test_tools_come_in_by_the_kernels_command_line(wanted: provision.Wanted) -> None:
    assert wanted.dom0_words(BOARD) == (
        "mitigations=off init=/usr/lib/xenlab/tools-init "
        "xenlab_tools=/usr/lib/xen-4.20:/usr/lib/xenlab/tools/36b09379e51f5363"
    )
    assert wanted.checksums()["usr/lib/xenlab/tools/36b09379e51f5363/bin/xl"] == (
        hashlib.sha256(b"tools/bin/xl").hexdigest()
    )


PLAY = """\
import sys
from lab.provision.playbook import play
play({"private_data_dir": sys.argv[1], "playbook": sys.argv[2], "inventory": "localhost,", "quiet": True})
"""
PLAYBOOK = """\
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.command: {argv: [sleep, "%s"]}
"""


def test_nothing_goes_on_when_the_runner_is_killed(tmp_path: Path) -> None:
    """What Ansible's workers run has a session of its own: it must be ended, too, and at once."""
    seconds = str(600 + os.getpid() / 10**7)  # to be known by
    (tmp_path / "play.yaml").write_text(PLAYBOOK % seconds, encoding="utf-8")

    def runs() -> bool:
        return subprocess.run(["pgrep", "-xf", f"sleep {seconds}"], capture_output=True, check=False).returncode == 0

    words = [sys.executable, "-P", "-c", PLAY, str(tmp_path), str(tmp_path / "play.yaml")]
    runner = subprocess.Popen(words, env=paths.environment(), start_new_session=True)
    try:
        wait_until(runs, 60, "Ansible runs the command")
    finally:
        runner.kill()
        runner.wait()
    wait_until(lambda: not runs(), 3, "the command has ended")


WHERE = """\
- hosts: "{{ xenlab_boards }}"
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.assert: {that: ansible_port == 30020}
    - delegate_to: localhost
      ansible.builtin.assert: {that: ansible_port == 30020}
"""


def test_a_lab_with_other_ports_than_its_file_is_provisioned_there(tmp_path: Path, wanted: provision.Wanted) -> None:
    lab = ports.moved(inventory.load(paths.CHECKOUT / "inventory" / "virtual.yaml"), 30000)
    board = lab.boards["virt2"]
    assert board.ssh_port == 30020
    (tmp_path / "play.yaml").write_text(WHERE, encoding="utf-8")
    problem, _ = playbook.play(
        {
            "private_data_dir": str(tmp_path),
            "project_dir": str(tmp_path),
            "playbook": "play.yaml",
            "inventory": str(lab.path),
            "extravars": deployment._variables([board], wanted, tmp_path, ["-F", "none"]),
            "envvars": {"ANSIBLE_HOME": str(tmp_path / "ansible")},
            "quiet": True,
        }
    )
    assert problem is None
