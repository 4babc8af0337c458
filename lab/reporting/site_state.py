"""What is in the site: which run folders its pages were made of, and where each result is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from lab.reporting import findings, mutants
from lab.reporting.site_places import RunPages
from lab.reporting.site_run import Rendered


class _Run(pydantic.BaseModel):
    key: str
    names: tuple[str, ...]
    of: tuple[int, ...]
    failures: tuple[str, ...]
    links: tuple[str, ...]


class FeedEntry(pydantic.BaseModel):
    """One thing that got worse."""

    id: str
    title: str
    text: str
    href: str
    updated: float


class _File(pydantic.BaseModel):
    version: str
    runs: dict[str, _Run]
    issues: tuple[str, ...]
    feed: tuple[FeedEntry, ...]


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as it was rendered."""

    key: str
    pages: RunPages
    failures: tuple[str, ...]
    links: tuple[str, ...]  # other runs to which its pages lead


@dataclass(slots=True)
class SiteState:
    """Kept in the site's folder; a file that is cut short counts as none, and all is rendered anew."""

    NAME = ".site.json"

    where: Path
    version: str
    runs: dict[str, KnownRun] = field(default_factory=dict)
    issues: tuple[str, ...] = ()
    feed: tuple[FeedEntry, ...] = ()
    is_new: bool = False  # nothing of it was written by this version

    @classmethod
    def read(cls, where: Path, version: str) -> SiteState:
        """Nothing is known where other pages than of this version were written. What got worse is kept."""
        try:
            read = _File.model_validate_json((where / cls.NAME).read_bytes())
        except (OSError, ValueError):
            return cls(where, version, is_new=True)
        if read.version != version:
            return cls(where, version, feed=read.feed, is_new=True)
        known = {
            name: KnownRun(run.key, RunPages(run.names, run.of), run.failures, run.links)
            for name, run in read.runs.items()
        }
        return cls(where, version, known, read.issues, read.feed)

    def note(self, name: str, key: str, made: Rendered, links: Sequence[str]) -> None:
        """A run was rendered."""
        before = self.runs.get(name)
        more = before.links if before else ()
        self.runs[name] = KnownRun(key, made.pages, made.failures, tuple(dict.fromkeys([*links, *more])))

    def save(self) -> None:
        """In place: the file is the lock, too."""
        runs = {
            name: {
                "key": known.key,
                "names": known.pages.names,
                "of": known.pages.of,
                "failures": known.failures,
                "links": known.links,
            }
            for name, known in self.runs.items()
        }
        feed = [one.model_dump() for one in self.feed]
        text = json.dumps({"version": self.version, "runs": runs, "issues": self.issues, "feed": feed})
        (self.where / self.NAME).write_text(text, encoding="utf-8")


def version() -> str:
    """Of what the pages are made with; another one renders them all anew."""
    digest = hashlib.sha256()
    files = [file for file in Path(__file__).parent.glob("*.*") if file.suffix in (".py", ".j2", ".css")]
    for file in sorted([*files, *findings.FOLDER.glob("*.md"), *mutants.FOLDER.glob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
