"""What is made of a run when it ends: its place in the history, its reports, the site, and who is told.

Nothing of this may cost the run: what fails is said, and the rest is made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from lab.base.errors import LabError
from lab.history.gate import Comparison
from lab.history.store import History
from lab.reporting import ci, ctrf, html, junit, notify, site, terminal
from lab.results.run_folder import RunFolder, final, visible_line

log = logging.getLogger(__name__)

HISTORY_NOTE = "history: this run was not imported (xenlab history --import DIR does it later): "


def publish(folder: RunFolder, say: Callable[[str], None], *, is_remembered: bool = True) -> bool:
    """All of it, the summary on the terminal last; whether every report of the run could be written.

    :param is_remembered: false leaves history, site and the outside alone.
    """
    store, changes, last = None, list[Comparison](), dict[str, float]()
    written = True
    if is_remembered:
        try:
            store = History()
            store.import_run(folder.path)
            changes, last = ci.judged(store, folder), store.last_counted()
        except Exception as error:  # whatever it is, the run's verdict and reports come first
            if not isinstance(error, LabError):
                log.exception("import into the history")
            fault = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            header = folder.header()
            header = replace(header, notes=(*header.notes, f"{HISTORY_NOTE}{fault}"))
            written = _written("run.json", folder, lambda: folder.write_header(header), say)
    reports: dict[str, Callable[[], object]] = {
        junit.NAME: lambda: junit.write(folder),
        ctrf.NAME: lambda: ctrf.write(folder),
        html.NAME: lambda: html.write(folder),
        ci.SUMMARY: lambda: ci.write_summary(folder, changes),
        ci.ANNOTATIONS: lambda: ci.write_annotations(folder, changes),
        ci.METRICS: lambda: ci.write_metrics(folder, last),
    }
    for name, write in reports.items():
        written &= _written(name, folder, write, say)
    has_site = store and _written("the site", folder, lambda: site.write(store, site.default()), say)
    page = site.default() / site.INDEX if has_site else None
    terminal.summary(folder, changes=ci.worse(changes), site=page)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(ci.github_commands(changes)))
    if is_remembered:
        header = folder.header()
        title = visible_line(ci.headline(header, final(header, folder.results()), changes))
        if fault := notify.send(title, ci.worse(changes)):
            say(fault)
    return written


def _written(what: str, folder: RunFolder, write: Callable[[], object], say: Callable[[str], None]) -> bool:
    """Whether it could be written: a full disk costs the report, not the results that are there."""
    try:
        write()
    except Exception as error:
        if not isinstance(error, OSError | LabError):
            log.exception("writing %s", what)
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        say(f"{what} is not written: {said}: {folder.path}")
        return False
    return True
