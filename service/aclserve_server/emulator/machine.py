"""Everything one emulated machine consists of, in one place: what the C functions work on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from aclserve_server.emulator import status
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.counters import Counters
from aclserve_server.emulator.entities import Context, Event
from aclserve_server.emulator.faults import Failure, FaultPlan
from aclserve_server.emulator.handles import Handles
from aclserve_server.emulator.memory import AddressSpace
from aclserve_server.emulator.models import LoadedModel, ModelTable
from aclserve_server.emulator.objects import AippSet, ExecConfig, LoadConfig, ModelDesc
from aclserve_server.emulator.reports import Reports
from aclserve_server.emulator.runtime import Runtime
from aclserve_server.emulator.tensors import DataBuffer, Dataset, TensorDesc
from aclserve_server.emulator.threads import Threads

T = TypeVar("T")


@dataclass(eq=False)
class Machine:
    """One emulated machine. `initialized` is None before the first aclInit, False after a finalize."""

    config: EmulatorConfig
    errors: list[BaseException] = field(default_factory=list)
    handles: Handles = field(default_factory=Handles)
    threads: Threads = field(default_factory=Threads)
    counters: Counters = field(default_factory=Counters)
    initialized: bool | None = None
    init_count: int = 0
    init_content: str | None = None
    leaks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build the parts in the order they need each other."""
        config = self.config
        self.faults = FaultPlan(config.faults, config.fault_rates, config.seed)
        self.memory = AddressSpace(config)
        self.runtime = Runtime(config, self.handles, self.threads, self.counters, self.faults, self.errors)
        self.reports = Reports(self.runtime)
        self.models = ModelTable(config, self.memory, self.runtime, self.counters)

    def need_init(self) -> None:
        """145001 before aclInit: the rule of the model functions."""
        if not self.initialized:
            raise Failure(status.GE_NOT_INIT, "aclInit has not been called")

    def model(self, model_id: int) -> LoadedModel:
        """A loaded model; 145001 before aclInit, 145003 for an unknown id."""
        self.need_init()
        return self.models.get(model_id)

    def dataset(self, handle: int | None) -> Dataset:
        """The dataset of a handle; 100000 when it is null, stale or something else."""
        return self._object(handle, Dataset, "aclmdlDataset")

    def buffer(self, handle: int | None) -> DataBuffer:
        """The data buffer of a handle; 100000 when it is null, stale or something else."""
        return self._object(handle, DataBuffer, "aclDataBuffer")

    def tensor_desc(self, handle: int | None) -> TensorDesc:
        """The tensor description of a handle; 100000 when it is null, stale or something else."""
        return self._object(handle, TensorDesc, "aclTensorDesc")

    def ledger(self) -> dict[str, int]:
        """How many objects of each kind the callers have made and not destroyed."""
        blocks = Counter(block.kind for block in self.memory.blocks())
        streams = [s for s in list(self.runtime.streams) if s is not s.context.default_stream]
        return {
            "contexts": sum(1 for context in self.handles.all_of(Context) if context.explicit),
            "streams": len(streams),
            "events": len(self.handles.all_of(Event)),
            "device_allocations": blocks["device"],
            "host_allocations": blocks["host"],
            "host_registrations": blocks["registered"],
            "models": len(self.models.all()),
            "model_descs": len(self.handles.all_of(ModelDesc)),
            "datasets": len(self.handles.all_of(Dataset)),
            "data_buffers": len(self.handles.all_of(DataBuffer)),
            "tensor_descs": sum(1 for desc in self.handles.all_of(TensorDesc) if not desc.owned),
            "config_handles": len(self.handles.all_of(LoadConfig)) + len(self.handles.all_of(ExecConfig)),
            "aipp_sets": len(self.handles.all_of(AippSet)),
            "subscriptions": sum(1 for stream in list(self.runtime.streams) if stream.report_thread is not None),
        }

    def close(self) -> None:
        """Join every thread, then give all memory back."""
        self.reports.close()
        self.runtime.close()
        self.models.close()
        self.memory.close()
        self.threads.close()

    def _object(self, handle: int | None, kind: type[T], name: str) -> T:
        found = self.handles.get(handle, kind)
        if found is None:
            text = "is NULL" if handle is None else f"{handle:#x} is not a live one"
            raise Failure(status.INVALID_PARAM, f"{name} {text}")
        return found
