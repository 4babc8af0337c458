"""A playbook run by ansible-runner, in a process of its own that is given no secret."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import ansible_runner

from lab.base import processes

PLAY_TIMEOUT = 300  # seconds
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def play(arguments: Mapping[str, object]) -> tuple[str | None, dict[str, tuple[str, ...]]]:
    """Run a playbook with these arguments of ``ansible_runner.run``: what went wrong, and the files changed, by board.

    It runs in a process of its own: ansible-runner forks for a terminal, and in a process with gRPC's threads the
    child of a fork was seen to die before it became Ansible. ansible-runner notes its whole environment beside what
    Ansible said (``artifacts/*/command``), so it is given the variables that Ansible needs and no others.
    """
    environment = processes.environment(processes.PYTHON, processes.ANSIBLE)
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
        said, _ = process.communicate(json.dumps(arguments), timeout=PLAY_TIMEOUT + 60)
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
    return answer["problem"], {board: tuple(files) for board, files in answer["changed"].items()}


def main() -> None:
    """What :func:`play` starts: arguments as JSON on stdin, the answer as JSON on stdout.

    Ends with the process that started it, however that ends, and takes all with it that Ansible started: nobody else
    may be at the board when the next one is. Ansible's workers have sessions of their own and outlive it, and with
    them an rsync that is at work; so this process is the one that orphans fall to.
    """
    signal.signal(signal.SIGTERM, _end_all)
    for what, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
        ctypes.CDLL(None).prctl(what, value)
    done: ansible_runner.Runner = ansible_runner.run(
        **json.load(sys.stdin), cancel_callback=lambda: False
    )  # else it takes SIGTERM
    good = done.status == "successful" and done.rc == 0
    sys.stdout.write(json.dumps({"problem": None if good else _why(done), "changed": _changed(done)}) + "\n")


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


def _changed(done: ansible_runner.Runner) -> dict[str, list[str]]:
    """The files that rsync sent, by board."""
    found: dict[str, list[str]] = {}
    for event in done.events:
        result = event.get("event_data", {}).get("res", {})
        if event.get("event") == "runner_on_ok" and "rsync" in str(result.get("cmd", "")):
            lines = (str(line).split(maxsplit=1) for line in result["stdout_lines"])
            found[event["event_data"]["host"]] = [line[1] for line in lines if line[0].startswith("<f")]
    return found


def _why(done: ansible_runner.Runner) -> str:
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
