"""The command line: help, completion, JSON, and one message with the right status for each mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from run_folders import PV32, Runs, result
from shared_lab import Shared, lab_of_four_fixture, shared_fixture  # noqa: F401

import lab
from lab import inventory
from lab.base import lock, paths
from lab.base.errors import UsageError
from lab.builds import apt
from lab.builds.command import CommandError
from lab.cli import main as cli
from lab.cli import starter
from lab.cli.main import app
from lab.cli.manual import page
from lab.grid import services
from lab.inventory import ports
from lab.night import bisection, nightly, planning
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.reporting.terminal import Progress
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@dataclass(frozen=True)
class Said:
    """What a command left."""

    status: int
    out: str
    err: str


Xenlab = Callable[..., Said]


@pytest.fixture
def process(tmp_path: Path) -> Xenlab:
    """``python -m lab.cli WORDS`` with a state folder of its own."""

    def run(*words: str, **environment: str) -> Said:
        return _run([*words], tmp_path, environment)

    return run


@pytest.fixture(name="here")
def here_fixture(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[Path], Xenlab]]:
    """``here(FOLDER)(WORDS)``: a command in this process, with its state in the folder."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def at(folder: Path) -> Xenlab:
        def run(*words: str, **environment: str) -> Said:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (_own(folder) | environment).items():
                    patch.setenv(name, value)
                patch.chdir(folder)
                capsys.readouterr()
                with pytest.raises(SystemExit) as ended:
                    cli.main(words)
            said = capsys.readouterr()
            assert isinstance(ended.value.code, int)
            return Said(ended.value.code, said.out, said.err)

        return run

    yield at
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def xenlab(here: Callable[[Path], Xenlab], tmp_path: Path) -> Xenlab:
    """A command in this process with a state folder of its own."""
    return here(tmp_path)


def _own(folder: Path) -> dict[str, str]:
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config"), "COLUMNS": "100"}
    return own | {"XENLAB_PACKAGES_CHECKED": "1"}


def _run(words: Sequence[str], folder: Path, environment: dict[str, str], redirect: str = "") -> Said:
    command = [sys.executable, "-P", "-m", "lab.cli", *words]
    if redirect:
        command = ["bash", "-c", f'"$@" {redirect}', "bash", *command]
    done = subprocess.run(
        command,
        env=paths.environment() | _own(folder) | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


# help, version, completion, manual page


@pytest.mark.parametrize("words", [("-h",), ("--help",), ()])
def test_help_lists_the_commands_by_role(process: Xenlab, words: tuple[str, ...]) -> None:
    said = process(*words)
    assert said.status == 0
    roles = [
        "Run cases",
        "Read results",
        "Share boards",
        "Use a board that you hold",
        "Rack boards",
        "Set up",
    ]
    assert [role for role in roles if f"─ {role}" in said.out] == roles
    assert said.out.index("Read results") < said.out.index("│ gate ") < said.out.index("Share boards")


def test_every_command_has_short_help(xenlab: Xenlab) -> None:
    assert "--deadline" in xenlab("nightly", "-h").out and "--ports" in xenlab("lab", "up", "-h").out


def test_words_for_ssh_are_not_taken_for_ours(xenlab: Xenlab) -> None:
    said = xenlab("ssh", "virt1", "df", "-h")
    assert said.status == 2 and "you do not hold virt1" in said.err


def test_version_is_said_in_one_place(xenlab: Xenlab) -> None:
    assert xenlab("--version").out == xenlab("version").out
    assert xenlab("--version").out.startswith(f"xenlab {lab.__version__} (labgrid ")


def test_shell_completes_commands_and_options(process: Xenlab) -> None:
    words = {"_XENLAB_COMPLETE": "complete_bash", "COMP_WORDS": "xenlab hist", "COMP_CWORD": "1"}
    assert process(**words).out.split() == ["history"]
    words |= {"COMP_WORDS": "xenlab nightly --dead", "COMP_CWORD": "2"}
    assert process(**words).out.split() == ["--deadline"]
    said = process("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_XENLAB_COMPLETE=complete_bash" in said.out


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_manual_page_has_every_command_and_no_roff_mistake(xenlab: Xenlab) -> None:
    text = xenlab("man").out
    assert text == page(typer.main.get_command(app))
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-c"], input=text, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    for words in ("xenlab nightly", "xenlab lab fault", "xenlab board probe", "--deadline", "EXIT STATUS"):
        assert words in re.sub(".\b", "", done.stdout), words  # bold is a letter twice over itself


# mistakes


def test_nightly_refuses_a_folder_without_xtf(xenlab: Xenlab, tmp_path: Path) -> None:
    said = xenlab("nightly", "--xtf", "/nope")
    assert (said.status, said.err) == (2, "xenlab: --xtf /nope: there is no such folder\n")
    said = xenlab("nightly", "--xtf", str(tmp_path))
    assert said.status == 2 and "no built XTF: it has no tests/NAME/info.json" in said.err
    assert not (tmp_path / "state" / "xenlab" / "runs").exists()


def _xtf(folder: Path) -> Path:
    test = folder / "xtf" / "tests" / "good"
    test.mkdir(parents=True)
    facts = {"name": "good", "category": "functional", "environments": ["pv64"]}
    (test / "info.json").write_text(json.dumps(facts))
    (test / "test-pv64-good").touch()
    (test / "test-pv64-good.cfg").touch()
    return folder / "xtf"


def test_selection_that_has_the_cases_is_named(xenlab: Xenlab, tmp_path: Path) -> None:
    said = xenlab("nightly", "--xtf", str(_xtf(tmp_path)), "testcases/xtf")
    assert said.status == 2
    assert said.err == "xenlab: testcases/xtf: no case in the selection quick; --select full has 1 case\n"
    said = xenlab("nightly", "-k", "no_such_case")
    assert (said.status, said.err) == (2, "xenlab: -k 'no_such_case': no case matches\n")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("-k", "foo bar("), "Wrong expression passed to '-k': foo bar(: at column 5"),
        (("-m", "quck"), "Unknown marker(s) in '-m' expression: quck."),
        (("testcases/nope",), "file or directory not found: testcases/nope"),
    ],
)
def test_wrong_selection_is_one_line(xenlab: Xenlab, words: tuple[str, ...], wanted: str) -> None:
    said = xenlab("nightly", *words)
    assert said.status == 2 and said.err.startswith(f"xenlab: the cases cannot be collected: {wanted}")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (("--build", "release"), "--build"),
        (("testcases/boot", "-k", "s3", "--select", "full"), "PATHS, -k, --select"),
        (("--repeat", "2"), "--repeat"),
    ],
)
def test_resumed_run_takes_nothing_that_would_change_it(
    xenlab: Xenlab, tmp_path: Path, words: tuple[str, ...], left_out: str
) -> None:
    said = xenlab("nightly", "--resume", str(tmp_path), *words)
    assert said.status == 2 and said.err.endswith(f"; leave out {left_out}\n")


def test_state_folder_that_cannot_be_written_is_named(xenlab: Xenlab) -> None:
    for words in (("history",), ("boards",), ("report",)):
        said = xenlab(*words, XDG_STATE_HOME="/proc/x")
        assert said.status == 2, said
        assert said.err.startswith("xenlab: cannot make /proc/x/xenlab: ")
        assert said.err.endswith("; point XDG_STATE_HOME to a folder you can write\n") and said.out == ""


def test_site_that_cannot_be_written_is_wrong_use(xenlab: Xenlab) -> None:
    said = xenlab("report", "--site", "/proc/x")
    assert said.status == 2 and said.err.startswith("xenlab: --site /proc/x: cannot write there: "), said


@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_streams_change_no_status(tmp_path: Path, redirect: str) -> None:
    for words, status in ((["boards"], 0), (["who"], 0), (["boards", "--inventory", "/nope"], 2), (["status"], 3)):
        said = _run(words, tmp_path, {}, redirect)
        assert said.status == status, (words, said)
        assert "Traceback" not in said.err and "Exception" not in said.err


def test_full_output_is_one_message(tmp_path: Path) -> None:
    said = _run(["cases"], tmp_path, {}, ">/dev/full")
    assert said.status == 3 and len(said.err.splitlines()) == 1 and "No space left" in said.err, said


def test_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    said = _run(["cases"], tmp_path, {}, "| head -n 1")
    assert said.out.startswith("# ") and said.err == ""


def test_a_run_of_accept_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    asked: list[NightlyOptions] = []

    def run(options: NightlyOptions) -> int:
        asked.append(options)
        raise UsageError("enough is known")

    monkeypatch.setattr(nightly, "run", run)
    with pytest.raises(SystemExit):
        cli.main(["board", "accept", "virt1"])
    assert asked[0].output and asked[0].output.name == asked[0].run_id


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("power", "virt1", "onn"), "no action 'onn' (did you mean on?); there are: on, off, cycle, "),
        (
            ("lab", "shape", "virt1", "lage"),
            "no shape 'lage' (did you mean large?); there are: large, four-nodes, sleepless, power-states",
        ),
        (("lab", "fault", "virt1", "slient"), "slient"),
        (("provision", "virt1", "--build", "relese"), "there is no build 'relese' (did you mean release?)"),
        (("prepare", "--build", "relese"), "there is no build 'relese' (did you mean release?)"),
        (("reserve", "--need", "imu"), "unknown capability 'imu' (did you mean iommu?)"),
        (("reserve", "virt1", "--for", "7am"), "invalid duration '7am'; use 90m, 2h"),
        (("reproduce", "pvh64-cut-GOO"), "as pvh64-cut-GO; no step 'GOO' (did you mean GO?); there are: "),
        (("perf", "release", "relese"), "there is no build 'relese' (did you mean release?)"),
        (("nightly", "--repeat", "0"), "'--repeat': must be greater than or equal to 1 (see xenlab nightly -h)"),
        (("perf", "release"), "Missing argument 'B'. (see xenlab perf -h)"),
        (("nightly", "--select", "quik"), "'--select': 'quik' is not one of 'quick', 'full', 'weekly'"),
        (("known", "import", str(paths.CHECKOUT / "README.md")), "README.md: Invalid JSON"),
        (("extend", "--for", "7am"), "invalid duration '7am'; use 90m, 2h"),
        (("nightly", "--deadline", "7am"), "invalid deadline '7am'; use 90m, 2h or HH:MM"),
        (("nightly", "--deadline", "25:00"), "invalid time of day '25:00'; use HH:MM"),
        (("lab", "up", "--ports", "99999"), "invalid --ports '99999'; use a number from 1024"),
        (
            ("bisect", "--case", "test_build_under_test_run", "--good", "a", "--bad", "b"),
            "no case 'test_build_under_test_run' (did",
        ),
    ],
)
def test_words_are_checked_before_the_lab(xenlab: Xenlab, words: tuple[str, ...], wanted: str) -> None:
    said = xenlab(*words)
    assert said.status == 2 and wanted in said.err, said
    assert len(said.err.splitlines()) == 1


def test_missing_packages_are_said_by_xenlab_itself(xenlab: Xenlab, tmp_path: Path) -> None:
    (tmp_path / "dpkg-query").write_text("#!/bin/sh\necho 'bash installed'\n")
    (tmp_path / "dpkg-query").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for words in (("nightly",), ("lab", "up"), ("prepare",)):
        said = xenlab(*words, PATH=path, XENLAB_PACKAGES_CHECKED="")
        assert said.status == 2 and "this machine lacks packages; as root: apt-get update && " in said.err


# results


@pytest.fixture(scope="module")
def folder_of_two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, each with the builds ``a`` and ``b``; the second makes ``b`` worse. Several tests read them."""
    folder = tmp_path_factory.mktemp("two_runs")
    runs = Runs(folder)
    for key, verdict in (("aaaaaaaa11", Verdict.PASS), ("bbbbbbbb22", Verdict.FAIL)):
        found = (result(build="a"), result(build="b", verdict=verdict))
        run = runs.write(*found, builds=("a", "b"), key=key).path
        assert _run(["history", "--import", str(run)], folder, {}).status == 0
    return folder


@pytest.fixture
def two_runs(here: Callable[[Path], Xenlab], folder_of_two_runs: Path) -> Xenlab:
    return here(folder_of_two_runs)


def test_runs_of_two_builds_are_compared_build_by_build(two_runs: Xenlab) -> None:
    said = two_runs("compare", "run1", "run2")
    assert said.status == 0, said
    first, second = said.out.split("\n\n")
    assert first.startswith("run run2 (a@bbbbbbbb) against run run1 (a@aaaaaaaa)") and "1 passing" in first
    assert second.startswith("run run2 (b@bbbbbbbb) against run run1 (b@aaaaaaaa)") and "1 new failure" in second
    said = two_runs("compare", "a", "run2")
    assert said.status == 2 or said.out.startswith("run run2 (a@"), said


def test_runs_without_a_common_build_cannot_be_compared(
    folder_of_two_runs: Path, xenlab: Xenlab, tmp_path: Path
) -> None:
    shutil.copytree(folder_of_two_runs / "state", tmp_path / "state")
    folder = Runs(tmp_path / "more").write(result(build="c"), builds=("c",), run_id="run9").path
    assert xenlab("history", "--import", str(folder)).status == 0
    said = xenlab("compare", "run1", "run9")
    assert said.status == 2 and "have no build in common: run1 has a, b; run9 has c" in said.err, said


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("boards",), 0),
        (("who",), 0),
        (("who", "--audit"), 0),
        (("status",), 3),
        (("lab", "status"), 3),
        (("history",), 0),
        (("history", PV32), 0),
        (("history", "--crashes"), 0),
        (("compare", "run1", "run2"), 0),
        (("gate", "--build", "run2@b", "--baseline", "run1@b"), 1),
        (("cases",), 0),
    ],
)
def test_json_is_one_document(two_runs: Xenlab, words: tuple[str, ...], status: int) -> None:
    said = two_runs(*words, "--json")
    assert said.status == status, said
    assert json.loads(said.out) is not None


def test_json_says_what_the_text_says(two_runs: Xenlab) -> None:
    (a, b) = json.loads(two_runs("compare", "run1", "run2", "--json").out)
    assert [one["change"] for one in (*a["findings"], *b["findings"])] == ["passing", "new failure"]
    boards = json.loads(two_runs("boards", "--json").out)
    assert [one["board"] for one in boards] == ["virt1", "virt2"] and "iommu" in boards[0]["capabilities"]
    assert {one["nodeid"] for one in json.loads(two_runs("cases", "--json").out)} > {
        "testcases/boot/test_build.py::test_build_under_test_runs"
    }


# a case by a short name


def test_case_is_found_by_the_end_of_its_name() -> None:
    assert planning.find("test_build_under_test_runs").nodeid.endswith("test_build.py::test_build_under_test_runs")
    whole = "testcases/boot/test_build.py::test_build_under_test_runs"
    assert planning.find(whole).nodeid == whole
    with pytest.raises(UsageError, match=r"names \d+ cases; name one: testcases/boot/"):
        planning.find("testcases/boot")


# a run on a pipe


def test_log_of_a_run_counts_its_cases(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+", encoding="utf-8") as file:
        with Progress(planned=3, file=file) as progress:
            for case, verdict in ((PV32, Verdict.MISS), (PV32, Verdict.PASS), ("testcases/x/y.py::z", Verdict.PASS)):
                progress.result(result(case, verdict))
        file.seek(0)
        counts = [line.split("  ")[0].split(" ", 1)[1] for line in file]
    assert counts == ["1 of 3", "1 of 3", "2 of 3"], "another attempt is no further case"


# what is left behind


def test_lock_file_goes_and_a_waiter_takes_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "key.lock"
    with lock.held(file, 1.0, "it", has_to_go=lambda: True):
        late = os.open(file, os.O_RDWR)  # of somebody who waits
        assert file.exists()
    assert not file.exists()
    with lock.held(file, 1.0, "it"), pytest.raises(lock.LockHeld), lock.held(file, 0.2, "it"):
        pass
    os.close(late)
    assert file.exists(), "one that is not to go stays"


def test_bisection_that_cannot_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    asked = bisection.Asked("case", "a", "nope", among=("release", "debian"))
    with pytest.raises(UsageError):
        bisection.find(asked, lambda recipe, folder: None, print)
    assert list((tmp_path / "bisect").iterdir()) == []


def test_mirror_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(command: Sequence[str], **words: object) -> str:
        raise CommandError("package lists: ended\n  Err:1 a mirror\n  E: Failed to fetch a\n  E: and b", ended=True)

    monkeypatch.setattr(apt, "run", run)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "sources.list").write_text("deb http://192.0.2.1/debian bookworm main\n")
    private = apt.PrivateApt(tmp_path / "apt", machine=tmp_path / "etc")
    private.directory.mkdir()
    private._update()
    (record,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert record.getMessage() == (
        "some package lists could not be fetched (E: Failed to fetch a); going on with those that are there"
    )


# ports, and labs side by side


def _lab() -> inventory.Lab:
    return inventory.load(VIRTUAL_LAB)


def test_moved_ports_keep_their_order_and_what_is_derived_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    own = _lab()
    ports.choose(own, "30000")
    there = _lab()
    assert there.coordinator == "127.0.0.1:30000"
    first, second = there.boards["virt1"], there.boards["virt2"]
    assert (first.ssh_port, first.bmc.port, first.console.serve_port) == (30010, 30011, 30012)
    assert second.console.port == second.virtual.serial_port == 30024  # type: ignore[union-attr]
    assert second.bmc.port - first.bmc.port == own.boards["virt2"].bmc.port - own.boards["virt1"].bmc.port
    ports.choose(there, "own")
    assert _lab() == own


def test_ports_of_a_machine_stay_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    rack = inventory.load(paths.INVENTORY / "rack-example.yaml")
    there = ports.moved(rack, 30000)
    for name, board in there.boards.items():
        assert (board.bmc, board.ssh_port, board.console.port) == (
            rack.boards[name].bmc,
            rack.boards[name].ssh_port,
            rack.boards[name].console.port,
        )
        assert board.console.serve_port > 30000


def test_free_ports_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    taken = {ports.FIRST, ports.FIRST + ports.STEP + 11}
    monkeypatch.setattr(ports, "port_is_taken", lambda port, kind: port in taken)
    monkeypatch.setattr(ports, "_is_claimed", lambda first, claims: True)  # another lab here may look at this moment
    ports.choose(_lab(), "free")
    assert _lab().coordinator == f"127.0.0.1:{ports.FIRST + 2 * ports.STEP}"


SEARCHER = """
import sys
from pathlib import Path
from lab import inventory
from lab.base import paths
from lab.inventory import ports
paths.state = lambda: Path(sys.argv[1])
lab = inventory.load(paths.INVENTORY / "virtual.yaml")
sys.stdin.readline()
ports.choose(lab, "free")
print(inventory.load(paths.INVENTORY / "virtual.yaml").coordinator, flush=True)
sys.stdin.readline()
"""


def test_labs_that_look_for_free_ports_at_once_find_different_ones(tmp_path: Path) -> None:
    """None of them has taken its ports yet when the others look."""
    with ExitStack() as stack:
        searchers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", SEARCHER, str(tmp_path / str(number))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=paths.environment(),
                )
            )
            for number in range(3)
        ]
        said = []
        for one in searchers:
            assert one.stdin
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in searchers:
            assert one.stdout
            said.append(one.stdout.readline().strip())
        for one in searchers:
            one.communicate("end\n", timeout=30)
    assert all(one.startswith("127.0.0.1:") for one in said) and len(set(said)) == 3, said


def test_lab_in_another_state_folder_is_not_ours(shared: Shared, tmp_path: Path) -> None:
    """The same inventory, another state folder: its boards' holders are nobody's here."""
    shared.labgrid("-p", "sim1", "acquire")
    try:
        assert "desk/alice" in shared.xenlab("who")
        said = _run(["who", "--inventory", str(shared.file)], tmp_path, {})
        assert said.status == 0 and "alice" not in said.out, said
        assert "is not up in this state folder" in said.out
    finally:
        shared.labgrid("-p", "sim1", "release")


def test_two_labs_of_one_inventory_run_side_by_side(shared: Shared, tmp_path: Path) -> None:
    words = ["--inventory", str(shared.file)]
    said = _run(["lab", "up", *words], tmp_path, {})
    assert said.status == 2 and "port in use" in said.err and "--ports free" in said.err, said
    try:
        said = _run(["lab", "up", "--ports", "free", *words], tmp_path, {})
        assert said.status == 0, said
        said = _run(["lab", "status", *words], tmp_path, {})
        assert said.status == 0, said.out
        assert services.status(shared.folder).is_up
        said = _run(["lab", "up", "--ports", "30000", *words], tmp_path, {})
        assert said.status == 2 and "is up; --ports goes with its start" in said.err, said
        shared.labgrid("-p", "sim2", "acquire")
        assert "alice" not in _run(["who", *words], tmp_path, {}).out
    finally:
        shared.labgrid("-p", "sim2", "release", check=False)
        assert _run(["lab", "down", *words], tmp_path, {}).status == 0


# cases of a lab of one's own


def test_node_ids_are_relative_to_the_folder_that_holds_testcases(tmp_path: Path) -> None:
    case = tmp_path / "mine" / "testcases" / "area" / "test_x.py"
    case.parent.mkdir(parents=True)
    case.touch()
    mine = tmp_path / "mine"
    for words in ([str(mine)], [str(mine / "testcases")], [f"{case}::test_it[a]"], [str(case), str(case.parent)]):
        assert planning.root_of(words) == mine, words
    assert planning.root_of([]) == planning.root_of(["testcases/boot"]) == paths.SHIPPED
    assert planning.root_of([str(paths.SHIPPED / "tests" / "boards" / "cases" / "testcases" / "x")]) == paths.SHIPPED
    assert planning.root_of([str(case), "testcases/boot"]) == paths.SHIPPED, "of both: the shipped names stay"


def test_worker_finds_the_cases_by_the_names_that_planning_gave(tmp_path: Path) -> None:
    starter.write(tmp_path / "mine")
    (found,) = planning.collect(NightlyOptions(paths=(str(tmp_path / "mine" / "testcases"),)), "quick")
    assert found.nodeid == "testcases/example/test_memory.py::test_free_memory_is_less_than_all"
    assert (found.area, found.selection) == ("example", "quick")
    words = [sys.executable, "-m", "pytest", *planning.pytest_words(tmp_path / "mine"), "--collect-only", "-q"]
    done = subprocess.run(
        [*words, found.nodeid],
        cwd=tmp_path / "mine",
        env=paths.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and found.nodeid in done.stdout, done.stdout + done.stderr


def test_run_notes_where_its_cases_are(tmp_path: Path) -> None:
    folder = Runs(tmp_path).write(result(), root=str(tmp_path / "mine"))
    assert RunFolder.open(folder.path).header().cases_root() == tmp_path / "mine"
    assert Runs(tmp_path / "more").write(result()).header().cases_root() == paths.SHIPPED


def test_what_an_error_quotes_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    said = "build mine: compiling\n  error: expected before '\x1b]0;title\x07'"
    assert cli._complain(said, 1) == 1
    shown = capsys.readouterr().err
    assert shown == "xenlab: build mine: compiling\n  error: expected before '\\x1b]0;title\\x07'\n"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "the file system is read-only: "),
        (errno.EIO, "a disk has failed: "),
        (errno.EDQUOT, "the disk is full: "),
        (errno.EMFILE, "too many files are open, see `ulimit -n`: "),
    ],
)
def test_what_the_machine_fails_at_is_no_fault_of_the_program(
    xenlab: Xenlab, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def fails(words: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/var/lib/x")

    monkeypatch.setattr(cli, "_invoke", fails)
    done = xenlab("boards")
    assert done.status == 3 and done.err.startswith(f"xenlab: {said}")


def test_a_fault_that_cannot_be_written_down_is_shown(xenlab: Xenlab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: object, **options: object) -> int:
        raise OSError(errno.ENOTTY, "not today")

    monkeypatch.setattr(cli, "_invoke", fails)
    monkeypatch.setattr(tempfile, "mkstemp", fails)
    done = xenlab("boards")
    assert done.status == 70
    assert "Traceback" in done.err and done.err.rstrip().endswith("(traceback in the lines above)")
