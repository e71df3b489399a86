"""Loaded models: ids, the memory they occupy, and the rule that one id never runs twice at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from aclserve_server.emulator import status
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.counters import Counters
from aclserve_server.emulator.entities import Context, Stream, Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.gears import Gear
from aclserve_server.emulator.memory import AddressSpace, Block
from aclserve_server.emulator.program import Program, ProgramStore
from aclserve_server.emulator.runtime import Runtime

BINDING_LIMIT = 512
_CONFLICT = "this model id (or its work memory) was executed twice at once without an order between the two"


@dataclass(eq=False, slots=True)
class Binding:
    """A model tied to one set of buffers at one gear; valid as long as all its blocks live."""

    binding: Any
    blocks: tuple[Block, ...]


@dataclass(eq=False, slots=True)
class Exclusion:
    """Executions that may not overlap: those of one model id, or of the models that share one work memory."""

    pending: list[Task] = field(default_factory=list)

    def admit(self, runtime: Runtime, task: Task, stream: Stream | None) -> None:
        """Submit a task; if it may run beside another of this group, both fail. No stream: the calling thread."""
        with runtime.lock:
            self.pending = [other for other in self.pending if not other.done]
            for other in self.pending:
                if _unordered(other, stream):
                    for both in (task, other):
                        both.fault, both.reason = status.RT_MODEL_EXECUTE, _CONFLICT
            if stream is not None:
                runtime.submit(stream, task)
            self.pending.append(task)


def _unordered(other: Task, stream: Stream | None) -> bool:
    if other.stream is None or stream is None:
        return True
    return other.stream is not stream and stream.clock.get(other.stream.number, 0) < other.number


@dataclass(eq=False, slots=True)
class LoadedModel:
    """One model id. `gear` is what was set last on this model: what aclmdlGetCurOutputDims goes by."""

    model_id: int
    program: Program
    context: Context
    charged_bytes: int
    held: list[Block]
    work_address: int | None
    exclusion: Exclusion
    gear: Gear | None = None
    bindings: OrderedDict[tuple[Any, ...], Binding] = field(default_factory=OrderedDict)
    priority: int = 0

    def __str__(self) -> str:
        """How messages name it."""
        return f"model {self.model_id}"


class ModelTable:
    """The models by id. Any thread."""

    def __init__(self, config: EmulatorConfig, memory: AddressSpace, runtime: Runtime, counters: Counters) -> None:
        self.store = ProgramStore(config)
        self.counters = counters
        self._memory = memory
        self._runtime = runtime
        self._lock = threading.Lock()  # guards the two fields below
        self._models: dict[int, LoadedModel] = {}
        self._next_id = 1

    def load(self, program: Program, work: tuple[int | None, int], weight: tuple[int | None, int]) -> int:
        """A new model id in the current context; null addresses mean memory of the library's own."""
        context = self._runtime.current()
        device = context.device.number
        held: list[Block] = []
        charged = 0
        needs = (("work", work, program.work_bytes), ("weight", weight, program.weight_bytes))
        for what, (address, size), need in needs:
            if address is None:
                charged += need
            else:
                held.append(self._user_memory(what, address, size, need, device))
        self._memory.reserve(device, charged)
        with self._lock:
            model_id = self._next_id
            self._next_id += 1
            exclusion = Exclusion()
            for other in self._models.values():
                if work[0] is not None and other.work_address == work[0]:
                    exclusion = other.exclusion
            model = LoadedModel(model_id, program, context, charged, held, work[0], exclusion)
            for block in held:
                block.holders.append(str(model))
            self._models[model_id] = model
        self.store.loaded()
        return model_id

    def get(self, model_id: int) -> LoadedModel:
        """The model of an id; 145003 when there is none."""
        model = self._models.get(model_id)
        if model is None:
            raise Failure(status.GE_MODEL_ID_INVALID, f"model id {model_id} is not loaded")
        return model

    def unload(self, model: LoadedModel) -> None:
        """Forget a model and what it occupied; refused while it has work to do."""
        with self._runtime.lock:
            own = [task for task in model.exclusion.pending if not task.done and task.owner == model.model_id]
            if own:
                raise Failure(status.GE_UNLOAD_MODEL, f"{model} is being executed: synchronise its stream first")
        with self._lock:
            if self._models.pop(model.model_id, None) is None:
                raise Failure(status.GE_MODEL_ID_INVALID, f"model id {model.model_id} is not loaded")
            for block in model.held:
                block.holders.remove(str(model))
        model.bindings.clear()
        self._memory.unreserve(model.context.device.number, model.charged_bytes)

    def all(self) -> list[LoadedModel]:
        """Every loaded model."""
        with self._lock:
            return list(self._models.values())

    def close(self) -> None:
        """Forget every model."""
        with self._lock:
            for model in self._models.values():
                model.bindings.clear()
            self._models.clear()

    def _user_memory(self, what: str, address: int, size: int, need: int, device: int) -> Block:
        block = self._memory.block_at(address)
        if block is None or block.kind == "registered" or block.device != device:
            raise Failure(status.GE_PARAM_INVALID, f"{what} memory at {address:#x} is not memory of device {device}")
        if size < need or address + need > block.address + block.usable_bytes:
            raise Failure(status.GE_PARAM_INVALID, f"{what} memory has {size} bytes, the model needs {need}")
        if address % 64:
            raise Failure(status.GE_PARAM_INVALID, f"{what} memory at {address:#x} is not aligned to 64 bytes")
        return block
