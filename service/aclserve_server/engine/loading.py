"""From a model on the device to something that runs items: how it is used, its slots, its lane.

`prepare` does the device's part on an ACL thread; `Prepared.start` makes the runner on the event loop.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass

from aclserve.errors import FailedPrecondition
from aclserve_server.device.description import Gear, ModelDescription
from aclserve_server.device.device import Device
from aclserve_server.device.model import Model
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.contract import Contract, FreeContract, PinFunction, RowContract, ShapeContract, Ticket
from aclserve_server.engine.dynamic import DynamicRunner
from aclserve_server.engine.independence import mixes_rows
from aclserve_server.engine.lane import AsyncLane, Lane, SyncLane
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.outcomes import Observer
from aclserve_server.engine.runner import BatchRunner, Runner
from aclserve_server.engine.slots import Slot


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How models are run: slots per model, rows that may wait, delay for company (s), rows packed on the loop up to."""

    slots: int
    max_queue_rows: int
    max_queue_delay_s: float
    pack_inline_bytes: int


@dataclass(frozen=True, slots=True)
class Threads:
    """The device and the threads that may call it."""

    device: Device
    calls: DeviceThread
    blocking: DeviceThread
    reports: ReportThread


@dataclass(slots=True, eq=False)
class Prepared:
    """A model ready to run: how it is used, and its slots."""

    model: Model
    contract: Contract
    slots: list[Slot]
    synchronous: bool
    batched: bool
    batching_reason: str
    delay_s: float

    def close(self) -> None:
        """Frees slots and model, on an ACL thread, when no runner uses them."""
        for slot in self.slots:
            slot.close()
        self.model.close()

    async def start(self, name: str, threads: Threads, options: RunOptions, observe: Observer) -> Runner:
        """Makes the runner on the event loop; what it needs of the device it makes on the device thread."""
        contract = self.contract
        if isinstance(contract, FreeContract):
            queue = self._queue(options, 1, 1)
            return DynamicRunner(name, contract, queue, threads.device, self.model, threads.blocking, observe)
        rows = contract.max_rows if isinstance(contract, RowContract) else 1
        items = rows if self.batched else 1
        runner = BatchRunner(
            name,
            contract,
            self._queue(options, rows, items),
            self.slots,
            threads.calls,
            options.pack_inline_bytes,
            observe,
        )
        runner.attach(await threads.calls.run(lambda: self._lane(threads, runner)))
        return runner

    def _queue(self, options: RunOptions, rows: int, items: int) -> BatchQueue[Ticket]:
        return BatchQueue(
            max_rows=rows, max_items=items, max_queue_rows=max(options.max_queue_rows, rows), max_delay=self.delay_s
        )

    def _lane(self, threads: Threads, runner: BatchRunner) -> Lane:
        if self.synchronous:
            return SyncLane(threads.device, self.model, threads.blocking, runner.finished)
        return AsyncLane(threads.device, self.model, threads.reports, runner.finished)


def prepare(
    device: Device, model: Model, config: ModelConfig, synchronous: bool, options: RunOptions, pin: PinFunction
) -> Prepared:
    """Decides how the model is used and allocates its slots. On failure the model stays open and nothing else does."""
    description = model.description
    delay = config.max_queue_delay_us / 1e6 if config.max_queue_delay_us is not None else options.max_queue_delay_s
    if description.unknown_shape:
        contract: Contract = FreeContract(description, pin)
        return Prepared(model, contract, [], True, False, "its output shapes are known only after the run", 0.0)
    gears, reason = row_gears(description, config)
    with ExitStack() as undo:
        slots = [undo.enter_context(closing(Slot(device, description))) for _ in range(options.slots)]
        batched = bool(gears)
        if not gears:
            contract = ShapeContract(description, pin)
        else:
            contract = RowContract(description, pin, gears)
            mixed = mixes_rows(device, model, contract, slots[0])
            if mixed or config.max_batch_size == 0:
                batched = False
                reason = mixed or "max_batch_size is 0 in its configuration"
                contract = RowContract(description, pin, gears, mixes_rows=bool(mixed))
        prepared = Prepared(model, contract, slots, synchronous, batched, reason, delay)
        undo.pop_all()
        return prepared


def row_gears(description: ModelDescription, config: ModelConfig) -> tuple[list[tuple[int, Gear]], str]:
    """The compiled row counts in ascending order, empty where axis 0 does not count rows; and why, in words."""
    size = config.max_batch_size
    gears = []
    for gear in description.gears:
        counts = {shape[0] if shape else None for shape in (*gear.input_shapes, *gear.output_shapes)}
        count = counts.pop() if len(counts) == 1 else None
        if count and (gear.kind == "batch" or (gear.kind == "static" and size == count)):
            gears.append((count, gear))
    if not gears:
        kind = description.gears[0].kind
        if kind == "static":
            if size:
                raise FailedPrecondition(
                    f"max_batch_size is {size} in the configuration, but axis 0 of the model's tensors is not {size} "
                    "throughout; remove the option or compile the model with a dynamic batch",
                    reason="MODEL_CONFIG_INVALID",
                )
            return [], "its shapes are static and its configuration gives no max_batch_size"
        return [], f"its gears are of kind {kind}, one item an execution"
    gears.sort(key=lambda pair: pair[0])
    if size:
        fitting = [pair for pair in gears if pair[0] <= size] or gears[:1]
        return fitting, f"axis 0 counts rows, at most {fitting[-1][0]} an execution (max_batch_size is {size})"
    return gears, f"axis 0 counts rows, at most {gears[-1][0]} an execution"
