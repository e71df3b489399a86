"""When a batch closes, and what is in it. Pure: no loop, no clock, no threads, no device; time is an argument.

A `BatchQueue` holds the waiting tickets of one model. A ticket is one item: it brings rows, belongs to a stream, has a
priority, and perhaps a deadline. A batch is a set of waiting tickets whose rows together fit the model.

A batch closes
    - when it is full: the rows (or tickets) that wait would fill the model;
    - when the device is idle and its oldest ticket has waited `max_delay`;
    - when the device is idle and a deadline would be missed by waiting longer;
    - when the device is idle and, by what was learned, waiting for a fuller gear costs more than it saves.
While the device is busy only a full batch closes, so that it can be copied a slot ahead; all else waits uncopied, where
it can still be cancelled, dropped, expire, or gain company.

Who is in it: higher priorities first; but a priority whose turn was passed over for `STARVED` batches in a row goes
first in the next one, the lowest before others, so none starves. Within a priority principals, and their streams,
share by rows (`flows.py`), optionally with at most `max_rows_per_stream` of one stream in a batch.

Who may wait: as many as fit; but a principal whose waiting rows are more than `HELD` times the room that is left is
refused, so that nobody fills the queue for the others.

Invariants (tests/engine/test_batching.py holds them against random histories):
    - every ticket added leaves exactly once: taken, cancelled or expired;
    - the tickets of one stream and priority are taken in the order they came;
    - a batch holds 1 to `max_rows` rows, and at most `max_items` tickets;
    - `rows` is the sum of the rows that wait, and never exceeds `max_queue_rows`;
    - beyond the half of the queue, and but for its first ticket, no principal's rows exceed `HELD` times the room left
      when they were added;
    - while the device is idle, nothing waits longer than `max_delay` after its arrival;
    - a waiting priority gets its first ticket in at least once in `STARVED` + 1 batches (the lowest; others one later);
    - what is kept is bounded by what waits;
    - a stream that always has rows waiting is given its share of rows, whatever the others send, but for one batch.

Times are seconds of one monotonic clock. Worst-case delay added by batching itself: `max_delay`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush
from typing import Generic

from aclserve.errors import ResourceExhausted
from aclserve_server.engine.costs import ArrivalRate, GearCosts
from aclserve_server.engine.flows import Level, Room, T

PRIORITIES = 3
"""Levels: 0 low, 1 normal, 2 high."""

STARVED = 15
"""After so many batches that passed it over, a waiting priority goes first once."""

HELD = 4
"""How many times the room that is left one principal's waiting rows may be: alone it gets four fifths of the queue."""

_SLACK = 64
"""Tickets that left may lie about in the heaps up to this number, beside as many as wait."""


def rows_of_one(max_queue_rows: int) -> int:
    """How many rows may wait in a queue, whoever's they are, so that no principal is refused for what it holds."""
    return max_queue_rows * HELD // (HELD + 1)


class BatchQueue(Generic[T]):
    """The waiting tickets of one model."""

    def __init__(
        self,
        *,
        max_rows: int,
        max_items: int,
        max_queue_rows: int,
        max_queue_items: int = 0,
        max_delay: float = 0.0,
        max_rows_per_stream: int = 0,
        gears: Sequence[int] = (),
    ) -> None:
        """`max_rows` and `max_items` bound a batch, `max_queue_rows` and `max_queue_items` (0: no bound) what waits,
        `max_delay` (s) the wait.

        `gears` are the compiled row counts, ascending; none means one gear of `max_rows`.
        """
        self.max_rows = max_rows
        self.max_items = max_items
        self.max_queue_rows = max_queue_rows
        self.max_queue_items = max_queue_items
        self.max_delay = max_delay
        self.max_rows_per_stream = max_rows_per_stream
        self.patient_rows = max(max_queue_rows // 2, max_rows)
        """Up to how many waiting rows a ticket may join that would rather wait outside than be refused. The rest is for
        those that cannot wait, so that bulk work never fills the queue."""
        self.costs = GearCosts(gears or [max_rows])
        self.rows = 0
        self.items = 0
        self._levels: list[Level[T]] = [Level(max_rows) for _ in range(PRIORITIES)]
        self._rate = ArrivalRate()
        self._arrivals: list[tuple[float, int, T]] = []
        self._deadlines: list[tuple[float, int, T]] = []
        self._sequence = 0
        self._gone = 0
        self._alone = 0  # waiting tickets that make up a batch each
        self._held: dict[Hashable, int] = {}  # waiting rows of each principal

    def has_patient_room(self, rows: int) -> bool:
        """Whether a ticket of so many rows may join now that would rather wait outside than be refused."""
        if self.max_queue_items and self.items and self.items + 1 > max(self.max_queue_items // 2, 1):
            return False
        return not self.rows or self.rows + rows <= self.patient_rows

    def add(self, ticket: T) -> None:
        """Appends a ticket; `ResourceExhausted` (QUEUE_FULL) at once where it does not fit the queue."""
        if self.max_queue_items and self.items >= self.max_queue_items:
            raise ResourceExhausted(
                f"the model's queue is full: {self.items} items wait, and its configuration allows no more",
                reason="QUEUE_FULL",
                metadata={"queue_items": self.items, "max_queue_items": self.max_queue_items},
                retry_delay=self._time_to_serve(self.rows) or 0.05,
            )
        if self.rows + ticket.rows > self.max_queue_rows:
            raise ResourceExhausted(
                f"the model's queue is full: {self.rows} rows wait, {ticket.rows} more would exceed "
                f"{self.max_queue_rows}",
                reason="QUEUE_FULL",
                metadata={"queue_rows": self.rows, "max_queue_rows": self.max_queue_rows},
                retry_delay=self._time_to_serve(self.rows) or 0.05,
            )
        if ticket.payer is not None:
            self._hold(ticket.payer, ticket.rows)
        ticket.waiting = True
        self._levels[ticket.priority].add(ticket)
        self._sequence += 1
        heappush(self._arrivals, (ticket.received, self._sequence, ticket))
        self._rate.learn(ticket.rows, ticket.received)
        self.rows += ticket.rows
        self.items += 1
        self._alone += ticket.alone
        if ticket.deadline is not None:
            heappush(self._deadlines, (ticket.deadline, self._sequence, ticket))

    def cancel(self, ticket: T) -> bool:
        """Takes a ticket out of the queue; False where it no longer waits."""
        if not ticket.waiting:
            return False
        self._leave(ticket)
        return True

    def shrunk(self, ticket: T, rows: int, *, served: bool) -> None:
        """So many rows of a waiting ticket have left without it; `served`: into a batch."""
        self.rows -= rows
        self._let_go(ticket.payer, rows)
        self._levels[ticket.priority].shrunk(ticket, rows, served=served)

    def expire(self, now: float) -> list[T]:
        """Takes out the tickets whose deadline has come."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heappop(self._deadlines)[2]
            if ticket.waiting:
                self._leave(ticket)
                expired.append(ticket)
        return expired

    def ready(self, now: float, *, idle: bool) -> bool:
        """Whether a batch closes now; `idle` tells that the device has nothing to do."""
        if not self.rows:
            return False
        if self.rows >= self.max_rows or self.items >= self.max_items:
            return True
        if self._alone and self._first().alone:
            return True
        return idle and (self._due() <= now or not self._waiting_pays(now))

    def take(self) -> list[T]:
        """The next batch: at least one ticket. Call it only where one waits."""
        if self.rows <= min(self.max_rows, self.max_items) and not self._alone and not self.max_rows_per_stream:
            return self._take_all()
        room = Room(self.max_rows, self.max_items)
        if self._alone and (first := self._first()).alone:
            room = Room(first.rows, 1)
        batch: list[T] = []
        taken: dict[Hashable, int] = {}
        turns = [level.first() for level in self._levels]
        for level in self._order():
            batch += level.draw(room, self.max_rows_per_stream, taken)
            if room.full:
                break
        for ticket in batch:
            self._leave(ticket)
        for level, turn in zip(self._levels, turns, strict=True):
            level.passed_over = level.passed_over + 1 if turn is not None and turn.waiting else 0
        return batch

    def _take_all(self) -> list[T]:
        """The next batch, where there is room for all that wait (a ticket has a row at least)."""
        batch: list[T] = []
        for level in reversed(self._levels):
            if level.rows:
                batch += level.drain()
            level.passed_over = 0
        for ticket in batch:
            ticket.waiting = False
        self.rows = self.items = self._gone = 0
        self._arrivals.clear()
        self._deadlines.clear()
        self._held.clear()
        return batch

    def oldest(self) -> T | None:
        """The ticket that has waited longest."""
        return self._oldest() if self.rows else None

    def next_wakeup(self, *, idle: bool) -> float | None:
        """When `expire` or `ready` may have a new answer without any other event; None where time changes nothing."""
        deadline = self._next_deadline()
        times = [] if deadline is None else [deadline]
        if idle and self.rows:
            times.append(self._due())
        return min(times, default=None)

    def predicted_wait(self, ticket: T, busy_s: float, lanes: int = 1, enough: float = 0.0) -> float | None:
        """How long a ticket, if added now, will wait for its execution, by what was learned; None if nothing was.

        `busy_s` is how long the device is expected to be busy with what it has, `lanes` how many batches it executes
        at a time. The wait for company is not counted. Where all that waits may go before the ticket and it would still
        wait for `enough` seconds at the most, that longer time is the answer: who goes first need not be found out.
        """
        mean_rows = self.rows / self.items if self.items else ticket.rows
        capacity = min(self.max_rows, self.max_items * mean_rows)
        cost = self.costs.of(math.ceil(capacity))
        if cost is None:
            return None
        longest = busy_s + (self.rows // capacity + 1) * cost / lanes
        if longest <= enough:
            return longest
        before = sum(level.rows for level in self._levels[ticket.priority + 1 :])
        before += self._levels[ticket.priority].rows_before(ticket)
        batches, beside = divmod(before, capacity)
        if beside + ticket.rows > self.max_rows:
            batches += 1
        return busy_s + batches * cost / lanes

    def _time_to_serve(self, rows: int) -> float | None:
        """How long the executions of so many waiting rows take."""
        full, rest = divmod(rows, self.max_rows)
        largest = self.costs.of(self.max_rows)
        if largest is None:
            return None
        return full * largest + ((self.costs.of(rest) or 0.0) if rest else 0.0)

    def _hold(self, payer: Hashable, rows: int) -> None:
        """Counts rows of a principal; `ResourceExhausted` (QUEUE_FULL) where it would hold more than is fair."""
        held, after = self._held.get(payer, 0), self.rows + rows
        if held and after > self.patient_rows and held + rows > HELD * (self.max_queue_rows - after):
            raise ResourceExhausted(
                f"the caller's share of the model's queue is full: {held} rows of it wait, and the rest is for others",
                reason="QUEUE_FULL",
                metadata={"queue_rows": self.rows, "max_queue_rows": self.max_queue_rows, "caller_rows": held},
                retry_delay=self._time_to_serve(held) or 0.05,
            )
        self._held[payer] = held + rows

    def _let_go(self, payer: Hashable | None, rows: int) -> None:
        if payer is None:
            return
        self._held[payer] -= rows
        if not self._held[payer]:
            del self._held[payer]

    def _leave(self, ticket: T) -> None:
        ticket.waiting = False
        self.rows -= ticket.rows
        self.items -= 1
        self._alone -= ticket.alone
        self._let_go(ticket.payer, ticket.rows)
        self._levels[ticket.priority].forget(ticket)
        self._gone += 1
        if not self.items or self._gone > self.items + _SLACK:
            self._sweep()

    def _sweep(self) -> None:
        """Lets go of tickets that left, so that what is kept is bounded by what waits."""
        self._gone = 0
        for heap in (self._arrivals, self._deadlines):
            heap[:] = [entry for entry in heap if entry[2].waiting]
            heapify(heap)
        for level in self._levels:
            level.sweep()

    def _order(self) -> list[Level[T]]:
        """Priorities in order of service: the starved first, from low to high, then the others from high to low."""
        starved = [level for level in self._levels if level.passed_over >= STARVED]
        return starved + [level for level in reversed(self._levels) if level.passed_over < STARVED]

    def _first(self) -> T:
        """The ticket whose turn is next."""
        return next(ticket for level in self._order() if (ticket := level.first()) is not None)

    def _oldest(self) -> T:
        while not self._arrivals[0][2].waiting:
            heappop(self._arrivals)
        return self._arrivals[0][2]

    def _next_deadline(self) -> float | None:
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _due(self) -> float:
        """When the waiting batch closes on an idle device though it is not full."""
        due = self._oldest().received + self.max_delay
        deadline = self._next_deadline()
        if deadline is not None:
            # the deadline bounds the wait for the execution to begin; leave the timer some room
            due = min(due, deadline - max(self.max_delay, 0.001))
        return due

    def _waiting_pays(self, now: float) -> bool:
        """Whether a fuller gear is expected in time, and to serve rows faster, its wait included.

        True while that is not known.
        """
        costs = self.costs
        fuller = costs.next_gear(self.rows)
        wait = self._rate.time_for(fuller - self.rows)
        now_cost, later_cost = costs.of(self.rows), costs.of(fuller)
        if wait is None or now_cost is None or later_cost is None:
            return True
        return now + wait <= self._due() and (wait + later_cost) / fuller < now_cost / self.rows
