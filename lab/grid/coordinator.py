"""labgrid's coordinator, spoken to for somebody: what the reaper does in a holder's name.

labgrid's own session is one a process and one identity a process. Here each identity has a connection of its own, as
the coordinator knows its clients by their connection.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import TypeVar

import grpc
from labgrid.remote.common import Place, Reservation, ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.remote.generated import labgrid_coordinator_pb2_grpc as stubs
from labgrid.util import labgrid_version

from lab.base.errors import BenchError
from lab.grid import services
from lab.grid.services import MADE_BY, XENLAB
from lab.inventory import BoardSpec

TIMEOUT = 15.0  # seconds for one call; an exporter may take 10 s over one resource
ACTING_TIMEOUT = 45.0  # seconds that somebody is spoken for: less than the silence that is taken for a hang

T = TypeVar("T")


_GONE = (ReservationState.expired, ReservationState.invalid)


class CoordinatorLost(BenchError):
    """No answer from the coordinator."""


class Refused(BenchError):
    """The coordinator will not do it; says why."""


class Coordinator:
    """A connection that belongs to nobody: to look, to release, to cancel."""

    def __init__(self, address: str) -> None:
        self.address = address
        # A pool of its own: connections of one process to one address are else one and the same.
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = stubs.CoordinatorStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def places(self) -> dict[str, Place]:
        """labgrid's places by name. :raises CoordinatorLost:"""
        answer = self._call(self._stub.GetPlaces, messages.GetPlacesRequest())
        return {place.name: Place.from_pb2(place) for place in answer.places}

    def release(self, place: str, holder: str) -> None:
        """Release a place, if it is this holder's. :raises CoordinatorLost, Refused:"""
        self._call(self._stub.ReleasePlace, messages.ReleasePlaceRequest(placename=place, fromuser=holder))

    def is_allocated(self, token: str) -> bool | None:
        """Keep a reservation alive, and say whether its place is there for its owner; None: it is gone."""
        try:
            answer = self._call(self._stub.PollReservation, messages.PollReservationRequest(token=token))
        except Refused:
            return None
        state = Reservation.from_pb2(answer.reservation).state
        if state in _GONE:
            return None
        return state in (ReservationState.allocated, ReservationState.acquired)

    def reservations(self) -> list[str]:
        """Tokens of the reservations that :meth:`Holder.reserve` made. :raises CoordinatorLost:"""
        answer = self._call(self._stub.GetReservations, messages.GetReservationsRequest())
        ours = [one for one in answer.reservations if one.filters["main"].filter.get(MADE_BY) == XENLAB]
        return [one.token for one in ours if Reservation.from_pb2(one).state not in _GONE]

    def cancel(self, token: str) -> None:
        """Cancel a reservation; one that is gone already is no error. :raises CoordinatorLost:"""
        try:
            self._call(self._stub.CancelReservation, messages.CancelReservationRequest(token=token))
        except Refused:
            pass

    @contextmanager
    def acting_as(self, holder: str) -> Iterator[Holder]:
        """Speak for a holder (``HOST/USER``). :raises CoordinatorLost:"""
        own = Coordinator(self.address)
        outgoing: queue.Queue[messages.ClientInMessage | None] = queue.Queue()
        startup = messages.ClientInMessage()
        startup.startup.version, startup.startup.name = labgrid_version(), holder
        subscribe = messages.ClientInMessage()
        subscribe.subscribe.all_resources = True
        sync = messages.ClientInMessage()
        sync.sync.id = 1
        for message in (startup, subscribe, sync):
            outgoing.put(message)
        stream = own._stub.ClientStream(iter(outgoing.get, None), timeout=ACTING_TIMEOUT)
        try:
            yield Holder(own, _offered(stream))
        finally:
            outgoing.put(None)
            stream.cancel()
            own.close()

    def _call(self, method: Callable[..., T], request: object) -> T:
        try:
            return method(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise CoordinatorLost(f"no labgrid coordinator at {self.address}: {error.details()}") from None
            raise Refused(error.details()) from None


class Holder:
    """A holder's own connection. ``offered``: the resource classes that each board's exporter offers."""

    def __init__(self, coordinator: Coordinator, offered: dict[str, set[str]]) -> None:
        self._coordinator, self.offered = coordinator, offered

    def lacks(self, board: BoardSpec) -> str:
        """What no exporter offers for this board, or nothing."""
        return lacking(board, self.offered.get(board.name, set()))

    def reserve(self, place: str) -> str:
        """Queue up for this very place; the reservation's token. :raises CoordinatorLost, Refused:"""
        request = messages.CreateReservationRequest(prio=0.0)
        request.filters["main"].filter["name"] = place
        request.filters["main"].filter[MADE_BY] = XENLAB
        stub = self._coordinator._stub
        return str(self._coordinator._call(stub.CreateReservation, request).reservation.token)

    def acquire(self, place: str) -> None:
        """Take a place that is free, or allocated to one of ours. :raises CoordinatorLost, Refused:"""
        stub = self._coordinator._stub
        self._coordinator._call(stub.AcquirePlace, messages.AcquirePlaceRequest(placename=place))


def lacking(board: BoardSpec, offered: AbstractSet[str]) -> str:
    """The resources of a board that are not among these, in words; nothing when all are."""
    return ", ".join(sorted(set(services.exported(board)) - {"SleepState"} - offered))


def _offered(stream: Iterable[messages.ClientOutMessage]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    try:
        for message in stream:
            for update in message.updates:
                if update.WhichOneof("kind") == "resource" and update.resource.avail:
                    found.setdefault(update.resource.path.group_name, set()).add(update.resource.cls)
            if message.HasField("sync"):
                return found
    except grpc.RpcError as error:
        raise CoordinatorLost(f"the coordinator's stream ended: {error.details()}") from None
    raise CoordinatorLost("the coordinator's stream ended")
