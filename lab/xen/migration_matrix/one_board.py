"""Both ends of a migration on one board: two views of the same dom0, so that a case sees two hosts.

``xl migrate`` to ``localhost`` goes through the whole protocol, ssh and both toolstacks. What it lacks is a second
machine whose power, link, xenstored or memory could fail alone. The source sees the domains that were created on it,
and the destination sees all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.xen.dom0 import ARRIVED
from lab.xen.domain import Domain, DomainConfig
from lab.xen.host import Host


class _End(Host):
    @property
    def link_name(self) -> str:
        return "localhost"


class _Source(_End):
    def __init__(self, host: Host) -> None:
        super().__init__(host.board, host.notes, lacking=host.lacking)
        self.made: set[int] = set()

    def owns(self, domid: int) -> bool:
        return domid in self.made

    def log_names(self, name: str) -> tuple[str, ...]:
        return (name,)

    @contextlib.contextmanager
    def domain(self, config: DomainConfig, *, paused: bool = False) -> Iterator[Domain]:
        with super().domain(config, paused=paused) as domain:
            self.made.add(int(self.xl("domid", domain.name).stdout))
            yield domain


class _Destination(_End):
    def __init__(self, source: _Source) -> None:
        super().__init__(source.board, source.notes, lacking=source.lacking)
        self._source = source

    def owns(self, domid: int) -> bool:
        return not self._source.owns(domid)

    def log_names(self, name: str) -> tuple[str, ...]:
        return (name + ARRIVED,)


def on_one_board(host: Host) -> tuple[Host, Host]:
    """Source and destination of migrations from a board to itself. A guest that migrated is at the destination."""
    source = _Source(host)
    return source, _Destination(source)
