"""A guest's network as its peers see it: a bridge in dom0, and echo requests that the guest answers or not."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator

from lab.base.errors import LabError
from lab.grid.ssh import Job
from lab.xen.dom0 import Dom0

BRIDGE = "xenlab0"
PERIOD = 0.1  # seconds between two requests
_ANSWER = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from ")


@contextlib.contextmanager
def bridge(host: Dom0, address: str) -> Iterator[str]:
    """Make a bridge with an address (``192.0.2.1/24``) in dom0 for guests' ports, until the end; yields its name."""
    host.run(
        f"modprobe bridge; ip link add {BRIDGE} type bridge forward_delay 0 && "
        f"ip addr add {shlex.quote(address)} dev {BRIDGE} && ip link set {BRIDGE} up"
    )
    try:
        yield BRIDGE
    finally:
        with contextlib.suppress(LabError):
            host.run(f"ip link del {BRIDGE}", check=False)


class Pinging:
    """Echo requests to an address, ten a second, until the block ends."""

    def __init__(self, host: Dom0, address: str) -> None:
        self.host, self.address = host, address
        self._job: Job | None = None

    def __enter__(self) -> Pinging:
        # A shell makes its background jobs ignore SIGINT, by which ping is ended.
        command = f"exec env --default-signal=INT stdbuf -oL ping -D -n -i {PERIOD} {shlex.quote(self.address)}"
        self._job = self.host.board.spawn(command)
        return self

    def __exit__(self, *_: object) -> None:
        if self._job:
            with contextlib.suppress(LabError):
                self._job.kill("INT")

    def answers(self) -> list[float]:
        """When each answer came, in seconds since the epoch by the host's clock."""
        return answered(self._job.output()) if self._job else []


def answered(text: str) -> list[float]:
    """The times of the answers in what ``ping -D`` prints (iputils)."""
    return [float(match[1]) for line in text.splitlines() if (match := _ANSWER.match(line))]


def silence(answers: list[float]) -> float:
    """The longest time without an answer, in seconds, beyond the period of the requests.

    :raises ValueError: fewer than two answers.
    """
    return max(after - before for before, after in itertools.pairwise(answers)) - PERIOD
