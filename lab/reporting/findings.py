"""The findings of ``docs/findings`` as pages, and where each known finding is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import markupsafe
from markdown_it import MarkdownIt

from lab.base import paths

FOLDER = paths.CHECKOUT / "docs" / "findings"


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
