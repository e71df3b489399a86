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
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns

from aclserve.errors import AclserveError, Cancelled, DeadlineExceeded, FailedPrecondition, Internal
from aclserve_server.acl.errors import AclError
from aclserve_server.device.description import Gear
from aclserve_server.device.faults import classify
from aclserve_server.device.formats import nchw_from_nc1hwc0
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.contract import Contract, RowContract, Sink, Ticket, output_bytes
from aclserve_server.engine.items import Item, OutputTensor, Result, Timing
from aclserve_server.engine.lane import Batch, Lane
from aclserve_server.engine.slots import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one execution was, for metrics. Times in seconds; `wait_s` and `total_s` are of the oldest item.

    `code` is the canonical status of its items.
    """

    model: str
    rows: int
    padding_rows: int
    items: int
    code: str
    wait_s: float
    execute_s: float
    total_s: float


Observer = Callable[[BatchReport], None]


def service_error(error: Exception) -> AclserveError:
    """The error a client sees for one that happened below; anything unforeseen is logged and stays inside."""
    if isinstance(error, AclserveError):
        return error
    if isinstance(error, AclError):
        return classify(error)
    log.error("unforeseen error while executing a batch", exc_info=error)
    return Internal("the server failed while it executed the item; its log tells more", reason="INTERNAL_ERROR")


def expired(ticket: Ticket) -> Result:
    """The answer to an item whose deadline came while it waited."""
    error = DeadlineExceeded(
        "the item's deadline passed while it waited for its execution; allow it more time or send less",
        reason="ITEM_EXPIRED",
    )
    return Result(ticket.item_id, ticket.capture_time, error=error)


def cancelled(ticket: Ticket) -> Result:
    """The answer to an item that its client took back."""
    return Result(
        ticket.item_id, ticket.capture_time, error=Cancelled("the item was cancelled", reason="ITEM_CANCELLED")
    )


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
        batch = self._form(tickets)
        self._in_flight += 1
        largest = max(
            (part.size_bytes for ticket in tickets for part in ticket.parts if part.data is not None), default=0
        )
        assert self._lane is not None
        lane = self._lane
        if largest <= self._inline_bytes:
            _pack(batch)
            self._device_thread.submit(lambda: lane.enter(batch))
        else:
            self._device_thread.submit(lambda: _pack_and_enter(batch, lane, self.finished))

    def _form(self, tickets: list[Ticket]) -> Batch:
        """Places the tickets' rows in a free slot."""
        contract = self.contract
        slot = self._free.pop()
        rows = sum(ticket.rows for ticket in tickets)
        if isinstance(contract, RowContract):
            gear_rows, gear = contract.gear_for(rows)
            positions, first = [], 0
            for ticket in tickets:
                positions.append(first)
                first += ticket.rows
            in_bytes, out_bytes = contract.input_row_bytes, contract.output_row_bytes
            batch = Batch(
                slot, tickets, rows, gear, gear_rows, positions,
                [[at * size for size in in_bytes] for at in positions],
                [[at * size for size in out_bytes] for at in positions],
                [[ticket.rows * size for size in out_bytes] for ticket in tickets],
                perf_counter_ns(),
            )  # fmt: skip
            batch.used_input_bytes = [rows * size for size in in_bytes]
        else:
            gear = _only_gear(tickets)
            sizes = [part.size_bytes for part in tickets[0].parts]
            out = [output_bytes(info, shape) for info, shape in zip(contract.outputs, gear.output_shapes, strict=True)]
            batch = Batch(
                slot, tickets, rows, gear, 0, [0], [[0] * len(sizes)], [[0] * len(out)], [out], perf_counter_ns()
            )
            batch.used_input_bytes = sizes
        batch.used_output_bytes = _inline_output_bytes(batch)
        return batch

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
        self._observe(_report(self.name, batch, code))
        self._pump()
        self._check_drained()

    def _answer(self, batch: Batch) -> None:
        by_sink: dict[Sink, list[Result]] = {}
        now = perf_counter_ns()
        for index, ticket in enumerate(batch.tickets):
            if ticket.cancelled:
                continue
            result = Result(
                ticket.item_id, ticket.capture_time, self._outputs(batch, index), None, _timing(batch, index, now)
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


def _pack(batch: Batch) -> None:
    """Copies the batch's rows into its slot and lets go of the messages they came in."""
    slot = batch.slot
    for ticket, offsets in zip(batch.tickets, batch.input_offsets, strict=True):
        for index, part in enumerate(ticket.parts):
            if part.data is not None:
                if part.size_bytes:
                    slot.copy_in(index, offsets[index], part.data)
                part.data = None
    batch.packed_ns = perf_counter_ns()


def _pack_and_enter(batch: Batch, lane: Lane, finished: Callable[[Batch], None]) -> None:
    try:
        _pack(batch)
    except Exception as error:
        batch.error = error
        finished(batch)
        return
    lane.enter(batch)


def _only_gear(tickets: list[Ticket]) -> Gear:
    gear = tickets[0].gear
    assert gear is not None
    return gear


def _inline_output_bytes(batch: Batch) -> list[int]:
    """How much of each output the host must see: nothing of one that goes only into clients' buffers."""
    ends = [0] * len(batch.slot.outputs)
    for ticket, offsets, sizes in zip(batch.tickets, batch.output_offsets, batch.output_sizes, strict=True):
        for wanted in ticket.outputs:
            if wanted.pin is None:
                ends[wanted.index] = offsets[wanted.index] + sizes[wanted.index]
    return ends


def _timing(batch: Batch, index: int, now: int) -> Timing:
    ticket = batch.tickets[index]
    received = int(ticket.received * 1e9)
    return Timing(
        max(batch.closed_ns - received, 0),
        batch.packed_ns - batch.closed_ns,
        batch.executed_ns - batch.started_ns,
        batch.finished_ns - batch.executed_ns,
        max(now - received, 0),
        batch.rows,
        batch.gear_rows,
        batch.positions[index],
        ticket.queue_rows,
    )


def _report(name: str, batch: Batch, code: str) -> BatchReport:
    received = min(ticket.received for ticket in batch.tickets)
    return BatchReport(
        name,
        batch.rows,
        max(batch.gear_rows - batch.rows, 0),
        len(batch.tickets),
        code,
        max(batch.closed_ns / 1e9 - received, 0.0),
        max(batch.executed_ns - batch.started_ns, 0) / 1e9,
        max(batch.finished_ns / 1e9 - received, 0.0),
    )
