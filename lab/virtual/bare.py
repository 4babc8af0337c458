"""A virtual board's machine without BMC, recorder or labgrid: QEMU and a listener on its serial line.

For what must be known before a lab is up (which accelerator runs Xen), and as the yardstick of the lab's own cost.
"""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.base import processes
from lab.inventory import BoardSpec
from lab.virtual import qemu

UP = b"xenlab: dom0 is up"  # firmware/image/rc
MENU = b"GNU GRUB"


@contextmanager
def booted(
    board: BoardSpec,
    wiring: qemu.Wiring,
    *,
    timeout: float,
    silence: float | None = None,
    emulator: qemu.Emulator = qemu.OF_THE_MACHINE,
) -> Iterator[float | None]:
    """Power on, pick the menu's known-good entry, and wait for dom0; seconds it took, or None: it did not come up.

    ``timeout`` bounds the whole, ``silence`` the time without a byte on the serial line. The machine is gone
    afterwards.
    """
    assert board.virtual
    listeners = []
    for path in (wiring.uart, wiring.qmp):
        listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10.0)
        listeners.append(listener)
    started = time.monotonic()
    argv = qemu.arguments(board, board.virtual, wiring, emulator=emulator)
    with open(wiring.uart.with_suffix(".qemu.log"), "wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=processes.environment())
    uart: socket.socket | None = None
    stop = threading.Event()
    drain: threading.Thread | None = None
    try:
        try:
            uart, _ = listeners[0].accept()
            up = _follow(uart, started + timeout, silence)
        except OSError:
            up = False
        if up and uart:
            drain = threading.Thread(target=_drain, args=(uart, stop), daemon=True)
            drain.start()
        yield time.monotonic() - started if up else None
    finally:
        stop.set()
        process.kill()
        process.wait()
        if drain:
            drain.join(5.0)
        for each in [*listeners, *([uart] if uart else [])]:
            each.close()


def _follow(uart: socket.socket, deadline: float, silence: float | None) -> bool:
    seen, chosen = b"", False
    while (left := deadline - time.monotonic()) > 0:
        uart.settimeout(min(left, silence or left))
        data = uart.recv(65536)
        if not data:
            return False
        seen = seen[-200:] + data
        if not chosen and MENU in seen:
            uart.sendall(b"k")
            chosen = True
        if UP in seen:
            return True
    return False


def _drain(uart: socket.socket, stop: threading.Event) -> None:
    """Take what is printed, or the machine would stop at a full line."""
    uart.settimeout(None)
    while not stop.is_set():
        if select.select([uart], [], [], 0.2)[0] and not uart.recv(65536):
            return


def wiring(home: Path, kcs_port: int, link_peer_port: int = 0) -> qemu.Wiring:
    """A prepared board's folder, wired for a bare start."""
    return qemu.Wiring(
        disk=home / "disk.qcow2",
        variables=home / "uefi-variables.fd",
        seed=home / "seed.tar",
        uart=home / "uart.sock",
        qmp=home / "qmp.sock",
        profile=home / "profile.txt",
        kcs_port=kcs_port,
        link_peer_port=link_peer_port,
    )
