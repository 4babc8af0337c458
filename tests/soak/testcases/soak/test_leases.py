"""Cases that need a board's lease and its BMC, and nothing that runs on it. A soak takes as many as it has time for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab.base.errors import MissingCapability
from lab.case.bench import Bench
from lab.case.seat import Seat
from lab.grid import services
from lab.leases.ledger import LEASE, Ledger
from lab.xen.host import Host

CASES = int(os.environ.get("SOAK_CASES", "1000"))  # of each kind


@pytest.fixture
def seats(bench: Bench) -> Iterator[list[Seat]]:
    """The boards of this worker, without a build; nobody else may have them at the case's begin and end."""
    held = bench.hold()
    assert bench.running
    bench.running.seats = {name: Seat(board := held.board(name), Host(board)) for name in bench.names}
    ledger, number = Ledger(services.directory(bench.lab)), int(os.environ[LEASE])
    assert set(bench.names) <= set(ledger.lease(number).boards)
    yield list(bench.running.seats.values())
    assert set(bench.names) <= set(ledger.lease(number).boards)


@pytest.fixture
def destination(seats: list[Seat]) -> Seat:
    """Asked for by a case of a pair."""
    if len(seats) != 2:
        raise MissingCapability(seats[0].board.name, "migration-pair")
    return seats[1]


@pytest.mark.parametrize("number", range(CASES))
def test_one(number: int, seats: list[Seat]) -> None:
    if number % 2:
        seats[0].board.power.power_on()
    else:
        seats[0].board.power.power_off()


@pytest.mark.parametrize("number", range(CASES))
def test_pair(number: int, seats: list[Seat], destination: Seat) -> None:
    seats[0].board.power.power_on()
    destination.board.power.power_off()
