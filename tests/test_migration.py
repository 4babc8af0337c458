"""What is read out of a proxy's log: phases, passes, downtime, figures of the matrix."""

from __future__ import annotations

import functools
import importlib.util
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lab.base import paths
from lab.base.errors import BenchError
from lab.xen import reach
from lab.xen.dom0 import DomainRow
from lab.xen.migration import Migration

START = 1000.0


def line(t: float, step: str, way: str = ">", **more: Any) -> dict[str, Any]:
    return {"t": START + t, "way": way, "step": step, "n": 1, "length": 8, "offset": 0, **more}


def pages(t: float, until: float, turn: int, data: int, records: int = 1) -> dict[str, Any]:
    return line(t, "PAGE_DATA", until=START + until, records=records, **{"pass": turn, "pages": data, "data": data})


LOG = [
    line(1.0, "BANNER", "<"),
    line(1.1, "XL_HEADER"),
    pages(2.0, 3.5, 1, 4000, records=1022),
    pages(3.6, 4.0, 2, 300),
    pages(5.0, 5.1, 3, 20),
    line(5.2, "TSC_INFO"),
    line(5.3, "LIBXL_END"),
    line(5.5, "READY", "<"),
    line(5.6, "GO"),
    line(6.0, "REPORT", "<"),
    line(6.1, "STATUS", "<"),
]


def migration(log: list[dict[str, Any]], state: str = "-b----", *, is_over: bool = False) -> Migration:
    """One whose log is this, and whose domain at the source is in this state."""
    found = object.__new__(Migration)
    found._log = []
    text = "".join(json.dumps(one) + "\n" for one in log)
    rows = {"g": DomainRow("g", 5, 16, 1, state, 1.0)} if state else {}
    found.source = SimpleNamespace(run=lambda *_: SimpleNamespace(stdout=text), domains=lambda: rows)  # type: ignore[assignment]
    found.domain = SimpleNamespace(name="g")  # type: ignore[assignment]
    found.started, found._folder = START, "/run"
    found._job = SimpleNamespace(poll=lambda: 0 if is_over else None)
    return found


@pytest.mark.parametrize(
    ("steps", "state", "phase"),
    [
        (0, "-b----", "set-up"),
        (2, "-b----", "set-up"),
        (3, "r-----", "pre-copy 1"),
        (4, "-b----", "pre-copy 2"),
        (5, "---s--", "stop-and-copy"),
        (8, "---s--", "handshake: READY"),
        (9, "", "handshake: GO"),
        (11, "", "handshake: STATUS"),
    ],
)
def test_the_phase_is_told_by_the_stream_and_the_domain(steps: int, state: str, phase: str) -> None:
    assert migration(LOG[:steps], state).phase() == phase


def test_what_is_over_has_no_phase() -> None:
    assert migration(LOG, is_over=True).phase() == "over"


def test_an_action_tells_the_phase_too() -> None:
    held = pages(3.6, 3.6, 2, 0) | {"action": "hold", "asked": "hold@PAGE_DATA:pass2"}
    assert migration([*LOG[:3], held]).phase() == "pre-copy 2"


def test_the_stream_says_how_long_the_guest_stood_still() -> None:
    assert migration(LOG).stopped() == pytest.approx((5.0, 6.0))
    assert migration(LOG[:8]).stopped() is None


def test_lines_that_were_added_up_are_put_in_order_and_counted() -> None:
    late = [*LOG[:2], *LOG[5:], *LOG[2:5]]  # a line of PAGE_DATA is written when it is complete
    assert migration(late).passes() == migration(LOG).passes()
    assert [(one.number, one.pages) for one in migration(late).passes()] == [(1, 4000), (2, 300), (3, 20)]
    assert "PAGE_DATA x 1024" in migration(late).text()


# -- figures of the matrix ---------------------------------------------------------------------------------------------


def result(cell: str, seconds: float, verdict: str = "PASS", provision: float = 0.0) -> dict[str, Any]:
    phases = [{"name": "provision", "seconds": provision}, {"name": "boot", "seconds": 1.0}]
    case = f"testcases/relocation/test_matrix.py::test_relocation_fails_well[{cell}]"
    return {"case": case, "started": 100.0, "seconds": seconds, "verdict": verdict, "phases": phases}


@functools.cache  # a benchmark is defined once
def benchmarks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("boards", paths.CHECKOUT / "benchmarks" / "boards.py")
    assert spec and spec.loader
    boards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boards)
    return boards


def test_areas_are_told_by_what_their_boards_did() -> None:
    phases = [("provision", 60.0), ("boot", 30.0), ("create", 1.5), ("wait", 10.0), ("create", 0.5)]
    first = {"seconds": 80.0, "phases": [{"name": name, "seconds": seconds} for name, seconds in phases]}
    second = {"seconds": 20.0, "phases": [{"name": "sleep", "seconds": 18.0}]}
    wanted = {"provision": 60.0, "create": 2.0, "wait": 10.0, "sleep": 18.0, "other": 10.0}
    assert benchmarks().area_figures([first, second]) == wanted


def test_cells_that_wait_for_a_time_out_do_not_count_for_the_mean() -> None:
    boards = benchmarks()
    results = [
        result("pvh64-cut-GO", 130.0, provision=100.0),
        result("pvh64-bad_bit-GO", 50.0, "FAIL"),
        result("pvh64-noack-TSC_INFO", 500.0),
        result("pvh64-cut-READY", 1.0, "SKIP"),
        result("pvh64-panic-PAGE_DATA", 140.0),
    ]
    assert boards.cell_figures(results) == {"cell": 40.0, "cell_with_a_power_fault": 140.0, "all": 400.0}
    with pytest.raises(BenchError):
        boards.cell_figures(results[:3])


def test_the_longest_silence_on_the_network_is_found() -> None:
    said = """\
PING 192.168.231.2 (192.168.231.2) 56(84) bytes of data.
[1795814751.100000] 64 bytes from 192.168.231.2: icmp_seq=1 ttl=64 time=1.23 ms
[1795814751.200500] 64 bytes from 192.168.231.2: icmp_seq=2 ttl=64 time=1.19 ms
[1795814754.303000] From 192.168.231.1 icmp_seq=12 Destination Host Unreachable
[1795814756.400500] 64 bytes from 192.168.231.2: icmp_seq=52 ttl=64 time=2.01 ms
[1795814756.500500] 64 bytes from 192.168.231.2: icmp_seq=5
"""
    answers = reach.answered(said)
    assert answers == [1795814751.1, 1795814751.2005, 1795814756.4005, 1795814756.5005]
    assert reach.silence(answers) == pytest.approx(5.1)
