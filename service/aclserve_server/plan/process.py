"""One server process in simulated time: its event loop, and the admission to its models' queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from aclserve.errors import ResourceExhausted
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.frames import Frame
from aclserve_server.engine.items import DropReason
from aclserve_server.plan.agenda import Agenda, Worker
from aclserve_server.plan.lanes import Batch, Device, Driver, Hooks, Lane, Overheads


class Source(Protocol):
    """Who sent items, and gets their answers."""

    def answered(self, jobs: list[Job]) -> None:
        """Items were executed; the event loop has yet to send their answers, in one message."""

    def ended(self, job: Job, outcome: str) -> None:
        """An item is over without an execution, for a reason."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Frame):
    """An item: a frame of its stream and a ticket of its model. Its client had it ready at `due`. It has no
    `payer`: plans know streams, not principals.
    """

    rows: int
    due: float
    source: Source
    stream: object
    payer: None = None
    deadline: float | None = None
    drops: bool = False
    patient: bool = False
    priority: int = 1
    waiting: bool = False
    alone: bool = False
    parked: bool = False


@dataclass(frozen=True)
class Limits:
    """What bounds a model's queue, in rows, items and seconds; 0 is no bound. `batched`: items share executions."""

    max_queue_rows: int
    max_rows_per_stream: int = 0
    max_queue_items: int = 0
    max_delay_s: float = 0.0
    timeout_s: float = 0.0
    batched: bool = True


@dataclass
class Totals:
    """What a model executed in the time that is looked at; `gear_rows` counts padding too."""

    batches: int = 0
    rows: int = 0
    gear_rows: int = 0
    items: int = 0
    most_queue_rows: int = 0


@dataclass(frozen=True)
class Costs:
    """What items cost the event loop, in seconds: a message and each item in it, in either direction; a whole unary
    call; a batch; and the way of a batch to an idle device.
    """

    message_s: float = 0.0
    item_s: float = 0.0
    call_s: float = 0.0
    overheads: Overheads = field(default_factory=Overheads)


class Served:
    """A model in a process: its queue, those that wait outside it, its instances."""

    def __init__(
        self,
        process: Process,
        gears: list[int],
        seconds: Callable[[int], float],
        limits: Limits,
        lanes: list[Lane[Job]],
        totals: Totals,
        span: tuple[float, float],
    ) -> None:
        """`span` is the time that is looked at."""
        self.totals = totals
        self._agenda = process.agenda
        self._limits = limits
        self._span = span
        self._outside: dict[Job, None] = {}
        rows = gears[-1]
        self.queue: BatchQueue[Job] = BatchQueue(
            max_rows=rows,
            max_items=rows if limits.batched else 1,
            max_queue_rows=max(limits.max_queue_rows, rows),
            max_queue_items=limits.max_queue_items,
            max_delay=limits.max_delay_s,
            max_rows_per_stream=limits.max_rows_per_stream,
            gears=gears,
        )
        hooks = Hooks(self._expired, self._done, self._let_in, started=self._started)
        self._driver = Driver(process.agenda, process.loop, self.queue, seconds, lanes, hooks, process.costs.overheads)

    def submit(self, job: Job) -> str:
        """Admits an item, or tells why not."""
        self._bound(job)
        if job.deadline is not None and not job.drops:
            wait = self.queue.predicted_wait(job, self._driver.busy_s, len(self._driver.lanes))
            if wait is not None and wait > job.deadline - job.received:
                return "DEADLINE_UNREACHABLE"
        if job.patient and (self._outside or not self.queue.has_patient_room(job.rows)):
            self._outside[job] = None
            job.parked = True
            if job.deadline is not None:
                self._agenda.at(job.deadline, partial(self._over, job))
            return ""
        try:
            self.queue.add(job)
        except ResourceExhausted as error:
            return error.reason
        self.totals.most_queue_rows = max(self.totals.most_queue_rows, self.queue.rows)
        self._driver.pump_soon()
        return ""

    def cancel(self, job: Job) -> None:
        """Takes back an item that waits."""
        if not self._leave_outside(job):
            self.queue.cancel(job)
        if self._outside:
            self._driver.pump_soon()

    def _bound(self, job: Job) -> None:
        if self._limits.timeout_s:
            latest = job.received + self._limits.timeout_s
            if job.deadline is None or job.deadline > latest or not job.drops:
                job.deadline, job.drops = latest, False

    def _leave_outside(self, job: Job) -> bool:
        if not job.parked:
            return False
        job.parked = False
        del self._outside[job]
        return True

    def _over(self, job: Job) -> None:
        if self._leave_outside(job):
            self._expired(job)

    def _let_in(self) -> None:
        while self._outside:
            job = next(iter(self._outside))
            if not self.queue.has_patient_room(job.rows):
                return
            self._leave_outside(job)
            self.queue.add(job)
            self.totals.most_queue_rows = max(self.totals.most_queue_rows, self.queue.rows)

    def _expired(self, job: Job) -> None:
        job.source.ended(job, DropReason.TOO_OLD.name if job.drops else "ITEM_EXPIRED")

    def _started(self, batch: Batch[Job]) -> None:
        if self._span[0] <= self._agenda.now <= self._span[1]:
            self.totals.batches += 1
            self.totals.rows += batch.rows
            self.totals.gear_rows += batch.gear
            self.totals.items += len(batch.tickets)

    def _done(self, batch: Batch[Job]) -> None:
        by_source: dict[int, list[Job]] = {}
        for job in batch.tickets:
            by_source.setdefault(id(job.source), []).append(job)
        for jobs in by_source.values():
            jobs[0].source.answered(jobs)


class Process:
    """A server process: one event loop, its devices, its models, and the streams that are open to it."""

    def __init__(self, agenda: Agenda, loop: Worker, devices: list[Device], costs: Costs) -> None:
        self.agenda = agenda
        self.loop = loop
        self.devices = devices
        self.costs = costs
        self.models: dict[str, Served] = {}
        self.active = 0
        """Requests that are open: streams, and unary calls."""

    def lanes(self, instances: int, slots: int) -> list[Lane[Job]]:
        """The instances of a model, on each device so many."""
        return [Lane(device, slots) for device in self.devices for _ in range(instances)]
