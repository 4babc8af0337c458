"""The run folder: what is on disk when several write, when one dies, when the disk is full."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.base import paths
from lab.base.errors import UsageError
from lab.night.options import NightlyOptions
from lab.results import pruning, run_folder, summary
from lab.results.record import NESTED_GUEST_CRASH, Evidence, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder, kinds_path
from lab.results.summary import exit_status

S3 = "testcases/sleep/test_s3.py::test_s3_rtc_wake"
PV32 = "testcases/guest32/test_pv32.py::test_pv32_runs[hvm]"


def header(**changes: object) -> RunHeader:
    plain = RunHeader(
        run_id="20261123-083353-1a2b",
        started=1795000000.0,
        selection="full",
        builds=("pv32-debug",),
        boards={"virt1": {"class": "virtual"}},
        planned=(PV32, S3),
        required_areas=("guest32", "sleep"),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def result(case: str = PV32, verdict: Verdict = Verdict.PASS, **changes: object) -> TestResult:
    area = case.split("/")[1]
    plain = TestResult(case, area, verdict, "passed", "", 1.0, 2.0, ("virt1",), "pv32-debug")
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", header())


# the folder


def test_a_new_folder_holds_its_header(folder: RunFolder) -> None:
    assert RunFolder.open(folder.path).header() == header()
    assert list(folder.results()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="new or empty"):
        RunFolder.create(tmp_path, header())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        RunFolder.create(tmp_path / name, header())


def test_opening_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UsageError, match=r"run\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "results.jsonl", "builds.json"])
@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir], ids=["pipe", "device", "folder"]
)
def test_what_is_no_file_in_a_folder_from_elsewhere_keeps_nobody_waiting(
    folder: RunFolder, name: str, put: Callable[[Path], None]
) -> None:
    file = folder.path / name
    file.unlink(missing_ok=True)
    put(file)
    if name == "builds.json":  # only facts, which may be missing
        assert RunFolder.open(folder.path).builds() == {}
        return
    with pytest.raises(UsageError, match=rf"{folder.path}.*{name}: (Not a regular file|Is a directory)"):
        RunFolder.open(folder.path)


def test_a_line_that_is_too_long_for_a_result_hides_no_other(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_LINE_LIMIT", 5000)
    with open(folder.path / "results.jsonl", "ab") as file:
        file.write(b"\0" * 20_000 + b"\n")
    folder.append(result("testcases/boot/test_a.py::test_b"))
    assert [one.case for one in folder.results()] == ["testcases/boot/test_a.py::test_b"]


def test_a_line_that_is_being_written_is_waited_for(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = result("testcases/boot/test_a.py::test_b").to_json().encode() + b"\n"
    with open(folder.path / "results.jsonl", "ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(line[: len(line) // 2])
        monkeypatch.setattr(run_folder, "_WRITING", 0.05)
        assert not list(folder.results()), "it stands still"
        assert "passed over" in caplog.text
        caplog.clear()
        monkeypatch.setattr(run_folder, "_WRITING", 30.0)

        def end(_: float) -> None:
            writer.write(line[len(line) // 2 :])
            fcntl.flock(writer, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", end)
        assert [one.case for one in folder.results()] == ["testcases/boot/test_a.py::test_b"]
    assert not caplog.text


def test_gigabytes_of_zeros_are_given_up_in_time_and_that_is_said(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_folder, "_LINE_LIMIT", 5000)
    folder.append(result("testcases/boot/test_a.py::test_b"))
    with open(folder.path / "results.jsonl", "ab") as file:
        file.truncate(3 << 30)
    monkeypatch.setattr(run_folder, "_PASSED_LIMIT", 8 << 20)
    began = time.process_time()
    assert [one.case for one in folder.results()] == ["testcases/boot/test_a.py::test_b"]
    assert time.process_time() - began < 5
    assert f"{folder.path}/results.jsonl:2: passed over" in caplog.text
    monkeypatch.setattr(run_folder.os, "lseek", lambda descriptor, place, how: place)  # a file system without holes
    assert [one.case for one in folder.results()] == ["testcases/boot/test_a.py::test_b"]
    assert f"{folder.path}/results.jsonl: what follows a line of more than 8 MiB is not read" in caplog.text


def test_the_header_is_replaced_as_a_whole(folder: RunFolder) -> None:
    folder.write_header(header(finished=5.0, exit_status=0))
    assert folder.header().exit_status == 0
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".run.json")]


def test_facts_of_builds_are_kept(folder: RunFolder) -> None:
    assert folder.builds() == {}
    folder.write_builds({"pv32-debug": {"build id": "abcd", "version": "4.20"}})
    assert folder.builds()["pv32-debug"]["build id"] == "abcd"


# results


def test_results_come_back_as_they_were(folder: RunFolder) -> None:
    one = result(evidence=(Evidence("console", "t", "\x00\x1b[2J\ud800 ü\n", 1.0, "virt1"),))
    folder.append(one)
    assert list(folder.results()) == [one]


def _append_many(path: Path, board: str) -> None:
    folder = RunFolder.open(path)
    for number in range(150):
        folder.append(result(f"testcases/boot/test_{board}.py::test_{number}", doc=board * (number * 40)))


def test_two_processes_append_at_once(folder: RunFolder) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(folder.path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    lines = (folder.path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 300
    assert len({json.loads(line)["case"] for line in lines}) == 300


@pytest.mark.parametrize("torn", ["", '{"case": "x', "\x00\x00\x00", '{"case": "x"}', "[1]", "7"])
def test_a_torn_last_line_is_passed_over_and_does_not_swallow_the_next(folder: RunFolder, torn: str) -> None:
    folder.append(result())
    with open(folder.path / "results.jsonl", "a") as file:
        file.write(torn)
    assert [one.case for one in folder.results()] == [PV32]
    folder.append(result(S3))
    assert [one.case for one in folder.results()] == [PV32, S3]


def _fill_the_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = RunFolder.open(path)
    size = (path / "results.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3000, size + 3000))
    try:
        folder.append(result(S3, doc="x" * 8000))
    except OSError:
        folder.append(result(S3, doc="short"))  # there is room for this one
        os._exit(7)


def test_a_full_disk_is_said_and_leaves_what_was_there(folder: RunFolder) -> None:
    folder.append(result())
    writer = multiprocessing.get_context("spawn").Process(target=_fill_the_disk, args=(folder.path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 7
    assert [(one.case, one.doc) for one in folder.results()] == [(PV32, ""), (S3, "short")]
    assert (folder.path / "results.jsonl").read_bytes().count(b"\n") == 2


def test_the_last_attempt_decides_in_the_order_of_the_plan(folder: RunFolder) -> None:
    extra = "testcases/boot/test_boot.py::test_unplanned"
    for one in (
        result(extra),
        result(S3, Verdict.MISS, attempt=1),
        result(S3, Verdict.PASS, attempt=2),
        result(PV32, Verdict.MISS),
        result(PV32, Verdict.PASS),  # of a run that was gone on with
    ):
        folder.append(one)
    assert [(one.case, one.verdict) for one in folder.final_results()] == [
        (PV32, Verdict.PASS),
        (S3, Verdict.PASS),
        (extra, Verdict.PASS),
    ]


@pytest.mark.parametrize(
    ("attempts", "decides", "flaky"),
    [
        ([(Verdict.MISS, "transient"), (Verdict.PASS, "passed")], 1, True),
        ([(Verdict.FAIL, "assertion"), (Verdict.PASS, "passed")], 0, False),  # nothing fails and then passes
        ([(Verdict.PASS, "passed"), (Verdict.FAIL, "assertion"), (Verdict.MISS, "bench")], 1, False),
        ([(Verdict.MISS, NESTED_GUEST_CRASH), (Verdict.PASS, "passed"), (Verdict.PASS, "passed")], 0, False),
        ([(Verdict.MISS, NESTED_GUEST_CRASH), (Verdict.FAIL, "guest-crash-repeats")], 1, False),
        ([(Verdict.PASS, "passed")], 0, False),
    ],
)
def test_of_several_attempts_one_decides(attempts: list[tuple[Verdict, str]], decides: int, flaky: bool) -> None:
    tried = [result(S3, verdict, rule=rule, attempt=n + 1) for n, (verdict, rule) in enumerate(attempts)]
    assert summary.deciding(tried) is tried[decides]
    assert summary.is_flaky(tried) is flaky


def test_each_build_decides_for_itself(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", header(builds=("old", "new")))
    folder.append(result(PV32, Verdict.FAIL, build="new"))
    folder.append(result(PV32, build="old"))
    assert [(one.build, one.verdict) for one in folder.final_results()] == [("old", "PASS"), ("new", "FAIL")]
    assert [(one.case, one.build) for one in folder.missing()] == [(S3, "old"), (S3, "new")]


def test_repeated_cases_are_due_until_each_ran_that_often_and_pass_each_time(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", header(repeat=3))
    for attempt in (1, 2):
        folder.append(result(S3, attempt=attempt))
        folder.append(result(PV32, Verdict.MISS if attempt == 1 else Verdict.PASS, attempt=attempt))
    assert [one.case for one in folder.due()] == [PV32, S3] and not folder.missing()
    unwell = "did not PASS each time: 1 cases"
    assert summary.short_of_repeats(folder.header(), folder.results()) == [
        "2 of the attempts that were asked for did not run",
        unwell,
    ]
    for case in (S3, PV32):
        folder.append(result(case, attempt=3))
    assert not folder.due()
    assert summary.short_of_repeats(folder.header(), folder.results()) == [unwell]


# exit status


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ((Verdict.PASS, Verdict.PASS), 0),
        ((Verdict.PASS, Verdict.FAIL), 1),
        ((Verdict.PASS, Verdict.ERROR), 1),
        ((Verdict.MISS, Verdict.FAIL), 1),
        ((Verdict.PASS, Verdict.MISS), 3),
        ((Verdict.PASS, Verdict.SKIP), 3),  # area sleep has no PASS
        ((Verdict.SKIP, Verdict.SKIP), 3),
        ((Verdict.PASS,), 3),  # one is missing
        ((Verdict.FAIL,), 1),
        ((), 3),
    ],
)
def test_exit_status(verdicts: tuple[Verdict, ...], status: int) -> None:
    results = [result(case, verdict) for case, verdict in zip((PV32, S3), verdicts, strict=False)]
    assert exit_status(header(), results) == status


def test_exit_status_without_a_plan_and_required_areas() -> None:
    free = header(planned=(), required_areas=())
    assert exit_status(free, [result(), result(S3, Verdict.SKIP)]) == 0
    assert exit_status(free, [result(verdict=Verdict.SKIP)]) == 3
    assert exit_status(free, []) == 3


def test_exit_status_counts_the_deciding_attempt_only() -> None:
    attempts = [result(), result(S3, Verdict.MISS, attempt=1), result(S3, attempt=2)]
    assert exit_status(header(), attempts) == 0


# what cases leave


def test_case_folders_are_readable_unique_and_stay_inside(folder: RunFolder) -> None:
    hostile = [
        "a.py::t[../../etc]",
        "a.py::t[..-..-etc]",
        "a.py::t[" + "x" * 500 + "]",
        "a.py::t[\x00\n]",
        "..",
        "",
    ]
    made = [folder.case_directory(name, 1) for name in hostile]
    assert len(set(made)) == len(made)
    for path in made:
        assert path.is_dir()
        assert path.resolve().is_relative_to(folder.path / "cases")
    assert "sleep-test_s3-test_s3_rtc_wake" in str(folder.case_directory(S3, 2))
    assert folder.case_directory(S3, 2).name == "2"
    assert folder.case_directory(S3, 1, "old") != folder.case_directory(S3, 1, "new")


@dataclass(frozen=True)
class Line:
    time: float
    kind: str
    text: str


def test_a_console_is_written_with_times_and_gaps(folder: RunFolder) -> None:
    lines = [
        Line(1795422833.1234, "line", "(XEN) hello\x1b[2J\x00\r"),
        Line(1795422834.0, "gap", "SOL lost\nfor good"),
        Line(1795422835.9999, "open", "back"),
        Line(1795422836.0, "line", "--- gap: a board's own words ---"),
    ]
    where = folder.write_console(folder.case_directory(S3, 1), "virt1", lines)
    assert where.endswith("/1/virt1.console.log")
    assert (folder.path / where).read_text().splitlines() == [
        r"2026-11-23T08:33:53.123Z (XEN) hello\x1b[2J\x00\x0d",
        r"2026-11-23T08:33:54.000Z --- gap: SOL lost\nfor good ---",
        "2026-11-23T08:33:55.999Z --- open: back ---",
        "2026-11-23T08:33:56.000Z --- gap: a board's own words ---",
    ]
    kinds = [json.loads(row) for row in kinds_path(folder.path / where).read_text().splitlines()]
    assert kinds == [{"line": 2, "kind": "gap"}, {"line": 3, "kind": "open"}]


# what is kept


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("cache", "state"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(paths, name, lambda name=name: tmp_path / name)
    return tmp_path


def old_run(homes: Path, days: float, name: str = "") -> Path:
    path = homes / "state" / "runs" / (name or f"run-{days:g}")
    RunFolder.create(path, header(started=time.time() - days * 86400))
    return path


def old_thing(homes: Path, kind: str, name: str, days: float) -> Path:
    path = homes / "cache" / kind / name
    path.mkdir(parents=True)
    marker = path / {"builds": "build.json", "images": "made"}.get(kind, "payload")
    marker.write_text("1")
    then = time.time() - days * 86400
    os.utime(marker, (then, then))
    return path


def test_old_runs_beyond_the_newest_go(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RUNS_KEPT", 2)
    made = {days: old_run(homes, days) for days in (1, 13, 15, 20)}
    said = pruning.prune(dry_run=True)
    assert all(path.exists() for path in made.values())
    assert pruning.prune() == said
    assert [line.split("  ")[0] for line in said] == ["run run-15", "run run-20"]
    assert [days for days, path in made.items() if path.exists()] == [1, 13]
    assert [path.name for path in (homes / "state" / "runs").iterdir() if path.name.startswith(".")] == []


def test_runs_over_the_room_go_but_never_the_newest(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RUNS_BYTES", 1)
    made = [old_run(homes, days) for days in (1, 2)]
    pruning.prune()
    assert [path.exists() for path in made] == [True, False]


def test_a_run_somebody_writes_to_stays(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RUNS_KEPT", 1)
    old_run(homes, 1)
    path = old_run(homes, 100)
    writer = RunFolder.open(path)
    writer.append(result())
    assert pruning.prune() == []
    del writer
    assert len(pruning.prune()) == 1


def test_other_things_among_the_runs_stay(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RUNS_KEPT", 0)
    (homes / "state" / "runs" / "mine").mkdir(parents=True)
    precious = homes / "precious"
    RunFolder.create(precious, header(started=1.0))
    (homes / "state" / "runs" / "link").symlink_to(precious)
    old_run(homes, 1)
    assert pruning.prune() == []
    assert (precious / "run.json").exists()


@pytest.mark.parametrize(("what", "where"), [("try", "tries"), ("perf", "perf")])
def test_an_old_try_or_comparison_goes(homes: Path, what: str, where: str) -> None:
    old, new = (homes / "state" / where / name for name in ("old", "new"))
    for folder in (old, new):
        (folder / "run").mkdir(parents=True)
        (folder / "reply.txt").write_text("Subject: Re: x86\n")
    before = time.time() - (pruning.RUNS_DAYS + 1) * pruning.DAY
    os.utime(old / "reply.txt", (before, before))
    assert [line.partition("  ")[0] for line in pruning.prune()] == [f"{what} old"]
    assert not old.exists() and new.exists()


def test_unused_builds_images_payloads_and_states_go(homes: Path) -> None:
    gone = [old_thing(homes, kind, "old", 31) for kind in ("builds", "images", "payloads", "states")]
    kept = [old_thing(homes, kind, "new", 29) for kind in ("builds", "images", "payloads", "states")]
    kept.append(old_thing(homes, "trees", "old", 31))
    assert len(pruning.prune()) == 4
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_bytecode_of_what_is_gone_goes(homes: Path) -> None:
    checkout, gone = homes / "checkout", homes / "venv-1" / "lib"
    (checkout / "lab").mkdir(parents=True)
    compiled = [homes / "cache" / "bytecode" / folder.relative_to("/") for folder in (checkout / "lab", gone)]
    for folder in compiled:
        folder.mkdir(parents=True)
        (folder / "x.cpython-311.pyc").write_text("x")
    (compiled[0].parent / "old").mkdir()
    said = [line.partition("  ")[0] for line in pruning.prune(dry_run=True)]
    assert said == [f"bytecode of {checkout}/old", f"bytecode of {gone.parent}"]
    assert [line.partition("  ")[0] for line in pruning.prune()] == said
    assert (compiled[0] / "x.cpython-311.pyc").exists() and not compiled[1].parent.exists()
    assert pruning.prune() == []


def test_what_is_open_or_locked_stays(homes: Path) -> None:
    import fcntl

    opened, locked = old_thing(homes, "images", "opened", 90), old_thing(homes, "builds", "locked", 90)
    with open(opened / "made"), open(homes / "cache" / "builds" / "locked.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pruning.prune() == []
    assert opened.exists()
    assert locked.exists()
    assert len(pruning.prune()) == 2


def test_a_heading_names_a_few_cases_and_counts_the_others() -> None:
    cases = tuple(f"{paths.CHECKOUT}/testcases/{area}" for area in ("boot", "guest32", "sleep", "relocation", "xtf"))
    assert NightlyOptions(cases[:1], keyword="s3").describe("full") == "full testcases/boot -k s3"
    said = NightlyOptions(cases).describe("weekly")
    assert said == "weekly testcases/boot testcases/guest32 testcases/sleep and 2 more"
