"""Results over time: what gets into the database, what the regression rule says of it, what the gate does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from postgres import PASSWORD, Server, binaries, serve
from run_folders import DAY, LINE, PV32, S3, Runs, result

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError, UsageError
from lab.cli.main import main
from lab.history import database, gate, importing, known_issues, news, pages, schema, store, tracks
from lab.history.records import Place
from lab.history.regression import WINDOW, Attempt, Change, Count, classify, count, fisher, flaky_stretch
from lab.history.store import History
from lab.night import nightly
from lab.night.options import VIRTUAL_LAB, NightlyOptions
from lab.reporting import ci, site_overview
from lab.results.record import BUILD_CASE, Check, TestResult, Verdict
from lab.results.run_folder import RunFolder

LIVE = "testcases/relocation/test_live.py::test_brings_it_over"
PASS, FAIL, MISS, ERROR, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.MISS, Verdict.ERROR, Verdict.SKIP
HOSTILE = "\x00\x1b[2J\ud800\u202e'; DROP TABLE runs; --"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = binaries()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed; ./xenlab selftest installs it")
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    with serve(programs) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.sqlite"
    return str(request.getfixturevalue("server").url())


@pytest.fixture
def history(url: str) -> History:
    return History(url)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def counts(history: History) -> dict[str, int]:
    with history._engine.connect() as connection:
        return {
            name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for name, table in schema.metadata.tables.items()
        }


def verdicts(history: History, case: str = PV32) -> list[str]:
    return [entry.verdict.value for entry in history.entries([case], 1000)]


def judged(history: History, new: str, base: str = "") -> dict[str, str]:
    """What became of each case and class."""
    selected = history.select(new)
    found = gate.compare(history, selected, history.select(base) if base else gate.baseline(history, selected))
    return {
        f"{one.series.case.rpartition('::')[2]} {one.series.board_class}".strip(): one.change.value
        for one in found.cases
    }


# what gets in


def test_importing_a_run_again_changes_nothing(history: History, runs: Runs) -> None:
    folder = runs.write(result(), result(S3, FAIL), result(LIVE, MISS, "virt1+virt2"))
    assert history.import_run(folder.path) == "new"
    once = counts(history)
    assert once == {"runs": 1, "builds": 1, "cases": 3, "series": 3, "results": 3, "known_issues": 0}
    assert history.import_run(folder.path) == "unchanged"
    assert counts(history) == once


def test_a_run_gone_on_with_is_updated(history: History, runs: Runs) -> None:
    folder = runs.write(result(), planned=(PV32, S3))
    history.import_run(folder.path)
    assert (verdicts(history), verdicts(history, S3)) == (["PASS"], ["MISS"])
    folder.append(result(S3, started=5.0))
    assert history.import_run(folder.path) == "updated"
    assert (verdicts(history), verdicts(history, S3)) == (["PASS"], ["PASS"])
    assert counts(history)["results"] == 2
    folder.write_header(replace(folder.header(), finished=9.0, exit_status=0))
    assert history.import_run(folder.path) == "updated"


def test_every_attempt_is_kept_and_a_torn_line_is_not(history: History, runs: Runs) -> None:
    folder = runs.write(result(PV32, FAIL), result(PV32, PASS, attempt=2))
    with open(folder.path / "results.jsonl", "a") as file:
        file.write('{"case": "x')
    history.import_run(folder.path)
    assert verdicts(history) == ["FAIL", "PASS"]


def test_a_build_that_cannot_be_made_is_a_new_failure_since_the_last_that_could(history: History, runs: Runs) -> None:
    broken = result(BUILD_CASE, Verdict.FAIL, board="", rule="build-failed", reason="p2m.c:5: error: x", area="build")

    def night(*results: TestResult, key: str) -> news.News:
        folder = runs.write(*results, key=key, planned=(PV32,))
        history.import_run(folder.path)
        return ci.judged(history, folder.summary())

    first = night(broken, key="")
    assert first.comparisons[0].exit_status == 3 and not first.worse, "nothing could be made before it"
    night(result(PV32), key="aa")
    night(broken, key="")
    told = night(broken, key="")
    assert told.comparisons[0].exit_status == 1 and "blocked; incomplete" in told.comparisons[0].verdict
    [fault] = told.worse
    onset = fault.telling.onset
    assert onset and onset.good and (onset.since.key, onset.good.key) == ("run:run3", "aa")
    assert fault.telling.bisect is None, "bisect runs cases, and there are none"

    line = history.builds()[-1].line
    assert history.select(line).build.key == "run:run4", "the newest word about the line, not the last good build"
    night(result(PV32, MISS), key="")
    assert history.select(line).build.key == "run:run4", "a bench that saw no build says nothing about it"
    night(result(PV32), key="bb")
    assert history.select(line).build.key == "bb"


def test_what_pages_and_dashboards_ask(history: History, runs: Runs) -> None:
    first = runs.write(result(), result(S3, MISS), key="aa", finished=1.0, exit_status=3)
    second = runs.write(result(verdict=FAIL), result(verdict=FAIL), key="bb", planned=(PV32, S3), finished=None)
    for folder in (first, second):
        history.import_run(folder.path)
    newest, oldest = history.runs(10)
    assert (newest.name, newest.folder, newest.finished) == ("run2", second.path, None)
    assert (oldest.name, oldest.exit_status) == ("run1", 3)
    assert [one.name for one in history.runs(1)] == ["run2"]
    told = {(run, case, verdict): number for run, _, case, verdict, number in history.counts([newest.id, oldest.id])}
    assert told == {
        (oldest.id, PV32, PASS): 1,
        (oldest.id, S3, MISS): 1,
        (newest.id, PV32, FAIL): 2,
        (newest.id, S3, MISS): 1,
    }
    assert {run for run, *_ in history.counts([oldest.id])} == {oldest.id}
    assert history.last_counted() == {PV32: second.header().started + 1}
    assert [one.build.key for one in history.of_run("run2")] == ["bb"]
    assert history.of_run("nosuch") == []
    ordinals = [(entry.run, entry.ordinal) for entry in history.entries([PV32, S3], 10)]
    assert ordinals == [("run1", 0), ("run2", 0), ("run2", 1), ("run2", -1), ("run1", 1)]  # S3: without a board first


def test_what_a_console_said_gets_in_and_obeys_nobody(history: History, runs: Runs) -> None:
    hostile = result(PV32, FAIL, reason=HOSTILE, doc=HOSTILE)
    history.import_run(runs.write(replace(hostile, case=f"testcases/a/b.py::t[{HOSTILE}]")).path)
    [page] = pages.case_pages(history, history.case(f"t[{store.visible_line(HOSTILE)}]"))
    [entry] = page.entries
    assert entry.reason == r"\x00\x1b[2J\ud800\u202e'; DROP TABLE runs; --"
    assert entry.seconds == 2.0


def test_what_no_run_folder_is_is_refused(history: History, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        history.import_run(tmp_path)
    with pytest.raises(UsageError, match="not a run folder, and there is none in it"):
        importing.run_folders(tmp_path)


def test_a_folder_of_runs_stands_for_the_runs_in_it(runs: Runs) -> None:
    made = [runs.write(result()).path, runs.write(result()).path]
    assert importing.run_folders(runs.directory) == made
    assert importing.run_folders(made[0]) == made[:1]


def test_a_build_is_its_recipe_and_its_key(history: History, runs: Runs) -> None:
    runs.fill(history, "aaaaaaaa11:P", "bbbbbbbb22:P", "aaaaaaaa11:P")
    history.import_run(runs.write(result(build="release"), builds=("release",)).path)
    assert [build.label for build in history.builds()] == [
        "pv32-debug@aaaaaaaa",
        "pv32-debug@bbbbbbbb",
        "release@aaaaaaaa",
    ]
    assert [build.label for build in history.builds(LINE)] == ["pv32-debug@aaaaaaaa", "pv32-debug@bbbbbbbb"]
    assert history.builds()[0].last_seen - history.builds()[0].first_seen == 2 * DAY


def test_costs_are_found_by_their_names(history: History, runs: Runs) -> None:
    measured = result(PV32, figures={"pv64_hypercall_instructions": 271.0, "downtime_s": 0.3})
    for folder in (runs.write(measured, result(S3, figures={"x_instructions_s": 1.0})), runs.write(result())):
        history.import_run(folder.path)
    (track,) = tracks.of_runs(history, [run.id for run in history.runs(10)])
    assert (track.figure, track.series.case, track.points[0].numbers) == ("pv64_hypercall_instructions", PV32, [271.0])
    assert tracks.of_runs(history, [history.runs(1)[0].id]) == [], "the newest run measured nothing"
    assert tracks.of_figure(history, "pv64_hypercall") == [track]


def test_a_run_that_did_not_note_its_build_has_one_of_its_own(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", ":P", ":F")
    assert [build.label for build in history.builds()] == [f"{LINE}@aa", f"{LINE}@run:run2", f"{LINE}@run:run3"]
    assert history.select(LINE).build.key == "aa"
    assert history.select("run3").build.key == "run:run3"


def test_a_build_made_anew_on_resume_leaves_nothing_of_the_old(history: History, runs: Runs) -> None:
    folder = runs.write(result(), key="aa")
    history.import_run(folder.path)
    folder.write_builds({LINE: {"key": "bb"}})
    history.import_run(folder.path)
    assert [build.key for build in history.builds()] == ["bb"]


@pytest.mark.parametrize(
    ("boards", "classes"),
    [(("virt1",), "virtual"), (("t14", "epyc"), "laptop+server"), (("new",), "unknown"), ((), "")],
)
def test_a_pair_has_the_classes_of_both(history: History, runs: Runs, boards: tuple[str, ...], classes: str) -> None:
    history.import_run(runs.write(result(boards=boards)).path)
    assert [page.series.board_class for page in pages.case_pages(history, PV32)] == [classes]


def _import(url: str, folder: Path) -> None:
    sys.stderr.write(History(url).import_run(folder) + "\n")


def test_two_that_import_into_a_new_database_do_not_hurt_each_other(url: str, runs: Runs) -> None:
    folders = [runs.write(result(), result(S3)).path for _ in range(2)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_import, args=(url, folder)) for folder in folders]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert counts(History(url)) == {"runs": 2, "builds": 1, "cases": 2, "series": 2, "results": 4, "known_issues": 0}


# the tables


def _alembic(history: History, command: str, revision: str) -> None:
    from alembic import command as commands
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(paths.CHECKOUT / "lab" / "history" / "migrations"))
    with history.transaction(writes=True) as connection:
        config.attributes["connection"] = connection
        getattr(commands, command)(config, revision)


def test_migrations_make_the_tables_of_the_schema(history: History) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with history._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == schema.HEAD


def test_migrations_go_down_and_up_again(url: str, history: History, runs: Runs) -> None:
    folder = runs.write(result()).path
    history.import_run(folder)
    _alembic(history, "downgrade", "base")
    with history._engine.connect() as connection:
        assert not set(schema.metadata.tables) & set(sa.inspect(connection).get_table_names())
    assert History(url).import_run(folder) == "new"


def test_a_database_of_the_first_tables_keeps_what_is_in_it(url: str, history: History, runs: Runs) -> None:
    runs.fill(history, "aa:PF", "bb:F")
    history.accept(history.builds()[0])
    _alembic(history, "downgrade", "base")
    _alembic(history, "upgrade", "first")
    rows: dict[str, dict[str, object]] = {
        "runs": {"name": "run1", "started": 1.0, "selection": "full", "folder": "", "digest": "d"},
        "builds": {"line": LINE, "key": "aa", "build_id": "", "version": "", "first_seen": 1.0, "last_seen": 1.0},
        "cases": {"name": PV32, "doc": ""},
        "series": {"case_id": 1, "line": LINE, "board_class": "virtual"},
        "results": {"run_id": 1, "build_id": 1, "series_id": 1, "ordinal": 0, "attempt": 1, "verdict": "FAIL"}
        | {"rule": "console-crash", "reason": "virt1: xen-panic", "boards": "virt1", "started": 1.0, "seconds": 2.0},
    }
    with history.transaction(writes=True) as connection:
        assert "fingerprint" not in {column["name"] for column in sa.inspect(connection).get_columns("results")}
        for table, values in rows.items():
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)
    upgraded = History(url)
    [entry] = upgraded.entries([PV32], 10)
    assert (entry.verdict, entry.reason, entry.seconds) == (FAIL, "virt1: xen-panic", 2.0)
    assert upgraded.crashes() == []
    upgraded.import_run(runs.write(result(PV32, FAIL, fingerprint="01 xen-panic: x"), key="bb").path)
    assert [(one.name, one.number) for one in upgraded.crashes()] == [("01 xen-panic: x", 1)]
    _alembic(upgraded, "downgrade", "first")
    assert counts_of_results(upgraded) == 2


def counts_of_results(history: History) -> int:
    with history.transaction(writes=False) as connection:
        return int(connection.scalar(sa.text("SELECT count(*) FROM results")) or 0)


def test_a_database_of_a_newer_xenlab_is_left_alone(url: str, history: History) -> None:
    with history.transaction(writes=True) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'later'"))
    with pytest.raises(UsageError, match="a newer xenlab"):
        History(url)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database at all, but long enough to be looked at")
    with pytest.raises(BenchError, match=f"{tmp_path}/file"):
        History(f"sqlite:///{tmp_path}/file")


# the setting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("geheim", "is not a URL"),
        ("postgresql://u:geheim@host:geheim/x", "is not a URL"),
        ("mysql://u:geheim@host/x", "postgresql or sqlite"),
        ("postgresql://u:ge@heim@host/x", "percent-encoded"),
        ("postgresql://u:geheim@host/x?nosuch=1", 'XENLAB_HISTORY_URL: invalid connection option "nosuch"'),
        ("sqlite:////proc/nope/x.sqlite", "/proc/nope: there is no such folder"),
    ],
)
def test_a_wrong_setting_is_said_without_its_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        History(text)
    assert "heim" not in str(caught.value)


def test_the_options_of_a_url_stay_beside_our_limits(server: Server) -> None:
    def shown(url: str, *names: str) -> list[object]:
        with History(url)._engine.connect() as connection:
            return [connection.scalar(sa.text(f"SHOW {name}")) for name in names]

    url = server.url()
    assert shown(url, "statement_timeout", "work_mem") == ["2min", "4MB"]
    own = f"{url}&options=-c%20work_mem%3D7MB&connect_timeout=9"
    assert shown(own, "statement_timeout", "work_mem") == ["2min", "7MB"]
    assert shown(f"{own}&options=-c%20statement_timeout%3D5s", "statement_timeout", "work_mem") == ["5s", "7MB"]
    assert database.engine_of(database.url_of(own)).url.query["connect_timeout"] == "9"
    assert database.engine_of(database.url_of(url)).url.query["connect_timeout"] == "10"


def test_a_refused_password_is_in_no_message(server: Server, tmp_path: Path) -> None:
    environment = paths.environment() | {"XDG_STATE_HOME": str(tmp_path)}
    for url in (
        server.url(password="geheim%2Fgeheim", database="postgres"),
        f"postgresql://u:geheim@127.0.0.1:1/x?connect_timeout=3&host={tmp_path}/geheim%2Fgeheim",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lab.cli", "-vv", "history"],
            env=environment | {store.SETTING: url.replace(f"{tmp_path}/geheim%2Fgeheim", str(tmp_path))},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3
        assert "history postgresql" in done.stderr
        assert "geheim" not in done.stdout + done.stderr


def test_the_password_is_in_no_message_of_a_good_database(server: Server, runs: Runs, tmp_path: Path) -> None:
    runs.write(result())
    done = subprocess.run(
        [sys.executable, "-m", "lab.cli", "-vv", "history", "--import", str(runs.directory)],
        env=paths.environment() | {store.SETTING: server.url(), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("new "), done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert "geh%20eim" not in done.stdout + done.stderr


# the rule


@pytest.mark.parametrize(
    ("now", "before", "side", "p"),
    [
        (Count(1, 3), Count(3, 1), "more", 17 / 70),  # Fisher's lady who tasted tea
        (Count(1, 3), Count(3, 1), "both", 34 / 70),
        (Count(3, 1), Count(1, 3), "less", 17 / 70),
        (Count(9, 1), Count(3, 11), "both", 0.002759456185),
        (Count(0, 1), Count(19, 1), "more", 2 / 21),
        (Count(0, 2), Count(19, 1), "more", 3 / 231),
        (Count(5, 0), Count(7, 0), "both", 1.0),
    ],
)
def test_fisher(now: Count, before: Count, side: str, p: float) -> None:
    assert fisher(now, before, side) == pytest.approx(p)  # type: ignore[arg-type]


def attempts(text: str) -> list[Attempt]:
    """``aPPF bP``: builds and their verdicts, oldest first."""
    return [Attempt(word[0], letter == "P") for word in text.split() for letter in word[1:]]


@pytest.mark.parametrize(
    ("earlier", "flaky"),
    [
        ("", ""),
        ("aPPPP bPPPP", ""),
        ("aPPPP bFFFF", ""),  # broken
        ("aPPPP bF cPPPP", ""),  # broken and repaired, once
        ("aPPPF bPPPP", "aPPPF bPPPP"),  # one build did both
        ("aP bF cP dF eP", "aP bF cP dF eP"),  # came back twice
        ("aP bF cP dF", ""),
        ("aFPFFFF bPPPPPPPPPP", ""),  # flaky once, and repaired since
        ("aFFFFFF bPPPPPPPPPF", "bPPPPPPPPPF"),  # flaky since
    ],
)
def test_flaky_is_what_did_both_without_a_change(earlier: str, flaky: str) -> None:
    assert list(flaky_stretch(attempts(earlier))) == attempts(flaky)


@pytest.mark.parametrize(
    ("now", "before", "earlier", "change"),
    [
        (Count(1, 0), Count(), "", Change.NEW_CASE),
        (Count(0, 1), Count(), "", Change.NEVER_PASSED),
        (Count(0, 1), Count(0, 2), "aFF", Change.NEVER_PASSED),
        (Count(1, 0), Count(2, 0), "aPP", Change.PASSING),
        (Count(0, 1), Count(1, 0), "aP", Change.NEW_FAILURE),
        (Count(9, 1), Count(1, 0), "aP", Change.NEW_FAILURE),  # repeating excuses nothing
        (Count(0, 1), Count(0, 1), "aP bF", Change.STILL_FAILING),
        (Count(1, 0), Count(0, 1), "aP bF", Change.FIXED),
        (Count(0, 1), Count(19, 1), f"a{'P' * 10}F{'P' * 9}", Change.FLAKY),  # p = 2/21
        (Count(0, 2), Count(19, 1), f"a{'P' * 10}F{'P' * 9}", Change.NEW_FAILURE),  # p = 3/231
        (Count(0, 1), Count(39, 1), f"a{'P' * 20}F{'P' * 19}", Change.NEW_FAILURE),  # p = 2/41 < 0.05
        (Count(0, 1), Count(38, 1), f"a{'P' * 20}F{'P' * 18}", Change.FLAKY),  # p = 2/40 = 0.05: not below
        (Count(0, 1), Count(0, 1), "aP bF cP dF eP fF", Change.FLAKY),
        (Count(1, 0), Count(1, 1), "aPF", Change.FLAKY),
        (Count(9, 0), Count(1, 9), f"aP{'F' * 9}", Change.FIXED),
        (Count(0, 1), Count(10, 0), f"aFPFFFF b{'P' * 10}", Change.NEW_FAILURE),  # what was flaky was repaired
    ],
)
def test_the_rule(now: Count, before: Count, earlier: str, change: Change) -> None:
    past = attempts(earlier)
    judgement = classify(now, before, past, ever_passed=any(one.is_pass for one in past))
    assert judgement.change is change, judgement.why


def test_counts_add_up() -> None:
    assert count(attempts("aPPF bF")) == Count(2, 2)


# from the database


def test_each_change_is_found(history: History, runs: Runs) -> None:
    def night(key: str, verdicts: str) -> None:
        words = {"P": PASS, "F": FAIL, "M": MISS, "E": ERROR, "S": SKIP}
        names = ("passing", "broken", "stays", "never", "fixed", "gone", "missed", "erred", "skipped", "new", "newfail")
        found = [
            result(f"testcases/x/test_x.py::{name}", words[verdict])
            for name, verdict in zip(names, verdicts, strict=True)
            if verdict != "-"
        ]
        history.import_run(runs.write(*found, key=key).path)

    night("aa", "PPPFFPPPP--")
    night("bb", "PPFFFPPPP--")
    history.accept(history.select(f"{LINE}@bb").build)
    night("cc", "PFFFP-MESPF")
    assert judged(history, LINE) == {
        "passing virtual": "passing",
        "broken virtual": "new failure",
        "stays virtual": "still failing",
        "never virtual": "never passed",
        "fixed virtual": "fixed",
        "gone virtual": "missing case",
        "missed virtual": "not counted",
        "erred virtual": "not counted",
        "skipped virtual": "skipped",
        "new virtual": "new case",
        "newfail virtual": "never passed",
    }
    assert judged(history, LINE, f"{LINE}@aa")["stays virtual"] == "new failure"


def test_a_case_the_baseline_missed_is_held_against_the_build_before_it(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "bb:M", "cc:F")
    history.accept(history.select(f"{LINE}@bb").build)
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "new failure"}
    selected = history.select(LINE)
    [finding] = gate.compare(history, selected, gate.baseline(history, selected)).cases
    assert "passed 1 of 1 with pv32-debug@aa" in finding.why


def test_what_is_newer_than_the_baseline_explains_nothing(history: History, runs: Runs) -> None:
    """An intermittent failure that came after the baseline does not make the case a flaky one."""
    runs.fill(history, "aa:PPPPPPPP")
    history.accept(history.select(LINE).build)
    runs.fill(history, "bb:PFPFPF", "cc:F")
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "new failure"}


def test_flaky_is_told_from_broken(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:PPPFPPPPPP")
    history.accept(history.select(LINE).build)
    runs.fill(history, "bb:F")
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "flaky"}
    runs.fill(history, "bb:FF")
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "new failure"}


def test_what_passes_and_fails_has_not_never_passed(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:PPPF")
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "flaky"}
    [fault] = news.news_of(history, [history.select(LINE)]).faults
    assert fault.states == "1 flaky"
    runs.fill(history, "aa:F", "bb:F", case=S3)
    runs.fill(history, "cc:PF", case=S3)
    found = gate.compare(history, history.select(f"{LINE}@cc"), history.select(f"{LINE}@bb"))
    assert {one.series.case: one.change for one in found.cases}[S3] is Change.FLAKY
    assert found.exit_status == 0


def test_passes_with_a_known_bug_are_counted_where_they_are(history: History, runs: Runs) -> None:
    history.import_run(runs.write(excused(PASS), result(S3), result(PV32, Verdict.SKIP), key="aa").path)
    new = history.select(LINE)
    assert gate.summed(gate.compare(history, new, None)) == "2 passed (1 with a known bug), 1 skipped"
    history.import_run(runs.write(excused(PASS), result(S3), result(PV32), key="bb").path)
    found = gate.compare(history, history.select(LINE), new)
    assert gate.summed(found) == "1 new case passed, 2 passing (1 with a known bug)"


def test_a_version_that_a_package_has_too_is_said_once(history: History, runs: Runs) -> None:
    folder = runs.write(result())
    source = {"package": "xen-hypervisor-4.20-amd64", "version": "4.20.4-0+deb13u1"}
    folder.write_builds({LINE: {"key": "aa", "version": "4.20.4-0+deb13u1", "source": source}})
    history.import_run(folder.path)
    assert history.select(LINE).build.title == "pv32-debug 4.20.4-0+deb13u1 (19 Nov)"


def test_only_so_many_attempts_are_looked_back_upon(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:F" + "P" * WINDOW)
    history.accept(history.select(LINE).build)
    runs.fill(history, "bb:F")
    new = history.select(LINE)
    [series] = [tally.series for tally in history.tallies(new)]
    earlier, ever_passed = history.earlier([series], history.select(f"{LINE}@aa").build, new)[series]
    assert (count(earlier), ever_passed) == (Count(WINDOW, 0), True)
    assert judged(history, LINE) == {"test_pv32_runs[hvm] virtual": "new failure"}


def test_lines_and_classes_stand_for_themselves(history: History, runs: Runs) -> None:
    history.import_run(runs.write(result(board="epyc"), result(build="release"), builds=(LINE, "release")).path)
    history.accept(history.select(LINE).build)
    folder = runs.write(result(PV32, FAIL, board="t14"), key="bb")
    history.import_run(folder.path)
    assert judged(history, LINE) == {
        "test_pv32_runs[hvm] laptop": "never passed",
        "test_pv32_runs[hvm] server": "missing case",
    }


def test_another_line_may_be_the_baseline(history: History, runs: Runs) -> None:
    history.import_run(runs.write(result(build="release"), builds=("release",)).path)
    runs.fill(history, "bb:F")
    assert judged(history, LINE, "release") == {"test_pv32_runs[hvm] virtual": "new failure"}


def test_a_board_excuses_nothing_and_is_named(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P")
    failing = result(PV32, FAIL, board="virt2", reason="no answer")
    history.import_run(runs.write(failing, result(board="virt1"), key="bb").path)
    found = gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa"))
    [line] = [text for text in gate.gate_lines(found) if text.startswith("blocks")]
    assert line == (
        "blocks: new failure  testcases/guest32/test_pv32.py::test_pv32_runs[hvm] [virtual]: no answer (assertion); "
        "failed 1 of 2; passed 1 of 1 with the baseline; on virt2; only virt2 of the class: virt1 passed 1"
    )


def test_the_board_the_baseline_passed_on_is_named(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P")
    history.import_run(runs.write(result(PV32, FAIL, board="virt2"), key="bb").path)
    found = gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa"))
    assert found.cases[0].why.endswith("on virt2; the baseline passed on virt1")


@pytest.mark.parametrize("board", ["", "virt1"])
def test_a_case_that_was_not_counted_says_why(history: History, runs: Runs, board: str) -> None:
    runs.fill(history, "aa:P")
    history.import_run(runs.write(result(PV32, MISS, board=board, reason="BMC silent"), key="bb").path)
    found = gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa"))
    where = f" on {board}" if board else ""
    assert gate.gate_lines(found)[1:] == [
        f"not counted          {PV32} [virtual]: MISS{where}: BMC silent (bench); passed 1 of 1 with the baseline",
        "nothing to judge: no case passed or failed (1 not counted)",
    ]


def test_a_planned_case_that_did_not_run_makes_the_build_incomplete(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P")
    history.import_run(runs.write(result(S3), key="bb", planned=(PV32, S3)).path)
    found = gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa"))
    assert [line for line in gate.gate_lines(found) if "did-not-run" in line and line.startswith("not counted")]
    assert gate.gate_lines(found)[-1] == (
        "incomplete: 1 of 2 planned cases did not run (1 new case passed, 1 not counted)"
    )
    assert found.exit_status == 3
    history.import_run(runs.write(result(PV32), key="bb").path)  # what one run lacks another has
    assert gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa")).exit_status == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finished": None}, "incomplete: run run2 has not ended, 1 of 2 planned cases did not run"),
        ({"exit_status": 130}, "incomplete: run run2 was interrupted, 1 of 2 planned cases did not run"),
    ],
)
def test_a_run_that_goes_on_or_was_interrupted_passes_no_gate(
    history: History, runs: Runs, changes: dict[str, object], words: str
) -> None:
    history.import_run(runs.write(result(PV32), result(S3)).path)
    history.accept(history.select(LINE).build)
    history.import_run(runs.write(result(PV32), key="bb", planned=(PV32, S3), **changes).path)
    found = gate.compare(history, history.select(LINE), gate.baseline(history, history.select(LINE)))
    assert gate.gate_lines(found)[-1].startswith(words)
    assert found.exit_status == 3


def test_a_failure_of_an_incomplete_run_blocks_all_the_same(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P")
    history.import_run(runs.write(result(PV32, FAIL), key="bb", planned=(PV32, S3), finished=None).path)
    found = gate.compare(history, history.select(LINE), history.select(f"{LINE}@aa"))
    assert gate.gate_lines(found)[-1].startswith("blocked; incomplete: run run2 has not ended")
    assert found.exit_status == 1


@pytest.mark.parametrize(
    ("verdict", "words"), [(FAIL, "1 failed; no baseline yet"), (PASS, "2 passed; no baseline yet")]
)
def test_a_first_run_has_nothing_to_be_judged_against(
    history: History, runs: Runs, verdict: Verdict, words: str
) -> None:
    history.import_run(runs.write(result(PV32, verdict), result(S3)).path)
    new = history.select(LINE)
    found = gate.compare(history, new, gate.baseline(history, new))
    assert gate.gate_lines(found)[-1].startswith(words)
    assert found.exit_status == 3


def excused(verdict: Verdict) -> TestResult:
    """A relocation whose one bad check is excused with one release of Xen, and not with another."""
    excuse = "incoming-left-paused" if verdict is PASS else None
    bad = Check("left-destination", False, "domain x--incoming (--p---)", excuse)
    return result(LIVE, verdict, checks=(Check("ending", True, "UNDEFINED"), bad))


def test_a_known_finding_that_is_not_listed_for_a_release_is_no_new_failure(history: History, runs: Runs) -> None:
    history.import_run(runs.write(excused(PASS), key="aa").path)
    history.import_run(runs.write(excused(FAIL), key="bb").path)
    found = gate.compare(history, history.select(f"{LINE}@bb"), history.select(f"{LINE}@aa"))
    [finding] = found.cases
    assert finding.change is Change.KNOWN_FINDING
    assert "the known bug incoming-left-paused, which is listed for the baseline's release" in finding.why
    assert found.exit_status == 0
    back = gate.compare(history, history.select(f"{LINE}@aa"), history.select(f"{LINE}@bb"))
    assert [one.change for one in back.cases] == [Change.KNOWN_FINDING]
    assert back.cases[0].why.startswith("not fixed: it is listed for this release")
    other = replace(excused(FAIL), checks=(Check("where", False, "nowhere"),))
    history.import_run(runs.write(other, key="cc").path)
    found = gate.compare(history, history.select(f"{LINE}@cc"), history.select(f"{LINE}@aa"))
    assert [one.change for one in found.cases] == [Change.NEW_FAILURE]  # another check failed


def test_the_line_of_a_recipe_given_as_a_file_is_its_name(history: History, runs: Runs) -> None:
    for folder in ("/home/ann/mine.yaml", "/tmp/moved/mine.yaml"):
        history.import_run(runs.write(result(build=folder), builds=(folder,)).path)
    assert [build.label for build in history.builds()] == ["mine@aaaaaaaa"]


# since when, and whose commit


def test_a_failure_has_a_beginning_a_last_good_build_and_a_command(history: History, runs: Runs) -> None:
    for word, verdict in zip("abcd", (PASS, PASS, FAIL, FAIL), strict=True):
        folder = runs.write(result(PV32, verdict), key=word * 8)
        source = {"commit": word * 40, "subject": f"x86: {word}", "date": "2026-11-20", "branch": "staging"}
        folder.write_builds({LINE: {**folder.builds()[LINE], "source": source}})
        history.import_run(folder.path)
    new = history.select(LINE)
    assert new.build.title == "pv32-debug 4.17.5 ddddddd (20 Nov)"
    [fault] = news.news_of(history, [new]).faults
    onset = fault.telling.onset
    assert onset and onset.good
    assert (onset.since.source.subject, onset.since_at) == ("x86: c", Place("run3", 0))
    assert (onset.good.source.subject, onset.good_at) == ("x86: b", Place("run2", 0))
    assert fault.telling.bisect == (
        f"./xenlab bisect --case '{PV32}' --good {'b' * 40} --bad {'c' * 40} --build pv32-debug"
    )
    assert fault.seen and fault.seen.first.source.subject == "x86: c"
    history.import_run(runs.write(result(PV32, FAIL), key="eeee").path)  # an older xenlab notes no source
    assert history.select(LINE).build.title == "pv32-debug 4.17.5 eeee (23 Nov)"


def test_never_passed_says_which_of_its_reasons_and_names_no_culprit(history: History, runs: Runs) -> None:
    history.import_run(runs.write(result(S3), result(LIVE, FAIL), key="aaaa").path)
    [fault] = news.news_of(history, [history.select(LINE)]).faults
    assert fault.states == "1 never passed (only one build was tested)"
    oldest = "pv32-debug 4.17.5 aaaa (19 Nov); the origin is not known"
    assert ci.since_lines(fault) == [f"has failed with the only build tested, {oldest}"]
    history.import_run(runs.write(result(S3), result(LIVE, FAIL), result(PV32, FAIL), key="bbbb").path)
    [fault] = news.news_of(history, [history.select(LINE)]).faults
    assert fault.states == "2 never passed (1 skipped or not run until now, 1 failed with every build tested)"
    assert sorted(one.onset.oldest for one in fault.cases if one.onset) == [
        "fails with the first build that ran it,",
        "has failed with every build tested; the oldest is",
    ]


def test_a_fault_of_an_earlier_build_has_no_last_good_build(history: History, runs: Runs) -> None:
    history.import_run(runs.write(result(S3), result(PV32), result(LIVE, FAIL), key="aaaa").path)
    history.import_run(runs.write(result(S3), result(PV32), result(LIVE), key="bbbb").path)
    history.import_run(runs.write(result(S3), result(PV32, FAIL), result(LIVE), key="cccc").path)
    [fault] = news.news_of(history, [history.select(LINE)]).worse
    assert ci.since_lines(fault) == [
        "this fault was seen before: first with pv32-debug 4.17.5 aaaa (19 Nov), in test_brings_it_over",
        "this case fails since pv32-debug 4.17.5 cccc (21 Nov); passed with pv32-debug 4.17.5 bbbb (20 Nov)",
    ]


def test_two_lines_that_begin_to_fail_in_one_run_have_their_last_good_builds(history: History, runs: Runs) -> None:
    lines = ("x", "y")
    for key, verdict in (("aaaa", PASS), ("bbbb", FAIL)):
        history.import_run(runs.write(*(result(PV32, verdict, build=x) for x in lines), key=key, builds=lines).path)
    [fault] = news.news_of(history, [history.select(line) for line in lines]).worse
    assert len(fault.builds) == 2 and fault.seen_before is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"cut_short": "interrupted by SIGTERM"},
            "was interrupted by SIGTERM",
        ),
        ({}, "was interrupted; its record does not say by what"),
        ({"exit_status": 3, "cut_short": "stopped at 06:00"}, "was stopped at 06:00"),
        ({"finished": None}, "has no end in its record: it was killed, or its machine stopped"),
    ],
)
def test_an_interrupted_run_says_by_what(changes: dict[str, object], said: str, tmp_path: Path, runs: Runs) -> None:
    history = History(f"sqlite:///{tmp_path}/history.sqlite")
    history.import_run(runs.write(result(), **{"planned": (PV32, S3), "exit_status": 130, **changes}).path)
    assert site_overview.ended(history.runs(1)[0]) == said
    told = news.news_of(history, [history.select(LINE)])
    assert site_overview.silence(told, 0) == "1 did not run: nothing is known about the hypervisor"
    assert site_overview.decision(told.comparisons[0]) == "1 passed; no baseline yet; no verdict, the run is incomplete"


def test_a_history_in_a_file_lies_where_its_path_says(tmp_path: Path, runs: Runs) -> None:
    place = tmp_path / "100%?mode=memory.sqlite"
    History(place).import_run(runs.write(result()).path)
    assert place.is_file() and len(History(place).runs(9)) == 1


def test_one_fault_is_one_over_boards_cases_and_numbers(history: History, runs: Runs) -> None:
    found = [
        result(PV32, FAIL, "virt1", reason="virt1: no wake within 60 s"),
        result(S3, FAIL, "virt2", reason="virt2: no wake within 75.5 s"),
        result(LIVE, FAIL, "virt1", reason="virt1: rebooted"),
    ]
    history.import_run(runs.write(*found).path)
    told = news.news_of(history, [history.select(LINE)])
    assert [(fault.label, len(fault.cases)) for fault in told.faults] == [("no wake within # s", 2), ("rebooted", 1)]


def test_a_fault_of_the_bench_names_its_boards(history: History, runs: Runs) -> None:
    """It is about them, and not about the build."""
    found = [
        result(PV32, MISS, "virt1", reason="virt1: no session within 30 s"),
        result(S3, MISS, "virt2", reason="virt2: no session within 31 s"),
        result(LIVE, MISS, "virt2", reason="virt2: no recorder answers"),
    ]
    history.import_run(runs.write(*found).path)
    told = news.news_of(history, [history.select(LINE)])
    assert {fault.label for fault in told.uncounted} == {
        "virt1, virt2: no session within # s",
        "virt2: no recorder answers",
    }
    rows = ci._table("Not counted", told.uncounted)
    assert any("virt1, virt2: no session within # s; 2 cases" in row for row in rows), rows


def test_results_that_an_older_xenlab_stored_get_the_names_of_their_failures(
    url: str, history: History, runs: Runs
) -> None:
    folder = runs.write(result(PV32, FAIL, reason="virt1: no wake within 60 s", figures={"wake_s": 1.5})).path
    history.import_run(folder)
    _alembic(history, "downgrade", "crashes")
    upgraded = History(url)
    [entry] = upgraded.entries([PV32], 10)
    assert entry.failure.endswith(" no wake within # s") and entry.figures == {}
    assert upgraded.import_run(folder) == "updated"  # for what the old tables did not have
    [entry] = upgraded.entries([PV32], 10)
    assert entry.figures == {"wake_s": 1.5}


# baselines


def test_without_any_the_baseline_is_the_newest_that_would_pass(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "bb:M", "cc:F", "dd:F", "ee:F")
    assert gate.baseline(history, history.select(f"{LINE}@aa")) is None
    baseline = gate.baseline(history, history.select(LINE))
    assert baseline and baseline.build.key == "aa"  # bb has nothing to judge by, cc and dd would be blocked


def test_a_failure_from_the_first_day_does_not_keep_a_build_from_being_the_baseline(
    history: History, runs: Runs
) -> None:
    for key in ("aa", "bb", "cc"):
        history.import_run(runs.write(result(), result(S3, FAIL), key=key).path)
    baseline = gate.baseline(history, history.select(LINE))
    assert baseline and baseline.build.key == "bb"


def test_the_build_accepted_last_is_the_baseline(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "bb:P", "cc:P")
    for key in ("bb", "aa"):
        history.accept(history.select(f"{LINE}@{key}").build)
    baseline = gate.baseline(history, history.select(LINE))
    assert baseline and baseline.build.key == "aa"


def test_a_run_is_judged_against_the_others_of_its_accepted_build(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "aa:F")
    history.accept(history.select(LINE).build)
    assert gate.baseline(history, history.select(LINE)) is None  # never itself
    new = history.select("run2")
    [finding] = gate.compare(history, new, gate.baseline(history, new)).cases
    assert finding.change is Change.NEW_FAILURE
    assert "passed 1 of 1 with the baseline" in finding.why  # its own FAIL is not held against the baseline


def test_a_run_that_is_all_of_the_accepted_build_is_judged_against_an_older_one(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "bb:F")
    for key in ("aa", "bb"):
        history.accept(history.select(f"{LINE}@{key}").build)
    baseline = gate.baseline(history, history.select("run2"))
    assert baseline and baseline.build.key == "aa"


def test_a_thing_is_not_compared_with_itself(history: History, runs: Runs) -> None:
    runs.fill(history, "aa:P", "aa:P")
    for new, base in ((LINE, LINE), ("run1", "run1"), (LINE, "run1")):
        with pytest.raises(UsageError, match="cannot be compared"):
            gate.compare(history, history.select(new), history.select(base))
    assert judged(history, "run2", "run1") == {"test_pv32_runs[hvm] virtual": "passing"}


# names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pv32-debgu", r"did you mean pv32-debug\?"),
        ("pv32-debug@c", "nothing matches; there are: pv32-debug@aaaa1111, pv32-debug@aaaa2222"),
        ("pv32-debug@aaaa", "several match"),
        ("pv32-debug@", "nothing matches"),
        ("rum1", r"did you mean run1\?"),
        ("run3", "several match; there are: run3@pv32-debug, run3@release"),
        ("run3@debian", "nothing matches"),
        ("", "no build or run ''"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(history: History, runs: Runs, text: str, words: str) -> None:
    runs.fill(history, "aaaa1111:P", "aaaa2222:P")
    history.import_run(runs.write(result(), result(build="release"), key="aaaa2222", builds=(LINE, "release")).path)
    with pytest.raises(UsageError, match=words):
        history.select(text)


def test_builds_and_runs_are_named_in_four_ways(history: History, runs: Runs) -> None:
    runs.fill(history, "aaaa1111:P", "aaaa2222:P", "aaaa1111:P")
    history.import_run(runs.write(result(), result(build="release"), key="bb", builds=(LINE, "release")).path)
    assert history.select(f"{LINE}@aaaa2").label == "pv32-debug@aaaa2222"
    assert history.select(f"{LINE}@{'aaaa2222' + '0' * 30}").label == "pv32-debug@aaaa2222"
    assert history.select("run1").label == "run run1 (pv32-debug@aaaa1111)"
    assert history.select("run4@release").label == "run run4 (release@bb)"
    assert history.select(LINE).label == "pv32-debug@bb"


def test_a_run_is_named_by_its_folder_and_imported(
    history: History, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.fill(history, "aa:P")
    path = runs.write(result(PV32, MISS), key="").path  # a set-up that failed: which build it was is not known
    monkeypatch.chdir(path.parent)
    assert history.select("run2").label == "run run2 (pv32-debug@run:run2)"
    assert history.select(str(path)) == history.select(f"run2@{LINE}")
    assert history.select(LINE).build.key == "aa"
    new = history.select("run2")
    assert gate.compare(history, new, gate.baseline(history, new)).exit_status == 3


def test_a_case_is_named_by_its_end(history: History, runs: Runs) -> None:
    history.import_run(runs.write(result(), result(S3), result("testcases/x/y.py::test_s3_rtc_wake")).path)
    assert history.case(PV32) == history.case("test_pv32_runs[hvm]") == PV32
    with pytest.raises(UsageError, match="several cases match"):
        history.case("test_s3_rtc_wake")
    with pytest.raises(UsageError, match=r"did you mean test_pv32_runs\[hvm\]\?"):
        history.case("test_pv32_run")


# commands


@pytest.fixture
def xenlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command with a state folder of its own: exit status, what it printed, what it complained."""
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    monkeypatch.delenv(store.SETTING, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


Xenlab = Callable[..., tuple[int, str, str]]


def test_gate_has_a_status_for_ci(xenlab: Xenlab, runs: Runs) -> None:
    runs.write(result(), result(S3), key="aa")
    runs.write(result(PV32, FAIL), result(S3, MISS), key="bb")
    runs.write(result(PV32, MISS), key="cc")
    runs.write(result(), result(S3), key="dd")
    assert xenlab("history", "--import", str(runs.directory))[0] == 0
    assert xenlab("accept", f"{LINE}@aa")[:2] == (0, "pv32-debug@aa is the baseline of pv32-debug now\n")
    status, said, _ = xenlab("gate", "--build", f"{LINE}@bb")
    assert status == 1
    first, *lines = said.splitlines()
    assert first.startswith("gate of pv32-debug@bb against pv32-debug@aa (accepted 20")
    assert lines == [
        f"blocks: new failure  {PV32} [virtual]: virt1: because (assertion); failed 1 of 1; "
        "passed 1 of 1 with the baseline; on virt1",
        f"not counted          {S3} [virtual]: MISS: virt1: because (bench); passed 1 of 1 with the baseline",
        "blocked (1 new failure, 1 not counted)",
    ]
    assert xenlab("gate", "--build", f"{LINE}@cc")[0] == 3
    status, said, _ = xenlab("gate", "--build", LINE)
    assert (status, said.splitlines()[-1]) == (0, "pass (2 passing)")
    assert xenlab("gate", "--build", LINE, "--baseline", f"{LINE}@bb")[0] == 0


@pytest.mark.parametrize(("lost", "status", "said"), [(1, 0, "pass"), (2, 3, "incomplete: 2 of 10 cases that ")])
def test_what_the_bench_lost_is_no_pass(xenlab: Xenlab, runs: Runs, lost: int, status: int, said: str) -> None:
    cases = [f"testcases/boot/test_boot.py::test_{number}" for number in range(10)]
    runs.write(*map(result, cases), key="aa")
    runs.write(*(result(case, MISS if at < lost else PASS) for at, case in enumerate(cases)), key="bb")
    xenlab("history", "--import", str(runs.directory))
    ended, words, _ = xenlab("gate", "--build", f"{LINE}@bb", "--baseline", f"{LINE}@aa")
    assert ended == status and words.splitlines()[-1].startswith(said), words


@pytest.mark.parametrize(
    "words",
    [
        ("gate",),
        ("gate", "--build", "pv32-debgu"),
        ("gate", "--build", LINE, "--baseline", "nothing"),
        ("gate", "--build", LINE, "--baseline", LINE),
        ("accept", "nothing"),
        ("compare", LINE, "nothing"),
        ("compare", LINE),
        ("history", "test_pv32_run"),
        ("history", "one", "two"),
        ("history", "--import"),
        ("history", "--import", "nowhere"),
    ],
)
def test_wrong_words_are_said_in_one_line(xenlab: Xenlab, runs: Runs, words: tuple[str, ...]) -> None:
    runs.write(result())
    xenlab("history", "--import", str(runs.directory))
    status, said, complaint = xenlab(*words)
    assert (status, said) == (2, "")
    assert complaint.startswith("xenlab: ") and complaint.count("\n") == 1, complaint


def test_history_says_when_it_is_empty_and_lists_the_builds(xenlab: Xenlab, runs: Runs, tmp_path: Path) -> None:
    assert xenlab("history")[1] == f"the history has no run yet: {tmp_path}/history.sqlite\n"
    runs.write(result(), key="aa")
    assert xenlab("history", "--import", str(runs.directory))[1] == f"new       {runs.directory}/run1\n"
    assert xenlab("history")[1].startswith("pv32-debug@aa  Xen 4.17.5      runs 2026-11-19 ")


def test_a_case_is_shown_over_builds(xenlab: Xenlab, runs: Runs) -> None:
    runs.write(result(seconds=1.0), result(PV32, FAIL), key="aa")
    runs.write(result(PV32, MISS), result(seconds=3.0), key="bb")
    xenlab("history", "--import", str(runs.directory))
    said = xenlab("history", "test_pv32_runs[hvm]")[1].splitlines()
    assert said[:4] == [
        PV32,
        "pv32-debug [virtual]: flaky, failed 1 of 3",
        "  aa PF  bb MP   (P pass, F fail, E error, M miss, S skip; the newest is last)",
        "  a pass takes 2.0 s (median of 2; 1.0 to 3.0 s)",
    ]
    assert said[5] == "  2026-11-19 11:06  pv32-debug@aa  run1  FAIL      2.0 s  virt1  virt1: because"
    assert len(said) == 8


def test_crashes_are_listed_over_builds(xenlab: Xenlab, runs: Runs) -> None:
    bug, fault = "0123456789 xen-bug: Xen BUG at a.c / foo", "abcdef0123 linux-oops: Oops / bar"
    runs.write(result(PV32, FAIL, fingerprint=bug), result(S3, FAIL), key="aa")
    runs.write(result(PV32, FAIL, fingerprint=fault), result(S3, FAIL, fingerprint=bug), key="bb")
    runs.write(result(PV32, FAIL, fingerprint=bug), result(S3), key="cc")
    xenlab("history", "--import", str(runs.directory))
    assert xenlab("history", "--crashes")[1].splitlines() == [
        bug,
        "  3 times; first pv32-debug@aa (2026-11-19 11:06), last pv32-debug@cc (2026-11-21 11:06), 3 builds; "
        "in test_pv32_runs[hvm], test_s3_rtc_wake",
        fault,
        "  once; first pv32-debug@bb (2026-11-20 11:06); in test_pv32_runs[hvm]",
    ]
    assert xenlab("history", "--crashes", "one")[0] == 2


def test_without_crashes_that_is_said(xenlab: Xenlab) -> None:
    assert xenlab("history", "--crashes")[:2] == (0, "no result has a crash\n")


def test_a_comparison_shows_what_changed(xenlab: Xenlab, runs: Runs) -> None:
    runs.write(result(PV32, FAIL), result(S3), key="aa")
    runs.write(result(), result(S3), key="bb")
    xenlab("history", "--import", str(runs.directory))
    assert xenlab("compare", "run1", LINE)[:2] == (
        0,
        "pv32-debug@bb against run run1 (pv32-debug@aa)\n"
        f"fixed                {PV32} [virtual]: passed 1 of 1; failed 1 of 1 with the baseline\n"
        "1 fixed, 1 passing\n",
    )


def test_a_known_issue_is_added_listed_exported_and_imported(
    xenlab: Xenlab, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = "0123456789 xen-bug: Xen BUG at a.c / foo"
    runs.write(result(PV32, FAIL, fingerprint=bug), result(S3, FAIL), key="aa")
    xenlab("history", "--import", str(runs.directory))
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("LOGNAME", "ann")
    status, said, _ = xenlab("known", "add", "01234", "--link", "https://bugs.example/7", "--note", "p2m")
    assert status == 0 and said.startswith("0123456789  https://bugs.example/7: p2m (ann, 20")
    assert xenlab("known", "add", "test_s3_rtc_wake", "--link", "https://bugs.example/8")[0] == 0
    assert xenlab("known", "add", "01234", "--link", "https://bugs.example/7", "--note", "anew")[0] == 0
    listed = xenlab("known", "list")[1].splitlines()
    assert len(listed) == 2 and listed[1].startswith("0123456789  https://bugs.example/7: anew (ann")
    file = tmp_path / "known.json"
    file.write_text(xenlab("known", "export")[1])
    assert xenlab("known", "remove", "https://bugs.example/7")[0] == 0
    assert xenlab("known", "import", str(file))[1] == "1 new\n"
    assert xenlab("known", "import", str(file))[1] == "0 new\n"
    assert sorted(xenlab("known", "list")[1].splitlines()) == sorted(listed)


@pytest.mark.parametrize(
    "words",
    [
        ("add", "ffffff", "--link", "https://bugs.example/7"),
        ("add", "test_s3_rtc_wake", "--link", "https://bugs.example/7"),  # it never failed
        ("add", "test_pv32_runs[hvm]", "--link", "javascript:alert(1)"),
        ("remove", "ffffff"),
        ("import", "nowhere.json"),
        ("import", "run.json"),
    ],
)
def test_wrong_words_about_known_issues_are_said_in_one_line(
    xenlab: Xenlab, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    runs.write(result(PV32, FAIL), result(S3), key="aa")
    xenlab("history", "--import", str(runs.directory))
    monkeypatch.chdir(runs.directory / "run1")
    status, said, complaint = xenlab("known", *words)
    assert (status, said) == (2, "")
    assert complaint.startswith("xenlab: ") and complaint.count("\n") == 1, complaint


def test_two_failures_that_a_few_digits_fit_are_named(history: History, runs: Runs) -> None:
    prints = ("0123456789 xen-bug: a", "0123999999 xen-bug: b")
    history.import_run(
        runs.write(*(result(case, FAIL, fingerprint=one) for case, one in zip((PV32, S3), prints, strict=True))).path
    )
    with pytest.raises(UsageError, match="several failures match: 0123456789 xen-bug: a; 0123999999 xen-bug: b"):
        known_issues.add(history, "0123", "https://bugs.example/7", "")


def test_the_results_are_a_mail_in_osstests_words(xenlab: Xenlab, runs: Runs) -> None:
    for number, (key, word) in enumerate((("aa", "a"), ("bb", "b"))):
        verdict = FAIL if number else PASS
        s5 = result("testcases/sleep/test_s5.py::test_s5", FAIL, reason="never powers off")
        folder = runs.write(result(PV32, verdict, reason="virt1: no wake"), excused(PASS), s5, key=key)
        source = {"commit": word * 40, "subject": f"x86: {word}", "date": "2026-11-20"}
        folder.write_builds({LINE: {**folder.builds()[LINE], "source": source}})
    xenlab("history", "--import", str(runs.directory))
    status, said, _ = xenlab("report", "--mail", "--run", str(runs.directory / "run2"))
    assert status == 0
    good, bad = "pv32-debug 4.17.5 aaaaaaa (20 Nov)", "pv32-debug 4.17.5 bbbbbbb (20 Nov)"
    lines = said.splitlines()
    assert lines[0] == f"Subject: [xenlab] {bad}: 1 new failure"
    assert "Regressions :-(" in lines
    [blocking] = [line for line in lines if line.startswith(f" {PV32} [virtual]  FAIL REGR. vs {good}, fault ")]
    assert f"fault {blocking[-10:]}: no wake" in lines
    assert f'   fails since {bad} "x86: b"; last good {good} "x86: a"' in lines
    assert " testcases/sleep/test_s5.py::test_s5 [virtual]  FAIL never pass" in lines
    assert f" {LIVE} [virtual]  PASS, known bug incoming-left-paused" in lines
    assert f"version targeted for testing: {bad}: {'b' * 12} (x86: b) 2026-11-20" in lines
    assert f"baseline version:             {good}: {'a' * 12} (x86: a) 2026-11-20" in lines
    assert xenlab("report", "--mail")[1] == said  # the newest run
    assert xenlab("report", "--mail", "--send")[0] == 2
    assert xenlab("report", "--send")[0] == 2
    assert xenlab("report", "--mail", "--run", "run9")[0] == 2


# at the end of a night


def finish(folder: RunFolder) -> int:
    return nightly.Night(NightlyOptions(), inventory.load(VIRTUAL_LAB), folder, [])._finish(None)


def test_a_night_imports_its_run(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    monkeypatch.delenv(store.SETTING, raising=False)
    folder = runs.write(result())
    assert finish(folder) == 0
    assert verdicts(History()) == ["PASS"]
    assert History().import_run(folder.path) == "unchanged"
    assert folder.header().notes == ()
    assert "history" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["no server", "wrong setting"])
def test_a_database_fault_is_a_note_and_changes_no_verdict(
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    monkeypatch.setattr(paths, "state", lambda: tmp_path)
    monkeypatch.setenv(
        store.SETTING, "mysql:geheim" if fault == "wrong setting" else f"postgresql://u:geheim@/x?host={tmp_path}"
    )
    folder = runs.write(result())
    started = time.monotonic()
    assert finish(folder) == 0
    assert time.monotonic() - started < 30
    header = folder.header()
    assert header.exit_status == 0
    [note] = header.remarks
    assert note.startswith("history: this run was not imported")
    report = (folder.path / "report.html").read_text()
    assert "this run was not imported" in report
    assert "this run was not imported" in capsys.readouterr().out
    assert "geheim" not in report + note
    monkeypatch.setenv(store.SETTING, f"sqlite:///{tmp_path}/good.sqlite")
    assert finish(RunFolder.open(folder.path)) == 0
    assert folder.header().remarks == ()


def all_connections(server: Server) -> list[psycopg.Connection]:
    """Those that there are, until it refuses another one."""
    taken: list[psycopg.Connection] = []
    with suppress(psycopg.OperationalError):
        while len(taken) < 100:
            taken.append(server.connect())
    assert 10 < len(taken) < 100
    return taken


def test_a_server_that_has_no_connection_left_is_asked_again(server: Server, runs: Runs) -> None:
    """As when several runs end at the same time; each needs its connection for a moment only."""
    history, run = History(server.url()), runs.write(result())
    taken = all_connections(server)

    def give_back() -> None:
        for connection in taken:
            connection.close()

    later = threading.Timer(2.0, give_back)
    later.start()
    try:
        began = time.monotonic()
        assert history.import_run(run.path) == "new"
        assert time.monotonic() - began > 1.0
    finally:
        later.join()
        give_back()


def test_a_server_that_stays_full_is_a_bench_failure_in_the_end(
    server: Server, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    history = History(server.url())
    taken = all_connections(server)
    try:
        with pytest.raises(BenchError, match="too many clients|connection slots"):
            history.import_run(runs.write(result()).path)
    finally:
        for connection in taken:
            connection.close()
