"""The script of Xen's own hardware CI, as its tree has it, against a virtual board that boots by network.

    pytest tests/boards/test_xens_own_ci.py -p no:labgrid --slow --xen-tree PATH

PATH is a repository or a checkout of Xen. Nothing of it is changed. What Xen's CI has and a tree does not have is made
here: the folder ``binaries``, the runner's folder, which must be writable, and the login ``control@thor.testnet``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from conftest import CommandLine
from lab.base import paths
from lab.builds import make
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.virtual import image

sys.path.insert(0, str(Path(__file__).parents[1]))
import xens_binaries
from dom0 import Sshd

pytestmark = pytest.mark.slow  # not part of CI

FOLDER = Path("/scratch/gitlab-runner/tftp")  # as the script names it
SHIPPED = paths.CHECKOUT / "inventory" / "diskless.yaml"
BOARD, SPARE = "pxe1", "00:04.0"  # where lab.virtual.qemu puts the spare port
# What an emulated board needs of any Xen, and less memory than the script says before it, 4 GiB: later words win.
OPTIONS = "spec-ctrl=no iommu=no-sharept dom0_mem=1G,max:1G"
TIMEOUT = os.environ.get("TEST_TIMEOUT_OVERRIDE", "900")  # seconds for each word of the console; theirs are 120
WITHIN = 4 * int(TIMEOUT) + 120


@dataclass
class Job:
    """A run of the script that ended."""

    status: int
    seconds: float
    said: str
    folder: RunFolder

    @property
    def result(self) -> TestResult:
        (found,) = self.folder.results()
        return found

    def explain(self) -> str:
        return f"status {self.status} after {self.seconds:.0f} s; {self.result.reason}\n{self.said[-3000:]}"


@dataclass
class Runner:
    """The machine that runs Xen's CI: a checkout with ``binaries``, and its own ssh."""

    checkout: Path
    programs: Path
    jobs: Path  # the lab's run folders

    def run(self, variant: str, options: str = OPTIONS) -> Job:
        environment = os.environ | {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "CONSOLE_OPTS": "console=com1 com1=115200,8n1",
            "EXTRA_XEN_OPTS": options,
            "PCIDEV": SPARE,
            "TEST_TIMEOUT_OVERRIDE": TIMEOUT,
        }
        shutil.rmtree(self.checkout / "rootfs", ignore_errors=True)  # what a job leaves
        began = time.monotonic()
        done = subprocess.run(
            ["./automation/scripts/qubes-x86_64.sh", variant],
            cwd=self.checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=WITHIN,
            check=False,
        )
        newest = max(self.jobs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return Job(done.returncode, time.monotonic() - began, done.stdout, RunFolder.open(newest))


@pytest.fixture(scope="module")
def checkout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of Xen's tree a job needs, with its ``binaries``."""
    given = request.config.getoption("--xen-tree")
    if not given:
        pytest.skip("needs --xen-tree PATH, a repository or a checkout of Xen")
    for name, package in {"expect": "expect", "cpio": "cpio", "lspci": "pciutils"}.items():
        if not shutil.which(name):
            pytest.skip(f"needs {package}")
    if not os.access(FOLDER, os.W_OK):
        pytest.skip(f"needs the folder {FOLDER}, which this user may write to")
    tree = tmp_path_factory.mktemp("xen")
    archive = ["git", "-C", given, "archive", "HEAD", "automation", "tools/hotplug"]
    packed = subprocess.run(archive, check=True, capture_output=True, timeout=60).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True, timeout=60)
    xens_binaries.make(tree / "binaries", tree, make("upstream"), image.make().kernel_root)
    return tree


@pytest.fixture(scope="module")
def runner(checkout: Path, xenlab: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner, and a lab whose board has its folder."""
    place = tmp_path_factory.mktemp("runner")
    tree = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    tree["all"]["hosts"][BOARD]["xenlab"]["jobs"] = str(FOLDER)
    declared = place / "lab.yaml"
    declared.write_text(yaml.safe_dump(tree), encoding="utf-8")
    up = xenlab("lab", "up", "--inventory", str(declared), "--ports", "free", timeout=600)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        for name in ("host_key", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
            subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
        names = ("XDG_STATE_HOME", "PYTHONPATH", "PATH", "LC_ALL", "PYTHONPYCACHEPREFIX")
        given = [f"{name}={shlex.quote(xenlab.environment[name])}" for name in names if name in xenlab.environment]
        login = shlex.join([sys.executable, "-P", "-m", "lab.cli", "controller", BOARD, "--inventory", str(declared)])
        (place / "login").write_text(f"exec env {' '.join(given)} LG_USERNAME=xen-ci {login}\n")
        key = (place / "key.pub").read_text()
        (place / "authorized_keys").write_text(f'restrict,command="exec sh {place}/login" {key}')
        sshd = Sshd(place)
        host = " ".join((place / "host_key.pub").read_text().split()[:2])
        (place / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {host}\n")
        (place / "ssh_config").write_text(
            f"Host thor.testnet\n HostName 127.0.0.1\n Port {sshd.port}\n IdentityFile {place}/key\n"
            f" IdentitiesOnly yes\n BatchMode yes\n UserKnownHostsFile {place}/known_hosts\n"
        )
        (place / "bin").mkdir()
        ssh = place / "bin" / "ssh"  # the account `control` is this one
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -l "$(id -un)" -F {place}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        try:
            yield Runner(checkout, place / "bin", xenlab.state / "xenlab" / "jobs")
        finally:
            sshd.stop()
    finally:
        down = xenlab("lab", "down", "--inventory", str(declared), timeout=60)
        assert down.returncode == 0, down.stdout + down.stderr


@pytest.mark.parametrize(
    ("variant", "word"),
    [("dom0pv", "ping test passed"), ("s3", "suspend test passed"), ("pci-pv", "(domU) pci test passed")],
)
def test_a_job_of_xens_own_ci_passes(runner: Runner, variant: str, word: str) -> None:
    job = runner.run(variant)
    assert job.status == 0, job.explain()
    assert job.result.verdict is Verdict.PASS and job.folder.header().exit_status == 0, job.explain()
    assert "passed_after_s" in job.result.figures
    console = (job.folder.path / job.result.consoles[BOARD]).read_text(errors="replace")
    assert word in console and "Welcome to Alpine Linux" in console
    assert ("Finishing wakeup from ACPI S3 state" in console) == (variant == "s3")


def test_a_panic_ends_a_job_at_once(runner: Runner) -> None:
    """dom0's memory is too small for its kernel."""
    job = runner.run("dom0pv", OPTIONS.replace("1G,max:1G", "16M,max:16M"))
    assert job.status != 0 and "ERROR-EOF!" in job.said and "ERROR-Timeout!" not in job.said, job.explain()
    assert job.result.verdict is Verdict.FAIL and "Panic on CPU 0" in job.said, job.explain()
    assert f"xenlab: FAIL: {BOARD}: xen-panic: " in job.said, job.explain()
    case = ET.parse(job.folder.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None and case.find("failure") is not None
    stop = job.folder.header().finished
    assert stop is not None and stop - job.result.started - job.result.seconds < 60.0
