"""An ``ipmitool`` that answers as one did in front of a BMC of somebody's: recorded words, for what no simulator does.

The rules are in ``tests/data/bmc/ipmi``. Each call's words, joined, are searched for ``match``; the first rule that
fits gives its answers in turn, the last one again and again. A call without a rule ends with 99.

Import ``stand_in_fixture`` to have the fixture ``stand_in``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.base.credentials import Credential
from lab.bmc.ipmi import IpmiBmc
from lab.bmc.switching import Pace
from lab.inventory import BmcSpec

RECORDED = Path(__file__).parent / "data" / "bmc" / "ipmi"
QUICK = Pace(command_gap=0.0, poll=0.02, repeat_after=0.3, settle=0.1)

PROGRAM = """\
#!{python} -ISB
import fcntl, json, os, re, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
words = " ".join(sys.argv[1:])
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
with open(os.path.join(folder, "rules.json"), "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    rules = json.load(file)
    rule = next((rule for rule in rules if re.search(rule["match"], words)), None)
    if rule is None:
        sys.exit(99)
    answer = rule["answers"].pop(0) if len(rule["answers"]) > 1 else rule["answers"][0]
    file.seek(0)
    file.truncate()
    json.dump(rules, file)
time.sleep(answer.get("seconds", 0))
sys.stdout.write(answer.get("out", ""))
sys.stdout.flush()
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("rc", 0))
"""


class StandIn:
    """The program, first on PATH, and what it was called with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "ipmitool"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)

    def plays(self, rules: str | list[dict[str, Any]]) -> None:
        """A recording by name, or rules as they are in one."""
        found = json.loads((RECORDED / f"{rules}.json").read_text()) if isinstance(rules, str) else rules
        (self._folder / "rules.json").write_text(json.dumps(found))
        (self._folder / "calls").write_text("")

    def calls(self, words: str = "") -> list[list[str]]:
        """The calls with these words, in order."""
        lines = [json.loads(line) for line in (self._folder / "calls").read_text().splitlines()]
        return [line for line in lines if words in " ".join(line)]

    def bmc(self, **options: Any) -> IpmiBmc:
        """The lab's own, in front of it."""
        return IpmiBmc("smc", BmcSpec("203.0.113.1", "rack-bmc", **options), Credential("lab", "canary-R4x"), QUICK)


Play = Callable[[str], StandIn]


@pytest.fixture(name="stand_in")
def stand_in_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return StandIn(folder)
