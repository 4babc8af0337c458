"""What the lab costs on top of the boards, and how long a run takes. Measured on virtual boards."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError
from lab.grid.ssh import Ssh
from lab.inventory import BoardSpec, Lab
from lab.night.nightly import DEFAULT_BUILD
from lab.night.options import VIRTUAL_LAB
from lab.selfcheck.benchmarking import benchmark, note
from lab.virtual import bare, boards
from lab.virtual.spec import read_config
from lab.xen.migration_matrix import cells

ROUNDS = 3
BOOT_LIMIT = 240.0  # seconds
GUEST_MIB = 128
TURNS = 2  # relocations there and back, of each kind
RELOCATE = """\
import json, sys, time
from pathlib import Path
from lab import inventory
from lab.builds.matrix import Variant
from lab.case.taking import take
from lab.xen.domain import Domain
from lab.xen.guests import payload
from lab.xen.migration import Ending, start_migration

file, build, mib, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lab = inventory.load(file)
names = [board.name for board in lab.pairs()[0]]
held, rig = take(lab, names, Variant(build, build), Path(sys.argv[5]))
with held:
    hosts = [rig.ready(name).host for name in names]
    seconds = {"proxy": [], "plain": []}
    config = payload(hosts[0], "pvh64", "memory,heartbeat", memory_mib=mib)
    guest = Domain(hosts[0], config)
    guest.create()
    guest.beats(5, 60)
    here, there = hosts
    for turn in range(-2, 2 * turns):  # there and back, each with the proxy and without; the first ones warm up
        for kind in ("plain", "proxy") if turn % 2 else ("proxy", "plain"):
            migration = start_migration(guest.on(here), there, is_proxied=kind == "proxy")
            started = time.monotonic()
            if migration.ending(300) is not Ending.SUCCESS:
                sys.exit(migration.output())
            if turn >= 0:
                seconds[kind].append(time.monotonic() - started)
            here, there = there, here
    guest.on(here).destroy()
print(json.dumps(seconds), flush=True)
"""
READY_ONE = """\
import json, sys, time
from pathlib import Path
from lab import inventory
from lab.builds.matrix import Variant
from lab.case import saved
from lab.case.taking import take

lab, name = inventory.load(Path(sys.argv[1])), sys.argv[2]
started = time.monotonic()
held, rig = take(lab, [name], Variant.plain(sys.argv[3]), Path(sys.argv[4]))
with held:
    seat = rig.ready(name)
    took = time.monotonic() - started
    if "last" in sys.argv:  # nobody else has this lab's keys, and so its states
        seat.board.states.drop(saved.key(rig.wanted, seat.board.spec))
    seat.board.power.power_off()
print(json.dumps([seat.is_restored, took]), flush=True)
"""
BOOT_ONE = """\
import json, sys, time
from pathlib import Path
from lab import inventory
from lab.grid import services, session
lab = inventory.load(Path(sys.argv[1]))
with session.acquire(lab, [sys.argv[2]], services.directory(lab)) as held:
    board = held.board(sys.argv[2])
    board.power.power_off()
    print("waiting", flush=True)
    sys.stdin.readline()
    board.strategy.reboot(entry="known-good")
    print(json.dumps(board.strategy.milestones), flush=True)
    board.power.power_off()
"""


@benchmark(
    "boot-overhead",
    unit="",
    bar={"one_board_ratio": 1.10, "two_boards_ratio": 1.10, "one_board_s": 35.0, "two_boards_s": 60.0},
)
def boot_overhead() -> Mapping[str, float]:
    """Power on to dom0 ready: through BMC, recorder and labgrid, against the same QEMU command line booted bare."""
    lab = inventory.load(VIRTUAL_LAB)
    names = sorted(lab.boards)
    found: dict[str, float] = {}
    for count, word in ((1, "one_board"), (2, "two_boards")):
        bare, stack = [], []
        for _ in range(ROUNDS):  # taken in turns, so that a machine that slows down slows both
            bare.append(_bare(lab, names[:count]))
            stack.append(_through_the_lab(lab, names[:count]))
        found[f"{word}_ratio"] = statistics.median(stack) / statistics.median(bare)
        found[f"{word}_s"] = statistics.median(stack)
        found[f"{word}_bare_s"] = statistics.median(bare)
    return found


@benchmark("snapshot-ready", unit="s", bar=15.0)
def snapshot_ready() -> float:
    """A board that has had this build before, from the request for it to ready for a case, out of a saved state."""
    with _state() as state:
        file = state / "lab.yaml"
        content = yaml.safe_load(VIRTUAL_LAB.read_text(encoding="utf-8"))
        board = min(content["all"]["children"]["boards"]["hosts"])
        content["all"]["children"]["boards"]["hosts"][board]["xenlab"]["virtual"]["saved_states"] = True
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        seconds = {True: list[float](), False: list[float]()}  # by whether the board was restored
        for turns in (1, ROUNDS):  # the second run's lab is brought up anew
            _xenlab(state, "lab", "up", "--ports", "free", "--inventory", str(file))
            try:
                for turn in range(turns):
                    words = [str(file), board, DEFAULT_BUILD, str(state / "rig")]
                    words += ["last"] if turns > 1 and turn == turns - 1 else []
                    environment = paths.environment() | {"XDG_STATE_HOME": str(state)}
                    said = _run([sys.executable, "-P", "-c", READY_ONE, *words], environment, good=(0,))
                    is_restored, took = json.loads(said.splitlines()[-1])
                    seconds[is_restored].append(took)
            finally:
                _xenlab(state, "lab", "down", "--inventory", str(file))
    if (len(seconds[False]), len(seconds[True])) != (1, ROUNDS):
        raise BenchError(f"{len(seconds[True])} of {ROUNDS} requests were met out of a saved state")
    note(f"{seconds[False][0]:.1f} s with two boots, and the state saved; {ROUNDS} times out of it: {seconds[True]}")
    return statistics.median(seconds[True])


@benchmark("panic-latency", unit="s", bar=1.0)
def panic_latency() -> float:
    """A dom0 panic on the console, to the case that was running being ended."""
    with _state() as state:
        run = state / "run"
        cases = "tests/boards/cases/testcases/broken"
        _xenlab(state, "nightly", "--output", str(run), "-k", "test_dom0_dies and not purpose", cases, good=(1,))
        records = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        for record in records:
            if "crash_to_end_s" in record["figures"]:
                return float(record["figures"]["crash_to_end_s"])
    raise BenchError("no crash ended a case")


@benchmark("nightly-time", unit="min", bar={"quick_warm": 25.0, "cold_adds": 15.0})
def nightly_time() -> Mapping[str, float]:
    """The quick selection for one build, everything cached; and what making everything from nothing adds."""
    with _state() as state:
        _xenlab(state, "prepare")
        started = time.monotonic()
        _xenlab(state, "nightly", "--select", "quick", "--output", str(state / "run"))
        warm = time.monotonic() - started
        header = json.loads((state / "run" / "run.json").read_text(encoding="utf-8"))
        phases = {f"quick_{p['name'].replace(' ', '_')}": p["seconds"] / 60 for p in header["phases"]}
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="xenlab-cold-") as cache:
            words = ["prepare"]
            environment = os.environ | {"XDG_CACHE_HOME": cache, "XDG_STATE_HOME": str(state)}
            _run([str(paths.CHECKOUT / "xenlab"), *words], environment, good=(0,))
        cold = time.monotonic() - started
    return {"quick_warm": warm / 60, "cold_adds": cold / 60, **phases}


@benchmark("areas-time", unit="min", bar={"all": 30.0})
def areas_time() -> Mapping[str, float]:
    """The full selection of all areas but relocation on two boards, all cached; and what the boards did meanwhile.

    Sums over both boards: provisioning them with its boots, building domains, waiting for guests, sleeping, the rest.
    """
    with _state() as state:
        run = state / "run"
        _xenlab(state, "prepare")
        started = time.monotonic()
        areas = [f"testcases/{area}" for area in ("boot", "guest32", "superpages", "sleep", "passthrough")]
        _xenlab(state, "nightly", "--select", "full", "--output", str(run), *areas, good=(0, 1, 3))
        took = time.monotonic() - started
        results = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    if not_run := [one["case"] for one in results if one["verdict"] in ("ERROR", "MISS")]:
        raise BenchError(f"{len(not_run)} cases have no verdict, {not_run[0]} for one")
    figures = area_figures(results)
    note(f"{len(results)} cases")
    return {"all": took / 60, **{name: seconds / 60 for name, seconds in figures.items()}}


def area_figures(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the boards by what they did: provision, create, wait, sleep, and whatever else their cases did."""
    sums = dict.fromkeys(("provision", "create", "wait", "sleep"), 0.0)
    for result in results:
        for phase in result["phases"]:
            if phase["name"] in sums:  # boot, deploy and proof are parts of provision
                sums[phase["name"]] += phase["seconds"]
    return {**sums, "other": sum(result["seconds"] for result in results) - sum(sums.values())}


@benchmark("relocation-proxy-ratio", unit="", bar={"ratio": 1.1})
def relocation_proxy_ratio() -> Mapping[str, float]:
    """Relocations of a guest of 128 MiB between two boards, there and back: with the proxy against without."""
    with _state() as state:
        _xenlab(state, "lab", "up")
        try:
            words = [str(VIRTUAL_LAB), DEFAULT_BUILD, str(GUEST_MIB), str(TURNS), str(state / "rig")]
            environment = paths.environment() | {"XDG_STATE_HOME": str(state)}
            said = _run([sys.executable, "-P", "-c", RELOCATE, *words], environment, good=(0,))
        finally:
            _xenlab(state, "lab", "down")
    seconds = json.loads(said.splitlines()[-1])
    proxy, plain = statistics.median(seconds["proxy"]), statistics.median(seconds["plain"])
    return {"ratio": proxy / plain, "with_proxy_s": proxy, "without_s": plain}


@benchmark("relocation-cells", unit="s", bar={"cell": 60.0, "cell_with_a_power_fault": 150.0, "all": 1500.0})
def relocation_cells() -> Mapping[str, float]:
    """The matrix's cells of the full selection: the mean of one, and all of them by the clock, without provisioning."""
    with _state() as state:
        run = state / "run"
        matrix = "testcases/relocation/test_matrix.py"
        _xenlab(state, "nightly", "--select", "full", "--output", str(run), matrix, good=(0, 1, 3))
        return cell_figures([json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()])


def cell_figures(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of the matrix's results. A cell that waits for a time-out of its own does not count for the mean.

    :raises BenchError: no cell ran.
    """
    plain: list[float] = []
    power: list[float] = []
    provisioned = 0.0
    for result in results:
        cell = cells.find(str(result["case"]).rpartition("[")[2].rstrip("]"))
        first = sum(phase["seconds"] for phase in result["phases"] if phase["name"] == "provision")
        provisioned = max(provisioned, first)
        if result["verdict"] in ("PASS", "FAIL") and (cell.fault.reboots or not cell.fault.wait > 30):
            (power if cell.fault.reboots else plain).append(result["seconds"] - first)
    if not plain or not power:
        raise BenchError("no cell ran of each kind")
    clock = max(one["started"] + one["seconds"] for one in results) - min(one["started"] for one in results)
    return {"cell": fmean(plain), "cell_with_a_power_fault": fmean(power), "all": clock - provisioned}


# -- how -----------------------------------------------------------------------------------------------------


def _through_the_lab(lab: Lab, names: list[str]) -> float:
    """The slowest board's seconds from power on to ready, with all services in between."""
    with _state() as state:
        _xenlab(state, "lab", "up")
        try:
            environment = paths.environment() | {"XDG_STATE_HOME": str(state)}
            processes = [
                subprocess.Popen(
                    [sys.executable, "-P", "-c", BOOT_ONE, str(VIRTUAL_LAB), name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=environment,
                )
                for name in names
            ]
            for process in processes:
                assert process.stdout
                if process.stdout.readline().strip() != "waiting":
                    raise BenchError("a board could not be acquired")
            for process in processes:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            said = [process.communicate(timeout=BOOT_LIMIT + 60)[0] for process in processes]
            if any(process.returncode for process in processes):
                raise BenchError("a board did not boot")
            return max(float(json.loads(text)["ready"]) for text in said)
        finally:
            _xenlab(state, "lab", "down")


def _bare(lab: Lab, names: list[str]) -> float:
    """The same with nothing but QEMU: fresh disks, the same argv, a listener on the UART that picks the menu entry."""
    with _state() as state, tempfile.TemporaryDirectory(prefix="xenlab-bare-") as scratch:
        folder = Path(scratch)
        previous = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(state)
        try:
            boards.prepare(lab, folder, paths.state() / "lab" / "ssh")
            seconds: dict[str, float] = {}
            threads = [
                threading.Thread(target=_boot_bare, args=(lab.boards[name], lab, folder / name, seconds))
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if len(seconds) != len(names):
                raise BenchError("a bare board did not boot")
            return max(seconds.values())
        finally:
            if previous is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = previous


def _boot_bare(board: BoardSpec, lab: Lab, home: Path, seconds: dict[str, float]) -> None:
    ends = [end for pair in lab.pairs() for end in pair if board in pair and end != board]
    peer = ends[0].virtual.link_port if ends and ends[0].virtual else 0
    wiring = bare.wiring(home, board.bmc.port + boards.KCS_OFFSET, peer)
    ssh = Ssh(board.name, board.ssh_host, board.ssh_port, board.ssh_user)
    started = time.monotonic()
    try:
        config = read_config(home / "daemon.json")
        with bare.booted(config.board, wiring, timeout=BOOT_LIMIT, emulator=config.emulator) as up:
            while up is not None and time.monotonic() - started < BOOT_LIMIT:
                if ssh.run("xl info >/dev/null", timeout=20, check=False).status == 0:
                    seconds[board.name] = time.monotonic() - started
                    return
                time.sleep(0.3)
    except (BenchError, OSError):
        return
    finally:
        ssh.close()


@contextmanager
def _state() -> Iterator[Path]:
    """A state folder of its own, so that a lab of the user's is left alone."""
    folder = Path(tempfile.mkdtemp(prefix="xenlab-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _xenlab(state: Path, *words: str, good: tuple[int, ...] = (0,)) -> str:
    environment = paths.environment() | {"XDG_STATE_HOME": str(state)}
    return _run([sys.executable, "-P", "-m", "lab.cli", *words], environment, good=good)


def _run(command: list[str], environment: Mapping[str, Any], *, good: tuple[int, ...]) -> str:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode not in good:
        raise BenchError(f"{' '.join(command[-4:])} ended with {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return done.stdout
