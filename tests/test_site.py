"""The pages, in the browser that readers use: found, believed, and harmless whatever a console said."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from run_folders import LINE, PV32, S3, Runs, result

from lab.base.errors import UsageError
from lab.cli.main import main
from lab.history import known_issues
from lab.history.store import History
from lab.reporting import findings, html, mutants, site, site_places
from lab.results import run_folder
from lab.results.record import BUILD_CASE, Check, Evidence, TestResult, Verdict

LIVE = "testcases/relocation/test_live.py::test_brings_it_over"
TWO_CASES = ((PV32, Verdict.PASS), (S3, Verdict.FAIL))
# As root there is no sandbox; the rest keeps it from talking to its maker.
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
HOSTILE = (
    "</pre></span></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<a href=\"javascript:document.title='owned'\">x</a><style>body{display:none}</style>\x1b]0;owned\x07\x00"
    "\u202e {{ 7*7 }} '\""
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; ./xenlab selftest installs it")
        pytest.skip("chromium is not installed (package chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(f"sqlite:///{tmp_path}/history.sqlite")


@pytest.fixture
def folders(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


Open = Callable[..., Page]


@pytest.fixture
def look(browser: Browser) -> Iterator[Open]:
    """Open a page; that it asked for nothing but files and complained of nothing is seen at the end."""
    asked: list[str] = []
    said: list[str] = []
    contexts: dict[tuple[int, str], BrowserContext] = {}

    def opened(path: Path, *, width: int = 1200, scheme: str = "light") -> Page:
        if (width, scheme) not in contexts:
            viewport = {"width": width, "height": 800}
            contexts[width, scheme] = browser.new_context(viewport=viewport, color_scheme=scheme)
        page = contexts[width, scheme].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts.values():
        context.close()
    assert [url for url in asked if not url.startswith(("file://", "data:image/svg+xml;base64,"))] == []
    assert said == []


def with_consoles(folders: Runs, one: TestResult, consoles: dict[str, str], key: str) -> Path:
    """A run folder with one result, whose boards said this (lines ``SECONDS TEXT``)."""
    folder = folders.write(replace(one, boards=tuple(consoles)), key=key)
    paths = {}
    for board, text in consoles.items():
        lines = [line.split(" ", 1) for line in text.splitlines()]
        path = folder.case_directory(one.case, 1) / f"{board}.console.log"
        path.write_text("".join(f"2026-11-23T08:33:{second}.000Z {said}\n" for second, said in lines))
        paths[board] = str(path.relative_to(folder.path))
    (folder.path / "results.jsonl").unlink()
    folder.append(replace(one, boards=tuple(consoles), consoles=paths, started=folder.header().started))
    return folder.path


def broken(history: History, folders: Runs) -> None:
    """Two good builds, then one whose hypervisor panics in one case and whose bench fails another."""
    good = [result(PV32), result(S3), result(LIVE, board="virt1+virt2")]
    for key in ("aa", "bb"):
        history.import_run(folders.write(*good, key=key).path)
    crash = replace(
        result(PV32, Verdict.FAIL),
        rule="console-crash",
        reason="virt1: xen-panic: Assertion 'x' failed",
        fingerprint="0123456789 xen-assertion: x / do_foo",
        evidence=(Evidence("command", "xl list", "Domain-0", 1795000000.0, "virt1"),),
    )
    said = "01 (XEN) fine\n02 (XEN) Panic on CPU 0:\n03 (XEN) Reboot in five seconds..."
    history.import_run(with_consoles(folders, crash, {"virt1": said}, "cc"))
    history.import_run(folders.write(result(S3, Verdict.MISS), key="cc").path)


# what a reader finds


def test_the_first_page_says_what_broke_and_leads_to_the_proof(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    broken(history, folders)
    page = look(site.write(history, tmp_path / "site"))
    assert page.locator("h1").inner_text() == "1 case fails anew, with one fault"
    worse = page.locator("section.worse")
    assert worse.locator("h2").inner_text() == "xen-assertion: x / do_foo"
    since = "Fails since pv32-debug 4.17.5 cc (21 Nov); last good pv32-debug 4.17.5 bb (20 Nov)."
    assert worse.locator("p").first.inner_text() == since
    said = worse.locator("li").inner_text()
    assert "test_pv32_runs[hvm]" in said and "Assertion 'x' failed" in said and "passed 1 of 1 with" in said
    assert "blocked" in page.locator("section.line h2").inner_text()
    assert "Not counted: virt1: because (1 case)." in page.locator("section.line").inner_text()
    uncounted = page.locator("details", has_text="Not counted").locator("li", has_text="test_s3_rtc_wake")
    assert "MISS on virt1" in uncounted.inner_text() or "MISS: virt1" in uncounted.inner_text()
    worse.get_by_role("link", name="proof").first.click()
    assert page.title() == "FAIL: test_pv32_runs[hvm]"
    crash, end = page.locator(".log .crash").all()
    assert crash.inner_text().endswith("08:33:02.000 (XEN) Panic on CPU 0:")
    assert end.inner_text().endswith("(XEN) Reboot in five seconds...")
    crash.get_by_role("link").click()
    assert page.url.endswith("0.html#c0-2")
    page.get_by_role("link", name="the case over time").click()
    strip = [mark.inner_text() for mark in page.locator(".strip .v").all()]
    assert strip == ["P", "P", "F"]
    assert "0123456789 xen-assertion: x / do_foo" in page.locator("section").inner_text()


def test_a_phone_shows_what_crashed_and_where_at_first_sight(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(result(PV32), key="aa").path)
    dump = [
        "----[ Xen-4.20 ]----",
        "RIP:    e008:[<ff>] do_foo+0x4/0x9",
        "Xen call trace:",
        "[<ff>] R do_foo",
        "[<fe>] F bar",
    ]
    said = [*(f"line {n}" for n in range(40)), *dump, "Panic on CPU 0:", "FATAL PAGE FAULT"]
    failed = result(PV32, Verdict.FAIL, rule="console-crash", fingerprint="0123456789 xen-page-fault: do_foo")
    console = "\n".join(f"{at:02} (XEN) {line}" for at, line in enumerate(said))
    history.import_run(with_consoles(folders, failed, {"virt1": console}, "bb"))
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run2" / "0.html", width=390)
    told = page.locator(".told")
    assert told.inner_text().split("\n") == [
        f"(XEN) {line}" for line in (*dump[1:], "Panic on CPU 0:", "FATAL PAGE FAULT")
    ]
    box = told.bounding_box()
    assert box and box["y"] + box["height"] <= 844  # of a common phone
    told.get_by_role("link", name="RIP:").click()
    assert page.url.endswith("0.html#c0-42") and page.locator("#c0-42").is_visible()


def test_the_proof_is_reached_without_a_mouse(history: History, folders: Runs, tmp_path: Path, look: Open) -> None:
    broken(history, folders)
    page = look(site.write(history, tmp_path / "site"))
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.innerText")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", focused
        if focused == "proof":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/**")
    assert page.title() == "FAIL: test_pv32_runs[hvm]"


def test_a_run_has_its_cases_by_build_and_board(history: History, folders: Runs, tmp_path: Path, look: Open) -> None:
    results = [result(PV32), result(S3, Verdict.MISS, "virt2"), result(LIVE, board="virt1+virt2")]
    retried = replace(results[1], verdict=Verdict.PASS, attempt=2)
    folder = folders.write(*results, retried, key="aa", planned=(PV32, S3, LIVE, f"{S3}_2"))
    history.import_run(folder.path)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run1" / "index.html")
    assert page.locator("thead th").all_inner_texts() == ["case", "pv32-debug 4.17.5 aa (19 Nov)"]
    row = page.locator("tr", has_text="test_s3_rtc_wake").first
    assert row.locator("td").first.inner_text().startswith("PASS")
    assert row.locator("td .soft").first.inner_text() == "virt2"
    assert row.get_by_role("link", name="MISS").get_attribute("href") == "1.html"
    assert "MISS did not run" in page.locator("tr", has_text="test_s3_rtc_wake_2").inner_text()
    page.get_by_label("only what did not pass").check()
    assert not page.locator("tr", has_text="test_pv32_runs").first.is_visible()


def test_two_boards_stand_side_by_side_in_the_order_of_time(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    consoles = {"virt1": "01 sends\n03 resumes\n04 (XEN) Panic on CPU 1:", "virt2": "02 receives"}
    history.import_run(with_consoles(folders, result(LIVE, Verdict.FAIL), consoles, "aa"))
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run1" / "0.html")
    lines = {
        word: page.locator(".pair span", has_text=word).bounding_box() for word in ("sends", "receives", "resumes")
    }
    tops = [box["y"] for box in lines.values() if box]
    assert tops == sorted(set(tops))
    assert lines["receives"]["x"] > lines["sends"]["x"] + lines["sends"]["width"] - 1
    assert lines["resumes"]["x"] == lines["sends"]["x"]
    assert page.locator(".pair .crash").inner_text().endswith("Panic on CPU 1:")


# every page, on every screen


def pages_of(where: Path) -> dict[str, Path]:
    return {
        "overview": where / "index.html",
        "run": where / "runs" / "run3" / "index.html",
        "result": where / "runs" / "run3" / "0.html",
        "case": where / "cases" / f"{run_folder.slug(PV32)}.html",
    }


@pytest.mark.parametrize("name", ["overview", "run", "result", "case"])
def test_a_phone_shows_it_in_the_dark(history: History, folders: Runs, tmp_path: Path, look: Open, name: str) -> None:
    broken(history, folders)
    site.write(history, tmp_path / "site")
    path = pages_of(tmp_path / "site")[name]
    phone = look(path, width=375, scheme="dark")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 375
    for page, is_dark in ((phone, True), (look(path), False)):
        colours = page.evaluate(
            """() => [...document.querySelectorAll('.v, .soft, a, p, td')].filter(e => e.innerText).map(e => {
            const over = [];
            for (let n = e; n; n = n.parentElement) over.push(getComputedStyle(n).backgroundColor);
            return [getComputedStyle(e).color, over.find(c => c !== 'rgba(0, 0, 0, 0)'), e.innerText.slice(0, 20)]})"""
        )
        assert colours
        assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2) is is_dark
        for text, ground, said in colours:
            high, low = sorted((luminance(text), luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (said, text, ground)  # WCAG 2.2, 1.4.3


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``: WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_link_leads_nowhere(history: History, folders: Runs, tmp_path: Path) -> None:
    broken(history, folders)
    hostile(history, folders)
    history.import_run(folders.write(result(PV32), key="dd", planned=(PV32, S3)).path)  # S3 did not run
    unmade = result(BUILD_CASE, Verdict.FAIL, board="", reason="p2m.c:5: error: x")
    history.import_run(folders.write(unmade, key="", planned=(PV32,)).path)
    where = tmp_path / "site"
    site.write(history, where)
    links = 0
    for page in where.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'href="([^"]*)"', text):
            parts = urlsplit(target)
            if parts.scheme == "data":
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if file.is_relative_to(folders.directory):  # the report, JUnit and the consoles of a run
                assert file.exists(), f"{page}: {target}"
                continue
            assert file.is_file() and file.is_relative_to(where), f"{page}: {target}"
            if parts.fragment:
                assert f'id="{parts.fragment}"' in file.read_text(encoding="utf-8"), f"{page}: {target}"
            links += 1
    assert links > 40


def hostile(history: History, folders: Runs) -> None:
    """Three runs whose every word is hostile."""
    case = f"testcases/x/test_y.py::test[{HOSTILE}]"
    plain = result(case, Verdict.FAIL)
    bad = replace(
        plain,
        rule=HOSTILE,
        reason=HOSTILE,
        doc=HOSTILE,
        fingerprint=HOSTILE,
        area=HOSTILE,
        evidence=(Evidence("console", HOSTILE, HOSTILE, 1.0, HOSTILE),),
        figures={HOSTILE: 1.0},
    )
    history.import_run(folders.write(result(case), key="aa").path)
    folder = with_consoles(folders, bad, {"virt1": f"01 (XEN) Panic on CPU 0: {HOSTILE}"}, "bb")
    console = next(folder.rglob("*.console.log"))
    console.write_text(f"2026-11-23T<script>alert(1)</script> x\n{console.read_text()}")
    history.import_run(folder)
    history.import_run(folders.write(bad, key=HOSTILE, run_id=HOSTILE, notes=(HOSTILE,), selection=HOSTILE).path)


def test_a_console_cannot_make_the_pages_do_anything(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    hostile(history, folders)
    where = tmp_path / "site"
    site.write(history, where)
    shown = 0
    for path in sorted(where.rglob("*.html")):
        page = look(path)
        assert page.locator("main").is_visible()
        for element in page.locator("summary").all():
            element.click()
        scripts = page.locator("script").all_inner_texts()
        assert scripts == ([site_places.FILTER] if path.name in ("cases.html", "boards.html") else [])
        assert page.evaluate("document.querySelectorAll('iframe, [onerror], :not(svg) > style').length") == 0
        assert page.locator("img:not([src^='data:'])").count() == 0
        assert page.locator("a[href^='javascript']").count() == 0
        assert page.title() != "owned"
        shown += "<script>document.title" in page.locator("body").inner_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", path.read_text(encoding="utf-8"))
    assert shown >= 5  # as the text that it is


# what is written again


def stamps(where: Path) -> dict[str, int]:
    return {str(path.relative_to(where)): path.stat().st_mtime_ns for path in where.rglob("*.html")}


def test_one_more_run_leaves_the_pages_of_others_alone(history: History, folders: Runs, tmp_path: Path) -> None:
    where = tmp_path / "site"
    history.import_run(folders.write(result(PV32), result(S3), key="aa").path)
    site.write(history, where)
    before = stamps(where)
    history.import_run(folders.write(result(PV32), key="bb").path)
    site.write(history, where)
    changed = {name for name, stamp in stamps(where).items() if before.get(name) != stamp}
    assert changed == {
        "index.html",
        "cases.html",
        "boards.html",
        "runs/run1/index.html",  # it has a next run now
        f"cases/{run_folder.slug(PV32)}.html",
        "runs/run2/index.html",
        "runs/run2/good-guest32.html",
    }


def all_of(where: Path) -> dict[str, bytes]:
    """The site, without what it keeps of earlier ones: its state, and the feed."""
    files = (path for path in where.rglob("*") if path.is_file() and path.name not in (".site.json", "feed.xml"))
    return {str(path.relative_to(where)): path.read_bytes() for path in files}


def test_a_site_brought_up_to_date_is_the_one_that_is_written_from_nothing(
    history: History, folders: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.time, "time", lambda: 0.0)  # on the first page
    monkeypatch.setattr(site, "RUNS_SHOWN", 4)
    where, fresh = tmp_path / "site", tmp_path / "also"  # beside it: pages have relative links to run folders

    def check(step: str) -> None:
        site.write(history, where)
        shutil.rmtree(fresh, ignore_errors=True)
        site.write(history, fresh)
        assert all_of(where) == all_of(fresh), step

    broken(history, folders)
    check("the first")
    last = folders.write(result(PV32, Verdict.FAIL), result(S3), key="cc", planned=(PV32, S3, f"{S3}_2"))
    history.import_run(last.path)
    check("the same build again, and a case that did not run")
    known_issues.add(history, PV32, "https://bugs.example/1", "p2m lock", "ann")
    check("a known issue")
    for key in ("dd", "ee"):  # the oldest go, and with them what was good last
        history.import_run(folders.write(result(PV32, Verdict.FAIL, reason="another"), key=key).path)
        check(f"build {key}")
    again = folders.write(result(PV32), result(LIVE), key="aa")
    history.import_run(again.path)
    check("an old build again")
    last.append(result(S3, Verdict.FAIL))
    history.import_run(last.path)
    check("a run gone on with")
    (again.path / html.NAME).write_text("a report")
    check("a report of a run")
    shutil.rmtree(again.path)
    check("a run that went, and an older one in its place")
    known_issues.remove(history, PV32)
    check("no known issue")


def test_a_run_gone_on_with_is_shown_anew_and_one_that_went_is_gone(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    where = tmp_path / "site"
    first = folders.write(result(PV32), key="aa")
    second = folders.write(result(PV32), key="bb")
    for folder in (first, second):
        history.import_run(folder.path)
    site.write(history, where)
    second.append(result(S3, Verdict.FAIL))
    history.import_run(second.path)
    shutil.rmtree(first.path)
    site.write(history, where)
    assert sorted(path.name for path in (where / "runs").iterdir()) == ["run2"]
    assert "FAIL" in look(where / "runs" / "run2" / "1.html").title()
    page = look(where / "cases" / f"{run_folder.slug(PV32)}.html")
    assert [mark.evaluate("e => e.tagName") for mark in page.locator(".strip .v").all()] == ["I", "A"]


def test_many_runs_are_shared_out_and_give_the_same_pages(
    history: History, folders: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(site.MANY):
        history.import_run(folders.write(result(PV32), result(S3, Verdict.MISS), key=f"b{number}").path)
    monkeypatch.setattr(site.time, "time", lambda: 0.0)  # on the first page
    pages = []
    for many in (site.MANY, site.MANY + 1):
        monkeypatch.setattr(site, "MANY", many)
        where = tmp_path / f"site{many}"
        site.write(history, where)
        pages.append({str(path.relative_to(where)): path.read_text() for path in where.rglob("*.html")})
    # The lists, two cases, a fault, the findings, and of each run its page, what passed and what did not.
    assert len(pages[0]) == 3 + 2 + 1 + len(findings.pages()) + 3 * (many - 1)
    assert pages[0] == pages[1]


def test_a_folder_of_something_else_is_left_alone(history: History, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else"):
        site.write(history, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_command_takes_over_what_is_new_and_says_where_the_page_is(
    folders: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("XENLAB_HISTORY_URL", raising=False)
    Runs(tmp_path / "xenlab" / "runs").write(result(PV32), key="aa")
    with pytest.raises(SystemExit) as end:
        main(["report", "--site", str(tmp_path / "site")])
    assert end.value.code == 0
    page = tmp_path / "site" / "index.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert f"{LINE}@aa" in page.read_text(encoding="utf-8")


# nothing is shown better than it is


def first_page(history: History, where: Path, look: Open) -> Page:
    return look(site.write(history, where / "site"))


def greens(page: Page) -> list[str]:
    """What stands on the page as good: its headline, and the lines of builds."""
    found = page.locator("h1.PASS, section.line.PASS h2").all_inner_texts()
    return [text.split("\n")[0] for text in found]


def test_a_first_run_is_judged_against_nothing_and_is_not_green(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(result(PV32, Verdict.FAIL), result(S3), key="aa").path)
    page = first_page(history, tmp_path, look)
    assert page.locator("h1").inner_text() == "1 failed; no baseline yet"
    assert page.locator("section.line h2 .v").inner_text() == "gate: 1 failed; no baseline yet"
    assert greens(page) == []


def test_a_run_that_still_goes_on_says_so_everywhere(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(result(PV32), result(S3), key="aa").path)
    going = folders.write(result(PV32), key="bb", planned=(PV32, S3), finished=None)
    history.import_run(going.path)
    page = first_page(history, tmp_path, look)
    assert page.locator("h1").inner_text() == "Incomplete: the run has not ended, 1 of 2 planned cases did not run"
    assert "still running" in page.locator("tbody th").first.inner_text()
    assert greens(page) == []
    run = look(tmp_path / "site" / "runs" / "run2" / "index.html")
    assert run.locator("h1").inner_text() == "MISS Run run2 still running"
    assert "Still running: 1 of 2 planned cases have a result." in run.locator(".box").first.inner_text()


def test_a_first_run_that_broke_off_says_both_and_what_failed(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    failed = [result(f"testcases/boot/test_b.py::test_{n}", Verdict.FAIL, reason=f"{n * 'x'}") for n in range(9)]
    history.import_run(folders.write(*failed, key="aa", planned=(PV32, *(one.case for one in failed))).path)
    page = first_page(history, tmp_path, look)
    said = "9 failed; no baseline yet; incomplete: 1 of 10 planned cases did not run"
    assert page.locator("h1").inner_text() == said
    decision = page.locator("section.line h2 .v").inner_text()
    assert decision == "gate: 9 failed; no baseline yet; no verdict, the run is incomplete"
    assert page.locator("details.group[open]", has_text="Never passed: 9").count() == 1


def test_a_run_page_and_its_report_count_the_same(history: History, folders: Runs, tmp_path: Path, look: Open) -> None:
    planned = (PV32, S3, *(f"{LIVE}_{number}" for number in range(4)))
    folder = folders.write(result(PV32, Verdict.MISS), result(S3, Verdict.MISS), key="aa", planned=planned)
    history.import_run(folder.path)
    site.write(history, tmp_path / "site")
    counted = "6 MISS (4 did not run)"
    run = look(tmp_path / "site" / "runs" / "run1" / "index.html")
    report = look(html.write(folder.summary()))
    for page in (run, report):
        assert page.locator(".box p").first.inner_text() == counted


def excused(case: str = LIVE, verdict: Verdict = Verdict.PASS) -> TestResult:
    """A relocation that passed because a finding is known, or failed where it is not listed."""
    excuse = "incoming-left-paused" if verdict is Verdict.PASS else None
    checks = (
        Check("ending", True, "UNDEFINED"),
        Check("left-destination", False, "domain x--incoming (--p---)", excuse),
    )
    cell = '{"guest": "pvh64", "fault": "cut", "place": "GO", "order": 1, "ending": "UNDEFINED", "wanted": "UNDEFINED"}'
    evidence = (Evidence("cell", "pvh64-cut-GO", cell, 1.0),)
    return result(case, verdict, evidence=evidence, checks=checks)


def test_a_pass_with_a_known_bug_is_counted_and_leads_to_the_finding(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(excused(), result(PV32), key="aa").path)
    page = first_page(history, tmp_path, look)
    group = page.locator("details", has_text="PASS, known bug: 1")
    group.get_by_role("link", name="incoming-left-paused").click()
    assert page.url.endswith("findings/relocation.html#incoming-left-paused")
    assert page.locator("#incoming-left-paused").is_visible()
    run = look(tmp_path / "site" / "runs" / "run1" / "index.html")
    assert run.locator(".box p").first.inner_text() == "2 PASS (1 with a known bug)"
    assert run.locator("tr", has_text="test_brings_it_over").locator(".chip").inner_text() == (
        "known bug incoming-left-paused"
    )
    tile = run.locator("svg a")
    assert tile.get_attribute("href") == "good-relocation.html#r0"


def test_a_skipped_case_is_not_called_a_fault_of_the_bench(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(result(PV32), result(S3, Verdict.SKIP), key="aa").path)
    page = first_page(history, tmp_path, look)
    assert page.locator("summary", has_text="Skipped: 1").count() == 1
    assert page.locator("summary", has_text="Not counted").count() == 0


# one fault once


def crash_night(history: History, folders: Runs, *, cases: int = 30) -> None:
    """A good build, then one with which every case hits one crash."""
    names = [f"testcases/boot/test_b.py::test_case_{number}" for number in range(cases)]
    sources = [{"commit": word * 40, "subject": f"x86: {word}", "date": "2026-11-18"} for word in "ab"]
    for number, (key, source) in enumerate(zip(("aa", "bb"), sources, strict=True)):
        results = [result(name, board=f"virt{at % 2 + 1}") for at, name in enumerate(names)]
        if number:
            print_ = "3c9f01ab77 xen-assertion: y / p2m_set_entry"
            results = [
                replace(one, verdict=Verdict.FAIL, rule="console-crash", fingerprint=print_, reason=f"{at}: panic")
                for at, one in enumerate(results)
            ]
        folder = folders.write(*results, key=key)
        folder.write_builds({LINE: {**folder.builds()[LINE], "source": source}})
        history.import_run(folder.path)


def test_one_crash_of_many_cases_is_one_entry_with_its_commit(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    crash_night(history, folders)
    page = first_page(history, tmp_path, look)
    assert page.locator("h1").inner_text() == "30 cases fail anew, all with one fault"
    [fault] = page.locator("section.worse").all()
    assert fault.locator("p").first.inner_text() == (
        "Fails since pv32-debug 4.17.5 bbbbbbb (18 Nov) “x86: b”; "
        "last good pv32-debug 4.17.5 aaaaaaa (18 Nov) “x86: a”."
    )
    code = fault.locator(".repeat code")
    assert code.evaluate("it => getComputedStyle(it).whiteSpace") == "nowrap"  # scrolled, and never broken
    assert "line" in (page.locator("main section").first.get_attribute("class") or "").split()  # the gate is first
    gate = page.locator("section.line h2").inner_text()
    assert gate == "gate: blocked pv32-debug 4.17.5 bbbbbbb (commit of 18 Nov) build pv32-debug@bb"
    assert "Newest run shown: 2026-11-20 11:06 UTC." in page.locator("main p").first.inner_text()
    command = code.inner_text()
    assert command.startswith("./xenlab bisect --case testcases/boot/test_b.py::test_case_")
    assert command.endswith(f"--good {'a' * 40} --bad {'b' * 40} --build pv32-debug")
    assert not fault.locator("li").first.is_visible()  # folded
    fault.locator("h2 a").click()
    assert page.locator("main li").count() == 30
    assert "Seen 30 times in 30 cases, with 1 build, on virt1, virt2." in page.locator(".box").inner_text()


def test_a_crash_that_one_case_always_had_is_dated_by_the_cases_that_it_broke(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    crash = {"rule": "console-crash", "fingerprint": "3c9f01ab77 xen-assertion: y / p2m_set_entry"}
    old = result("testcases/boot/test_b.py::test_never_good", Verdict.FAIL, **crash)
    names = [f"testcases/boot/test_b.py::test_case_{number}" for number in range(3)]
    history.import_run(folders.write(*map(result, names), old, key="aa").path)
    history.accept(history.select(LINE).build)
    bad = [result(name, Verdict.FAIL, board=f"virt{1 + at % 2}", **crash) for at, name in enumerate(names)]
    folder = folders.write(old, *bad, key="bb")
    history.import_run(folder.path)
    page = first_page(history, tmp_path, look)
    [fault] = page.locator("section.fault").all()
    shows = "4 cases show it on virt1 and virt2 (board class virtual): 3 new failures, 1 never passed."
    ended = "with this build 4 failed and none passed; with the baseline 1 failed and 3 passed."
    assert shows in fault.inner_text() and ended in fault.inner_text()
    assert "Each case has the crash in its own console record" in fault.inner_text()
    before = "This fault was seen before: first with pv32-debug 4.17.5 aa (19 Nov), in test_never_good."
    since = f"{before} These cases fail since pv32-debug 4.17.5 bb (20 Nov); passed with pv32-debug 4.17.5 aa (19 Nov)."
    assert fault.locator("p").first.inner_text() == since
    assert "never passed (failed with every build tested)" in fault.locator("summary").inner_text()
    run = look(tmp_path / "site" / "runs" / "run2" / "index.html").locator("section.fault")
    assert run.count() == 1 and since in run.inner_text()
    [failure] = (tmp_path / "site" / "failures").iterdir()
    told = look(failure).locator(".box").inner_text()
    assert "it was seen before, first in test_never_good." in told and "last good" not in told
    report = look(html.write(folder.summary()))
    assert report.locator("main table").first.locator("tr").count() == 2  # its head, and one fault
    assert report.get_by_text("y / p2m_set_entry").count() <= 6


def test_what_blocks_comes_before_builds_that_nothing_speaks_against(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    pair = result(LIVE, board="virt1+virt2")
    first = [result(), pair, result(build="debian"), result(S3, Verdict.FAIL, build="debian")]
    history.import_run(folders.write(*first, key="aa", builds=("debian", LINE)).path)
    history.accept(history.select(LINE).build)
    crash = {"rule": "console-crash", "fingerprint": "3c9f01ab77 xen-assertion: y / p2m_set_entry"}
    bad = [result(PV32, Verdict.FAIL, **crash), result(LIVE, Verdict.FAIL, board="virt1+virt2", **crash)]
    history.import_run(folders.write(*bad, result(S3, Verdict.FAIL), key="bb").path)
    page = first_page(history, tmp_path, look)
    names = [one.get_attribute("aria-label") for one in page.locator("main section.box").all()]
    assert names == [LINE, "new fault", "debian"]
    assert "2 cases show it on virt1 and virt2 (board class virtual). " in page.locator("section.worse").inner_text()


def test_a_quiet_night_says_with_which_builds_and_which_were_not_judged(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    builds = (LINE, "debian")
    results = [result(case, verdict, build=build) for build in builds for case, verdict in TWO_CASES]
    history.import_run(folders.write(*results, key="aa", builds=builds).path)
    history.import_run(folders.write(*(one for one in results if one.build == LINE), key="bb").path)
    page = first_page(history, tmp_path, look)
    said = f"Nothing got worse with {LINE}, 1 still fails; debian: 1 failed, no baseline yet"
    assert page.locator("h1").inner_text() == said
    assert greens(page) == []
    history.accept(history.select("debian").build)
    page = first_page(history, tmp_path, look)
    assert page.locator("h1").inner_text().endswith("; debian: 1 failed, not judged: it is the baseline")
    alone = page.locator("section.line", has_text="debian").inner_text()
    assert "1 never passed (only one build was tested), 1 passed. It is the baseline itself" in alone
    history.import_run(folders.write(result(PV32), result(S3, Verdict.MISS), key="bb").path)
    page = first_page(history, tmp_path, look)  # what failed before is counted, whatever was missed
    assert "Nothing got worse" in page.locator("h1").inner_text()
    history.import_run(folders.write(result(PV32, Verdict.MISS), result(S3), key="cc").path)
    page = first_page(history, tmp_path, look)
    assert "Nothing got worse" not in page.locator("h1").inner_text()  # too much was lost


def test_a_run_page_shows_what_is_new_first_and_counts_a_case_once(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    builds = (LINE, "debian")
    old = [result(S3, Verdict.FAIL, build=build, reason="uses 1536 entries") for build in builds]
    history.import_run(folders.write(*old, result(), key="aa", builds=builds).path)
    history.import_run(folders.write(*old, result(PV32, Verdict.FAIL, reason="61 s"), key="bb", builds=builds).path)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run2" / "index.html")
    new, known = page.locator("section.fault").all()
    assert new.locator("h3").inner_text() == "FAIL 61 s"
    assert new.locator("p").first.inner_text() == "1 case on virt1 · decided by rule assertion · new with this build"
    assert known.locator("h3").inner_text() == "FAIL uses 1536 entries"
    assert known.locator("p").first.inner_text() == "1 case with 2 builds on virt1 · decided by rule assertion"
    page = look(tmp_path / "site" / "runs" / "run2" / "0.html")
    page.get_by_role("link", name="all that show this fault").click()
    assert page.locator("h1").inner_text() == "FAIL uses 1536 entries"


def test_a_console_is_open_from_the_head_of_the_dump_on(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    registers = [f"(XEN) r{number:02}: 0000000000000000" for number in range(30)]
    dump = [
        "(XEN) ----[ Xen-4.20.1  x86_64  debug=y ]----",
        "(XEN) RIP:    e008:[<ffff82d040221234>] f+1/2",
        *registers,
    ]
    said = "\n".join(f"00 {line}" for line in [*["(XEN) boots"] * 40, *dump, "(XEN) Panic on CPU 3:", "(XEN) end"])
    history.import_run(with_consoles(folders, result(PV32, Verdict.FAIL), {"virt1": said}, "aa"))
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run1" / "0.html")
    assert page.get_by_text("39 lines before").is_visible()
    assert page.get_by_text("RIP:    e008").first.is_visible()


def test_a_case_shows_first_the_builds_with_which_it_fails(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    builds = ("debian", "release", LINE)
    bad = result(PV32, Verdict.FAIL, build="release")
    history.import_run(folders.write(result(), result(build="debian"), bad, key="aa", builds=builds).path)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "cases" / f"{run_folder.slug(PV32)}.html")
    assert page.locator("h2").all_inner_texts() == ["release virtual", "debian virtual", f"{LINE} virtual"]
    assert page.locator("section p").first.inner_text() == "failed the only attempt that counts"


def test_the_first_page_says_why_cases_did_not_run(history: History, folders: Runs, tmp_path: Path, look: Open) -> None:
    history.import_run(folders.write(result(PV32), result(S3), key="aa").path)
    gone = "virt2: in quarantine: its BMC does not answer"
    history.import_run(folders.write(result(PV32), key="bb", planned=(PV32, S3), notes=(gone,)).path)
    page = first_page(history, tmp_path, look)
    assert page.locator("section.line p", has_text="The bench says").inner_text() == f"The bench says: {gone}"


def test_a_night_in_which_the_bench_failed_is_not_green(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    history.import_run(folders.write(result(PV32), result(S3), key="aa").path)
    reason = "virt1: BMC at 127.0.0.1:9001 does not answer within 20 s"
    miss = result(S3, Verdict.MISS, reason=reason)
    history.import_run(folders.write(result(PV32), miss, key="bb").path)
    page = first_page(history, tmp_path, look)
    assert (
        page.locator("h1").inner_text()
        == "Incomplete: 1 of 2 cases that passed or failed with the baseline did neither now"
    )
    decision = page.locator("section.line h2 .v").inner_text()
    assert decision == "gate: no verdict, too many cases say nothing"
    assert page.locator("h1").get_attribute("class") == "MISS"
    missed = look(tmp_path / "site" / "runs" / "run2" / "1.html").locator(".box")
    assert "This is no verdict on the hypervisor: what was seen does not suffice for one." in missed.inner_text()
    assert "MISS" in (page.locator("section.line").get_attribute("class") or "")
    assert page.get_by_role("heading", name=reason).is_visible()


def test_the_commit_and_the_last_good_result_are_linked(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    crash_night(history, folders, cases=3)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run2" / "1.html")
    page.get_by_role("link", name="pv32-debug 4.17.5 aaaaaaa (18 Nov)").click()
    assert page.url.endswith("runs/run1/good-boot.html#r1")
    assert page.locator("#r1").is_visible()


@pytest.mark.parametrize(("before", "now"), [("00 (XEN) boots", ""), ("", "00 (XEN) boots"), ("", "")])
def test_a_console_that_said_nothing_is_compared(
    history: History, folders: Runs, tmp_path: Path, before: str, now: str
) -> None:
    history.import_run(with_consoles(folders, result(), {"virt1": before}, "aa"))
    history.import_run(with_consoles(folders, result(PV32, Verdict.FAIL), {"virt1": now}, "bb"))
    site.write(history, tmp_path / "site")
    page = (tmp_path / "site" / "runs" / "run2" / "0.html").read_text(encoding="utf-8")
    assert ('class="other"' in page) is bool(before or now)


def test_the_last_good_console_stands_beside_with_what_differs_marked(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    said = "\n".join(f"{second:02d} (XEN) step {second}" for second in range(40))
    good = with_consoles(folders, result(), {"virt1": said}, "aa")
    panic = f"{said}\n41 (XEN) Panic on CPU 0:\n42 (XEN) Reboot in five seconds..."
    bad = with_consoles(folders, result(PV32, Verdict.FAIL), {"virt1": panic}, "bb")
    for folder in (good, bad):
        history.import_run(folder)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run2" / "0.html")
    assert page.locator(".log .crash").first.bounding_box()["y"] < 1200  # type: ignore[index]
    assert not page.locator("#c0-1").is_visible()
    marked = page.locator(".beside > div .other").all_inner_texts()
    assert [text.split(" ", 1)[1] for text in marked] == ["(XEN) Panic on CPU 0:", "(XEN) Reboot in five seconds..."]
    assert page.locator(".good .log span").count() == 40
    assert page.locator(".good .other").count() == 0
    look(Path(f"{tmp_path}/site/runs/run2/0.html"))
    page.goto(f"{page.url.partition('#')[0]}#c0-1")
    assert page.locator("#c0-1").is_visible()  # what was folded opens for its link


def test_a_known_issue_shows_until_the_failure_changes(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    crash_night(history, folders, cases=2)
    site.write(history, tmp_path / "site")
    known_issues.add(history, "test_case_0", "https://bugs.example/1", "p2m lock", "ann")
    page = first_page(history, tmp_path, look)
    said = page.locator("section.worse .issue").inner_text()
    assert said.startswith("Bug report https://bugs.example/1: p2m lock in test_case_0 alone; linked by ann, ")
    for name in ("index.html", "0.html"):
        shown = look(tmp_path / "site" / "runs" / "run2" / name)
        assert shown.get_by_role("link", name="https://bugs.example/1").count() == 1, name
    assert look(tmp_path / "site" / "runs" / "run2" / "1.html").locator(".issue").count() == 0  # another case
    changed = result("testcases/boot/test_b.py::test_case_0", Verdict.FAIL, reason="no console at all")
    history.import_run(folders.write(changed, key="cc").path)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "runs" / "run3" / "0.html")
    assert "The failure has changed." in page.locator(".issue").inner_text()
    assert "no console at all" in page.locator(".why").inner_text()


def test_what_got_worse_is_an_atom_feed_that_keeps_it(history: History, folders: Runs, tmp_path: Path) -> None:
    crash_night(history, folders, cases=4)
    for _ in range(2):
        site.write(history, tmp_path / "site")
    history.import_run(
        folders.write(*(result(f"testcases/boot/test_b.py::test_case_{n}") for n in range(4)), key="cc").path
    )
    site.write(history, tmp_path / "site")
    feed = ET.parse(tmp_path / "site" / "feed.xml").getroot()
    atom = {"": "http://www.w3.org/2005/Atom"}
    [entry] = feed.findall("entry", atom)
    assert entry.findtext("title", "", atom) == "pv32-debug: xen-assertion: y / p2m_set_entry"
    assert "4 cases with pv32-debug 4.17.5 bbbbbbb (18 Nov): test_case_0" in entry.findtext("content", "", atom)
    link = entry.find("link", atom)
    assert link is not None and (tmp_path / "site" / link.attrib["href"]).exists()


def test_the_filter_hides_rows_and_the_address_keeps_it(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    broken(history, folders)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "cases.html")
    assert page.locator("tbody tr:visible").count() == 3
    page.get_by_label("show only").fill("fail guest32")
    assert page.locator("tbody tr:visible").count() == 1
    assert page.locator("#count").inner_text() == "1 of 3"
    again = look(tmp_path / "site" / "cases.html")
    again.goto(page.url)
    assert again.locator("tbody tr:visible th").inner_text().startswith("test_pv32_runs[hvm]")
    boards = look(tmp_path / "site" / "boards.html")
    assert [row.split("\t")[0] for row in boards.locator("tbody tr").all_inner_texts()] == ["virt1", "virt2"]


def test_a_case_says_what_it_proves_its_figures_and_its_mutants(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    case = next(case for case in mutants.by_case() if "[" not in case)
    for key, value in (("aa", 1.0), ("bb", 2.0)):
        one = result(case, doc="What it proves.", figures={"wake_s": value})
        history.import_run(folders.write(one, replace(one, figures={"wake_s": value + 1}), key=key).path)
    site.write(history, tmp_path / "site")
    page = look(tmp_path / "site" / "cases" / f"{run_folder.slug(case)}.html")
    assert page.locator("p", has_text="What it proves.").count() == 1
    assert mutants.of(case)[0].why in page.locator("details", has_text="broken on purpose").inner_html()
    drawing = page.locator("svg", has=page.locator("title", has_text="wake_s"))
    tips = drawing.locator("g > title").all_text_contents()
    assert tips == ["aa: median 1.5, 1 to 2, 2 values", "bb: median 2.5, 2 to 3, 2 values"]


# how large the pages are


@pytest.mark.parametrize("width", [390, 1440])
def test_long_reasons_names_and_many_builds_neither_overflow_nor_stretch_the_pages(
    history: History, folders: Runs, tmp_path: Path, look: Open, width: int
) -> None:
    builds = tuple(f"build-{number}-of-a-matrix+with-options" for number in range(20))
    long = f"testcases/boot/test_b.py::test_{'very_' * 20}long[{'x' * 60}]"
    reason = "virt1: " + "0123456789abcdef" * 12 + " and words " * 10
    for key in ("aa", "bb", "cc"):
        results = [result(long, Verdict.FAIL, build=build, reason=reason) for build in builds]
        results += [result(PV32, build=build) for build in builds]
        history.import_run(folders.write(*results, key=key, builds=builds).path)
    where = tmp_path / "site"
    site.write(history, where)
    limits = {
        where / "index.html": 9500,
        where / "cases.html": 2500,
        where / "boards.html": 900,
        where / "runs" / "run3" / "index.html": 4000,
        where / "runs" / "run3" / "0.html": 2500,
        where / "cases" / f"{run_folder.slug(long)}.html": 40_000,
        next((where / "failures").iterdir()): 2500,
    }
    for path, limit in limits.items():
        page = look(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("document.documentElement.scrollHeight") <= limit, path
        narrow = page.evaluate(
            """() => [...document.querySelectorAll('td, th')].filter(e => e.innerText.length > 12)
            .map(e => [e.clientWidth, e.innerText.slice(0, 30)]).filter(([wide]) => wide < 60)"""
        )
        assert narrow == [], path


def test_what_passed_in_an_area_is_in_parts_that_load_at_once(
    history: History, folders: Runs, tmp_path: Path, look: Open
) -> None:
    evidence = tuple(Evidence("command", f"command {n}", "line of output\n" * 400, 1.0) for n in range(10))
    results = [result(f"testcases/relocation/test_m.py::test_cell[{n}]", evidence=evidence) for n in range(30)]
    history.import_run(folders.write(*results, key="aa").path)
    where = tmp_path / "site" / "runs" / "run1"
    site.write(history, tmp_path / "site")
    pages = sorted(where.glob("good-relocation*.html"))
    assert len(pages) > 2
    assert max(page.stat().st_size for page in pages) <= 300_000
    page = look(where / "index.html")
    page.locator("tr", has_text="test_cell[29]").locator("td a").click()
    assert page.locator("#r29 h2").inner_text() == "PASS test_cell[29]"
    page = look(where / "good-relocation.html")
    page.locator("#r7 a").click()
    assert page.locator("#r7 h2").inner_text() == "PASS test_cell[7]"


def test_a_page_prints_what_is_folded(history: History, folders: Runs, tmp_path: Path, look: Open) -> None:
    broken(history, folders)
    page = first_page(history, tmp_path, look)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
