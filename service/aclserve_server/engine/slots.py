"""Preallocated datasets: everything an execution needs, made once when a model is loaded.

A slot holds the device buffers of the model's largest gear, in run mode `host` page-locked staging for each, the two
datasets over them, and byte views through which rows enter and outputs leave. Nothing is allocated per item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from aclserve_server.device.buffers import Buffer
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.description import ModelDescription, TensorInfo
from aclserve_server.device.device import Device
from aclserve_server.device.streams import Event, Stream
from aclserve_server.engine.contract import output_bytes
from aclserve_server.engine.regions import RegionPin

_GIL_FREE_BYTES = 256 << 10
"""Copies from this size on go through numpy, which lets other threads run meanwhile."""


@dataclass(slots=True, eq=False)
class Port:
    """One input or output: the device's buffer, and the bytes the host sees (the same where memory is one)."""

    info: TensorInfo
    size_bytes: int
    device: Buffer
    staging: Buffer | None
    view: memoryview
    array: np.ndarray[Any, np.dtype[np.uint8]]


class Lent(NamedTuple):
    """A range of a client's memory that the device can use where it lies."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Marks:
    """Events of one batch where host and device memory are apart: they tie its streams together and time its parts."""

    uploading: Event
    uploaded: Event
    executing: Event
    executed: Event
    downloaded: Event

    def upload_ns(self) -> int:
        """Host to device, of the batch that is past."""
        return round(self.uploaded.elapsed_ms(self.uploading) * 1e6)

    def execute_ns(self) -> int:
        """On the device."""
        return round(self.executed.elapsed_ms(self.executing) * 1e6)

    def download_ns(self) -> int:
        """Device to host."""
        return round(self.downloaded.elapsed_ms(self.executed) * 1e6)


class Slot:
    """One preallocated set of inputs and outputs. Used by one batch at a time.

    `staged` tells that host and device memory are apart. `copies` counts calls of `copy_in` and `read_in`, the only
    ways by which a client's bytes reach a slot.
    """

    def __init__(self, device: Device, description: ModelDescription) -> None:
        """Allocates for the largest gear. Runs on an ACL thread."""
        self.copies = 0
        self.device = device
        self.staged = device.run_mode == "host"
        with ExitStack() as undo:
            input_sizes, output_sizes = _sizes(description)
            self.inputs = [self._port(undo, *pair) for pair in zip(description.inputs, input_sizes, strict=True)]
            self.outputs = [self._port(undo, *pair) for pair in zip(description.outputs, output_sizes, strict=True)]
            self.input_set = self._input_set(undo, description)
            ports = [(port.device.address, port.size_bytes) for port in self.outputs]
            self.output_set = undo.enter_context(Dataset.create(device.library, ports))
            self._input_indices = description.input_indices
            self._lent: dict[tuple[bool, int], Lent] = {}
            self.copy_stream: Stream | None = None
            self.marks: Marks | None = None
            if device.run_mode == "host":
                self.copy_stream = undo.enter_context(device.create_stream())
                self.marks = Marks(*(undo.enter_context(device.create_event()) for _ in range(5)))
            self._undo = undo.pop_all()

    def copy_in(self, index: int, offset: int, data: memoryview) -> None:
        """Copies bytes into an input at an offset: the one copy on the way in."""
        self.copies += 1
        size = data.nbytes
        port = self.inputs[index]
        if size < _GIL_FREE_BYTES:
            port.view[offset : offset + size] = data
        else:
            np.copyto(port.array[offset : offset + size], np.frombuffer(data, np.uint8))

    def read_in(self, index: int, offset: int, size: int, source: RegionPin) -> None:
        """Reads bytes of a region into an input at an offset: likewise the one copy. If it fails, zeros stand there."""
        self.copies += 1
        view = self.inputs[index].view[offset : offset + size]
        try:
            source.read_into(view)
        except BaseException:
            view[:] = bytes(size)
            raise

    def lend(self, inputs: Mapping[int, Lent], outputs: Mapping[int, Lent]) -> None:
        """Points inputs and outputs of the next execution at the clients' own memory, the others at the slot's.

        Between two executions of the slot, on an ACL thread.
        """
        if not (inputs or outputs or self._lent):
            return
        wanted = {(True, index): lent for index, lent in inputs.items()}
        wanted |= {(False, index): lent for index, lent in outputs.items()}
        for place in self._lent.keys() - wanted.keys():
            port = (self.inputs if place[0] else self.outputs)[place[1]]
            self._point(place, Lent(port.device.address, port.size_bytes), short=False)
            del self._lent[place]
        for place, lent in wanted.items():
            if self._lent.get(place) != lent:
                self._point(place, lent, short=True)
                self._lent[place] = lent

    def _point(self, place: tuple[bool, int], lent: Lent, *, short: bool) -> None:
        is_input, index = place
        if is_input:
            self.input_set.update(self._input_indices[index], lent.address, lent.size_bytes, short=short)
        else:
            self.output_set.update(index, lent.address, lent.size_bytes, short=short)

    def close(self) -> None:
        """Frees everything. Runs on an ACL thread; idempotent."""
        for port in (*self.inputs, *self.outputs):
            port.view = memoryview(b"")
            port.array = np.empty(0, np.uint8)
        self._undo.close()

    def _port(self, undo: ExitStack, info: TensorInfo, size: int) -> Port:
        held = max(size, 1)  # a zero-size tensor still needs an address
        on_device = undo.enter_context(self.device.allocate(held))
        staging = None
        if self.device.run_mode == "host":
            staging = undo.enter_context(self.device.allocate_host(held))
        view = (staging or on_device).view()
        view[:] = bytes(held)
        if staging is not None:
            self.device.copy(on_device, 0, staging, 0, held)
        return Port(info, size, on_device, staging, view, np.frombuffer(view, np.uint8))

    def _input_set(self, undo: ExitStack, description: ModelDescription) -> Dataset:
        """The input dataset; the inputs that AscendCL fills sit at the indices where the model has them."""
        ports = [(port.device.address, port.size_bytes) for port in self.inputs]
        for index, size in description.hidden_inputs:
            buffer = undo.enter_context(self.device.allocate(size))
            ports.insert(index, (buffer.address, size))
        return undo.enter_context(Dataset.create(self.device.library, ports))


def slot_bytes(description: ModelDescription) -> int:
    """The device memory that one slot takes; 0 for models of unknown shape, which have none."""
    if not description.gears:
        return 0
    inputs, outputs = _sizes(description)
    return sum(max(size, 1) for size in (*inputs, *outputs)) + sum(size for _, size in description.hidden_inputs)


def _sizes(description: ModelDescription) -> tuple[list[int], list[int]]:
    """The bytes of each input and output in its largest gear."""
    gears = description.gears
    inputs = [
        max(math.prod(gear.input_shapes[index]) for gear in gears) * info.dtype.itemsize
        for index, info in enumerate(description.inputs)
    ]
    outputs = [
        max(output_bytes(info, gear.output_shapes[index]) for gear in gears)
        for index, info in enumerate(description.outputs)
    ]
    return inputs, outputs
