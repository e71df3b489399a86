"""Runs the items of one loaded model: admission, queue, slot, lane, results.

All state is touched on the event loop only. Rows enter a slot when its batch closes: small ones on the loop, large
ones on the device thread. Results are handed to each item's sink as views of the slot, then the slot is free again.

    submit -> contract.admit -> BatchQueue -> (batch closes) -> Slot.copy_in -> Lane -> _complete -> Sink.deliver
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter, perf_counter_ns

from aclserve.errors import AclserveError, DeadlineExceeded, FailedPrecondition
from aclserve_server.device.formats import nchw_from_nc1hwc0
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batch import Batch, form, pack
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.contract import Contract, Sink, Ticket
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import Item, OutputTensor, Result, Timing
from aclserve_server.engine.lane import Lane
from aclserve_server.engine.outcomes import Observer, expired, report, service_error, timing
from aclserve_server.engine.parking import Parking
from aclserve_server.engine.slots import Slot

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """What a model has executed so far; `gear_rows` counts padding too."""

    executions: int = 0
    rows: int = 0
    gear_rows: int = 0

    def add(self, rows: int, gear_rows: int) -> None:
        """Counts one execution."""
        self.executions += 1
        self.rows += rows
        self.gear_rows += gear_rows

    def copy(self) -> Totals:
        """The totals as they are now."""
        return replace(self)


class Runner:
    """The items of one model. `submit`, `cancel` and `drain` belong to the event loop."""

    contract: Contract
    slots: list[Slot]

    def __init__(
        self, name: str, contract: Contract, queue: BatchQueue[Ticket], hazards: Hazards, observe: Observer
    ) -> None:
        self.name = name
        self.contract = contract
        self._queue = queue
        self._hazards = hazards
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pump_scheduled = False
        self._parking = Parking(self._loop, self._over)
        self._busy_until = 0.0
        self._in_flight = 0
        self.totals = Totals()
        self._draining = False
        self._drained = asyncio.Event()

    @property
    def queue_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    def submit(self, item: Item, sink: Sink) -> Ticket:
        """Admits an item; its one answer reaches `sink` later. Raises what is wrong with it instead of answering."""
        if self._draining:
            raise FailedPrecondition(f"model {self.name!r} is being unloaded", reason="MODEL_NOT_READY")
        ticket = self.contract.admit(item, sink, perf_counter())
        ticket.owner = self
        ticket.queue_rows = self._queue.rows
        try:
            self._refuse_if_hopeless(ticket)
            if not ticket.rows:
                self._answer_empty(ticket)
            elif not ticket.pins or self._hazards.enter(ticket, self._unpark):
                self._enqueue(ticket)
            else:
                self._parking.add(ticket)
        except AclserveError:
            self._release(ticket, failed=True)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """Takes back an item that waits: True, and the caller sends the answer. One that runs is discarded."""
        if not self._parking.remove(ticket) and not self._queue.cancel(ticket):
            ticket.cancelled = True
            return False
        self._release(ticket, failed=True)
        if self._parking.next_for_room() is not None:
            self._pump_soon()
        self._check_drained()
        return True

    async def drain(self) -> None:
        """Takes no more items and returns when all admitted ones are answered."""
        self._draining = True
        self.hurry()
        await self._drained.wait()

    def hurry(self) -> None:
        """Waits for no more company: the server stops, or the model is unloaded."""
        self._queue.max_delay = 0.0
        self._pump()

    def close(self) -> None:
        """Frees what the runner itself holds of the device (not the slots), on an ACL thread, after `drain`."""
        raise NotImplementedError

    def _enqueue(self, ticket: Ticket) -> None:
        """Queues a ticket; a patient one waits outside while there is no room, or others are there before it."""
        if ticket.patient and (self._parking.next_for_room() is not None or not self._has_room(ticket)):
            self._parking.add(ticket, for_room=True)
        else:
            self._queue.add(ticket)
            self._pump_soon()

    def _has_room(self, ticket: Ticket) -> bool:
        return not self._queue.rows or self._queue.rows + ticket.rows <= self._queue.patient_rows

    def _let_in(self) -> None:
        """Queues those that wait outside, as far as there is room now."""
        while (ticket := self._parking.next_for_room()) is not None and self._has_room(ticket):
            self._parking.remove(ticket)
            self._queue.add(ticket)

    def _pump_soon(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _unpark(self, ticket: Ticket, written: bool) -> None:
        """What the ticket's buffers had to wait for is done."""
        self._parking.remove(ticket)
        try:
            if not written:
                raise FailedPrecondition(
                    "the item before this one, which was to write an input buffer of it, has failed; send both again",
                    reason="INPUT_NOT_WRITTEN",
                )
            self._enqueue(ticket)
        except AclserveError as error:
            self._release(ticket, failed=True)
            ticket.sink.deliver([Result(ticket.item_id, ticket.capture_time, error=error)])
            self._check_drained()

    def _release(self, ticket: Ticket, *, failed: bool) -> None:
        """Lets go of all that a ticket holds, and of those that wait for it."""
        if ticket.pins:
            self._hazards.leave(ticket, failed=failed)
        ticket.release()

    def _expire(self, now: float) -> None:
        """Answers the items whose deadline has come, and lets others take their place."""
        for ticket in self._queue.expire(now):
            self._over(ticket)
        self._let_in()

    def _over(self, ticket: Ticket) -> None:
        """Answers an item whose deadline has come while it waited."""
        self._release(ticket, failed=True)
        ticket.sink.deliver([expired(ticket)])
        self._check_drained()

    def _pump(self) -> None:
        """Starts what is due, and sees to it that it is called again in time."""
        raise NotImplementedError

    def _call_again(self, now: float, *, idle: bool) -> None:
        """Arms the timer for the queue's next change by time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self._queue.next_wakeup(idle=idle)
        if wakeup is not None:
            self._timer = self._loop.call_later(max(wakeup - now, 0.0), self._pump)

    def _refuse_if_hopeless(self, ticket: Ticket) -> None:
        """Refuses an item at once whose deadline will pass before its turn comes, by what was learned."""
        if ticket.deadline is None or ticket.drops or not ticket.rows:
            return
        wait = self._queue.predicted_wait(ticket, self._busy_s(ticket.received), self._lane_count())
        allowed = ticket.deadline - ticket.received
        if wait is not None and wait > allowed:
            raise DeadlineExceeded(
                f"the item would wait about {wait * 1e3:.0f} ms for its execution, its deadline allows "
                f"{allowed * 1e3:.0f} ms; allow more, or send less",
                reason="DEADLINE_UNREACHABLE",
                metadata={"predicted_wait_ms": f"{wait * 1e3:.0f}", "allowed_ms": f"{allowed * 1e3:.0f}"},
                retry_delay=wait,
            )

    def _busy_s(self, now: float) -> float:
        """How long, by what was learned, the device has to do with what it has."""
        return max(self._busy_until - now, 0.0)

    def _lane_count(self) -> int:
        """How many batches are executed at a time."""
        return 1

    def _answer_empty(self, ticket: Ticket) -> None:
        """Answers an item without rows, which needs no device."""
        raise NotImplementedError

    def _check_drained(self) -> None:
        if self._draining and not self._in_flight and not self._queue.rows and not self._parking:
            self._drained.set()


class BatchRunner(Runner):
    """Preallocated slots: models that batch rows, static models, and models with gears."""

    def __init__(
        self,
        name: str,
        contract: Contract,
        queue: BatchQueue[Ticket],
        hazards: Hazards,
        device_thread: DeviceThread,
        inline_bytes: int,
        observe: Observer,
    ) -> None:
        """`inline_bytes`: batches with a longer tensor are packed on the device thread. `attach` comes next."""
        super().__init__(name, contract, queue, hazards, observe)
        self.slots = []
        self._free: list[Slot] = []
        self._device_thread = device_thread
        self._inline_bytes = inline_bytes
        self._lanes: dict[Slot, Lane] = {}
        self._loads: dict[Lane, int] = {}

    def attach(self, lane: Lane, slots: Sequence[Slot]) -> None:
        """Gives the runner an instance of the model: its lane, whose `finished` is `self.finished`, and its slots."""
        self.slots += slots
        self._free += slots
        self._lanes |= dict.fromkeys(slots, lane)
        self._loads[lane] = 0

    def finished(self, batch: Batch) -> None:
        """The lane's report of a batch, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._complete, batch)

    def close(self) -> None:
        for lane in self._loads:
            lane.close()

    def _answer_empty(self, ticket: Ticket) -> None:
        """Zero rows need no device."""
        outputs = []
        for wanted in ticket.outputs:
            info = self.contract.outputs[wanted.index]
            shape = self.contract.output_shape(ticket, wanted.index)
            assert shape is not None
            outputs.append(OutputTensor(info.name, info.dtype, shape, None if wanted.slice else b"", wanted.slice))
        result = Result(ticket.item_id, ticket.capture_time, outputs, None, Timing(queue_rows=self._queue.rows))
        self._release(ticket, failed=False)
        self._in_flight += 1
        self._loop.call_soon(self._deliver_empty, ticket, result)

    def _deliver_empty(self, ticket: Ticket, result: Result) -> None:
        self._in_flight -= 1
        if not ticket.cancelled:
            ticket.sink.deliver([result])
        self._check_drained()

    def _pump(self) -> None:
        self._pump_scheduled = False
        now = perf_counter()
        self._expire(now)
        while self._free:
            slot = min(self._free, key=self._load)
            if not self._queue.ready(now, idle=not self._load(slot)):
                break
            self._free.remove(slot)
            self._dispatch(slot, now)
            self._let_in()
        self._call_again(now, idle=any(not self._load(slot) for slot in self._free))
        self._check_drained()

    def _busy_s(self, now: float) -> float:
        return super()._busy_s(now) if all(self._loads.values()) else 0.0

    def _lane_count(self) -> int:
        return len(self._loads)

    def _load(self, slot: Slot) -> int:
        """Batches that the slot's instance has to do."""
        return self._loads[self._lanes[slot]]

    def _dispatch(self, slot: Slot, now: float) -> None:
        batch = form(self.contract, slot, self._queue.take())
        lane = self._lanes[slot]
        self._loads[lane] += 1
        self._in_flight += 1
        cost = self._queue.costs.of(batch.rows) or 0.0
        self._busy_until = max(self._busy_until, now) + cost / len(self._loads)
        largest = max(
            (part.size_bytes for ticket in batch.tickets for part in ticket.parts if part.data is not None), default=0
        )
        if largest <= self._inline_bytes:
            pack(batch)
            self._device_thread.submit(lambda: lane.enter(batch))
        else:
            self._device_thread.submit(lambda: _pack_and_enter(batch, lane, self.finished))

    def _complete(self, batch: Batch) -> None:
        """Answers a batch's items; first sees to it that the device has something to do meanwhile."""
        self._in_flight -= 1
        self._loads[self._lanes[batch.slot]] -= 1
        if not self._in_flight:
            self._busy_until = 0.0
        if batch.error is None:
            self._queue.costs.learn(batch.gear_rows or 1, (batch.finished_ns - batch.started_ns) / 1e9)
        if self._free:
            self._pump()
        code = "OK"
        try:
            if batch.error is None:
                self._answer(batch)
            else:
                error = service_error(batch.error)
                code = error.code_name
                self._fail(batch, error)
        finally:
            for ticket in batch.tickets:
                self._release(ticket, failed=batch.error is not None)
            self._free.append(batch.slot)
        self.totals.add(batch.rows, batch.gear_rows or batch.rows)
        self._observe(report(self.name, batch, code))
        self._pump()

    def _answer(self, batch: Batch) -> None:
        by_sink: dict[Sink, list[Result]] = {}
        now = perf_counter_ns()
        for index, ticket in enumerate(batch.tickets):
            if ticket.cancelled:
                continue
            result = Result(
                ticket.item_id, ticket.capture_time, self._outputs(batch, index), None, timing(batch, index, now)
            )
            by_sink.setdefault(ticket.sink, []).append(result)
        for sink, results in by_sink.items():
            sink.deliver(results)

    def _outputs(self, batch: Batch, index: int) -> list[OutputTensor]:
        ticket = batch.tickets[index]
        offsets, sizes = batch.output_offsets[index], batch.output_sizes[index]
        outputs = []
        for wanted in ticket.outputs:
            at = wanted.index
            info = self.contract.outputs[at]
            shape = self.contract.output_shape(ticket, at)
            assert shape is not None
            if wanted.slice is not None:
                outputs.append(OutputTensor(info.name, info.dtype, shape, None, wanted.slice))
            else:
                view = batch.slot.outputs[at].view[offsets[at] : offsets[at] + sizes[at]]
                if info.channel_block:
                    view = memoryview(nchw_from_nc1hwc0(view, info.dtype, shape, info.channel_block).tobytes())
                outputs.append(OutputTensor(info.name, info.dtype, shape, view))
        return outputs

    def _fail(self, batch: Batch, error: AclserveError) -> None:
        log.warning("model %s: a batch of %d items failed: %s", self.name, len(batch.tickets), error)
        for ticket in batch.tickets:
            if not ticket.cancelled:
                ticket.sink.deliver([Result(ticket.item_id, ticket.capture_time, error=error)])


def _pack_and_enter(batch: Batch, lane: Lane, finished: Callable[[Batch], None]) -> None:
    try:
        pack(batch)
    except Exception as error:
        batch.error = error
        finished(batch)
        return
    lane.enter(batch)
