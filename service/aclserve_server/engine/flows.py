"""Who is next among streams of equal priority: fair by rows, and earliest deadline first among those at their share.

Every stream with waiting tickets is a flow with a virtual time, the rows it has been given since it became active, on
a scale that all flows of the level share. The flow furthest behind is next (start-time fair queueing), unless the
flow with the earliest deadline is at most one batch of rows ahead of it: then that one is. So deadlines reorder
within a batch's worth of rows, and no stream gains more than that by sending more, by asking for haste, or by leaving
and coming back: its virtual time is kept until the level is empty. Within a stream the order of arrival holds.

Who is next matters only where not all can be: tickets are sorted into flows when that is first asked, and a batch with
room for everyone takes them as they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """What the queue needs to know of an item. The queue owns `waiting`.

    One that is `alone` makes up a batch when its turn comes: it gains nothing from company, so it waits for none.
    """

    rows: int
    received: float
    deadline: float | None
    stream: Hashable
    priority: int
    waiting: bool
    alone: bool


T = TypeVar("T", bound=Ticket)


class Flow(Generic[T]):
    """The waiting tickets of one stream, of `rows` rows. `place` is the number of its heap entries that hold; others
    are stale. No number is used twice, because a stream may go and come again.
    """

    __slots__ = ("given", "place", "rows", "tickets")

    def __init__(self, given: float) -> None:
        self.given = given
        self.rows = 0
        self.tickets: deque[T] = deque()
        self.place = 0

    def head(self) -> T | None:
        """The first ticket that still waits."""
        while self.tickets and not self.tickets[0].waiting:
            self.tickets.popleft()
        return self.tickets[0] if self.tickets else None


Entry = tuple[float, int, Hashable]

_SLACK = 64
"""Stale entries that may lie about before they are swept out."""

_REMEMBERED = 1024
"""Streams without waiting tickets whose virtual time is kept, so that none gains by leaving and coming back."""


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
    """The flows of one priority. `rows` wait; `hasty_rows` of them have a deadline."""

    def __init__(self, quantum_rows: int) -> None:
        """`quantum_rows`: how far ahead of its share a deadline may carry a flow."""
        self.rows = 0
        self.hasty_rows = 0
        self.passed_over = 0
        self._quantum = quantum_rows
        self._burst = max(quantum_rows // _TURNS, 1)
        self._fresh: list[T] = []  # waiting tickets that are not in their flows yet
        self._flows: dict[Hashable, Flow[T]] = {}
        self._finished: dict[Hashable, float] = {}
        self._by_share: list[Entry] = []
        self._by_deadline: list[Entry] = []
        self._virtual = 0.0
        self._places = 0

    def add(self, ticket: T) -> None:
        """Appends a ticket to its stream's flow."""
        self._fresh.append(ticket)
        self.rows += ticket.rows
        if ticket.deadline is not None:
            self.hasty_rows += ticket.rows

    def forget(self, ticket: T) -> None:
        """A ticket of this level waits no more. When none does, all streams are equal again."""
        self._settle()
        self.rows -= ticket.rows
        if ticket.deadline is not None:
            self.hasty_rows -= ticket.rows
        flow = self._flows.get(ticket.stream)
        if flow is not None:
            flow.rows -= ticket.rows
        if not self.rows:
            self._empty()

    def drain(self) -> list[T]:
        """Takes all that wait, in no order but that of each stream."""
        drawn = [ticket for flow in self._flows.values() for ticket in flow.tickets if ticket.waiting]
        drawn += self._fresh
        self.rows = self.hasty_rows = 0
        self._empty()
        return drawn

    def _empty(self) -> None:
        if self._flows or self._finished:
            for container in (self._flows, self._finished, self._by_share, self._by_deadline):
                container.clear()
            self._virtual = 0.0
        self._fresh.clear()

    def _settle(self) -> None:
        """Sorts tickets into their flows, also the one that is being forgotten."""
        for ticket in self._fresh:
            flow = self._flows.get(ticket.stream)
            if flow is None:
                given = max(self._virtual, self._finished.pop(ticket.stream, 0.0))
                flow = self._flows[ticket.stream] = Flow(given)
            first = flow.head() is None
            flow.tickets.append(ticket)
            flow.rows += ticket.rows
            if first and ticket.waiting:
                self._place(ticket.stream, flow)
        self._fresh.clear()

    def shrunk(self, ticket: T, rows: int, *, served: bool) -> None:
        """So many rows of a waiting ticket have left without it; `served`: into a batch, as its stream's share."""
        self._settle()
        self.rows -= rows
        if ticket.deadline is not None:
            self.hasty_rows -= rows
        flow = self._flows[ticket.stream]
        flow.rows -= rows
        if served:
            flow.given += rows
            self._place(ticket.stream, flow)

    def first(self) -> T | None:
        """The ticket whose turn it is."""
        self._settle()
        choice = self._next()
        return None if choice is None else self._flows[choice[0]].head()

    def draw(self, room: Room, max_rows_per_stream: int, taken: dict[Hashable, int]) -> list[T]:
        """Takes waiting tickets in order of service; one that does not fit lets its stream pass for this draw.

        `taken` tells the rows of each stream in the batch so far. A stream that would get beyond `max_rows_per_stream`
        (0: no bound) passes too, but for its first ticket. A stream whose turn it is gives a few rows at once, so that
        what came in one message mostly leaves in one. `forget` follows for each ticket drawn.
        """
        self._settle()
        drawn: list[T] = []
        passed: list[Hashable] = []
        while not room.full and (choice := self._next()) is not None:
            stream, virtual = choice
            flow = self._flows[stream]
            turn = flow.given + self._burst
            while (ticket := flow.head()) is not None:
                rows = taken.get(stream, 0) + ticket.rows
                capped = max_rows_per_stream and stream in taken and rows > max_rows_per_stream
                if capped or not room.take(ticket.rows):
                    flow.place = 0
                    passed.append(stream)
                    break
                taken[stream] = rows
                drawn.append(flow.tickets.popleft())
                self._virtual = max(self._virtual, virtual)
                flow.given += ticket.rows
                if flow.given >= turn or ticket.deadline is not None:
                    self._place_or_finish(stream, flow)
                    break
            else:
                self._finish(stream, flow)
        for stream in passed:
            self._place_or_finish(stream, self._flows[stream])
        return drawn

    def rows_before(self, ticket: T) -> int:
        """About how many waiting rows would go before a ticket, if it were added: no more than really will.

        Its stream's own rows, and as many of each other stream; where its deadline can carry it, only hasty ones.
        """
        self._settle()
        flow = self._flows.get(ticket.stream)
        own = 0 if flow is None else flow.rows
        others = len(self._flows) - (flow is not None)
        before = min(self.rows, own + (own + ticket.rows) * others)
        head = None if flow is None else flow.head()
        leads = head is None or head.deadline is not None
        if ticket.deadline is not None and leads and own + ticket.rows <= self._quantum:
            before = min(before, max(own, self.hasty_rows))
        return before

    def sweep(self) -> None:
        """Lets go of tickets that left from behind others."""
        self._settle()
        for stream, flow in list(self._flows.items()):
            flow.tickets = deque(ticket for ticket in flow.tickets if ticket.waiting)
            if not flow.tickets:
                self._finish(stream, flow)

    def _place_or_finish(self, stream: Hashable, flow: Flow[T]) -> None:
        """Puts a flow back in its place, or lets it go when nothing of it waits."""
        if flow.head() is None:
            self._finish(stream, flow)
        else:
            self._place(stream, flow)

    def _finish(self, stream: Hashable, flow: Flow[T]) -> None:
        del self._flows[stream]
        self._finished[stream] = flow.given
        if len(self._finished) > _REMEMBERED:
            del self._finished[next(iter(self._finished))]

    def _place(self, stream: Hashable, flow: Flow[T]) -> None:
        head = flow.head()
        assert head is not None
        self._places += 1
        flow.place = self._places
        heappush(self._by_share, (flow.given, flow.place, stream))
        if head.deadline is not None:
            heappush(self._by_deadline, (head.deadline, flow.place, stream))
        most = 2 * len(self._flows) + _SLACK
        if len(self._by_share) > most or len(self._by_deadline) > most:
            for heap in (self._by_share, self._by_deadline):
                heap[:] = [entry for entry in heap if self._holds(entry)]
                heapify(heap)

    def _next(self) -> tuple[Hashable, float] | None:
        """The stream whose turn it is, and the virtual time: that of the flow furthest behind."""
        behind = self._top(self._by_share)
        if behind is None:
            return None
        virtual = self._flows[behind].given
        hasty = self._top(self._by_deadline)
        if hasty is not None and self._flows[hasty].given <= virtual + self._quantum:
            return hasty, virtual
        return behind, virtual

    def _holds(self, entry: Entry) -> bool:
        flow = self._flows.get(entry[2])
        return flow is not None and flow.place == entry[1]

    def _top(self, heap: list[Entry]) -> Hashable | None:
        """The first flow of a heap whose entry still holds. A flow whose head was cancelled is put in its new place."""
        while heap:
            stream = heap[0][2]
            if not self._holds(heap[0]):
                heappop(heap)
                continue
            flow = self._flows[stream]
            if flow.tickets and flow.tickets[0].waiting:
                return stream
            heappop(heap)
            self._place_or_finish(stream, flow)
        return None
