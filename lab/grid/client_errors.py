"""Errors of this project, as labgrid's own client shows errors: one line, and exit status 1.

``labgrid-client`` prints a traceback for an exception that is not its own. The drivers run in other programs, too,
where verdicts are decided by the type of an error: there it stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labgrid.resource.remote import RemotePlaceManager
from labgrid.strategy import StrategyError

from lab.base.errors import LabError


@contextmanager
def shown_by_client() -> Iterator[None]:
    """Raise a :class:`LabError` or a strategy's error of the body as one of labgrid-client's, if that is what runs."""
    try:
        yield
    except (LabError, StrategyError) as error:
        session = RemotePlaceManager.get().session
        if getattr(session, "args", None) is None:  # what the client was called with; a session of ours has none
            raise
        from labgrid.remote.client import UserError

        raise UserError(str(error)) from error
