"""The network that a virtual board without a disk boots from: ``unshare -rn python -m lab.virtual.segment``.

A network namespace of its own stands for the lab machine's port and the cable: in it the real dnsmasq and the lab's
HTTP server answer, as on a rack, and no process outside hears of it. It is made in a user namespace, so nobody needs
to be root; /dev/net/tun must be open to all, as udev leaves it. The board's end is a tap device, whose descriptor is
handed out over a socket: a descriptor belongs to no namespace. SSH comes in by a listener that was opened outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from lab import netboot
from lab.base import processes
from lab.base.errors import BenchError
from lab.inventory import BoardSpec, NetbootSpec
from lab.virtual.qemu import DIE_WITH_PARENT

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
DHCP_PORT = 67
START_TIMEOUT = 15.0  # seconds; half a second on an idle machine


class Segment:
    """The daemon's end: started before the board's first power-on, ended with the daemon."""

    def __init__(self, board: BoardSpec, spec: NetbootSpec, folder: Path, directory: Path) -> None:
        self._board, self._spec, self._folder, self._directory = board, spec, folder, directory
        self._process: asyncio.subprocess.Process | None = None
        self.tap = -1  # for QEMU to inherit

    async def start(self) -> None:
        """Make the network and wait until it serves.

        :raises BenchError: it cannot be made; carries the end of its log.
        """
        ours, theirs = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", self._board.ssh_port))
        command = ["unshare", "--user", "--map-root-user", "--net", *DIE_WITH_PARENT, sys.executable, "-P"]
        command += ["-m", "lab.virtual.segment", str(self._folder), self._spec.address, self._spec.interface]
        command += [self._board.nics["management"].address.split("/")[0], str(theirs.fileno()), str(listener.fileno())]
        log = self._directory / "segment.log"
        with ours, theirs, listener, open(log, "wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env=processes.environment(processes.PYTHON), pass_fds=(theirs.fileno(), listener.fileno()),
            )  # fmt: skip
            theirs.close()
            ours.settimeout(START_TIMEOUT)
            _, descriptors, *_ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
        if not descriptors:
            said = log.read_text(errors="replace").strip()[-600:]
            raise BenchError(f"{self._board.name}: the network it boots from did not come up: {said}")
        self.tap = descriptors[0]

    async def wait(self) -> int:
        """Until it ends, which by itself it does only when a part of it failed."""
        assert self._process
        return await self._process.wait()

    async def stop(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        if self.tap >= 0:
            os.close(self.tap)
            self.tap = -1


async def _inside(folder: Path, address: str, interface: str, board: str, handover: int, listener: int) -> int:
    tap = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI))
    for words in ("link set lo up", f"address add {address} dev {interface}", f"link set {interface} up"):
        subprocess.run(["ip", *words.split()], check=True, timeout=10, env=processes.environment())
    # In the foreground and as it is: here there is no other user to become.
    dnsmasq = ["dnsmasq", "--no-daemon", f"--conf-file={folder / 'dnsmasq.conf'}"]
    server = [sys.executable, "-P", "-m", "lab.netboot.server", str(folder), address.split("/")[0], str(netboot.PORT)]
    environment = processes.environment(processes.PYTHON)
    parts = [
        await asyncio.create_subprocess_exec(*DIE_WITH_PARENT, *command, env=environment)
        for command in (dnsmasq, server)
    ]
    ended = {asyncio.create_task(part.wait()) for part in parts}
    while not _is_served(folder):
        if (await asyncio.wait(ended, timeout=0.1, return_when=asyncio.FIRST_COMPLETED))[0]:
            return 1

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, board)

    await asyncio.start_server(forward, sock=socket.socket(fileno=listener))
    with socket.socket(fileno=handover) as outside:
        socket.send_fds(outside, [b"+"], [tap])
    await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    return 1


def _is_served(folder: Path) -> bool:
    """Whether the server listens, and somebody for DHCP, in this namespace."""
    listeners = Path("/proc/self/net/udp").read_text(encoding="ascii").splitlines()[1:]
    return (folder / netboot.SERVING).exists() and any(
        line.split()[1].endswith(f":{DHCP_PORT:04X}") for line in listeners
    )


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, board: str) -> None:
    """One SSH connection, both ways, until either side is gone."""
    with contextlib.suppress(OSError):
        far_reader, far_writer = await asyncio.open_connection(board, 22)
        ways = [asyncio.create_task(_copy(*way)) for way in ((reader, far_writer), (far_reader, writer))]
        await asyncio.wait(ways)
    writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 18):
            target.write(data)
            await target.drain()
    target.close()


def main() -> int:
    """Entry point: FOLDER, the lab machine's ADDRESS/PREFIX and INTERFACE, the board's address, two descriptors."""
    folder, address, interface, board, handover, listener = sys.argv[1:]
    try:
        return asyncio.run(_inside(Path(folder), address, interface, board, int(handover), int(listener)))
    except OSError as error:
        sys.stderr.write(f"{error}\n")  # no /dev/net/tun, or it may not be opened
        return 1


if __name__ == "__main__":
    sys.exit(main())
