"""Figures of two builds: what is called a change, what is not, and what the table says."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from virtual_board import VirtualBoard, make_board_fixture  # noqa: F401

from lab import inventory
from lab.base import paths, processes
from lab.base.errors import BenchError, BoardError, BuildFailed, ProductFailure, UsageError
from lab.grid.board_socket import Profiler
from lab.history import figures
from lab.history.figures import Change, compare
from lab.inventory import BoardSpec
from lab.night import moved, nightly, performance
from lab.night.options import COUNTED_LAB, NightlyOptions
from lab.night.performance import Asked
from lab.results.record import Verdict
from lab.results.run_folder import PROFILES
from lab.selfcheck import slower
from lab.selfcheck.mutant_manifest import Slower
from lab.virtual import profile, qemu
from lab.xen import costs
from lab.xen.payloads import PayloadLine, parse_line
from tests.run_folders import Runs, result

MakeBoard = Callable[..., VirtualBoard]
CASE = "testcases/performance/test_costs.py::test_operations_are_measured[pv64]"


@pytest.fixture(name="small")
def small_fixture() -> BoardSpec:
    return inventory.load(COUNTED_LAB).boards["small"]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((400.0, 400.0), (400.0, 400.0), Change.SAME),
        ((400.0, 400.0), (403.0, 403.0), Change.SAME),  # exact, and too little to be told
        ((400.0, 400.0), (404.0, 404.0), Change.MORE),
        ((400.0, 400.2), (392.0, 392.0), Change.LESS),
        ((400.0, 420.0), (410.0, 430.0), Change.UNDECIDED),  # two runs of one build differ by as much
        ((400.0, 600.0), (400.0, 601.0), Change.UNDECIDED),  # such noise could hide what B costs
        ((400.0,), (404.0, 404.0), Change.MISSING),
        ((), (404.0, 404.0), Change.MISSING),
        ((400.0, 400.0), (math.nan, 404.0), Change.MISSING),
        ((400.0, math.inf), (404.0, 404.0), Change.MISSING),
        ((400.0, 0.0), (404.0, 404.0), Change.MISSING),
    ],
)
def test_a_count_changes_by_a_per_cent_and_more_than_one_build_does(
    old: tuple[float, ...], new: tuple[float, ...], verdict: Change
) -> None:
    assert compare("f", "small", old, new, is_count=True).verdict is verdict


def test_a_time_that_is_no_number_is_no_gain() -> None:
    assert compare("f", "b", [1.0] * 5, [1.0, 1.0, 1.0, 1.0, math.nan], is_count=False).verdict is Change.MISSING


def test_times_of_one_build_are_not_called_changed_and_a_fifth_more_is() -> None:
    chances = random.Random(1)
    times = [[chances.gauss(1000, 30) for _ in range(5)] for _ in range(40)]
    same = [compare("f", "b", a, b, is_count=False) for a, b in zip(times[::2], times[1::2], strict=True)]
    assert {one.verdict for one in same} <= {Change.SAME, Change.UNDECIDED}
    slower = compare("f", "b", times[0], [1.2 * value for value in times[1]], is_count=False)
    assert (slower.verdict, slower.p) == (Change.MORE, pytest.approx(2 / 252))
    few = compare("f", "b", times[0][:4], [1.2 * value for value in times[1][:4]], is_count=False)
    assert few.verdict is Change.UNDECIDED, "no division of eight values is rarer than 2 in 70"


def test_many_values_are_divided_by_chance_and_always_by_the_same() -> None:
    chances = random.Random(2)
    old, new = ([chances.gauss(mean, 5) for _ in range(12)] for mean in (100, 103))
    assert figures.chance(old, new) == figures.chance(old, new) < 0.5
    assert figures.chance(old, old) == 1.0


def test_the_table_says_who_is_hurt_while_another_gains() -> None:
    found = [
        compare("pv64_hypercall_instructions", "small", (400, 400), (390, 390), is_count=True),
        compare("pv64_hypercall_instructions", "large", (400, 400), (412, 412), is_count=True),
        compare(
            "hvm64_cpuid_ns", "steel", [100.0 + n for n in range(5)], [100.5 + n for n in range(5)], is_count=False
        ),
    ]
    text = "\n".join(figures.table(found))
    assert "pv64_hypercall_instructions  large  400.0  412.0  +3.00%  0.00%  costs more" in text
    assert "no change (p=" in text
    assert figures.summary(found) == [
        "small: 0 of 1 figures cost more, 1 less",
        "large: 1 of 1 figures cost more, 0 less",
        "steel: 0 of 1 figures cost more, 0 less",
        "B hurts large while small gains",
    ]


@pytest.mark.parametrize(
    ("new", "order", "verdict"),
    [
        ([400.0, 400.0], "aabb", Change.SAME),
        ([410.0, 410.0, 410.0], "aabbab", Change.MORE),  # there in another boot, too
        ([410.0, 410.0, 390.0], "aabbab", Change.UNDECIDED),  # and not there, which is no change of the build
        ([410.0, 430.0, 410.0], "aabbab", Change.UNDECIDED),  # three of each are the most
    ],
)
def test_counts_are_measured_in_one_boot_and_what_changed_in_another(
    new: list[float], order: str, verdict: Change, small: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[NightlyOptions] = []
    values = {"a": iter([400.0, 400.0, 400.0]), "b": iter(new)}

    def run(options: NightlyOptions) -> int:
        assert options.output and options.boards == ("small",)
        asked.append(options)
        (name,) = options.builds
        cost = result(CASE, figures={"pv64_hypercall_instructions": next(values[name]), "create_s": 2.0})
        written = Runs(tmp_path / f"w{len(asked)}").write(cost, key=f"{name}{name * 9}")
        written.path.rename(options.output)
        return 0

    monkeypatch.setattr(nightly, "run", run)
    runs = performance._measured(small, asked=Asked("a", "b"), folder=tmp_path, sides="")
    assert "".join(one.builds[0] for one in asked) == order
    assert [one.boots_first for one in asked] == [True, False, True, False, True, True][: len(order)]
    sound = [one.sound for one in asked]
    assert not sound[0] and len(sound[1]) == 1 and len(sound[-1]) == 2, "builds that have measured something"
    (only,) = performance.judged(small, runs)
    assert (only.old, only.new, only.verdict) == ((400.0,) * (len(order) // 2), tuple(new), verdict)


def test_several_builds_share_the_runs_of_the_first(small: BoardSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    costs_of = {"A": 400.0, "B": 400.0, "C": 412.0}
    monkeypatch.setattr(
        performance,
        "_one",
        lambda side, *_: performance.Run(side, {"pv64_hypercall_instructions": costs_of[side]}),
    )
    asked = Asked("a", "b", further=("c",))
    runs = performance._runs(small, asked, Path(), "")
    assert "".join(run.side for run in runs) == "AABBCCAC", "B is decided at once"
    found = {side: performance.judged(small, performance.pair(runs, side))[0].verdict for side in "BC"}
    assert found == {"B": Change.SAME, "C": Change.MORE}
    assert "".join(run.side for run in performance._runs(small, asked, Path(), "CCA")) == "CCA"


def test_times_alternate_with_the_order_swapped(small: BoardSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all is decided: five of each build at least, and eight at most."""
    steel = replace(small, capabilities=small.capabilities - {"counted-clock"})
    values: dict[str, Iterator[float]] = {}

    def one(side: str, *_: object) -> performance.Run:
        return performance.Run(side, {"pv64_hypercall_ns": next(values[side])})

    monkeypatch.setattr(performance, "_one", one)
    for new, number in ((1.3, 10), (1.01, 10), (1.04, 16)):
        values |= {"A": (100.0 + n % 3 * 4 for n in range(9)), "B": (new * (100 + n % 3 * 4) for n in range(9))}
        runs = performance._runs(steel, Asked("a", "b"), Path(), "")
        assert "".join(run.side for run in runs) == "ABBAABBAABBAABBA"[:number], new


def test_figures_of_a_failed_case_do_not_count_and_what_is_lost_is_said(tmp_path: Path) -> None:
    kept = {"pv64_hypercall_instructions": 400.0}
    folder = Runs(tmp_path).write(
        result(CASE, Verdict.FAIL, "small", figures=kept),
        result(CASE.replace("pv64", "pv32"), Verdict.MISS, "small", figures={"pv32_hypercall_instructions": 500.0}),
    )
    run = performance.read("A", folder)
    assert run.figures == {"pv32_hypercall_instructions": 500.0}
    assert run.lost == (
        "A: test_operations_are_measured[pv64]: FAIL small: because",
        "A: test_operations_are_measured[pv32]: MISS small: because",
    )


def test_what_did_not_run_or_was_another_build_is_lost(tmp_path: Path) -> None:
    one = result(CASE, figures={"pv64_hypercall_instructions": 400.0})
    folder = Runs(tmp_path).write(one, planned=(CASE, CASE.replace("pv64", "pv32")), notes=("stopped",))
    run = performance.read("A", folder)
    assert run.lost == ("A: 1 of 2 cases did not run: stopped",), "on both sides, no figure would lack"
    assert performance._of_build(run, "aaaaaaaa11") is run
    moved = performance._of_build(run, "bbbbbbbb22")
    assert not moved.figures and "a run was of build aaaaaaaa11" in moved.lost[0]
    assert performance.read("B", Runs(tmp_path / "unknown").write(one, key="")).key == ""


@pytest.mark.parametrize(
    ("verdicts", "lost", "status"),
    [
        ((Change.SAME, Change.LESS), (), 0),
        ((Change.SAME, Change.UNDECIDED), (), 3),
        ((Change.SAME,), ("x",), 3),
        ((Change.MORE,), ("x",), 1),
    ],
)
def test_the_exit_status_says_that_b_costs_more(
    verdicts: tuple[Change, ...], lost: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    one = compare("f", "small", (1.0, 1.0), (1.0, 1.0), is_count=True)
    report = performance.Report(("a", "b"), tuple(replace(one, verdict=word) for word in verdicts), lost, tmp_path)
    assert report.exit_status == status
    assert not report.is_same_build
    same = replace(report, names=("a: Xen 4.17.5, build id 12", "b: Xen 4.17.5, build id 12"))
    assert same.lines()[2] == "A and B are the same hypervisor: the figures show noise alone"
    assert json.dumps(report.as_data(), default=str)


def test_boards_that_do_not_measure_are_refused(tmp_path: Path) -> None:
    asked = Asked("debian", "debian", paths.INVENTORY / "uefi.yaml")
    with pytest.raises(UsageError, match=r"uefi\.yaml: none of uefi1 has the capability perf"):
        performance.run(asked, print)


def test_a_counted_clock_is_of_emulated_processors_alone(small: BoardSpec, tmp_path: Path) -> None:
    assert small.virtual
    wiring = qemu.Wiring(*[tmp_path] * 6, kcs_port=1, link_peer_port=0)
    argv = qemu.arguments(small, replace(small.virtual, accelerator="kvm"), wiring)
    assert argv[argv.index("-accel") + 1] == "tcg,thread=single"
    assert argv[argv.index("-icount") + 1] == qemu.COUNTED
    assert "-plugin" not in argv, "a QEMU that has none"
    with_plugin = qemu.arguments(small, small.virtual, wiring, emulator=qemu.Emulator(profiler="/p.so"))
    assert with_plugin[with_plugin.index("-plugin") + 1] == f"/p.so,out={tmp_path}"
    timed = qemu.arguments(
        small, replace(small.virtual, clock="machine"), wiring, emulator=qemu.Emulator(profiler="/p")
    )
    assert "-plugin" not in timed
    file = tmp_path / "wrong.yaml"
    text = COUNTED_LAB.read_text(encoding="utf-8")
    file.write_text(text.replace("clock: instructions", "clock: instructions, accelerator: kvm", 1), encoding="utf-8")
    with pytest.raises(UsageError, match=r"wrong\.yaml:\d+: .*virtual: clock: instructions needs accelerator tcg"):
        inventory.load(file)


def test_a_plugin_counts_the_instructions_of_each_block_of_the_last_stretch(tmp_path: Path) -> None:
    """QEMU itself: a kernel that calls code at Xen's addresses between the marks of a payload."""
    plugin, kernel, told = profile.plugin(qemu.BINARY), tmp_path / "kernel", tmp_path / "told"
    if not plugin:
        pytest.skip("this QEMU's interface to plugins is another")
    words = ["-m32", "-nostdlib", "-static", "-no-pie", "-s", "-Wl,--build-id=none,-z,noexecstack,-Ttext=0x100000"]
    environment = processes.environment()
    source = Path(__file__).with_name("data") / "profile.S"
    subprocess.run(["gcc", *words, str(source), "-o", str(kernel)], check=True, timeout=60, env=environment)
    argv = [qemu.BINARY, "-machine", "q35", "-accel", qemu.ONE_THREAD, "-icount", qemu.COUNTED, "-cpu", "qemu64"]
    argv += ["-m", "64", "-no-user-config", "-nodefaults", "-display", "none", "-device", "isa-debug-exit"]
    argv += ["-kernel", str(kernel), "-plugin", f"{plugin},out={told}"]
    assert subprocess.run(argv, timeout=60, env=environment, check=False).returncode == 33
    number, line, *rest = profile.told(told).split(";")
    counts = sorted(map(int, line.split()[1::2]))
    assert (number, counts, rest) == ("1", [1, 5, 598], []), "ret; three nops and the first round; 299 rounds"
    assert profile.told(tmp_path / "nothing") == "0", "before power on"


def test_a_board_tells_of_what_its_figures_are_made(make_board: MakeBoard) -> None:
    board = make_board("redfish", tls="off")
    profiler = Profiler("mini", str(board.folder / "control.sock"))
    assert profiler.read() == []
    (board.folder / "profile.txt").write_text("ffff82d040200000 198 ffff82d0402000c9 1 \n\n", encoding="ascii")
    assert profiler.read() == [{0xFFFF82D040200000: 198, 0xFFFF82D0402000C9: 1}, {}]
    (board.folder / "profile.txt").write_text("ffff82d040200000\n", encoding="ascii")
    with pytest.raises(BoardError, match="mini: get profile: .* is no profile"):
        profiler.read()


def test_the_functions_that_moved_are_named_under_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {0x10: ("entry", 0), 0x20: ("call", 0), 0x24: ("call", 4), 0x30: ("added", 0)}
    monkeypatch.setattr(moved, "symbolise", lambda at, elf: places.get(at))
    found = [
        compare("a_instructions", "small", (400.0, 400.0), (412.0, 412.0), is_count=True),
        compare("b_instructions", "small", (400.0, 400.0), (400.0, 400.0), is_count=True),
        compare("c_instructions", "small", (400.0, 400.0), (300.0, 300.0), is_count=True),
    ]
    old = {one: {0x10: 50.0, 0x20: 20.0, 0x24: 10.0, 0x99: 1.0} for one in ("a_instructions", "b_instructions")}
    new = {one: {0x10: 50.4, 0x20: 20.0, 0x24: 13.0, 0x30: 8.6} for one in ("a_instructions", "b_instructions")}
    (only,) = moved.why(found, old, new, (tmp_path, tmp_path))
    assert only.lines() == [
        "a_instructions on small: instructions of the hypervisor in one operation, by function",
        "  function        A     B  change",
        "  added         0.0   8.6    +8.6",
        "  call         30.0  33.0    +3.0",
        "  (no symbol)   1.0   0.0    -1.0",
    ], "and `entry` has moved too little"
    report = performance.Report(("a: x", "b: y"), tuple(found), (), tmp_path, (only,))
    assert report.lines()[-6] == "" and report.lines()[-5:] == only.lines()
    assert report.as_data()["functions"] == (only,)


def test_profiles_of_a_run_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    folder = Runs(tmp_path).write(result(CASE))
    for attempt, count in ((1, 10.0), (2, 11.0)):
        file = folder.case_directory(CASE, attempt) / PROFILES
        file.write_text(json.dumps({"a_instructions": {"ffff82d040200000": count}}), encoding="utf-8")
    (folder.case_directory(f"{CASE}2", 1) / PROFILES).write_text("[", encoding="utf-8")
    assert folder.profiles() == {"a_instructions": {0xFFFF82D040200000: 11.0}}
    assert performance.read("A", folder).profiles == folder.profiles()


def test_what_a_payload_says_of_a_cost_is_read() -> None:
    line = parse_line("XL cost-page-fault INFO ticks=102400 rounds=128 agree=8 of=9 most=130000")
    assert isinstance(line, PayloadLine)
    (cost,) = costs.read([line])
    assert (cost.name, cost.ticks, cost.rounds, cost.is_undisturbed) == ("page_fault", 102400, 128, True)
    with pytest.raises(ProductFailure, match="cost-grant-error: error=-1"):
        costs.read([line, PayloadLine("cost-grant-error", "FAIL", "error=-1")])


@pytest.mark.parametrize(
    ("hypercall", "cpuid", "outcome"),
    [
        ((412.0, 412.0), (900.0, 900.0), "caught"),
        ((400.0, 400.0), (900.0, 900.0), "missed"),
        ((412.0, 412.0), (990.0, 990.0), "turned red"),
        ((412.0,), (900.0, 900.0), "not judged"),
    ],
)
def test_a_slower_build_is_caught_by_its_figure_and_by_no_other(
    hypercall: tuple[float, ...], cpuid: tuple[float, ...], outcome: str, tmp_path: Path
) -> None:
    slow = Slower("performance", "one", "why it is slow", ("pv64_hypercall",), "_ping$", "release", tmp_path)
    found = (
        compare("pv64_hypercall_instructions", "small", (400.0, 400.0), hypercall, is_count=True),
        compare("pv64_cpuid_instructions", "small", (900.0, 900.0), cpuid, is_count=True),
        compare("pv64_ping_instructions", "small", (5000.0, 5000.0), (6000.0, 6000.0), is_count=True),
    )
    assert slower.judge(slow, performance.Report(("a", "b"), found, (), tmp_path))[0] == outcome
    lost = performance.Report(("a", "b"), found, ("large: A: the board does not answer",), tmp_path)
    if outcome == "caught":
        assert slower.judge(slow, lost) == ("not judged", "not measured: pv64_hypercall on large"), "on each board"


def test_slower_builds_of_one_build_are_compared_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [Slower("performance", name, "why", ("a",), "(?!)", "release", tmp_path) for name in ("one", "two", "bad")]

    def make(recipe: str, **_: object) -> None:
        if recipe == "bad":
            raise BuildFailed("build bad: patching\nmore")

    def run_all(asked: Asked, say: object) -> list[performance.Report]:
        assert (asked.old, asked.new, asked.further) == ("release", "one", ("two",))
        both = [(400.0, 412.0), (400.0, 400.0)]
        found = [compare("a_instructions", "small", (old,) * 3, (new,) * 3, is_count=True) for old, new in both]
        return [performance.Report(("a", "b"), (one,), (), tmp_path) for one in found]

    monkeypatch.setattr(slower.builds, "make", make)
    monkeypatch.setattr(slower, "write_recipe", lambda one: Path(one.name))
    monkeypatch.setattr(performance, "run_all", run_all)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert slower.caught(slow, said.append) == ["caught", "missed", "not judged"]
    assert said[0] == "not judged  performance/bad: build bad: patching"


def test_cases_that_are_not_there_are_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance.builds, "make", lambda *_, **__: pytest.fail("a build was made"))
    with pytest.raises(UsageError, match="no case matches"):
        performance.run(Asked("release", "release", keyword="nothing_like_it"), print)


def test_an_a_that_cannot_be_built_says_nothing_of_b(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, **_: object) -> None:
        raise BuildFailed(f"build {name}: compiling")

    monkeypatch.setattr(performance.builds, "make", make)
    with pytest.raises(BenchError, match="nothing can be said of B: build release: compiling"):
        performance.run(Asked("release", "pv32-debug", keyword="pv64"), print)


def test_an_interrupt_of_the_terminal_reaches_a_board_once() -> None:
    """The parent passes it on. A child in the parent's process group would be interrupted at its cleaning up."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, performance._ignore_interrupts) as pool:
        assert pool.submit(os.getpgrp).result(60) != os.getpgrp()
        assert pool.submit(signal.getsignal, signal.SIGINT).result(60) is signal.SIG_IGN
