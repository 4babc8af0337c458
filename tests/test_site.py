"""The pages, in the browser that readers use: found, believed, and harmless whatever a console said."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from run_folders import LINE, PV32, S3, Runs, result

from lab.base.errors import UsageError
from lab.cli.main import main
from lab.history.store import History
from lab.reporting import site
from lab.results import run_folder
from lab.results.record import Evidence, TestResult, Verdict

LIVE = "testcases/relocation/test_live.py::test_brings_it_over"
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
    contexts = []

    def opened(path: Path, *, width: int = 1200, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
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
    first = page.locator("section").first
    assert "blocked" in first.locator("h2").inner_text()
    worse = first.locator("details").first
    assert worse.locator("summary").inner_text().startswith("Got worse: 1")
    said = worse.locator("li").inner_text()
    assert "test_pv32_runs[hvm]" in said and "Assertion 'x' failed" in said and "passed 1 of 1 with" in said
    uncounted = first.locator("details", has_text="Not counted").locator("li", has_text="test_s3_rtc_wake")
    assert "MISS on virt1" in uncounted.inner_text() or "MISS: virt1" in uncounted.inner_text()
    worse.get_by_role("link", name="proof").click()
    assert page.title() == "FAIL: test_pv32_runs[hvm]"
    crash = page.locator(".log .crash")
    assert crash.count() == 1
    assert crash.inner_text().endswith("08:33:02.000 (XEN) Panic on CPU 0:")
    page.get_by_role("link", name="the case over time").click()
    strip = [mark.inner_text() for mark in page.locator(".strip .v").all()]
    assert strip == ["P", "P", "F"]
    assert "0123456789 xen-assertion: x / do_foo" in page.locator("section").inner_text()


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
    assert page.locator("thead th").all_inner_texts() == ["case", "virt1", "virt1 + virt2", "virt2"]
    row = page.locator("tr", has_text="test_s3_rtc_wake").first
    assert row.locator("td").nth(2).inner_text().startswith("PASS")
    assert row.get_by_role("link", name="MISS").get_attribute("href") == "1.html"
    assert "test_s3_rtc_wake_2" in page.locator("ul").last.inner_text()
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
    where = tmp_path / "site"
    site.write(history, where)
    links = 0
    for page in where.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'href="([^"]*)"', text):
            parts = urlsplit(target)
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
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
        assert page.evaluate("document.querySelectorAll('script, iframe, [onerror], :not(svg) > style').length") == 0
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
        f"cases/{run_folder.slug(PV32)}.html",
        "runs/run2/index.html",
        "runs/run2/good-guest32.html",
    }


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
    assert len(pages[0]) == 1 + 2 + 3 * many - 3
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
