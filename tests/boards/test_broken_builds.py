"""Deliberately broken builds, one after the other on the same boards: FAIL with the right lines; a good one then runs.

The tree is Debian's with ``data/breakable.patch``: it breaks where its command line says. A quarter of an hour, so it
runs only with ``--slow``; test_verdicts_on_boards.py has one of the kind for every day.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import CommandLine

PATCH = Path(__file__).with_name("data") / "breakable.patch"
BREAKABLE = f"""\
description: breaks where its command line says
source:
  debian_source: {{package: xen, version: 4.17.5+72-g01140da4e8-1, suite: bookworm}}
fragments: [debug, pv32, shadow, perf-counters]
patches: [{PATCH}]
xen_options: xenlab_break="""
BUILDS = {  # name: (recipe, rule of the verdict, what the record must have)
    "bug": (f"{BREAKABLE}bug\n", "console-crash", "Xen BUG at arch/x86/setup.c"),  # before most of start_xen
    "mute": (
        f"{BREAKABLE}mute\n",
        "product",
        "reset the board before dom0 was up",
    ),  # panics before the console is there
    "dom0": (f"{BREAKABLE}dom0\n", "console-crash", "Could not construct domain 0"),  # its kernel is cut to 16 bytes
    "toolless": (  # starts, and dom0 has no toolstack of its version
        "source:\n  debian_binary: {package: xen-hypervisor-4.20-amd64, suite: trixie}\n",
        "product",
        "Can't find version 4.20 of xen utils",
    ),
    "hang": (f"{BREAKABLE}hang\n", "product-timeout", "Command line: "),  # the last words of start_xen
}


@pytest.mark.slow
def test_broken_builds_fail_and_the_next_one_runs(
    xenlab: CommandLine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = ["--inventory", str(Path(request.config.getoption("--inventory")).resolve())]
    for name, (recipe, _, _) in BUILDS.items():
        (tmp_path / f"{name}.yaml").write_text(recipe, encoding="utf-8")
        words += ["--build", str(tmp_path / f"{name}.yaml")]
    words += ["--build", "pv32-debug", "testcases/boot", "-k", "test_build_under_test_runs"]
    run = xenlab.nightly(tmp_path / "run", *words)
    assert run.status == 1, run.explain()
    lines = (run.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = {Path(record["build"]).stem: record for record in map(json.loads, lines)}
    for name, (_, rule, said) in BUILDS.items():
        record = records[name]
        assert (record["verdict"], record["rule"]) == ("FAIL", rule), (name, record["reason"])
        assert said in json.dumps([record["reason"], record["evidence"]]), (name, record["reason"])
    assert records["pv32-debug"]["verdict"] == "PASS", records["pv32-debug"]["reason"]
