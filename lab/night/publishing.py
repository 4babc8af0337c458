"""What is made of a run when it ends: its place in the history, its reports, the site, and who is told.

Nothing of this may cost the run: a part that fails is said, and the others are made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from lab.base.errors import LabError
from lab.history.news import News
from lab.history.store import History
from lab.reporting import ci, ctrf, html, junit, mail, notify, site, site_places, terminal
from lab.results.run_folder import RunFolder, visible_line
from lab.results.summary import RunSummary

log = logging.getLogger(__name__)


def publish(folder: RunFolder, say: Callable[[str], None], *, is_remembered: bool = True) -> bool:
    """All of it, the summary on the terminal last; whether every report of the run could be written.

    :param is_remembered: false leaves history, site and the outside alone.
    """
    run = folder.summary()
    store, news, last = None, News(), dict[str, float]()
    written = True
    if is_remembered:
        try:
            store = History()
            store.import_run(run)
            news, last = ci.judged(store, run), store.last_counted()
        except Exception as error:  # whatever it is, the run's verdict and reports come first
            if not isinstance(error, LabError):
                log.exception("import into the history")
            fault = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            noted = replace(run.header, import_fault=fault)
            written = _written("run.json", run, lambda: folder.write_header(noted), say)
            run = folder.summary() if written else run
    reports: dict[str, Callable[[], object]] = {
        junit.NAME: lambda: junit.write(run),
        ctrf.NAME: lambda: ctrf.write(run),
        html.NAME: lambda: html.write(run, news.issues),
        ci.SUMMARY: lambda: ci.write_summary(run, news),
        ci.ANNOTATIONS: lambda: ci.write_annotations(run, news),
        ci.METRICS: lambda: ci.write_metrics(run, last),
    }
    for name, write in reports.items():
        written &= _written(name, run, write, say)
    has_site = store and _written("the site", run, lambda: site.write(store, site.default()), say)
    page = site.default() / site_places.INDEX if has_site else None
    if is_remembered:
        lines = ci.worse(news)
        text = mail.body(run, news, site.default() if has_site else None)
        if fault := notify.send(visible_line(ci.headline(run, news)), lines, text):
            say(fault)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(ci.github_commands(news)))
    terminal.summary(run, changes=ci.worse(news), site=page)
    return written


def _written(what: str, run: RunSummary, write: Callable[[], object], say: Callable[[str], None]) -> bool:
    """Whether it could be written: a full disk costs the report, not the results that are there."""
    try:
        write()
    except Exception as error:
        if not isinstance(error, OSError | LabError):
            log.exception("writing %s", what)
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        say(f"{what} is not written: {said}: {run.path}")
        return False
    return True
