"""Executing a model: what is checked at the call, what is read and written when the task runs.

The hot path is a warm dataset: its buffers and gear have been seen before, so the ONNX Runtime binding made
then is used again; all that is checked is that the memory blocks behind it still live.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from aclserve_server.emulator import status
from aclserve_server.emulator.entities import Context, Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.gears import Gear, Shape, TensorInfo
from aclserve_server.emulator.machine import Machine
from aclserve_server.emulator.memory import ALIGNMENT, Block, copy_bytes
from aclserve_server.emulator.models import BINDING_LIMIT, Binding, LoadedModel
from aclserve_server.emulator.tensors import Dataset, TensorDesc, volume

Place = tuple[int | None, int]  # address and size of a data buffer
_SHORT_TOLERATED = 64


class Execution:
    """One execution of one model on the buffers two datasets had when it was submitted."""

    def __init__(self, machine: Machine, model: LoadedModel, inputs: Dataset, outputs: Dataset) -> None:
        self._machine = machine
        self._model = model
        self._outputs = outputs
        self.sources = self._places(inputs)
        self.targets = self._places(outputs)
        self._shapes: tuple[Shape, ...] | None = None
        self._check(inputs)
        gears = model.program.gears
        self._planned = gears.by_values.get(inputs.gear) if gears is not None and inputs.gear is not None else None

    @property
    def allocates(self) -> bool:
        """Whether an output is left to the library."""
        return any(address is None for address, _ in self.targets)

    def task(self, function: str) -> Task:
        """The task that runs this execution."""
        return Task(function, self.run, self.poison, rows=self._rows(self._planned), owner=self._model.model_id)

    def run(self) -> None:
        """Read the gear, execute in place, count."""
        gear = self._gear()
        program = self._model.program
        if program.unknown_shape or self.allocates:
            self._run_unbound(gear)
        else:
            key = (gear.values if gear is not None else (), *self.sources, *self.targets)
            bindings = self._model.bindings
            binding = bindings.get(key)
            if binding is None or not all(block.live for block in binding.blocks):
                binding = bindings[key] = self._bind(gear)
                if len(bindings) > BINDING_LIMIT:
                    bindings.popitem(last=False)
            self._launch(binding.binding)
        self._machine.counters.count_execution(self._rows(gear))

    def poison(self) -> None:
        """What a failure leaves: outputs full of poison, as far as their memory still lives."""
        memory = self._machine.memory
        for address, size in self.targets:
            block = memory.usable_at(address) if address is not None else None
            if block is not None and address is not None:
                offset = address - block.address
                memory.poison(block.pointer + offset, min(size, block.usable_bytes - offset))

    # ---- checks of the call

    def _places(self, dataset: Dataset) -> list[Place]:
        places = []
        for index, buffer in enumerate(dataset.buffers):
            if not buffer.handle:
                raise Failure(status.INVALID_PARAM, f"data buffer {index} of the dataset has been destroyed")
            places.append((buffer.address, buffer.size_bytes))
        return places

    def _check(self, inputs: Dataset) -> None:
        program = self._model.program
        extra = program.gears is not None
        self._check_count("input", self.sources, len(program.inputs) + extra)
        self._check_count("output", self.targets, len(program.outputs))
        if program.unknown_shape:
            self._shapes = tuple(self._real_shape(inputs, index) for index in range(len(program.inputs)))
        if not extra:
            self._check_lengths("input", program.inputs, self.sources, self._shapes)
            self._check_lengths("output", program.outputs, self.targets, None)
        for address, _ in (*self.sources, *self.targets):
            if address is not None and address % ALIGNMENT:
                raise Failure(
                    status.RT_ADDR_UNALIGNED, f"model buffer at {address:#x} is not aligned to {ALIGNMENT} bytes"
                )
        old = self._machine.config.release < (8, 5)
        if old and any(address is None for address, _ in self.sources):
            raise self._refusal("an input data buffer has a NULL address")

    def _check_count(self, kind: str, places: Sequence[Place], expected: int) -> None:
        if len(places) != expected:
            raise self._refusal(f"the {kind} dataset has {len(places)} buffers, the model has {expected} {kind}s")

    def _check_lengths(
        self, kind: str, tensors: Sequence[TensorInfo], places: Sequence[Place], shapes: Sequence[Shape] | None
    ) -> None:
        for index, tensor in enumerate(tensors):
            shape = shapes[index] if shapes is not None else tensor.shape
            address, size = places[index]
            if any(dim < 0 for dim in shape) or (kind == "output" and address is None and size == 0):
                continue
            need = volume(shape) * tensor.item_bytes
            if size + _SHORT_TOLERATED < need:
                raise self._refusal(f"{kind} {tensor.name!r} has a buffer of {size} bytes, it needs {need}")

    def _real_shape(self, inputs: Dataset, index: int) -> Shape:
        tensor = self._model.program.inputs[index]
        if tensor.static:
            return tensor.shape
        desc = inputs.descs.get(index)
        if desc is None:
            raise self._refusal(f"input {tensor.name!r} is dynamic and has no shape: call aclmdlSetDatasetTensorDesc")
        if not fits(tensor, desc.dims):
            text = f"shape {desc.dims} of input {tensor.name!r} does not fit the model's {tensor.shape}"
            raise Failure(status.INVALID_PARAM, text)
        return desc.dims

    def _refusal(self, text: str) -> Failure:
        old = self._machine.config.release < (8, 5)
        return Failure(status.GE_PARAM_INVALID, text) if old else Failure(status.GE_FAILURE, f"E13025: {text}")

    # ---- the run

    def _gear(self) -> Gear | None:
        gears = self._model.program.gears
        if gears is None:
            return None
        address, size = self.sources[-1]
        count = gears.value_count
        width = 8 if size >= 8 * count else 4
        pointer = self._pointer("the gear input", address, size, width * count)[0]
        kind = ctypes.c_int64 if width == 8 else ctypes.c_int32
        values = tuple((kind * count).from_address(pointer))
        gear = gears.by_values.get(values)
        if gear is None:
            raise Failure(status.RT_MODEL_EXECUTE, f"the gear input holds {values}, which is no gear: was one set?")
        return gear

    def _pointer(self, what: str, address: int | None, size: int, need: int) -> tuple[int, Block]:
        block = self._machine.memory.usable_at(address) if address is not None else None
        if block is None or address is None:
            raise Failure(status.RT_MODEL_EXECUTE, f"{what} is at {address or 0:#x}, which is not live device memory")
        offset = address - block.address
        if size + _SHORT_TOLERATED < need or offset + need > block.usable_bytes:
            raise Failure(status.RT_MODEL_EXECUTE, f"{what} has {size} bytes at {address:#x}, the model needs {need}")
        if block.kind == "host" and not self._machine.config.unified:
            raise Failure(status.RT_MODEL_EXECUTE, f"{what} is at {address:#x}, which is host memory")
        if block.device != self._model.context.device.number:
            raise Failure(status.RT_MODEL_EXECUTE, f"{what} is memory of device {block.device}")
        return block.pointer + offset, block

    def _bind(self, gear: Gear | None) -> Binding:
        program = self._model.program
        binding = program.session.io_binding()
        blocks: list[Block] = []
        written: list[tuple[int, int]] = []
        read: list[tuple[int, int]] = []
        groups = (
            (program.inputs, gear.input_shapes if gear else None, self.sources, binding.bind_input, read),
            (program.outputs, gear.output_shapes if gear else None, self.targets, binding.bind_output, written),
        )
        for tensors, shapes, places, bind, ranges in groups:
            for index, tensor in enumerate(tensors):
                shape = shapes[index] if shapes is not None else tensor.shape
                need = volume(shape) * tensor.item_bytes
                pointer, block = self._pointer(f"tensor {tensor.name!r}", *places[index], need)
                bind(tensor.name, "cpu", 0, tensor.element_type, shape, pointer)
                blocks.append(block)
                ranges.append((pointer, pointer + need))
        _check_overlap(read, written)
        self._machine.counters.count_binding()
        return Binding(binding, tuple(blocks))

    def _launch(self, binding: object) -> None:
        try:
            self._model.program.session.run_with_iobinding(binding)
        except Exception as error:
            raise Failure(status.RT_MODEL_EXECUTE, f"the model failed while running: {error}") from None

    def _run_unbound(self, gear: Gear | None) -> None:
        program = self._model.program
        shapes = gear.input_shapes if gear is not None else self._shapes
        binding = program.session.io_binding()
        for index, tensor in enumerate(program.inputs):
            shape = shapes[index] if shapes is not None else tensor.shape
            need = volume(shape) * tensor.item_bytes
            pointer, _ = self._pointer(f"input {tensor.name!r}", *self.sources[index], need)
            binding.bind_input(tensor.name, "cpu", 0, tensor.element_type, shape, pointer)
        for tensor in program.outputs:
            binding.bind_output(tensor.name, "cpu")
        self._launch(binding)
        values = list(binding._iobinding.get_outputs())
        for index, (tensor, value) in enumerate(zip(program.outputs, values, strict=True)):
            self._hand_out(index, tensor, tuple(value.shape()), value.data_ptr())

    def _hand_out(self, index: int, tensor: TensorInfo, shape: Shape, result: int) -> None:
        need = volume(shape) * tensor.item_bytes
        address, size = self.targets[index]
        memory = self._machine.memory
        if address is None:
            block = memory.allocate(self._model.context.device.number, max(need, 1))
            pointer = block.pointer
            buffer = self._outputs.buffers[index]
            buffer.address, buffer.size_bytes = block.address, need
        else:
            if size < need:
                text = f"output {tensor.name!r} of shape {shape} needs {need} bytes, its buffer has {size}"
                raise self._refusal(text)
            pointer, _ = self._pointer(f"output {tensor.name!r}", address, size, need)
        copy_bytes(pointer, result, need)
        desc = self._outputs.descs.get(index)
        if desc is None:
            self._outputs.descs[index] = TensorDesc(tensor.data_type, shape, owned=True)
        else:
            desc.data_type, desc.dims = tensor.data_type, shape

    def _rows(self, gear: Gear | None) -> int:
        program = self._model.program
        shapes: Sequence[Shape] = gear.input_shapes if gear else self._shapes or [t.shape for t in program.inputs]
        return shapes[0][0] if shapes and shapes[0] and shapes[0][0] > 0 else 1


def fits(tensor: TensorInfo, dims: Sequence[int]) -> bool:
    """Whether real dims agree with what the model file says of a tensor."""
    if any(size < 0 for size in dims):
        return False
    if tensor.unknown_rank:
        return True
    return len(dims) == len(tensor.dims) and all(
        known is None or known == size for known, size in zip(tensor.dims, dims, strict=True)
    )


def check_context(model: LoadedModel, context: Context) -> None:
    """107004 unless the model was loaded in this context. A model whose context is gone belongs to its device."""
    gone = not model.context.live and model.context.device is context.device
    if model.context is not context and not gone:
        raise Failure(status.RT_MODEL_CONTEXT, f"{model} was loaded in another context than the current one")


def _check_overlap(read: Sequence[tuple[int, int]], written: Sequence[tuple[int, int]]) -> None:
    for index, (start, end) in enumerate(written):
        others = (*read, *written[:index])
        if any(low < end and start < high for low, high in others):
            raise Failure(status.RT_MODEL_EXECUTE, "an output buffer overlaps another buffer of the same execution")
