"""Model descriptions: names, types, formats, dims and sizes."""

from __future__ import annotations

from typing import Any

from aclserve_server.acl.types import (
    ACL_DYNAMIC_TENSOR_NAME,
    ACL_MAX_DIM_CNT,
    ACL_MAX_TENSOR_NAME_LEN,
    aclDataType,
    aclFormat,
)
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.gears import Shape, TensorInfo
from aclserve_server.emulator.load_calls import LoadCalls
from aclserve_server.emulator.machine import Machine
from aclserve_server.emulator.objects import ModelDesc
from aclserve_server.emulator.program import Program


class DescribeCalls(Calls):
    """acl/acl_mdl.h: aclmdlCreateDesc, aclmdlGetDesc and the functions that read a description."""

    def __init__(self, machine: Machine, loading: LoadCalls) -> None:
        super().__init__(machine)
        self._loading = loading
        self._nameless = ModelDesc()

    def aclmdlCreateDesc(self) -> int:
        return self.machine.handles.add(ModelDesc())

    def aclmdlDestroyDesc(self, handle: int | None) -> None:
        self.find(handle)
        self.machine.handles.remove(handle or 0)

    def aclmdlGetDesc(self, handle: int | None, model_id: int) -> None:
        desc = self.find(handle)
        model = self.machine.model(model_id)
        desc.program, desc.model, desc.model_id = model.program, model, model_id

    def aclmdlGetDescFromFile(self, handle: int | None, path: bytes | None) -> None:
        desc = self.find(handle)
        desc.program, desc.model, desc.model_id = self._loading.program_of_file(path), None, 0

    def aclmdlGetDescFromMem(self, handle: int | None, model: int | None, size: int) -> None:
        desc = self.find(handle)
        desc.program, desc.model, desc.model_id = self._loading.program_of_content(model, size), None, 0

    # ---- counts, sizes, names, types

    def aclmdlGetNumInputs(self, handle: int | None) -> int:
        return len(self._tensors(handle, output=False))

    def aclmdlGetNumOutputs(self, handle: int | None) -> int:
        return len(self._tensors(handle, output=True))

    def aclmdlGetInputSizeByIndex(self, handle: int | None, index: int) -> int:
        return self._size(handle, index, output=False)

    def aclmdlGetOutputSizeByIndex(self, handle: int | None, index: int) -> int:
        return self._size(handle, index, output=True)

    def aclmdlGetInputNameByIndex(self, handle: int | None, index: int) -> int:
        return self._name(handle, index, output=False)

    def aclmdlGetOutputNameByIndex(self, handle: int | None, index: int) -> int:
        return self._name(handle, index, output=True)

    def aclmdlGetInputFormat(self, handle: int | None, index: int) -> int:
        return self._format(handle, index, output=False)

    def aclmdlGetOutputFormat(self, handle: int | None, index: int) -> int:
        return self._format(handle, index, output=True)

    def aclmdlGetInputDataType(self, handle: int | None, index: int) -> int:
        return self._data_type(handle, index, output=False)

    def aclmdlGetOutputDataType(self, handle: int | None, index: int) -> int:
        return self._data_type(handle, index, output=True)

    def aclmdlGetInputIndexByName(self, handle: int | None, name: bytes | None, index: Any) -> None:
        self._index(handle, name, index, output=False)

    def aclmdlGetOutputIndexByName(self, handle: int | None, name: bytes | None, index: Any) -> None:
        self._index(handle, name, index, output=True)

    def aclmdlGetTensorRealName(self, handle: int | None, name: bytes | None) -> int | None:
        desc = self.machine.handles.get(handle, ModelDesc)
        if desc is None or name is None:
            return None
        for output in (False, True):
            for index, tensor in enumerate(self._tensors(handle, output)):
                if name.decode(errors="replace") in (tensor.name, _short_name(desc, tensor.name, index, output)):
                    return desc.text(tensor.name)
        return None

    def aclmdlGetOpAttr(self, handle: int | None, operator: bytes | None, attribute: bytes | None) -> int | None:
        desc = self.find(handle)
        return desc.text("")

    # ---- dims

    def aclmdlGetInputDims(self, handle: int | None, index: int, dims: Any) -> None:
        self._dims(handle, index, dims, output=False)

    def aclmdlGetInputDimsV2(self, handle: int | None, index: int, dims: Any) -> None:
        self._dims(handle, index, dims, output=False)

    def aclmdlGetOutputDims(self, handle: int | None, index: int, dims: Any) -> None:
        self._dims(handle, index, dims, output=True)

    def aclmdlGetCurOutputDims(self, handle: int | None, index: int, dims: Any) -> None:
        desc, tensor = self._tensor(handle, index, output=True)
        need(dims, "dims")
        program = _filled(desc)
        if program.unknown_shape:
            raise Failure(status.API_NOT_SUPPORT, "the output dims of a model of unknown shape are known after a run")
        shape = tensor.shape
        if program.gears is not None:
            model = self.machine.model(desc.model_id) if desc.model is not None else None
            gear = (model.gear if model is not None else None) or program.gears.gears[-1]
            shape = gear.output_shapes[index]
        _write_dims(dims, _short_name(desc, tensor.name, index, True), shape)

    def aclmdlGetInputDimsRange(self, handle: int | None, index: int, ranges: Any) -> None:
        _, tensor = self._tensor(handle, index, output=False)
        need(ranges, "dimsRange")
        record = ranges.contents
        record.rangeCount = len(tensor.dims)
        for axis, size in enumerate(tensor.dims):
            record.range[axis][0] = 0 if size is None else size
            record.range[axis][1] = -1 if size is None else size

    # ---- inside

    def find(self, handle: int | None) -> ModelDesc:
        """The description of a handle; 100000 when it is null, stale or something else."""
        desc = self.machine.handles.get(handle, ModelDesc)
        if desc is None:
            raise refuse("aclmdlDesc is NULL" if handle is None else f"{handle:#x} is not a live aclmdlDesc")
        return desc

    def _tensors(self, handle: int | None, output: bool) -> tuple[TensorInfo, ...]:
        desc = self.machine.handles.get(handle, ModelDesc)
        if desc is None or desc.program is None:
            return ()
        program = desc.program
        if output:
            return program.outputs
        if program.gears is None:
            return program.inputs
        count = program.gears.value_count
        extra = TensorInfo(ACL_DYNAMIC_TENSOR_NAME, 7, int(aclDataType.ACL_INT64), 8, (count,), ("",))
        return (*program.inputs, extra)

    def _tensor(self, handle: int | None, index: int, output: bool) -> tuple[ModelDesc, TensorInfo]:
        desc = self.find(handle)
        tensors = self._tensors(handle, output)
        if index >= len(tensors):
            raise refuse(f"index {index} is outside the {len(tensors)} tensors")
        return desc, tensors[index]

    def _size(self, handle: int | None, index: int, output: bool) -> int:
        desc = self.machine.handles.get(handle, ModelDesc)
        tensors = self._tensors(handle, output)
        if desc is None or index >= len(tensors):
            return 0
        sizes = _filled(desc).sizes(output)
        return sizes[index] if index < len(sizes) else tensors[index].shape[0] * tensors[index].item_bytes

    def _name(self, handle: int | None, index: int, output: bool) -> int:
        desc = self.machine.handles.get(handle, ModelDesc)
        tensors = self._tensors(handle, output)
        if desc is None:
            return self._nameless.text("")
        return desc.text(tensors[index].name if index < len(tensors) else "")

    def _format(self, handle: int | None, index: int, output: bool) -> int:
        tensors = self._tensors(handle, output)
        if index >= len(tensors):
            return int(aclFormat.ACL_FORMAT_UNDEFINED)
        four = len(tensors[index].dims) == 4
        return int(aclFormat.ACL_FORMAT_NCHW if four else aclFormat.ACL_FORMAT_ND)

    def _data_type(self, handle: int | None, index: int, output: bool) -> int:
        tensors = self._tensors(handle, output)
        return tensors[index].data_type if index < len(tensors) else int(aclDataType.ACL_DT_UNDEFINED)

    def _index(self, handle: int | None, name: bytes | None, index: Any, output: bool) -> None:
        self.find(handle)
        need(index, "index")
        need(name is not None, "name")
        wanted = (name or b"").decode(errors="replace")
        for position, tensor in enumerate(self._tensors(handle, output)):
            if tensor.name == wanted:
                index[0] = position
                return
        raise refuse(f"the model has no {'output' if output else 'input'} named {wanted!r}")

    def _dims(self, handle: int | None, index: int, dims: Any, output: bool) -> None:
        desc, tensor = self._tensor(handle, index, output)
        need(dims, "dims")
        shape = tensor.shape
        program = _filled(desc)
        if program.gears is not None and output:
            shape = program.gears.gears[-1].output_shapes[index]
        _write_dims(dims, _short_name(desc, tensor.name, index, output), shape)


def _filled(desc: ModelDesc) -> Program:
    if desc.program is None:
        raise refuse("the model description is empty")
    return desc.program


def _short_name(desc: ModelDesc, name: str, index: int, output: bool) -> str:
    if len(name.encode()) < ACL_MAX_TENSOR_NAME_LEN:
        return name
    return f"acl_modelId_{desc.model_id}_{'output' if output else 'input'}_{index}"


def _write_dims(out: Any, name: str, shape: Shape) -> None:
    if len(shape) > ACL_MAX_DIM_CNT:
        raise Failure(status.STORAGE_OVER_LIMIT, f"{len(shape)} dims, at most {ACL_MAX_DIM_CNT} can be described")
    record = out.contents
    record.name = name.encode()
    record.dimCount = len(shape)
    record.dims[: len(shape)] = shape
