"""Which boards a request gets, and who is served before whom.

A request is served whole or not at all. What the first in the queue waits for is kept for it: those behind it choose
among the rest. So boards wait for at most one request, and requests that wait for several boards cannot block each
other, nor can a stream of small ones keep a large one waiting.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from lab.base.errors import UsageError
from lab.inventory import BoardSpec, Lab
from lab.leases.records import BoardState, Lease, Request

CASE_LIMIT = 600.0  # seconds for the body of a case without a timeout marker; so soon a run can give its boards back


def in_order(waiting: Sequence[Lease], is_day: bool) -> list[Lease]:
    """By day people and single runs before the nightly; by night as they came."""
    return sorted(waiting, key=lambda lease: (is_day and lease.request.kind == "nightly", lease.id))


def free_at(held: Sequence[Lease], now: float, is_day: bool, for_kind: str) -> dict[str, float]:
    """When each board that is held will be free, for such a request: its end, or soon if it is to be yielded."""
    found = {}
    for lease in held:
        soon = lease.state == "ending" or yields(lease, is_day, for_kind)
        until = now + CASE_LIMIT if soon else lease.until or now
        found.update(dict.fromkeys(lease.boards, until))
    return found


def yields(lease: Lease, is_day: bool, to_kind: str) -> bool:
    """Whether the lease gives way to such a request: the nightly to a person, by day."""
    return is_day and lease.request.kind == "nightly" and to_kind == "person"


def choose(
    request: Request, lab: Lab, states: Mapping[str, BoardState], free: Mapping[str, float], kept: AbstractSet[str]
) -> tuple[str, ...] | None:
    """The boards for a request, those that are soonest free; None when others wait for them.

    ``free``: when boards in use will be free; ``kept``: boards that are kept for those before it. Without names,
    boards in quarantine are not chosen, and pairs are not broken where it can be helped.
    """
    if request.names:
        return None if kept & set(request.names) else request.names
    able = [
        board.name
        for board in lab.boards.values()
        if board.name not in kept and request.needs <= board.capabilities and not states[board.name].quarantine
    ]
    if request.wants_pair:
        pairs = [names for names in _pairs(lab) if set(names) <= set(able)]
        return min(pairs, key=lambda names: (max(free.get(name, 0.0) for name in names), names), default=None)
    if len(able) < request.count:
        return None
    peers = {name: peer for pair in _pairs(lab) for name, peer in (pair, pair[::-1])}

    def cost(name: str) -> tuple[float, bool, str]:
        whole_pair = name in peers and request.count == 1 and not {name, peers[name]} & (kept | set(free))
        return free.get(name, 0.0), whole_pair, name

    return tuple(sorted(sorted(able, key=cost)[: request.count]))


def check(request: Request, lab: Lab, states: Mapping[str, BoardState]) -> None:
    """See that the request can be served some day.

    :raises UsageError: unknown boards, or no boards like these; says what there is.
    """
    lab.restricted(request.names)
    if choose(request, lab, states, {}, frozenset()) is not None:
        return
    words = ", ".join(sorted(request.needs)) or "nothing special"
    able = [board.name for board in lab.boards.values() if request.needs <= board.capabilities]
    ill = [f"{name} ({states[name].health})" for name in able if states[name].quarantine]
    joined = "joined boards" if request.wants_pair else "boards"
    there = f"; that can: {', '.join(able) or 'none'}" + (f"; of them not to be had: {', '.join(ill)}" if ill else "")
    raise UsageError(f"{request.count} {joined} with {words}: the lab does not have that many{there}")


def units(lab: Lab, names: AbstractSet[str]) -> list[tuple[BoardSpec, ...]]:
    """These boards as they are taken for a night: pairs whole, the others one by one."""
    pairs = [pair for pair in lab.pairs() if {board.name for board in pair} <= names]
    paired = {board.name for board in itertools.chain(*pairs)}
    return [*pairs, *((board,) for board in lab.boards.values() if board.name in names - paired)]


def _pairs(lab: Lab) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in lab.pairs()]
