"""Runs the items of one loaded model: admission, queue, slot, lane, results.

All state is touched on the event loop only. Rows enter a slot when its batch closes: small ones on the loop, large
ones on the device thread. Results are handed to each item's sink as views of the slot, then the slot is free again.

    submit -> contract.admit -> BatchQueue -> (batch closes) -> Slot.copy_in -> Lane -> _complete -> Sink.deliver
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter, perf_counter_ns

from aclserve.errors import AclserveError, FailedPrecondition
from aclserve_server.device.formats import nchw_from_nc1hwc0
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batch import Batch, form, pack
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.contract import Contract, Sink, Ticket
from aclserve_server.engine.items import Item, OutputTensor, Result, Timing
from aclserve_server.engine.lane import Lane
from aclserve_server.engine.outcomes import Observer, expired, report, service_error, timing
from aclserve_server.engine.slots import Slot

log = logging.getLogger(__name__)


class Runner:
    """The items of one model. `submit`, `cancel` and `drain` belong to the event loop."""

    contract: Contract
    slots: list[Slot]

    def __init__(self, name: str, contract: Contract, observe: Observer) -> None:
        self.name = name
        self.contract = contract
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._draining = False
        self._drained = asyncio.Event()

    @property
    def queue_rows(self) -> int:
        """Rows that wait."""
        raise NotImplementedError

    def submit(self, item: Item, sink: Sink) -> Ticket:
        """Admits an item; its one answer reaches `sink` later. Raises what is wrong with it instead of answering."""
        raise NotImplementedError

    def cancel(self, ticket: Ticket) -> bool:
        """Takes back an item that waits: True, and the caller sends the answer. One that runs is discarded."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Takes no more items and returns when all admitted ones are answered."""
        self._draining = True
        self._check_drained()
        await self._drained.wait()

    def close(self) -> None:
        """Frees what the runner itself holds of the device (not the slots), on an ACL thread, after `drain`."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._draining:
            raise FailedPrecondition(f"model {self.name!r} is being unloaded", reason="MODEL_NOT_READY")

    def _check_drained(self) -> None:
        if self._draining and not self._in_flight and not self.queue_rows:
            self._drained.set()


class BatchRunner(Runner):
    """Preallocated slots: models that batch rows, static models, and models with gears."""

    def __init__(
        self,
        name: str,
        contract: Contract,
        queue: BatchQueue[Ticket],
        slots: list[Slot],
        device_thread: DeviceThread,
        inline_bytes: int,
        observe: Observer,
    ) -> None:
        """`inline_bytes`: batches with a longer tensor are packed on the device thread. `attach` comes next."""
        super().__init__(name, contract, observe)
        self.slots = slots
        self._queue = queue
        self._free = list(slots)
        self._device_thread = device_thread
        self._inline_bytes = inline_bytes
        self._lane: Lane | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pump_scheduled = False

    def attach(self, lane: Lane) -> None:
        """Gives the runner its lane, whose `finished` is `self.finished`."""
        self._lane = lane

    @property
    def queue_rows(self) -> int:
        return self._queue.rows

    def submit(self, item: Item, sink: Sink) -> Ticket:
        self._check_open()
        now = perf_counter()
        ticket = self.contract.admit(item, sink, now)
        if ticket.rows == 0:
            self._answer_empty(ticket)
            return ticket
        ticket.owner = self
        ticket.queue_rows = self._queue.rows
        try:
            self._queue.add(ticket)
        except AclserveError:
            ticket.release()
            raise
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        if self._queue.cancel(ticket):
            ticket.release()
            self._check_drained()
            return True
        ticket.cancelled = True
        return False

    def finished(self, batch: Batch) -> None:
        """The lane's report of a batch, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._complete, batch)

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()

    def _answer_empty(self, ticket: Ticket) -> None:
        """Zero rows need no device."""
        outputs = []
        for wanted in ticket.outputs:
            info = self.contract.outputs[wanted.index]
            shape = self.contract.output_shape(ticket, wanted.index)
            assert shape is not None
            outputs.append(OutputTensor(info.name, info.dtype, shape, None if wanted.slice else b"", wanted.slice))
        result = Result(ticket.item_id, ticket.capture_time, outputs, None, Timing(queue_rows=self._queue.rows))
        ticket.release()
        self._in_flight += 1
        self._loop.call_soon(self._deliver_empty, ticket, result)

    def _deliver_empty(self, ticket: Ticket, result: Result) -> None:
        self._in_flight -= 1
        if not ticket.cancelled:
            ticket.sink.deliver([result])
        self._check_drained()

    def _pump(self) -> None:
        """Closes as many batches as are due and have a slot."""
        self._pump_scheduled = False
        queue = self._queue
        now = perf_counter()
        late = queue.expire(now)
        for ticket in late:
            ticket.release()
            ticket.sink.deliver([expired(ticket)])
        while self._free and queue.ready(now, idle=not self._in_flight):
            self._dispatch(queue.take())
        self._arm(now)
        if late:
            self._check_drained()

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self._queue.next_wakeup(idle=not self._in_flight)
        if wakeup is not None:
            self._timer = self._loop.call_later(max(wakeup - now, 0.0), self._pump)

    def _dispatch(self, tickets: list[Ticket]) -> None:
        batch = form(self.contract, self._free.pop(), tickets)
        self._in_flight += 1
        largest = max(
            (part.size_bytes for ticket in tickets for part in ticket.parts if part.data is not None), default=0
        )
        assert self._lane is not None
        lane = self._lane
        if largest <= self._inline_bytes:
            pack(batch)
            self._device_thread.submit(lambda: lane.enter(batch))
        else:
            self._device_thread.submit(lambda: _pack_and_enter(batch, lane, self.finished))

    def _complete(self, batch: Batch) -> None:
        """Answers a batch's items; first sees to it that the device has something to do meanwhile."""
        self._in_flight -= 1
        if self._free:
            self._pump()
        code = "OK"
        if batch.error is None:
            self._answer(batch)
        else:
            error = service_error(batch.error)
            code = error.code_name
            self._fail(batch, error)
        for ticket in batch.tickets:
            ticket.release()
        self._free.append(batch.slot)
        self._observe(report(self.name, batch, code))
        self._pump()
        self._check_drained()

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
