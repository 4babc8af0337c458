"""A message when a run ends, by whatever apprise speaks: mail, Matrix, Slack, a web hook."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

SETTING = "XENLAB_NOTIFY"
LINES = 20
_MAIL = ("mailto://", "mailtos://")


def is_set() -> bool:
    """Whether the setting names anybody."""
    return bool(os.environ.get(SETTING, "").split())


def send(title: str, lines: Sequence[str], mail: str = "") -> str:
    """Tell all that the setting names (URLs of apprise, separated by spaces); what went wrong, without the URLs.

    :param lines: for those that take a short message.
    :param mail: the text for mail; default: the same.
    """
    urls = os.environ.get(SETTING, "").split()
    if not urls:
        return ""
    more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    short = "\n".join([*lines[:LINES], *more]) or title
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own: it loads all that it knows
        return _send(urls, title, short, mail or short)


def _send(urls: Sequence[str], title: str, short: str, mail: str) -> str:
    import apprise  # takes half a second

    logging.getLogger("apprise").setLevel(sys.maxsize)  # its messages hold the URLs, and these secrets
    unknown, is_sent = 0, True
    mails = [url for url in urls if url.lower().startswith(_MAIL)]
    for some, body in ((mails, mail), ([url for url in urls if url not in mails], short)):
        teller = apprise.Apprise()
        unknown += sum(not teller.add(url) for url in some)
        if teller:
            sent = teller.notify(body=body, title=f"xenlab: {title}", body_format=apprise.NotifyFormat.TEXT)
            is_sent = is_sent and bool(sent)
    if unknown:
        return f"{SETTING}: {unknown} of {len(urls)} URLs are of no kind that apprise knows"
    return "" if is_sent else f"{SETTING}: not all of {len(urls)} could be told"
