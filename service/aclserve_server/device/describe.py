"""Reading a loaded model's description from AscendCL, once, at load.

The output dims of every gear are read here too: the gear is set on a probe dataset (only the gear input needs memory)
and AscendCL tells the dims it leads to. Executions then need no query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from ctypes import byref, c_size_t, c_uint32
from math import prod

import numpy as np

from aclserve.errors import Unimplemented
from aclserve_server.acl import types
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.device import formats
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.description import Gear, GearKind, HiddenInput, ModelDescription, TensorInfo
from aclserve_server.device.dtypes import numpy_dtype

_ALL_INPUTS = c_size_t(-1).value
_NO_AIPP = frozenset({145015, 100038})

Shape = tuple[int, ...]


def read_description(
    library: Library, model_id: int, sizes: tuple[int, int], allocate: Callable[[int], Buffer]
) -> ModelDescription:
    """The description of a loaded model. `sizes` are its work and weight bytes; `allocate` gives device memory.

    Raises `Unimplemented` for data types and formats that cannot be served (DATA_TYPE_UNSUPPORTED, FORMAT_UNSUPPORTED).
    """
    with ExitStack() as stack:
        handle = library.aclmdlCreateDesc()
        stack.callback(library.aclmdlDestroyDesc, handle)
        library.aclmdlGetDesc(handle, model_id)
        return _Reader(library, model_id, handle, allocate).read(sizes)


def set_gear(library: Library, model_id: int, inputs: types.Dataset, gear_index: int, gear: Gear) -> None:
    """Write a gear into a dataset's gear input (AscendCL copies synchronously)."""
    match gear.kind:
        case "batch":
            library.aclmdlSetDynamicBatchSize(model_id, inputs, gear_index, gear.values[0])
        case "height_width":
            library.aclmdlSetDynamicHWSize(model_id, inputs, gear_index, gear.values[0], gear.values[1])
        case "dims":
            dims = types.aclmdlIODims(dimCount=len(gear.values))
            dims.dims[: len(gear.values)] = gear.values
            library.aclmdlSetInputDynamicDims(model_id, inputs, gear_index, byref(dims))
        case "static":
            pass


class _Reader:
    """One reading of one model."""

    def __init__(
        self, library: Library, model_id: int, handle: types.ModelDesc, allocate: Callable[[int], Buffer]
    ) -> None:
        self._library = library
        self._model_id = model_id
        self._handle = handle
        self._allocate = allocate

    def read(self, sizes: tuple[int, int]) -> ModelDescription:
        library, handle = self._library, self._handle
        inputs: list[TensorInfo] = []
        aipp: list[HiddenInput] = []
        gear_input: HiddenInput | None = None
        for index in range(library.aclmdlGetNumInputs(handle)):
            name = library.aclmdlGetInputNameByIndex(handle, index) or ""
            if name == types.ACL_DYNAMIC_TENSOR_NAME:
                gear_input = HiddenInput(index, library.aclmdlGetInputSizeByIndex(handle, index))
            elif name.startswith(types.ACL_DYNAMIC_AIPP_NAME):
                aipp.append(HiddenInput(index, library.aclmdlGetInputSizeByIndex(handle, index)))
            else:
                inputs.append(self._input(index, name))
        outputs = [self._output(index) for index in range(library.aclmdlGetNumOutputs(handle))]
        unknown = gear_input is None and any(min(info.shape, default=0) < 0 for info in (*inputs, *outputs))
        description = ModelDescription(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            gears=(),
            gear_input=gear_input,
            unknown_shape=unknown,
            work_bytes=sizes[0],
            weight_bytes=sizes[1],
            aipp_inputs=tuple(aipp),
        )
        return self._with_gears(description)

    def _input(self, index: int, name: str) -> TensorInfo:
        library, handle = self._library, self._handle
        dims = types.aclmdlIODims()
        library.aclmdlGetInputDimsV2(handle, index, byref(dims))
        size_bytes = library.aclmdlGetInputSizeByIndex(handle, index)
        if self._has_static_aipp(index):  # the image that is fed, not the tensor that AIPP makes of it
            return TensorInfo(name, np.dtype(np.uint8), "NHWC", _shape(dims), size_bytes)
        return TensorInfo(
            name,
            numpy_dtype(library.aclmdlGetInputDataType(handle, index), name),
            formats.plain_format(library.aclmdlGetInputFormat(handle, index), name),
            _shape(dims),
            size_bytes,
        )

    def _has_static_aipp(self, index: int) -> bool:
        kind, attached = c_uint32(), c_size_t()
        try:
            self._library.aclmdlGetAippType(self._model_id, index, byref(kind), byref(attached))
        except AclError as error:
            if error.code not in _NO_AIPP:
                raise
            return False
        return kind.value == types.aclmdlInputAippType.ACL_DATA_WITH_STATIC_AIPP

    def _output(self, index: int) -> TensorInfo:
        library, handle = self._library, self._handle
        name = library.aclmdlGetOutputNameByIndex(handle, index) or ""
        dims = types.aclmdlIODims()
        library.aclmdlGetOutputDims(handle, index, byref(dims))
        dtype = numpy_dtype(library.aclmdlGetOutputDataType(handle, index), name)
        acl_format = library.aclmdlGetOutputFormat(handle, index)
        size_bytes = library.aclmdlGetOutputSizeByIndex(handle, index)
        shown = formats.output_format(acl_format, name)
        shape, block = _shape(dims), 0
        if acl_format == types.aclFormat.ACL_FORMAT_NC1HWC0:
            block = formats.channel_block(shape, size_bytes, dtype.itemsize, name)
            shape = formats.visible_shape(shape, block)
        return TensorInfo(name, dtype, shown, shape, size_bytes, block)

    def _with_gears(self, found: ModelDescription) -> ModelDescription:
        if found.unknown_shape:
            return found
        if found.gear_input is None:
            shapes = tuple(info.shape for info in found.inputs), tuple(info.shape for info in found.outputs)
            gears: tuple[Gear, ...] = (Gear("static", (), *shapes),)
        else:
            gears = self._probe(found, found.gear_input)
        return ModelDescription(
            inputs=found.inputs,
            outputs=tuple(_largest(info, index, gears) for index, info in enumerate(found.outputs)),
            gears=gears,
            gear_input=found.gear_input,
            unknown_shape=False,
            work_bytes=found.work_bytes,
            weight_bytes=found.weight_bytes,
            aipp_inputs=found.aipp_inputs,
        )

    def _probe(self, found: ModelDescription, gear_input: HiddenInput) -> tuple[Gear, ...]:
        kind, choices = self._gear_values()
        with self._allocate(gear_input.size_bytes) as room:
            entries = [(0, 0)] * found.input_count
            entries[gear_input.position] = (room.address, room.size_bytes)
            with Dataset.create(self._library, entries) as inputs:
                return tuple(self._gear(found, inputs, gear_input, kind, values) for values in choices)

    def _gear(
        self, found: ModelDescription, inputs: Dataset, gear_input: HiddenInput, kind: GearKind, values: Shape
    ) -> Gear:
        gear = Gear(kind, values, gear_input_shapes(kind, values, [info.shape for info in found.inputs]), ())
        set_gear(self._library, self._model_id, inputs.handle, gear_input.position, gear)
        output_shapes = []
        for index, info in enumerate(found.outputs):
            dims = types.aclmdlIODims()
            self._library.aclmdlGetCurOutputDims(self._handle, index, byref(dims))
            shape = formats.visible_shape(_shape(dims), info.channel_block)
            if min(shape, default=0) < 0:
                raise Unimplemented(
                    f"output {info.name!r} has the shape {list(shape)} with gear {list(values)}: "
                    "a model with gears whose output shape is known only after the run cannot be served",
                    reason="MODEL_SHAPE_UNSUPPORTED",
                )
            output_shapes.append(shape)
        return Gear(kind, values, gear.input_shapes, tuple(output_shapes))

    def _gear_values(self) -> tuple[GearKind, list[Shape]]:
        """What the model was compiled for: exactly one of the three kinds."""
        library, handle = self._library, self._handle
        batch = types.aclmdlBatch()
        library.aclmdlGetDynamicBatch(handle, byref(batch))
        if batch.batchCount:
            return "batch", [(size,) for size in batch.batch[: batch.batchCount]]
        sizes = types.aclmdlHW()
        library.aclmdlGetDynamicHW(handle, _ALL_INPUTS, byref(sizes))
        if sizes.hwCount:
            return "height_width", [(pair[0], pair[1]) for pair in sizes.hw[: sizes.hwCount]]
        count = c_size_t()
        library.aclmdlGetInputDynamicGearCount(handle, _ALL_INPUTS, byref(count))
        dims = (types.aclmdlIODims * max(count.value, 1))()
        if count.value:
            library.aclmdlGetInputDynamicDims(handle, _ALL_INPUTS, dims, count.value)
        return "dims", [_shape(dims[index]) for index in range(count.value)]


def gear_input_shapes(kind: GearKind, values: Shape, shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """The input shapes of a gear, from the shapes of the description with -1 in the chosen axes.

    A batch stands in axis 0; height and width stand in the two open axes in order; dims are those of all inputs in
    turn.
    """
    result: list[Shape] = []
    rest = iter(values)
    for shape in shapes:
        match kind:
            case "dims":
                result.append(tuple(next(rest) for _ in shape))
            case "height_width" if shape.count(-1) == 2:
                chosen = iter(values)
                result.append(tuple(next(chosen) if dim == -1 else dim for dim in shape))
            case "batch" if shape and shape[0] == -1:
                result.append((values[0], *shape[1:]))
            case _:
                result.append(shape)
    return tuple(result)


def _largest(info: TensorInfo, index: int, gears: tuple[Gear, ...]) -> TensorInfo:
    """The output with room for its largest gear, should AscendCL's own size fall short of it or be unknown (0)."""
    needed = max(
        (prod(formats.storage_shape(gear.output_shapes[index], info.channel_block)) for gear in gears), default=0
    )
    size_bytes = max(info.size_bytes, needed * info.dtype.itemsize)
    return TensorInfo(info.name, info.dtype, info.format, info.shape, size_bytes, info.channel_block)


def _shape(dims: types.aclmdlIODims) -> Shape:
    return tuple(dims.dims[: dims.dimCount])
