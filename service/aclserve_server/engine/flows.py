"""Who is next among those of equal priority: fair by rows, and earliest deadline first among those at their share.

Every stream with waiting tickets is a flow with a virtual time, the rows it has been given since it became active, on
a scale that all flows of the level share. The flow furthest behind is next (start-time fair queueing), unless the
flow with the earliest deadline is at most one batch of rows ahead of it: then that one is. So deadlines reorder
within a batch's worth of rows, and no stream gains more than that by sending more, by asking for haste, or by leaving
and coming back: its virtual time is kept until the level is empty. Within a stream the order of arrival holds.

With authentication the shares are the principals', and each principal's streams share its own by the same rule: many
streams give nobody more. Without, each stream is a member of the level itself.

Who is next matters only where not all can be: tickets are sorted into flows when that is first asked, and a batch with
room for everyone takes them as they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from aclserve_server.engine.turns import SLACK, Entry, Member, Turns, sweep


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

    @property
    def payer(self) -> Hashable | None:
        """The principal whose share it takes, None for its stream's own; all tickets of a stream have the same."""


T = TypeVar("T", bound=Ticket)


class Flow(Member, Generic[T]):
    """The waiting tickets of one stream, of `rows` rows; `share` is its principal's, None without one."""

    __slots__ = ("rows", "share", "tickets")

    def __init__(self, key: Hashable, share: Share | None) -> None:
        self.key = key
        self.place = 0
        self.share = share
        self.rows = 0
        self.tickets: deque[T] = deque()

    def head(self) -> T | None:
        """The first ticket that still waits."""
        while self.tickets and not self.tickets[0].waiting:
            self.tickets.popleft()
        return self.tickets[0] if self.tickets else None


class Share(Member):
    """What one principal's flows are given together."""

    __slots__ = ("turns",)

    def __init__(self, key: Hashable, places: Iterator[int]) -> None:
        self.key = key
        self.place = 0
        self.turns = Turns(places)


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
        self._shares: dict[Hashable, Share] = {}
        self._places = count(1)
        self._turns = Turns(self._places)
        self._by_deadline: list[Entry] = []

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
        self._fresh.clear()
        self._flows.clear()
        self._shares.clear()
        self._by_deadline.clear()
        self._turns.clear()

    def _settle(self) -> None:
        """Sorts tickets into their flows, also the one that is being forgotten."""
        for ticket in self._fresh:
            flow = self._flows.get(ticket.stream) or self._open(ticket)
            first = flow.head() is None
            flow.tickets.append(ticket)
            flow.rows += ticket.rows
            if first and ticket.waiting:
                self._place(flow)
        self._fresh.clear()

    def shrunk(self, ticket: T, rows: int, *, served: bool) -> None:
        """So many rows of a waiting ticket have left without it; `served`: into a batch, as its stream's share."""
        was_fresh = ticket in self._fresh
        self._settle()
        self.rows -= rows
        if ticket.deadline is not None:
            self.hasty_rows -= rows
        flow = self._flows[ticket.stream]
        if not was_fresh:  # otherwise its flow has counted what is left only
            flow.rows -= rows
        if served:
            _give(flow, rows)
            self._place(flow)

    def first(self) -> T | None:
        """The ticket whose turn it is."""
        self._settle()
        flow = self._next()
        return None if flow is None else flow.head()

    def draw(self, room: Room, max_rows_per_stream: int, taken: dict[Hashable, int]) -> list[T]:
        """Takes waiting tickets in order of service; one that does not fit lets its stream pass for this draw.

        `taken` tells the rows of each stream in the batch so far. A stream that would get beyond `max_rows_per_stream`
        (0: no bound) passes too, but for its first ticket. A stream whose turn it is gives a few rows at once, so that
        what came in one message mostly leaves in one. `forget` follows for each ticket drawn.
        """
        self._settle()
        drawn: list[T] = []
        passed: list[Flow[T]] = []
        while not room.full and (flow := self._next()) is not None:
            stream = flow.key
            turn = flow.given + self._burst
            self._advance(flow)
            while (ticket := flow.head()) is not None:
                rows = taken.get(stream, 0) + ticket.rows
                capped = max_rows_per_stream and stream in taken and rows > max_rows_per_stream
                if capped or not room.take(ticket.rows):
                    flow.place = 0
                    passed.append(flow)
                    if flow.share is not None:
                        self._turns.place(flow.share)
                    break
                taken[stream] = rows
                drawn.append(flow.tickets.popleft())
                _give(flow, ticket.rows)
                if flow.given >= turn or ticket.deadline is not None:
                    self._place_or_finish(flow)
                    break
            else:
                self._finish(flow)
        for flow in passed:
            self._place_or_finish(flow)
        return drawn

    def rows_before(self, ticket: T) -> int:
        """About how many waiting rows would go before a ticket, if it were added: no more than really will.

        Its stream's own rows, as many of each other stream of its principal, and as many of each other share; where its
        deadline can carry it, only hasty ones.
        """
        self._settle()
        flow = self._flows.get(ticket.stream)
        own = before = 0 if flow is None else flow.rows
        others = self._turns.size - (flow is not None)
        if ticket.payer is not None and (share := self._shares.get(ticket.payer)) is not None:
            before += (own + ticket.rows) * (share.turns.size - (flow is not None))
            others = self._turns.size - 1
        before = min(self.rows, before + (before + ticket.rows) * others)
        head = None if flow is None else flow.head()
        leads = head is None or head.deadline is not None
        if ticket.deadline is not None and leads and own + ticket.rows <= self._quantum:
            before = min(before, max(own, self.hasty_rows))
        return before

    def sweep(self) -> None:
        """Lets go of tickets that left from behind others."""
        self._settle()
        for flow in list(self._flows.values()):
            flow.tickets = deque(ticket for ticket in flow.tickets if ticket.waiting)
            if not flow.tickets:
                self._finish(flow)

    def _open(self, ticket: T) -> Flow[T]:
        """The flow of a stream that had none, not yet placed."""
        share = None
        if ticket.payer is not None:
            share = self._shares.get(ticket.payer)
            if share is None:
                share = self._shares[ticket.payer] = Share(ticket.payer, self._places)
                self._turns.join(share)
        flow: Flow[T] = Flow(ticket.stream, share)
        (self._turns if share is None else share.turns).join(flow)
        self._flows[ticket.stream] = flow
        return flow

    def _place_or_finish(self, flow: Flow[T]) -> None:
        """Puts a flow back in its place, or lets it go when nothing of it waits."""
        if flow.head() is None:
            self._finish(flow)
        else:
            self._place(flow)

    def _finish(self, flow: Flow[T]) -> None:
        del self._flows[flow.key]
        share = flow.share
        if share is None:
            self._turns.leave(flow)
            return
        share.turns.leave(flow)
        if share.turns.size:
            self._turns.place(share)
        else:
            del self._shares[share.key]
            self._turns.leave(share)

    def _place(self, flow: Flow[T]) -> None:
        head, share = flow.head(), flow.share
        assert head is not None
        if share is None:
            self._turns.place(flow)
        else:
            share.turns.place(flow)
            self._turns.place(share)
        if head.deadline is not None:
            heappush(self._by_deadline, (head.deadline, flow.place, flow))
            if len(self._by_deadline) > 2 * len(self._flows) + SLACK:
                sweep(self._by_deadline)

    def _next(self) -> Flow[T] | None:
        """The flow whose turn it is."""
        behind = self._behind()
        if behind is None:
            return None
        hasty = self._hasty()
        return hasty if hasty is not None and self._may_lead(hasty) else behind

    def _behind(self) -> Flow[T] | None:
        """The flow furthest behind, in the share furthest behind. One whose head was cancelled gets its new place."""
        while (member := self._turns.behind()) is not None:
            flow: Flow[T] | None = member.turns.behind() if isinstance(member, Share) else member
            if flow is None:
                member.place = 0  # all its flows let pass in this draw
            elif flow.tickets and flow.tickets[0].waiting:
                return flow
            else:
                self._place_or_finish(flow)
        return None

    def _hasty(self) -> Flow[T] | None:
        """The flow with the earliest deadline."""
        heap = self._by_deadline
        while heap:
            flow: Flow[T] = heap[0][2]
            if heap[0][1] != flow.place:
                heappop(heap)
            elif flow.tickets and flow.tickets[0].waiting:
                return flow
            else:
                self._place_or_finish(flow)
        return None

    def _may_lead(self, flow: Flow[T]) -> bool:
        """Whether a flow, and its share, are at most a batch ahead of those furthest behind."""
        share, latest = flow.share, self._turns.now + self._quantum
        if share is None:
            return flow.given <= latest
        share.turns.behind()
        return share.given <= latest and flow.given <= share.turns.now + self._quantum

    def _advance(self, flow: Flow[T]) -> None:
        """It is a flow's turn."""
        self._turns.advance()
        if flow.share is not None:
            flow.share.turns.behind()
            flow.share.turns.advance()


def _give(flow: Flow[Any], rows: int) -> None:
    flow.given += rows
    if flow.share is not None:
        flow.share.given += rows
