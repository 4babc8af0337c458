"""Who a board is: its name, addresses and keys, as a tar.

A virtual board has it on its second disk; one that boots by network, virtual or not, gets it there. On other steel
the racker does the same by hand: the lab's public key into root's authorized_keys, the board's host key into the
lab's known_hosts, the peer's into the board's.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from lab.base import processes
from lab.inventory import BoardSpec, Lab

SECTOR = 512


def make_key(path: Path, comment: str) -> None:
    """An ed25519 key pair without passphrase at ``path`` and ``path``.pub, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
            check=True,
            capture_output=True,
            timeout=30,
            env=processes.environment(),
        )


def host_key(board: BoardSpec, keys: Path) -> Path:
    """The board's SSH host key; made once, so that it can be pinned before the first contact."""
    path = keys / f"host-{board.name}"
    make_key(path, board.name)
    return path


def _public(key: Path) -> str:
    return " ".join(key.with_suffix(".pub").read_text(encoding="ascii").split()[:2])


def known_hosts(lab: Lab, keys: Path) -> str:
    """The lab's known_hosts: each board that gets its identity from here, as the lab reaches it."""
    lines = []
    for board in lab.boards.values():
        if board.virtual or board.boot == "network":
            host = board.ssh_host if board.ssh_port == 22 else f"[{board.ssh_host}]:{board.ssh_port}"
            lines.append(f"{host} {_public(host_key(board, keys))}")
    return "\n".join(lines) + "\n"


def write_seed(path: Path, lab: Lab, board: BoardSpec, keys: Path) -> None:
    """The tar that is unpacked over the board's root: by its ``rc`` at its first boot, or by its initrd."""
    lab_key = keys / "id_ed25519"
    board_key = keys / "board_ed25519"  # one for all boards of the lab: dom0 to dom0, for live migration
    make_key(lab_key, "xenlab")
    make_key(board_key, "xenlab-board")
    peers = [peer for pair in lab.pairs() if board in pair for peer in pair]
    nics = []
    for role in ("management", "lab"):
        if (nic := board.nics.get(role)) and nic.address:
            nics.append(f"{nic.mac} {nic.address}")
    own = host_key(board, keys)
    hosts = ["127.0.0.1 localhost"]
    trusted = [f"localhost,127.0.0.1 {_public(own)}"]  # relocations to itself
    for peer in peers:
        address = peer.nics["lab"].address.split("/")[0] if "lab" in peer.nics else ""
        if address:
            hosts.append(f"{address} {peer.name}")
            trusted.append(f"{address},{peer.name} {_public(host_key(peer, keys))}")
    public_keys = lab_key.with_suffix(".pub").read_text() + board_key.with_suffix(".pub").read_text()
    files: list[tuple[str, str, int]] = [
        ("etc/hostname", board.name + "\n", 0o644),
        ("etc/hosts", "\n".join(hosts) + "\n", 0o644),
        ("etc/xenlab/seeded", "", 0o644),
        ("etc/xenlab/nics", "\n".join(nics) + "\n", 0o644),
        ("etc/ssh/ssh_host_ed25519_key", own.read_text(encoding="ascii"), 0o600),
        ("etc/ssh/ssh_host_ed25519_key.pub", own.with_suffix(".pub").read_text(encoding="ascii"), 0o644),
        ("root/.ssh/authorized_keys", public_keys, 0o600),
        ("root/.ssh/id_ed25519", board_key.read_text(encoding="ascii"), 0o600),
        ("root/.ssh/known_hosts", "\n".join(trusted) + "\n", 0o600),
    ]
    path.touch(mode=0o600)
    with tarfile.open(path, "w") as tar:
        for name, text, mode in files:
            info = tarfile.TarInfo(name)
            data = text.encode()
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    with open(path, "ab") as padded:  # a disk has whole sectors
        padded.write(bytes(-padded.tell() % SECTOR))
