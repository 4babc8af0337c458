"""``xenlab --lab USER@HOST COMMAND``: a command at the machine of a lab, over SSH, in the name of the login there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from lab.base import processes
from lab.base.errors import BenchError, UsageError

OPTION = "--lab"
PROGRAM = "XENLAB_THERE"  # where xenlab is at the lab's machine, for its shell
SSH = "XENLAB_SSH"  # the ssh to take, with options
REACHED_AS = "XENLAB_REACHED_AS"  # USER@HOST: what the caller calls the lab's machine; only set there
_TOLD = ("XENLAB_LEASE", "XENLAB_BOARDS")  # what `reserve --shell` has set here, and commands there go by
_LAB = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*(?::\d{1,5})?")


def asked(words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The machine and the command, if the words begin with :data:`OPTION`. :raises UsageError: one is missing."""
    first, equals, value = (words[0] if words else "").partition("=")
    if first != OPTION:
        return None
    lab, rest = (value, words[1:]) if equals else (words[1] if len(words) > 1 else "", words[2:])
    if not _LAB.fullmatch(lab):
        raise UsageError(f"{OPTION} {lab}: must be HOST, USER@HOST or USER@HOST:PORT, or a name of ~/.ssh/config")
    if not rest:
        raise UsageError(f"{OPTION} {lab}: a command must follow, such as `xenlab {OPTION} {lab} who`")
    return lab, rest


def run(lab: str, words: Sequence[str]) -> int:
    """Run a command there, with this terminal; its exit status.

    :raises BenchError: SSH does not get there; it has said why.
    :raises UsageError: there is no xenlab there.
    """
    host, _, port = lab.partition(":")
    program = os.environ.get(PROGRAM, "xenlab")
    there = {name: os.environ[name] for name in _TOLD if name in os.environ} | {REACHED_AS: host}
    told = "".join(f"{name}={shlex.quote(value)} " for name, value in there.items())
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    command = [*shlex.split(os.environ.get(SSH, "ssh")), "-e", "none", *(["-t"] if is_terminal else ["-T"])]
    command += [*(["-p", port] if port else []), "--", host, f"{told}{program} {shlex.join(words)}"]
    try:
        status = subprocess.call(command, env=processes.environment(processes.NETWORK))
    except FileNotFoundError:
        raise UsageError(f"{command[0]} is not installed (Debian package openssh-client)") from None
    if status == 255:
        raise BenchError(f"{lab}: not reached over SSH; ssh says why above")
    if status == 127:
        raise UsageError(f"{lab}: there is no `{program}` there; {PROGRAM} says where it is")
    return status
