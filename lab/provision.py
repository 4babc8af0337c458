"""From "this build is wanted" to "this build answers, proved".

ansible-runner plays ``firmware/provision/deploy.yaml`` (to boards that boot by network, :mod:`lab.netboot` offers the
same); the proof asks the running hypervisor itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from lab import netboot, paths
from lab.builds import Build
from lab.errors import BenchError
from lab.inventory import BoardSpec, Lab
from lab.record import Evidence

log = logging.getLogger(__name__)

PLAYBOOK = paths.CHECKOUT / "firmware" / "provision" / "deploy.yaml"
GUESTS = "var/lib/xenlab/guests"
ON_BOARD = (
    "__init__.py",
    "xen/__init__.py",
    "xen/stream.py",
    "xen/proxy.py",
    "xen/poke.py",
)  # of lab/: run in dom0 by its Python
DEPLOY_TIMEOUT = 300  # seconds


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be on a board."""

    build: Build
    xen_options: str = ""  # for this run, beside the lab's, the board's and the build's own
    payloads: Mapping[str, Path] = field(default_factory=dict)

    def command_line(self, board: BoardSpec) -> str:
        """Xen's options on this board, in the order in which later ones win."""
        return board.xen_command_line(self.build.recipe.xen_options, self.xen_options)

    def files(self) -> dict[str, Path]:
        """What goes onto every board: path from its root -> local file."""
        found = {"boot/xenlab/xen-under-test.gz": self.build.xen}
        found |= {f"{GUESTS}/{name}": path for name, path in self.payloads.items()}
        found |= {f"usr/lib/xenlab/python/lab/{name}": paths.CHECKOUT / "lab" / name for name in ON_BOARD}
        return found

    def digest(self, board: BoardSpec) -> str:
        """What names all of it, for the board to keep."""
        whole = hashlib.sha256(f"{self.command_line(board)}\0{board.dom0_options}".encode())
        for name, path in sorted(self.files().items()):
            whole.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return whole.hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Proof:
    """What a running board said of itself, held against what was wanted."""

    board: str
    time: float
    said: str
    mismatches: tuple[str, ...]
    is_the_build: bool = False  # the build under test runs, if perhaps with other options or beside other payloads

    def as_evidence(self) -> Evidence:
        verdict = "; ".join(self.mismatches) or "as wanted"
        return Evidence("provision", f"{self.board}: {verdict}", self.said, self.time, self.board)


def deploy(lab: Lab, boards: Sequence[BoardSpec], wanted: Wanted, directory: Path, *, ssh_words: Sequence[str]) -> None:
    """Copy everything onto the boards, side by side, and write their boot entry; nothing is rebooted.

    What goes to a board that boots by network is offered to it for its next boot. ``directory`` keeps Ansible's output.
    ``ssh_words`` are the options for reaching boards.

    :raises BenchError: a task failed; carries its words.
    """
    for board in boards:
        if board.boot == "network":
            offered = netboot.publish(
                lab,
                board,
                wanted.files(),
                title=wanted.build.name,
                options=wanted.command_line(board),
                digest=wanted.digest(board),
            )
            log.info("%s: %s is offered%s", board.name, wanted.build.name, "" if offered else " already")
    boards = [board for board in boards if board.boot == "disk"]
    if not boards:
        return
    names = [board.name for board in boards]
    directory = directory / f"{time.strftime('%H%M%S', time.gmtime())}-{'-'.join(names)}-{os.getpid()}"
    staged = directory / "staged"
    for name, path in wanted.files().items():
        target = staged / "all" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for board in boards:
        (staged / "boards" / board.name / "boot" / "grub").mkdir(parents=True)
    digests = {board.name: wanted.digest(board) for board in boards}
    variables = {
        "xenlab_boards": ",".join(names),
        "xenlab_staged": str(staged),
        "xenlab_build": wanted.build.name,
        "xenlab_ssh": shlex.join(["ssh", *ssh_words]),
        "xenlab_xen_options": {board.name: wanted.command_line(board) for board in boards},
        "xenlab_dom0_options": {board.name: board.dom0_options for board in boards},
        "xenlab_digest": "{{ xenlab_digests[inventory_hostname] }}",
        "xenlab_digests": digests,
    }
    environment = {
        "ANSIBLE_SSH_ARGS": shlex.join([*ssh_words, "-o", "ControlMaster=auto", "-o", "ControlPersist=30"]),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(_control_folder()),
        "ANSIBLE_HOST_KEY_CHECKING": "true",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_HOME": str(paths.cache() / "ansible"),
        "ANSIBLE_TIMEOUT": "20",
    }
    log.info("deploying %s to %s", wanted.build.name, ", ".join(names))
    problem = _play(
        {
            "private_data_dir": str(directory),
            "project_dir": str(PLAYBOOK.parent),
            "playbook": PLAYBOOK.name,
            "inventory": str(lab.path),
            "extravars": variables,
            "envvars": environment,
            "limit": ",".join(names),
            "forks": len(names),
            "timeout": DEPLOY_TIMEOUT,
            "quiet": True,
            "suppress_env_files": True,
            "settings": {"idle_timeout": DEPLOY_TIMEOUT},
        }
    )
    if problem:
        raise BenchError(f"provisioning {', '.join(names)}: {problem} (all it said is in {directory})")
    shutil.rmtree(staged, ignore_errors=True)


def prove(run: Callable[[str], str], board: BoardSpec, wanted: Wanted) -> Proof:
    """Ask the board what runs on it. ``run`` executes a shell command in dom0 and gives its output.

    The build id of the running Xen must be that of the build file; one that has none is told by its version and
    by the checksum of the file it was booted from.
    """
    script = (
        "xl info; echo dom0_cmdline : $(cat /proc/cmdline); "
        "echo deployed : $(cat /var/lib/xenlab/deployed 2>/dev/null); "
        "echo image : $(sha256sum /boot/xenlab/xen-under-test.gz 2>/dev/null | cut -c1-64)"
    )
    text = run(script)
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            said.setdefault(key.strip(), value.strip())
    wrong = []

    def expect(what: str, found: str, right: str) -> None:
        if found != right:
            wrong.append(f"{what} is {found or 'not told'}, not {right}")

    build = wanted.build
    if "xenlab.entry=under-test" not in said.get("dom0_cmdline", "").split():
        wrong.append("the known-good entry runs, not the one under test")
    else:
        if build.build_id:
            expect("build id of the running Xen", said.get("build_id", ""), build.build_id)
        else:
            expect("version of the running Xen", said.get("xen_version", ""), build.version)
    expect("checksum of the hypervisor on disk", said.get("image", ""), build.sha256)
    is_the_build = not wrong
    if "xenlab.entry=under-test" in said.get("dom0_cmdline", "").split():
        expect("Xen's command line", said.get("xen_commandline", ""), wanted.command_line(board))
    expect("what was deployed", said.get("deployed", ""), wanted.digest(board))
    return Proof(board.name, time.time(), text, tuple(wrong), is_the_build)


def _control_folder() -> Path:
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"xenlab-{os.getuid()}"  # short: a socket's path has room for 100
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _play(arguments: dict[str, Any]) -> str:
    """Run the playbook with these arguments of ``ansible_runner.run``; what went wrong, or nothing.

    In a process of its own: ansible-runner forks for a terminal, and in a process with gRPC's threads the child
    of a fork was seen to die before it became Ansible.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lab.provision"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=paths.environment(),
    )
    try:
        said, _ = process.communicate(json.dumps(arguments), timeout=DEPLOY_TIMEOUT + 60)
    except subprocess.TimeoutExpired:
        return "ansible-runner did not end"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # its handler ends Ansible
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    if process.returncode:
        return f"ansible-runner ended with status {process.returncode}: {said.strip()[-400:]}"
    return str(json.loads(said.splitlines()[-1])["problem"])


def main() -> None:
    """What :func:`_play` starts: arguments as JSON on stdin, the answer as JSON on stdout."""
    done: Any = ansible_runner.run(**json.load(sys.stdin))
    good = done.status == "successful" and done.rc == 0
    sys.stdout.write(json.dumps({"problem": "" if good else _why(done)}) + "\n")


def _why(done: Any) -> str:
    """What failed, in Ansible's words."""
    said = []
    for event in done.events:
        if event.get("event") in ("runner_on_failed", "runner_on_unreachable"):
            data = event.get("event_data", {})
            result = data.get("res", {})
            words = result.get("msg") or result.get("stderr") or json.dumps(result)
            for key in ("stderr", "stdout"):
                if result.get(key) and result[key] not in words:
                    words += f" {result[key]}"
            said.append(f"{data.get('host')}: {data.get('task')}: {' '.join(str(words).split())[-400:]}")
    return "; ".join(said) or f"ansible-runner: {done.status}, status {done.rc}"


if __name__ == "__main__":
    main()
