"""Datasets with memory, as the tests use them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve_server.device.buffers import Buffer
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.description import Gear
from aclserve_server.device.device import Device
from aclserve_server.device.model import Model

Array = NDArray[Any]


def live(emulator: Any) -> dict[str, int]:
    """What the emulated device still holds."""
    return {kind: count for kind, count in emulator.ledger().items() if count}


def write(device: Device, buffer: Buffer, array: Array) -> None:
    """Fill a device buffer through pinned host memory."""
    if array.nbytes:
        with device.allocate_host(array.nbytes) as staging:
            staging.view()[:] = np.ascontiguousarray(array).tobytes()
            device.copy(buffer, 0, staging, 0, array.nbytes)


def read(device: Device, buffer: Buffer, dtype: Any, shape: Sequence[int]) -> Array:
    """A copy of a device buffer's leading bytes."""
    count = prod(shape) * np.dtype(dtype).itemsize
    if not count:
        return np.zeros(shape, dtype)
    with device.allocate_host(count) as staging:
        device.copy(staging, 0, buffer, 0, count)
        return np.frombuffer(bytes(staging.view()), dtype).reshape(shape)


class Bound:
    """A model with datasets over memory of its largest gear; outputs start as 0xA5."""

    def __init__(self, model: Model) -> None:
        self.model = model
        device, description = model.device, model.description
        self.inputs: list[Buffer] = []
        sizes = dict(zip(description.input_indices, (info.size_bytes for info in description.inputs), strict=True))
        sizes |= {hidden.position: hidden.size_bytes for hidden in description.hidden_inputs}
        self.inputs = [device.allocate(max(sizes[index], 64)) for index in range(description.input_count)]
        self.outputs = [device.allocate(max(info.size_bytes, 64)) for info in description.outputs]
        for buffer in self.outputs:
            device.set_memory(buffer, 0, buffer.size_bytes, 0xA5)
        self.input_set = Dataset.create(device.library, [(b.address, b.size_bytes) for b in self.inputs])
        self.output_set = Dataset.create(device.library, [(b.address, b.size_bytes) for b in self.outputs])

    def fill(self, arrays: Sequence[Array]) -> None:
        for index, array in zip(self.model.description.input_indices, arrays, strict=True):
            write(self.model.device, self.inputs[index], array)

    def results(self, gear: Gear | None = None) -> list[Array]:
        chosen = gear or self.model.description.gears[0]
        return [
            read(self.model.device, buffer, info.dtype, shape)
            for buffer, info, shape in zip(
                self.outputs, self.model.description.outputs, chosen.output_shapes, strict=True
            )
        ]

    def run(self, arrays: Sequence[Array], gear: Gear | None = None) -> list[Array]:
        """Synchronously: fill, choose the gear, execute, read."""
        self.fill(arrays)
        self.model.set_gear(self.input_set, gear or self.model.description.gears[0])
        self.model.execute(self.input_set, self.output_set)
        return self.results(gear)

    def close(self) -> None:
        self.input_set.close()
        self.output_set.close()
        for buffer in (*self.inputs, *self.outputs):
            buffer.close()

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
