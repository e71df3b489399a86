"""Devices in simulated time, and what drives a `BatchQueue` as `engine.runner` and `engine.lane` do.

A device executes so many batches at a time, those of all its models together. A lane is an instance of a model: it runs
one batch at a time on its device and keeps those that are copied behind it, as many as it has slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.flows import T
from aclserve_server.plan.agenda import Action, Agenda, Meter, Worker


class Device:
    """Executes up to `executions` batches at a time (0: any number), others wait in order."""

    def __init__(self, agenda: Agenda, executions: int, meter: Meter) -> None:
        self.meter = meter
        self._agenda = agenda
        self._executions = executions
        self._running = 0
        self._since = 0.0
        self._waiting: deque[tuple[float, Action, Action]] = deque()

    def execute(self, seconds: float, started: Action, ended: Action) -> None:
        """Executes for so long, as soon as it can."""
        if self._executions and self._running >= self._executions:
            self._waiting.append((seconds, started, ended))
        else:
            self._start(seconds, started, ended)

    def _start(self, seconds: float, started: Action, ended: Action) -> None:
        now = self._agenda.now
        if not self._running:
            self._since = now
        self._running += 1
        started()
        self._agenda.at(now + seconds, partial(self._end, ended))

    def _end(self, ended: Action) -> None:
        self._running -= 1
        if not self._running:
            self.meter.add(self._since, self._agenda.now)
        if self._waiting:
            self._start(*self._waiting.popleft())
        ended()

    def stop(self) -> None:
        """The time that is looked at is over: counts what still runs."""
        if self._running:
            self.meter.add(self._since, self._agenda.now)


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """An execution. Moments in seconds; `seconds` is how long it takes."""

    tickets: list[T]
    rows: int
    gear: int
    seconds: float
    closed: float
    started: float = 0.0


class Lane(Generic[T]):
    """An instance of a model."""

    def __init__(self, device: Device, slots: int) -> None:
        self.device = device
        self.free = slots
        self.load = 0
        self.waiting: deque[Batch[T]] = deque()
        self.running: Batch[T] | None = None


@dataclass(frozen=True)
class Hooks(Generic[T]):
    """What is told of tickets that `expired` while they waited, and of batches that are `done`, `closed`, `started`.

    `room` is called where those that wait outside the queue may come in.
    """

    expired: Callable[[T], None]
    done: Callable[[Batch[T]], None]
    room: Action = lambda: None
    closed: Callable[[Batch[T]], None] = lambda batch: None
    started: Callable[[Batch[T]], None] = lambda batch: None


@dataclass(frozen=True)
class Overheads:
    """What a batch costs beside its execution, in seconds: of the loop, and on its way to an idle device."""

    batch_s: float = 0.0
    handoff_s: float = 0.0


_NONE = Overheads()


class Driver(Generic[T]):
    """The executions of one model in one process."""

    def __init__(
        self,
        agenda: Agenda,
        loop: Worker,
        queue: BatchQueue[T],
        seconds: Callable[[int], float],
        lanes: Sequence[Lane[T]],
        hooks: Hooks[T],
        overheads: Overheads = _NONE,
    ) -> None:
        """`seconds` is the time of an execution in a gear."""
        self.queue = queue
        self.lanes = lanes
        self._agenda = agenda
        self._loop = loop
        self._seconds = seconds
        self._hooks = hooks
        self._overheads = overheads
        self._busy_until = 0.0
        self._armed = float("inf")

    @property
    def busy_s(self) -> float:
        """How long, by what was learned, the devices have to do with what they have; 0 while one has nothing."""
        if not all(lane.load for lane in self.lanes):
            return 0.0
        return max(self._busy_until - self._agenda.now, 0.0)

    def pump_soon(self) -> None:
        """Looks at the queue when all of this moment has happened."""
        self._agenda.afterwards(self.pump)

    def pump(self) -> None:
        """Starts what is due, and sees to it that it is called again in time."""
        now = self._agenda.now
        for ticket in self.queue.expire(now):
            self._hooks.expired(ticket)
        self._hooks.room()
        while (lane := self._freest()) is not None and self.queue.ready(now, idle=not lane.load):
            self._dispatch(lane)
            self._hooks.room()
        wakeup = self.queue.next_wakeup(idle=any(lane.free and not lane.load for lane in self.lanes))
        if wakeup is not None and wakeup < self._armed:
            self._armed = wakeup
            self._agenda.at(wakeup, self._wake)

    def _wake(self) -> None:
        self._armed = float("inf")
        self.pump_soon()

    def _freest(self) -> Lane[T] | None:
        free = [lane for lane in self.lanes if lane.free]
        return min(free, key=lambda lane: lane.load) if free else None

    def _dispatch(self, lane: Lane[T]) -> None:
        now = self._agenda.now
        tickets = self.queue.take()
        rows = sum(ticket.rows for ticket in tickets)
        gear = self.queue.costs.gear_for(rows)
        lane.free -= 1
        lane.load += 1
        cost = self.queue.costs.of(rows) or 0.0
        self._busy_until = max(self._busy_until, now) + cost / len(self.lanes)
        batch = Batch(tickets, rows, gear, self._seconds(gear), now)
        self._hooks.closed(batch)
        if lane.running is not None:
            lane.waiting.append(batch)
            return
        lane.running = batch
        if self._overheads.handoff_s:
            self._agenda.at(now + self._overheads.handoff_s, partial(self._execute, lane, batch))
        else:
            self._execute(lane, batch)

    def _execute(self, lane: Lane[T], batch: Batch[T]) -> None:
        lane.device.execute(batch.seconds, partial(self._started, batch), partial(self._ended, lane, batch))

    def _started(self, batch: Batch[T]) -> None:
        batch.started = self._agenda.now
        self._hooks.started(batch)

    def _ended(self, lane: Lane[T], batch: Batch[T]) -> None:
        """The next batch starts by itself; the loop hears of this one."""
        lane.running = lane.waiting.popleft() if lane.waiting else None
        if lane.running is not None:
            self._execute(lane, lane.running)
        self._loop.do(self._overheads.batch_s, partial(self._complete, lane, batch))

    def _complete(self, lane: Lane[T], batch: Batch[T]) -> None:
        lane.load -= 1
        if not any(other.load for other in self.lanes):
            self._busy_until = 0.0
        self.queue.costs.learn(batch.gear, batch.seconds)
        self.pump()
        lane.free += 1
        self._hooks.done(batch)
        self.pump_soon()
