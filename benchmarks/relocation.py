"""What the proxy in the stream costs, without boards. With boards: relocation-proxy-ratio, in boards.py."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lab.base import paths
from lab.base.errors import BenchError
from lab.on_board.stream import BATCH, Step
from lab.selfcheck.benchmarking import benchmark
from lab.xen.migration_matrix.fuzz import holes, made_up

MIB = 256
SPARSE = 16 * 1022  # records: as many as sixteen PVH guests have, so that the start of Python does not count
ROUNDS = 3
LIMIT = 1200.0  # seconds


@benchmark("relocation-proxy", unit="MB/s", better="higher")
def relocation_proxy() -> Mapping[str, float]:
    """A made-up stream of 256 MiB through the proxy into a pipe; through cat, for comparison; one that is all holes.

    Needs no board.
    """
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        stream, sparse, log = (Path(scratch) / name for name in ("stream", "sparse", "log"))
        with open(stream, "wb") as file:
            for _, data in made_up("pvh64", (range(MIB * 256),)):
                file.write(data)
        with open(sparse, "wb") as file:
            for step, data in made_up("pvh64", (range(BATCH),)):
                file.write(data)
                if step is Step.STATIC_DATA_END:
                    for first in range(0, SPARSE * BATCH, BATCH):
                        file.write(holes(range(first, first + BATCH))[1])
        drain = "cat > /dev/null"
        proxy = f"{sys.executable} -S -m lab.on_board.proxy --log {log}"
        found = {
            "proxy_mb_s": _speed(stream, f"{proxy} -- sh -c '{drain}'"),
            "proxy_with_a_fault_to_come_mb_s": _speed(stream, f"{proxy} --action cut@VERIFY -- sh -c '{drain}'"),
            "cat_mb_s": _speed(stream, f"cat | {drain}"),
            "proxy_of_holes_mb_s": _speed(sparse, f"{proxy} -- sh -c '{drain}'"),
        }
        if "LIBXL_END" not in log.read_text(encoding="ascii"):
            raise BenchError("the proxy did not see the whole stream")
    return found


def _speed(stream: Path, command: str) -> float:
    """Bytes of a file a second through a pipe into the command, in MB/s; the median of some."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        # `cat FILE | ...` is the point: the proxy's stdin is a pipe, as xl's is.
        subprocess.run(
            ["sh", "-c", f"cat {stream} | {command}"],
            check=True,
            timeout=LIMIT,
            env=paths.environment(),
            cwd=paths.CHECKOUT,
        )
        seconds.append(time.monotonic() - started)
    return stream.stat().st_size / 1e6 / statistics.median(seconds)
