"""Figures over builds: which steps are told, what the gate makes of a dearer one, and where a reader finds it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import LINE, Runs, result

from lab.base.errors import UsageError
from lab.cli.main import main
from lab.history import comparing, gate, levels, news, tracks
from lab.history.figures import Change
from lab.history.gate import Comparison
from lab.history.store import History
from lab.reporting import ci, mail, site, site_overview
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder

CASE = "testcases/performance/test_costs.py::test_operations_are_measured[pv64]"
COUNT, TIME = "pv64_hypercall_instructions", "pv64_hypercall_ns"
OF_COUNTS, OF_TIMES = 0.0002, 0.02  # the noise of one build that was seen
ORACLE = Path(__file__).parent / "data" / "figures" / "change_points.json"


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(f"sqlite:///{tmp_path}/history.sqlite")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def made(chances: random.Random, noise: float, steps: dict[int, float], builds: int = 30) -> list[list[float]]:
    """A value for each build; a step is a share of the level before it, and stays."""
    level, found = 271.05, []
    for at in range(builds):
        level *= 1 + steps.get(at, 0.0)
        found.append([chances.gauss(level, level * noise)])
    return found


def steps_of(builds: Sequence[Sequence[float]], *, is_count: bool) -> list[int]:
    return [level.first for level in levels.levels(builds, is_count=is_count)[1:]]


# levels


@pytest.mark.parametrize(("is_count", "noise"), [(True, OF_COUNTS), (False, OF_TIMES)])
def test_no_step_is_told_in_twenty_histories_without_any(is_count: bool, noise: float) -> None:
    chances = random.Random(1)
    told = [steps_of(made(chances, noise, {}, 10 + 2 * n), is_count=is_count) for n in range(20)]
    assert told == [[]] * 20


@pytest.mark.parametrize(
    ("is_count", "noise", "change"),
    [(True, OF_COUNTS, 0.01), (True, OF_COUNTS, 0.02), (True, OF_COUNTS, 0.05), (False, OF_TIMES, 0.2)],
)
def test_a_planted_step_is_told_at_its_build(is_count: bool, noise: float, change: float) -> None:
    chances = random.Random(2)
    for at in range(6, 26):
        planted = {at: change if at % 2 else -change}
        assert steps_of(made(chances, noise, planted), is_count=is_count) == [at]


def test_times_are_divided_where_ruptures_and_otava_divide_them() -> None:
    told = json.loads(ORACLE.read_text(encoding="utf-8"))["series"]
    assert len(told) == 10 and sum(bool(one["otava"]) for one in told) == 7
    for one in told:
        values = one["values"]
        assert levels.division(values)[0] == one["ruptures"]["1"][0], "the same division by means"
        assert steps_of([[value] for value in values], is_count=False) == one["otava"] == one["planted"]
        if len(one["otava"]) == 2:
            assert one["ruptures"]["2"] == one["otava"]


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([100.0] * 5 + [103.0] + [100.0] * 5, []),  # it did not stay
        ([100.0] * 5 + [103.0], []),  # the next build will say
        ([100.0] * 5 + [103.0] * 2, [5]),
        ([100.0, 103.0, 103.0], []),  # one value is no level
        ([100.0] * 5 + [103.0] * 5 + [100.0] * 5, [5, 10]),
        ([100.0] * 5 + [100.5] * 5, []),
        ([100.0 + 0.1 * n for n in range(40)], [18, 36]),  # a drift is told when it has left the level
        ([100.0, 104.0] * 5 + [103.9, 104.0], []),  # its noise is larger
        ([100.0] * 10 + [107.0] + [100.0] * 5 + [102.0] * 3, [16]),  # one disturbed value hides nothing
        ([], []),
    ],
)
def test_a_count_steps_when_two_values_in_a_row_leave_the_level(values: list[float], steps: list[int]) -> None:
    assert steps_of([[value] for value in values], is_count=True) == steps


def test_two_runs_with_the_newest_build_show_that_it_stays() -> None:
    assert steps_of([[100.0], [100.0], [102.0, 102.0]], is_count=True) == [2]
    assert steps_of([[100.0], [100.0], [102.0, 100.0]], is_count=True) == []


# what the history has


class Nights:
    """Runs of one case that measures, a build each, on one board."""

    def __init__(self, history: History, runs: Runs) -> None:
        self.history, self.runs = history, runs

    def add(self, *values: float, figure: str = COUNT, key: str = "", board: str = "virt1", line: str = LINE) -> None:
        key = key or f"{self.runs.days + 1:08d}"
        measured = [result(CASE, board=board, build=line, figures={figure: value}) for value in values]
        folder = self.runs.write(*measured, key=key, builds=(line,))
        sources = {line: {"commit": f"{self.runs.days:040x}", "subject": f"x86: change {self.runs.days}"}}
        facts = {"key": key, "build id": f"{key}{'0' * 30}", "version": "4.17.5", "source": sources[line]}
        (folder.path / "builds.json").write_text(json.dumps({line: facts}), encoding="utf-8")
        self.history.import_run(folder.path)

    def fill(self, values: Iterable[float], figure: str = COUNT) -> None:
        for value in values:
            self.add(value, figure=figure)

    def judged(self, name: str = "", base: str = "") -> Comparison:
        new = self.history.select(name or f"run{self.runs.days}")
        return gate.compare(self.history, new, self.history.select(base) if base else gate.baseline(self.history, new))

    def changes(self, name: str = "", base: str = "") -> list[Change]:
        return [one.change for one in self.judged(name, base).figures]


@pytest.fixture
def nights(history: History, runs: Runs) -> Nights:
    return Nights(history, runs)


def test_a_track_has_one_board_and_only_costs_of_results_that_did_not_fail(history: History, runs: Runs) -> None:
    figures = {COUNT: 271.0, "downtime_s": 0.3, "pv64_cpuid_instructions": 0.0}
    folder = runs.write(
        result(CASE, figures=figures),
        result(CASE, Verdict.MISS, figures={COUNT: 272.0}),
        result(CASE, Verdict.FAIL, figures={COUNT: 999.0}),
        result(CASE, board="virt2", figures={COUNT: 500.0}),
    )
    history.import_run(folder.path)
    found = tracks.of_figure(history, "pv64_hypercall")
    assert [(one.figure, one.boards, one.points[0].numbers) for one in found] == [
        (COUNT, "virt1", [271.0, 272.0]),
        (COUNT, "virt2", [500.0]),
    ]
    with pytest.raises(UsageError, match=f"no figure 'downtime_s'; there are: {COUNT}"):
        tracks.of_figure(history, "downtime_s")


def test_a_step_names_both_builds_and_the_command_that_finds_the_commit(nights: Nights) -> None:
    nights.fill([271.0] * 6 + [276.4] * 3)
    ((step,),) = [track.steps for track in tracks.of_figure(nights.history, COUNT)]
    assert (step.good.build.key, step.since.build.key) == ("00000006", "00000007")
    assert step.change == pytest.approx(276.4 / 271.0 - 1)
    (track,) = tracks.of_figure(nights.history, COUNT)
    assert track.fresh == step
    assert tracks.bisect_command(track, step) == (
        f"./xenlab bisect --figure {COUNT} --case '{CASE}' --good {6:040x} --bad {7:040x} --build {LINE} --board virt1"
    )
    nights.fill([276.4] * 8)
    (track,) = tracks.of_figure(nights.history, COUNT)
    assert track.steps and track.fresh is None, "no news any more"


# the gate


def test_one_dearer_count_blocks_night_after_night(nights: Nights) -> None:
    nights.fill([271.0, 271.05, 271.0, 271.0, 276.4])
    for _ in range(2):
        found = nights.judged()
        assert (found.exit_status, found.verdict) == (1, "blocked")
        (line,) = [line for line in gate.gate_lines(found) if line.startswith("blocks: costs more")]
        assert f"{COUNT} on virt1 [virtual]: 271 -> 276.4, +1.99%; noise 0.02%; 1 value against 4" in line
        assert gate.gate_lines(found)[-1] == "blocked (1 passing; figures: 1 costs more)"
        assert found.base and found.base.build.key == "00000004", "a dearer build is no baseline"
        nights.add(276.4)
    nights.add(271.0)
    assert (nights.judged().exit_status, nights.changes()) == (0, [Change.SAME])


@pytest.mark.parametrize(
    ("before", "new", "change"),
    [
        ([271.0] * 4, [273.0], Change.SAME),  # less than 1 %
        ([271.0] * 4, [265.0], Change.LESS),
        ([271.0], [271.0], Change.SAME),
        ([271.0], [276.0], Change.UNDECIDED),  # no noise is known
        ([271.0, 279.0] * 4, [276.0], Change.UNDECIDED),  # other builds differ by as much
        ([271.0] * 4, [276.0, 271.0], Change.UNDECIDED),  # two runs with the build do
        ([271.0] * 8 + [279.0] + [271.0] * 3, [276.0], Change.MORE),  # one disturbed value hides nothing
    ],
)
def test_what_the_gate_says_of_a_count(nights: Nights, before: list[float], new: list[float], change: Change) -> None:
    nights.fill(before)
    base = f"run{nights.runs.days}"
    nights.add(*new)
    assert nights.changes(base=base) == [change]


@pytest.mark.parametrize(
    ("new", "change"),
    [
        ([1010.0], Change.SAME),
        ([1300.0], Change.UNDECIDED),  # never by one value
        ([1300.0, 1310.0], Change.MORE),
        ([1010.0, 1310.0], Change.UNDECIDED),
    ],
)
def test_what_the_gate_says_of_a_time(nights: Nights, new: list[float], change: Change) -> None:
    chances = random.Random(3)
    nights.fill([chances.gauss(1000.0, 20.0) for _ in range(20)], figure=TIME)
    nights.add(*new, figure=TIME)
    assert nights.changes(base="run20") == [change]


def test_what_is_undecided_is_said_and_is_no_pass_if_it_is_much(nights: Nights) -> None:
    nights.fill([271.0, 276.0])
    found = nights.judged(base="run1")
    assert (found.exit_status, found.verdict) == (3, "incomplete: 1 of 1 figures are undecided")
    assert "undecided            pv64_hypercall_instructions on virt1" in "\n".join(gate.gate_lines(found))
    assert "no noise known: there is one value before" in found.figures[0].why
    many = replace(found, figures=(*found.figures, *[replace(nights_same(found))] * 19))
    assert (many.exit_status, site_overview.state(many)) == (0, "MISS"), "a pass, and not green"
    assert site_overview.headline(news.News((many,))) == ("Nothing got worse; 1 of 20 figures say nothing", "MISS")


def nights_same(found: Comparison) -> gate.FigureChange:
    one = found.figures[0]
    return replace(one, found=replace(one.found, verdict=Change.SAME))


def test_an_accepted_build_is_the_level_though_it_is_dearer(nights: Nights) -> None:
    nights.fill([271.0] * 4 + [276.4])
    nights.history.accept(nights.history.select("run5").build)
    nights.add(276.4)
    assert (nights.changes(), nights.judged().exit_status) == ([Change.SAME], 0)
    nights.add(282.0)
    assert (nights.changes(), nights.judged().exit_status) == ([Change.MORE], 1)


def test_a_slow_creep_from_the_baseline_blocks(nights: Nights) -> None:
    nights.fill([271.0] * 3)
    nights.history.accept(nights.history.select("run3").build)
    nights.fill(271.0 * (1 + 0.002 * n) for n in range(1, 6))
    assert nights.changes("run7") == [Change.SAME] and nights.changes("run8") == [Change.MORE]


def test_a_figure_that_one_side_lacks_is_said(nights: Nights) -> None:
    nights.fill([271.0] * 2)
    nights.history.import_run(nights.runs.write(result(CASE), key="cc").path)
    found = nights.judged(base="run2")
    assert "not measured         on virt1 [virtual]: pv64_hypercall_instructions" in gate.gate_lines(found)
    assert (found.exit_status, site_overview.state(found)) == (0, "MISS")
    nights.add(100.0, figure="pv64_new_instructions")
    found = nights.judged(base="run2")
    assert gate.summed(found).endswith("figures: 1 not measured, 1 new")


def test_a_run_is_judged_against_the_others_with_its_build(nights: Nights) -> None:
    for value in (271.0, 271.0, 276.4):
        nights.add(value, key="aa")
    assert nights.changes("run3", LINE) == [Change.MORE]
    assert nights.changes("run2", LINE) == [Change.UNDECIDED], "the others differ by as much"


def test_a_comparison_as_data_has_the_figures(nights: Nights) -> None:
    nights.fill([271.0] * 3 + [276.4])
    (told,) = json.loads(json.dumps(comparing.as_data(nights.judged())))["figures"]
    assert (told["figure"], told["change"], told["new"], told["boards"]) == (COUNT, "costs more", [276.4], "virt1")


# what readers see


def answer(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == status
    return capsys.readouterr().out


def test_the_terminal_shows_values_noise_and_steps(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XENLAB_HISTORY_URL", f"sqlite:///{nights.history.where}")
    nights.fill([271.0] * 4 + [276.42] * 3)
    said = answer(capsys, "history", "--figure", "pv64_hypercall")
    assert said.startswith(f"{COUNT}, {LINE} on virt1 (virtual): 276.42, noise 0.00%; 1 step in 7 builds\n")
    assert "  +2.00% (271 to 276.42)\n    first build with it: pv32-debug@00000005: " in said
    assert f"{4:040x}, x86: change 4\n    ./xenlab bisect --figure {COUNT}" in said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("  step")] == ["276.42"]
    (told,) = json.loads(answer(capsys, "history", "--figure", COUNT, "--json"))
    assert [one["first"] for one in told["steps"]] == ["pv32-debug@00000005"] and len(told["builds"]) == 7
    answer(capsys, "history", "--figure", COUNT, "--crashes", status=2)


def test_the_site_has_a_page_for_a_figure_and_leads_to_it(nights: Nights, tmp_path: Path) -> None:
    nights.fill([271.0] * 4 + [276.42] * 3)
    where = tmp_path / "site"
    first = site.write(nights.history, where).read_text(encoding="utf-8")
    page = (where / "figures" / f"{COUNT}.html").read_text(encoding="utf-8")
    assert "+2.00 % (271 to 276.42) since" in page and "x86: change 5" in page and "./xenlab bisect" in page
    assert page.count("<circle") == 7 and "noise 0.00%" in page and ">+2.00%</text>" in page
    assert f'href="figures/{COUNT}.html"' in first and "Steps of figures: 1" in first
    assert "<title>1 figure costs more</title>" in first
    (case,) = (where / "cases").iterdir()
    assert f'href="../figures/{COUNT}.html"' in case.read_text(encoding="utf-8")
    assert "1 figure costs more" in (where / "feed.xml").read_text(encoding="utf-8")
    anew = tmp_path / "anew"
    site.write(nights.history, anew)
    assert (anew / "figures" / f"{COUNT}.html").read_text(encoding="utf-8") == page


def test_a_run_that_costs_more_says_so_to_ci_and_by_mail(nights: Nights) -> None:
    nights.fill([271.0] * 4 + [276.42])
    run = RunFolder.open(nights.runs.directory / "run5").summary()
    told = ci.judged(nights.history, run)
    assert any(line.startswith("worse costs more") and f"{COUNT} on virt1" in line for line in ci.worse(told))
    assert ci.headline(run, told) == "1 figure costs more"
    assert "### Costs more: 1" in ci.write_summary(run, told).read_text(encoding="utf-8")
    assert ci.github_commands(told)[0].startswith(f"::error title=costs more with {LINE}%3A {COUNT}::")
    said = mail.body(run, told, None)
    assert "Regressions :-(" in said and "Figures which cost more and are blocking:" in said
