"""What is in the site: which run folders its pages were made of, and where each result is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

import lab
from lab.reporting import findings, mutants
from lab.reporting.site_places import RunPages


class _Run(pydantic.BaseModel):
    state: str
    told: str
    around: str
    names: tuple[str, ...]
    of: tuple[int, ...]
    failures: tuple[str, ...]
    links: tuple[str, ...]
    consoles: dict[str, str]


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
    digests: dict[str, str]
    builds: tuple[str, ...]
    feed: tuple[FeedEntry, ...]


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as it was rendered."""

    state: str  # of its folder: all its pages are made of it
    told: str  # digest of what the history said: the pages of what went wrong, and the page of the run
    around: str  # its neighbours: the page of the run
    pages: RunPages
    failures: tuple[str, ...]
    links: tuple[str, ...]  # other runs to which its pages lead
    consoles: Mapping[str, str]  # folders of other runs whose consoles its pages show -> the folder's state


@dataclass(slots=True)
class SiteState:
    """Kept in the site's folder; a file that is cut short counts as none, and all is rendered anew."""

    NAME = ".site.json"

    where: Path
    version: str
    runs: dict[str, KnownRun] = field(default_factory=dict)
    issues: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)  # of the runs that the history knew
    builds: tuple[str, ...] = ()  # that it knew
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
            name: KnownRun(
                *(run.state, run.told, run.around, RunPages(run.names, run.of)),
                *(run.failures, run.links, run.consoles),
            )
            for name, run in read.runs.items()
        }
        return cls(where, version, known, read.issues, read.digests, read.builds, read.feed)

    def save(self) -> None:
        """In place: the file is the lock, too."""
        runs = {
            name: {
                "state": known.state,
                "told": known.told,
                "around": known.around,
                "names": known.pages.names,
                "of": known.pages.of,
                "failures": known.failures,
                "links": known.links,
                "consoles": known.consoles,
            }
            for name, known in self.runs.items()
        }
        feed = [one.model_dump() for one in self.feed]
        history = {"issues": self.issues, "digests": self.digests, "builds": self.builds}
        text = json.dumps({"version": self.version, "runs": runs, **history, "feed": feed})
        (self.where / self.NAME).write_text(text, encoding="utf-8")


def version() -> str:
    """Of what the pages are made with, all of xenlab's code among it; another one renders them all anew."""
    digest = hashlib.sha256()
    files = [file for file in Path(lab.__file__).parent.rglob("*.*") if file.suffix in (".py", ".j2", ".css")]
    for file in sorted([*files, *findings.FOLDER.glob("*.md"), *mutants.FOLDER.glob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
