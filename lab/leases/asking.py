"""A lease for whoever needs boards now: the one that the caller has, or the answer to a new request."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lab.base.errors import BenchError
from lab.base.wait import wait_until
from lab.leases.ledger import LEASE, Ledger
from lab.leases.records import Lease, caller


def callers_lease(ledger: Ledger, names: Sequence[str]) -> Lease | None:
    """The lease that the environment names, or one that the caller reserved; None: the caller has none on these boards.

    :raises BenchError: the environment names a lease that does not hold all of them.
    """
    if number := os.environ.get(LEASE):
        lease = ledger.lease(int(number)) if number.isdigit() else None
        if lease is None or lease.state != "held" or not set(names) <= set(lease.boards):
            has = f"is {lease.state} and has {', '.join(lease.boards) or 'no board'}" if lease else "is not a lease"
            raise BenchError(f"{LEASE}={number} {has}; {', '.join(names)} is needed")
        return lease
    mine = (lease for lease in ledger.leases("held") if lease.holder == caller())
    return next((one for one in mine if one.request.kind == "person" and set(names) <= set(one.boards)), None)


def wait_for(ledger: Ledger, number: int, timeout: float) -> Lease:
    """Wait until a request is granted. ``timeout`` is in seconds.

    :raises WaitTimeout: it still waits.
    :raises BenchError: it was refused; says why.
    """

    def answered() -> Lease | None:
        lease = ledger.lease(number)
        return None if lease.state == "waiting" else lease

    lease = wait_until(answered, timeout, f"lease {number}", interval=0.1)
    assert lease is not None
    if lease.state != "held":
        raise BenchError(f"no lease: {lease.why_ended}")
    return lease
