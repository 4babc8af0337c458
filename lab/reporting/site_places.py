"""Where the pages of the site are, and what all of them are made with."""

from __future__ import annotations

import base64
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import jinja2
import markupsafe

from lab.history import gate
from lab.history.records import Place, day
from lab.reporting import findings, html
from lab.reporting.words import area_of, short_name
from lab.results.failures import digits_of
from lab.results.record import Verdict
from lab.results.run_folder import file_name, replace_file, slug, visible_line
from lab.results.summary import is_flaky

INDEX = "index.html"
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0b57b0"/>'
    '<path d="M4 4l8 8M12 4l-8 8" stroke="#fff" stroke-width="2.4" stroke-linecap="round"/></svg>'
)
# The only script: rows that do not hold what was typed are hidden, and the address keeps it. Without it all rows show.
FILTER = """
const field = document.getElementById("filter"), rows = [...document.querySelectorAll("tbody tr")];
const texts = rows.map(row => row.textContent.toLowerCase());
function show() {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, at) => { row.hidden = !words.every(word => texts[at].includes(word)); shown += !row.hidden; });
  document.getElementById("count").textContent = shown + " of " + rows.length;
}
function read() {
  field.value = location.hash.startsWith("#q=") ? decodeURIComponent(location.hash.slice(3)) : "";
  show();
}
function keep() { history.replaceState(null, "", "#q=" + encodeURIComponent(field.value)); }
field.addEventListener("input", () => { show(); keep(); });
window.addEventListener("hashchange", read);
field.closest("p").hidden = false;
read();
"""


def case_page(case: str) -> str:
    """The page of a case, from the top."""
    return f"cases/{slug(visible_line(case))}.html"


def run_page(run: str) -> str:
    """The page of a run, from the top."""
    return f"runs/{file_name(run)}/{INDEX}"


def run_folder(run: str) -> str:
    """The folder of a run's pages, from the top, with its slash."""
    return f"runs/{file_name(run)}/"


def failure_page(failure: str) -> str:
    """The page of a fault, from the top."""
    return f"failures/{file_name(digits_of(failure))}.html"


def figure_page(figure: str) -> str:
    """The page of a figure over builds, from the top."""
    return f"figures/{file_name(visible_line(figure))}.html"


def good_page(case: str, part: int | None = None) -> str:
    """What passed or was skipped in an area, in the folder of its run; ``part``: one of several pages."""
    area = file_name(visible_line(area_of(case)))
    return f"good-{area}.html" if part is None else f"good-{area}-{part}.html"


def result_place(place: Place, verdict: Verdict, case: str) -> str:
    """A result, from the top: the same wherever the size of the page puts it."""
    if verdict in (Verdict.PASS, Verdict.SKIP):
        return f"{run_folder(place.run)}{good_page(case)}#r{place.ordinal}"
    return f"{run_folder(place.run)}{place.ordinal}.html"


@dataclass(frozen=True, slots=True)
class RunPages:
    """On which pages of a run its results are: ``of`` has for each an index into ``names``, or -1: one of its own."""

    names: tuple[str, ...] = ()
    of: tuple[int, ...] = ()

    def page(self, ordinal: int) -> str:
        """In the folder of the run; empty when there is no such result."""
        if not 0 <= ordinal < len(self.of):
            return ""
        index = self.of[ordinal]
        return f"{ordinal}.html" if index < 0 else f"{self.names[index]}#r{ordinal}"


@cache
def environment() -> jinja2.Environment:
    """The templates of the site."""
    made = html.environment()
    made.globals |= {
        "Verdict": Verdict,
        "summed": gate.summed,
        "is_flaky": is_flaky,
        "case_page": case_page,
        "run_page": run_page,
        "failure_page": failure_page,
        "figure_page": figure_page,
        "finding_places": findings.places(),
        "filter_script": markupsafe.Markup(FILTER),
        "filter_hash": base64.b64encode(sha256(FILTER.encode()).digest()).decode(),
        "icon": base64.b64encode(_ICON.encode()).decode(),
    }
    made.filters |= {"day": day, "name": short_name, "area": area_of, "digits": digits_of}
    return made


def render(where: Path, template: str, file: str, values: Mapping[str, object]) -> None:
    """Write one page."""
    text = environment().get_template(f"{template}.html.j2").render(values)
    if file == INDEX:  # may be looked at right now
        replace_file(where / file, text)
        return
    write_changed(where / file, text)


def write_changed(file: Path, text: str) -> None:
    """Write a file, unless it is there with this content."""
    content = text.encode("utf-8", "backslashreplace")
    try:
        if file.stat().st_size == len(content) and file.read_bytes() == content:
            return
    except OSError:
        pass  # it is not there
    file.write_bytes(content)


def keep_only(folder: Path, names: Container[str]) -> None:
    """Remove all files of a folder but these."""
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()
