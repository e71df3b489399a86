"""A device in simulated time, and tickets for it: drives a BatchQueue as a runner does, and checks it at every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from aclserve_server.engine.batching import BatchQueue


@dataclass(eq=False)
class Ticket:
    """An item. The test's own fields tell what became of it."""

    number: int
    rows: int
    received: float
    deadline: float | None = None
    stream: object = 0
    payer: object = None
    priority: int = 1
    waiting: bool = False
    alone: bool = False
    closed: float | None = None
    started: float | None = None
    left: int = 0


def queue(**options: object) -> BatchQueue[Ticket]:
    """A queue for batches of 8 rows; options as BatchQueue has them."""
    settings = {"max_rows": 8, "max_items": 8, "max_queue_rows": 64, "max_delay": 0.0} | options
    return BatchQueue(**settings)  # type: ignore[arg-type]


@dataclass
class Device:
    """One device with `slots` slots: it executes one batch at a time, in `seconds(rows)`; a full one waits copied."""

    waiting: BatchQueue[Ticket]
    seconds: Callable[[int], float]
    slots: int = 2
    now: float = 0.0
    batches: list[list[Ticket]] = field(default_factory=list)
    on_done: Callable[[Ticket], None] = lambda ticket: None
    on_expired: Callable[[Ticket], None] = lambda ticket: None

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._pending: list[list[Ticket]] = []
        self._busy_until = 0.0
        self.served: defaultdict[object, int] = defaultdict(int)

    @property
    def busy_s(self) -> float:
        """How long what it has will take."""
        return max(self._busy_until - self.now, 0.0)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Does something at a time; in order where the times are equal."""
        self._sequence += 1
        heappush(self._events, (when, self._sequence, action))

    def run(self, until: float = float("inf")) -> None:
        """Lets time pass, up to a time or until nothing is left to happen."""
        while True:
            wakeup = self.waiting.next_wakeup(idle=not self._pending)
            event = self._events[0][0] if self._events else None
            times = [when for when in (wakeup, event) if when is not None]
            if not times or min(times) > until:
                return
            self.now = max(self.now, min(times))
            while self._events and self._events[0][0] <= self.now:
                heappop(self._events)[2]()
            self._pump()

    def _pump(self) -> None:
        for ticket in self.waiting.expire(self.now):
            assert ticket.deadline is not None
            assert ticket.deadline <= self.now
            ticket.left += 1
            self.on_expired(ticket)
        while len(self._pending) < self.slots and self.waiting.ready(self.now, idle=not self._pending):
            self._start(self.waiting.take())

    def _start(self, batch: list[Ticket]) -> None:
        rows = sum(ticket.rows for ticket in batch)
        assert 1 <= rows <= self.waiting.max_rows
        assert 1 <= len(batch) <= self.waiting.max_items
        start = max(self.now, self._busy_until)
        for ticket in batch:
            assert ticket.deadline is None or self.now < ticket.deadline
            assert not ticket.waiting
            ticket.left += 1
            ticket.closed, ticket.started = self.now, start
            self.served[ticket.stream] += ticket.rows
        self.batches.append(batch)
        self._pending.append(batch)
        cost = self.seconds(self.waiting.costs.gear_for(rows))
        self._busy_until = start + cost
        self.at(self._busy_until, lambda: self._done(batch, cost))

    def _done(self, batch: list[Ticket], cost: float) -> None:
        self._pending.remove(batch)
        self.waiting.costs.learn(self.waiting.costs.gear_for(sum(ticket.rows for ticket in batch)), cost)
        for ticket in batch:
            self.on_done(ticket)
