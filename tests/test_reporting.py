"""Reports: right for those who read them, harmless whatever a console said."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from junitparser import JUnitXml

from lab.base import paths
from lab.history.news import News
from lab.reporting import ci, figures, html, junit, terminal
from lab.results.record import Check, Evidence, Phase, RunHeader, TestResult, Verdict
from lab.results.run_folder import RunFolder, kinds_path

S3 = "testcases/sleep/test_s3.py::test_s3_rtc_wake"
PV32 = "testcases/guest32/test_pv32.py::test_pv32_runs"
OTHER = "testcases/sleep/test_s5.py::test_s5"
HOSTILE = (
    '</pre></script><script>alert(1)</script><img src=x onerror="alert(2)">\x1b]0;owned\x07\x1b[2J\x00\x08'
    "\ufffe\ud800\x9b31m ]]> &amp; {{ 7*7 }} '\" \u202e"
)


def header(**changes: object) -> RunHeader:
    plain = RunHeader(
        run_id="20261123-083353-1a2b",
        started=1795422833.0,
        selection="full",
        builds=("pv32-debug",),
        boards={"virt1": {"class": "virtual", "bmc": "ipmi"}},
        planned=(PV32, S3),
        required_areas=("guest32", "sleep"),
        finished=1795422933.0,
        phases=(Phase("set-up", 1795422833.0, 10.0), Phase("lab up", 1795422843.0, 5.5)),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def result(case: str = PV32, verdict: Verdict = Verdict.PASS, **changes: object) -> TestResult:
    reason = "" if verdict is Verdict.PASS else "because"
    plain = TestResult(
        case, case.split("/")[1], verdict, "some-rule", reason, 1795422840.0, 2.0, ("virt1",), "pv32-debug"
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def run(tmp_path: Path, *results: TestResult, **changes: object) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", header(**changes))
    for one in results:
        folder.append(one)
    return folder


def hostile_run(tmp_path: Path) -> RunFolder:
    folder = run(
        tmp_path,
        planned=(PV32, S3, f"testcases/x/test_y.py::test[{HOSTILE}]"),
        notes=(HOSTILE,),
        selection=HOSTILE,
        boards={HOSTILE: {HOSTILE: HOSTILE}},
        phases=(Phase(HOSTILE, 1.0, 2.0),),
    )
    directory = folder.case_directory(S3, 1)
    (directory / "virt1.console.log").write_bytes(
        b"2026-11-23T08:33:53.123Z (XEN) Panic on CPU 0: " + HOSTILE.encode(errors="replace") + b"\xff\n"
    )
    (directory / "p.svg").write_text(f"<svg onload='alert(3)'>{HOSTILE}</svg>", errors="replace")
    inside = directory.relative_to(folder.path)
    folder.write_builds({"pv32-debug": {HOSTILE: HOSTILE}})
    folder.append(
        result(
            S3,
            Verdict.FAIL,
            rule=HOSTILE,
            reason=HOSTILE,
            doc=HOSTILE,
            boards=(HOSTILE,),
            phases=(Phase(HOSTILE, 1.0, 2.0),),
            evidence=(Evidence("console", HOSTILE, HOSTILE, 1.0, HOSTILE),),
            figures={HOSTILE: 1.0},
            consoles={HOSTILE: f"{inside}/virt1.console.log", "away": "../../../etc/passwd"},
            pictures={HOSTILE: f"{inside}/p.svg", "away": "../x.svg"},
        )
    )
    return folder


# JUnit


def cases_in(path: Path) -> dict[tuple[str, str], ET.Element]:
    cases = list(ET.parse(path).getroot().iter("testcase"))
    found = {(case.attrib["classname"], case.attrib["name"]): case for case in cases}
    assert len(found) == len(cases)
    return found


def test_junit_says_each_verdict_as_ci_reads_it(tmp_path: Path) -> None:
    names = {verdict: f"testcases/boot/test_b.py::test_{verdict.lower()}" for verdict in Verdict}
    folder = run(tmp_path, *(result(name, verdict) for verdict, name in names.items()), planned=(*names.values(), S3))
    path = junit.write(folder.summary())
    found = cases_in(path)
    said = {
        name: [(inner.tag, inner.get("type")) for inner in case if inner.tag in ("failure", "error", "skipped")]
        for (_, name), case in found.items()
    }
    assert said == {
        "test_fail": [("failure", "some-rule")],
        "test_error": [("error", "some-rule")],
        "test_miss": [("error", "miss")],
        "test_pass": [],
        "test_skip": [("skipped", "skip")],
        "test_s3_rtc_wake": [("error", "miss")],
    }
    gone = found["testcases.sleep.test_s3", "test_s3_rtc_wake"].find("error")
    assert gone is not None
    assert gone.get("message") == "did not run"
    suite = next(iter(JUnitXml.fromfile(str(path))))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (6, 1, 3, 1)


def test_junit_carries_verdict_rule_boards_and_evidence(tmp_path: Path) -> None:
    evidence = (Evidence("command", "xl list", "Domain-0\n" * 1000, 1.0, "virt1"),)
    case = cases_in(junit.write(run(tmp_path, result(S3, Verdict.FAIL, evidence=evidence)).summary()))[
        "testcases.sleep.test_s3", "test_s3_rtc_wake"
    ]
    properties = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
    assert properties["verdict"] == "FAIL"
    assert properties["rule"] == "some-rule"
    assert properties["boards"] == "virt1"
    output = case.findtext("system-out") or ""
    assert "xl list" in output
    assert "characters left out" in output
    assert len(output) < 3000


def test_a_crash_has_its_fingerprint_in_both_reports(tmp_path: Path) -> None:
    told = Evidence("crash", "what crashed", "crash: xen-bug\nframes:\n  do_foo+0x1", 1.0, "virt1")
    fingerprint = "0123456789 xen-bug: Xen BUG at <b>.c / do_foo < bar"
    crashed = result(S3, Verdict.FAIL, rule="console-crash", fingerprint=fingerprint, evidence=(told,))
    folder = run(tmp_path, crashed, result(PV32))
    found = cases_in(junit.write(folder.summary()))
    with_it = found["testcases.sleep.test_s3", "test_s3_rtc_wake"]
    properties = {one.attrib["name"]: one.attrib["value"] for one in with_it.iter("property")}
    assert properties["fingerprint"] == fingerprint
    assert "do_foo+0x1" in (with_it.findtext("failure") or "")
    without = found["testcases.guest32.test_pv32", "test_pv32_runs"]
    assert "fingerprint" not in {one.attrib["name"] for one in without.iter("property")}
    page = html.write(folder.summary()).read_text()
    assert "crash 0123456789</code>" in page
    assert "<dd>0123456789 xen-bug: Xen BUG at &lt;b&gt;.c / do_foo &lt; bar</dd>" in page


def test_junit_names_are_unique_over_builds_and_attempts(tmp_path: Path) -> None:
    same = "testcases/a.b/test_c.py::test_d"
    other = "testcases/a/b/test_c.py::test_d"  # the same class name
    folder = run(
        tmp_path,
        *(result(case, build=build) for case in (same, other) for build in ("old", "new")),
        result(same, Verdict.MISS, build="old", attempt=1),
        result(same, build="old", attempt=2),
        builds=("old", "new"),
    )
    found = cases_in(junit.write(folder.summary()))
    assert len(found) == 8  # four, and two planned of two builds that did not run
    retried = found["testcases.a.b.test_c", "test_d (old)"]
    assert retried.find("error") is None
    assert "attempt 1: MISS" in (retried.findtext("system-out") or "")


def test_junit_is_valid_under_hostile_bytes(tmp_path: Path) -> None:
    path = junit.write(hostile_run(tmp_path).summary())
    text = path.read_text(encoding="utf-8")
    ET.fromstring(text)
    assert "<script" not in text
    assert r"\x1b]0;owned\x07" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe]", text)
    JUnitXml.fromfile(str(path))


def test_reports_of_a_run_that_died_at_once(tmp_path: Path) -> None:
    folder = run(tmp_path, finished=None, phases=(), boards={})
    assert len(cases_in(junit.write(folder.summary()))) == 2
    page = html.write(folder.summary()).read_text()
    assert "has not finished, or it died" in page
    assert "did not run" in page
    terminal.summary(folder.summary(), file=(out := io.StringIO()))
    assert "exit status 3" in out.getvalue()


def test_the_terminal_says_which_builds_show_a_known_bug_or_skip(tmp_path: Path) -> None:
    known = (Check("cr2", False, "lost", "cr2-not-saved"),)
    folder = run(
        tmp_path,
        *(result(case, build=build, checks=known) for case in (PV32, S3) for build in ("old", "new")),
        result(OTHER, build="old", checks=known),
        result(OTHER, Verdict.SKIP, build="new"),
        builds=("old", "new"),
        planned=(PV32, S3, OTHER),
    )
    terminal.summary(folder.summary(), file=(out := io.StringIO()))
    lines = out.getvalue().splitlines()
    assert "PASS  2 cases, test_pv32_runs, test_s3_rtc_wake with old, new: known bug cr2-not-saved" in lines
    assert f"PASS  {OTHER} with old: known bug cr2-not-saved" in lines
    assert f"SKIP  {OTHER} with new: because (some-rule)" in lines
    text = ci.write_summary(folder.summary(), News()).read_text()
    assert "### PASS, known bug: 5\n\n- test_pv32_runs, test_s3_rtc_wake with old, new: cr2-not-saved\n" in text
    assert "- test_s5 with old: cr2-not-saved\n" in text


# HTML


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_html_is_harmless_under_hostile_bytes(tmp_path: Path) -> None:
    text = html.write(hostile_run(tmp_path).summary()).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\u202e]", text)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/svg+xml;base64,")), value
    assert "root:" not in text  # of /etc/passwd
    assert "the slice is not in the run folder" in text
    assert "The picture cannot be shown" in text


def test_html_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = html.write(run(tmp_path, result(), result(S3)).summary()).read_text()
    page = Page(text)
    policies = [a for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "http://" not in re.sub(r"data:[^\"]*", "", text)
    assert "https://" not in text
    assert "prefers-color-scheme: dark" in text


def test_html_shows_the_run(tmp_path: Path) -> None:
    evidence = (Evidence("command", "xl list", "Domain-0 running", 1795422841.0, "virt1"),)
    folder = run(
        tmp_path,
        result(doc="What it proves."),
        result(
            S3,
            Verdict.FAIL,
            reason="never woke",
            rule="assertion",
            evidence=evidence,
            figures={"wake_s": 3.5},
        ),
        notes=("virt2: BMC does not answer",),
        exit_status=1,
    )
    folder.write_builds({"pv32-debug": {"build id": "c0ffee"}})
    text = html.write(folder.summary()).read_text()
    for said in (
        "Exit status 1: a case ended with FAIL or ERROR",
        "virt2: BMC does not answer",
        "c0ffee",
        "never woke",
        "assertion",
        "Domain-0 running",
        "wake_s",
        "What it proves.",
        "Where the time goes",
        "set-up",
        "1 min 40 s",
    ):
        assert said in text, said


def test_html_shows_cases_that_did_not_run(tmp_path: Path) -> None:
    folder = run(tmp_path, result())
    text = html.write(folder.summary()).read_text()
    assert '<span class="v MISS">MISS</span> Run' in text
    assert "Exit status 3" in text
    assert "test_s3_rtc_wake" in text
    assert "did not run" in text
    assert "no PASS in area sleep" in text


def test_html_puts_builds_side_by_side(tmp_path: Path) -> None:
    folder = run(tmp_path, result(build="old"), result(verdict=Verdict.FAIL, build="new"), builds=("old", "new"))
    text = html.write(folder.summary()).read_text()
    assert '<th scope="col">old</th><th scope="col">new</th>' in text


@dataclass(frozen=True)
class Record:
    time: float
    kind: str
    text: str


def test_html_colours_console_lines(tmp_path: Path) -> None:
    folder = run(tmp_path)
    records = [
        Record(1795422833.123, "line", "(XEN) Panic on CPU 0:"),
        Record(1795422833.124, "partial", "(XEN) Xen WARN at x.c:1"),
        Record(1795422833.125, "gap", "SOL lost"),
        Record(1795422833.126, "open", ""),
        Record(1795422833.127, "gap", "Permission denied; Kernel panic - not syncing: the gap's own words"),
    ]
    path = folder.write_console(folder.case_directory(S3, 1), "virt1", records)
    folder.append(result(S3, Verdict.FAIL, consoles={"virt1": path}))
    text = html.write(folder.summary()).read_text()
    assert '<span class="crash"><b>08:33:53.123</b> (XEN) Panic on CPU 0:</span>' in text
    assert '<span class="warning"><b>08:33:53.124</b>' in text
    assert '<span class="gap"><b>08:33:53.125</b> --- gap: SOL lost ---' in text
    assert '<span class="gap"><b>08:33:53.126</b>' in text
    assert "1 crash lines" in text


def test_what_a_board_prints_is_no_gap_whatever_it_looks_like(tmp_path: Path) -> None:
    folder = run(tmp_path)
    records = [
        Record(1795422833.123, "line", "--- gap: SOL lost ---"),
        Record(1795422833.124, "line", "--- (XEN) Panic on CPU 0: ---"),
        Record(1795422833.125, "gap", "the real one"),
    ]
    path = folder.write_console(folder.case_directory(S3, 1), "virt1", records)
    folder.append(result(S3, Verdict.FAIL, consoles={"virt1": path}))
    text = html.write(folder.summary()).read_text()
    assert "<span><b>08:33:53.123</b> --- gap: SOL lost ---</span>" in text
    assert '<span class="crash"><b>08:33:53.124</b>' in text
    assert '<span class="gap"><b>08:33:53.125</b> --- gap: the real one ---' in text


@pytest.mark.parametrize(
    "rows", ["nonsense\n", '{"line": 1e400, "kind": "gap"}\n', "[" * 100_000, '{"line": -1}\n', "\0" * 9]
)
def test_damaged_kinds_of_a_slice_stop_no_page(tmp_path: Path, rows: str) -> None:
    folder = run(tmp_path)
    path = folder.write_console(folder.case_directory(S3, 1), "virt1", [Record(1795422833.123, "line", "hello")])
    kinds_path(folder.path / path).write_text(rows)
    folder.append(result(S3, Verdict.FAIL, consoles={"virt1": path}))
    assert "<b>08:33:53.123</b> hello" in html.write(folder.summary()).read_text()


MEASURED = """\
import resource, sys
from pathlib import Path
from lab.reporting import console_lines
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
told = console_lines.told(Path(sys.argv[1]), None, 65536)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(told.lines), told.crashes, after - before)
"""


@pytest.mark.parametrize("shape", ["many lines", "one line", "crashes only"])
def test_a_huge_slice_is_shown_at_bounded_memory(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "virt1.console.log"
    stamp = "2026-11-23T08:33:53.123Z"
    line = {"many lines": "x", "one line": "x" * 30_000_000, "crashes only": "(XEN) Panic on CPU 7:"}[shape]
    with path.open("w") as out:
        for _ in range(1 if shape == "one line" else 200_000):
            out.write(f"{stamp} {line}\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURED, path],
        env={**os.environ, "PYTHONPATH": str(paths.CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shown, crashes, grown_kib = map(int, done.stdout.split())
    assert 1 <= shown < 10_000 and crashes == (200_000 if shape == "crashes only" else 0)
    assert grown_kib < 16_384, "KiB; the slice is held as a whole"


def test_html_bounds_what_is_long_and_keeps_the_crash(tmp_path: Path) -> None:
    folder = run(tmp_path)
    path = folder.case_directory(S3, 1) / "virt1.console.log"
    quiet = "2026-11-23T08:33:53.123Z (XEN) nothing of interest at all\n" * 20000
    path.write_text(f"{quiet}2026-11-23T08:33:53.123Z (XEN) Panic on CPU 7:\n{quiet}")
    body = "start" + "x" * 300_000 + "end"
    folder.append(
        result(
            S3,
            Verdict.FAIL,
            consoles={"virt1": str(path.relative_to(folder.path))},
            evidence=(Evidence("command", "long", body, 1.0),),
        )
    )
    text = html.write(folder.summary()).read_text()
    assert len(text) < 600_000
    assert "Panic on CPU 7" in text
    assert "lines left out" in text
    assert "characters left out" in text
    assert "startxxx" in text
    assert "xxxend" in text


# drawings


def test_a_timeline_is_an_svg_of_its_own(tmp_path: Path) -> None:
    svg = figures.timeline_svg(HOSTILE, [(HOSTILE, 1.0, 2.0, HOSTILE), ("b", 5.0, 5.0, "bad")], [(3.0, HOSTILE)])
    root = ET.fromstring(svg)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg",
        "title",
        "style",
        "rect",
        "text",
        "line",
    }


@pytest.mark.parametrize("spans", [[], [("a", 1.0, 1.0, "x")], [("a", 0.0, 1e9, "x")], [("a", float("nan"), 1.0, "x")]])
def test_a_timeline_of_odd_spans_is_drawn(spans: list[tuple[str, float, float, str]]) -> None:
    ET.fromstring(figures.timeline_svg("t", spans))


def test_pictures_stand_in_the_page(tmp_path: Path) -> None:
    folder = run(tmp_path)
    path = folder.case_directory(S3, 1) / "a.svg"
    path.write_text(figures.timeline_svg("t", [("a", 0.0, 1.0, "good")]))
    folder.append(result(S3, pictures={"Migration": str(path.relative_to(folder.path))}))
    text = html.write(folder.summary()).read_text()
    assert base64.b64encode(path.read_bytes()).decode() in text


# the terminal


def test_without_a_terminal_there_is_a_line_for_each_thing(tmp_path: Path) -> None:
    out = io.StringIO()
    with terminal.Progress(2, file=out) as progress:
        progress.phase("set-up")
        progress.note("building")
        progress.result(result(seconds=12.34))
        progress.result(result(S3, Verdict.FAIL, reason="never woke " + "x" * 200))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"\d\d:\d\d:\d\d -- set-up", lines[0])
    assert re.search(r" PASS  guest32 +test_pv32_runs +12\.3 s  virt1$", lines[2])
    assert "[never woke xxx" in lines[3]


def test_the_terminal_is_not_driven_by_what_a_console_said(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path)
    out = io.StringIO()
    with terminal.Progress(2, file=out) as progress:
        progress.phase(HOSTILE)
        progress.note(HOSTILE)
        for one in folder.results():
            progress.result(one)
    terminal.summary(folder.summary(), file=out)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue())
    assert r"\x1b]0;owned\x07" in out.getvalue()


def test_a_terminal_of_ascii_gets_ascii(tmp_path: Path) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with terminal.Progress(1, file=out) as progress:
        progress.note("µ …")
    terminal.summary(run(tmp_path, result(S3, Verdict.FAIL, reason="ü")).summary(), file=out)
    assert rb"\xb5" in raw.getvalue()


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Tty()
    with terminal.Progress(3, file=out) as progress:
        progress.phase("cases")
        progress.result(result())
        progress.result(result(S3, Verdict.FAIL))
    assert "2 of 3 cases" in out.getvalue()


def test_the_summary_tells_what_did_not_pass_and_why(tmp_path: Path) -> None:
    folder = run(tmp_path, result(verdict=Verdict.MISS, reason="BMC silent", rule="bench"), notes=("virt2 is dead",))
    junit.write(folder.summary())
    html.write(folder.summary())
    terminal.summary(folder.summary(), file=(out := io.StringIO()))
    said = out.getvalue()
    assert f"MISS  {PV32} on virt1: BMC silent (bench)" in said
    assert f"MISS  {S3}: did not run" in said
    assert "the bench says: virt2 is dead" in said
    assert str(folder.path / "report.html") in said
    assert "exit status 3: the bench failed" in said
    assert "planned cases without a result: 1" in said


# -- relocations that were broken ----------------------------------------------------------------------------------

CELL = "testcases/relocation/test_matrix.py::test_relocation_fails_well"


def broken(fault: str, place: str, verdict: Verdict = Verdict.PASS, **fields: object) -> TestResult:
    cell = {"guest": "pvh64", "fault": fault, "place": place, "ending": "UNDEFINED", "wanted": "UNDEFINED"}
    body = json.dumps(cell | fields)
    evidence = (Evidence("cell", f"pvh64-{fault}-{place}", body, 1795422841.0),)
    return result(f"{CELL}[pvh64-{fault}-{place}]", verdict, evidence=evidence)


def test_broken_relocations_are_a_map_that_leads_to_their_cases(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        broken("cut", "GO", order=2),
        broken("cut", "BANNER", Verdict.FAIL, order=1, ending="REFUSED", bad=["where", "memory"]),
        broken("drop", "GO", order=2, known=["left-paused"]),
        planned=(),
    )
    page = html.write(folder.summary()).read_text(encoding="utf-8")
    assert "Relocation of pvh64: endings by fault and step" in page
    assert page.index(">BANNER<") < page.index(">GO<")
    for said in (">refused<", ">undefined<", ">undefined *<", "bad: where, memory", "known: left-paused"):
        assert said in page
    anchors = re.findall(r'<a href="#(case-\d+)"><rect', page)
    assert len(anchors) == 3 and all(f'id="{anchor}"' in page for anchor in anchors)


def test_without_them_there_is_no_map(tmp_path: Path) -> None:
    assert "Relocations that were broken" not in html.write(run(tmp_path, result()).summary()).read_text(
        encoding="utf-8"
    )


def test_what_a_cell_says_is_harmless(tmp_path: Path) -> None:
    hostile = result(CELL, evidence=(Evidence("cell", "x", "[1, 2", 1.0), Evidence("cell", "y", "[]", 1.0)))
    page = html.write(
        run(tmp_path, broken(HOSTILE, HOSTILE, ending=HOSTILE, order=HOSTILE), hostile).summary()
    ).read_text(encoding="utf-8")
    svg = page[page.index("Relocations that were broken") : page.index("Where the time goes")]
    assert "<script" not in svg and "<img" not in svg
    ET.fromstring(svg[svg.index("<svg") : svg.index("</svg>") + 6])


def test_growth_is_drawn_on_logarithmic_axes() -> None:
    lines = {"flat": [(1e4, 0.01), (1e6, 0.01)], "straight & up": [(1e4, 0.001), (1e5, 0.01), (1e6, 0.1)]}
    root = ET.fromstring(figures.growth_svg("how <it> grows", lines, across="results", up="seconds"))
    drawn = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    ]
    (flat, straight) = drawn
    assert flat[0][1] == flat[1][1]
    assert straight[0][0] == flat[0][0]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(straight, straight[1:], strict=False)]
    assert steps[0] == pytest.approx(steps[1], abs=0.2)  # ten times more is the same step everywhere
    assert straight[1][1] == pytest.approx(flat[0][1], abs=0.2)
    assert root.find("{http://www.w3.org/2000/svg}title").text == "how <it> grows"  # type: ignore[union-attr]
    ET.fromstring(figures.growth_svg("nothing", {"none": [(0.0, 1.0), (1.0, float("nan"))]}, across="x", up="y"))
