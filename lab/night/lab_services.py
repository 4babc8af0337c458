"""Brings a lab up and down as a whole, and makes what its boards need: the image and the guest payloads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from lab.base import paths
from lab.base.errors import LabError, UsageError
from lab.base.wait import wait_until
from lab.grid import services
from lab.inventory import Lab


def prepare(lab: Lab, progress: Callable[[str], None]) -> None:
    """Make what every run in a lab needs: if boards are virtual, their QEMU and image; and the guest payloads.

    :raises BenchError: one of them cannot be made.
    """
    from lab.xen.payloads import build_payloads, kernel_roots

    if lab.is_virtual:
        from lab.virtual import emulator, image

        emulator.choose(progress)
        image.make(progress=progress)
    build_payloads(paths.cache() / "payloads", kernel_roots())


@contextmanager
def in_use(
    lab: Lab,
    *,
    progress: Callable[[str], None],
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> Iterator[None]:
    """Have the lab up within the block. A lab that was up before stays up; else it goes down at the end.

    ``phase`` times the two parts ``lab up`` and ``lab down``.

    :raises WaitTimeout: the lab is up, and a service of it does not come back.
    :raises UsageError, BenchError: as :func:`lab_up`.
    """
    directory = services.directory(lab)
    if services.status(directory).processes:  # a lab that is restarting one of its services is up, too
        what = f"lab {lab.name} whole (`xenlab lab status`)"
        wait_until(lambda: services.status(directory).is_up, services.START_TIMEOUT, what)
        progress("using the lab that is up")
        yield
        return
    with phase("lab up"):
        lab_up(lab, detach=False, progress=progress)
    try:
        yield
    finally:
        with phase("lab down"):
            lab_down(lab)


def lab_up(lab: Lab, *, detach: bool, progress: Callable[[str], None] | None = None) -> None:
    """Start boards (if they are virtual), coordinator, exporter and recorders.

    :raises UsageError: a port is taken.
    :raises BenchError: a part did not come up.
    """
    directory = services.directory(lab)
    with services.alone(directory, "up.lock", f"lab {lab.name}"):
        if services.status(directory).processes:
            raise UsageError(f"lab {lab.name} is up already; `xenlab lab status` shows it, `xenlab lab down` ends it")
        if lab.network_booted():
            from lab.virtual import served

            served.write(lab, progress=progress)
        if lab.is_virtual:
            from lab.virtual import boards

            boards.prepare(lab, directory / "boards", paths.state() / "lab" / "ssh", progress=progress)
            boards.start(lab, directory / "boards", owner=None if detach else os.getpid())
        try:
            services.start(lab, directory, detach=detach)
        except LabError:
            lab_down(lab)
            raise


def lab_shape(lab: Lab, name: str, shape: str) -> None:
    """Give a virtual board a shape of the inventory (no shape: its own), and power off all of its machine.

    :raises UsageError: no such board or shape.
    :raises BenchError: the lab is not up, or somebody has one of the boards.
    """
    from lab.grid import session
    from lab.virtual import boards

    directory = services.directory(lab)
    with session.acquire(lab, [board.name for board in boards.beside(lab, name)], directory):
        boards.reshape(lab, directory / "boards", name, shape)


def lab_down(lab: Lab) -> None:
    """Stop all services of the lab. Virtual boards lose power."""
    directory = services.directory(lab)
    services.stop(directory)
    if lab.is_virtual:
        from lab.virtual import boards

        boards.stop(directory / "boards")
