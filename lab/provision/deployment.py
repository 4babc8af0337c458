"""Everything that is wanted, copied onto boards by Ansible.

ansible-runner plays ``firmware/provision/deploy.yaml``. To boards that boot by network, :mod:`lab.netboot` offers the
same.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lab import netboot
from lab.base import paths
from lab.base.errors import BenchError
from lab.inventory import BoardSpec, Lab
from lab.provision.playbook import PLAY_TIMEOUT, play
from lab.provision.wanted import TOOLS, Wanted

log = logging.getLogger(__name__)

PLAYBOOK = paths.FIRMWARE / "provision" / "deploy.yaml"


def deploy(
    lab: Lab, boards: Sequence[BoardSpec], wanted: Wanted, directory: Path, *, ssh_words: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Copy everything onto the boards, side by side, and write their boot entry; nothing is rebooted.

    What goes to a board that boots by network is offered to it for its next boot. ``directory`` is a folder of the
    run: it gets a file with what Ansible said. ``ssh_words`` are the options for reaching boards. Gives the files that
    changed on each board: none, when it had all of this already.

    :raises BenchError: a task failed; carries its words.
    """
    changed = {board.name: _offer(lab, board, wanted) for board in boards if board.boot == "network"}
    boards = [board for board in boards if board.boot == "disk"]
    if not boards:
        return changed
    names = [board.name for board in boards]
    said = directory / f"{time.strftime('%H%M%S', time.gmtime())}-{'-'.join(names)}-{os.getpid()}.log"
    directory.mkdir(parents=True, exist_ok=True)
    log.info("deploying %s to %s", wanted.build.name, ", ".join(names))
    with tempfile.TemporaryDirectory(prefix="xenlab-deploy-") as scratch:
        staged, private = Path(scratch) / "staged", Path(scratch) / "runner"
        private.mkdir()
        _stage(staged, boards, wanted)
        problem, copied = play(
            {
                "private_data_dir": str(private),
                "project_dir": str(PLAYBOOK.parent),
                "playbook": PLAYBOOK.name,
                "inventory": str(lab.path),
                "extravars": _variables(boards, wanted, staged, ssh_words),
                "envvars": _settings(ssh_words),
                "limit": ",".join(names),
                "forks": len(names),
                "timeout": PLAY_TIMEOUT,
                "quiet": True,
                "suppress_env_files": True,
                "settings": {"idle_timeout": PLAY_TIMEOUT},
            }
        )
        _keep_output(private, said)
    if problem:
        raise BenchError(f"provisioning {', '.join(names)}: {problem} (all it said is in {said})")
    for name in names:
        log.info("%s: %s", name, f"{len(copied[name])} files changed" if copied[name] else "nothing changed")
    return changed | copied


def _offer(lab: Lab, board: BoardSpec, wanted: Wanted) -> tuple[str, ...]:
    """For a board that boots by network; the files, unless they were offered already."""
    offered = netboot.publish(
        lab,
        board,
        wanted.files(),
        title=wanted.build.name,
        options=wanted.command_line(board),
        dom0_options=wanted.tools_words(),
        digest=wanted.digest(board),
    )
    log.info("%s: %s is offered%s", board.name, wanted.build.name, "" if offered else " already")
    return tuple(wanted.files()) if offered else ()


def _stage(staged: Path, boards: Sequence[BoardSpec], wanted: Wanted) -> None:
    """The files for all boards as rsync takes them, and a folder a board for its own."""
    for name, path in wanted.files().items():
        target = staged / "all" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for board in boards:
        (staged / "boards" / board.name / "boot" / "grub").mkdir(parents=True)


def _variables(
    boards: Sequence[BoardSpec], wanted: Wanted, staged: Path, ssh_words: Sequence[str]
) -> dict[str, object]:
    """What the playbook calls ``xenlab_*``."""
    return {
        "xenlab_boards": ",".join(board.name for board in boards),
        "xenlab_staged": str(staged),
        # The inventory file has a lab's own ports; this lab's may be elsewhere (`--ports`).
        "ansible_port": "{{ xenlab_ports[inventory_hostname] }}",
        "xenlab_ports": {board.name: board.ssh_port for board in boards},
        "xenlab_build": wanted.build.name,
        "xenlab_ssh": shlex.join(["ssh", *ssh_words]),
        "xenlab_xen_options": {board.name: wanted.command_line(board) for board in boards},
        "xenlab_dom0_options": {board.name: wanted.dom0_words(board) for board in boards},
        "xenlab_tools": f"/{TOOLS}/{wanted.build.key}" if wanted.build.tools else "",
        "xenlab_tools_place": f"/{wanted.build.tools_place}" if wanted.build.tools else "",
        "xenlab_digest": "{{ xenlab_digests[inventory_hostname] }}",
        "xenlab_digests": {board.name: wanted.digest(board) for board in boards},
    }


def _settings(ssh_words: Sequence[str]) -> dict[str, str]:
    """Ansible's own settings, as environment variables."""
    return {
        "ANSIBLE_SSH_ARGS": shlex.join([*ssh_words, "-o", "ControlMaster=auto", "-o", "ControlPersist=30"]),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(paths.runtime()),
        "ANSIBLE_HOST_KEY_CHECKING": "true",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_HOME": str(paths.cache() / "ansible"),
        "ANSIBLE_TIMEOUT": "20",
    }


def _keep_output(private: Path, said: Path) -> None:
    """What Ansible printed goes into the run folder; ansible-runner's other notes hold its environment."""
    with open(said, "wb") as kept:
        for output in sorted(private.glob("artifacts/*/stdout")):
            kept.write(output.read_bytes())
