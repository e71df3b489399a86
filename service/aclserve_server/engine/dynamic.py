"""Models whose outputs are known only after the run: one item at a time, with aclmdlExecute.

The library allocates the outputs in device memory; they are copied once, to the host or into the client's buffer or
region, and freed. Inputs that lie in a client's buffer are used where they are. Input scratch buffers grow to the
largest item and stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns

from aclserve.errors import FailedPrecondition
from aclserve_server.acl.errors import AclError
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.device import Device
from aclserve_server.device.faults import is_out_of_memory
from aclserve_server.device.model import Model
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.contract import FreeContract, Part, Ticket, Wanted
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import OutputTensor, Result, Timing
from aclserve_server.engine.outcomes import BatchReport, Observer, service_error
from aclserve_server.engine.regions import region_too_small
from aclserve_server.engine.runner import Runner

_ALIGNMENT = 64


@dataclass(slots=True, eq=False)
class Run:
    """One execution on the blocking thread, and what came of it. Times are nanoseconds."""

    ticket: Ticket
    closed_ns: int
    packed_ns: int = 0
    executed_ns: int = 0
    finished_ns: int = 0
    outputs: list[OutputTensor] = field(default_factory=list)
    error: Exception | None = None


class Scratch:
    """Input buffers that grow to the largest item. Lives on the blocking thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[tuple[int, str], Buffer] = {}

    def get(self, index: int, space: str, size: int) -> Buffer:
        """A buffer of at least `size` bytes for one input, kept until `close`."""
        held = self._buffers.get((index, space))
        if held is None or held.size_bytes < size:
            if held is not None:
                held.close()
                del self._buffers[index, space]
            capacity = max(size, _ALIGNMENT)
            held = self._device.allocate(capacity) if space == "device" else self._device.allocate_host(capacity)
            self._buffers[index, space] = held
        return held

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()


class DynamicRunner(Runner):
    """One item an execution, shapes as the item brings them."""

    def __init__(
        self,
        name: str,
        contract: FreeContract,
        queue: BatchQueue[Ticket],
        hazards: Hazards,
        device: Device,
        model: Model,
        blocking: DeviceThread,
        observe: Observer,
    ) -> None:
        super().__init__(name, contract, queue, hazards, observe)
        self.slots = []
        self._device = device
        self._model = model
        self._reshapes = contract.reshapes
        self._blocking = blocking
        self._scratch = Scratch(device)
        self._running: Run | None = None

    def _running_tickets(self) -> Iterable[Ticket]:
        return () if self._running is None else (self._running.ticket,)

    def close(self) -> None:
        self._scratch.close()

    def _pump(self) -> None:
        self._pump_scheduled = False
        now = perf_counter()
        self._expire(now)
        if not self._in_flight and self._queue.rows:
            run = Run(self._queue.take()[0], perf_counter_ns())
            self._let_in()
            self._in_flight = 1
            self._running = run
            self._busy_until = now + (self._queue.costs.of(1) or 0.0)
            self._blocking.submit(lambda: self._work(run))
        self._call_again(idle=False)
        self._check_drained()

    def _work(self, run: Run) -> None:
        try:
            if self._device.loss.error is not None:
                raise self._device.loss.error
            try:
                self._execute(run)
            except AclError as error:
                if run.packed_ns or not is_out_of_memory(error):
                    raise
                self._scratch.close()  # what the largest item left behind
                self._execute(run)
        except Exception as error:
            run.error = error
        run.finished_ns = perf_counter_ns()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._complete, run)

    def _execute(self, run: Run) -> None:
        ticket = run.ticket
        with ExitStack() as stack:
            places = [self._place(index, part) for index, part in enumerate(ticket.parts)]
            inputs = stack.enter_context(Dataset.create(self._device.library, places))
            empty = [(0, 0)] * len(self.contract.outputs)
            outputs = stack.enter_context(Dataset.create(self._device.library, empty))
            untaken = stack.enter_context(ExitStack())
            for index in range(len(empty)):
                untaken.callback(self._free_output, outputs, index)
            for index, (part, info) in enumerate(zip(ticket.parts, self.contract.inputs, strict=True)):
                inputs.set_shape(index, info.dtype, self._reshapes.input_shape(index, part.shape))
            run.packed_ns = perf_counter_ns()
            for part in ticket.parts:
                part.data = None
            self._model.execute(inputs, outputs)
            run.executed_ns = perf_counter_ns()
            made = [self._adopt(stack, outputs, index) for index in range(len(empty))]
            untaken.pop_all()
            run.outputs = [self._take(wanted, *made[wanted.index]) for wanted in ticket.outputs]

    def _place(self, index: int, part: Part) -> tuple[int, int]:
        """Brings an input to the device; where it lies."""
        size = part.size_bytes
        pin = part.pin
        if pin is not None and pin.buffer.space == "device" and pin.offset_bytes % _ALIGNMENT == 0:
            return pin.buffer.address + pin.offset_bytes, size
        scratch = self._scratch.get(index, "device", size)
        if pin is not None:
            self._device.copy(scratch, 0, pin.buffer, pin.offset_bytes, size)
        elif size:
            apart = self._device.run_mode == "host"
            target = self._scratch.get(index, "host", size) if apart else scratch
            if part.region is not None:
                part.region.read_into(target.view()[:size])
            elif part.data is not None:
                target.view()[:size] = part.data
            if apart:
                self._device.copy(scratch, 0, target, 0, size)
        return scratch.address, size

    def _adopt(self, stack: ExitStack, outputs: Dataset, index: int) -> tuple[tuple[int, ...], Buffer | None]:
        shape = outputs.shape(index)
        address, size = outputs.take(index)
        return shape, stack.enter_context(self._device.adopt(address, size)) if address else None

    def _free_output(self, outputs: Dataset, index: int) -> None:
        """Of a run that failed: frees an output that AscendCL may have allocated all the same."""
        address, size = outputs.take(index)
        if address:
            self._device.adopt(address, size).close()

    def _take(self, wanted: Wanted, shape: tuple[int, ...], buffer: Buffer | None) -> OutputTensor:
        info = self.contract.outputs[wanted.index]
        size = math.prod(shape) * info.dtype.itemsize
        shape = self._reshapes.output_shape(wanted.index, shape)
        if wanted.region is not None:
            if size > wanted.region.length_bytes:
                raise region_too_small(wanted.region.slice, wanted.region.length_bytes, size)
            wanted.region.write(self._visible(buffer, size))
            return wanted.placed(info, shape, None)
        if wanted.pin is None:
            return OutputTensor(info.name, info.dtype, shape, bytes(self._visible(buffer, size)))
        if size > wanted.pin.length_bytes:
            raise FailedPrecondition(
                f"output {info.name!r} has {size} bytes, its buffer range {wanted.pin.length_bytes}; "
                "give it a larger one",
                reason="BUFFER_TOO_SMALL",
                metadata={"output": info.name, "got_bytes": wanted.pin.length_bytes, "expected_bytes": size},
            )
        if size and buffer is not None:
            self._device.copy(wanted.pin.buffer, wanted.pin.offset_bytes, buffer, 0, size)
        return OutputTensor(info.name, info.dtype, shape, None, wanted.slice)

    def _visible(self, buffer: Buffer | None, size: int) -> memoryview:
        """A buffer's first bytes as the host sees them, until the next call."""
        if not size or buffer is None:
            return memoryview(b"")
        if self._device.run_mode == "device":
            return buffer.view()[:size]
        staging = self._scratch.get(-1, "host", size)
        self._device.copy(staging, 0, buffer, 0, size)
        return staging.view()[:size]

    def _complete(self, run: Run) -> None:
        self._in_flight = 0
        self._running = None
        ticket = run.ticket
        if self._lost is not None:  # it is answered
            self._release(ticket, failed=True)
            self._check_drained()
            return
        now = perf_counter_ns()
        received = int(ticket.received * 1e9)
        result = Result(ticket.item_id, ticket.capture_time)
        if run.error is not None:
            result.error = service_error(run.error)
        else:
            result.outputs = run.outputs
            result.timing = Timing(
                run.closed_ns - received,
                run.packed_ns - run.closed_ns,
                run.executed_ns - run.packed_ns,
                run.finished_ns - run.executed_ns,
                now - received,
                1,
                0,
                0,
                ticket.queue_rows,
            )
        self._release(ticket, failed=run.error is not None)
        if run.error is None:
            self._queue.costs.learn(1, (run.finished_ns - run.closed_ns) / 1e9)
        if not ticket.cancelled:
            ticket.sink.deliver([result])
        self.totals.add(1, 1)
        self.account.executed(
            BatchReport(
                1,
                0,
                "OK" if result.error is None else result.error.code_name,
                [received],
                [ticket.capture_time] if ticket.capture_time else [],
                run.closed_ns,
                max(run.packed_ns - run.closed_ns, 0),
                max(run.executed_ns - run.packed_ns, 0),
                run.finished_ns - run.executed_ns if run.executed_ns else 0,
                perf_counter_ns(),
            )
        )
        self._pump()
