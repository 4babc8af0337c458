"""From "this build is wanted" to "this build answers, proved".

ansible-runner plays ``firmware/provision/deploy.yaml`` (to boards that boot by network, :mod:`lab.netboot` offers the
same); the proof asks the running hypervisor itself.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import ansible_runner

from lab import netboot
from lab.base import paths
from lab.base.errors import BenchError
from lab.builds import Build
from lab.inventory import BoardSpec, Lab
from lab.on_board import GUESTS, PYTHON
from lab.results.record import Evidence

log = logging.getLogger(__name__)

PLAYBOOK = paths.FIRMWARE / "provision" / "deploy.yaml"
TOOLS_INIT = PLAYBOOK.with_name("tools-init")
TOOLS = "usr/lib/xenlab/tools"
HYPERVISOR = "boot/xenlab/xen-under-test.gz"
ON_BOARD = (
    "__init__.py",
    "on_board/__init__.py",
    "on_board/stream.py",
    "on_board/proxy.py",
    "on_board/poke.py",
)  # of lab/: run in dom0 by its Python
DEPLOY_TIMEOUT = 300  # seconds
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be on a board."""

    build: Build
    xen_options: str = ""  # for this run, beside the lab's, the board's and the build's own
    payloads: Mapping[str, Path] = field(default_factory=dict)

    def command_line(self, board: BoardSpec) -> str:
        """Xen's options on this board, in the order in which later ones win."""
        return board.xen_command_line(self.build.recipe.xen_options, self.xen_options)

    def dom0_words(self, board: BoardSpec) -> str:
        """Options of dom0's kernel, beside those of the known-good entry."""
        return " ".join(filter(None, (board.dom0_options, self.tools_words())))

    def tools_words(self) -> str:
        """Options of dom0's kernel with which a build's own tools come in."""
        if not self.build.tools:
            return ""
        place = f"/{self.build.tools_place}:/{TOOLS}/{self.build.key}"
        return f"init=/usr/lib/xenlab/{TOOLS_INIT.name} xenlab_tools={place}"

    def options(self, board: BoardSpec) -> str:
        """All options of a boot on this board."""
        return f"{self.command_line(board)}\0{self.dom0_words(board)}"

    def files(self) -> dict[str, Path]:
        """What goes onto every board: path from its root -> local file."""
        found = {HYPERVISOR: self.build.xen}
        if self.build.tools:
            found[f"usr/lib/xenlab/{TOOLS_INIT.name}"] = TOOLS_INIT
            found |= {f"{TOOLS}/{self.build.key}/{name}": path for name, path in self.build.tool_files().items()}
        found |= {f"{GUESTS}/{name}".lstrip("/"): path for name, path in self.payloads.items()}
        found |= {f"{PYTHON}/lab/{name}".lstrip("/"): paths.PACKAGE / name for name in ON_BOARD}
        return found

    def digest(self, board: BoardSpec) -> str:
        """What names all of it, for the board to keep."""
        return _digest(self.options(board), self.checksums())

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each of :meth:`files`."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(self.files().items())}


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


def _digest(options: str, checksums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([options, dict(checksums)]).encode()).hexdigest()[:24]


def deploy(
    lab: Lab, boards: Sequence[BoardSpec], wanted: Wanted, directory: Path, *, ssh_words: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Copy everything onto the boards, side by side, and write their boot entry; nothing is rebooted.

    What goes to a board that boots by network is offered to it for its next boot. ``directory`` keeps Ansible's output.
    ``ssh_words`` are the options for reaching boards. Gives the files that changed on each board: none, when it had
    all of this already.

    :raises BenchError: a task failed; carries its words.
    """
    changed: dict[str, tuple[str, ...]] = {}
    for board in boards:
        if board.boot == "network":
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
            changed[board.name] = tuple(wanted.files()) if offered else ()
    boards = [board for board in boards if board.boot == "disk"]
    if not boards:
        return changed
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
        "xenlab_dom0_options": {board.name: wanted.dom0_words(board) for board in boards},
        "xenlab_tools": f"/{TOOLS}/{wanted.build.key}" if wanted.build.tools else "",
        "xenlab_tools_place": f"/{wanted.build.tools_place}" if wanted.build.tools else "",
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
    problem, copied = _play(
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
    for name in names:
        log.info("%s: %s", name, f"{len(copied[name])} files changed" if copied[name] else "nothing changed")
    return changed | copied


def prove(run: Callable[[str], str], board: BoardSpec, wanted: Wanted) -> Proof:
    """Ask the board what runs on it. ``run`` executes a shell command in dom0 and gives its output.

    The build id of the running Xen must be that of the build file; one that has none is told by its version and
    by the checksum of the file it was booted from. The kernel must be the one that the boot entry names, the running
    xenstored that of the toolstack which fits the hypervisor, and each file what was copied.
    """
    build, checksums, is_the_build = wanted.build, wanted.checksums(), False
    said = parse(text := run(_ask(checksums)))
    wrong = []

    def expect(what: str, found: str, right: str) -> None:
        if found != right:
            wrong.append(f"{what} is {found or 'not told'}, not {right}")

    if "xenlab.entry=under-test" not in said.get("dom0_cmdline", "").split():
        wrong.append("the known-good entry runs, not the one under test")
    else:
        if build.build_id:
            expect("build id of the running Xen", said.get("build_id", ""), build.build_id)
        else:
            expect("version of the running Xen", said.get("xen_version", ""), build.version)
        expect("dom0's kernel", said.get("release", ""), said.get("entry_kernel", said.get("release", "")))
        if build.tools:
            own = f"{TOOLS}/{build.key}/bin"
            expect("tools_xl, the xl for the running Xen,", said.get("tools_xl", ""), checksums[f"{own}/xl"])
            expect("the running xenstored", said.get("tools_xenstored", ""), checksums[f"{own}/xenstored"])
        expect("checksum of the hypervisor on disk", said.get(f"/{HYPERVISOR}", ""), build.sha256)
        is_the_build = not wrong
        expect("Xen's command line", said.get("xen_commandline", ""), wanted.command_line(board))
        if others := [name for name, checksum in checksums.items() if said.get(f"/{name}", "") != checksum]:
            wrong.append(f"{len(others)} of {len(checksums)} files are not what was copied, /{others[0]} for one")
        expect("what was deployed", said.get("deployed", ""), _digest(wanted.options(board), checksums))
    return Proof(board.name, time.time(), text, tuple(wrong), is_the_build)


def parse(text: str) -> dict[str, str]:
    """``key : value`` lines, as ``xl info`` has them; the first of each key."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            said.setdefault(key.strip(), value.strip())
    return said


def _ask(names: Iterable[str]) -> str:
    """What is run in dom0 for the proof: it prints ``key : value`` lines."""
    sums = 'sha256sum %s 2>/dev/null | while read -r sum name; do echo "%s : $sum"; done'
    return "\n".join(
        (
            "xl info",
            "echo dom0_cmdline : $(cat /proc/cmdline)",
            "echo deployed : $(cat /var/lib/xenlab/deployed 2>/dev/null)",
            # A board that boots by network has no such file: its kernel is the one that is served with the root.
            "sed -n 's,.*module2 /boot/vmlinuz-\\([^ ]*\\).*,entry_kernel : \\1,p' /boot/grub/custom.cfg 2>/dev/null",
            "read -r major </sys/hypervisor/version/major; read -r minor </sys/hypervisor/version/minor",
            "tools=/usr/lib/xen-$major.$minor/bin",
            # Debian knows the version of its own; what covers its folder for this boot names itself by its place.
            'echo tools : $(sed -n "s,^[^ ]* [^ ]* [^ ]* \\([^ ]*\\) /usr/lib/xen-$major.$minor .*,\\1,p" '
            "/proc/self/mountinfo) $(dpkg-query -W -f '${Package} ${Version}' xen-utils-$major.$minor 2>/dev/null)",
            sums % ("$tools/xl", "tools_xl"),
            sums % ("/proc/$(pidof xenstored)/exe", "tools_xenstored"),
            "grep -q xenlab.entry=under-test /proc/cmdline || exit 0",
            sums % (" ".join(shlex.quote(f"/{name}") for name in names), "$name"),
        )
    )


def _control_folder() -> Path:
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"xenlab-{os.getuid()}"  # short: a socket's path has room for 100
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _play(arguments: dict[str, Any]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Run the playbook with these arguments of ``ansible_runner.run``; what went wrong, or ""; files changed, by board.

    In a process of its own: ansible-runner forks for a terminal, and in a process with gRPC's threads the child
    of a fork was seen to die before it became Ansible.
    """
    environment = paths.environment()
    beside_python = str(Path(sys.executable).parent)  # ansible-playbook, also when no shell has set the way to it
    environment["PATH"] = f"{beside_python}{os.pathsep}{environment.get('PATH', os.defpath)}"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lab.provision"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        said, _ = process.communicate(json.dumps(arguments), timeout=DEPLOY_TIMEOUT + 60)
    except subprocess.TimeoutExpired:
        return "ansible-runner did not end", {}
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends with all it started
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    if process.returncode:
        return f"ansible-runner ended with status {process.returncode}: {said.strip()[-400:]}", {}
    answer = json.loads(said.splitlines()[-1])
    return str(answer["problem"]), {board: tuple(files) for board, files in answer["changed"].items()}


def main() -> None:
    """What :func:`_play` starts: arguments as JSON on stdin, the answer as JSON on stdout.

    Ends with the process that started it, however that ends, and takes all with it that Ansible started: nobody else
    may be at the board when the next one is. Ansible's workers have sessions of their own and outlive it, and with
    them an rsync that is at work; so this process is the one that orphans fall to.
    """
    signal.signal(signal.SIGTERM, _end_all)
    for what, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
        ctypes.CDLL(None).prctl(what, value)
    done: Any = ansible_runner.run(**json.load(sys.stdin), cancel_callback=lambda: False)  # else it takes SIGTERM
    good = done.status == "successful" and done.rc == 0
    sys.stdout.write(json.dumps({"problem": "" if good else _why(done), "changed": _changed(done)}) + "\n")


def _end_all(*_: object) -> NoReturn:
    """Kill the children, then those of theirs that became ours by it, until there are none; and end."""
    while pids := _children():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    os._exit(128 + signal.SIGTERM)


def _children() -> list[int]:
    """Those of this process, of whichever thread (``/proc/PID/task/TID/children``, proc(5))."""
    while True:
        try:
            tasks = Path("/proc/self/task").glob("*")
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except OSError:  # a thread that ended just then: its children are another's now
            continue


def _changed(done: Any) -> dict[str, list[str]]:
    """The files that rsync sent, by board."""
    found: dict[str, list[str]] = {}
    for event in done.events:
        result = event.get("event_data", {}).get("res", {})
        if event.get("event") == "runner_on_ok" and "rsync" in str(result.get("cmd", "")):
            lines = (str(line).split(maxsplit=1) for line in result["stdout_lines"])
            found[event["event_data"]["host"]] = [line[1] for line in lines if line[0].startswith("<f")]
    return found


def _why(done: Any) -> str:
    """What failed, in Ansible's words."""
    said = []
    for event in done.events:
        if event.get("event") in ("runner_on_failed", "runner_on_unreachable"):
            data = event.get("event_data", {})
            result = data.get("res", {})
            words = result.get("msg") or result.get("stderr") or json.dumps(result)
            words = f"status {result['rc']}: {words}" if result.get("rc") else words
            for key in ("stderr", "stdout"):
                if result.get(key) and result[key] not in words:
                    words += f" {result[key]}"
            said.append(f"{data.get('host')}: {data.get('task')}: {' '.join(str(words).split())[-400:]}")
    return "; ".join(said) or f"ansible-runner: {done.status}, status {done.rc}"


if __name__ == "__main__":
    main()
