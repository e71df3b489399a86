"""Who is next among streams of equal priority: fair by rows, and earliest deadline first among those at their share.

Every stream with waiting tickets is a flow with a virtual time, the rows it has been given since it became active, on
a scale that all flows of the level share. The flow furthest behind is next (start-time fair queueing), unless the
flow with the earliest deadline is at most one batch of rows ahead of it: then that one is. So deadlines reorder
within a batch's worth of rows, and no stream gains more than that by sending more, or by asking for haste. Within a
stream the order of arrival holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """What the queue needs to know of an item. The queue owns `waiting`."""

    rows: int
    received: float
    deadline: float | None
    stream: Hashable
    priority: int
    waiting: bool


T = TypeVar("T", bound=Ticket)


class Flow(Generic[T]):
    """The waiting tickets of one stream. `version` counts changes of its place, to tell stale heap entries."""

    __slots__ = ("given", "tickets", "version")

    def __init__(self, given: float) -> None:
        self.given = given
        self.tickets: deque[T] = deque()
        self.version = 0

    def head(self) -> T | None:
        """The first ticket that still waits."""
        while self.tickets and not self.tickets[0].waiting:
            self.tickets.popleft()
        return self.tickets[0] if self.tickets else None


Entry = tuple[float, int, Hashable, int]

_TURNS = 4
"""A stream gives at most this part of a batch before the next one's turn."""


class Room:
    """What is left of a batch."""

    __slots__ = ("items", "rows")

    def __init__(self, rows: int, items: int) -> None:
        self.rows = rows
        self.items = items

    @property
    def full(self) -> bool:
        """Whether nothing more fits."""
        return not self.rows or not self.items

    def take(self, rows: int) -> bool:
        """Takes a ticket's rows from it; False where they do not fit."""
        if rows > self.rows or not self.items:
            return False
        self.rows -= rows
        self.items -= 1
        return True


class Level(Generic[T]):
    """The flows of one priority."""

    def __init__(self, quantum_rows: int) -> None:
        """`quantum_rows`: how far ahead of its share a deadline may carry a flow."""
        self._quantum = quantum_rows
        self._burst = max(quantum_rows // _TURNS, 1)
        self._flows: dict[Hashable, Flow[T]] = {}
        self._by_share: list[Entry] = []
        self._by_deadline: list[Entry] = []
        self._virtual = 0.0
        self._sequence = 0
        self.passed_over = 0

    def add(self, ticket: T) -> None:
        """Appends a ticket to its stream's flow."""
        flow = self._flows.get(ticket.stream)
        if flow is None:
            flow = self._flows[ticket.stream] = Flow(self._virtual)
        if flow.head() is None:
            flow.tickets.append(ticket)
            self._place(ticket.stream, flow)
        else:
            flow.tickets.append(ticket)

    def waits(self) -> bool:
        """Whether any ticket waits."""
        return self._furthest_behind() is not None

    def draw(self, room: Room, max_rows_per_stream: int) -> list[T]:
        """Takes waiting tickets in order of service; one that does not fit lets its stream pass for this draw.

        A stream that has taken `max_rows_per_stream` rows (0: no bound) passes too. A stream whose turn it is gives a few
        rows at once, so that what came in one message mostly leaves in one.
        """
        drawn: list[T] = []
        passed: list[Hashable] = []
        taken: dict[Hashable, int] = {}
        while not room.full and (stream := self._next()) is not None:
            flow = self._flows[stream]
            self._virtual = max(self._virtual, flow.given)
            turn = flow.given + self._burst
            while (ticket := flow.head()) is not None:
                rows = taken.get(stream, 0) + ticket.rows
                if (max_rows_per_stream and stream in taken and rows > max_rows_per_stream) or not room.take(
                    ticket.rows
                ):
                    flow.version += 1
                    passed.append(stream)
                    break
                taken[stream] = rows
                drawn.append(flow.tickets.popleft())
                flow.given += ticket.rows
                if flow.given >= turn or ticket.deadline is not None:
                    self._replace(stream, flow)
                    break
            else:
                del self._flows[stream]
        for stream in passed:
            self._replace(stream, self._flows[stream])
        return drawn

    def _replace(self, stream: Hashable, flow: Flow[T]) -> None:
        """Puts a flow back in its place, or forgets it when nothing of it waits."""
        if flow.head() is None:
            del self._flows[stream]
        else:
            self._place(stream, flow)

    def _place(self, stream: Hashable, flow: Flow[T]) -> None:
        head = flow.head()
        assert head is not None
        flow.version += 1
        self._sequence += 1
        heappush(self._by_share, (flow.given, self._sequence, stream, flow.version))
        if head.deadline is not None:
            heappush(self._by_deadline, (head.deadline, self._sequence, stream, flow.version))

    def _next(self) -> Hashable | None:
        behind = self._furthest_behind()
        if behind is None:
            return None
        hasty = self._top(self._by_deadline)
        if hasty is not None and self._flows[hasty].given <= self._flows[behind].given + self._quantum:
            return hasty
        return behind

    def _furthest_behind(self) -> Hashable | None:
        return self._top(self._by_share)

    def _top(self, heap: list[Entry]) -> Hashable | None:
        """The first flow of a heap whose entry still holds. A flow whose head was cancelled is put in its new place."""
        while heap:
            _, _, stream, version = heap[0]
            flow = self._flows.get(stream)
            if flow is None or flow.version != version:
                heappop(heap)
                continue
            if flow.tickets and flow.tickets[0].waiting:
                return stream
            heappop(heap)
            self._replace(stream, flow)
        return None
