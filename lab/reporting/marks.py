"""Small pieces of a page that it has many times: made here, since a template takes several times as long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache

from markupsafe import Markup, escape

from lab.results.run_folder import visible

KNOWN_BUG = "Xen is known to do this wrong in this release; docs/findings describes it"


@lru_cache(maxsize=4096)
def escaped(text: str) -> str:
    """Text as it stands in a page, as templates put it there."""
    return str(escape(visible(text)))


@cache
def badge(verdict: str) -> Markup:
    """A verdict in its colour."""
    return Markup(f'<span class="v {escaped(verdict)}">{escaped(verdict)}</span>')


def known_bugs(names: Iterable[str], root: str, places: Mapping[str, str]) -> Markup:
    """The findings that excused a result; ``places`` has their pages from the top, to which ``root`` leads."""
    parts = []
    for name in names:
        text = escaped(name)
        shown = f'<a href="{escaped(root)}{escaped(places[name])}">{text}</a>' if name in places else text
        parts.append(f' <span class="chip" title="{KNOWN_BUG}">known bug {shown}</span>')
    return Markup("".join(parts))
