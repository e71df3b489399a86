"""A device in simulated time, and tickets for it: the planner's driver of a BatchQueue, checked at every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from aclserve_server.engine.batching import BatchQueue
from aclserve_server.plan.agenda import Agenda, Meter, Worker
from aclserve_server.plan.lanes import Batch, Driver, Hooks, Lane
from aclserve_server.plan.lanes import Device as PlanDevice


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
    batches: list[list[Ticket]] = field(default_factory=list)
    on_done: Callable[[Ticket], None] = lambda ticket: None
    on_expired: Callable[[Ticket], None] = lambda ticket: None

    def __post_init__(self) -> None:
        self._agenda = Agenda()
        meter = Meter(0.0, float("inf"))
        lane: Lane[Ticket] = Lane(PlanDevice(self._agenda, 1, meter), self.slots)
        hooks = Hooks(self._expired, self._done, closed=self._closed, started=self._started)
        loop = Worker(self._agenda, meter)
        self._driver = Driver(self._agenda, loop, self.waiting, self.seconds, [lane], hooks)
        self.served: defaultdict[object, int] = defaultdict(int)

    @property
    def now(self) -> float:
        return self._agenda.now

    @property
    def busy_s(self) -> float:
        """How long what it has will take."""
        return self._driver.busy_s

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Does something at a time; in order where the times are equal."""

        def act() -> None:
            action()
            self._driver.pump_soon()

        self._agenda.at(when, act)

    def run(self, until: float = float("inf")) -> None:
        """Lets time pass, up to a time or until nothing is left to happen."""
        self._driver.pump_soon()
        self._agenda.run(until)

    def _expired(self, ticket: Ticket) -> None:
        assert ticket.deadline is not None
        assert ticket.deadline <= self.now
        ticket.left += 1
        self.on_expired(ticket)

    def _closed(self, batch: Batch[Ticket]) -> None:
        assert 1 <= batch.rows == sum(ticket.rows for ticket in batch.tickets) <= self.waiting.max_rows
        assert 1 <= len(batch.tickets) <= self.waiting.max_items
        for ticket in batch.tickets:
            assert ticket.deadline is None or self.now < ticket.deadline
            assert not ticket.waiting
            ticket.left += 1
            ticket.closed = self.now
            self.served[ticket.stream] += ticket.rows
        self.batches.append(batch.tickets)

    def _started(self, batch: Batch[Ticket]) -> None:
        for ticket in batch.tickets:
            ticket.started = self.now

    def _done(self, batch: Batch[Ticket]) -> None:
        for ticket in batch.tickets:
            self.on_done(ticket)
