"""What it costs to have a build and to put it onto boards."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lab import builds
from lab.base import paths
from lab.base.errors import BenchError
from lab.builds import recipes, trees
from lab.night.nightly import DEFAULT_BUILD
from lab.night.options import VIRTUAL_LAB
from lab.selfcheck.benchmarking import benchmark

ROUNDS = 3
EDITED = "xen/common/domctl.c"
INCREMENTAL = """\
import json, os, subprocess, sys, time
from pathlib import Path
from lab import builds, paths
from lab.builds import recipes

repository, recipe, edited, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
jobs = f"-j{len(os.sched_getaffinity(0))}"

def git(*words):
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
    subprocess.run(["git", "-C", str(repository), *identity, *words], check=True, capture_output=True)

def edit(tree, number):
    with open(tree / edited, "a") as file:
        file.write(f"/* {number} */\\n")

git("init", "-q"); git("add", "-A"); git("commit", "-qm", "the source")
seconds = {"lab": [], "by_hand": [], "full": [builds.make(recipe).seconds]}
(tree,) = [path for path in (paths.cache() / "trees").glob("git-*") if path.is_dir()]
for number in range(rounds):  # taken in turns, so that a machine that slows down slows both
    edit(repository, number); git("commit", "-qam", f"{number}")
    started = time.monotonic()
    builds.make(recipe)
    seconds["lab"].append(time.monotonic() - started)
    edit(tree, f"by hand, {number}")
    started = time.monotonic()
    subprocess.run(["make", "-C", "xen", jobs], cwd=tree, check=True, capture_output=True)
    seconds["by_hand"].append(time.monotonic() - started)
print(json.dumps(seconds), flush=True)
"""
PROVISION = """\
import json, statistics, sys, time
from pathlib import Path
from lab import builds, inventory, paths, provision
from lab.grid import services, session, ssh
from lab.xen.payloads import build_payloads, kernel_roots

file, build, rounds, directory = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
lab = inventory.load(file)
wanted = provision.Wanted(builds.make(build), payloads=build_payloads(paths.cache() / "payloads", kernel_roots()))
names = sorted(lab.boards)[:2]
found = {}

def timed(key, action):
    started = time.monotonic()
    answer = action()
    found.setdefault(key, []).append(time.monotonic() - started)
    return answer

def deploy(count):
    specs = [lab.boards[name] for name in names[:count]]
    return provision.deploy(lab, specs, wanted, directory, ssh_words=ssh.options())

with session.acquire(lab, names, services.directory(lab)) as held:
    boards = [held.board(name) for name in names]
    for board in boards:
        board.strategy.reboot(entry="known-good")
    for _ in range(rounds):
        for count in (1, len(names)):
            for board in boards:
                board.run("rm -rf /boot/xenlab /var/lib/xenlab/guests /boot/grub/custom.cfg; sync")
            if not all(timed(f"copy_{count}", lambda: deploy(count)).values()):
                sys.exit("a board without anything was said to be as wanted")
        if any(timed("again", lambda: deploy(1)).values()):
            sys.exit("a second run has changed something")
    board = boards[0]
    timed("reboot", lambda: board.strategy.reboot(entry="under-test"))
    run = lambda text: str(board.run(text).stdout)
    if wrong := timed("proof", lambda: provision.prove(run, board.spec, wanted)).mismatches:
        sys.exit("; ".join(wrong))
print(json.dumps({key: statistics.median(values) for key, values in found.items()}), flush=True)
"""


@benchmark("build-cache", unit="s", bar={"lookup": 0.2})
def build_cache() -> Mapping[str, float]:
    """A build that is in the cache, looked up by its recipe; and the whole command."""
    builds.make(DEFAULT_BUILD)
    lookups = []
    for _ in range(5):
        started = time.monotonic()
        builds.make(DEFAULT_BUILD)
        lookups.append(time.monotonic() - started)
    started = time.monotonic()
    _run([sys.executable, "-P", "-m", "lab.cli", "build", DEFAULT_BUILD], paths.environment())
    return {"lookup": statistics.median(lookups), "command": time.monotonic() - started}


@benchmark("build-incremental", unit="", bar={"ratio": 1.2})
def build_incremental() -> Mapping[str, float]:
    """The next commit of a git tree, one C file changed, through the lab against `make` by hand in the same tree."""
    recipe = recipes.recipe(DEFAULT_BUILD)
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        environment = dict(paths.environment()) | {"XDG_CACHE_HOME": f"{scratch}/cache"}
        previous = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/source"
        try:
            with trees.checked_out(recipe, trees.identify(recipe.source), lambda text: None) as tree:
                repository = tree.directory
        finally:
            if previous is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = previous
        fragments = ", ".join(fragment.stem for fragment in recipe.fragments)
        own = Path(scratch) / "own.yaml"
        own.write_text(f"source:\n  git: {{path: {repository}}}\nfragments: [{fragments}]\n", encoding="utf-8")
        words = [str(repository), str(own), EDITED, str(ROUNDS)]
        said = _run([sys.executable, "-P", "-c", INCREMENTAL, *words], environment)
    seconds = {key: statistics.median(values) for key, values in json.loads(said.splitlines()[-1]).items()}
    return {"ratio": seconds["lab"] / seconds["by_hand"], **{f"{key}_s": value for key, value in seconds.items()}}


@benchmark("provision", unit="", bar={"two_boards_ratio": 1.3, "nothing_to_do_s": 10.0})
def provision() -> Mapping[str, float]:
    """From "build made" to "proved running": copy, reboot, proof; two boards against one; a run with nothing to do."""
    with tempfile.TemporaryDirectory(prefix="xenlab-bench-") as scratch:
        environment = dict(paths.environment()) | {"XDG_STATE_HOME": scratch}
        command = [sys.executable, "-P", "-m", "lab.cli"]
        _run([*command, "prepare"], environment)
        _run([*command, "lab", "up"], environment)
        try:
            words = [str(VIRTUAL_LAB), DEFAULT_BUILD, str(ROUNDS), f"{scratch}/provision"]
            said = _run([sys.executable, "-P", "-c", PROVISION, *words], environment)
        finally:
            _run([*command, "lab", "down"], environment)
    found = json.loads(said.splitlines()[-1])
    return {
        "two_boards_ratio": found["copy_2"] / found["copy_1"],
        "nothing_to_do_s": found["again"],
        "copy_s": found["copy_1"],
        "reboot_s": found["reboot"],
        "proof_s": found["proof"],
    }


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        raise BenchError(f"{command[3][:40]!r} ended with {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return done.stdout
