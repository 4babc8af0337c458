"""What got worse as an Atom feed. Source: RFC 4287."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from lab.history import dearer
from lab.history.news import News
from lab.history.regression import Change
from lab.reporting import ci, site_places
from lab.reporting.site_state import FeedEntry
from lab.reporting.words import short_name, some_of
from lab.results.run_folder import visible, visible_line

KEPT = 100
_ATOM = "http://www.w3.org/2005/Atom"


class Feed:
    """The entries, newest first."""

    def __init__(self, entries: Iterable[FeedEntry]) -> None:
        self.entries = tuple(entries)

    def add(self, told: News) -> None:
        """What got worse with each build, once for each fault, and once for all figures."""
        known = {one.id for one in self.entries}
        new = []
        for fault in told.worse:
            for build in fault.builds:
                name = f"tag:xenlab,2026:{build.line}@{build.key}/{fault.digits}"
                mine = [
                    case for case in fault.cases if case.build == build and case.finding.change is Change.NEW_FAILURE
                ]
                if name in known or not mine:
                    continue
                names = some_of([short_name(case.finding.series.case) for case in mine], 20)
                lines = [f"{len(mine)} cases with {build.title}: {names}", *ci.since_lines(fault)]
                new.append(
                    FeedEntry(
                        id=visible_line(name),
                        title=visible_line(f"{build.line}: {fault.label}"),
                        text=visible("\n".join(lines)),
                        href=site_places.failure_page(fault.name),
                        updated=build.last_seen,
                    )
                )
        for found in told.comparisons:
            build = found.new.build
            name = f"tag:xenlab,2026:{build.line}@{build.key}/figures"
            if found.dearer and name not in known:
                new.append(
                    FeedEntry(
                        id=visible_line(name),
                        title=visible_line(f"{build.line}: {dearer.counted(len(found.dearer))}"),
                        text=visible("\n".join(one.line(build.title) for one in found.dearer)),
                        href=site_places.figure_page(found.dearer[0].track.figure),
                        updated=build.last_seen,
                    )
                )
        self.entries = tuple(sorted([*new, *self.entries], key=lambda one: -one.updated)[:KEPT])

    def text(self) -> str:
        """The document. Its links are relative to it."""
        feed = ET.Element("feed", xmlns=_ATOM)
        ET.SubElement(feed, "id").text = "tag:xenlab,2026:worse"
        ET.SubElement(feed, "title").text = "xenlab: what got worse"
        ET.SubElement(feed, "updated").text = _when(max((one.updated for one in self.entries), default=0.0))
        ET.SubElement(ET.SubElement(feed, "author"), "name").text = "xenlab"
        ET.SubElement(feed, "link", rel="self", href="feed.xml")
        ET.SubElement(feed, "link", rel="alternate", href=site_places.INDEX)
        for one in self.entries:
            entry = ET.SubElement(feed, "entry")
            ET.SubElement(entry, "id").text = one.id
            ET.SubElement(entry, "title").text = one.title
            ET.SubElement(entry, "updated").text = _when(one.updated)
            ET.SubElement(entry, "link", rel="alternate", href=one.href)
            ET.SubElement(entry, "content", type="text").text = one.text
        ET.indent(feed, " ")
        return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(feed, encoding="unicode")}\n'


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
