"""A night on shared boards: planned over all of them, stopped between cases, gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shared_lab import Shared, lab_of_four_fixture, pytestmark, shared_fixture  # noqa: F401

from lab.base import daytime, paths
from lab.base.errors import UsageError
from lab.base.wait import wait_until
from lab.cli import main
from lab.inventory import Lab
from lab.leases import queue
from lab.leases.records import Request, caller
from lab.night import nightly, planning, progress
from lab.night.options import NightlyOptions
from lab.night.planning import Case, Unit
from lab.results.record import BUILD_CASE, Verdict
from lab.results.run_folder import RunFolder
from lab.virtual import simulated

NIGHT = Path(__file__).parent / "soak" / "night.py"


class Night:
    """A night's process on the shared boards; its cases need nothing but the boards' BMCs."""

    def __init__(
        self, shared: Shared, run: Path, cases: int, seconds: float = 600.0, times: int = 1, builds: int = 2
    ) -> None:
        self.shared, self.run, self.log = shared, run, run.with_suffix(".log")
        self.script = NIGHT
        words = [str(shared.file), str(run), str(cases), str(seconds), str(times), str(builds)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(NIGHT), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=paths.environment(),
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def has_results(self, count: int) -> None:
        def are_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.run.exists() and len(list(RunFolder(self.run).results())) >= count

        wait_until(are_there, 90, f"{count} results")

    def ends(self, status: int, timeout: float = 120.0) -> RunFolder:
        assert self.process.wait(timeout) == status, self.log.read_text()
        return RunFolder.open(self.run)


@pytest.fixture
def start(shared: Shared, tmp_path: Path) -> Iterator[Callable[..., Night]]:
    """Begin a night, or go on with it: cases, seconds to the deadline, how often each is run, with how many builds."""
    started: list[Night] = []

    def begin(cases: int, seconds: float = 600.0, times: int = 1, builds: int = 2) -> Night:
        started.append(Night(shared, tmp_path / "run", cases, seconds, times, builds))
        return started[-1]

    yield begin
    for night in started:
        night.kill()


@pytest.mark.timeout(400)
def test_a_night_uses_all_pairs_and_shows_what_it_does(shared: Shared, start: Callable[..., Night]) -> None:
    night = start(4)

    def working() -> list[str]:
        found = progress.going_on(shared.lab)
        return found.lines()[2:] if found else []

    case_lines = wait_until(working, 90, "a case that runs", interval=0.05)
    data = json.loads(shared.xenlab("status", "--json"))["run"]
    assert data["folder"] == str(night.run) and set(data["verdicts"]) <= set(Verdict)
    assert "test_leases.py::test_" in case_lines[0] and case_lines[0].startswith("sim")
    shown = shared.xenlab("status")
    assert f"soak, one, two: {night.run}" in shown and "to go" in shown
    assert "/nightly" in shared.xenlab("who")
    folder = night.ends(0)
    final = folder.final_results()
    assert {result.verdict for result in final} == {Verdict.PASS} and len(final) == 8
    of_pairs = {result.boards for result in final if "test_pair" in result.case}
    assert of_pairs == {("sim1", "sim2"), ("sim3", "sim4")}
    assert "no run is going on" in shared.xenlab("status", status=3)
    wait_until(lambda: not shared.ledger.leases(), 30, "boards given back")


@pytest.mark.timeout(400)
def test_a_night_stops_at_its_deadline_and_goes_on_later(start: Callable[..., Night]) -> None:
    folder = start(200, seconds=30.0).ends(3)
    first = list(folder.results())
    assert first and folder.missing(), "something ran, and something did not"
    assert all(result.verdict is Verdict.PASS for result in first), "no case was cut off"
    assert (folder.header().cut_short or "").startswith("stopped at ")
    again = start(200)
    again.has_results(len(first) + 1)
    assert list(folder.results())[: len(first)] == first
    again.kill()
    twice = Counter((result.case, result.build) for result in folder.results()).most_common(1)
    assert twice[0][1] == 1, "what has a result is not run again"


@pytest.mark.timeout(400)
def test_a_night_runs_each_case_as_often_as_asked_and_goes_on_with_that(start: Callable[..., Night]) -> None:
    night = start(2, times=2, builds=1)
    night.has_results(3)
    night.kill()
    folder = start(2, times=2, builds=1).ends(0)
    tried = [(result.case, result.build, result.attempt) for result in folder.results()]
    assert set(Counter((case, build) for case, build, _ in tried).values()) == {2}
    assert sorted({attempt for *_, attempt in tried}) == [1, 2] and len(set(tried)) == 4
    assert not folder.due() and not folder.header().notes


@pytest.mark.timeout(400)
def test_a_night_gives_way_to_a_person_between_cases(shared: Shared, start: Callable[..., Night]) -> None:
    night = start(10, builds=1)
    night.has_results(1)
    person = shared.ask("sim1", user="carol")
    shared.held(person, timeout=60)
    shared.ledger.end(person, "is done")
    folder = night.ends(0)
    assert {result.verdict for result in folder.final_results()} == {Verdict.PASS} and not folder.missing()
    assert any("stopped: desk/carol waits for it" in note for note in folder.header().notes)


@pytest.mark.timeout(400)
def test_what_is_left_of_a_pair_works_alone(shared: Shared, start: Callable[..., Night]) -> None:
    person = shared.ask("sim1", user="carol")
    shared.held(person, timeout=60)
    night = start(6, builds=1)

    def has_alone() -> bool:
        assert night.process.poll() is None, night.log.read_text()
        return ("sim2",) in [lease.boards for lease in shared.ledger.leases("held")]

    wait_until(has_alone, 60, "the night has sim2 without sim1")
    night.has_results(1)
    shared.ledger.end(person, "is done")
    folder = night.ends(0, timeout=240)
    final = folder.final_results()
    assert {result.verdict for result in final} == {Verdict.PASS} and not folder.missing()
    wait_until(lambda: not shared.ledger.leases(), 30, "boards given back")


@pytest.mark.timeout(400)
def test_a_night_works_on_the_callers_board_and_on_its_free_partner(
    shared: Shared, start: Callable[..., Night]
) -> None:
    mine = shared.ledger.ask(Request("person", caller(), 600.0, ("sim1",)))
    shared.held(mine)
    folder = start(6, builds=1).ends(0, timeout=240)
    final = folder.final_results()
    assert {result.verdict for result in final} == {Verdict.PASS} and not folder.missing()
    assert {board for result in final for board in result.boards} >= {"sim1", "sim2"}
    assert shared.ledger.lease(mine).state == "held"
    shared.ledger.end(mine, "is done")


@pytest.mark.timeout(400)
def test_a_sick_board_never_fails_a_build(shared: Shared, start: Callable[..., Night]) -> None:
    shared.ledger.quarantine("sim3", "smells of smoke")
    shared.chassis["sim1"].set(failures=1000)
    try:
        folder = start(2).ends(3, timeout=200)
    finally:
        shared.chassis["sim1"].set(failures=0)
    notes = "\n".join(folder.header().notes)
    assert "sim3 is quarantined: smells of smoke: not used" in notes
    assert "sim1 is quarantined: power:" in notes, "it was looked at before use"
    assert "1 cases with one did not run: the boards that they need are in quarantine" in notes
    final = folder.final_results()
    assert {result.boards for result in final} <= {("sim2",), ("sim4",)}
    assert {result.verdict for result in final} == {Verdict.PASS} and len(final) == 2


# -- planning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path: Path) -> Lab:
    return simulated.lab(tmp_path / "five.yaml", 5)


def plan(lab: Lab, cases: list[Case], **seconds: float) -> dict[str, list[list[tuple[str, ...]]]]:
    units = queue.units(lab, frozenset(lab.boards))
    planned = planning.plan(cases, units, "b", seconds)
    return {
        "+".join(board.name for board in unit): [[(*share.boards, *share.cases) for share in turn] for turn in turns]
        for unit, turns in planned.items()
    }


def case(name: str, boards: int = 1, *needs: str, area: str = "x", attempt: int = 1) -> Case:
    return Case(name, area, boards, needs, attempt)


def test_cases_of_pairs_go_over_all_pairs_and_single_ones_rather_elsewhere(five: Lab) -> None:
    cases = [case("p1", 2), case("p2", 2), case("s1"), case("s2")]
    assert plan(five, cases, p1=50, p2=50, s1=20, s2=20) == {
        "sim1+sim2": [[("sim1",), ("sim2",)], [("sim1", "sim2", "p1")]],
        "sim3+sim4": [[("sim3",), ("sim4",)], [("sim3", "sim4", "p2")]],
        "sim5": [[("sim5", "s1", "s2")]],
    }


def test_longest_first_and_only_where_it_can_run(five: Lab) -> None:
    assert "migration-pair" not in five.boards["sim5"].capabilities
    planned = plan(five, [case("short"), case("long"), case("able", 1, "migration-pair")], short=1, long=90, able=50)
    assert planned == {"sim1+sim2": [[("sim1", "long"), ("sim2", "able")]], "sim3+sim4": [[("sim3", "short")]]}


def test_boards_of_a_pair_work_alone_first_and_again_for_another_attempt(five: Lab) -> None:
    cases = [case("a"), case("b", area="boot"), case("c", attempt=2), case("p", 2)]
    units = queue.units(five, frozenset({"sim1", "sim2"}))
    ((_, turns),) = planning.plan(cases, units, "b", {"a": 1.0, "b": 1.0, "c": 1.0, "p": 1.0}).items()
    assert [[(share.boards, share.cases, share.attempt) for share in turn] for turn in turns] == [
        [(("sim1",), ("a",), 1), (("sim2",), ("b",), 1)],
        [(("sim1",), ("c",), 2)],
        [(("sim1", "sim2"), ("p",), 1)],
    ]


def test_a_host_that_comes_back_between_two_looks_is_no_board_in_quarantine(five: Lab) -> None:
    """Its board was not there when cases were chosen, and no host is away when one is to be waited for."""
    looks = [queue.units(five, frozenset(names)) for names in (("sim1", "sim3", "sim5"), tuple(five.boards))]

    class Mustering(Exception):
        pass

    class Crew:
        is_over = False

        def possible(self) -> list[Unit]:
            return looks.pop(0) if len(looks) > 1 else looks[0]

        def has_away(self) -> bool:
            return False

        await_away = has_away

        def muster(self, _: object) -> list[Unit]:
            raise Mustering

    night: Any = object.__new__(nightly.Night)
    night._lab, night._cases = five, [case("p1", 2)]
    night._left = lambda build, crew: night._cases
    night._phase = lambda name: contextlib.nullcontext()
    night._fail = pytest.fail
    with pytest.raises(Mustering):
        night._run_build("b", Crew())


def test_what_nobody_can_run_is_said_by_the_first_board(five: Lab) -> None:
    units = queue.units(five, frozenset({"sim5"}))
    ((unit, [[share]]),) = planning.plan([case("p", 2), case("s", 1, "sriov")], units, "b", {}).items()
    assert [board.name for board in unit] == ["sim5"] and share.cases == ("p", "s")


@pytest.mark.parametrize(
    ("text", "then"), [("07:00", "2026-11-25 07:00"), ("23:59", "2026-11-24 23:59"), ("7:05", "2026-11-25 07:05")]
)
def test_the_next_time_a_clock_shows(text: str, then: str) -> None:
    now = time.mktime(time.strptime("2026-11-24 22:00", "%Y-%m-%d %H:%M"))
    assert daytime.next_time(text, now) == time.mktime(time.strptime(then, "%Y-%m-%d %H:%M"))


@pytest.mark.parametrize("text", ["24:00", "7", "07:60", "noon"])
def test_no_time_of_day(text: str) -> None:
    with pytest.raises(UsageError, match="use HH:MM"):
        daytime.next_time(text, 0.0)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    (tmp_path / "xenlab").mkdir()
    program = tmp_path / "xenlab" / "xenlab"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for source in sorted((paths.CHECKOUT / "contrib" / "systemd").iterdir()):
        units.append(tmp_path / source.name.replace("@", "@rack"))
        units[-1].write_text(source.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, units)],
        env=os.environ | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "xenlab" in line]
    assert (done.returncode, about_ours) == (0, [])


# -- a night that is killed ----------------------------------------------------------------------------------------

CARELESS = """
import signal, sys, time
from pathlib import Path
from lab.night import workers
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell
print(workers.spawn(["sleep", "600"], Path(sys.argv[1]), 1).pid, flush=True)
time.sleep(600)
"""


def test_workers_do_not_outlive_a_night_that_is_killed(tmp_path: Path) -> None:
    """They would go on with boards that the reaper takes away, and call what comes of it a failure."""
    command = [sys.executable, "-P", "-c", CARELESS, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths.environment()) as night:
        assert night.stdout
        worker = int(night.stdout.readline())
        try:
            wait_until(lambda: Path(f"/proc/{worker}/comm").read_text() == "sleep\n", 20, "the worker works")
            night.kill()
            wait_until(lambda: not Path(f"/proc/{worker}").exists(), 20, "the worker is gone")
        finally:
            night.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


# -- a build that cannot be made -----------------------------------------------------------------------------------

BROKEN = """\
all:
\t@echo "main.c:1:5: error: expected ';' before '}' token"; echo "    1 | int main(void) { return 0 }"; false
%:
\t@touch .config
xenversion:
\t@echo 4.99.0
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose source does not compile; what is made beside builds is not made."""
    for variable in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable))
    monkeypatch.setattr(nightly, "prepare", lambda lab, progress: None)
    repository = tmp_path / "xen.git"
    (repository / "xen").mkdir(parents=True)
    (repository / "xen" / "Makefile").write_text(BROKEN)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q", "-b", "staging"], ["add", "-A"], ["commit", "-q", "-m", "break it"]):
        subprocess.run([*git, *words], check=True, timeout=30)
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("source:\n  git: {path: xen.git}\n")
    return recipe


def test_a_build_that_does_not_compile_fails_the_run_and_shows_the_compilers_lines(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = NightlyOptions(
        paths=("testcases/boot",), builds=(str(broken),), output=tmp_path / "run", is_remembered=False
    )
    assert nightly.run(options) == 1
    folder = RunFolder.open(tmp_path / "run")
    (result,) = folder.results()
    assert (result.case, result.build, result.verdict) == (BUILD_CASE, "broken", Verdict.FAIL)
    assert (result.rule, result.boards) == ("build-failed", ())
    assert "make ended with status 2: main.c:1:5: error: expected" in result.reason
    (told,) = result.evidence
    assert "\nmain.c:1:5: error: expected ';' before '}' token\n    1 | int main(void) { return 0 }\n" in told.body
    header = folder.header()
    assert header.builds == ("broken",) and header.exit_status == 1
    assert folder.sources()["broken"].subject == "break it"
    assert folder.missing(), "the cases did not run, and the run says so"
    said = capsys.readouterr().out
    assert "no case ran with broken" in said and "\\n" not in said
    assert "main.c:1:5: error" in (tmp_path / "run" / "report.html").read_text()
    noted = json.loads((tmp_path / "run" / "builds.json").read_text())
    assert set(noted["broken"]) == {"recipe", "source"}, "there is no build, so it has no key"


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT (Ctrl-C)")])
def test_an_interrupted_night_notes_by_what(
    number: signal.Signals, said: str, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly, "prepare", lambda lab, progress: signal.raise_signal(number))
    options = NightlyOptions(
        paths=("testcases/boot",), builds=(str(broken),), output=tmp_path / "run", is_remembered=False
    )
    before = signal.signal(number, main._terminate if number is signal.SIGTERM else signal.default_int_handler)
    try:
        assert nightly.run(options) == 130
    finally:
        signal.signal(number, before)
    assert f"interrupted by {said}: the rest did not run" in RunFolder.open(tmp_path / "run").header().remarks


def test_two_recipes_of_one_name_are_refused(broken: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "broken.yaml"
    other.parent.mkdir()
    other.write_text(broken.read_text().replace("xen.git", "../xen.git"))
    options = NightlyOptions(builds=(str(broken), str(other)), output=tmp_path / "run", is_remembered=False)
    with pytest.raises(UsageError, match="are both called broken: rename one"):
        nightly.run(options)
