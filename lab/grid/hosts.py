"""The machines beside the lab machine that boards are cabled to, as OpenSSH's client reaches them.

Everything between the lab and a host goes over SSH. :mod:`lab.grid.host_link` holds one connection, which others share
by its control socket; where that is missing or full, ssh makes a connection of its own.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

from lab.base import paths
from lab.inventory import HostSpec

ALIVE = 5  # seconds between two questions whether the host is there; it is gone after three without an answer
CONNECT_TIMEOUT = 10  # seconds


def folder(host: HostSpec) -> Path:
    """Where the sockets of the connection to this host are: of mode 0700, with a short path."""
    name = hashlib.sha256(f"{paths.state()} {host.lab} {host.name}".encode()).hexdigest()[:12]
    made = paths.runtime() / f"host-{name}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made


def control(host: HostSpec) -> Path:
    """The control socket of the shared connection."""
    return folder(host) / "ssh"


def command(host: HostSpec, *words: str) -> list[str]:
    """ssh's argv for a command at the host; no secret may be in it. ``words`` stand before the host's name."""
    return ["ssh", "-F", str(_config(host)), *words, host.name]


def way(host: HostSpec) -> str:
    """ssh's ``ProxyCommand`` for what is reached from the host."""
    return f"ssh -F {shlex.quote(str(_config(host))).replace('%', '%%')} -o LogLevel=ERROR -W %h:%p {host.name}"


def program(host: HostSpec, *words: str) -> str:
    """The command line, for a shell there, that runs xenlab at the host."""
    return " ".join((host.program, "host", *words))  # names of labs, hosts and programs need no quotes


def _config(host: HostSpec) -> Path:
    """A configuration file for this host: its key and address, pinned host keys only, never a question."""
    known = " ".join(f'"{path}"' for path in paths.known_hosts())
    identity = Path(host.identity).expanduser() if host.identity else paths.ssh_key()
    lines = [
        f"Host {host.name}",
        f"HostName {host.address}",
        f"Port {host.port}",
        f"User {host.user}",
        f'IdentityFile "{identity}"',
        "IdentitiesOnly yes",
        "BatchMode yes",
        "PreferredAuthentications publickey",
        f"UserKnownHostsFile {known}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        "LogLevel INFO",  # else ssh does not say that the other side fell silent
        "KexAlgorithms ^curve25519-sha256",
        f"ConnectTimeout {CONNECT_TIMEOUT}",
        f"ServerAliveInterval {ALIVE}",
        "ServerAliveCountMax 3",
        "ControlMaster no",
        f'ControlPath "{control(host)}"',
        "StreamLocalBindUnlink yes",
        "ForwardAgent no",
    ]
    text = "\n".join(lines) + "\n"
    path = paths.state() / "lab" / "ssh" / "hosts" / f"{host.lab}.{host.name}"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    return path
