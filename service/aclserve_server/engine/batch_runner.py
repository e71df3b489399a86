"""Runs the items of models whose slots are allocated once: those that batch rows, static ones, and those with gears.

Rows enter a slot when its batch closes: small ones on the event loop, large ones on the device thread. Results are
handed to each item's sink as views of the slot, then the slot is free again.

    submit -> contract.admit -> BatchQueue -> (batch closes) -> Slot.copy_in -> Lane -> _complete -> Sink.deliver
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import perf_counter, perf_counter_ns

from aclserve.errors import AclserveError
from aclserve_server.device.formats import nchw_from_nc1hwc0
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batch import Batch, form, pack, write_regions, writes_regions
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.company import apart, split
from aclserve_server.engine.contract import Contract, RowContract, Sink, Ticket
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import OutputTensor, Result, Timing
from aclserve_server.engine.lane import Lane, pack_and_enter
from aclserve_server.engine.outcomes import Observer, report, service_error, timing
from aclserve_server.engine.runner import Runner
from aclserve_server.engine.slots import Slot

log = logging.getLogger(__name__)

_ALONE_BYTES = 1 << 20
"""Items with so much in shared memory that the device can use make up a batch each."""

_COPY_BYTES_PER_S = 2e9
"""How fast memory that no cache holds is copied, about, where cores are shared."""


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
        self._batches: set[Batch] = set()

    def attach(self, lane: Lane, slots: Sequence[Slot]) -> None:
        """Gives the runner an instance of the model: its lane, whose `finished` is `self.finished`, and its slots."""
        self.slots += slots
        self._free += slots
        self._lanes |= dict.fromkeys(slots, lane)
        self._loads[lane] = 0

    def finished(self, batch: Batch) -> None:
        """The lane's report of a batch, from any thread. The device thread writes regions, so that the lane goes on."""
        if batch.error is None and writes_regions(batch):
            try:
                self._device_thread.submit(lambda: self._write_regions(batch))
            except AclserveError:  # its queue is full
                self._write_regions(batch)
        else:
            self._hand_over(batch)

    def _write_regions(self, batch: Batch) -> None:
        try:
            write_regions(batch)
        except Exception as error:
            batch.error = error
        self._hand_over(batch)

    def _hand_over(self, batch: Batch) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._complete, batch)

    def close(self) -> None:
        for lane in self._loads:
            lane.close()

    @property
    def company_rows(self) -> int:
        """A quarter of a batch, so that what comes together does not leave gaps."""
        contract, queue = self.contract, self._queue
        if not isinstance(contract, RowContract) or contract.mixes_rows or queue.max_items < contract.max_rows:
            return 0
        return 0 if queue.max_rows_per_stream or queue.max_queue_items else contract.max_rows // 4

    def _goes_alone(self, ticket: Ticket) -> bool:
        """Copies of so many bytes are spared, unless a full batch has turned out to save more than they cost."""
        if ticket.rows > self._queue.max_rows or self.slots[0].marks is not None:
            return False
        pins = [part.region for part in ticket.parts] + [wanted.region for wanted in ticket.outputs]
        size = sum(pin.length_bytes for pin in pins if pin is not None and pin.device_address)
        if size < _ALONE_BYTES:
            return False
        one, full = self._queue.costs.of(ticket.rows), self._queue.costs.of(self._queue.max_rows)
        if one is None or full is None:
            return True
        return one - full * ticket.rows / self._queue.max_rows <= size / _COPY_BYTES_PER_S

    def _running_tickets(self) -> Iterable[Ticket]:
        return [ticket for batch in self._batches for ticket in batch.tickets]

    def _answer_empty(self, ticket: Ticket) -> None:
        """Zero rows need no device."""
        outputs = []
        for wanted in ticket.outputs:
            info = self.contract.outputs[wanted.index]
            shape = self.contract.output_shape(ticket, wanted.index)
            assert shape is not None
            outputs.append(wanted.placed(info, shape, b""))
        result = Result(ticket.item_id, ticket.capture_time, outputs, None, Timing(queue_rows=self._queue.rows))
        self._release(ticket, failed=False)
        self._in_flight += 1
        self._loop.call_soon(self._deliver_empty, ticket, result)

    def _deliver_empty(self, ticket: Ticket, result: Result) -> None:
        self._in_flight -= 1
        self.account.empty(ticket.received)
        if not ticket.cancelled:
            ticket.sink.deliver([result])
        self._check_drained()

    def _pump(self) -> None:
        self._pump_scheduled = False
        now = perf_counter()
        self._expire(now)
        while self._free and self._queue.rows:
            slot = min(self._free, key=self._load) if len(self._loads) > 1 else self._free[0]
            if not self._queue.ready(now, idle=not self._load(slot)):
                break
            self._free.remove(slot)
            self._dispatch(slot, now)
            self._let_in()
        self._call_again(idle=self._queue.rows > 0 and any(not self._load(slot) for slot in self._free))
        self._check_drained()

    def _busy_s(self, now: float) -> float:
        return super()._busy_s(now) if all(self._loads.values()) else 0.0

    def _lane_count(self) -> int:
        return len(self._loads)

    def _load(self, slot: Slot) -> int:
        """Batches that the slot's instance has to do."""
        return self._loads[self._lanes[slot]]

    def _dispatch(self, slot: Slot, now: float) -> None:
        tickets = self._queue.take()
        self._top_up(tickets)
        batch = form(self.contract, slot, tickets)
        lane = self._lanes[slot]
        self._loads[lane] += 1
        self._in_flight += 1
        self._batches.add(batch)
        cost = self._queue.costs.of(batch.rows) or 0.0
        self._busy_until = max(self._busy_until, now) + cost / len(self._loads)
        if self._packs_inline(batch):
            pack(batch)
            if not lane.join(batch):
                self._device_thread.submit(lambda: lane.enter(batch))
        else:
            self._device_thread.submit(lambda: pack_and_enter(batch, lane, self.finished))

    def _packs_inline(self, batch: Batch) -> bool:
        """Whether all tensors of a batch are small enough for the event loop to copy them."""
        limit, lent = self._inline_bytes, batch.lent_inputs
        for ticket in batch.tickets:
            for index, part in enumerate(ticket.parts):
                if part.size_bytes > limit * ticket.items and part.pin is None and index not in lent:
                    return False
        return True

    def _top_up(self, tickets: list[Ticket]) -> None:
        """Gives what room is left to some items of the oldest ticket, where it stands for several and does not fit."""
        ticket = self._queue.oldest()
        if ticket is None or ticket.members is None or tickets[0].alone:
            return
        room = self._queue.max_rows - sum(other.rows for other in tickets)
        count = room * ticket.items // ticket.rows
        if 0 < count < ticket.items:
            tickets.append(split(ticket, count))
            self._queue.shrunk(ticket, tickets[-1].rows, served=True)

    def _complete(self, batch: Batch) -> None:
        """Answers a batch's items; first sees to it that the device has something to do meanwhile."""
        self._in_flight -= 1
        self._batches.discard(batch)
        self._loads[self._lanes[batch.slot]] -= 1
        if self._lost is not None:  # its items are answered
            self._let_go(batch, failed=True)
            self._check_drained()
            return
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
                batch.errors.clear()
                error = service_error(batch.error)
                code = error.code_name
                self._fail(batch, error)
        finally:
            self._let_go(batch, failed=batch.error is not None)
        self.totals.add(batch.rows, batch.gear_rows or batch.rows)
        self.account.executed(report(batch, code, perf_counter_ns()))
        self._pump()

    def _let_go(self, batch: Batch, *, failed: bool) -> None:
        for at, ticket in enumerate(batch.tickets):
            self._release(ticket, failed=failed or at in batch.errors)
        self._free.append(batch.slot)

    def _answer(self, batch: Batch) -> None:
        by_sink: dict[Sink, list[Result]] = {}
        now = perf_counter_ns()
        for index, ticket in enumerate(batch.tickets):
            error = batch.errors.get(index)
            if error is not None:
                self.account.refused(error.code_name, ticket.received, ticket.items)
            if ticket.cancelled:
                continue
            result = Result(ticket.item_id, ticket.capture_time, None, error)
            if error is None:
                result.outputs = self._outputs(batch, index)
                if ticket.timed:
                    result.timing = timing(batch, index, now)
            results = [result] if ticket.members is None else apart(ticket, result)
            if ticket.sink in by_sink:
                by_sink[ticket.sink] += results
            else:
                by_sink[ticket.sink] = results
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
            if not wanted.is_inline:
                outputs.append(wanted.placed(info, shape, None))
                continue
            view = batch.slot.outputs[at].view[offsets[at] : offsets[at] + sizes[at]]
            if info.channel_block:
                view = memoryview(nchw_from_nc1hwc0(view, info.dtype, shape, info.channel_block).tobytes())
            outputs.append(OutputTensor(info.name, info.dtype, shape, view))
        return outputs

    def _fail(self, batch: Batch, error: AclserveError) -> None:
        log.warning("model %s: a batch of %d items failed: %s", self.name, len(batch.tickets), error)
        for ticket in batch.tickets:
            if not ticket.cancelled:
                ticket.sink.deliver(apart(ticket, Result(ticket.item_id, ticket.capture_time, error=error)))
