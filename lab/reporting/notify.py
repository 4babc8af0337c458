"""A message when a run ends, by whatever apprise speaks: mail, Matrix, Slack, a web hook."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

SETTING = "XENLAB_NOTIFY"
LINES = 20


def send(title: str, lines: Sequence[str]) -> str:
    """Tell all that the setting names (URLs of apprise, separated by spaces); what went wrong, without the URLs."""
    urls = os.environ.get(SETTING, "").split()
    if not urls:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own: it loads all that it knows
        return _send(urls, title, lines)


def _send(urls: Sequence[str], title: str, lines: Sequence[str]) -> str:
    import apprise  # takes half a second

    logging.getLogger("apprise").setLevel(sys.maxsize)  # its messages hold the URLs, and these secrets
    teller = apprise.Apprise()
    unknown = sum(not teller.add(url) for url in urls)
    more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    body = "\n".join([*lines[:LINES], *more]) or title
    sent = teller.notify(body=body, title=f"xenlab: {title}", body_format=apprise.NotifyFormat.TEXT) if teller else True
    if unknown:
        return f"{SETTING}: {unknown} of {len(urls)} URLs are of no kind that apprise knows"
    return "" if sent else f"{SETTING}: not all of {len(urls)} could be told"
