"""How the lab grows with its boards: all services and protocols are real, and the boards are simulated."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import yaml

from lab.base import paths
from lab.base.errors import BenchError
from lab.base.wait import wait_until
from lab.grid import services, supervisor
from lab.grid.coordinator import Coordinator
from lab.inventory import Lab
from lab.leases import queue
from lab.leases.ledger import Ledger
from lab.leases.records import Request
from lab.night import planning
from lab.night.planning import Case
from lab.reporting.figures import growth_svg
from lab.selfcheck.benchmarking import benchmark, note
from lab.virtual import simulated

SIZES = (10, 50, 100, 200)
CASES = 50  # of each board's night
ROUNDS = 5
LISTENING = 10.0  # seconds over which the recorders' CPU is counted
LIMIT = 300.0
BAUD = 115200
HOSTS = ("127.0.0.2", "127.0.0.3")  # the two lab hosts, each with an exporter
FEEDER = """\
import asyncio, sys
rate, ports = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]
line = b"(XEN) [2026-11-24 03:14:15.926] d1v0 a line as Xen prints them, at the speed of its serial port\\r\\n"
async def feed(reader, writer):
    loop, sent, begun = asyncio.get_running_loop(), 0, asyncio.get_running_loop().time()
    while True:
        due = int((loop.time() - begun) * rate) - sent
        if writer.is_closing():
            return
        writer.write((line * (due // len(line) + 1))[:due])
        sent += due
        await writer.drain()
        await asyncio.sleep(0.1)
async def main():
    for port in ports:
        await asyncio.start_server(feed, "127.0.0.1", port)
    print("feeding", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@benchmark(
    "scale",
    unit="",
    bar={
        "reserve_s_200": 2.0,
        "list_s_200": 0.5,
        "plan_s_200": 10.0,
        "recorders_cores_200": 1.0,
        "memory_mib_200": 8000.0,
    },
)
def scale() -> Mapping[str, float]:
    """200 simulated boards: to reserve, list, plan a night of 50 cases a board, and record consoles at 115200 baud."""
    found: dict[str, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
            lab = simulated.lab(Path(scratch) / "scale.yaml", size)
            folder = Path(scratch) / "lab"
            folder.mkdir()
            services.write_files(lab, folder)
            _two_hosts(folder)
            for name, value in _measure(lab, folder).items():
                found[f"{name}_{size}"] = value
    _draw(found)
    return found


def _two_hosts(folder: Path) -> None:
    """Half of the boards at each of two exporters, which say they are different hosts."""
    boards = list(yaml.safe_load((folder / "exporter.yaml").read_text(encoding="utf-8")).items())
    for number, half in enumerate((boards[::2], boards[1::2])):
        text = yaml.safe_dump(dict(half), sort_keys=False)
        (folder / f"exporter-{number}.yaml").write_text(text, encoding="utf-8")


def _measure(lab: Lab, folder: Path) -> dict[str, float]:
    kept = {service.name: service for service in supervisor.services(folder)}
    exporter = kept.pop("exporter")
    for number, host in enumerate(HOSTS):
        words = [exporter.command[0], "-c", lab.coordinator, "--name", f"host{number}", "--hostname", host]
        kept[f"exporter-{number}"] = supervisor.Service(
            f"exporter-{number}", [*words, f"exporter-{number}.yaml"], exporter.mark, folder
        )
    recorders = {name for name in kept if name.startswith("recorder-")}
    others = {name: one for name, one in kept.items() if name not in recorders}
    with _running(others):
        found = {"export_s": _seconds(lambda: _wait_exported(lab, list(others.values())))}
        found |= _coordinator(lab, folder)
        found["services_mib"] = sum(map(_memory_mib, others.values()))
    found["plan_s"] = _seconds(lambda: _plan(lab))
    with _fed(lab), _running({name: kept[name] for name in recorders}):
        ready = folder / "console"
        wait_until(lambda: len(list(ready.glob("*.ready"))) == len(recorders), LIMIT, "recorders")
        before = sum(_cpu_seconds(kept[name]) for name in recorders)
        wrote = sum(path.stat().st_size for path in ready.glob("*.jsonl*"))
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > LISTENING, 2 * LISTENING, "consoles")
        elapsed = time.monotonic() - started
        found["recorders_cores"] = (sum(_cpu_seconds(kept[name]) for name in recorders) - before) / elapsed
        grown = sum(path.stat().st_size for path in ready.glob("*.jsonl*")) - wrote
        if grown < len(recorders) * BAUD / 10 * elapsed * 0.9:  # records hold every byte and more
            raise BenchError(f"the consoles were not fed at {BAUD} baud: {grown} bytes recorded in {elapsed:.0f} s")
        found["memory_mib"] = found["services_mib"] + sum(_memory_mib(kept[name]) for name in recorders)
    return found


def _coordinator(lab: Lab, folder: Path) -> dict[str, float]:
    ledger = Ledger(folder)

    def listed() -> None:
        with closing(Coordinator(lab.coordinator)) as one:
            assert len(one.places()) == len(ledger.boards(lab.boards)) == len(lab.boards)

    def reserve() -> None:
        _give_back(ledger, [_held(ledger, _ask(ledger, needs=frozenset({"hvm", "iommu"})))])

    def reserve_pair() -> None:
        _give_back(ledger, [_held(ledger, _ask(ledger, needs=frozenset({"migration-pair"}), count=2))])

    found = {"list_s": statistics.median(_seconds(listed) for _ in range(ROUNDS))}
    found["reserve_s"] = statistics.median(_seconds(reserve) for _ in range(ROUNDS))
    found["reserve_pair_s"] = statistics.median(_seconds(reserve_pair) for _ in range(ROUNDS))
    started = time.monotonic()
    numbers = [_ask(ledger, names=(name,)) for name in lab.boards]
    for number in numbers:
        _held(ledger, number)
    found["reserve_all_s"] = time.monotonic() - started
    _give_back(ledger, numbers)
    return found


def _ask(ledger: Ledger, **wish: object) -> int:
    return ledger.ask(Request("person", "bench/one", 600.0, **wish))  # type: ignore[arg-type]


def _held(ledger: Ledger, number: int) -> int:
    wait_until(lambda: ledger.lease(number).boards, LIMIT, f"lease {number}", interval=0.02)
    return number


def _give_back(ledger: Ledger, numbers: list[int]) -> None:
    for number in numbers:
        ledger.end(number, "measured")
    wait_until(lambda: not ledger.leases(), LIMIT, "boards given back", interval=0.02)


def _plan(lab: Lab) -> None:
    """A night: so many cases for each board, a tenth of them for pairs."""
    count = CASES * len(lab.boards)
    cases = [Case(f"case{n}", "x", 2 if n % 10 == 0 else 1, ("iommu",) if n % 3 else ()) for n in range(count)]
    seconds = {case.nodeid: 10.0 + (index * 7919) % 300 for index, case in enumerate(cases)}
    planned = planning.plan(cases, queue.units(lab, frozenset(lab.boards)), "b", seconds)
    shares = [share for turns in planned.values() for turn in turns for share in turn]
    assert sum(len(share.cases) for share in shares) == count


def _wait_exported(lab: Lab, kept: list[supervisor.Service]) -> None:
    def is_exported() -> bool:
        for service in kept:
            service.keep()  # an exporter that was faster than its coordinator ends
        try:
            with closing(Coordinator(lab.coordinator)) as one, one.acting_as("bench/looks") as holder:
                return not any(holder.lacks(board) for board in lab.boards.values())
        except BenchError:
            return False

    wait_until(is_exported, LIMIT, "the exporters offer all boards")


@contextmanager
def _running(kept: Mapping[str, supervisor.Service]) -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = paths.environment()["PYTHONPATH"]
    try:
        for service in kept.values():
            service.keep()
        yield
        if ended := [name for name, one in kept.items() if one.process and one.process.poll() is not None]:
            raise BenchError(f"ended while they were measured: {', '.join(ended)}")
    finally:
        for service in kept.values():
            if service.process and service.process.poll() is None:
                service.process.terminate()
        for service in kept.values():
            service.end()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _fed(lab: Lab) -> Iterator[None]:
    """Something that talks at the far end of every console, as fast as the line goes."""
    ports = [str(board.console.port) for board in lab.boards.values()]
    with subprocess.Popen(
        [sys.executable, "-c", FEEDER, str(BAUD // 10), *ports], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as feeder:
        assert feeder.stdout and feeder.stdout.readline()
        try:
            yield
        finally:
            feeder.kill()


def _seconds(what: Callable[[], object]) -> float:
    started = time.monotonic()
    what()
    return time.monotonic() - started


def _cpu_seconds(service: supervisor.Service) -> float:
    assert service.process
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(service: supervisor.Service) -> float:
    """Its share of the memory (PSS): what processes have in common is counted once."""
    assert service.process
    text = Path(f"/proc/{service.process.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def _draw(found: Mapping[str, float]) -> None:
    folder = paths.state() / "bench"
    folder.mkdir(exist_ok=True)
    names = ("export_s", "list_s", "reserve_s", "reserve_pair_s", "reserve_all_s", "plan_s", "recorders_cores")
    lines = {name: [(float(size), found[f"{name}_{size}"]) for size in SIZES] for name in names}
    file = folder / "scale.svg"
    up = "seconds; cores for the recorders"
    file.write_text(growth_svg("scale: how it grows", lines, across="boards", up=up), encoding="utf-8")
    note(f"drawn in {file}")
