"""Executing models and choosing their gears."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from aclserve_server.acl.types import ACL_MAX_BATCH_NUM, ACL_MAX_HW_NUM, aclmdlExecConfigAttr
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.describe_calls import DescribeCalls
from aclserve_server.emulator.execution import Execution, check_context
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.gears import GearSet
from aclserve_server.emulator.machine import Machine
from aclserve_server.emulator.objects import ExecConfig

_ALL_INPUTS = (1 << 64) - 1  # (size_t)-1


class ExecuteCalls(Calls):
    """acl/acl_mdl.h: aclmdlExecute to aclmdlExecuteAsyncV2, aclmdlSetDynamicBatchSize to aclmdlGetInputDynamicDims."""

    def __init__(self, machine: Machine, describing: DescribeCalls) -> None:
        super().__init__(machine)
        self._describing = describing

    def aclmdlExecute(self, model_id: int, inputs: int | None, outputs: int | None) -> None:
        execution = self._prepare(model_id, inputs, outputs)
        model = self.machine.models.get(model_id)
        task = execution.task("aclmdlExecute")
        task.device = model.context.device.number
        model.exclusion.admit(self.runtime, task, None)
        self._as_synchronous(lambda: self.runtime.run_now(task))

    def aclmdlExecuteAsync(self, model_id: int, inputs: int | None, outputs: int | None, stream: int | None) -> None:
        self._submit("aclmdlExecuteAsync", model_id, inputs, outputs, stream)

    def aclmdlExecuteV2(
        self, model_id: int, inputs: int | None, outputs: int | None, stream: int | None, config: int | None
    ) -> None:
        options = self._exec_config(config).options if config is not None else {}
        timeout = options.get(aclmdlExecConfigAttr.ACL_MDL_STREAM_SYNC_TIMEOUT, -1)
        execution = self._prepare(model_id, inputs, outputs)
        target = self.runtime.stream(stream)
        self.machine.models.get(model_id).exclusion.admit(self.runtime, execution.task("aclmdlExecuteV2"), target)
        self._as_synchronous(lambda: self.runtime.synchronize(target, timeout))

    def aclmdlExecuteAsyncV2(
        self, model_id: int, inputs: int | None, outputs: int | None, stream: int | None, config: int | None
    ) -> None:
        if config is not None:
            self._exec_config(config)
        self._submit("aclmdlExecuteAsyncV2", model_id, inputs, outputs, stream)

    def aclmdlCreateExecConfigHandle(self) -> int:
        return self.machine.handles.add(ExecConfig())

    def aclmdlDestroyExecConfigHandle(self, handle: int | None) -> None:
        self._exec_config(handle)
        self.machine.handles.remove(handle or 0)

    def aclmdlSetExecConfigOpt(self, handle: int | None, attribute: int, value: int | None, size: int) -> None:
        config = self._exec_config(handle)
        need(value, "attrValue")
        if attribute not in list(aclmdlExecConfigAttr):
            raise refuse(f"execution option {attribute} is not known")
        kinds: dict[int, Any] = {4: ctypes.c_int32, 8: ctypes.c_int64}
        if size not in kinds:
            raise refuse(f"valueSize is {size}, expected 4 or 8")
        config.options[attribute] = kinds[size].from_address(value).value

    # ---- gears

    def aclmdlSetDynamicBatchSize(self, model_id: int, dataset: int | None, index: int, batch: int) -> None:
        if batch == 0:
            raise refuse("the batch size is 0")
        self._set_gear(model_id, dataset, index, "batch", (batch,))

    def aclmdlSetDynamicHWSize(self, model_id: int, dataset: int | None, index: int, height: int, width: int) -> None:
        if height == 0 or width == 0:
            raise refuse("height or width is 0")
        self._set_gear(model_id, dataset, index, "height_width", (height, width))

    def aclmdlSetInputDynamicDims(self, model_id: int, dataset: int | None, index: int, dims: Any) -> None:
        need(dims, "dims")
        count = dims.contents.dimCount
        if count == 0:
            raise refuse("dimCount is 0")
        if count > len(dims.contents.dims):
            raise Failure(status.STORAGE_OVER_LIMIT, f"dimCount is {count}")
        self._set_gear(model_id, dataset, index, "dims", tuple(dims.contents.dims[:count]))

    def aclmdlGetDynamicBatch(self, desc: int | None, batch: Any) -> None:
        gears = self._gears_of(desc, "batch")
        need(batch, "batch")
        record = batch.contents
        record.batchCount = len(gears)
        _check_room(len(gears), ACL_MAX_BATCH_NUM)
        for position, values in enumerate(gears):
            record.batch[position] = values[0]

    def aclmdlGetDynamicHW(self, desc: int | None, index: int, sizes: Any) -> None:
        gears = self._gears_of(desc, "height_width")
        need(sizes, "hw")
        if index not in (_ALL_INPUTS, 0):
            raise refuse(f"index is {index}, expected -1")
        record = sizes.contents
        record.hwCount = len(gears)
        _check_room(len(gears), ACL_MAX_HW_NUM)
        for position, values in enumerate(gears):
            record.hw[position][0], record.hw[position][1] = values

    def aclmdlGetInputDynamicGearCount(self, desc: int | None, index: int, count: Any) -> None:
        gears = self._gears_of(desc, "dims")
        need(count, "gearCount")
        if index != _ALL_INPUTS:
            raise refuse(f"index is {index}, expected -1")
        count[0] = len(gears)

    def aclmdlGetInputDynamicDims(self, desc: int | None, index: int, dims: Any, count: int) -> None:
        gears = self._gears_of(desc, "dims")
        need(dims, "dims")
        if index != _ALL_INPUTS or count < len(gears):
            raise refuse(f"index is {index}, expected -1; room for {count} gears, the model has {len(gears)}")
        for position, values in enumerate(gears):
            dims[position].dimCount = len(values)
            dims[position].dims[: len(values)] = values

    # ---- inside

    def _prepare(self, model_id: int, inputs: int | None, outputs: int | None) -> Execution:
        self.machine.need_init()
        source, target = self.machine.dataset(inputs), self.machine.dataset(outputs)
        model = self.machine.models.get(model_id)
        check_context(model, self.runtime.current())
        return Execution(self.machine, model, source, target)

    def _submit(
        self, function: str, model_id: int, inputs: int | None, outputs: int | None, stream: int | None
    ) -> None:
        execution = self._prepare(model_id, inputs, outputs)
        if execution.allocates:
            raise Failure(
                status.GE_PARAM_INVALID,
                "an output buffer is NULL: the library allocates outputs in synchronous executions only",
            )
        target = self.runtime.stream(stream)
        self.machine.models.get(model_id).exclusion.admit(self.runtime, execution.task(function), target)

    def _as_synchronous(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Failure as failure:
            if self.config.release >= (8, 5):
                raise Failure(status.GE_FAILURE, f"{failure.text} (device code {failure.code})") from None
            raise

    def _exec_config(self, handle: int | None) -> ExecConfig:
        config = self.machine.handles.get(handle, ExecConfig)
        if config is None:
            raise refuse("not a live aclmdlExecConfigHandle")
        return config

    def _set_gear(
        self, model_id: int, dataset_handle: int | None, index: int, kind: str, values: tuple[int, ...]
    ) -> None:
        dataset = self.machine.dataset(dataset_handle)
        model = self.machine.model(model_id)
        self.runtime.current()
        if index >= len(dataset.buffers) or dataset.buffers[index].address is None:
            raise refuse(
                f"index {index} is outside the dataset's {len(dataset.buffers)} buffers, or its address is NULL"
            )
        gears = model.program.gears
        if gears is None or gears.kind != kind:
            have = "no gears" if gears is None else f"gears of kind {gears.kind}"
            raise Failure(status.GE_GEAR_INVALID, f"the model has {have}, not of kind {kind}")
        if index != len(model.program.inputs):
            raise refuse(f"index is {index}, the gear input is {len(model.program.inputs)}")
        self._check_gear_buffer(dataset.buffers[index].size_bytes, gears, len(values))
        if kind != "dims":
            dataset.gear = values
        gear = gears.by_values.get(values)
        if gear is None:
            known = ", ".join(str(gear.values) for gear in gears.gears)
            raise Failure(status.GE_GEAR_INVALID, f"{values} is no gear of the model, it has {known}")
        self._write_gear(dataset.buffers[index].address or 0, dataset.buffers[index].size_bytes, values)
        dataset.gear = values
        model.gear = gear

    def _check_gear_buffer(self, size: int, gears: GearSet, count: int) -> None:
        if count != gears.value_count:
            raise Failure(
                status.GE_DYNAMIC_INPUT_LENGTH,
                f"{count} numbers given, the gears of the model have {gears.value_count}",
            )
        if size < 4 * count:
            raise Failure(status.GE_DYNAMIC_INPUT_LENGTH, f"the gear buffer has {size} bytes, {4 * count} are needed")

    def _write_gear(self, address: int, size: int, values: tuple[int, ...]) -> None:
        count = len(values)
        kind = ctypes.c_int64 if size >= 8 * count else ctypes.c_int32
        length = count * ctypes.sizeof(kind)
        block = self.memory.block_at(address)
        if block is None or block.kind != "device" or address - block.address + length > block.usable_bytes:
            raise Failure(status.RT_PARAM_INVALID, f"the gear buffer at {address:#x} is not live device memory")
        (kind * count).from_address(block.pointer + address - block.address)[:] = values

    def _gears_of(self, handle: int | None, kind: str) -> list[tuple[int, ...]]:
        program = self._describing.find(handle).program
        gears = program.gears if program is not None else None
        return [gear.values for gear in gears.gears] if gears is not None and gears.kind == kind else []


def _check_room(count: int, limit: int) -> None:
    if count > limit:
        raise Failure(status.STORAGE_OVER_LIMIT, f"{count} gears, at most {limit} can be described")
