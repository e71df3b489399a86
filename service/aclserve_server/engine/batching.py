"""When a batch closes, and what is in it. Pure: no loop, no clock, no threads, no device; time is an argument.

A `BatchQueue` holds the tickets of one model in order of arrival. A ticket is one item: it brings rows, and perhaps a
deadline. A batch is a run of waiting tickets from the front whose rows together fit the model.

A batch closes
    - when it is full: the rows that wait fill the model, or the next ticket would not fit beside those before it;
    - when the device is idle and its oldest ticket has waited `max_delay`;
    - when the device is idle and a deadline in it would pass before that.
While the device is busy only a full batch closes, so that it can be copied a slot ahead; all else waits uncopied, where
it can still be cancelled, expire, or gain company.

Invariants (tests/engine/test_batching.py holds them against random histories):
    - every ticket added leaves exactly once: taken, cancelled or expired;
    - tickets are taken in the order they came;
    - a batch holds 1 to `max_rows` rows, and at most `max_items` tickets;
    - `rows` is the sum of the rows that wait, and never exceeds `max_queue_rows`;
    - while the device is idle, nothing waits longer than `max_delay` after its arrival.

Times are seconds of one monotonic clock. Worst-case delay added by batching itself: `max_delay`.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

from aclserve.errors import ResourceExhausted


class Ticket(Protocol):
    """What the queue needs to know of an item. The queue owns `waiting`."""

    rows: int
    received: float
    deadline: float | None
    waiting: bool


T = TypeVar("T", bound=Ticket)


class BatchQueue(Generic[T]):
    """The waiting tickets of one model."""

    def __init__(self, *, max_rows: int, max_items: int, max_queue_rows: int, max_delay: float = 0.0) -> None:
        """`max_rows` and `max_items` bound a batch, `max_queue_rows` what waits, `max_delay` (s) the wait."""
        self.max_rows = max_rows
        self.max_items = max_items
        self.max_queue_rows = max_queue_rows
        self.max_delay = max_delay
        self.rows = 0
        self.items = 0
        self._tickets: deque[T] = deque()
        self._deadlines: list[tuple[float, int, T]] = []
        self._sequence = 0

    def add(self, ticket: T) -> None:
        """Appends a ticket; `ResourceExhausted` (QUEUE_FULL) at once where its rows do not fit the queue."""
        if self.rows + ticket.rows > self.max_queue_rows:
            raise ResourceExhausted(
                f"the model's queue is full: {self.rows} rows wait, {ticket.rows} more would exceed "
                f"{self.max_queue_rows}",
                reason="QUEUE_FULL",
                metadata={"queue_rows": self.rows, "max_queue_rows": self.max_queue_rows},
                retry_delay=0.05,
            )
        ticket.waiting = True
        self._tickets.append(ticket)
        self.rows += ticket.rows
        self.items += 1
        if ticket.deadline is not None:
            self._sequence += 1
            heappush(self._deadlines, (ticket.deadline, self._sequence, ticket))

    def cancel(self, ticket: T) -> bool:
        """Takes a ticket out of the queue; False where it no longer waits."""
        if not ticket.waiting:
            return False
        self._leave(ticket)
        return True

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
        if self._full():
            return True
        return idle and self._due() <= now

    def take(self) -> list[T]:
        """The next batch: as many tickets from the front as fit, at least one. Call it only where one waits."""
        batch: list[T] = []
        rows = 0
        tickets = self._tickets
        while tickets and len(batch) < self.max_items:
            ticket = tickets[0]
            if ticket.waiting:
                if batch and rows + ticket.rows > self.max_rows:
                    break
                rows += ticket.rows
                self._leave(ticket)
                batch.append(ticket)
            tickets.popleft()
        return batch

    def next_wakeup(self, *, idle: bool) -> float | None:
        """When `expire` or `ready` may have a new answer without any other event; None where time changes nothing."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        times = [self._deadlines[0][0]] if self._deadlines else []
        if idle and self.rows:
            times.append(self._due())
        return min(times, default=None)

    def _leave(self, ticket: T) -> None:
        ticket.waiting = False
        self.rows -= ticket.rows
        self.items -= 1

    def _front(self) -> T:
        while not self._tickets[0].waiting:
            self._tickets.popleft()
        return self._tickets[0]

    def _due(self) -> float:
        """When the batch at the front closes though it is not full."""
        due = self._front().received + self.max_delay
        if self._deadlines:
            due = min(due, self._deadlines[0][0] - self.max_delay)
        return due

    def _full(self) -> bool:
        return self.rows >= self.max_rows or self.items >= self.max_items
