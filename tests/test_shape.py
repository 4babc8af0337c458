"""Records from elsewhere: their types and ranges are checked at one border, and one that is wrong hides no other."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import Runs, result

from lab.base import shape
from lab.history.store import History
from lab.reporting import site
from lab.results.record import Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder

WHOLE = TestResult(
    "testcases/boot/test_a.py::c",
    "boot",
    Verdict.FAIL,
    "assertion",
    "because",
    1795000000.0,
    2.0,
    ("virt1",),
    "b",
    2,
    "What it proves.",
    (Phase("boot", 1795000000.0, 1.0),),
    (Evidence("note", "t", "b", 1795000000.0, "virt1"),),
    {"downtime_s": 0.1},
    {"virt1": "cases/x/virt1.console.log"},
    {"t": "cases/x/t.svg"},
    "1a2b a crash",
)
HEADER = RunHeader(
    "r", 1795000000.0, "quick", ("b",), {"virt1": {"class": "virtual"}}, (WHOLE.case,), ("boot",), 1795000009.0, 1
)


def test_what_is_written_is_read_back() -> None:
    assert TestResult.from_json(WHOLE.to_json()) == WHOLE
    assert RunHeader.from_json(HEADER.to_json()) == HEADER
    odd = replace(WHOLE, reason="\x00\ud800 ü", figures={"x": math.inf})
    assert TestResult.from_json(odd.to_json()) == odd


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reason": 5}, "reason: must be text, not 5"),
        ({"verdict": "GOOD"}, "verdict: must be one of FAIL, ERROR, MISS, PASS, SKIP, not 'GOOD'"),
        ({"verdict": []}, "verdict: must be one of"),
        ({"boards": [[]]}, "boards[0]: must be text, not a list"),
        ({"boards": "virt1"}, "boards: must be a list, not 'virt1'"),
        ({"attempt": 2**63}, "attempt: must be a whole number from 0 to"),
        ({"attempt": True}, "attempt: must be a whole number, not true or false"),
        ({"attempt": 1.5}, "attempt: must be a whole number, not 1.5"),
        ({"seconds": math.nan}, "seconds: must be a number from"),
        ({"started": 1e20}, "started: must be seconds since the epoch, of a year from 1 to 9999, not 1e+20"),
        ({"started": -1e12}, "started: must be seconds"),
        ({"started": None}, "started: must be a number, not nothing"),
        ({"figures": {"x": "y"}}, "figures['x']: must be a number, not 'y'"),
        ({"figures": {"x": 10**400}}, "figures['x']: must be a number of at most 63 bits"),
        ({"evidence": [{"kind": "note"}]}, "evidence[0].body: is missing"),
        ({"evidence": [asdict(WHOLE.evidence[0]) | {"x": 1}]}, "evidence[0].x: unknown field"),
        ({"evidence": [None]}, "evidence[0]: must be an object, not nothing"),
        ({"consoles": {"virt1": None}}, "consoles['virt1']: must be text"),
    ],
)
def test_what_is_wrong_in_a_record_is_said_by_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        TestResult.from_json(json.dumps(json.loads(WHOLE.to_json()) | change))
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"case":' * 50_000, "", "1", "null", "[]", "9" * 5000, "{}", '"x"'])
def test_what_is_no_record_at_all_is_one_error(text: str) -> None:
    for kind in (TestResult, RunHeader):
        with pytest.raises(ValueError):
            kind.from_json(text)


def test_a_header_asks_for_no_more_attempts_than_can_be_listed() -> None:
    with pytest.raises(ValueError, match="repeat: must be a whole number from 1 to"):
        RunHeader.from_json(json.dumps(json.loads(HEADER.to_json()) | {"repeat": 2**40}))


def test_a_bad_run_folder_is_named_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    runs = Runs(tmp_path / "xenlab" / "runs")
    folders = [runs.write(result()) for _ in range(3)]
    store = History(f"sqlite:///{tmp_path}/h.sqlite")
    site.take_over(store)
    site.write(store, tmp_path / "site")
    header = folders[1].path / "run.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"started": "soon"}))
    with open(folders[0].path / "results.jsonl", "a", encoding="utf-8") as more:
        more.write("{}\n")
    site.take_over(store)
    site.write(store, tmp_path / "site")
    assert f"{header}: started: must be a number, not 'soon'" in caplog.text
    pages = sorted(path.parent.name for path in (tmp_path / "site" / "runs").glob("*/index.html"))
    assert pages == ["run1", "run3"]


def test_a_note_of_a_case_that_runs_with_no_real_time_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", HEADER)
    folder.note_now(["virt1"], "a case")
    assert list(folder.now()) == ["virt1"] and not folder.now()["virt1"][2]
    folder.note_now(["virt1"], "a case", is_ready=True)
    assert folder.now()["virt1"][2]
    note = folder.path / "now-virt1.json"
    for wrong in ('"since": 1e400', '"since": "x"', '"since": NaN'):
        note.write_text(note.read_text().partition('"since"')[0] + f'{wrong}, "process": "x"}}')
        assert folder.now() == {}
    note.write_text("[" * 100_000)
    assert folder.now() == {}


def test_numbers_by_name_are_read_within_their_limit() -> None:
    assert shape.read_numbers('{"a": 1, "b": 2.5}', shape.Between(0, 9)) == {"a": 1.0, "b": 2.5}
    for wrong in ('{"a": -1}', '{"a": "x"}', "[]", "{", '{"a": NaN}'):
        with pytest.raises(ValueError):
            shape.read_numbers(wrong, shape.Between(0, 9))
