"""From a model on the device to something that runs items: how it is used, its slots, its lane.

`prepare` does the device's part on an ACL thread; `Prepared.start` makes the runner on the event loop.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial

from aclserve.errors import FailedPrecondition
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.description import Gear, ModelDescription
from aclserve_server.device.device import Device
from aclserve_server.device.loading import ModelMemory, ModelSource, placed, query_size_or_unknown
from aclserve_server.device.model import Model
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batch_runner import BatchRunner
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.checks import check_tensors, reshaped
from aclserve_server.engine.contract import (
    Contract,
    FreeContract,
    PinFunction,
    RegionPinFunction,
    RowContract,
    ShapeContract,
    Ticket,
)
from aclserve_server.engine.dynamic import DynamicRunner
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.independence import mixes_rows
from aclserve_server.engine.lane import AsyncLane, Lane, SyncLane
from aclserve_server.engine.model_config import ModelConfig, QueuePolicy
from aclserve_server.engine.outcomes import Observer
from aclserve_server.engine.reshapes import reshapes_of
from aclserve_server.engine.room import check_fits
from aclserve_server.engine.runner import Runner
from aclserve_server.engine.slots import Slot, slot_bytes


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How models are run.

    `slots` per instance; `max_queue_rows` may wait; `max_queue_delay_s` for company; tensors up to
    `pack_inline_bytes` are packed on the event loop; a stream gives a batch at most `max_rows_per_stream` rows (0: no
    bound).
    """

    slots: int
    max_queue_rows: int
    max_queue_delay_s: float
    pack_inline_bytes: int
    max_rows_per_stream: int = 0


@dataclass(frozen=True, slots=True)
class Threads:
    """The device and the threads that may call it."""

    device: Device
    calls: DeviceThread
    blocking: DeviceThread
    reports: ReportThread


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """The model loaded once: an id of its own, a lane of its own, and slots for it."""

    model: Model
    slots: list[Slot]


@dataclass(slots=True, eq=False)
class Prepared:
    """A model ready to run: how it is used, and its instances. They share `weights`, where there are several.

    `reshaped` is the description as clients see it, where it differs from the model's own. `taken_bytes` of device
    memory were gone after it was made; 0 where the device cannot tell.
    """

    instances: list[Instance]
    contract: Contract
    synchronous: bool
    batched: bool
    batching_reason: str
    delay_s: float
    weights: Buffer | None = None
    queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    reshaped: ModelDescription | None = None
    taken_bytes: int = 0

    @property
    def model(self) -> Model:
        """The first instance's model; the others are alike."""
        return self.instances[0].model

    @property
    def description(self) -> ModelDescription:
        """The model as clients see it."""
        return self.reshaped or self.model.description

    @property
    def slots(self) -> list[Slot]:
        """The slots of all instances."""
        return [slot for instance in self.instances for slot in instance.slots]

    @property
    def device_bytes(self) -> int:
        """The device memory that it is known to hold, but for what its caller gave it; 0 where that is unknown."""
        described = self.model.description
        weights = 0 if self.weights is None else self.weights.size_bytes
        slots = slot_bytes(described) * len(self.slots) if self.slots else 0
        return slots + weights + sum(instance.model.own_bytes for instance in self.instances)

    def close(self) -> None:
        """Frees slots, models and weights, on an ACL thread, when no runner uses them. Every part is tried."""
        with ExitStack() as stack:
            if self.weights is not None:
                stack.callback(self.weights.close)
            for instance in self.instances:
                stack.callback(instance.model.close)
            for slot in self.slots:
                stack.callback(slot.close)

    async def start(
        self, name: str, threads: Threads, options: RunOptions, hazards: Hazards, observe: Observer
    ) -> Runner:
        """Makes the runner on the event loop; what it needs of the device it makes on the device thread."""
        contract = self.contract
        queue = self._queue(options)
        if isinstance(contract, FreeContract):
            return DynamicRunner(name, contract, queue, hazards, threads.device, self.model, threads.blocking, observe)
        runner = BatchRunner(name, contract, queue, hazards, threads.calls, options.pack_inline_bytes, observe)
        try:
            for instance in self.instances:
                make = partial(self._lane, threads, instance.model, runner)
                lane = await threads.calls.run(make, discard=lambda unwanted: unwanted.close())
                runner.attach(lane, instance.slots)
        except BaseException:
            await threads.blocking.run(runner.close, cleanup=True)
            raise
        return runner

    def _queue(self, options: RunOptions) -> BatchQueue[Ticket]:
        contract = self.contract
        rows = contract.max_rows if isinstance(contract, RowContract) else 1
        return BatchQueue(
            max_rows=rows,
            max_items=rows if self.batched else 1,
            max_queue_rows=max(options.max_queue_rows, rows),
            max_queue_items=self.queue_policy.max_items,
            max_delay=self.delay_s,
            max_rows_per_stream=options.max_rows_per_stream,
            gears=[count for count, _ in contract.gears] if isinstance(contract, RowContract) else (),
        )

    def _lane(self, threads: Threads, model: Model, runner: BatchRunner) -> Lane:
        if self.synchronous:
            return SyncLane(threads.device, model, threads.blocking, runner.finished)
        return AsyncLane(threads.device, model, threads.reports, runner.finished)


def load(
    device: Device, source: ModelSource, memory: ModelMemory | None, count: int
) -> tuple[list[Model], Buffer | None]:
    """Loads a model `count` times; several instances share one copy of the weights, which is returned with them.

    Raises `ResourceExhausted`, reason MODEL_DOES_NOT_FIT, before it asks the device for memory that is not there.
    """
    with ExitStack() as undo:
        weights = None
        if count > 1 and memory is None:
            with placed(device, source) as image:
                work, size = query_size_or_unknown(device, image)
            check_fits(device, work * count, size)
            if size:
                weights = undo.enter_context(device.allocate(size))
                memory = ModelMemory(None, weights)
        given = memory or ModelMemory()

        def judge(work: int, weight: int) -> None:
            check_fits(device, 0 if given.work else work, 0 if given.weight else weight)

        models = [undo.enter_context(device.load_model(source, memory, judge))]
        if not models[0].description.unknown_shape:  # those run one item at a time anyway
            models += [undo.enter_context(device.load_model(source, memory, judge)) for _ in range(count - 1)]
        undo.pop_all()
        return models, weights


def prepare(
    device: Device,
    models: list[Model],
    weights: Buffer | None,
    config: ModelConfig,
    synchronous: bool,
    options: RunOptions,
    pin: PinFunction,
    pin_region: RegionPinFunction,
) -> Prepared:
    """Decides how the model is used and allocates its slots. On failure the models stay open and nothing else does.

    Raises `FailedPrecondition` (MODEL_CONFIG_INVALID) and `ResourceExhausted` (MODEL_DOES_NOT_FIT).
    """
    check_tensors(models[0].description, config)
    description = reshaped(models[0].description, config)
    delay = config.max_queue_delay_us / 1e6 if config.max_queue_delay_us is not None else options.max_queue_delay_s
    if description.unknown_shape:
        free = reshapes_of(models[0].description, config)
        contract: Contract = FreeContract(description, pin, pin_region, free)
        reason = "its output shapes are known only after the run"
        policy = contract.queue_policy = config.queue_policy
        alone = [Instance(model, []) for model in models]
        return Prepared(alone, contract, True, False, reason, 0.0, weights, policy, description)
    gears, reason = row_gears(description, config)
    check_fits(device, 0, 0, slot_bytes(description) * options.slots * len(models))
    with ExitStack() as undo:
        instances = [
            Instance(model, [undo.enter_context(closing(Slot(device, description))) for _ in range(options.slots)])
            for model in models
        ]
        batched = bool(gears)
        if not gears:
            contract = ShapeContract(description, pin, pin_region)
        else:
            contract = RowContract(description, pin, pin_region, gears)
            mixed = mixes_rows(device, models[0], contract, instances[0].slots[0])
            if mixed or config.max_batch_size == 0:
                batched = False
                reason = mixed or "max_batch_size is 0 in its configuration"
                contract = RowContract(description, pin, pin_region, gears, mixes_rows=bool(mixed))
        undo.pop_all()
    contract.queue_policy = config.queue_policy
    policy = config.queue_policy
    return Prepared(instances, contract, synchronous, batched, reason, delay, weights, policy, description)


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
