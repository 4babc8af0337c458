"""The findings of ``docs/findings`` as pages, where each is told, and on which releases of Xen it was seen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import markupsafe
from markdown_it import MarkdownIt

from lab.base import paths
from lab.builds import recipes

FOLDER = paths.SHIPPED / "docs" / "findings"
_RELEASES = re.compile(r"^- Releases: (.+)\.$", re.MULTILINE)
_TRIED = re.compile(r"(\d+\.\d+) (seen|not seen)")
NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class FindingsPage:
    """One file, rendered."""

    name: str  # of the page: relocation.html
    title: str
    body: markupsafe.Markup
    findings: tuple[str, ...]  # the anchors of its sections


@cache
def pages() -> tuple[FindingsPage, ...]:
    """A page for each file; none where the findings are not there."""
    return tuple(_page(file) for file in sorted(FOLDER.glob("*.md")))


@cache
def places() -> Mapping[str, str]:
    """Where each finding is told, from the top of the site: ``findings/relocation.html#incoming-left-paused``."""
    return {name: f"findings/{page.name}#{name}" for page in pages() for name in page.findings}


@dataclass(frozen=True, slots=True)
class Seen:
    """A finding of Xen, and what was seen of it: release such as ``4.17`` -> ``seen`` or ``not seen``."""

    name: str
    page: str  # docs/findings/relocation.md#incoming-left-paused
    releases: Mapping[str, str]


def seen() -> tuple[Seen, ...]:
    """The findings whose section has a line ``- Releases: 4.17 seen, 4.23 not seen.``; others are not of Xen.

    :raises ValueError: such a line says something else.
    """
    found = []
    for file in sorted(FOLDER.glob("*.md")):
        _, *sections = re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for section in sections:
            name = _name(section.partition("\n")[0])
            if line := _RELEASES.search(section):
                words = [_TRIED.fullmatch(part) for part in line[1].split(", ")]
                if not all(words):
                    raise ValueError(f"{file}: {name}: {line[0]!r}; want `4.17 seen, 4.20 not seen.`")
                place = f"{file.relative_to(paths.SHIPPED)}#{name}"
                found.append(Seen(name, place, {word[1]: word[2] for word in words if word}))
    return tuple(found)


def releases(found: Sequence[Seen]) -> list[str]:
    """The releases that there are recipes for or that findings name, the oldest first."""
    names = {release for one in found for release in one.releases}
    names |= {match[1] for name in recipes.names() if (match := re.fullmatch(r"stable-(\d+\.\d+)", name))}
    return sorted(names, key=lambda release: [int(part) for part in release.split(".")])


def table() -> list[str]:
    """Findings x releases as lines for a terminal, each with the place of its page."""
    found = seen()
    columns = releases(found)
    width = max(len(one.name) for one in found)
    lines = [f"{'finding':<{width}}  {'  '.join(f'{one:<9}' for one in columns)}  page"]
    for one in found:
        cells = "  ".join(f"{one.releases.get(release, NOT_TRIED):<9}" for release in columns)
        lines.append(f"{one.name:<{width}}  {cells}  {one.page}")
    return lines


def _page(file: Path) -> FindingsPage:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(file.read_text(encoding="utf-8"))
    title, found = file.stem, []
    for token, inner in zip(tokens, tokens[1:], strict=False):
        if token.type != "heading_open":
            continue
        if token.tag == "h1":
            title = inner.content
        name = _name(inner.content)
        token.attrSet("id", name)
        found.append(name)
    for token in tokens:
        for inner in token.children or []:
            if inner.type == "link_open" and ":" not in str(inner.attrGet("href")):
                inner.attrs.pop("href")  # files of the checkout are not in the site
    body = markdown.renderer.render(tokens, markdown.options, {})
    return FindingsPage(f"{file.stem}.html", title, markupsafe.Markup(body), tuple(found))


def _name(heading: str) -> str:
    """A finding's name, which stands in backticks; else its words."""
    if match := re.match(r"`([\w.-]+)`", heading):
        return match[1]
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
