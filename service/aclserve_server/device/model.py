"""Loaded models, executed at once or in a stream."""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING

from aclserve.errors import InvalidArgument
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.describe import read_description, set_gear
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.device.loading import (
    Judge,
    ModelMemory,
    ModelSource,
    check_memory,
    load_image,
    no_objection,
    placed,
    query_size_or_unknown,
)
from aclserve_server.device.owned import Owned
from aclserve_server.device.streams import Stream

if TYPE_CHECKING:
    from aclserve_server.device.device import Device


class Model(Owned):
    """One loaded model id. Load, execute and unload with the device's context current.

    Never execute one model on two streams at once, nor close it while it runs.
    """

    def __init__(
        self,
        device: Device,
        model_id: int,
        description: ModelDescription,
        resources: ExitStack,
        memory: ModelMemory,
    ) -> None:
        super().__init__("model")
        self.device = device
        self._memory = memory
        self.description = description
        self._id = model_id
        self._resources = resources
        device.children.add("model", self)

    @classmethod
    def load(cls, device: Device, source: ModelSource, memory: ModelMemory, judge: Judge = no_objection) -> Model:
        """Load and describe; see `Device.load_model`."""
        with ExitStack() as stack:
            image = stack.enter_context(placed(device, source))
            sizes = query_size_or_unknown(device, image)
            check_memory(memory, sizes)
            judge(*sizes)
            for buffer in memory.buffers():
                buffer.lend()
                stack.callback(buffer.take_back)
            model_id = load_image(device, image, memory)
            stack.callback(device.library.aclmdlUnload, model_id)
            description = read_description(device.library, model_id, sizes, device.allocate)
            return cls(device, model_id, description, stack.pop_all(), memory)

    @property
    def id(self) -> int:
        """AscendCL's model id."""
        self._require_open()
        return self._id

    @property
    def own_bytes(self) -> int:
        """The device memory that AscendCL gave it, beside what its caller did; 0 where AscendCL cannot tell."""
        work, weight = self.description.work_bytes, self.description.weight_bytes
        return (0 if self._memory.work else work) + (0 if self._memory.weight else weight)

    def set_gear(self, inputs: Dataset, gear: Gear) -> None:
        """Choose the gear of the next execution with this dataset; call it before every submission.

        Nothing for static models. AscendCL writes the gear input of the dataset with a synchronous copy.
        """
        self._require_open()
        gear_input = self.description.gear_input
        if gear_input is not None:
            set_gear(self.device.library, self._id, inputs.handle, gear_input.position, gear)

    def execute(self, inputs: Dataset, outputs: Dataset) -> None:
        """Run and wait. Outputs of models of unknown shape may be (0, 0): AscendCL allocates, `take` hands over.

        Raises `InvalidArgument`, reason DATASET_MISMATCH, before the call when counts or sizes do not fit, and
        `AclError` when the run fails.
        """
        self._check(inputs, outputs, synchronous=True)
        self.device.library.aclmdlExecute(self.id, inputs.handle, outputs.handle)

    def execute_async(self, inputs: Dataset, outputs: Dataset, stream: Stream) -> None:
        """Submit a run. Datasets and memory stay as they are until it is past; a failure shows at `synchronize`."""
        self._check(inputs, outputs, synchronous=False)
        self.device.library.aclmdlExecuteAsync(self.id, inputs.handle, outputs.handle, stream.handle)

    def _check(self, inputs: Dataset, outputs: Dataset, synchronous: bool) -> None:
        """Look at a dataset once; again only after it changed."""
        if inputs.checked_for is not self.description:
            self._check_inputs(inputs)
            inputs.checked_for = self.description
        mark = (self.description, synchronous)
        if outputs.checked_for != mark:
            self._check_outputs(outputs, synchronous)
            outputs.checked_for = mark

    def _check_inputs(self, inputs: Dataset) -> None:
        description = self.description
        sizes = inputs.sizes_bytes
        _require_count("inputs", len(sizes), description.input_count)
        for index, info in zip(description.input_indices, description.inputs, strict=True):
            if index in inputs.short:
                continue
            needed = info.size_bytes
            if description.unknown_shape and -1 in info.shape:
                needed = _given_bytes(info, inputs.given_shapes.get(index))
            _require_bytes(f"input {info.name!r}", sizes[index], needed)
        for hidden in description.hidden_inputs:
            _require_bytes(f"input {hidden.position}", sizes[hidden.position], hidden.size_bytes)

    def _check_outputs(self, outputs: Dataset, synchronous: bool) -> None:
        description = self.description
        sizes = outputs.sizes_bytes
        _require_count("outputs", len(sizes), len(description.outputs))
        for index, (size_bytes, info) in enumerate(zip(sizes, description.outputs, strict=True)):
            if index in outputs.short:
                continue
            if not description.unknown_shape:
                _require_bytes(f"output {info.name!r}", size_bytes, info.size_bytes)
            elif size_bytes == 0 and not synchronous:
                raise InvalidArgument(
                    f"output {info.name!r} has no buffer; only a synchronous execution lets AscendCL allocate it",
                    reason="DATASET_MISMATCH",
                )

    def _release(self) -> None:
        self.device.children.discard("model", self)
        self._resources.close()


def _given_bytes(info: TensorInfo, shape: tuple[int, ...] | None) -> int:
    if shape is None:
        raise InvalidArgument(
            f"input {info.name!r} has the shape {list(info.shape)}; its real shape must be set before each execution",
            reason="DATASET_MISMATCH",
        )
    fits = len(shape) == len(info.shape) and all(
        dim == declared or declared == -1 for dim, declared in zip(shape, info.shape, strict=True)
    )
    if not fits or min(shape, default=0) < 0:
        raise InvalidArgument(
            f"input {info.name!r} was given the shape {list(shape)}; the model takes {list(info.shape)}",
            reason="DATASET_MISMATCH",
        )
    return prod(shape) * info.dtype.itemsize


def _require_count(side: str, got: int, expected: int) -> None:
    if got != expected:
        raise InvalidArgument(
            f"the dataset has {got} buffers; the model has {expected} {side}", reason="DATASET_MISMATCH"
        )


def _require_bytes(what: str, got: int, needed: int) -> None:
    if got < needed:
        raise InvalidArgument(
            f"the buffer of {what} has {got} bytes; the model takes {needed}",
            reason="DATASET_MISMATCH",
            metadata={"given_bytes": got, "needed_bytes": needed},
        )
